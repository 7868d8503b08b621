//! Looks, before a start, whether serving with these settings would succeed; and whether the data agree with themselves.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chrono::TimeDelta;
use serde::Serialize;
use tokio::net::TcpListener;
use tollgate::{
    config::{CheckSettings, ConfigError, HookJwt, Secret, ServeSettings, Trust},
    http::{
        auth::issuer::{KeyClient, Pace},
        tls::Tls,
    },
    service::{Clock as _, SystemClock, chain},
    store::{
        self, Database,
        database::sqlite_file,
        inspection::{Finding, Inspected, inspect},
        schema::Standing,
    },
};

use super::plain;
use crate::short_secrets;

/// A clock that is off by more is warned of, as in the metrics.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);
/// A certificate that expires sooner is warned of: what renews it should have done so.
const EXPIRES_SOON: TimeDelta = TimeDelta::days(14);

/// What came of looking at something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warning,
    Error,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A line of the answer.
#[derive(Debug, Serialize)]
struct Line<'a> {
    check: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    detail: &'a str,
}

/// Tells line by line what came of it, so that nothing is kept.
#[derive(Debug)]
struct Report {
    is_json: bool,
    errors: u64,
    /// A line that could not be written: whoever does not read on is told so at the end.
    broken: Option<io::Error>,
}

impl Report {
    fn line(&mut self, line: &Line<'_>) {
        if line.status == Status::Error {
            self.errors += 1;
        }
        if self.broken.is_some() {
            return;
        }
        let text = if self.is_json {
            serde_json::to_string(line).unwrap_or_default()
        } else {
            let Line { check, status, table, id, detail } = line;
            let row: String = [*table, *id]
                .into_iter()
                .flatten()
                .filter(|word| !word.is_empty())
                .map(|word| plain(word) + " ")
                .collect();
            let row = if row.is_empty() { row } else { format!("{}: ", row.trim_end()) };
            format!("{:<7}  {check:<11}  {row}{}", status.as_str(), plain(detail))
        };
        self.broken = writeln!(io::stdout(), "{text}").err();
    }

    fn tell(&mut self, check: &str, status: Status, detail: impl AsRef<str>) {
        self.line(&Line { check, status, table: None, id: None, detail: detail.as_ref() });
    }

    fn end(self) -> anyhow::Result<()> {
        if let Some(error) = self.broken {
            return Err(error).context("the report cannot be written");
        }
        match self.errors {
            0 => Ok(()),
            1 => anyhow::bail!("1 error"),
            errors => anyhow::bail!("{errors} errors"),
        }
    }
}

/// Looks at everything, or at the data alone.
///
/// # Errors
///
/// When an error was told of.
pub async fn check(settings: CheckSettings) -> anyhow::Result<()> {
    let CheckSettings { serve, database_url, is_data, is_json, log: _ } = settings;
    let mut report = Report { is_json, errors: 0, broken: None };
    if is_data {
        data(&database_url, &mut report).await;
    } else {
        before_a_start(serve, &database_url, &mut report).await;
    }
    report.end()
}

async fn before_a_start(settings: Result<Box<ServeSettings>, ConfigError>, url: &Secret, report: &mut Report) {
    let settings = match settings {
        Ok(settings) => settings,
        Err(error) => {
            report.tell("settings", Status::Error, chain(&error));
            report.tell("settings", Status::Warning, "nothing else was looked at, but for the database");
            return database(url, true, report).await;
        }
    };
    self::settings(&settings, report);
    database(url, settings.migrate, report).await;
    keys(&settings, report).await;
    certificate(&settings, report);
    listeners(&settings, report).await;
}

fn settings(settings: &ServeSettings, report: &mut Report) {
    let ServeSettings { listen, api_listen, ops_listen, .. } = settings;
    let api = api_listen.map_or_else(|| "beside them".to_owned(), |address| format!("on {address}"));
    report.tell(
        "settings",
        Status::Ok,
        format!("hooks on {listen}, the management API {api}, operations on {ops_listen}"),
    );
    for what in short_secrets(settings) {
        report.tell("settings", Status::Warning, format!("the {what} is short: choose a long random one"));
    }
    if settings.hook_open {
        report.tell("settings", Status::Warning, "the hooks can be called without credentials");
    }
}

async fn database(url: &Secret, migrates: bool, report: &mut Report) {
    if let Some(file) = sqlite_file(url.expose())
        && !file.exists()
    {
        return new_file(&file, url, migrates, report);
    }
    let started = Instant::now();
    let database = match Database::connect_to_read(url.expose()).await {
        Ok(database) => database,
        Err(error) => return report.tell("database", Status::Error, chain(&error)),
    };
    match store::schema::server(&database).await {
        Ok(server) => {
            let took = started.elapsed().as_millis();
            report.tell("database", Status::Ok, format!("{}, reached in {took} ms", server.version));
            if server.is_standby {
                report.tell(
                    "database",
                    Status::Error,
                    "it is a standby, whose changes cannot be followed: name the primary",
                );
            }
        }
        Err(error) => report.tell("database", Status::Error, chain(&error)),
    }
    tables(&database, migrates, report).await;
    clock(&database, report).await;
    database.close().await;
}

/// There is no file yet: whether there will be one.
fn new_file(file: &Path, url: &Secret, migrates: bool, report: &mut Report) {
    let path = file.display();
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let is_made = url.expose().contains("mode=rwc");
    let (status, detail) = if !is_made {
        (Status::Error, format!("there is no file {path}, and the URL lacks `mode=rwc`, by which one is made"))
    } else if !migrates {
        (Status::Error, format!("there is no file {path}: run `tollgate migrate`, or set TOLLGATE_MIGRATE=true"))
    } else if fs::metadata(folder).is_ok_and(|folder| folder.is_dir() && !folder.permissions().readonly()) {
        (Status::Warning, format!("there is no file {path}: the start makes an empty database"))
    } else {
        (Status::Error, format!("there is no folder {} to make a database in", folder.display()))
    };
    report.tell("database", status, detail);
}

async fn tables(database: &Database, migrates: bool, report: &mut Report) {
    let (status, is_complete, detail) = match store::schema::standing(database).await {
        Ok(Standing::Current) => (Status::Ok, true, "up to date".to_owned()),
        Ok(Standing::Newer) => {
            (Status::Warning, true, "they are those of a newer version; this one can live with them".to_owned())
        }
        Ok(Standing::Behind(steps)) if migrates => {
            (Status::Warning, false, format!("{steps} steps are to be taken, which the start does"))
        }
        Ok(Standing::Behind(steps)) => {
            (Status::Error, false, format!("{steps} steps are to be taken: run `tollgate migrate`"))
        }
        Err(error) => (Status::Error, false, chain(&error)),
    };
    report.tell("tables", status, detail);
    if !is_complete {
        return;
    }
    match store::schema::missing_rights(database).await {
        Ok(missing) if missing.is_empty() => report.tell("rights", Status::Ok, "all that the service needs"),
        Ok(missing) => {
            let missing: Vec<_> = missing.iter().map(|(table, right)| format!("{right} on {table}")).collect();
            let detail = format!("the role lacks {}: see deploy/postgres/roles.sql", missing.join(", "));
            report.tell("rights", Status::Error, detail);
        }
        Err(error) => report.tell("rights", Status::Error, chain(&error)),
    }
    match store::schema::holds_foreign_changes(database).await {
        Ok(false) => {}
        Ok(true) => {
            let detail =
                "changes were restored from another server's dump: run `tollgate migrate` as the tables' owner";
            report.tell("tables", Status::Error, detail);
        }
        Err(error) => report.tell("tables", Status::Error, chain(&error)),
    }
}

async fn clock(database: &Database, report: &mut Report) {
    let before = SystemClock.now();
    match store::schema::database_now(database).await {
        // A file has no clock of its own.
        Ok(None) => {}
        Ok(Some(theirs)) => {
            let after = SystemClock.now();
            // It was read in between.
            let off = (before - theirs).max(theirs - after).max(TimeDelta::zero()).to_std().unwrap_or_default();
            let status = if off > CLOCK_TOLERANCE { Status::Warning } else { Status::Ok };
            report.tell("clock", status, format!("off from the database's by {:.3} s at least", off.as_secs_f64()));
        }
        Err(error) => report.tell("clock", Status::Error, chain(&error)),
    }
}

async fn keys(settings: &ServeSettings, report: &mut Report) {
    let hooks = settings.hook_jwt.as_ref().map(|HookJwt { trust, .. }| ("hooks", trust));
    let api = settings.api_jwt.as_ref().map(|api| ("management API", &api.trust));
    for (what, Trust { issuers, .. }) in hooks.into_iter().chain(api) {
        let client = match KeyClient::new() {
            Ok(client) => client,
            Err(error) => return report.tell("keys", Status::Error, chain(&error)),
        };
        for (issuer, source) in issuers {
            let (status, detail) = match client.count(source, Pace::default().timeout).await {
                Ok((_, 0)) => (Status::Error, "none of its keys can be used".to_owned()),
                Ok((keys, usable)) => (Status::Ok, format!("{usable} of {keys} keys can be used")),
                Err(error) => (Status::Error, chain(&error)),
            };
            report.tell("keys", status, format!("{issuer} ({what}): {detail}"));
        }
    }
}

fn certificate(settings: &ServeSettings, report: &mut Report) {
    let Some(files) = settings.tls.clone() else { return };
    let tls = match Tls::open(files) {
        Ok(tls) => tls,
        Err(error) => return report.tell("certificate", Status::Error, chain(&error)),
    };
    let (status, detail) = match tls.expires_at() {
        None => (Status::Warning, "it belongs to its key; when it expires cannot be read".to_owned()),
        Some(end) => {
            let left = end - SystemClock.now();
            let status = if left <= TimeDelta::zero() {
                Status::Error
            } else if left < EXPIRES_SOON {
                Status::Warning
            } else {
                Status::Ok
            };
            (status, format!("it belongs to its key, and expires at {}", super::spelled(end)))
        }
    };
    report.tell("certificate", status, detail);
}

async fn listeners(settings: &ServeSettings, report: &mut Report) {
    let ServeSettings { listen, api_listen, ops_listen, .. } = settings;
    let wanted = [("hooks", Some(*listen)), ("management API", *api_listen), ("operations", Some(*ops_listen))];
    // All are held at once, so that two that want one address are found.
    let mut held = Vec::new();
    for (what, address) in wanted {
        let Some(address) = address else { continue };
        match TcpListener::bind(address).await {
            Ok(listener) => {
                held.push(listener);
                report.tell("listener", Status::Ok, free(what, address));
            }
            Err(error) => report.tell("listener", Status::Error, format!("{address} ({what}): {error}")),
        }
    }
}

fn free(what: &str, address: SocketAddr) -> String {
    format!("{address} ({what}) is free")
}

/// Looks at all rows, and changes none.
async fn data(url: &Secret, report: &mut Report) {
    let database = match Database::connect_to_read(url.expose()).await {
        Ok(database) => database,
        Err(error) => return report.tell("data", Status::Error, chain(&error)),
    };
    match store::schema::standing(&database).await {
        Ok(Standing::Current | Standing::Newer) => match inspected(&database, report).await {
            Ok(Inspected { scopes, subscriptions, changes, tokens, findings }) => {
                let status = if findings == 0 { Status::Ok } else { Status::Error };
                let detail = format!(
                    "{subscriptions} subscriptions, {scopes} scopes, {changes} changes and {tokens} tokens were looked at: \
                    {findings} findings"
                );
                // The findings themselves are the errors.
                let errors = report.errors;
                report.tell("data", status, detail);
                report.errors = errors;
            }
            Err(error) => report.tell("data", Status::Error, chain(&error)),
        },
        Ok(Standing::Behind(_)) => {
            report.tell("data", Status::Error, "the tables are not up to date: run `tollgate migrate`");
        }
        Err(error) => report.tell("data", Status::Error, chain(&error)),
    }
    database.close().await;
}

async fn inspected(database: &Database, report: &mut Report) -> store::Result<Inspected> {
    let reading = database.begin_reading().await?;
    let mut tell = |Finding { table, id, problem }: Finding| {
        report.line(&Line {
            check: "data",
            status: Status::Error,
            table: Some(table),
            id: Some(&id),
            detail: &problem,
        });
    };
    inspect(&reading, &mut tell).await
}

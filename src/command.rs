//! What an operator does at the command line, in the database itself: tokens of the management API, which are the way in
//! when nobody has a credential yet, or any more; and files of subscriptions.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::timeout;
use tollgate::{
    config::{Expiry, TokenCommand},
    domain::{
        time::is_representable,
        token::{Role, TokenName},
    },
    service::{
        Error, Metrics, Origin, Policy, Service, SystemClock, new_id,
        token::{NewToken, Shown},
    },
    store::{self, Database},
};

pub mod ask;
pub mod backup;
pub mod check;
pub mod files;

/// Under what name changes are recorded that were made here. It holds a blank, so no token has it.
const ACTOR: &str = "command line";
/// Tokens that are asked for at once.
const PAGE: u64 = 200;
/// How long to say goodbye to the database.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Does something with tokens.
pub async fn token(command: TokenCommand, database: Database) -> anyhow::Result<()> {
    let service = service(database, Policy::default()).await?;
    let done = match command {
        TokenCommand::Create { name, role, expires } => create(&service, name, role, expires).await,
        TokenCommand::List => list(&service).await,
        TokenCommand::Revoke(name) => revoke(&service, &name).await,
    };
    close(&service).await;
    done
}

/// The use cases on a database whose tables are up to date.
async fn service(database: Database, policy: Policy) -> anyhow::Result<Arc<Service>> {
    if !store::schema::is_current(&database).await.context("the database cannot be asked")? {
        anyhow::bail!("the tables are not up to date: run `tollgate migrate`");
    }
    Ok(Service::new(database, Arc::new(SystemClock), Arc::new(Metrics::new()?), policy))
}

async fn close(service: &Arc<Service>) {
    // What was done is done, whether or not the database lets go in time.
    let _ = timeout(CLOSE_TIMEOUT, service.close()).await;
}

fn origin(now: DateTime<Utc>) -> Origin {
    Origin { actor: ACTOR.to_owned(), request_id: new_id(now).to_string(), idempotency: None }
}

#[expect(clippy::print_stderr, reason = "a script takes the secret, a person reads the rest")]
async fn create(service: &Arc<Service>, name: TokenName, role: Role, expires: Expiry) -> anyhow::Result<()> {
    let now = service.now();
    let expires_at = match expires {
        Expiry::Never => None,
        Expiry::At(instant) => Some(instant),
        Expiry::After(duration) => {
            let instant = TimeDelta::from_std(duration).ok().and_then(|duration| now.checked_add_signed(duration));
            Some(
                instant
                    .filter(|instant| is_representable(*instant))
                    .context("the token would end after the year 9999")?,
            )
        }
    };
    let new = NewToken { name, role, expires_at };
    let (Shown { token, .. }, secret) = service.create_token(origin(now), new).await.map_err(explain)?;
    // A pipe that is closed must not leave a token whose secret nobody has without a word.
    writeln!(io::stdout(), "{}", secret.expose()).with_context(|| {
        format!("the secret could not be written; revoke the token: tollgate token revoke {}", token.name)
    })?;
    let end = token.expires_at.map_or_else(|| "never ends".to_owned(), |end| format!("ends at {}", spelled(end)));
    eprintln!("Token `{}` has the role `{}`, and {end}. It is not shown again.", token.name, role.as_str());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the list is what was asked for")]
async fn list(service: &Arc<Service>) -> anyhow::Result<()> {
    let now = service.now();
    println!("{}", line(&["NAME", "ROLE", "STATUS", "CREATED", "BY", "EXPIRES", "LAST USED"].map(str::to_owned)));
    let mut after = None;
    loop {
        let tokens = service.tokens(after, PAGE).await?;
        let Some(last) = tokens.last() else { return Ok(()) };
        after = Some(last.id);
        for token in &tokens {
            let end = token.expires_at.map_or_else(|| "never".to_owned(), spelled);
            let used = token.last_used_at.map_or_else(|| "never".to_owned(), spelled);
            println!(
                "{}",
                line(&[
                    token.name.to_string(),
                    token.role.as_str().to_owned(),
                    token.status(now).as_str().to_owned(),
                    spelled(token.created_at),
                    token.created_by.clone(),
                    end,
                    used,
                ])
            );
        }
    }
}

#[expect(clippy::print_stderr, reason = "a person reads what was done")]
async fn revoke(service: &Arc<Service>, name: &TokenName) -> anyhow::Result<()> {
    let id = service.token_named(name).await.map_err(explain)?.token.id;
    service.revoke_token(origin(service.now()), id).await.map_err(explain)?;
    eprintln!("Token `{name}` is revoked.");
    Ok(())
}

/// A line of the list: its columns are parted by tabs, which no name holds.
fn line(columns: &[String; 7]) -> String {
    columns.join("\t")
}

/// A text that others wrote, such that no terminal takes it for more than a text.
fn plain(text: &str) -> String {
    let is_plain = |letter: &char| {
        // What turns the direction of writing could make a line look like another one.
        !letter.is_control()
            && !matches!(letter, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|letter| if is_plain(&letter) { letter.to_string() } else { letter.escape_unicode().to_string() })
        .collect()
}

fn spelled(instant: DateTime<Utc>) -> String {
    instant.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The error in words for whoever sits at the command line.
fn explain(error: Error) -> anyhow::Error {
    let words = match &error {
        Error::NotFound => "there is no token of that name",
        Error::TimedOut | Error::Store(store::Error::OutcomeUnknown(_)) => {
            "whether it was done is not known: look with `tollgate token list`"
        }
        _ => return error.into(),
    };
    anyhow::Error::new(error).context(words)
}

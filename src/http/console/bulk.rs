//! The page of imports: a file is uploaded whole, then imported in the background, and the page tells how far it is.

use std::{
    io::Cursor,
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use maud::{Markup, html};
use poem::{
    Response,
    http::{HeaderName, HeaderValue, StatusCode, header},
};

use super::{
    Asked, Visitor, foreign_form,
    form::Link,
    markup::{self, Part},
    redirect, shown,
};
use crate::http::{
    bulk::{ImportReport, import_file},
    problem::{Document, Problem, undescribed},
    router::BodyLimit,
    transfer::Format,
};

/// The largest file: it is held in memory. The API and the command line take one of any length.
const MAX_FILE_BYTES: usize = 8 * 1024 * 1024;
/// How long a file may take to arrive: the largest one, at a little more than a megabit per second. Only those who are
/// signed in send one.
const UPLOAD_TIMEOUT: Duration = Duration::from_mins(1);
/// The form: the file, and room for the other fields.
pub const FORM: BodyLimit = BodyLimit { bytes: MAX_FILE_BYTES + 64 * 1024, time: UPLOAD_TIMEOUT };
/// Lines that are told to be wrong.
const MAX_PROBLEMS: usize = 100;
/// The operation of the management API that imports.
pub const IMPORT: &str = "import-subscriptions";
/// Makes a browser load the page again after so many seconds.
const REFRESH: HeaderName = HeaderName::from_static("refresh");
const REFRESH_S: HeaderValue = HeaderValue::from_static("1");

/// The pause before a page looks again how far an import is.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The last import that was begun here, if there was one.
#[derive(Debug, Default)]
pub struct Imports(Mutex<Option<Job>>);

/// An import.
#[derive(Debug, Clone)]
struct Job {
    by: String,
    begun_at: DateTime<Utc>,
    bytes: u64,
    progress: Arc<Mutex<Progress>>,
}

/// How far an import is.
#[derive(Debug, Default, Clone)]
struct Progress {
    report: ImportReport,
    bytes_read: u64,
    /// What came of it; none while it goes on.
    ended: Option<Result<(), Document>>,
}

impl Imports {
    fn last(&self) -> Option<Job> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What a form uploads.
#[derive(Debug, Default)]
struct Upload {
    form_token: String,
    format: String,
    mode: String,
    file_name: String,
    file: Bytes,
}

/// The page of imports.
///
/// # Errors
///
/// 403.
pub async fn page(asked: &Asked<'_>, visitor: &Visitor, imports: &Imports) -> Result<Response, Problem> {
    asked.permit(visitor, IMPORT)?;
    let now = asked.app.service.now();
    let job = match imports.last() {
        Some(job) => Some((job.progress().await, job)),
        None => None,
    };
    let is_running = job.as_ref().is_some_and(|(progress, _)| progress.ended.is_none());
    let content = html! {
        h1 { "Import" }
        @if let Some((progress, job)) = &job { (told(job, progress, now)) }
        @if !is_running { (form(visitor)) }
    };
    let mut response = shown("Import", visitor, Part::Import, &content);
    if is_running {
        response.headers_mut().insert(REFRESH, REFRESH_S);
    }
    Ok(response)
}

impl Job {
    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is. The import's thread may hold the lock while the system lets others run: no thread that answers
    /// hooks waits for it.
    async fn progress(&self) -> Progress {
        loop {
            if let Some(progress) = self.look() {
                return progress;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// The same, unless somebody is changing it.
    fn look(&self) -> Option<Progress> {
        match self.progress.try_lock() {
            Ok(progress) => Some(progress.clone()),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner().clone()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

fn form(visitor: &Visitor) -> Markup {
    html! {
        section aria-labelledby="form-title" {
            h2 id="form-title" { "A file of subscriptions" }
            p {
                "NDJSON or CSV, as the management API takes it: each line says all of one subscription and names it by "
                code { "source" } " and " code { "externalId" } ", or by the " code { "id" } " of an export. What is there "
                "already is left, so a file may be imported again."
            }
            form.stacked method="post" action="/console/import" enctype="multipart/form-data" {
                (markup::form_token(visitor))
                label for="file" { "File, 8 MiB at most" }
                input id="file" name="file" type="file" required accept=".ndjson,.jsonl,.csv";
                fieldset {
                    legend { "Written as" }
                    label { input type="radio" name="format" value="" checked; " its name says" }
                    label { input type="radio" name="format" value="ndjson"; " NDJSON" }
                    label { input type="radio" name="format" value="csv"; " CSV" }
                }
                fieldset {
                    legend { "What to do" }
                    label { input type="radio" name="mode" value="try" checked; " try it: check each line, and keep nothing" }
                    label { input type="radio" name="mode" value="import"; " import it" }
                }
                button.main type="submit" { "Upload" }
            }
        }
    }
}

/// How far an import is, and what came of it.
fn told(job: &Job, progress: &Progress, now: DateTime<Utc>) -> Markup {
    let Progress { report, bytes_read, ended } = progress;
    let what = if report.dry_run { "Trial" } else { "Import" };
    html! {
        section aria-labelledby="job-title" {
            h2 id="job-title" { (what) " of " (markup::instant(job.begun_at)) }
            p role="status" {
                @match ended {
                    None => "It goes on; this page loads itself again.",
                    Some(Ok(())) if report.complete => { (what) " ended: the whole file was read." }
                    Some(Ok(())) => { (what) " ended: too many lines were refused." }
                    Some(Err(_)) => { (what) " broke off." }
                }
                @if report.dry_run && ended.is_some() { " Nothing was kept." }
            }
            @if let Some(Err(problem)) = ended { (markup::refusal(problem)) }
            @if ended.is_none() {
                label for="progress" { "Read of the file" }
                " "
                progress id="progress" max=(job.bytes.max(1)) value=(bytes_read) {}
            }
            dl.facts {
                div { dt { "Begun by" } dd { (markup::text(&job.by)) " (" (markup::distance(job.begun_at, now)) ")" } }
                @for (name, count) in [
                    ("Lines", report.lines),
                    ("New", report.created),
                    ("Changed", report.changed),
                    ("There already", report.unchanged),
                    ("Outdated", report.outdated),
                    ("Refused", report.refused),
                ] { div { dt { (name) } dd { (count) } } }
            }
            @if !report.problems.is_empty() {
                div.wide tabindex="0" role="region" aria-label="Lines that were refused" {
                    table {
                        caption { "Lines that were refused" @if report.problems.len() > MAX_PROBLEMS { ", the first " (MAX_PROBLEMS) } }
                        thead { tr { th scope="col" { "Line" } th scope="col" { "What is wrong" } } }
                        tbody {
                            @for problem in report.problems.iter().take(MAX_PROBLEMS) {
                                tr {
                                    th scope="row" data-label="Line" { (problem.line) }
                                    td data-label="What is wrong" {
                                        (problem.problem.detail)
                                        @for error in &problem.problem.errors {
                                            " " code { (markup::text(&error.pointer)) } ": " (markup::text(&error.detail)) "."
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Begins an import.
///
/// # Errors
///
/// 403; 400 when the form is not one; 503 while another import goes on.
pub async fn begin(asked: &Asked<'_>, visitor: &Visitor, imports: &Imports, body: Bytes) -> Result<Response, Problem> {
    let upload = Upload::parse(asked, body).await?;
    if !visitor.session.made(Some(&upload.form_token)) {
        return Err(foreign_form());
    }
    asked.permit(visitor, IMPORT)?;
    let is_dry_run = match upload.mode.as_str() {
        "try" => true,
        "import" => false,
        _ => return Err(undescribed("?mode", "expected `try` or `import`")),
    };
    let is_csv = upload.file_name.to_ascii_lowercase().ends_with(".csv");
    let by_name = if is_csv { Format::Csv } else { Format::Ndjson };
    let format = Format::parse(&upload.format).unwrap_or(by_name);
    let service = &asked.app.service;
    let import = service.begin_import(asked.origin(visitor), is_dry_run)?;
    let report = ImportReport { dry_run: is_dry_run, complete: true, ..ImportReport::default() };
    let progress = Arc::new(Mutex::new(Progress { report, ..Progress::default() }));
    let job = Job {
        by: visitor.caller.name.clone(),
        begun_at: service.now(),
        bytes: u64::try_from(upload.file.len()).unwrap_or(u64::MAX),
        progress,
    };
    *imports.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.clone());
    let service = Arc::clone(service);
    // It goes on when the browser hangs up: then whoever looks at the page sees what came of it.
    tokio::spawn(async move {
        let told = job.clone();
        let tell = move |outcomes, bytes_read| {
            let mut progress = told.lock();
            progress.bytes_read = bytes_read;
            let goes_on = progress.report.add(outcomes);
            progress.report.complete = goes_on;
            goes_on
        };
        let ended = import_file(&service, import, format, Cursor::new(upload.file), tell).await;
        job.lock().ended = Some(ended.map_err(|problem| problem.document()));
    });
    Ok(redirect(&Link::to("/console/import")))
}

impl Upload {
    async fn parse(asked: &Asked<'_>, body: Bytes) -> Result<Self, Problem> {
        let unreadable = || undescribed("?", "the form cannot be read");
        let content_type = asked.shown.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let boundary = content_type.and_then(|content_type| multer::parse_boundary(content_type).ok());
        let boundary = boundary.ok_or_else(|| Problem::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))?;
        let stream = futures_util::stream::iter([Ok::<_, std::io::Error>(body)]);
        let mut form = multer::Multipart::new(stream, boundary);
        let mut upload = Self::default();
        while let Some(field) = form.next_field().await.map_err(|_| unreadable())? {
            let name = field.name().unwrap_or_default().to_owned();
            let file_name = field.file_name().unwrap_or_default().to_owned();
            let value = field.bytes().await.map_err(|_| unreadable())?;
            let text = || String::from_utf8(value.to_vec()).map_err(|_| unreadable());
            match name.as_str() {
                "form_token" => upload.form_token = text()?,
                "format" => upload.format = text()?,
                "mode" => upload.mode = text()?,
                "file" => (upload.file_name, upload.file) = (file_name, value),
                _ => return Err(unreadable()),
            }
        }
        Ok(upload)
    }
}

//! Files of subscriptions at the command line, imported into the database itself and exported from it. Services that run
//! on it learn of an import as they learn of each other's writes.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Read, Write as _},
    path::Path,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use tollgate::{
    config::{ExportCommand, ImportCommand, ImportFile},
    http::{
        bulk::{ImportReport, LineOutcome, MAX_PROBLEMS, export_pages, import_file},
        problem::Problem,
    },
    service::{FeedSettings, Policy},
    store::{Database, subscription::Filter},
};

/// How often the progress is drawn anew.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Imports a file, and says on standard error what became of it.
#[expect(clippy::print_stderr, reason = "a person reads what was done, and which lines were refused")]
pub async fn import(command: ImportCommand, database: Database) -> anyhow::Result<()> {
    let ImportCommand { file, format, is_dry_run, claims_prefix } = command;
    let (file, length) = open(&file)?;
    let service = super::service(database, Policy { claims_prefix, ..Policy::default() }).await?;
    // So that services are told chunk by chunk: of all that comes in a second there would be too much to name.
    let watching = service.watch(FeedSettings { wake_up: true }).await.context("the database cannot be asked")?;
    let progress = progress(length);
    let report = Arc::new(Mutex::new(ImportReport { dry_run: is_dry_run, ..ImportReport::default() }));
    let add = {
        let (report, progress) = (Arc::clone(&report), progress.clone());
        move |outcomes: Vec<LineOutcome>, bytes_read| {
            progress.suspend(|| tell(&outcomes));
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            let goes_on = report.add(outcomes);
            progress.set_position(bytes_read);
            progress.set_message(format!("{} lines", report.lines));
            goes_on
        }
    };
    let done = async {
        let import = service.begin_import(super::origin(service.now()), is_dry_run)?;
        import_file(&service, import, format, file, add).await.map_err(|problem| explain(&problem))?;
        let report = report.lock().unwrap_or_else(PoisonError::into_inner);
        if report.problems.len() >= MAX_PROBLEMS {
            anyhow::bail!("{MAX_PROBLEMS} lines were refused: something is wrong with the whole file");
        }
        Ok(())
    };
    let done = done.await;
    progress.finish_and_clear();
    let report = std::mem::take(&mut *report.lock().unwrap_or_else(PoisonError::into_inner));
    let ImportReport { lines, created, changed, unchanged, outdated, refused, .. } = report;
    let kept = if is_dry_run { " Nothing was kept: it was a dry run." } else { "" };
    eprintln!(
        "{lines} lines: {created} created, {changed} changed, {unchanged} unchanged, {outdated} outdated, {refused} \
        refused.{kept}"
    );
    drop(watching);
    super::close(&service).await;
    done.context("the import broke off; it may be begun again, what is there already is left")?;
    if refused > 0 {
        anyhow::bail!("{refused} lines were refused");
    }
    Ok(())
}

/// Exports all subscriptions to standard output.
pub async fn export(command: ExportCommand, database: Database) -> anyhow::Result<()> {
    let ExportCommand { format, source } = command;
    let filter = Filter { source, ..Filter::default() };
    let service = super::service(database, Policy::default()).await?;
    let done = write(export_pages(&service, filter, format)).await;
    super::close(&service).await;
    done
}

async fn write(pages: impl Stream<Item = Result<Bytes, Problem>>) -> anyhow::Result<()> {
    let mut pages = pin!(pages);
    let mut output = io::stdout();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|problem| explain(&problem)).context("the export broke off, and is not whole")?;
        output.write_all(&page).context("the export cannot be written, and is not whole")?;
    }
    output.flush().context("the export cannot be written, and is not whole")
}

fn open(file: &ImportFile) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    let open = |path: &Path| -> io::Result<(File, u64)> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    Ok(match file {
        ImportFile::Standard => (Box::new(io::stdin()), None),
        ImportFile::Path(path) => {
            let (file, length) = open(path).with_context(|| format!("{} cannot be opened", path.display()))?;
            (Box::new(file), Some(length))
        }
    })
}

/// What shows how far it is, on a terminal alone.
fn progress(length: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{bar:40} {percent}% {msg}, {elapsed} of about {duration}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {msg}, {elapsed}"),
    };
    // A template that cannot be read leaves the one that the library has.
    let style = ProgressStyle::with_template(template);
    let bar = match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };
    bar.enable_steady_tick(DRAW_INTERVAL);
    bar
}

/// Tells which lines were refused, and why.
#[expect(clippy::print_stderr, reason = "a person reads which lines were refused")]
fn tell(outcomes: &[LineOutcome]) {
    for (line, outcome) in outcomes {
        if let Err(problem) = outcome {
            let document = problem.document();
            let errors: Vec<_> =
                document.errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect();
            let reason = if errors.is_empty() { document.detail } else { errors.join("; ") };
            eprintln!("line {line}: {}: {reason}", document.code);
        }
    }
}

/// The problem in words for whoever sits at the command line.
fn explain(problem: &Problem) -> anyhow::Error {
    anyhow::anyhow!("{}", problem.document().detail)
}

//! Files in the management API: `/v1/subscriptions/import` and `/v1/subscriptions/export`.

use std::{
    io::{self, Read},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use poem::{
    Body, IntoResponse, Request, RequestBody, Response,
    http::{StatusCode, header},
    web::Data,
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions, Object, OpenApi,
    param::Query,
    registry::{MetaMediaType, MetaRequest, MetaResponse, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
};
use serde::Serialize;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    App, Tag,
    auth::ManagementCaller,
    body::Ok200,
    problem::{self, Document, Problem, Refusal, undescribed},
    router::discard,
    subscription::BooleanText,
    transfer::{Chunk, Encoder, Format, ReadError, read},
    wire::{SourceText, text},
};
use crate::{
    service::{
        Apart, Service,
        bulk::{Import, Item},
        metrics::ImportedLine,
        subscription::{Outcome, Shown},
    },
    store::subscription::{After, Filter},
};

/// Lines of an import that are refused before it ends: then something is wrong with the whole file.
pub const MAX_PROBLEMS: usize = 1_000;
const _: () = assert!(MAX_PROBLEMS == 1_000, "the contract names the limit");
/// How long the next part of a file may take to arrive.
const PART_TIMEOUT: Duration = Duration::from_secs(30);
/// Parts of a file that wait to be read: they bound the memory.
const WAITING: usize = 2;

/// Lines of an export that are read at once.
const PAGE_LINES: usize = 1_000;

/// The operations of files.
#[derive(Debug, Clone, Copy)]
pub struct BulkApi;

text! {
    /// How a file is written.
    FormatText, "string", |schema| {
        schema.enum_items = Format::ALL.iter().map(|format| format.as_str().into()).collect();
        schema.default = Some(Format::Ndjson.as_str().into());
    }
}

/// What became of an import.
#[derive(Debug, Default, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub struct ImportReport {
    /// Whether nothing was kept of it.
    pub dry_run: bool,
    /// Whether the file was read to its end. It is not when too many lines were refused.
    pub complete: bool,
    /// The lines that were read, but for blank ones.
    pub lines: i64,
    /// Subscriptions that were not there before.
    pub created: i64,
    /// Subscriptions that were changed.
    pub changed: i64,
    /// Lines that say what is there.
    pub unchanged: i64,
    /// Lines that say nothing newer than what their source said last, by its version, so that nothing was done.
    pub outdated: i64,
    /// Lines that were refused.
    pub refused: i64,
    /// Why each of these was refused.
    pub problems: Vec<LineProblem>,
}

/// Why a line was refused.
#[derive(Debug, Clone, Object, Serialize)]
pub struct LineProblem {
    /// The number of the line, counted from 1.
    pub line: i64,
    /// What is wrong with it.
    pub problem: Document,
}

/// A body that is a file, as it arrives.
pub struct Upload {
    format: Format,
    parts: mpsc::Receiver<Result<Bytes, io::Error>>,
    /// What passes the parts on; it ends when all were, or some of those that nobody takes were thrown away.
    passing: JoinHandle<()>,
}

impl<'a> ApiExtractor<'a> for Upload {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn request_meta() -> Option<MetaRequest> {
        Some(MetaRequest { description: None, content: contents(), required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let content_type = request.header(header::CONTENT_TYPE).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let format = Format::ALL.into_iter().find(|format| essence.eq_ignore_ascii_case(format.media_type()));
        let format = format.ok_or_else(|| Problem::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))?;
        let is_plain = |encoding: &str| encoding.eq_ignore_ascii_case("identity");
        if !request.header(header::CONTENT_ENCODING).is_none_or(is_plain) {
            return Err(Problem::of_status(StatusCode::UNSUPPORTED_MEDIA_TYPE).into());
        }
        let mut stream = Box::pin(body.take()?.into_bytes_stream());
        let (sender, parts) = mpsc::channel(WAITING);
        let passing = tokio::spawn(async move {
            loop {
                let part = match tokio::time::timeout(PART_TIMEOUT, stream.next()).await {
                    Ok(None) => break,
                    Ok(Some(part)) => part,
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                };
                let is_over = part.is_err();
                if sender.send(part).await.is_err() {
                    // The import has ended. Its sender gets to read the answer, if it has not much left to send.
                    discard(&mut stream).await;
                    break;
                }
                if is_over {
                    break;
                }
            }
        });
        Ok(Self { format, parts, passing })
    }
}

/// The parts of a body as a file. It waits for them, so it is for a thread where that is no harm.
struct Parts {
    parts: mpsc::Receiver<Result<Bytes, io::Error>>,
    rest: Bytes,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.parts.blocking_recv() {
                None => return Ok(0),
                Some(part) => self.rest = part?,
            }
        }
        let length = buffer.len().min(self.rest.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}

/// Marks an answer whose body is made while it is sent: until then it is under way.
#[derive(Debug, Clone, Copy)]
pub struct Streamed;

/// A file that is written while it is sent.
pub struct Download {
    format: Format,
    body: Body,
}

impl ApiResponse for Download {
    fn meta() -> MetaResponses {
        let response = MetaResponse {
            description: "The subscriptions, one a line.",
            status: Some(200),
            status_range: None,
            content: contents(),
            headers: Vec::new(),
        };
        MetaResponses { responses: vec![response] }
    }

    fn register(_: &mut Registry) {}
}

impl IntoResponse for Download {
    fn into_response(self) -> Response {
        let mut response = Response::builder().content_type(self.format.media_type()).body(self.body);
        response.set_data(Streamed);
        response
    }
}

fn contents() -> Vec<MetaMediaType> {
    // Programs that make clients take it for a file, to be streamed, and not for a text that is held in memory.
    let schema = || MetaSchemaRef::Inline(Box::new(MetaSchema::new_with_format("string", "binary")));
    Format::ALL.map(|format| MetaMediaType { content_type: format.media_type(), schema: schema() }).into()
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Subscriptions")]
impl BulkApi {
    /// Import subscriptions
    ///
    /// A file of any length, one subscription a line: NDJSON, each line as a new subscription is described, or CSV, with
    /// a first line of the same names, `subjectType` and `subjectId` for the subject, blanks between scopes, an
    /// empty value for what is not there, and `never` for an end that never comes. Each line says all of a subscription, and names it by `source` and
    /// `externalId` (or by the `id` of an export), so that a file can be sent again after it broke off: what is there
    /// already is left. A line that is refused is told, and the others are imported; after 1,000 of them it ends.
    #[oai(path = "/subscriptions/import", method = "post", operation_id = "import-subscriptions")]
    async fn import(
        &self,
        app: Data<&Arc<App>>,
        caller: ManagementCaller,
        /// Whether to try it only: each line is checked as if it were imported, but may not know of the lines before it,
        /// and nothing is kept.
        #[oai(name = "dryRun")]
        dry_run: Query<Option<BooleanText>>,
        file: Upload,
    ) -> Result<Ok200<ImportReport>, Refusal<problem::Upload>> {
        let is_dry_run = dry_run.0.map(|text| text.parse("?dryRun")).transpose()?.unwrap_or_default();
        let Upload { format, parts, passing } = file;
        let report = match app.service.begin_import(caller.0, is_dry_run) {
            Ok(import) => upload(&app.service, import, is_dry_run, format, parts).await,
            Err(error) => {
                drop(parts);
                Err(error.into())
            }
        };
        // An answer that comes before the end of the file would be lost with the connection.
        let _ = passing.await;
        Ok(Ok200(report?))
    }

    /// Export subscriptions
    ///
    /// One a line, ascending by id, each as it is when its line is written: what is recorded meanwhile may be missing,
    /// and `updatedSince` of the list finds it. An answer that breaks off is not whole.
    #[oai(path = "/subscriptions/export", method = "get", operation_id = "export-subscriptions")]
    async fn export(
        &self,
        app: Data<&Arc<App>>,
        _caller: ManagementCaller,
        /// How the file is written.
        format: Query<Option<FormatText>>,
        /// Known to this system by an id of its own.
        source: Query<Option<SourceText>>,
    ) -> Result<Download, Refusal<problem::List>> {
        let format = format.0.map_or(Some(Format::Ndjson), |text| Format::parse(&text.0));
        let format = format.ok_or_else(|| undescribed("?format", "expected `ndjson` or `csv`"))?;
        let source = source.0.map(|source| source.parse("?source")).transpose();
        let source = source.map_err(|error| Problem::invalid_request(vec![error]))?;
        let filter = Filter { source, ..Filter::default() };
        let permit = app.service.begin_export()?;
        let mut pages = Box::pin(export_pages(&app.service, filter, format));
        // The first one is waited for, so that an outage is an answer of its own.
        let first = pages.next().await.transpose()?;
        let rest = pages.map(move |page| {
            // It goes on for as long as its pages are read.
            let _permit = &permit;
            page.map_err(|problem| {
                tracing::warn!(error = problem.document().detail, "an export broke off");
                io::Error::other("the database cannot be asked")
            })
        });
        let body = Body::from_bytes_stream(futures_util::stream::iter(first.map(Ok)).chain(rest));
        Ok(Download { format, body })
    }
}

/// Imports what is uploaded, to its end or until too much of it was refused.
async fn upload(
    service: &Arc<Service>,
    import: Import,
    is_dry_run: bool,
    format: Format,
    parts: mpsc::Receiver<Result<Bytes, io::Error>>,
) -> Result<ImportReport, Problem> {
    let report = ImportReport { dry_run: is_dry_run, complete: true, ..ImportReport::default() };
    let report = Arc::new(Mutex::new(report));
    let add = {
        let (report, metrics) = (Arc::clone(&report), Arc::clone(service.metrics()));
        move |outcomes: Vec<LineOutcome>, _| {
            if !is_dry_run {
                for (_, outcome) in &outcomes {
                    metrics.count_imported_line(imported_line(outcome));
                }
            }
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.complete = report.add(outcomes);
            report.complete
        }
    };
    import_file(service, import, format, Parts { parts, rest: Bytes::new() }, add).await?;
    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(std::mem::take(&mut report))
}

/// What became of a line: its number, and its outcome or what is wrong with it.
pub type LineOutcome = (i64, Result<Outcome, Problem>);

fn imported_line(outcome: &Result<Outcome, Problem>) -> ImportedLine {
    match outcome {
        Ok(Outcome::Created) => ImportedLine::Created,
        Ok(Outcome::Changed) => ImportedLine::Changed,
        Ok(Outcome::Unchanged) => ImportedLine::Unchanged,
        Ok(Outcome::Outdated) => ImportedLine::Outdated,
        Err(_) => ImportedLine::Refused,
    }
}

/// Imports a file chunk by chunk, and tells of each what became of its lines and how many bytes of the file were read,
/// until it ends or the one who is told says so. Dropping it ends the import after the chunk that is under way.
///
/// All of it is done on one thread apart: while the database writes a chunk the next is not read, so that an import never
/// takes more than one processor.
///
/// # Errors
///
/// A problem that ends the import. What was told before is done.
pub async fn import_file(
    service: &Arc<Service>,
    import: Import,
    format: Format,
    file: impl Read + Send + 'static,
    mut tell: impl FnMut(Vec<LineOutcome>, u64) -> bool + Send + 'static,
) -> Result<(), Problem> {
    let waiting = Arc::new(());
    let (worker, waits) = (Arc::clone(service), Arc::downgrade(&waiting));
    let imported = service.begin_apart("import", move |apart| {
        let mut broken_off = Ok(());
        let take = |chunk: Chunk| {
            if waits.strong_count() == 0 {
                return false;
            }
            let bytes_read = chunk.bytes_read;
            match apart.block_on(import_chunk(&worker, &import, apart, chunk)) {
                Ok(outcomes) => tell(outcomes, bytes_read),
                Err(problem) => {
                    broken_off = Err(problem);
                    false
                }
            }
        };
        let read = read(format, file, worker.claims_prefix(), take).map_err(|error| of_read(&error));
        broken_off.and(read)
    });
    let imported = imported.map_err(|error| no_thread(&error))?.await;
    drop(waiting);
    imported.unwrap_or_else(|_| Err(Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR)))
}

fn no_thread(error: &io::Error) -> Problem {
    tracing::error!(%error, "there is no thread for an import or an export");
    Problem::overloaded()
}

async fn import_chunk(
    service: &Arc<Service>,
    import: &Import,
    apart: &Apart,
    chunk: Chunk,
) -> Result<Vec<LineOutcome>, Problem> {
    let (mut outcomes, mut places, mut items) = (Vec::with_capacity(chunk.lines.len()), Vec::new(), Vec::<Item>::new());
    for line in chunk.lines {
        match line.item {
            Ok(item) => {
                places.push(outcomes.len());
                items.push(item);
                outcomes.push((line.number, Ok(Outcome::Unchanged)));
            }
            Err(problem) => outcomes.push((line.number, Err(problem))),
        }
    }
    let results = service.import(import, apart, items).await?;
    for (place, result) in places.into_iter().zip(results) {
        outcomes[place].1 = result.map_err(Problem::from);
    }
    Ok(outcomes)
}

fn of_read(error: &ReadError) -> Problem {
    match error {
        ReadError::Broken(error) if error.kind() == io::ErrorKind::TimedOut => {
            Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", "The body did not arrive in time.")
        }
        ReadError::Broken(error) if error.kind() == io::ErrorKind::InvalidData => {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_file", "A record is too long; a quote may not be closed.")
        }
        ReadError::Broken(_) => {
            Problem::new(StatusCode::BAD_REQUEST, "body_broken_off", "The body did not arrive whole.")
        }
        ReadError::Columns(detail) => {
            Problem::new(StatusCode::BAD_REQUEST, "invalid_file", format!("The file cannot be read: {detail}."))
        }
    }
}

impl ImportReport {
    /// Counts what became of some lines; false when too many were refused.
    pub fn add(&mut self, outcomes: Vec<LineOutcome>) -> bool {
        for (line, outcome) in outcomes {
            self.lines += 1;
            match outcome {
                Ok(Outcome::Created) => self.created += 1,
                Ok(Outcome::Changed) => self.changed += 1,
                Ok(Outcome::Unchanged) => self.unchanged += 1,
                Ok(Outcome::Outdated) => self.outdated += 1,
                Err(problem) => {
                    self.refused += 1;
                    // A chunk may hold more of them than are told.
                    if self.problems.len() < MAX_PROBLEMS {
                        self.problems.push(LineProblem { line, problem: problem.document() });
                    }
                }
            }
        }
        self.problems.len() < MAX_PROBLEMS
    }
}

/// The subscriptions that pass a filter, in parts of a file, page by page. They are read apart, one page ahead, for as
/// long as somebody takes them.
pub fn export_pages(
    service: &Arc<Service>,
    filter: Filter,
    format: Format,
) -> impl Stream<Item = Result<Bytes, Problem>> + Send + use<> {
    let (sender, pages) = mpsc::channel(1);
    let reader = Arc::clone(service);
    let begun = service.begin_apart("export", move |apart| {
        let (mut encoder, mut after, mut is_last) = (Encoder::new(format), None, false);
        while !is_last {
            let now = reader.now();
            let page = reader.subscriptions_apart(apart, &filter, now, after, PAGE_LINES as u64);
            let part = apart.block_on(page).map_err(Problem::from).map(|page| {
                is_last = page.len() < PAGE_LINES;
                after = page.last().map(|last| After { id: last.id, updated_at: last.updated_at });
                let shown = page.into_iter().map(|subscription| Shown { subscription, now }.into()).collect();
                (Bytes::from(encoder.encode(shown)), is_last)
            });
            is_last |= part.is_err();
            if sender.blocking_send(part).is_err() {
                // Nobody takes it any more.
                break;
            }
        }
    });
    let start = begun.map(|_| pages).map_err(|error| no_thread(&error));
    futures_util::stream::try_unfold(Some(start), async |state| {
        let Some(start) = state else { return Ok(None) };
        let mut pages = start?;
        // What ends without its last page is not whole.
        let next: Option<Result<_, Problem>> = pages.recv().await;
        let next = next.unwrap_or_else(|| Err(Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR)));
        let (bytes, is_last) = next?;
        Ok(Some((bytes, (!is_last).then_some(Ok(pages)))))
    })
}

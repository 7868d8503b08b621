//! Files of subscriptions: NDJSON and CSV, read and written line by line.
//!
//! A line of an import is what [`NewSubscriptionBody`] describes, with the members of an export beside it that say
//! nothing new, which are passed over: what was exported can be imported. It is read on a thread of its own, for
//! a reader of files waits, and what it makes is passed on in chunks: what is not taken yet holds it up, so memory stays
//! bounded whatever the length of the file.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Read},
};

use poem::http::StatusCode;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    body,
    claims::ClaimsObject,
    problem::{Problem, undescribed},
    subscription::{NewSubscriptionBody, SubjectBody, SubscriptionBody},
    wire::{
        ExternalIdText, ScopeToken, SourceText, SubjectIdText, SubscriptionId, Timestamp, nullable, object, present,
    },
};
use crate::{
    domain::{claims::ClaimsPrefix, subject},
    service::{
        bulk::Item,
        give_way,
        subscription::{NewSubscription, Target},
    },
};

/// Lines in a chunk: what a transaction holds for the time that others wait for it. To send the rows of a thousand to the
/// database keeps a processor for more than a millisecond, in which the system takes it away from nobody; with fewer,
/// the ways there and back cost more than the rows.
pub const CHUNK_LINES: usize = 250;
/// Bytes of lines in a chunk, beyond which it is passed on.
const CHUNK_BYTES: usize = 1024 * 1024;
/// The longest line, in bytes: a hundred scopes, a subject and an external id of the greatest length have a quarter.
pub const MAX_LINE_BYTES: usize = 256 * 1024;

/// How subscriptions are written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object a line.
    Ndjson,
    /// Comma-separated values (RFC 4180), with a line of names before them.
    Csv,
}

impl Format {
    /// Both formats.
    pub const ALL: [Self; 2] = [Self::Ndjson, Self::Csv];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }

    /// The format of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == word)
    }

    /// Its media type, without parameters.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }
}

/// A line that was read.
#[derive(Debug)]
pub struct Line {
    /// Its number in the file, counted from 1; of a CSV record, the line that it begins on.
    pub number: i64,
    /// What it says, or what is wrong with it.
    pub item: Result<Item, Problem>,
}

/// A part of a file.
#[derive(Debug, Default)]
pub struct Chunk {
    /// Its lines; none is blank.
    pub lines: Vec<Line>,
    /// How many bytes of the file were read up to its end.
    pub bytes_read: u64,
}

/// Why a file cannot be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes break off.
    #[error("the file breaks off")]
    Broken(#[source] io::Error),
    /// It does not begin with the names of columns that there are, or lacks one that there has to be.
    #[error("{0}")]
    Columns(String),
}

/// The columns of a file of comma-separated values, those first that an import needs.
const COLUMNS: [&str; 19] = [
    "source",
    "externalId",
    "sourceVersion",
    "subjectType",
    "subjectId",
    "scopes",
    "validFrom",
    "validUntil",
    "graceUntil",
    "pausedFrom",
    "pausedUntil",
    "canceledAt",
    "claims",
    "id",
    "status",
    "version",
    "createdAt",
    "updatedAt",
    "deletedAt",
];
/// What stands in comma-separated values for an end that never comes: an empty value may be one that was lost.
pub const NEVER: &str = "never";
/// The columns without which nothing can be imported: an end that is not named would grant a lifetime.
const NEEDED_COLUMNS: [&str; 4] = ["subjectType", "subjectId", "scopes", "validUntil"];

/// A line of JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct JsonLine {
    #[serde(default, deserialize_with = "present")]
    id: Option<SubscriptionId>,
    #[serde(deserialize_with = "object")]
    subject: SubjectBody,
    scopes: Vec<ScopeToken>,
    #[serde(default, deserialize_with = "present")]
    valid_from: Option<Timestamp>,
    #[serde(deserialize_with = "nullable")]
    valid_until: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    grace_until: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    paused_from: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    paused_until: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    canceled_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "present")]
    claims: Option<ClaimsObject>,
    #[serde(default, deserialize_with = "present")]
    source: Option<SourceText>,
    #[serde(default, deserialize_with = "present")]
    external_id: Option<ExternalIdText>,
    #[serde(default, deserialize_with = "present")]
    source_version: Option<i64>,
    /// What an export tells beside, and no import sets.
    #[serde(default, rename = "status")]
    _status: IgnoredAny,
    /// Of a line by id: what was changed since is newer.
    #[serde(default, deserialize_with = "present")]
    version: Option<i64>,
    #[serde(default, rename = "createdAt")]
    _created_at: IgnoredAny,
    #[serde(default, rename = "updatedAt")]
    _updated_at: IgnoredAny,
}

/// A record of comma-separated values: an empty one is not there.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CsvRecord {
    id: Option<SubscriptionId>,
    version: Option<i64>,
    deleted_at: Option<String>,
    subject_type: String,
    subject_id: String,
    scopes: String,
    valid_from: Option<Timestamp>,
    valid_until: Option<Timestamp>,
    grace_until: Option<Timestamp>,
    paused_from: Option<Timestamp>,
    paused_until: Option<Timestamp>,
    canceled_at: Option<Timestamp>,
    /// In JSON.
    claims: Option<String>,
    source: Option<SourceText>,
    external_id: Option<ExternalIdText>,
    source_version: Option<i64>,
}

impl CsvRecord {
    fn line(self) -> Result<JsonLine, Problem> {
        let record = self;
        if record.deleted_at.is_some() {
            return Err(undescribed("#/deletedAt", "a subscription that was deleted is not imported"));
        }
        let kind = subject::SubjectType::parse(&record.subject_type);
        let kind = kind.ok_or_else(|| undescribed("#/subjectType", "expected `user` or `client`"))?;
        let valid_until = match record.valid_until {
            None => return Err(undescribed("#/validUntil", "expected a timestamp, or `never`")),
            Some(Timestamp(text)) if text == NEVER => None,
            end => end,
        };
        let claims = record.claims.map(|claims| body::parse(claims.as_bytes())).transpose();
        Ok(JsonLine {
            id: record.id,
            subject: SubjectBody::new(kind.into(), SubjectIdText(record.subject_id)),
            scopes: record
                .scopes
                .split(' ')
                .filter(|name| !name.is_empty())
                .map(|name| ScopeToken(name.to_owned()))
                .collect(),
            valid_from: record.valid_from,
            valid_until,
            grace_until: record.grace_until,
            paused_from: record.paused_from,
            paused_until: record.paused_until,
            canceled_at: record.canceled_at,
            claims: claims.map_err(|_| undescribed("#/claims", "expected a JSON object"))?,
            source: record.source,
            external_id: record.external_id,
            source_version: record.source_version,
            _status: IgnoredAny,
            version: record.version,
            _created_at: IgnoredAny,
            _updated_at: IgnoredAny,
        })
    }
}

impl JsonLine {
    fn item(self, prefix: Option<&ClaimsPrefix>) -> Result<Item, Problem> {
        let (id, version) = (self.id, self.version);
        let body = NewSubscriptionBody {
            subject: self.subject,
            scopes: self.scopes,
            valid_from: self.valid_from,
            valid_until: self.valid_until,
            grace_until: self.grace_until,
            paused_from: self.paused_from,
            paused_until: self.paused_until,
            canceled_at: self.canceled_at,
            claims: self.claims,
            source: self.source,
            external_id: self.external_id,
            source_version: self.source_version,
        };
        let NewSubscription { state, external } = body.parse(prefix)?;
        let target = match (external, id) {
            (Some(external), _) => Target::External(external),
            (None, Some(id)) => {
                let id = id.parse().ok_or_else(|| undescribed("#/id", "expected the id of a subscription"))?;
                Target::Id { id, version }
            }
            (None, None) => {
                let detail = "it has to be there, or `id`: a file that is imported again must find its own again";
                return Err(undescribed("#/externalId", detail));
            }
        };
        Ok(Item { target, state })
    }
}

/// What gathers lines and passes them on.
struct Gatherer<S> {
    chunk: Chunk,
    bytes: usize,
    sink: S,
}

impl<S: FnMut(Chunk) -> bool> Gatherer<S> {
    /// Adds a line; false when nobody takes lines any more.
    fn add(&mut self, line: Line, bytes: usize, bytes_read: u64) -> bool {
        give_way();
        self.bytes += bytes;
        self.chunk.lines.push(line);
        self.chunk.bytes_read = bytes_read;
        if self.chunk.lines.len() < CHUNK_LINES && self.bytes < CHUNK_BYTES {
            return true;
        }
        self.pass_on()
    }

    fn pass_on(&mut self) -> bool {
        self.bytes = 0;
        (self.sink)(std::mem::take(&mut self.chunk))
    }
}

/// Reads a file, and passes on its lines in chunks, until the sink says that it takes no more. It waits, so it is for a
/// thread where that is no harm.
///
/// # Errors
///
/// [`ReadError`] when the file cannot be read to its end. Whole chunks that were read before were passed on.
pub fn read(
    format: Format,
    file: impl Read,
    prefix: Option<&ClaimsPrefix>,
    sink: impl FnMut(Chunk) -> bool,
) -> Result<(), ReadError> {
    let mut gatherer = Gatherer { chunk: Chunk::default(), bytes: 0, sink };
    match format {
        Format::Ndjson => read_ndjson(file, prefix, &mut gatherer)?,
        Format::Csv => read_csv(file, prefix, &mut gatherer)?,
    }
    if !gatherer.chunk.lines.is_empty() {
        gatherer.pass_on();
    }
    Ok(())
}

fn read_ndjson<S: FnMut(Chunk) -> bool>(
    file: impl Read,
    prefix: Option<&ClaimsPrefix>,
    gatherer: &mut Gatherer<S>,
) -> Result<(), ReadError> {
    let mut file = BufReader::with_capacity(64 * 1024, file);
    let (mut line, mut number, mut bytes_read) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let mut length = file.by_ref().take(limit).read_until(b'\n', &mut line).map_err(ReadError::Broken)?;
        if length == 0 {
            return Ok(());
        }
        number += 1;
        let is_too_long = length > MAX_LINE_BYTES && line.last() != Some(&b'\n');
        if is_too_long {
            length += skip_line(&mut file).map_err(ReadError::Broken)?;
        }
        bytes_read += length as u64;
        // A byte order mark at the start says what is known, as in the other format.
        let text = if number == 1 { line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&line) } else { &line };
        let text = text.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let item = if is_too_long {
            Err(too_long())
        } else {
            body::parse::<JsonLine>(text).and_then(|line| line.item(prefix))
        };
        if !gatherer.add(Line { number, item }, length.min(MAX_LINE_BYTES), bytes_read) {
            return Ok(());
        }
    }
}

/// Reads on to the end of the line, and tells how many bytes it had left.
fn skip_line(file: &mut impl BufRead) -> io::Result<usize> {
    let mut skipped = 0;
    loop {
        let buffer = file.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let (length, is_over) = (end.map_or(buffer.len(), |end| end + 1), end.is_some() || buffer.is_empty());
        file.consume(length);
        skipped += length;
        if is_over {
            return Ok(skipped);
        }
    }
}

fn read_csv<S: FnMut(Chunk) -> bool>(
    file: impl Read,
    prefix: Option<&ClaimsPrefix>,
    gatherer: &mut Gatherer<S>,
) -> Result<(), ReadError> {
    // A quote that is never closed would take the rest of the file for one field.
    let mut reader = csv::ReaderBuilder::new().flexible(false).from_reader(Bounded::new(file));
    let headers = reader.headers().map_err(broken)?.clone();
    if headers.is_empty() {
        return Ok(());
    }
    let mut seen = std::collections::HashSet::new();
    for name in &headers {
        if !COLUMNS.contains(&name) || !seen.insert(name) {
            let name = super::problem::shortened(name);
            return Err(ReadError::Columns(format!(
                "the first line names the column `{name}`, which there is not, or twice"
            )));
        }
    }
    for name in NEEDED_COLUMNS {
        if !seen.contains(name) {
            return Err(ReadError::Columns(format!("the first line does not name the column `{name}`")));
        }
    }
    let mut record = csv::StringRecord::new();
    loop {
        reader.get_mut().since_record = 0;
        let start = reader.position().byte();
        let read = reader.read_record(&mut record);
        let bytes_read = reader.position().byte();
        let item = match read {
            Ok(false) => return Ok(()),
            Ok(true) => record
                .deserialize::<CsvRecord>(Some(&headers))
                .map_err(|error| of_csv(&error, &headers))
                .and_then(|record| record.line()?.item(prefix)),
            Err(error) => match error.kind() {
                csv::ErrorKind::Io(_) => return Err(broken(error)),
                _ => Err(of_csv(&error, &headers)),
            },
        };
        let number = i64::try_from(reader.get_mut().line_at(start)).unwrap_or(i64::MAX);
        if !gatherer.add(Line { number, item }, record.as_slice().len(), bytes_read) {
            return Ok(());
        }
    }
}

fn broken(error: csv::Error) -> ReadError {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => ReadError::Broken(error),
        csv::ErrorKind::Utf8 { .. } => ReadError::Columns("the first line is not UTF-8".to_owned()),
        _ => ReadError::Columns("the first line cannot be read".to_owned()),
    }
}

/// What is wrong with a record. It repeats nothing of it.
fn of_csv(error: &csv::Error, headers: &csv::StringRecord) -> Problem {
    match error.kind() {
        csv::ErrorKind::Utf8 { .. } => undescribed("#", "it is not UTF-8"),
        csv::ErrorKind::UnequalLengths { .. } => {
            undescribed("#", "it has another number of values than the first line")
        }
        csv::ErrorKind::Deserialize { err, .. } => {
            let name = err.field().and_then(|index| headers.get(usize::try_from(index).ok()?));
            let pointer = name.map_or_else(|| "#".to_owned(), |name| format!("#/{name}"));
            undescribed(&pointer, "not what the contract describes")
        }
        _ => undescribed("#", "it cannot be read"),
    }
}

/// A file in which no record is endless, and of which it is known where the lines begin.
struct Bounded<R> {
    file: R,
    since_record: usize,
    lines: Lines,
}

impl<R> Bounded<R> {
    fn new(file: R) -> Self {
        Self { file, since_record: 0, lines: Lines { number: 1, is_at_start: true, ..Lines::default() } }
    }

    /// The number of the line that a record begins on of which the reader says that it begins at this byte: there may be
    /// line breaks before it, as the reader takes the second half of one, and blank lines, for a part of what comes next.
    fn line_at(&mut self, byte: u64) -> u64 {
        let starts = &mut self.lines.starts;
        while starts.front().is_some_and(|(start, _)| *start < byte) {
            starts.pop_front();
        }
        starts.front().map_or(self.lines.number, |(_, number)| *number)
    }
}

/// Where the lines of a file begin that are not blank.
#[derive(Debug, Default)]
struct Lines {
    /// The byte that each begins at, and its number: of those that were read and not yet passed.
    starts: VecDeque<(u64, u64)>,
    bytes: u64,
    number: u64,
    is_at_start: bool,
    is_after_return: bool,
}

impl Lines {
    fn pass(&mut self, byte: u8) {
        match byte {
            b'\n' if self.is_after_return => (),
            b'\n' | b'\r' => {
                self.number += 1;
                self.is_at_start = true;
            }
            _ if self.is_at_start => {
                self.starts.push_back((self.bytes, self.number));
                self.is_at_start = false;
            }
            _ => (),
        }
        self.is_after_return = byte == b'\r';
        self.bytes += 1;
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.since_record += length;
        for byte in &buffer[..length] {
            self.lines.pass(*byte);
        }
        // The reader reads ahead, by less than that.
        if self.since_record > 2 * MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record is too long; a quote may not be closed"));
        }
        Ok(length)
    }
}

fn too_long() -> Problem {
    let detail = format!("The line has more than {MAX_LINE_BYTES} bytes.");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "line_too_long", detail)
}

/// What writes subscriptions into a file.
#[derive(Debug)]
pub struct Encoder {
    format: Format,
    is_begun: bool,
}

impl Encoder {
    /// One that has written nothing yet.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { format, is_begun: false }
    }

    /// The lines of these subscriptions, and the names of the columns before the first ones.
    pub fn encode(&mut self, subscriptions: Vec<SubscriptionBody>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(subscriptions.len() * 512);
        match self.format {
            Format::Ndjson => {
                for subscription in subscriptions {
                    give_way();
                    // Strings and numbers always can be written.
                    if serde_json::to_writer(&mut bytes, &subscription).is_ok() {
                        bytes.push(b'\n');
                    }
                }
            }
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(&mut bytes);
                // Memory always can be written to.
                if !self.is_begun {
                    let _ = writer.write_record(COLUMNS);
                }
                for subscription in subscriptions {
                    give_way();
                    let _ = writer.write_record(subscription.columns());
                }
                let _ = writer.flush();
            }
        }
        self.is_begun = true;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each line of a file of comma-separated values, its number, and what it names as wrong.
    fn read_all(file: &str) -> Vec<(i64, Option<String>)> {
        let mut found = Vec::new();
        let take = |chunk: Chunk| {
            found.extend(chunk.lines.into_iter().map(|Line { number, item }| {
                let error = item.err().map(|problem| serde_json::to_value(problem.document()).expect("JSON"));
                (number, error.map(|error| error["errors"][0]["pointer"].as_str().unwrap_or_default().to_owned()))
            }));
            true
        };
        read(Format::Csv, file.as_bytes(), None, take).expect("a file");
        found
    }

    #[test]
    fn a_record_has_the_number_of_the_line_that_it_begins_on() {
        let lines = [
            "externalId,source,subjectType,subjectId,scopes,validUntil",
            "1,billing,user,jane,email,never",
            "",
            "\"2",
            "",
            "2\",billing,user,jane,email,never",
            "3,billing,user",
            "4,billing,user,jane,email,never",
        ];
        for line_break in ["\n", "\r\n", "\r"] {
            for end in ["", line_break] {
                let file = lines.join(line_break) + end;
                let expected = [(2, None), (4, None), (7, Some("#".to_owned())), (8, None)];
                assert_eq!(read_all(&file), expected, "{line_break:?}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_record_is_told_by_its_column() {
        let names = "externalId,source,sourceVersion,subjectType,subjectId,scopes,validUntil";
        for (record, pointer) in [
            ("1,billing,0,somebody,jane,email,", "#/subjectType"),
            ("1,billing,0,,jane,email,", "#/subjectType"),
            ("1,billing,one,user,jane,email,never", "#/sourceVersion"),
            ("1,billing,0,user,jane,email,tomorrow", "#/validUntil"),
            // An end that is not said may be one that was lost.
            ("1,billing,0,user,jane,email,", "#/validUntil"),
        ] {
            assert_eq!(read_all(&format!("{names}\n{record}\n")), [(2, Some(pointer.to_owned()))], "{record}");
        }
    }
}

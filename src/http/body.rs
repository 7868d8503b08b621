//! Bodies: JSON in and out, strictly.

use std::marker::PhantomData;

use bytes::Bytes;
use http_body_util::Full;
use poem::{
    IntoResponse, Request, RequestBody, Response,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, MetaResponse, MetaResponses, Registry},
    types::Type,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::error::Category;

use super::{
    problem::{FieldError, Problem, shortened},
    wire::FromObject,
};

/// The media type of JSON.
const JSON: &str = "application/json";

/// What bodies of a kind of operation look like.
pub trait Kind: Send + Sync + 'static {
    /// The media types that are taken, without parameters.
    const MEDIA_TYPES: &'static [&'static str];
    /// Whether there must be one; an absent one is read as an empty object.
    const REQUIRED: bool;
}

/// A body that must be there.
#[derive(Debug)]
pub struct Required;

impl Kind for Required {
    const MEDIA_TYPES: &'static [&'static str] = &[JSON];
    const REQUIRED: bool = true;
}

/// A body that may be absent.
#[derive(Debug)]
pub struct Optional;

impl Kind for Optional {
    const MEDIA_TYPES: &'static [&'static str] = &[JSON];
    const REQUIRED: bool = false;
}

/// A JSON merge patch (RFC 7396).
#[derive(Debug)]
pub struct MergePatch;

impl Kind for MergePatch {
    const MEDIA_TYPES: &'static [&'static str] = &["application/merge-patch+json", JSON];
    const REQUIRED: bool = true;
}

/// The body of a request, read by serde: a number where a string belongs, a member that is repeated or unknown where
/// the type says so, or data after the end is an error. The router has read its bytes, within limits, before.
#[derive(Debug)]
pub struct Body<T, K = Required>(pub T, PhantomData<K>);

impl<'a, T, K> ApiExtractor<'a> for Body<T, K>
where
    T: Type + DeserializeOwned,
    K: Kind,
{
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(request_meta::<T, K>())
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = received(body).await?;
        if bytes.is_empty() && !K::REQUIRED {
            return Ok(parse(b"{}").map(|value| Self(value, PhantomData))?);
        }
        check_encoding(request.headers(), K::MEDIA_TYPES)?;
        Ok(parse(&bytes).map(|value| Self(value, PhantomData))?)
    }
}

/// A body that must be there and is read, as [`Body`] is, where it is used: what is read borrows from it.
#[derive(Debug)]
pub struct Unread<T>(Bytes, PhantomData<T>);

impl<T> Unread<T> {
    /// A body that has come, with the headers that tell of it.
    ///
    /// # Errors
    ///
    /// 415 for another media type.
    pub fn new(headers: &HeaderMap, bytes: Bytes) -> Result<Self, Problem> {
        check_encoding(headers, Required::MEDIA_TYPES)?;
        Ok(Self(bytes, PhantomData))
    }

    /// Reads it, as the `T` of a lifetime that the body has.
    ///
    /// # Errors
    ///
    /// 400, naming the member that is wrong.
    pub fn read<'a, B: Deserialize<'a>>(&'a self) -> Result<B, Problem> {
        parse(&self.0)
    }
}

impl<'a, T: Type> ApiExtractor<'a> for Unread<T> {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        T::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        Some(request_meta::<T, Required>())
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let bytes = received(body).await?;
        Ok(Self::new(request.headers(), bytes)?)
    }
}

fn request_meta<T: Type, K: Kind>() -> MetaRequest {
    let content = |content_type: &&'static str| MetaMediaType { content_type, schema: T::schema_ref() };
    MetaRequest { description: None, content: K::MEDIA_TYPES.iter().map(content).collect(), required: K::REQUIRED }
}

async fn received(body: &mut RequestBody) -> poem::Result<Bytes> {
    Ok(body.take()?.into_bytes().await.map_err(|_| Problem::of_status(StatusCode::BAD_REQUEST))?)
}

/// Refuses a body of another media type, or one that is compressed.
fn check_encoding(headers: &HeaderMap, media_types: &[&str]) -> Result<(), Problem> {
    let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let unsupported =
        |detail: String| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail);
    if header(header::CONTENT_ENCODING).is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(unsupported("A compressed body is not supported.".to_owned()));
    }
    let content_type = header(header::CONTENT_TYPE).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if media_types.iter().any(|media_type| essence.eq_ignore_ascii_case(media_type)) {
        Ok(())
    } else {
        Err(unsupported(format!("The body must be of media type {}.", media_types.join(" or "))))
    }
}

/// Reads a value from the whole of a text.
///
/// # Errors
///
/// 400, naming the member that is wrong.
pub(super) fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    // Strings that serde skips are not checked, so the whole is: what is not UTF-8 is not JSON (RFC 8259 section 8.1).
    let text = std::str::from_utf8(bytes).map_err(|_| not_json("it is not UTF-8"))?;
    match serde_json::from_str(text) {
        Ok(FromObject(value)) => Ok(value),
        // Parsed again, to find the place: only what is refused pays for it.
        Err(_) => Err(explain::<T>(text)),
    }
}

fn explain<'a, T: Deserialize<'a>>(text: &'a str) -> Problem {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let error = match serde_path_to_error::deserialize::<_, FromObject<T>>(&mut deserializer) {
        Err(error) if error.inner().classify() == Category::Data => {
            let path = pointer(error.path());
            return Problem::invalid_request(vec![field_error(path, &error.inner().to_string())]);
        }
        Err(error) => error.into_inner(),
        Ok(_) => match deserializer.end() {
            Err(error) => error,
            Ok(()) => return not_json("it cannot be read"),
        },
    };
    not_json(&format!("it breaks off or goes wrong at line {}, column {}", error.line(), error.column()))
}

fn not_json(reason: &str) -> Problem {
    let detail = format!("The body is not JSON: {reason}.");
    Problem::new(StatusCode::BAD_REQUEST, "invalid_json", detail)
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = "#".to_owned();
    for segment in path {
        let segment = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => shortened(key).replace('~', "~0").replace('/', "~1"),
            Segment::Enum { .. } | Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&segment);
    }
    pointer
}

/// The error at a pointer, from serde's message. What serde repeats of the request is left out: of its messages only
/// the part after `expected` and names of members are ours.
fn field_error(pointer: String, message: &str) -> FieldError {
    let quoted = || message.split('`').nth(1).unwrap_or_default();
    if message.starts_with("missing field") {
        return FieldError::new(format!("{pointer}/{}", quoted()), "the member is missing");
    }
    if message.starts_with("unknown field") {
        // The path ends in the member already when serde has read its name.
        return FieldError::new(pointer, "there is no such member");
    }
    if message.starts_with("duplicate field") {
        return FieldError::new(format!("{pointer}/{}", quoted()), "the member is repeated");
    }
    let end = message.rfind(" at line ").unwrap_or(message.len());
    match message[..end].rfind(", expected ") {
        Some(start) => FieldError::new(pointer, &message[start + 2..end]),
        None => FieldError::new(pointer, "not what the contract describes"),
    }
}

/// A 200 with a JSON body, written by serde.
#[derive(Debug)]
pub struct Ok200<T>(pub T);

impl<T: Type + Serialize> ApiResponse for Ok200<T> {
    fn meta() -> MetaResponses {
        MetaResponses { responses: vec![meta::<T>(200, "The answer.")] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Ok200<T> {
    fn into_response(self) -> Response {
        json(&self.0)
    }
}

/// The documentation of an answer with a JSON body.
pub fn meta<T: Type>(status: u16, description: &'static str) -> MetaResponse {
    MetaResponse {
        description,
        status: Some(status),
        status_range: None,
        content: vec![MetaMediaType { content_type: JSON, schema: T::schema_ref() }],
        headers: Vec::new(),
    }
}

/// A response with a JSON body, as a whole and past the library.
///
/// # Errors
///
/// 500 when the value cannot be written.
pub fn whole<T: Serialize>(value: &T) -> Result<hyper::Response<Full<Bytes>>, Problem> {
    let body = serde_json::to_vec(value).map_err(|_| Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR))?;
    let mut response = hyper::Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    Ok(response)
}

/// A response with a JSON body.
pub fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::builder().content_type(JSON).body(body),
        Err(_) => Problem::of_status(StatusCode::INTERNAL_SERVER_ERROR).into_response(),
    }
}

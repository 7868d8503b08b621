//! Resources with a version: `ETag`, `If-Match`, `Location`.

use poem::{
    IntoResponse, Request, RequestBody, Response, Result,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ApiResponse, ExtractParamOptions,
    registry::{MetaHeader, MetaParamIn, MetaResponse, MetaResponses, MetaSchemaRef, Registry},
    types::Type,
};
use serde::Serialize;

use super::{body, problem::Problem};
use crate::service::Expected;

/// A 200 with a resource and its `ETag`.
#[derive(Debug)]
pub struct Found<T> {
    /// The resource.
    pub body: T,
    /// Its version.
    pub version: i64,
}

impl<T: Type + Serialize> ApiResponse for Found<T> {
    fn meta() -> MetaResponses {
        let mut meta = body::meta::<T>(200, "The resource.");
        meta.headers.push(header_meta("ETag", "The version of the resource, for `If-Match`."));
        MetaResponses { responses: vec![meta] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Found<T> {
    fn into_response(self) -> Response {
        let mut response = body::json(&self.body);
        response.headers_mut().insert(header::ETAG, etag(self.version));
        response
    }
}

/// A 201 with a new resource, its `ETag` and its place.
#[derive(Debug)]
pub struct Created<T> {
    /// The resource.
    pub body: T,
    /// Its version.
    pub version: i64,
    /// Its path.
    pub location: String,
}

impl<T: Type + Serialize> ApiResponse for Created<T> {
    fn meta() -> MetaResponses {
        let mut meta = body::meta::<T>(201, "The new resource.");
        meta.headers.push(header_meta("ETag", "The version of the resource, for `If-Match`."));
        meta.headers.push(header_meta("Location", "The path of the resource."));
        MetaResponses { responses: vec![meta] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Created<T> {
    fn into_response(self) -> Response {
        let mut response = body::json(&self.body);
        response.set_status(StatusCode::CREATED);
        response.headers_mut().insert(header::ETAG, etag(self.version));
        if let Ok(location) = HeaderValue::from_str(&self.location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// A 200 or a 201, by whether the resource was there before.
#[derive(Debug)]
pub enum Put<T> {
    /// It is new.
    Created(Created<T>),
    /// It was there.
    Found(Found<T>),
}

impl<T: Type + Serialize> ApiResponse for Put<T> {
    fn meta() -> MetaResponses {
        let (mut found, created) = (Found::<T>::meta(), Created::<T>::meta());
        found.responses.extend(created.responses);
        found
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Put<T> {
    fn into_response(self) -> Response {
        match self {
            Self::Created(created) => created.into_response(),
            Self::Found(found) => found.into_response(),
        }
    }
}

/// A 201 with a new resource that holds a secret, and its place. Nobody may keep the answer.
#[derive(Debug)]
pub struct Issued<T> {
    /// The resource.
    pub body: T,
    /// Its path.
    pub location: String,
}

impl<T: Type + Serialize> ApiResponse for Issued<T> {
    fn meta() -> MetaResponses {
        let mut meta = body::meta::<T>(201, "The new resource, with its secret.");
        meta.headers.push(header_meta("Cache-Control", "`no-store`: the answer holds a secret."));
        meta.headers.push(header_meta("Location", "The path of the resource."));
        MetaResponses { responses: vec![meta] }
    }

    fn register(registry: &mut Registry) {
        T::register(registry);
    }
}

impl<T: Serialize + Send> IntoResponse for Issued<T> {
    fn into_response(self) -> Response {
        let mut response = body::json(&self.body);
        response.set_status(StatusCode::CREATED);
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(location) = HeaderValue::from_str(&self.location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }
}

/// A 204.
#[derive(Debug)]
pub struct Deleted;

impl ApiResponse for Deleted {
    fn meta() -> MetaResponses {
        let meta = MetaResponse {
            description: "It is deleted.",
            status: Some(204),
            status_range: None,
            content: Vec::new(),
            headers: Vec::new(),
        };
        MetaResponses { responses: vec![meta] }
    }

    fn register(_: &mut Registry) {}
}

impl IntoResponse for Deleted {
    fn into_response(self) -> Response {
        StatusCode::NO_CONTENT.into_response()
    }
}

fn header_meta(name: &str, description: &str) -> MetaHeader {
    MetaHeader {
        name: name.to_owned(),
        description: Some(description.to_owned()),
        required: true,
        deprecated: false,
        schema: String::schema_ref(),
    }
}

/// The strong entity tag of a version.
fn etag(version: i64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// The header `If-Match` (RFC 9110 section 13.1.1), which may be absent.
#[derive(Debug)]
pub struct IfMatch(Option<Expected>);

impl IfMatch {
    /// The versions that may be changed.
    ///
    /// # Errors
    ///
    /// 428 when the header is absent and `required`.
    pub fn expected(self, required: bool) -> std::result::Result<Expected, Problem> {
        match self.0 {
            Some(expected) => Ok(expected),
            None if required => Err(Problem::if_match_required()),
            None => Ok(Expected::Any),
        }
    }

    fn of(headers: &HeaderMap) -> Self {
        let lines: Vec<_> = headers.get_all(header::IF_MATCH).into_iter().collect();
        if lines.is_empty() {
            return Self(None);
        }
        let tags: Vec<&str> = lines.iter().flat_map(|line| line.to_str().unwrap_or_default().split(',')).collect();
        if let [tag] = tags[..]
            && tag.trim() == "*"
        {
            return Self(Some(Expected::Any));
        }
        // A weak tag, and one that we never gave, matches no version: the comparison is the strong one.
        Self(Some(Expected::Versions(tags.into_iter().filter_map(version).collect())))
    }
}

/// The version of a tag that we gave.
fn version(tag: &str) -> Option<i64> {
    let digits = tag.trim().strip_prefix('"')?.strip_suffix('"')?;
    let version: i64 = digits.parse().ok()?;
    (version.to_string() == digits).then_some(version)
}

impl<'a> ApiExtractor<'a> for IfMatch {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::Parameter];
    type ParamType = String;
    type ParamRawType = String;

    fn param_in() -> Option<MetaParamIn> {
        Some(MetaParamIn::Header)
    }

    fn param_schema_ref() -> Option<MetaSchemaRef> {
        Some(String::schema_ref())
    }

    async fn from_request(
        request: &'a Request,
        _: &mut RequestBody,
        _: ExtractParamOptions<Self::ParamType>,
    ) -> Result<Self> {
        Ok(Self::of(request.headers()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_strong_tags_that_we_gave_name_a_version() {
        let check = |lines: &[&str], expected: Option<Expected>| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::IF_MATCH, HeaderValue::from_str(line).expect("a value"));
            }
            assert_eq!(IfMatch::of(&headers).0, expected, "{lines:?}");
        };
        let versions = |versions: &[i64]| Some(Expected::Versions(versions.to_vec()));
        check(&[], None);
        check(&["*"], Some(Expected::Any));
        check(&[" * "], Some(Expected::Any));
        check(&["\"3\""], versions(&[3]));
        check(&["\"3\", \"4\""], versions(&[3, 4]));
        check(&["\"3\"", "\"4\""], versions(&[3, 4]));
        for never_given in ["W/\"3\"", "3", "\"03\"", "\"+3\"", "\"x\"", "\"\"", "", "\"", "*, \"x\""] {
            check(&[never_given], versions(&[]));
        }
        check(&["W/\"3\", \"4\""], versions(&[4]));
    }
}

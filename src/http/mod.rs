//! HTTP: wire types, handlers that translate, errors as problem documents, authentication, the server's loop.
//!
//! Architecture invariant: no rule of the domain and no SQL stands here. A handler is wire in, one call, wire out.
//! The [`router`] decides what reaches a handler at all: route, credentials, query and body size, in this order.

use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use poem_openapi::Tags;

use crate::service::Service;
use admission::Admission;

pub mod admission;
pub mod auth;
pub mod batch;
pub mod body;
pub mod bulk;
pub mod catalogue;
pub mod claims;
pub mod client;
pub mod collector;
pub mod connection;
pub mod console;
pub mod contract;
pub mod entitlement;
pub mod explain;
pub mod headers;
pub mod health;
pub mod history;
pub mod hook;
pub mod page;
pub mod problem;
pub mod resource;
pub mod router;
pub mod selfwake;
pub mod server;
pub mod subscription;
pub mod tls;
pub mod token;
pub mod transfer;
pub mod wire;

/// What handlers work with.
#[derive(Debug)]
pub struct App {
    /// The use cases.
    pub service: Arc<Service>,
    /// Whether a change without `If-Match` is refused.
    pub require_if_match: bool,
    /// Whether every listener of the process speaks TLS.
    pub is_tls_everywhere: bool,
    /// The requests that are under way.
    pub admission: Admission,
}

/// The parts of the management API.
#[derive(Tags)]
enum Tag {
    /// The scopes under subscription.
    Catalogue,
    /// Who holds which scopes, and when.
    Subscriptions,
    /// What a subject holds.
    Entitlements,
    /// Who changed what, and when.
    History,
    /// What a hook answers, and why.
    Explanations,
    /// Who may call this API.
    Tokens,
}

/// What a path segment may hold as it is (RFC 3986 section 2.3).
const UNRESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A text as segment of a path.
fn path_segment(text: &str) -> String {
    utf8_percent_encode(text, &UNRESERVED).to_string()
}

//! Headers that keep browsers and caches from doing more with an answer than it is for.
//!
//! They are on every answer, so they are static values: setting one copies some words and allocates nothing.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use poem::http::{HeaderMap, HeaderName, HeaderValue, header};
use sha2::{Digest as _, Sha256};

/// What an answer is taken for is what it says it is.
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
/// An answer is of that instant, and may be about a person.
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// A path may hold what another site need not know.
const NO_REFERRER: HeaderValue = HeaderValue::from_static("no-referrer");
/// An answer is no page: should a browser take it for one, it does nothing.
const NOTHING: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
/// For browsers that do not know `frame-ancestors`.
const DENY: HeaderValue = HeaderValue::from_static("DENY");
/// For a year a browser does not try without TLS.
const TLS_ONLY: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// What a page of the console may do: use our one style sheet and our one script, ask this service, and send forms to
/// it. What somebody manages to write into a page loads nothing and runs nothing.
pub const CONSOLE: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; \
     form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
);
/// A browser says where a form comes from to whom it belongs to alone. With `no-referrer` it would tell us nothing of
/// a form's origin either, which is what a foreign form is told by.
pub const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");

/// How long what changes with the version only may be kept.
pub const SHORTLY: HeaderValue = HeaderValue::from_static("max-age=300");

/// Who reads an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// Access, which asks the hooks: it shows nothing and follows nothing, so what is for browsers alone is left out. A
    /// browser gets there only by a form, which cannot send JSON, nor credentials that nobody gave it.
    Machine,
    /// Anybody, perhaps with a browser.
    Anybody,
}

/// Adds to an answer what it does not say itself.
pub fn protect(headers: &mut HeaderMap, reader: Reader, is_tls: bool) {
    let mut set = |name: HeaderName, value: HeaderValue| {
        headers.entry(name).or_insert(value);
    };
    set(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    set(header::CACHE_CONTROL, NO_STORE);
    if is_tls {
        set(header::STRICT_TRANSPORT_SECURITY, TLS_ONLY);
    }
    if reader == Reader::Anybody {
        set(header::REFERRER_POLICY, NO_REFERRER);
        set(header::CONTENT_SECURITY_POLICY, NOTHING);
        set(header::X_FRAME_OPTIONS, DENY);
    }
}

/// The policy under which a page that consists of nothing but itself works: its own scripts and styles, images within
/// them, and requests to where it came from. A script that somebody manages to add to it does not run.
pub fn page_policy(page: &str) -> HeaderValue {
    let (mut scripts, mut styles) = (String::new(), String::new());
    let mut rest = page;
    while let Some((is_script, content, after)) = first_element(rest) {
        let hash = STANDARD.encode(Sha256::digest(content));
        let hashes = if is_script { &mut scripts } else { &mut styles };
        hashes.extend([" 'sha256-", &hash, "'"]);
        rest = after;
    }
    let policy = format!(
        "default-src 'none'; script-src{scripts}; style-src{styles}; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::try_from(policy).unwrap_or(NOTHING)
}

/// The first script or style of a page: whether it is a script, what stands in it, and what comes after it. What looks
/// like a tag within one is none.
fn first_element(page: &str) -> Option<(bool, &str, &str)> {
    let (script, style) = (page.find("<script"), page.find("<style"));
    let at = script.into_iter().chain(style).min()?;
    let is_script = script == Some(at);
    let (_, content) = page[at..].split_once('>')?;
    let (content, after) = content.split_once(if is_script { "</script>" } else { "</style>" })?;
    Some((is_script, content, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_says_itself_stays() {
        let mut headers = HeaderMap::from_iter([(header::CACHE_CONTROL, SHORTLY)]);
        protect(&mut headers, Reader::Anybody, true);
        assert_eq!(headers.get_all(header::CACHE_CONTROL).iter().collect::<Vec<_>>(), ["max-age=300"]);
        assert_eq!(headers.len(), 6);
    }

    #[test]
    fn an_answer_to_a_machine_has_no_more_headers_than_a_map_holds_without_growing() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, NOSNIFF);
        headers.insert("x-request-id", NOSNIFF);
        let capacity = headers.capacity();
        protect(&mut headers, Reader::Machine, true);
        assert_eq!((headers.len(), headers.capacity()), (5, capacity));
    }

    #[test]
    fn a_policy_lists_each_script_and_style_of_a_page() {
        let page =
            "<style a=\"b\">s<script></style><script>a<style></script><p>x</p><script\n>b</style></script><script>open";
        let policy = page_policy(page);
        let hash = |content: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content)));
        let expected =
            format!("script-src {} {}; style-src {};", hash("a<style>"), hash("b</style>"), hash("s<script>"));
        assert!(policy.to_str().expect("text").contains(&expected), "{policy:?}");
    }
}

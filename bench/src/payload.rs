//! What is asked, and what is to be answered.

use std::sync::Arc;

use serde::Deserialize;

/// The path of the hook.
pub const HOOK: &str = "/v1/customize-access-token";
/// The credentials of the hooks.
pub const BASIC: &str = "Basic aG9vazpob29r";
/// The scope that the users of [`user`] hold.
pub const HELD: &str = "reports";
/// The scope that they do not hold any more.
pub const ENDED: &str = "archive";

/// A request as bytes, and how it must be answered.
#[derive(Debug, Clone)]
pub struct Question {
    /// What is sent.
    pub request: Arc<[u8]>,
    /// The status of the only right answer.
    pub status: u16,
    /// Its body; none when it differs from one answer to the next.
    pub answer: Option<Arc<[u8]>>,
}

impl Question {
    /// Fails unless this is how it must be answered.
    pub fn check(&self, status: u16, body: &[u8]) -> anyhow::Result<()> {
        let is_right = status == self.status && self.answer.as_ref().is_none_or(|answer| **answer == *body);
        let right = || String::from_utf8_lossy(self.answer.as_deref().unwrap_or_default());
        anyhow::ensure!(is_right, "{status} {} instead of {} {}", String::from_utf8_lossy(body), self.status, right());
        Ok(())
    }
}

/// The id of user 0: as long as in the vendor's example, and a number, so that every tool can count on from it.
pub const FIRST_USER: u64 = 2_270_011_110_100_000_000;

/// The id of a user, by number.
pub fn user(number: u64) -> String {
    (FIRST_USER + number).to_string()
}

/// Users below a bound, each once, in an order without any locality; then all of them again.
pub fn scattered(below: u64) -> impl Iterator<Item = u64> {
    // A prime that is no factor of the bounds in use, so that all numbers come before one comes again.
    (0..below).cycle().map(move |number| number.wrapping_mul(7_778_777) % below)
}

/// What Access sends, of the size and shape of the vendor's example: a user, a client, five scopes, of which two are
/// under subscription, and what the hook does not need.
pub fn body(user: &str) -> String {
    format!(
        r#"{{"user":{{"id":"{user}"}},"client":{{"id":"client"}},"scopes":["openid","profile","email","{HELD}","{ENDED}"],"userClaims":{{"name":"John"}},"executionContext":{{"ipAddress":"203.0.113.7","triggeredBy":["/oauth/token"]}},"contextCustomParams":{{"on_behalf_of":["user"]}}}}"#
    )
}

/// The answer to it: the scope that has ended is removed.
pub fn answer() -> Arc<[u8]> {
    format!(r#"{{"removeScopes":["{ENDED}"],"additionalClaims":{{}}}}"#).into_bytes().into()
}

/// A request to the hook with these credentials, if any.
pub fn request(body: &str, header: Option<(&str, &str)>) -> Arc<[u8]> {
    let header = header.map_or_else(String::new, |(name, value)| format!("{name}: {value}\r\n"));
    let length = body.len();
    format!(
        "POST {HOOK} HTTP/1.1\r\nHost: bench\r\n{header}Content-Type: application/json\r\n\
        Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
    .into()
}

/// Questions about users, with credentials.
pub fn questions(users: impl IntoIterator<Item = u64>) -> Arc<[Question]> {
    questions_with(users, Some(("Authorization", BASIC)))
}

/// The same with another header, or none.
pub fn questions_with(users: impl IntoIterator<Item = u64>, header: Option<(&str, &str)>) -> Arc<[Question]> {
    let answer = answer();
    let question = |number| {
        let request = request(&body(&user(number)), header);
        Question { request, status: 200, answer: Some(Arc::clone(&answer)) }
    };
    users.into_iter().map(question).collect()
}

/// The same questions to a server that gives back what it got.
pub fn echoes(questions: &[Question]) -> Arc<[Question]> {
    let echo = |question: &Question| {
        let body = question.request.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
        Question { answer: Some(question.request[body..].into()), ..question.clone() }
    };
    questions.iter().map(echo).collect()
}

/// The same questions to a server that writes the members of its answer in the order of the alphabet.
pub fn sorted(questions: &[Question]) -> Arc<[Question]> {
    let answer: Arc<[u8]> = format!(r#"{{"additionalClaims":{{}},"removeScopes":["{ENDED}"]}}"#).into_bytes().into();
    let sorted = |question: &Question| Question { answer: Some(Arc::clone(&answer)), ..question.clone() };
    questions.iter().map(sorted).collect()
}

/// The members of a request that matter to a hook, as cheaply as serde can read them.
#[derive(Debug, Deserialize)]
pub struct Asked<'a> {
    /// The user.
    #[serde(borrow)]
    pub user: Option<AskedParty<'a>>,
    /// The client.
    #[serde(borrow)]
    pub client: AskedParty<'a>,
    /// The scopes.
    #[serde(borrow)]
    pub scopes: Vec<&'a str>,
}

/// A user or a client.
#[derive(Debug, Deserialize)]
pub struct AskedParty<'a> {
    /// The id.
    pub id: &'a str,
}

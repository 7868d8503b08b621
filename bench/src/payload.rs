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

/// A request as bytes, and the body that the answer must have.
#[derive(Debug, Clone)]
pub struct Question {
    /// What is sent.
    pub request: Arc<[u8]>,
    /// The body of the only right answer.
    pub answer: Arc<[u8]>,
}

/// A user, by number: as long as in the vendor's example.
pub fn user(number: usize) -> String {
    format!("myUserId{number:011}")
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

/// Questions about users 0, 1, ... below a number, with credentials.
pub fn questions(below: usize) -> Arc<[Question]> {
    let question = |number| {
        let request = request(&body(&user(number)), Some(("Authorization", BASIC)));
        Question { request, answer: answer() }
    };
    (0..below).map(question).collect()
}

/// The same questions to a server that gives back what it got.
pub fn echoes(questions: &[Question]) -> Arc<[Question]> {
    let echo = |question: &Question| {
        let body = question.request.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
        Question { request: Arc::clone(&question.request), answer: question.request[body..].into() }
    };
    questions.iter().map(echo).collect()
}

/// The same questions to a server that writes the members of its answer in the order of the alphabet.
pub fn sorted(questions: &[Question]) -> Arc<[Question]> {
    let answer: Arc<[u8]> = format!(r#"{{"additionalClaims":{{}},"removeScopes":["{ENDED}"]}}"#).into_bytes().into();
    let sorted = |question: &Question| Question { request: Arc::clone(&question.request), answer: Arc::clone(&answer) };
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

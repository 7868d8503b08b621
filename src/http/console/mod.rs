//! The console: pages for support staff, who would rather look than read JSON.
//!
//! Architecture invariant: a page decides nothing. What it shows and what it does comes from the use cases that the
//! management API calls, what its forms say is read by the API's own types, and who may do what stands in the API's
//! authorization table. Everything works without a script; the one there is makes it handier.
//!
//! A browser is believed because it shows a sealed cookie ([`session`]) with a credential of the API in it. A form is
//! done only when it comes from a page of ours: it repeats a token of its session, and the browser says where it is from.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use maud::{Markup, html};
use poem::{
    IntoResponse as _, Response,
    http::{HeaderValue, Method, StatusCode, Uri, header},
};

use super::{
    App,
    auth::{Access, Caller, Gate, Shown, access},
    headers,
    problem::Problem,
    router::{BODY_TIMEOUT, BodyLimit, method_not_allowed},
};
use crate::{domain::token::Role, service::Origin};
use bulk::Imports;
use form::{Fields, Link};
use openid::{OpenId, UnderWay};
use session::{Purpose, SealError, Sealer, Session};

pub mod bulk;
pub mod catalogue;
pub mod change;
pub mod form;
pub mod health;
pub mod markup;
pub mod openid;
pub mod session;
pub mod subject;
pub mod timeline;

/// A form: two ids, each a kibibyte that may be written in three times as many letters, and much room.
const FORM: BodyLimit = BodyLimit { bytes: 64 * 1024, time: BODY_TIMEOUT };
/// The form of a sign-in, which anybody may send: a token that a cookie has room for, and the page to show then.
const SIGN_IN_FORM: BodyLimit = BodyLimit { bytes: 16 * 1024, time: Duration::from_secs(5) };

/// What tells that a page has only to be asked for again ([`Console::again`]).
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// What answers at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    Style,
    Script,
    SignIn,
    SignInForm,
    SignOut,
    OpenId,
    OpenIdCallback,
    Search,
    Subject,
    Change,
    ChangeForm,
    Catalogue,
    Enforced,
    EnforcedForm,
    Service,
    Import,
    ImportForm,
}

/// A path of the console.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: &'static str,
    /// Its name in the log and in the metrics.
    pub id: &'static str,
    /// The operation of the management API whose role a visitor must have to get there; none for those who are not
    /// signed in. What a form does may need more.
    pub operation: Option<&'static str>,
    page: Page,
}

/// Whom a path is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visitors {
    /// All browsers: a file, the same for everybody.
    Browsers,
    /// Those who are about to sign in.
    Strangers,
    /// Those who are signed in.
    SignedIn,
}

impl Route {
    /// Whom it is for.
    pub fn visitors(&self) -> Visitors {
        match (self.page, self.operation) {
            (Page::Style | Page::Script, _) => Visitors::Browsers,
            (_, None) => Visitors::Strangers,
            (_, Some(_)) => Visitors::SignedIn,
        }
    }
}

const fn at(
    method: Method,
    path: &'static str,
    id: &'static str,
    operation: Option<&'static str>,
    page: Page,
) -> Route {
    Route { method, path, id, operation, page }
}

/// All paths of the console.
pub static ROUTES: [Route; 17] = {
    const LOOK: Option<&str> = Some("list-subscriptions");
    [
        at(Method::GET, "/console/console.css", "console-style", None, Page::Style),
        at(Method::GET, "/console/console.js", "console-script", None, Page::Script),
        at(Method::GET, "/console/sign-in", "console-sign-in", None, Page::SignIn),
        at(Method::POST, "/console/sign-in", "console-sign-in", None, Page::SignInForm),
        at(Method::GET, "/console/openid", "console-openid", None, Page::OpenId),
        at(Method::GET, openid::CALLBACK, "console-openid-callback", None, Page::OpenIdCallback),
        at(Method::POST, "/console/sign-out", "console-sign-out", LOOK, Page::SignOut),
        at(Method::GET, "/console", "console-search", LOOK, Page::Search),
        at(Method::GET, "/console/subject", "console-subject", LOOK, Page::Subject),
        at(Method::GET, "/console/change", "console-preview", LOOK, Page::Change),
        at(Method::POST, "/console/change", "console-change", LOOK, Page::ChangeForm),
        at(Method::GET, "/console/catalogue", "console-catalogue", Some("list-scopes"), Page::Catalogue),
        at(Method::GET, "/console/enforced", "console-enforced", Some("list-scopes"), Page::Enforced),
        at(Method::POST, "/console/enforced", "console-enforce", Some("list-scopes"), Page::EnforcedForm),
        at(Method::GET, "/console/service", "console-service", LOOK, Page::Service),
        at(Method::GET, "/console/import", "console-import", LOOK, Page::Import),
        at(Method::POST, "/console/import", "console-upload", LOOK, Page::ImportForm),
    ]
};

/// Whether a path is one of the console, be there something or not.
pub fn is_below(path: &str) -> bool {
    path.strip_prefix("/console").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What answers a request.
///
/// # Errors
///
/// 404 and 405.
pub fn find(method: &Method, path: &str) -> Result<&'static Route, Problem> {
    let wanted = if method == Method::HEAD { &Method::GET } else { method };
    let mut there = ROUTES.iter().filter(|route| route.path == path).peekable();
    if there.peek().is_none() {
        return Err(Problem::not_found());
    }
    let found = ROUTES.iter().find(|route| route.path == path && route.method == *wanted);
    found.ok_or_else(|| method_not_allowed(there.map(|route| &route.method)))
}

/// A request for a page.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// What handlers work with.
    pub app: &'a Arc<App>,
    /// What decides who is let in.
    pub gate: &'a Gate,
    /// The target.
    pub uri: &'a Uri,
    /// What the request shows of its caller.
    pub shown: Shown<'a>,
    /// Whether it came to us, or to a proxy of ours, over TLS.
    pub is_secure: bool,
}

impl Asked<'_> {
    fn query(&self) -> Result<Fields, Problem> {
        Fields::parse(self.uri.query().unwrap_or_default())
    }

    /// Where a write comes from.
    fn origin(&self, visitor: &Visitor) -> Origin {
        let request_id = self.shown.request_id.to_str().unwrap_or_default().to_owned();
        Origin { actor: visitor.caller.name.clone(), request_id, idempotency: None }
    }

    /// Checks that a visitor may do what an operation of the management API does.
    ///
    /// # Errors
    ///
    /// 403.
    fn permit(&self, visitor: &Visitor, operation: &str) -> Result<(), Problem> {
        match access(operation) {
            Some(Access::Api(needed)) => self.gate.permit(&visitor.caller, needed, self.shown),
            // No visitor of the console has the credentials of the hooks.
            Some(Access::Hook) | None => Err(Problem::of_status(StatusCode::FORBIDDEN)),
        }
    }

    /// Checks that a form was sent by a page of ours, as the browser says. All browsers of today do.
    ///
    /// # Errors
    ///
    /// 403.
    fn check_origin(&self) -> Result<(), Problem> {
        let text = |name: &str| self.shown.headers.get(name).and_then(|value| value.to_str().ok());
        let host = self.uri.authority().map(poem::http::uri::Authority::as_str).or_else(|| text("host"));
        let is_ours = match (text(SEC_FETCH_SITE), text("origin")) {
            (Some(site), _) => site == "same-origin",
            (None, Some(origin)) => {
                let (_, authority) = origin.split_once("://").unwrap_or_default();
                host.is_some_and(|host| host == authority)
            }
            (None, None) => false,
        };
        if is_ours { Ok(()) } else { Err(foreign_form()) }
    }
}

/// Who looks at a page.
#[derive(Debug)]
pub struct Visitor {
    /// The credential's name and role, as they are now.
    pub caller: Caller,
    /// The session.
    pub session: Session,
}

fn foreign_form() -> Problem {
    let detail = "The form does not come from a page of your sign-in: go back, load the page again, and try again.";
    Problem::new(StatusCode::FORBIDDEN, "foreign_form", detail)
}

impl From<SealError> for Problem {
    fn from(error: SealError) -> Self {
        match error {
            SealError::TooLong => Self::new(
                StatusCode::BAD_REQUEST,
                "token_too_long",
                "The token is too long to be kept by a browser: sign in with a token that Tollgate has made.",
            ),
            SealError::NoRandomness => Self::of_status(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }
}

/// The console of a process.
#[derive(Debug)]
pub struct Console {
    sealer: Sealer,
    openid: Option<OpenId>,
    imports: Imports,
}

impl Console {
    /// A console whose sessions are sealed with a key that is made from a secret, which replicas may share; without one
    /// with a random key, and its sessions end with the process.
    ///
    /// # Errors
    ///
    /// [`SealError::NoRandomness`].
    pub fn new(secret: Option<&[u8]>) -> Result<Self, SealError> {
        Ok(Self { sealer: Sealer::new(secret)?, openid: None, imports: Imports::default() })
    }

    /// The same console, where a browser can be signed in at an OpenID provider, too.
    #[must_use]
    pub fn with_openid(self, openid: OpenId) -> Self {
        Self { openid: Some(openid), ..self }
    }

    /// Answers a request. The body is read only when its sender may be heard.
    pub async fn answer<F>(&self, route: &Route, asked: &Asked<'_>, read: impl FnOnce(BodyLimit) -> F) -> Response
    where
        F: Future<Output = Result<Bytes, Problem>>,
    {
        let answered = match route.operation {
            None => self.open_page(route.page, asked, read).await,
            Some(operation) => match self.visitor(asked).await {
                Ok(Some(visitor)) => match self.closed_page(route.page, operation, asked, &visitor, read).await {
                    Ok(response) => Ok(response),
                    Err(problem) => return refused(problem, Some(&visitor)),
                },
                Ok(None) => Ok(Self::to_sign_in(asked)),
                Err(problem) => Err(problem),
            },
        };
        answered.unwrap_or_else(|problem| self.refuse(problem))
    }

    /// The page that says why there is no other.
    pub fn refuse(&self, problem: Problem) -> Response {
        refused(problem, None)
    }

    /// A page that is there for everybody.
    async fn open_page<F>(
        &self,
        page: Page,
        asked: &Asked<'_>,
        read: impl FnOnce(BodyLimit) -> F,
    ) -> Result<Response, Problem>
    where
        F: Future<Output = Result<Bytes, Problem>>,
    {
        match page {
            Page::Style => Ok(file("text/css", include_str!("console.css"))),
            Page::Script => Ok(file("text/javascript", include_str!("console.js"))),
            Page::SignInForm => {
                asked.check_origin()?;
                let fields = form_fields(&read(SIGN_IN_FORM).await?)?;
                self.sign_in(asked, &fields).await
            }
            Page::OpenId => self.begin_openid(asked).await,
            Page::OpenIdCallback => self.finish_openid(asked).await,
            Page::SignIn
            | Page::SignOut
            | Page::Search
            | Page::Subject
            | Page::Change
            | Page::ChangeForm
            | Page::Catalogue
            | Page::Enforced
            | Page::EnforcedForm
            | Page::Service
            | Page::Import
            | Page::ImportForm => {
                let query = asked.query()?;
                Ok(self.sign_in_page(StatusCode::OK, query.get("next"), None, query.get("out").is_some()))
            }
        }
    }

    /// A page for those who are signed in.
    async fn closed_page<F>(
        &self,
        page: Page,
        operation: &str,
        asked: &Asked<'_>,
        visitor: &Visitor,
        read: impl FnOnce(BodyLimit) -> F,
    ) -> Result<Response, Problem>
    where
        F: Future<Output = Result<Bytes, Problem>>,
    {
        asked.permit(visitor, operation)?;
        match page {
            Page::Subject => subject::page(asked, visitor).await,
            Page::Change => change::preview(asked, visitor).await,
            Page::ChangeForm => change::done(asked, visitor, &form(asked, visitor, read).await?).await,
            Page::Catalogue => catalogue::page(asked, visitor).await,
            Page::Enforced => catalogue::preview(asked, visitor).await,
            Page::EnforcedForm => catalogue::done(asked, visitor, &form(asked, visitor, read).await?).await,
            Page::Service => health::page(asked, visitor).await,
            Page::Import => bulk::page(asked, visitor, &self.imports).await,
            Page::ImportForm => {
                asked.check_origin()?;
                asked.permit(visitor, bulk::IMPORT)?;
                let body = read(bulk::FORM).await?;
                bulk::begin(asked, visitor, &self.imports, body).await
            }
            Page::SignOut => {
                form(asked, visitor, read).await?;
                let response = redirect(&Link::to("/console/sign-in").with("out", "1"));
                Ok(response.with_cookie(session::forget(Purpose::Session, asked.is_secure)))
            }
            Page::Search
            | Page::Style
            | Page::Script
            | Page::SignIn
            | Page::SignInForm
            | Page::OpenId
            | Page::OpenIdCallback => subject::search(asked, visitor),
        }
    }

    /// Who asks; none when nobody is signed in, or is no longer.
    async fn visitor(&self, asked: &Asked<'_>) -> Result<Option<Visitor>, Problem> {
        let now = asked.app.service.now();
        let opened = self.sealer.open(Purpose::Session, asked.shown.headers, now, asked.is_secure);
        let Some(session): Option<Session> = opened else { return Ok(None) };
        match caller(asked, &session.token).await {
            Ok(caller) => Ok(Some(Visitor { caller, session })),
            // A credential that lets nobody in any more: its browser signs in again.
            Err(problem) if problem.status() == StatusCode::UNAUTHORIZED => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Where somebody goes who is not signed in.
    fn to_sign_in(asked: &Asked<'_>) -> Response {
        let headers = asked.shown.headers;
        if headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site") {
            return Self::again(asked);
        }
        let next = asked.uri.path_and_query().map(poem::http::uri::PathAndQuery::as_str);
        let next = next.filter(|next| *next != "/console");
        let response = redirect(&Link::to("/console/sign-in").with_any("next", next));
        response.with_cookie(session::forget(Purpose::Session, asked.is_secure))
    }

    /// A page that asks for itself again. Who follows a link from another site, such as a ticket's, comes without the
    /// cookie, which is for our own pages alone; asked by this one the browser sends it along.
    fn again(asked: &Asked<'_>) -> Response {
        going_on(asked.uri.path_and_query().map_or("/console", poem::http::uri::PathAndQuery::as_str))
    }

    /// Signs a browser in with a token that was typed.
    async fn sign_in(&self, asked: &Asked<'_>, fields: &Fields) -> Result<Response, Problem> {
        let next = fields.get("next");
        let Some(token) = fields.get("token").map(str::trim).filter(|token| !token.is_empty()) else {
            return Ok(self.sign_in_page(StatusCode::UNPROCESSABLE_ENTITY, next, Some("Enter a token."), false));
        };
        match self.begin(asked, token).await {
            Ok(cookie) => Ok(redirect(&next_page(next)).with_cookie(cookie)),
            Err(problem) => {
                let words = match problem.status() {
                    StatusCode::UNAUTHORIZED => {
                        "This token lets nobody in: it is misspelled, has ended or was revoked.".to_owned()
                    }
                    _ => problem.document().detail,
                };
                let mut response = self.sign_in_page(problem.status(), next, Some(&words), false);
                let headers = problem.into_response().headers().clone();
                response.headers_mut().extend(
                    headers
                        .into_iter()
                        .filter(|(name, _)| name.as_ref().is_some_and(|name| *name == header::RETRY_AFTER)),
                );
                Ok(response)
            }
        }
    }

    /// The page to sign in.
    fn sign_in_page(&self, status: StatusCode, next: Option<&str>, wrong: Option<&str>, is_out: bool) -> Response {
        let content = html! {
            h1 { "Sign in" }
            @if is_out { div.notice role="status" { p { "You are signed out." } } }
            @if let Some(wrong) = wrong { div.notice.bad role="alert" { p id="wrong" { (wrong) } } }
            @if self.openid.is_some() {
                @let link = Link::to("/console/openid").with_any("next", next.map(|next| next_page(Some(next))).as_ref().map(Link::as_str));
                p { a.button href=(link.as_str()) { "Sign in at the OpenID provider" } }
                h2 { "Or with a token" }
            }
            form.stacked method="post" action="/console/sign-in" {
                @if let Some(next) = next { (markup::hidden("next", next_page(Some(next)).as_str())) }
                label for="token" { "API token" }
                p.hint id="token-hint" {
                    "A token of the management API, as an administrator made it. What it may do, you may do; what you do is "
                    "recorded under its name."
                }
                input id="token" name="token" type="password" autocomplete="current-password" spellcheck="false" required
                    autofocus aria-invalid=[wrong.map(|_| "true")]
                    aria-describedby=(if wrong.is_some() { "wrong token-hint" } else { "token-hint" });
                button.main type="submit" { "Sign in" }
            }
        };
        html_response(status, markup::page("Sign in", None, None, &content).into_string())
    }

    /// Sends a browser to the OpenID provider.
    async fn begin_openid(&self, asked: &Asked<'_>) -> Result<Response, Problem> {
        let openid = self.openid.as_ref().ok_or_else(Problem::not_found)?;
        let next = asked.query()?.get("next").map(str::to_owned);
        let now = asked.app.service.now();
        let (link, under_way) = openid.begin(&self.sealer, next, now).await?;
        let cookie = self.sealer.cookie(Purpose::SignIn, under_way, now, asked.is_secure)?;
        Ok(redirect(&link).with_cookie(cookie))
    }

    /// Signs a browser in that comes back from the OpenID provider.
    async fn finish_openid(&self, asked: &Asked<'_>) -> Result<Response, Problem> {
        let openid = self.openid.as_ref().ok_or_else(Problem::not_found)?;
        let now = asked.app.service.now();
        let under_way: Option<UnderWay> = self.sealer.open(Purpose::SignIn, asked.shown.headers, now, asked.is_secure);
        let token = openid.finish(under_way.as_ref(), &asked.query()?, now).await?;
        let cookie = self.begin(asked, &token).await?;
        // A page and no redirect: one that another site began would not get the cookie that it has just been given.
        let next = next_page(under_way.as_ref().and_then(|under_way| under_way.next.as_deref()));
        let response = going_on(next.as_str());
        Ok(response.with_cookie(cookie).with_cookie(session::forget(Purpose::SignIn, asked.is_secure)))
    }

    /// The cookie of a session that a credential begins.
    async fn begin(&self, asked: &Asked<'_>, token: &str) -> Result<HeaderValue, Problem> {
        let caller = caller(asked, token).await?;
        asked.gate.permit(&caller, Role::Reader, asked.shown)?;
        let session = Session { token: token.to_owned(), form_token: self.sealer.unguessable()? };
        Ok(self.sealer.cookie(Purpose::Session, session, asked.app.service.now(), asked.is_secure)?)
    }
}

/// Whose a credential is, by the check of the management API.
async fn caller(asked: &Asked<'_>, token: &str) -> Result<Caller, Problem> {
    let Ok(line) = HeaderValue::try_from(format!("Bearer {token}")) else {
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "No header can hold this token."));
    };
    let mut headers = asked.shown.headers.clone();
    headers.insert(header::AUTHORIZATION, line);
    asked.gate.caller(Shown { headers: &headers, ..asked.shown }).await
}

/// Where to go after the sign-in: to a page of the console, whoever named it.
fn next_page(next: Option<&str>) -> Link {
    let is_ours = |next: &&str| {
        let path = next.split(['?', '#']).next().unwrap_or_default();
        is_below(path) && next.bytes().all(|byte| byte.is_ascii_graphic()) && !next.contains('\\')
    };
    Link::to(next.filter(is_ours).unwrap_or("/console"))
}

/// A page that goes on to another one of ours by itself.
fn going_on(target: &str) -> Response {
    let refresh = html! { meta http-equiv="refresh" content={ "0; url=" (target) }; };
    let content = html! { h1 { "One moment" } p { a href=(target) { "Go on to the page" } } };
    let whole = markup::page("One moment", None, None, &content).into_string();
    html_response(StatusCode::OK, whole.replacen("<title>", &format!("{}<title>", refresh.into_string()), 1))
}

/// The page that says what went wrong, with the status and the headers of the problem.
fn refused(problem: Problem, visitor: Option<&Visitor>) -> Response {
    let document = problem.document();
    let content = html! {
        h1 { (document.title) }
        (markup::refusal(&document))
        p { a href="/console" { "Look for a user or a client" } }
    };
    let whole = markup::page(&document.title, visitor, None, &content).into_string();
    let (status, mut response) = (problem.status(), problem.into_response());
    let page = html_response(status, whole);
    response.headers_mut().extend(page.headers().clone());
    response.set_body(page.into_body());
    response
}

/// The fields of a form that a page of the visitor's session has made.
///
/// # Errors
///
/// 403 for any other form; 400 when it cannot be read.
async fn form<F>(asked: &Asked<'_>, visitor: &Visitor, read: impl FnOnce(BodyLimit) -> F) -> Result<Fields, Problem>
where
    F: Future<Output = Result<Bytes, Problem>>,
{
    asked.check_origin()?;
    let fields = form_fields(&read(FORM).await?)?;
    if visitor.session.made(fields.get("form_token")) { Ok(fields) } else { Err(foreign_form()) }
}

fn form_fields(body: &Bytes) -> Result<Fields, Problem> {
    let text = std::str::from_utf8(body).map_err(|_| Problem::of_status(StatusCode::BAD_REQUEST))?;
    Fields::parse(text)
}

/// An answer with one more cookie.
trait WithCookie {
    fn with_cookie(self, cookie: HeaderValue) -> Self;
}

impl WithCookie for Response {
    fn with_cookie(mut self, cookie: HeaderValue) -> Self {
        self.headers_mut().append(header::SET_COOKIE, cookie);
        self
    }
}

fn shown(title: &str, visitor: &Visitor, part: markup::Part, content: &Markup) -> Response {
    html_response(StatusCode::OK, markup::page(title, Some(visitor), Some(part), content).into_string())
}

fn html_response(status: StatusCode, whole: String) -> Response {
    let mut response = Response::builder().status(status).content_type("text/html; charset=utf-8").body(whole);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, headers::CONSOLE);
    response.headers_mut().insert(header::REFERRER_POLICY, headers::SAME_ORIGIN);
    response
}

/// After a form: the browser asks for a page, which can be loaded again without sending the form again.
fn redirect(link: &Link) -> Response {
    let mut response = html_response(StatusCode::SEE_OTHER, String::new());
    let location = HeaderValue::try_from(link.as_str()).unwrap_or_else(|_| HeaderValue::from_static("/console"));
    response.headers_mut().insert(header::LOCATION, location);
    response
}

fn file(content_type: &str, content: &'static str) -> Response {
    let mut response = Response::builder().content_type(format!("{content_type}; charset=utf-8")).body(content);
    response.headers_mut().insert(header::CACHE_CONTROL, headers::SHORTLY);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_sign_in_a_browser_goes_to_the_console_and_nowhere_else() {
        let check = |next: &str, expected: &str| assert_eq!(next_page(Some(next)).as_str(), expected, "{next}");
        check("/console/subject?type=user&id=%0A", "/console/subject?type=user&id=%0A");
        check("/console", "/console");
        for elsewhere in
            ["", "/", "//evil.example", "/consoles", "https://evil.example/console", "/console\\x", "/console\r\nx: y"]
        {
            check(elsewhere, "/console");
        }
    }
}

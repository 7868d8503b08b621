//! The server's own loop, over real sockets: slow peers, too many of them, HTTP/2, panics, and the end.
//!
//! Limits are shrunk, so that nobody waits for them; one test holds for ten seconds the real ones, all at once, and
//! shows beside each what the framework's own server does, which is why it is not used.

use std::{
    io::BufRead as _,
    net::SocketAddr,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{HeaderMap, Request, StatusCode, Version, header};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tollgate::http::{admission::Capacity, connection::Timeouts, server::Limits};

use crate::support::{
    self, ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, Backend, HOOK_CREDENTIALS, JSON, Options, eventually,
};

/// Declares tests that need a service on any database.
macro_rules! on_sqlite {
    ($(async fn $name:ident($database:ident) $body:block)*) => {
        $(
            #[test]
            fn $name() {
                async fn body($database: std::sync::Arc<support::TestDatabase>) $body
                support::run(Backend::Sqlite, body);
            }
        )*
    };
}

/// A body that a hook answers with 200.
const HOOK_BODY: &str = r#"{"client":{"id":"c"},"scopes":["a"]}"#;
/// Longer than anything here takes that is not waited for on purpose, on a machine that does much else; and less than a
/// connection may idle, so that what ends within it was ended by what the test is about.
const PATIENCE: Duration = Duration::from_secs(30);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A request as it goes over the wire.
fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        request = request + name + ": " + value + "\r\n";
    }
    request + "\r\n" + body
}

fn hook_request() -> String {
    request("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON], HOOK_BODY)
}

/// A hook request that lacks the last byte of its body.
fn most_of_a_hook_request() -> String {
    let mut most = hook_request();
    most.pop();
    most
}

/// A connection whose bytes the test chooses.
struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Wire {
    async fn open(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.expect("connected"), unread: Vec::new() }
    }

    /// Opens a connection and sends something.
    async fn with(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Self {
        let mut wire = Self::open(address).await;
        wire.send(bytes).await;
        wire
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("sent");
    }

    /// Reads an answer, unless the connection ends before it.
    async fn try_answer(&mut self) -> Option<Answer> {
        let reading = async {
            loop {
                if let Some(answer) = self.take_answer() {
                    return Some(answer);
                }
                if self.stream.read_buf(&mut self.unread).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("an answer or the end")
    }

    async fn answer(&mut self) -> Answer {
        self.try_answer().await.expect("an answer before the end")
    }

    fn take_answer(&mut self) -> Option<Answer> {
        let head_end = self.unread.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.unread[..head_end].to_vec()).expect("a head in ASCII");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        let mut headers = HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let name = header::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, value.parse().expect("a value"));
        }
        let length: usize = headers.get("content-length")?.to_str().expect("text").parse().expect("a length");
        if self.unread.len() < head_end + length {
            return None;
        }
        let body = Bytes::copy_from_slice(&self.unread[head_end..head_end + length]);
        self.unread.drain(..head_end + length);
        Some(Answer { status: status.parse().expect("a status"), headers, body })
    }

    /// The types of the HTTP/2 frames that have come whole.
    fn frames(&self) -> Vec<u8> {
        let (mut frames, mut rest) = (Vec::new(), &self.unread[..]);
        while let Some(head) = rest.first_chunk::<9>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let Some(after) = rest.get(9 + usize::try_from(length).expect("small")..) else { break };
            frames.push(head[3]);
            rest = after;
        }
        frames
    }

    /// Whether the other side has ended the connection, or does so before the time is over. Unread answers are lost.
    async fn ends_within(&mut self, limit: Duration) -> bool {
        let reading = async { while self.stream.read_buf(&mut self.unread).await.unwrap_or(0) > 0 {} };
        timeout(limit, reading).await.is_ok()
    }
}

/// Asks until there is an answer of a status, which has to come soon.
macro_rules! becomes {
    ($status:literal, $ask:expr) => {
        let begun = Instant::now();
        while $ask.is_none_or(|answer| answer.status != $status) {
            assert!(begun.elapsed() < PATIENCE, "it does not become {}", $status);
            sleep(ms(20)).await;
        }
    };
}

/// Sends a hook request over a connection of its own.
async fn ask_hook(address: SocketAddr) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(hook_request().as_bytes()).await.ok()?;
    Wire { stream, unread: Vec::new() }.try_answer().await
}

type Http2Client = Client<HttpConnector, Full<Bytes>>;

fn http2_client() -> Http2Client {
    Client::builder(TokioExecutor::new()).http2_only(true).build_http()
}

async fn ask_http2(client: &Http2Client, address: SocketAddr, body: String) -> Option<Answer> {
    let request = Request::post(format!("http://{address}{ACCESS_TOKEN}"))
        .header(HOOK_CREDENTIALS.0, HOOK_CREDENTIALS.1)
        .header(JSON.0, JSON.1)
        .header("x-request-id", "given")
        .body(Full::new(body.into()))
        .expect("a request");
    let response = client.request(request).await.ok()?;
    assert_eq!(response.version(), Version::HTTP_2);
    let (parts, body) = response.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    Some(Answer { status: parts.status, headers: parts.headers, body })
}

/// An HTTP/2 client's preface with settings that change nothing.
const HTTP2_OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// The type of the frame that asks a client to go.
const GOAWAY: u8 = 7;

/// How many streams a server lets an HTTP/2 client open, by the settings that it sends first; none is no limit.
async fn most_streams(address: SocketAddr) -> Option<u32> {
    let mut wire = Wire::with(address, HTTP2_OPENING).await;
    let mut head = [0; 9];
    wire.stream.read_exact(&mut head).await.expect("a frame");
    assert_eq!(head[3], 4, "a SETTINGS frame");
    let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
    wire.stream.read_exact(&mut payload).await.expect("settings");
    let limit = payload.chunks(6).find(|setting| setting[..2] == [0, 3])?;
    Some(u32::from_be_bytes([limit[2], limit[3], limit[4], limit[5]]))
}

/// poem's own server, with an endpoint that takes JSON.
async fn framework_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let acceptor = poem::listener::TcpAcceptor::from_tokio(listener).expect("an acceptor");
    let endpoint = poem::endpoint::make(|mut request: poem::Request| async move {
        request.take_body().into_json::<Value>().await.map(|_| "taken")
    });
    tokio::spawn(poem::Server::new_with_acceptor(acceptor).run(endpoint));
    address
}

/// Sends a JSON body of 50 MB; tells what was answered and how much of it could be sent.
async fn send_50_mb(address: SocketAddr, path: &str) -> (StatusCode, usize) {
    const LENGTH: usize = 50_000_000;
    let mut head = request("POST", path, &[HOOK_CREDENTIALS, JSON], "");
    head = head.replace("content-length: 0", &format!("content-length: {LENGTH}"));
    let mut wire = Wire::with(address, head).await;
    let mut body = vec![b'a'; LENGTH];
    (body[0], body[LENGTH - 1]) = (b'"', b'"');
    let (mut receiving, mut sending) = wire.stream.split();
    let mut taken = 0;
    let send = async {
        for part in body.chunks(100_000) {
            if sending.write_all(part).await.is_err() {
                break;
            }
            taken += part.len();
        }
    };
    let mut answer = vec![0; 12];
    let receive = async { receiving.read_exact(&mut answer).await.expect("an answer") };
    tokio::join!(send, receive);
    let status = std::str::from_utf8(&answer[9..]).expect("a status");
    (status.parse().expect("a status"), taken)
}

/// After how long the server ends a connection over which half a head came, and then a byte now and then.
async fn end_of_trickled_head(address: SocketAddr, pause: Option<Duration>) -> Duration {
    let mut wire = Wire::open(address).await;
    // The limit begins with the head and not with the connection.
    sleep(ms(1000)).await;
    let begun = Instant::now();
    wire.send("POST / HTTP/1.1\r\nhost: test\r\nx: ").await;
    while begun.elapsed() < PATIENCE {
        if wire.ends_within(pause.unwrap_or(PATIENCE)).await {
            return begun.elapsed();
        }
        // The connection may just have ended.
        let _ = wire.stream.write_all(b"x").await;
    }
    panic!("the connection is still open");
}

on_sqlite! {
    async fn a_peer_that_is_slow_or_greedy_meets_limits_that_the_framework_s_own_server_lacks(database) {
        let app = database.app().await;
        let ours = app.address;
        let poems = framework_server().await;
        let half = "POST / HTTP/1.1\r\nhost: test\r\nx: ";

        let half_heads_on_poem = async {
            let mut wires = Vec::new();
            for _ in 0..100 {
                wires.push(Wire::with(poems, half).await);
            }
            sleep(ms(7000)).await;
            for wire in &mut wires {
                assert!(!wire.ends_within(ms(1)).await, "poem has learned to close slow connections");
            }
        };
        let half_heads = async {
            let took = end_of_trickled_head(ours, None).await.as_millis();
            assert!(took >= 4500, "{took} ms");
        };
        let trickled_heads = async {
            let took = end_of_trickled_head(ours, Some(ms(300))).await.as_millis();
            assert!(took >= 4500, "{took} ms");
        };
        let large_bodies = async {
            assert_eq!(send_50_mb(poems, "/").await, (StatusCode::OK, 50_000_000));
            let (status, sent) = send_50_mb(ours, ACCESS_TOKEN).await;
            assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
            assert!(sent < 25_000_000, "{sent} bytes were taken, or wait in buffers");
        };
        let streams = async {
            assert_eq!(most_streams(poems).await, None);
            assert_eq!(most_streams(ours).await, Some(256));
        };
        let slow_body = async {
            let begun = Instant::now();
            let head = request("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON], "");
            let head = head.replace("content-length: 0", "transfer-encoding: chunked");
            let mut wire = Wire::with(ours, head).await;
            while begun.elapsed() < ms(9000) {
                // On a machine that stands still for a while its time is over meanwhile.
                let _ = wire.stream.write_all(b"1\r\n{\r\n").await;
                sleep(ms(500)).await;
            }
            let answer = wire.answer().await;
            answer.expect_problem(408, "body_timeout");
            assert_eq!(answer.header("connection"), Some("close"));
            assert!(begun.elapsed() > ms(9500), "{:?}", begun.elapsed());
            assert!(wire.ends_within(PATIENCE).await);
        };
        let idle = async {
            let mut kept = Wire::with(ours, hook_request()).await;
            kept.answer().await.expect(200);
            // Refused for its head alone, with its body unread.
            let mut refused = Wire::with(ours, request("POST", ACCESS_TOKEN, &[], HOOK_BODY)).await;
            refused.answer().await.expect_problem(401, "unauthorized");
            let mut unused = Wire::open(ours).await;
            let mut http2 = Wire::with(ours, HTTP2_OPENING).await;
            assert!(!http2.ends_within(ms(6000)).await);
            for wire in [&mut kept, &mut refused, &mut unused] {
                wire.send(hook_request()).await;
                wire.answer().await.expect(200);
            }
        };
        tokio::join!(half_heads_on_poem, half_heads, trickled_heads, large_bodies, streams, slow_body, idle);
    }

    async fn requests_follow_each_other_on_a_connection_pipelined_or_not(database) {
        let app = database.app().await;
        let mut wire = Wire::open(app.address).await;
        for _ in 0..2 {
            wire.send(hook_request()).await;
            wire.answer().await.expect(200);
        }
        wire.send(hook_request().repeat(3) + &most_of_a_hook_request()).await;
        for _ in 0..3 {
            assert_eq!(wire.answer().await.header("connection"), None);
        }
        wire.send("}").await;
        wire.answer().await.expect(200);
    }

    async fn a_connection_that_idles_too_long_is_closed_and_one_that_is_busy_is_not(database) {
        // Ten times as long as the pauses below, so that nobody idles too long who does not mean to.
        let limit = ms(4000);
        let app = database.app_with(with_timeouts(Timeouts { idle: limit, ..Timeouts::default() })).await;
        let begun = Instant::now();
        let mut unused = Wire::open(app.address).await;
        let mut kept = Wire::with(app.address, hook_request()).await;
        kept.answer().await.expect(200);
        let mut http2 = Wire::with(app.address, HTTP2_OPENING).await;
        let mut busy = Wire::with(app.address, most_of_a_hook_request()).await;
        let mut pool = Wire::open(app.address).await;
        while begun.elapsed() < limit + ms(400) {
            pool.send(hook_request()).await;
            pool.answer().await.expect(200);
            sleep(ms(400)).await;
        }
        let begun = Instant::now();
        busy.send("}").await;
        busy.answer().await.expect(200);
        for wire in [&mut unused, &mut kept, &mut http2] {
            assert!(wire.ends_within(PATIENCE).await);
        }
        assert!(busy.ends_within(PATIENCE).await);
        assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    }

    async fn a_client_that_does_not_read_its_answers_is_cut_off(database) {
        // The answer that tells that the connection is taken has this long to come.
        let mut options = with_timeouts(Timeouts { write: ms(4000), ..Timeouts::default() });
        options.limits.connections = 1;
        let app = database.app_with(options).await;
        let mut wire = Wire::open(app.address).await;
        let many = request("GET", "/openapi/management.yaml", &[], "").repeat(100);
        let begun = Instant::now();
        while timeout(ms(100), wire.send(&many)).await.is_ok() {
            assert!(begun.elapsed() < PATIENCE, "the buffers are bottomless");
        }
        // The one connection is taken, then given back.
        assert_eq!(ask_hook(app.address).await.map(|answer| answer.status), Some(StatusCode::SERVICE_UNAVAILABLE));
        becomes!(200, ask_hook(app.address).await);
        drop(wire);
    }

    async fn the_api_is_shed_before_any_hook_and_hooks_before_their_credentials_are_read(database) {
        let capacity = Capacity { all: 3, all_for_management: 2, management: 1, ..Capacity::default() };
        let app = database.app_with(Options { capacity, ..Options::default() }).await;
        let shed = async |surface: &str| app.metric(&format!("tollgate_shed_requests_total{{surface=\"{surface}\"}}")).await;
        let list = async || Some(app.call("GET", "/v1/scopes").await);
        for surface in ["hooks", "management", "connection"] {
            assert!(shed(surface).await < 0.5, "there from the start");
        }

        let create = request("POST", "/v1/scopes", &[ADMIN_CREDENTIALS, JSON], r#"{"name":"a"}"#);
        let under_way = Wire::with(app.address, &create[..create.len() - 1]).await;
        becomes!(503, list().await);
        becomes!(200, ask_hook(app.address).await);
        let refused = app.send("GET", "/v1/scopes", &[("authorization", "Bearer wrong")], "").await;
        refused.expect_problem(503, "overloaded");
        assert_eq!(refused.header("retry-after"), Some("1"));
        drop(under_way);
        becomes!(200, list().await);

        let mut under_way = vec![Wire::with(app.address, most_of_a_hook_request()).await];
        becomes!(200, list().await);
        under_way.push(Wire::with(app.address, most_of_a_hook_request()).await);
        becomes!(503, list().await);
        becomes!(200, ask_hook(app.address).await);
        let mut refusal = None;
        eventually!("hooks are refused, too", PATIENCE, {
            // One that comes while the answer before it is still leaving is turned away itself, so there are more.
            under_way.push(Wire::with(app.address, most_of_a_hook_request()).await);
            let answer = app.send("POST", ACCESS_TOKEN, &[("authorization", "Basic wrong")], "x").await;
            (answer.status == 503).then(|| refusal = Some(answer)).is_some()
        });
        let refused = refusal.expect("an answer");
        refused.expect_problem(503, "overloaded");
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert_eq!(app.send_to(app.operations, "GET", "/readyz", &[], "").await.status, 200, "operators always get in");
        assert!(shed("hooks").await > 0.5 && shed("management").await > 1.5 && shed("connection").await < 0.5);

        // One ends as it should, the others hang up.
        under_way[0].send("}").await;
        under_way[0].answer().await.expect(200);
        becomes!(200, ask_hook(app.address).await);
        drop(under_way);
        becomes!(200, list().await);
    }

    async fn who_is_not_signed_in_to_the_console_holds_no_place_of_the_api(database) {
        let app = database.app_with(Options { capacity: Capacity { strangers: 1, ..Capacity::default() }, ..Options::default() }).await;
        let ask = async |path: &str| Some(app.send("GET", path, &[], "").await);
        let form = |body: &str| {
            let headers = [("content-type", "application/x-www-form-urlencoded"), ("sec-fetch-site", "same-origin")];
            request("POST", "/console/sign-in", &headers, body)
        };
        let most = form("token=wrong");
        let begun = Instant::now();
        let mut under_way = Wire::with(app.address, &most[..most.len() - 1]).await;
        becomes!(503, ask("/console/sign-in").await);
        assert_eq!(ask("/console/openid").await.expect("an answer").status, 503);
        for (path, status) in [("/console/console.css", 200), ("/console/console.js", 200), ("/console", 303)] {
            assert_eq!(ask(path).await.expect("an answer").status, status, "{path}");
        }
        app.call("GET", "/v1/scopes").await.expect(200);
        assert!(app.metric("tollgate_shed_requests_total{surface=\"management\"}").await > 1.5);
        assert_eq!(under_way.answer().await.status, 408);
        let took = begun.elapsed();
        assert!(took > ms(4500) && took < ms(9500), "a sign-in has half the time of other bodies, and not {took:?}");
        becomes!(200, ask("/console/sign-in").await);
        for (length, status) in [(16 * 1024, 401), (16 * 1024 + 1, 413)] {
            let body = format!("token={}", "x".repeat(length - "token=".len()));
            assert_eq!(Wire::with(app.address, form(&body)).await.answer().await.status, status, "{length}");
        }
    }

    async fn an_upload_to_the_console_may_take_longer_than_other_bodies(database) {
        let app = database.app().await;
        let from_us = ("sec-fetch-site", "same-origin");
        let headers = [("content-type", "application/x-www-form-urlencoded"), from_us];
        let signed_in = app.send("POST", "/console/sign-in", &headers, "token=admin-token").await;
        let (cookie, _) = signed_in.header("set-cookie").expect("a cookie").split_once(';').expect("attributes");
        let page = app.send("GET", "/console/import", &[("cookie", cookie)], "").await.text();
        let (_, token) = page.split_once("name=\"form_token\" value=\"").expect("a form");
        let (token, _) = token.split_once('"').expect("its end");
        let field = |name: &str, value: &str| {
            format!("--xyz\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let file = "--xyz\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\n\
            source,externalId,subjectType,subjectId,scopes,validUntil\n\r\n--xyz--\r\n";
        let body = field("form_token", token) + &field("format", "") + &field("mode", "try") + file;
        let headers = [("content-type", "multipart/form-data; boundary=xyz"), from_us, ("cookie", cookie)];
        let upload = request("POST", "/console/import", &headers, &body);
        let (start, rest) = upload.split_at(upload.len() - 20);
        let mut wire = Wire::with(app.address, start).await;
        // Others have ten seconds.
        sleep(ms(11_000)).await;
        wire.send(rest).await;
        assert_eq!(wire.answer().await.status, 303);
    }

    async fn a_connection_too_many_is_told_so_and_closed(database) {
        let mut options = Options::default();
        options.limits.connections = 3;
        let app = database.app_with(options).await;
        let mut kept = Vec::new();
        for _ in 0..3 {
            let mut wire = Wire::with(app.address, hook_request()).await;
            wire.answer().await.expect(200);
            kept.push(wire);
        }
        let mut refused = 0.0;
        for opening in [hook_request(), String::new(), "x".repeat(20_000)] {
            // It is the answer that is followed by the end, and not the time that being told may take, a second; on a
            // machine that does much else not each one shows that.
            eventually!("the end comes with the answer", PATIENCE, {
                let begun = Instant::now();
                let mut wire = Wire::with(app.address, &opening).await;
                let answer = wire.answer().await;
                answer.expect_problem(503, "overloaded");
                assert_eq!(answer.header("retry-after"), Some("1"));
                assert_eq!(answer.header("connection"), Some("close"));
                assert!(wire.ends_within(PATIENCE).await);
                refused += 1.0;
                begun.elapsed() < ms(500)
            });
        }
        assert!((app.metric("tollgate_shed_requests_total{surface=\"connection\"}").await - refused).abs() < 0.1);
        kept.pop();
        becomes!(200, ask_hook(app.address).await);
        kept.push(Wire::open(app.address).await);
        kept[0].send(hook_request()).await;
        kept[0].answer().await.expect(200);

        // Who is refused and stays keeps nobody else from being told, but for a moment.
        let mut stubborn = Vec::new();
        for _ in 0..100 {
            stubborn.push(Wire::open(app.address).await);
        }
        sleep(ms(1200)).await;
        becomes!(503, ask_hook(app.address).await);
        drop((kept, stubborn));
    }

    async fn http2_without_tls_works_with_many_streams_at_once(database) {
        let mut options = Options::default();
        options.limits.connections = 1;
        let app = database.app_with(options).await;
        let client = http2_client();
        let first = ask_http2(&client, app.address, HOOK_BODY.to_owned()).await.expect("an answer");
        first.expect(200);
        let tasks: Vec<_> = (0..400)
            .map(|index| {
                let (client, address) = (client.clone(), app.address);
                let body = json!({"client": {"id": "c"}, "scopes": [index.to_string()]}).to_string();
                tokio::spawn(async move { ask_http2(&client, address, body).await })
            })
            .collect();
        for task in tasks {
            let answer = task.await.expect("no panic").expect("an answer");
            answer.expect(200);
        }
        let too_large = ask_http2(&client, app.address, " ".repeat(300_000)).await.expect("an answer");
        too_large.expect_problem(413, "body_too_large");
        ask_http2(&client, app.address, HOOK_BODY.to_owned()).await.expect("the same connection").expect(200);
    }

    async fn a_panic_is_a_500_that_costs_nobody_else_anything(database) {
        let app = database.app().await;
        let mut wire = Wire::open(app.address).await;
        let hook = request("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON, ("x-request-id", "given")], HOOK_BODY);
        let client = http2_client();
        let now = app.now();
        app.break_clock();
        wire.send(&hook).await;
        let answer = wire.answer().await;
        answer.expect_problem(500, "internal");
        assert_eq!(answer.header("x-request-id"), Some("given"));
        let answer = ask_http2(&client, app.address, HOOK_BODY.to_owned()).await.expect("an answer");
        answer.expect_problem(500, "internal");
        app.set_now(now);
        wire.send(&hook).await;
        wire.answer().await.expect(200);
        let failed = "tollgate_hook_requests_total{hook=\"customize-access-token\",outcome=\"failed\"}";
        assert!((app.metric(failed).await - 2.0).abs() < 0.1);
    }

    async fn when_the_end_is_near_everybody_is_served_and_asked_to_move_on(database) {
        let mut options = Options::default();
        // Longer than the test: nothing here has to be quick.
        options.limits.drain_delay = Duration::from_mins(10);
        let mut app = database.app_with(options).await;
        let address = app.address;
        let mut used = Wire::with(address, hook_request()).await;
        assert_eq!(used.answer().await.header("connection"), None);
        let mut idle = Wire::with(address, hook_request()).await;
        idle.answer().await.expect(200);
        let mut http2 = Wire::with(address, HTTP2_OPENING).await;
        // Past the moment in which its first request may be on its way.
        assert!(!http2.ends_within(ms(700)).await && !http2.frames().contains(&GOAWAY));
        let stopping = tokio::spawn(async move { app.stop().await });

        eventually!("the end is near", PATIENCE, {
            let mut new = Wire::with(address, hook_request()).await;
            let answer = new.answer().await;
            answer.expect(200);
            answer.header("connection") == Some("close") && new.ends_within(PATIENCE).await
        });
        used.send(hook_request()).await;
        let answer = used.answer().await;
        answer.expect(200);
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(used.ends_within(PATIENCE).await);
        for _ in 0..20 {
            let answer = ask_http2(&http2_client(), address, HOOK_BODY.to_owned()).await.expect("an answer");
            answer.expect(200);
            assert_eq!(answer.header("connection"), None);
        }
        eventually!("it is asked to go", PATIENCE, !http2.ends_within(ms(10)).await && http2.frames().contains(&GOAWAY));
        assert!(!idle.ends_within(ms(1)).await, "a request may be on its way");
        assert!(!stopping.is_finished());
        stopping.abort();
    }

    async fn the_end_lets_requests_under_way_end_and_first_ones_come(database) {
        let mut options = Options::default();
        options.limits.drain_delay = ms(3000);
        // Longer than the test, so that neither ends anything.
        options.limits.first_request_grace = Duration::from_mins(10);
        options.limits.drain_timeout = Duration::from_mins(10);
        let mut app = database.app_with(options).await;
        let address = app.address;
        let mut idle = Wire::with(address, hook_request()).await;
        idle.answer().await.expect(200);
        let mut under_way = Wire::with(address, most_of_a_hook_request()).await;
        let mut http2 = Wire::with(address, HTTP2_OPENING).await;
        eventually!("it speaks HTTP/2", PATIENCE, !http2.ends_within(ms(10)).await && !http2.frames().is_empty());
        let begun = Instant::now();
        let stopping = tokio::spawn(async move { app.stop().await });
        let mut just_connected = Wire::open(address).await;

        assert!(idle.ends_within(PATIENCE).await);
        assert!(begun.elapsed() >= ms(3000), "{:?}", begun.elapsed());
        TcpStream::connect(address).await.expect_err("the listener is closed");
        just_connected.send(hook_request()).await;
        let answer = just_connected.answer().await;
        answer.expect(200);
        assert_eq!(answer.header("connection"), Some("close"));
        sleep(ms(300)).await;
        assert!(!stopping.is_finished());
        assert!(!http2.ends_within(ms(1)).await && !http2.frames().contains(&GOAWAY), "a request may be on its way");
        under_way.send("}").await;
        let answer = under_way.answer().await;
        answer.expect(200);
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(under_way.ends_within(PATIENCE).await);
        drop((idle, http2, just_connected));
        timeout(PATIENCE, stopping).await.expect("it waits for nobody else").expect("stopped");
    }

    async fn who_never_asks_anything_is_waited_for_no_longer_than_a_moment(database) {
        let mut options = Options::default();
        options.limits.drain_timeout = Duration::from_mins(10);
        let mut app = database.app_with(options).await;
        let mut unused = Wire::open(app.address).await;
        let begun = Instant::now();
        timeout(PATIENCE, app.stop()).await.expect("it waits no longer");
        assert!(begun.elapsed() >= ms(500), "its request may be on its way: {:?}", begun.elapsed());
        assert!(unused.ends_within(PATIENCE).await);
    }

    async fn nobody_can_hold_up_the_end_past_its_deadline(database) {
        let mut options = Options::default();
        options.limits.drain_timeout = ms(600);
        // Without the deadline heads would end in an hour, and the body at its limit, ten seconds.
        options.limits.timeouts.head = Duration::from_hours(1);
        let mut app = database.app_with(options).await;
        let mut stuck = [
            Wire::with(app.address, most_of_a_hook_request()).await,
            Wire::with(app.address, "POST / HTTP/1.1\r\nhost").await,
            Wire::with(app.operations, "GET /livez HTTP/1.1\r\nhost").await,
        ];
        sleep(ms(100)).await;
        let begun = Instant::now();
        app.stop().await;
        assert!((550..6000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        for wire in &mut stuck {
            assert!(wire.ends_within(ms(3000)).await);
        }
    }
}

fn with_timeouts(timeouts: Timeouts) -> Options {
    let limits = Limits { timeouts, ..Options::default().limits };
    Options { limits, ..Options::default() }
}

/// A process of its own that serves the demo.
struct Process {
    child: Child,
    address: SocketAddr,
    /// Kept open, as the process may still write to it.
    _output: std::io::BufReader<ChildStdout>,
}

impl Process {
    /// Starts it below a shell command.
    fn start(shell: &str, arguments: &str) -> Self {
        let program = env!("CARGO_BIN_EXE_tollgate");
        let script = format!(
            "{shell}; exec '{program}' serve --demo --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 \
             --hook-timeout 10s {arguments}"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("a process");
        let mut output = std::io::BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        while !line.contains(ACCESS_TOKEN) {
            line.clear();
            assert!(output.read_line(&mut line).expect("a line") > 0, "it ended before it served");
        }
        let address = line.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
        Self { address: address.parse().expect("an address"), child, _output: output }
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    }

    /// Waits until it has ended.
    async fn end(&mut self, limit: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if self.child.try_wait().expect("its state").is_some() {
                return true;
            }
            sleep(ms(10)).await;
        }
        false
    }

    /// The time it has spent computing.
    fn computed(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("its statistics");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in parentheses");
        let ticks: u64 = fields.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
        // A tick is a hundredth of a second on every Linux there is.
        ms(ticks * 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(test);
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    block_on(async {
        let mut process = Process::start(":", "--drain-delay 10m --drain-timeout 10m");
        let mut wire = Wire::with(process.address, most_of_a_hook_request()).await;
        process.terminate();
        eventually!("it has heard", PATIENCE, {
            ask_hook(process.address).await.expect("an answer").header("connection") == Some("close")
        });
        assert!(!process.end(ms(400)).await);
        process.terminate();
        assert!(process.end(PATIENCE).await);
        assert!(process.child.wait().expect("its end").success());
        assert!(wire.ends_within(PATIENCE).await);
    });
}

#[test]
fn running_out_of_file_descriptors_is_waited_out_without_spinning() {
    block_on(async {
        let mut process = Process::start("ulimit -n 50", "");
        let mut wire = Wire::with(process.address, hook_request()).await;
        wire.answer().await.expect(200);
        let mut flood = Vec::new();
        for _ in 0..80 {
            flood.push(Wire::open(process.address).await);
        }
        // It first has to take as many as it can.
        eventually!("it rests", ms(5000), {
            sleep(ms(200)).await;
            let computed = process.computed();
            sleep(ms(1000)).await;
            process.computed().saturating_sub(computed) < ms(200)
        });
        wire.send(hook_request()).await;
        wire.answer().await.expect(200);
        drop(flood);
        becomes!(200, timeout(ms(5000), ask_hook(process.address)).await.ok().flatten());
        process.terminate();
        assert!(process.end(PATIENCE).await);
    });
}

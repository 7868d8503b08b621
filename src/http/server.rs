//! The server's loop: connections in, requests to the router, a graceful end.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Either};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use poem::http::{HeaderValue, Version, header, uri::Scheme};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use super::{
    bulk::Streamed,
    connection::{Activity, TimedSocket, TimedStream, Timeouts},
    problem,
    router::{Ends, Router},
    selfwake::SelfWaking,
    tls::Acceptor as TlsAcceptor,
};

/// The longest head of a request, in bytes. Past it hyper answers 431 by itself.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// HTTP/2 streams of one connection: as many as a proxy that puts all its requests on one connection needs.
const MAX_STREAMS: u32 = 256;
/// How often an HTTP/2 peer with a request under way is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long it may take to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait after a connection could not be accepted, as when file descriptors have run out: the next attempt
/// would fail at once, and the one after it.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);
/// Connections over the limit that are told so at the same time. Those beyond are closed without a word, so that
/// refusing takes no more than this either.
const MAX_REFUSALS: usize = 64;
/// How long being told so may take.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the log is told of TLS handshakes that fail: anybody can make as many as he likes.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// What a listener allows, and how it ends.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once: each takes some tens of kilobytes and a file descriptor.
    pub connections: usize,
    /// How long a peer may take.
    pub timeouts: Timeouts,
    /// How long, once told to stop, to go on accepting while asking every peer to move elsewhere: a load balancer
    /// needs some seconds to notice that the process is not ready any more.
    pub drain_delay: Duration,
    /// How long a connection that has not sent its first request has for it before it is asked to go, and again when the
    /// listener closes: the request may already be on its way.
    pub first_request_grace: Duration,
    /// How long requests under way may then take to end.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            timeouts: Timeouts::default(),
            drain_delay: Duration::from_secs(3),
            first_request_grace: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// How far the end of a listener has come. Every connection hears of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Open,
    /// Connections are still accepted, and asked not to come back.
    Leaving,
    /// No connection is accepted; what is under way may end.
    Closing,
    /// Nothing may go on.
    Cut,
}

/// Serves a listener, over TLS where there is any, until it is told to stop, then brings it to an end as its limits
/// say.
///
/// Afterwards no connection is left, or will not be within a moment: none is waited for past the last deadline.
pub async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Arc<Router>,
    mut stop: watch::Receiver<bool>,
    limits: Limits,
) {
    let stage = watch::Sender::new(Stage::Open);
    let acceptor = Acceptor::new(&listener, tls, router, limits);
    tokio::select! {
        never = acceptor.accept_all(&listener, &stage) => match never {},
        // A sender that is gone cannot say stop any more, which comes to the same.
        _ = stop.wait_for(|stop| *stop) => {}
    }

    acceptor.shared.is_leaving.store(true, Ordering::Relaxed);
    stage.send_replace(Stage::Leaving);
    // Its other end is the deadline.
    let _ = timeout(limits.drain_delay, acceptor.accept_all(&listener, &stage)).await;

    // Who was connected by the system, and not yet accepted, would be cut off by closing the listener.
    while let Some(Ok((stream, remote))) = listener.accept().now_or_never() {
        acceptor.take(stream, remote, &stage);
    }
    drop(listener);
    stage.send_replace(Stage::Closing);
    if timeout(limits.drain_timeout, stage.closed()).await.is_err() {
        tracing::warn!(connections = stage.receiver_count(), "the time to drain is over: connections are cut");
        stage.send_replace(Stage::Cut);
    }
}

/// What the connections of a listener have in common.
struct Shared {
    router: Arc<Router>,
    tls: Option<TlsAcceptor>,
    builder: auto::Builder<TokioExecutor>,
    timeouts: Timeouts,
    first_request_grace: Duration,
    local: Option<SocketAddr>,
    is_leaving: AtomicBool,
    /// When the log was last told of a handshake that failed.
    told_at: Mutex<Option<Instant>>,
}

impl Shared {
    /// Counts a handshake that failed, and tells the log of one now and then: it may be a scanner's, or that of Access,
    /// whose certificate has expired.
    fn note_failed_handshake(&self, reason: &dyn std::fmt::Display) {
        self.router.count_failed_handshake();
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        if told_at.is_none_or(|at| at.elapsed() >= TELL_INTERVAL) {
            *told_at = Some(Instant::now());
            tracing::warn!(%reason, "a TLS handshake failed; further ones are counted");
        }
    }
}

struct Acceptor {
    shared: Arc<Shared>,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    refusal: Bytes,
}

impl Acceptor {
    fn new(listener: &TcpListener, tls: Option<TlsAcceptor>, router: Arc<Router>, limits: Limits) -> Self {
        let shared = Shared {
            router,
            tls,
            builder: builder(),
            timeouts: limits.timeouts,
            first_request_grace: limits.first_request_grace,
            local: listener.local_addr().ok(),
            is_leaving: AtomicBool::new(false),
            told_at: Mutex::new(None),
        };
        Self {
            shared: Arc::new(shared),
            slots: Arc::new(Semaphore::new(limits.connections)),
            refusals: Arc::new(Semaphore::new(MAX_REFUSALS)),
            refusal: refusal(),
        }
    }

    async fn accept_all(&self, listener: &TcpListener, stage: &watch::Sender<Stage>) -> Infallible {
        let mut is_failing = false;
        loop {
            match listener.accept().await {
                Ok((stream, remote)) => {
                    is_failing = false;
                    self.take(stream, remote, stage);
                }
                // The client has gone again before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "no connection can be accepted");
                    }
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    fn take(&self, stream: TcpStream, remote: SocketAddr, stage: &watch::Sender<Stage>) {
        // An answer is written at once; waiting for more of it would only delay it. Without, it is slower.
        let _ = stream.set_nodelay(true);
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => {
                let (shared, stage) = (Arc::clone(&self.shared), stage.subscribe());
                tokio::spawn(SelfWaking::new(Box::pin(connection(shared, stream, remote, stage, slot))));
            }
            Err(_) => self.refuse(stream),
        }
    }

    /// Tells a client that there is no room, without letting that take any. Over TLS it would take a handshake, so
    /// there the connection is closed without a word.
    fn refuse(&self, stream: TcpStream) {
        self.shared.router.count_refused_connection();
        if self.shared.tls.is_some() {
            return;
        }
        if let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() {
            let answer = self.refusal.clone();
            tokio::spawn(async move {
                // Whether it was heard or not, the connection ends.
                let _ = timeout(REFUSAL_TIMEOUT, send_last(stream, &answer)).await;
                drop(place);
            });
        }
    }
}

/// Serves a connection to its end.
async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    remote: SocketAddr,
    mut stage: watch::Receiver<Stage>,
    _slot: OwnedSemaphorePermit,
) {
    let socket = TimedSocket::new(stream, &shared.timeouts);
    match &shared.tls {
        None => converse(&shared, socket, Scheme::HTTP, remote, stage).await,
        Some(tls) => {
            if let Some(stream) = shake_hands(tls, socket, &shared, &mut stage).await {
                converse(&shared, stream, Scheme::HTTPS, remote, stage).await;
            }
        }
    }
}

/// Begins TLS; none when the peer fails to in time, or the listener comes to its end before.
async fn shake_hands(
    tls: &TlsAcceptor,
    socket: TimedSocket,
    shared: &Shared,
    stage: &mut watch::Receiver<Stage>,
) -> Option<TlsStream<TimedSocket>> {
    tokio::select! {
        shaken = timeout(shared.timeouts.handshake, tls.accept(socket)) => match shaken {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                shared.note_failed_handshake(&error);
                None
            }
            Err(_) => {
                shared.note_failed_handshake(&"it took too long");
                None
            }
        },
        () = first_request_is_late(stage, shared.first_request_grace) => None,
    }
}

/// Waits until no connection is served any more that has not sent its first request.
async fn first_request_is_late(stage: &mut watch::Receiver<Stage>, grace: Duration) {
    reached(stage, Stage::Closing).await;
    tokio::select! {
        () = sleep(grace) => {}
        () = reached(stage, Stage::Cut) => {}
    }
}

/// Answers the requests that come over a stream.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + 'static>(
    shared: &Arc<Shared>,
    stream: S,
    scheme: Scheme,
    remote: SocketAddr,
    mut stage: watch::Receiver<Stage>,
) {
    let activity = Activity::new();
    let connected = Instant::now();
    let ends = Arc::new(Ends { local: shared.local.unwrap_or(remote), remote, scheme });
    let respond = service_fn(|request: hyper::Request<Incoming>| {
        let exchange = activity.begin();
        let (shared, ends) = (Arc::clone(shared), Arc::clone(&ends));
        async move {
            let version = request.version();
            let mut answer = shared.router.respond(request, &ends).await;
            // In HTTP/2 the connection itself says so.
            if shared.is_leaving.load(Ordering::Relaxed) && version < Version::HTTP_2 {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if answer.extensions().get::<Streamed>().is_some() {
                // What is made while it is sent is under way until its end: the connection must not count as idle.
                answer = answer.map(|body| {
                    let told = body.map_frame(move |frame| {
                        let _ = &exchange;
                        frame
                    });
                    Either::Right(told.map_err(io::Error::other).boxed())
                });
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let stream = TimedStream::new(stream, Arc::clone(&activity), shared.timeouts);
    // A connection that breaks is its client's affair: how it ended is nowhere looked at.
    let mut connection = pin!(shared.builder.serve_connection(TokioIo::new(stream), respond));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = reached(&mut stage, Stage::Leaving) => {}
    }
    // Who connects at the last moment, or later, does so for a request that is on its way, and a client that is asked to
    // go before it has sent one gives it up.
    let is_awaited = !activity.has_served() && connected.elapsed() < shared.first_request_grace;
    if activity.is_http2() && !is_awaited {
        connection.as_mut().graceful_shutdown();
    }
    tokio::select! {
        _ = connection.as_mut() => return,
        () = reached(&mut stage, Stage::Closing) => {}
    }
    if !activity.has_served() {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = sleep(shared.first_request_grace) => {}
            () = reached(&mut stage, Stage::Cut) => return,
        }
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = reached(&mut stage, Stage::Cut) => {}
    }
}

async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    // A listener that was dropped has reached every stage.
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // The stream below has limits of its own for heads.
    builder.http1().header_read_timeout(None).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
    builder
}

/// The answer to a connection over the limit, whatever it asks.
fn refusal() -> Bytes {
    let body = problem::Problem::overloaded().document();
    let body = serde_json::to_string(&body).unwrap_or_default();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {}\r\nx-content-type-options: nosniff\r\n\
         cache-control: no-store\r\nretry-after: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        problem::CONTENT_TYPE,
        problem::RETRY_AFTER_S,
        body.len(),
    );
    (head + &body).into()
}

/// Sends an answer and closes, once the peer has; closing first would make its unread request reset the connection,
/// and the answer could be lost.
async fn send_last(mut stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    stream.writable().await?;
    // The first bytes of a connection find its buffer empty.
    stream.try_write(answer)?;
    poll_fn(|cx| Pin::new(&mut stream).poll_shutdown(cx)).await?;
    let mut ignored = [0; 4096];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut ignored) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

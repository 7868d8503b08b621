//! How long a connection may take over each thing it does.
//!
//! A [`TimedStream`] lies below hyper and fails, as a socket does, when its peer is too slow to ask. hyper's own limit
//! for heads is not used: it also runs while a kept connection idles, so it would either cut the connections that a
//! caller keeps for its next hook, or leave an attacker as long for a head as an honest caller has to idle.
//!
//! A [`TimedSocket`] lies below that and fails when its peer is too slow to take. They are two because TLS goes between
//! them: what a request is can be seen above it only, and whether a byte was taken below it only, as TLS takes what is
//! to be written into a buffer of its own.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

/// What an HTTP/2 client sends first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a peer may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From the beginning of a connection over TLS to the end of its handshake.
    pub handshake: Duration,
    /// From the first byte of a request's head to its last.
    pub head: Duration,
    /// From an answer, or from the beginning, to the first byte of the next head; in HTTP/2, to the next request.
    pub idle: Duration,
    /// Without taking a byte of an answer.
    pub write: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            // It is some packets, each of which may be lost like the one of a head.
            handshake: Duration::from_secs(5),
            // A head is one packet or two. A caller whose packet was lost sends it again within three seconds.
            head: Duration::from_secs(5),
            // Longer than the minute that proxies and pools keep a connection, so that it is they who close it: a
            // connection that the server closes may be chosen for a request at that very moment.
            idle: Duration::from_secs(75),
            // An answer is some kilobytes. Who takes nothing for so long has gone, or wants to hold the memory.
            write: Duration::from_secs(10),
        }
    }
}

/// Which protocol a connection speaks, as far as its first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// So many bytes of the HTTP/2 preface have come, and nothing else.
    Unknown(usize),
    Http1,
    Http2,
}

impl Protocol {
    fn after(self, bytes: &[u8]) -> Self {
        let Self::Unknown(matched) = self else { return self };
        let expected = &PREFACE[matched..];
        let length = expected.len().min(bytes.len());
        if bytes[..length] != expected[..length] {
            Self::Http1
        } else if length == expected.len() {
            Self::Http2
        } else {
            Self::Unknown(matched + length)
        }
    }
}

#[derive(Debug)]
struct State {
    protocol: Protocol,
    /// Requests that are being answered: one at most in HTTP/1, any number in HTTP/2.
    requests: usize,
    /// Whether a request was ever begun.
    has_served: bool,
    /// Whether a part of a head has come, and not yet the whole.
    in_head: bool,
    /// When the head began, or when the connection fell idle.
    since: Instant,
}

/// What a connection is busy with: told by the stream below hyper and by the service above it.
#[derive(Debug)]
pub struct Activity(Mutex<State>);

impl Activity {
    /// A connection that was opened just now.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            protocol: Protocol::Unknown(0),
            requests: 0,
            has_served: false,
            in_head: false,
            since: Instant::now(),
        })))
    }

    /// The head of a request has come; it is answered until the value is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> Exchange {
        let mut state = self.state();
        state.requests += 1;
        state.has_served = true;
        state.in_head = false;
        Exchange(Arc::clone(self))
    }

    /// Whether the connection speaks HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.state().protocol == Protocol::Http2
    }

    /// Whether a request has come over the connection.
    pub fn has_served(&self) -> bool {
        self.state().has_served
    }

    fn read(&self, bytes: &[u8]) {
        let mut state = self.state();
        let protocol = state.protocol.after(bytes);
        if state.protocol != protocol && protocol == Protocol::Http2 {
            // What looked like a head was the preface. Frames are hyper's business.
            state.in_head = false;
            state.since = Instant::now();
        }
        state.protocol = protocol;
        if protocol != Protocol::Http2 && state.requests == 0 && !state.in_head {
            state.in_head = true;
            state.since = Instant::now();
        }
    }

    /// When the peer will have taken too long; none while it is us who take long.
    ///
    /// What is left of one read after the end of a request counts as idling, so half a head that came together with
    /// the request before it has the idle limit: no more than who sends it could have by sending nothing.
    fn deadline(&self, timeouts: &Timeouts) -> Option<Instant> {
        let state = self.state();
        if state.requests > 0 {
            return None;
        }
        Some(state.since + if state.in_head { timeouts.head } else { timeouts.idle })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and a state is whole between any two lines above.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered. Dropping it ends that, however it came to its end.
#[derive(Debug)]
pub struct Exchange(Arc<Activity>);

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.requests -= 1;
        if state.requests == 0 {
            state.since = Instant::now();
        }
    }
}

/// A timer that costs no operation on timers for what is over in time.
///
/// It is set when there is none, moved when something is due before it, and otherwise left alone: when it goes off, it
/// is set for what is due then.
#[derive(Debug, Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready when it has gone off at the deadline, or before it for what was due then.
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.is_elapsed() || timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}

/// A socket that fails when its peer takes nothing of what is to be written.
#[derive(Debug)]
pub struct TimedSocket {
    inner: TcpStream,
    limit: Duration,
    /// Since when the peer has taken nothing.
    blocked_since: Option<Instant>,
    alarm: Alarm,
}

impl TimedSocket {
    /// A socket with the limit for writing.
    #[must_use]
    pub fn new(inner: TcpStream, timeouts: &Timeouts) -> Self {
        Self { inner, limit: timeouts.write, blocked_since: None, alarm: Alarm::default() }
    }

    fn wrote(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.blocked_since = None;
            return written;
        }
        let deadline = *self.blocked_since.get_or_insert_with(Instant::now) + self.limit;
        loop {
            if deadline <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            ready!(self.alarm.poll(cx, deadline));
        }
    }
}

impl AsyncRead for TimedSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for TimedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A stream that fails when its peer is too slow to ask: a [`TimedSocket`], or TLS over one.
#[derive(Debug)]
pub struct TimedStream<S> {
    inner: S,
    activity: Arc<Activity>,
    timeouts: Timeouts,
    alarm: Alarm,
}

impl<S> TimedStream<S> {
    /// A stream with limits.
    #[must_use]
    pub fn new(inner: S, activity: Arc<Activity>, timeouts: Timeouts) -> Self {
        Self { inner, activity, timeouts, alarm: Alarm::default() }
    }

    /// Waits like the stream does, but not for ever. Called whenever the stream has nothing to say.
    fn wait<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        loop {
            let now = Instant::now();
            let deadline = self.activity.deadline(&self.timeouts);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            // With nothing due, it looks again later, as nobody may poll when that changes.
            ready!(self.alarm.poll(cx, deadline.unwrap_or(now + self.timeouts.idle)));
        }
    }

    fn or_wait<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() { done } else { self.wait(cx) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.inner).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let read = &buf.filled()[before..];
                if !read.is_empty() {
                    self.activity.read(read);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.wait(cx),
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.or_wait(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.or_wait(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A socket has nothing to flush; TLS has what the socket did not take.
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.or_wait(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.or_wait(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preface_is_known_however_it_is_cut() {
        for cut in 0..=PREFACE.len() {
            let (first, second) = PREFACE.split_at(cut);
            assert_eq!(Protocol::Unknown(0).after(first).after(second), Protocol::Http2, "{cut}");
            if !second.is_empty() {
                assert_eq!(Protocol::Unknown(0).after(first).after(b"x"), Protocol::Http1, "{cut}");
            }
        }
        assert_eq!(Protocol::Unknown(0).after(b"POST / HTTP/1.1\r\n"), Protocol::Http1);
        assert_eq!(Protocol::Unknown(0).after(&[PREFACE, b"more"].concat()), Protocol::Http2);
    }

    /// How long the peer has, in seconds, under limits of 5 and 75 seconds.
    fn due_s(activity: &Activity) -> Option<u64> {
        let due = activity.deadline(&Timeouts::default())?;
        Some((due - activity.state().since).as_secs())
    }

    #[test]
    fn a_head_is_due_from_its_first_byte_and_an_idle_connection_has_longer() {
        let activity = Activity::new();
        assert_eq!(due_s(&activity), Some(75));
        activity.read(b"P");
        assert_eq!(due_s(&activity), Some(5));
        activity.read(b"OST");
        let exchange = activity.begin();
        assert_eq!(due_s(&activity), None);
        activity.read(b"a body, or the next request");
        assert_eq!(due_s(&activity), None);
        drop(exchange);
        assert_eq!(due_s(&activity), Some(75));
        activity.read(b"G");
        assert_eq!(due_s(&activity), Some(5));
    }

    #[test]
    fn http2_idles_only_while_none_of_its_streams_is_answered() {
        let activity = Activity::new();
        activity.read(&PREFACE[..3]);
        assert_eq!(due_s(&activity), Some(5));
        activity.read(&PREFACE[3..]);
        assert_eq!(due_s(&activity), Some(75));
        activity.read(b"frames");
        assert_eq!(due_s(&activity), Some(75));
        let streams = (activity.begin(), activity.begin());
        drop(streams.1);
        assert_eq!(due_s(&activity), None);
        drop(streams.0);
        assert_eq!(due_s(&activity), Some(75));
    }
}

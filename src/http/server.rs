//! The server's loop: connections in, requests to the router, a graceful end.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use poem::{
    Addr,
    http::uri::Scheme,
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use super::router::Router;

/// Connections of one listener: each takes some tens of kilobytes, and a file descriptor.
const MAX_CONNECTIONS: usize = 8192;
/// The longest head of a request, in bytes. Past it hyper answers 431 by itself.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// HTTP/2 streams of one connection.
const MAX_STREAMS: u32 = 256;
/// How long a connection may take to send a head, idling before it included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
/// How long to wait after a connection could not be accepted, as when file descriptors have run out.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Serves a listener until it is told to stop, then lets requests under way end, for at most `drain`.
pub async fn serve(listener: TcpListener, router: Arc<Router>, mut stop: watch::Receiver<bool>, drain: Duration) {
    let builder = builder();
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let local = listener.local_addr().ok();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &slots) => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some((stream, remote, slot)) = accepted else { continue };
        let (local, router) = (LocalAddr(Addr::SocketAddr(local.unwrap_or(remote))), Arc::clone(&router));
        let respond = service_fn(move |request: hyper::Request<Incoming>| {
            let (local, router) = (local.clone(), Arc::clone(&router));
            async move {
                let remote = RemoteAddr(Addr::SocketAddr(remote));
                let response = router.respond((request, local, remote, Scheme::HTTP).into()).await;
                Ok::<Response<_>, Infallible>(response.into())
            }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), respond).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that breaks is its client's affair.
            let _ = connection.await;
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the time to drain was over");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
    builder
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => {
            // An answer is written at once; waiting for more of it would only delay it.
            let _ = stream.set_nodelay(true);
            Some((stream, remote, slot))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_BACKOFF).await;
            None
        }
    }
}

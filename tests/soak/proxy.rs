//! A small TCP proxy that counts connections, and lets some of them die without a word.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinSet,
};

/// What identifies the connection that listens for wake-ups.
const LISTEN: &[u8] = b"LISTEN ";

/// One connection through the proxy.
#[derive(Debug, Default)]
struct Passage {
    /// Set when nothing passes any more, although the connection stays open.
    is_dead: AtomicBool,
    /// When it began to listen for wake-ups.
    listens_since: Mutex<Option<Instant>>,
    /// The other end has gone.
    ended: Notify,
}

#[derive(Debug, Default)]
struct Shared {
    accepted: AtomicU64,
    passages: Mutex<Vec<Arc<Passage>>>,
}

/// A proxy in front of a server on the loopback interface. It ends when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// In front of the server on a port.
    pub async fn start(target: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, shared) = (listener.local_addr()?.port(), Arc::new(Shared::default()));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, target, Arc::clone(&shared)));
        Ok(Self { port, shared, _tasks: tasks })
    }

    /// How many connections were asked for so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Lets all present connections die without a word. New ones live.
    pub fn kill_silently(&self) {
        self.kill_those(|_| true);
    }

    /// Lets the present connections that listen for wake-ups die without a word: how many.
    pub fn kill_listeners_silently(&self) -> usize {
        self.kill_those(|passage| passage.listens_since().is_some())
    }

    fn kill_those(&self, which: impl Fn(&Passage) -> bool) -> usize {
        let passages = self.shared.passages.lock().unwrap_or_else(PoisonError::into_inner);
        let chosen = passages.iter().filter(|passage| which(passage) && !passage.is_dead.swap(true, Ordering::SeqCst));
        chosen.count()
    }

    /// When the last connection began that listens for wake-ups.
    pub fn listener_since(&self) -> Option<Instant> {
        let passages = self.shared.passages.lock().unwrap_or_else(PoisonError::into_inner);
        passages.iter().filter_map(|passage| passage.listens_since()).max()
    }
}

impl Passage {
    fn listens_since(&self) -> Option<Instant> {
        *self.listens_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, target: u16, shared: Arc<Shared>) {
    // The tasks of the connections end with this one.
    let mut tasks = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        while tasks.try_join_next().is_some() {}
        let passage = Arc::new(Passage::default());
        let mut passages = shared.passages.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are held by nobody else.
        passages.retain(|passage| Arc::strong_count(passage) > 1);
        passages.push(Arc::clone(&passage));
        drop(passages);
        tasks.spawn(async move {
            let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target))).await else { return };
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::join!(pass(from_client, to_server, &passage, true), pass(from_server, to_client, &passage, false));
        });
    }
}

/// Passes on what comes from one end, until either has gone.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, passage: &Passage, is_client: bool) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = passage.ended.notified() => break,
        };
        let Ok(1..) = read else { break };
        let bytes = &buffer[..read.unwrap_or_default()];
        if passage.is_dead.load(Ordering::SeqCst) {
            continue;
        }
        if is_client && bytes.windows(LISTEN.len()).any(|window| window == LISTEN) {
            *passage.listens_since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    // On a dead connection, neither end is told that the other one has gone.
    if passage.is_dead.load(Ordering::SeqCst) && !is_client {
        passage.ended.notified().await;
    }
    passage.ended.notify_one();
}

//! A TCP proxy in front of the database, that does what networks and servers do to those who rely on them.

use std::{
    io,
    net::SocketAddr,
    str::FromStr as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sea_orm::sqlx::postgres::PgConnectOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// How the question for facts can be told from others.
const FACTS: &[u8] = b"unnest(";
/// How the question for where the change feed begins can be told from others.
const FEED: &[u8] = b"pg_is_in_recovery";

/// What the proxy does. Connections are numbered in the order in which they came.
#[derive(Debug, Clone, Copy, Default)]
#[expect(clippy::struct_excessive_bools, reason = "any of them may come together")]
struct Weather {
    /// What a client sends arrives this much later.
    delay: Duration,
    /// Whether connections are reset as soon as they are made.
    refusing: bool,
    /// Connections below this number are reset.
    cut_below: u64,
    /// Connections below this number get nothing through any more, and are not told.
    dead_below: u64,
    /// Whether answers are held back on connections that hooks have asked for facts on.
    holding_facts: bool,
    /// Whether connections on which the change feed would begin are reset.
    refusing_feed: bool,
    /// Whether a commit is let through, and the connection reset in place of its answer.
    losing_commits: bool,
}

/// A proxy. It ends, and cuts every connection, when it is dropped.
pub struct Proxy {
    /// The address of the database through the proxy.
    pub url: String,
    weather: watch::Sender<Weather>,
    came: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// A proxy in front of the database at `url`, which lets everything through.
    pub async fn start(url: &str) -> Self {
        let options = PgConnectOptions::from_str(url).expect("a URL");
        let server = (options.get_host().to_owned(), options.get_port());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (weather, seen) = watch::channel(Weather::default());
        let (came, held) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, seen, Arc::clone(&came), Arc::clone(&held)));
        Self { url: through(url, address), weather, came, held, _tasks: tasks }
    }

    /// Lets everything through, but for connections that are dead.
    pub fn resume(&self) {
        let came = self.connections();
        self.weather.send_modify(|weather| {
            let dead_below = weather.dead_below.min(came);
            *weather = Weather { cut_below: weather.cut_below, dead_below, ..Weather::default() };
        });
    }

    /// Resets the present connections.
    pub fn cut(&self) {
        let came = self.connections();
        self.weather.send_modify(|weather| weather.cut_below = came);
    }

    /// Resets the present connections, and each that is made from now on.
    pub fn refuse(&self) {
        self.weather.send_modify(|weather| weather.refusing = true);
        self.cut();
    }

    /// Lets nothing through any more, on the present connections and on each that is made from now on.
    pub fn swallow(&self) {
        self.weather.send_modify(|weather| weather.dead_below = u64::MAX);
    }

    /// Lets nothing through any more on the present connections; new ones are good.
    pub fn swallow_present(&self) {
        let came = self.connections();
        self.weather.send_modify(|weather| weather.dead_below = came);
    }

    /// Makes whatever a client sends arrive later.
    pub fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Holds back the answers to hooks that ask for facts.
    pub fn hold_facts(&self) {
        self.weather.send_modify(|weather| weather.holding_facts = true);
    }

    /// How many answers have been held back so far.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Resets each connection on which the change feed would begin.
    pub fn refuse_feed(&self) {
        self.weather.send_modify(|weather| weather.refusing_feed = true);
    }

    /// Lets commits through, but not their answers.
    pub fn lose_commits(&self) {
        self.weather.send_modify(|weather| weather.losing_commits = true);
    }

    /// How many connections came so far, refused ones too.
    pub fn connections(&self) -> u64 {
        self.came.load(Ordering::SeqCst)
    }
}

/// The same address, but for the host and the port.
fn through(url: &str, address: SocketAddr) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (authority, path) = rest.split_once('/').expect("a database in the URL");
    let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
    format!("{scheme}://{user}{address}/{path}")
}

async fn accept(
    listener: TcpListener,
    server: (String, u16),
    seen: watch::Receiver<Weather>,
    came: Arc<AtomicU64>,
    held: Arc<AtomicU64>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        // Whoever drops it resets it.
        client.set_zero_linger().expect("an option of every connection");
        let number = came.fetch_add(1, Ordering::SeqCst);
        let (server, seen, held) = (server.clone(), seen.clone(), Arc::clone(&held));
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let mut fate = seen.clone();
            tokio::select! {
                // How it ended is the affair of those at its ends.
                _ = forward(number, client, server, seen, &held) => {}
                _ = fate.wait_for(|weather| weather.refusing || number < weather.cut_below) => {}
            }
        });
    }
}

/// Waits for as long as a connection gets nothing through.
async fn alive(number: u64, seen: &mut watch::Receiver<Weather>) -> io::Result<()> {
    let alive = seen.wait_for(|weather| number >= weather.dead_below).await;
    alive.map(drop).map_err(io::Error::other)
}

async fn forward(
    number: u64,
    mut client: TcpStream,
    server: (String, u16),
    seen: watch::Receiver<Weather>,
    held: &AtomicU64,
) -> io::Result<()> {
    let (mut there, mut back) = (seen.clone(), seen);
    alive(number, &mut there).await?;
    let mut server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (is_commit_under_way, asks_for_facts) = (AtomicBool::new(false), AtomicBool::new(false));
    let requests = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = from_client.read(&mut buffer).await?;
            let delay = there.borrow().delay;
            // What was held up comes at once when nothing is any more.
            let _ = tokio::time::timeout(delay, there.wait_for(|weather| weather.delay.is_zero())).await;
            alive(number, &mut there).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            let part = &buffer[..length];
            if there.borrow().losing_commits && part.windows(6).any(|word| word == b"COMMIT") {
                is_commit_under_way.store(true, Ordering::SeqCst);
            }
            // Named in full once a connection, and by a name that it was given there from then on.
            if part.windows(FACTS.len()).any(|word| word == FACTS) {
                asks_for_facts.store(true, Ordering::SeqCst);
            }
            if there.borrow().refusing_feed && part.windows(FEED.len()).any(|word| word == FEED) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            to_server.write_all(part).await?;
        }
    };
    let answers = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = from_server.read(&mut buffer).await?;
            alive(number, &mut back).await?;
            if asks_for_facts.load(Ordering::SeqCst) {
                if back.borrow().holding_facts {
                    held.fetch_add(1, Ordering::SeqCst);
                }
                back.wait_for(|weather| !weather.holding_facts).await.map(drop).map_err(io::Error::other)?;
            }
            if is_commit_under_way.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if length == 0 {
                return to_client.shutdown().await;
            }
            to_client.write_all(&buffer[..length]).await?;
        }
    };
    tokio::try_join!(requests, answers).map(drop)
}

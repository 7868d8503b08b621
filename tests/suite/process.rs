//! The process itself: how it starts, refuses to start, logs and ends.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixDatagram},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sea_orm::ConnectionTrait as _;
use serde_json::{Value, json};
use tollgate::http::contract::Contract;

use crate::{
    proxy::Proxy,
    support::{Backend, on_both, only_on},
};

/// How long anything may take before a test gives it up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a test looks whether what it waits for has come.
const GLANCE: Duration = Duration::from_millis(5);

/// Those with which it starts.
pub const CREDENTIALS: [(&str, &str); 3] =
    [("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "hook"), ("TOLLGATE_ADMIN_TOKEN", "admin-token")];

/// A folder of one test, in which its processes run and keep their temporary files.
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty one.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tollgate-process-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    /// The names of what lies in it.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("the folder");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the folder for temporary files does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The process that is told this, with this environment and no other.
fn command(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.args(arguments).env_clear().env("TMPDIR", folder).envs(environment.iter().copied()).current_dir(folder);
    command
}

/// What a process that ends by itself says.
pub fn output(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut process = Process::start(&folder.0, arguments, environment);
    let status = process.wait();
    Output { status, stdout: process.stdout().into_bytes(), stderr: process.stderr().into_bytes() }
}

/// What it printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// What it said beside that.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A process that is under way. It is killed when the test is done with it, however the test ends.
struct Process {
    child: Child,
    stdout: Arc<Mutex<Vec<u8>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    fn start(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = command(folder, arguments, environment);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let (stdout, stderr) = (Arc::default(), Arc::default());
        let readers = vec![
            collect(child.stdout.take().expect("its output"), Arc::clone(&stdout)),
            collect(child.stderr.take().expect("its messages"), Arc::clone(&stderr)),
        ];
        Self { child, stdout, stderr, readers }
    }

    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().expect("whole")).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().expect("whole")).into_owned()
    }

    /// Waits until it ended, and all that it wrote has been read.
    fn wait(&mut self) -> ExitStatus {
        let status = until("the end of the process", || self.child.try_wait().expect("a status"));
        for reader in self.readers.drain(..) {
            reader.join().expect("read");
        }
        status
    }

    /// Tells it to stop, as a supervisor does.
    fn terminate(&self) {
        let kill = ["-c", "kill -TERM \"$0\"", &self.child.id().to_string()].map(str::to_owned);
        assert!(Command::new("sh").args(kill).status().expect("a shell").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, into: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut part) {
            into.lock().expect("whole").extend_from_slice(&part[..length]);
        }
    })
}

/// Looks again and again, until there is something to see.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(GLANCE);
    }
}

/// Addresses on which nobody listens, and will not until somebody is told to: they lie below those that the system
/// hands out, of which a test beside could be given one before the process that it was meant for has taken it.
pub fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const MANY: u32 = 10_000;
    [(); N].map(|()| {
        until("a free port", || {
            // Apart from those of other processes that run these tests.
            let offset = std::process::id().wrapping_mul(97).wrapping_add(COUNT.fetch_add(1, Ordering::SeqCst));
            let port = u16::try_from(FIRST + offset % MANY).expect("a port");
            TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok()
        })
    })
}

/// A process that serves. It is killed when it is dropped, whatever it is at.
pub struct Server {
    process: Process,
    /// Where the hooks and the management API are served.
    pub main: SocketAddr,
    /// Where operators look.
    pub operations: SocketAddr,
}

impl Server {
    /// Starts it, and waits until it is ready.
    pub fn start(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let [main, operations] = free_addresses();
        let listen = [("TOLLGATE_LISTEN", main.to_string()), ("TOLLGATE_OPS_LISTEN", operations.to_string())];
        let listen = listen.iter().map(|(name, address)| (*name, address.as_str()));
        // A machine that does much else is slow to answer.
        let patient = [("TOLLGATE_HOOK_TIMEOUT", "10s")];
        let environment: Vec<_> = patient.into_iter().chain(environment.iter().copied()).chain(listen).collect();
        let mut process = Process::start(&folder.0, arguments, &environment);
        until("readiness", || {
            if let Some(status) = process.child.try_wait().expect("a status") {
                process.wait();
                panic!("it ended with {status}: {}", process.stderr());
            }
            let ready = try_get(operations, "/readyz")?;
            (ready.status == 200).then_some(())
        });
        Self { process, main, operations }
    }

    /// Tells it to stop, and waits until it did so in good order.
    pub fn stop(&mut self) {
        self.process.terminate();
        let status = self.process.wait();
        assert!(status.success(), "{status}: {}", self.process.stderr());
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

/// What a process answers.
pub struct Response {
    /// The status.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Response {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Reads a response to the end of its connection.
fn read_response(stream: &mut TcpStream) -> Option<Response> {
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let text = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(&text);
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Response { status: head.split(' ').nth(1)?.parse().ok()?, body: body.to_owned() })
}

/// Sends a request on a connection of its own; none when nobody answers.
fn try_send(to: SocketAddr, method: &str, path: &str, headers: &[String], body: &str) -> Option<Response> {
    let mut stream = TcpStream::connect(to).ok()?;
    let headers = headers.iter().fold(String::new(), |headers, header| headers + header + "\r\n");
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).ok()?;
    read_response(&mut stream)
}

/// Sends a request on a connection of its own.
#[track_caller]
pub fn send(to: SocketAddr, method: &str, path: &str, headers: &[&str], body: &str) -> Response {
    let headers: Vec<_> = headers.iter().map(|header| (*header).to_owned()).collect();
    try_send(to, method, path, &headers, body).expect("an answer")
}

fn try_get(from: SocketAddr, path: &str) -> Option<Response> {
    try_send(from, "GET", path, &[], "")
}

const HOOK: &str = "/v1/customize-access-token";
const BASIC: &str = "Authorization: Basic aG9vazpob29r";
const BEARER: &str = "Authorization: Bearer admin-token";
const JSON: &str = "Content-Type: application/json";

#[test]
fn it_refuses_to_start_without_the_credentials_of_the_hooks() {
    let folder = Folder::new();
    let marked = ("TOLLGATE_ADMIN_TOKEN", "secret-1");
    let url = ("TOLLGATE_DATABASE_URL", "sqlite://secret-4.db?mode=rwc");
    for environment in [
        &[marked, url][..],
        &[marked, url, ("TOLLGATE_HOOK_USERNAME", "secret-2")],
        &[marked, url, ("TOLLGATE_HOOK_PASSWORD", "secret-3")],
        &[marked, url, ("TOLLGATE_HOOK_USERNAME", "secret-2"), ("TOLLGATE_HOOK_PASSWORD", "")],
        &[marked, url, ("TOLLGATE_HOOK_USERNAME", "secret-2:"), ("TOLLGATE_HOOK_PASSWORD", "secret-3")],
    ] {
        for arguments in [&[][..], &["serve"]] {
            let output = output(&folder, arguments, environment);
            let (out, err) = (stdout(&output), stderr(&output));
            assert_eq!((output.status.code(), out.as_str()), (Some(1), ""), "{err}");
            assert!(err.starts_with("tollgate: ") && err.contains("TOLLGATE_HOOK_"), "{err}");
            assert_eq!(err.lines().count(), 1, "one clear line: {err}");
            assert!(!err.contains("secret"), "{err}");
        }
    }
    assert_eq!(folder.files(), [""; 0], "nothing was begun");
}

#[test]
fn the_help_lists_every_setting_that_there_is() {
    let (settings, _) = include_str!("../../src/config.rs").split_once("#[cfg(test)]").expect("tests at its end");
    let (line, credentials) =
        (include_str!("../../src/config/line.rs"), include_str!("../../src/config/credentials.rs"));
    let source = [settings, line, credentials].join("\n");
    let in_quotes = source.split('"').filter(|text| text.starts_with("TOLLGATE_"));
    let read: BTreeSet<_> =
        in_quotes.filter(|name| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')).collect();
    for stable in [
        "TOLLGATE_DATABASE_URL",
        "TOLLGATE_LISTEN",
        "TOLLGATE_API_LISTEN",
        "TOLLGATE_OPS_LISTEN",
        "TOLLGATE_HOOK_AUTH",
        "TOLLGATE_HOOK_USERNAME",
        "TOLLGATE_HOOK_PASSWORD",
        "TOLLGATE_ADMIN_TOKEN",
        "TOLLGATE_UNMANAGED",
        "TOLLGATE_MAX_AGE",
    ] {
        assert!(read.contains(stable), "{stable} is a name that others rely on");
    }
    let folder = Folder::new();
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let help = output(&folder, arguments, &[]);
        assert_eq!(help.status.code(), Some(0));
        let help = stdout(&help);
        for name in &read {
            let shown = ["=", " ", "\n"].iter().any(|end| help.contains(&format!("{name}{end}")));
            assert!(shown, "{arguments:?} does not tell of {name}");
        }
        for default in ["127.0.0.1:8080", "127.0.0.1:9090", "sqlite://tollgate.db?mode=rwc", "60s"] {
            assert!(help.contains(&format!("[default: {default}]")), "{default}");
        }
    }
    for arguments in [
        &["migrate", "--help"][..],
        &["openapi", "--help"],
        &["token", "--help"],
        &["token", "create", "--help"],
        &["import", "--help"],
        &["export", "--help"],
        &["ask", "--help"],
        &["check", "--help"],
        &["backup", "--help"],
        &["health", "--help"],
        &["help"],
        &["-h"],
        &["--version"],
    ] {
        let help = output(&folder, arguments, &[]);
        assert_eq!((help.status.code(), stderr(&help).as_str()), (Some(0), ""), "{arguments:?}");
        assert!(!stdout(&help).is_empty(), "{arguments:?}");
    }
    for arguments in [
        &["nonsense"][..],
        &["--nonsense"],
        &["openapi", "nonsense"],
        &["--listen", "nonsense"],
        &["token"],
        &["token", "create", "--name", "a b"],
        &["ask"],
        &["ask", "--client", "c"],
        &["ask", "--client", "c", "--scope", "a", "--at", "noon"],
    ] {
        assert_eq!(output(&folder, arguments, &CREDENTIALS).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_help_does_not_show_what_is_set() {
    let folder = Folder::new();
    let environment = [
        ("TOLLGATE_ADMIN_TOKEN", "secret-1"),
        ("TOLLGATE_HOOK_PASSWORD", "secret-2"),
        ("TOLLGATE_DATABASE_URL", "postgres://u:secret-3@127.0.0.1/x"),
    ];
    for arguments in [&["--help"][..], &["serve", "--help"], &["migrate", "--help"], &["serve", "--nonsense"]] {
        let output = output(&folder, arguments, &environment);
        assert!(!(stdout(&output) + &stderr(&output)).contains("secret-"), "{arguments:?}");
    }
}

#[test]
fn the_contracts_are_printed_without_a_database() {
    let folder = Folder::new();
    for contract in Contract::ALL {
        let printed = output(&folder, &["openapi", contract.as_str()], &[("TOLLGATE_DATABASE_URL", "nonsense")]);
        assert_eq!((printed.status.code(), stderr(&printed).as_str()), (Some(0), ""));
        let file = format!("{}/openapi/{}.yaml", env!("CARGO_MANIFEST_DIR"), contract.as_str());
        assert!(stdout(&printed) == fs::read_to_string(file).expect("the file"), "{contract:?}");
    }
    assert_eq!(folder.files(), [""; 0]);
}

#[test]
fn a_port_that_is_in_use_ends_it_at_once() {
    let folder = Folder::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let listeners = ["TOLLGATE_LISTEN", "TOLLGATE_API_LISTEN", "TOLLGATE_OPS_LISTEN"];
    for variable in listeners {
        let free: [SocketAddr; 3] = free_addresses();
        let free = free.map(|address| address.to_string());
        let mut environment: Vec<_> = CREDENTIALS.into();
        environment
            .extend(listeners.into_iter().zip(free.iter().map(String::as_str)).filter(|(name, _)| *name != variable));
        environment.push((variable, &taken));
        let output = output(&folder, &[], &environment);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains(&format!("tollgate: {taken} cannot be listened on")), "{message}");
    }
}

only_on! { Postgres:
    async fn a_database_that_breaks_off_at_any_step_of_the_start_is_tried_again(database) {
        let proxy = Proxy::start(&database.url).await;
        let folder = Folder::new();
        let [main, operations] = free_addresses();
        let (main, operations_listen) = (main.to_string(), operations.to_string());
        let environment = [
            &CREDENTIALS[..],
            &[
                ("TOLLGATE_DATABASE_URL", &*proxy.url), ("TOLLGATE_STARTUP_TIMEOUT", "5m"),
                ("TOLLGATE_LISTEN", &*main), ("TOLLGATE_OPS_LISTEN", &*operations_listen),
            ],
        ].concat();
        // Where the feed begins is the last thing that is asked.
        proxy.refuse_feed();
        // The proxy goes on meanwhile.
        tokio::task::block_in_place(|| {
            let mut process = Process::start(&folder.0, &[], &environment);
            until("a second attempt", || {
                let ended = process.child.try_wait().expect("a status");
                assert_eq!(ended, None, "{}", process.stderr());
                (process.stderr().matches("cannot be reached yet").count() > 1).then_some(())
            });
            proxy.resume();
            until("readiness", || try_get(operations, "/readyz").filter(|ready| ready.status == 200));
            process.terminate();
            assert!(process.wait().success(), "{}", process.stderr());
        });
    }
}

on_both! {
    #[expect(clippy::print_stdout, reason = "a measurement, for whoever asks to see it")]
    async fn tables_are_made_by_a_command_of_its_own_when_serving_may_not(database) {
        let folder = Folder::new();
        let environment = [&CREDENTIALS[..], &[("TOLLGATE_DATABASE_URL", &database.url), ("TOLLGATE_MIGRATE", "false")]].concat();
        let refused = output(&folder, &["serve"], &environment);
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains("run `tollgate migrate`"), "{}", stderr(&refused));
        for _ in 0..2 {
            let migrated = output(&folder, &["migrate"], &environment);
            assert_eq!((migrated.status.code(), stdout(&migrated).as_str()), (Some(0), ""), "{}", stderr(&migrated));
        }
        let started = Instant::now();
        let mut server = Server::start(&folder, &["serve"], &environment);
        let took = started.elapsed();
        println!("ready on {:?} in {took:?}", database.backend);
        assert!(took < Duration::from_secs(15), "{took:?}");
        let body = r#"{"client":{"id":"c"},"scopes":["a"]}"#;
        let answer = send(server.main, "POST", HOOK, &[BASIC, JSON], body);
        assert_eq!((answer.status, answer.json()), (200, json!({"removeScopes": [], "additionalClaims": {}})));
        server.stop();
    }

    async fn a_request_under_way_is_answered_when_it_is_told_to_stop(database) {
        let folder = Folder::new();
        // The body has ten seconds to come, of which the delay takes none.
        let environment =
            [&CREDENTIALS[..], &[("TOLLGATE_DATABASE_URL", &*database.url), ("TOLLGATE_DRAIN_DELAY", "0s")]].concat();
        let mut server = Server::start(&folder, &[], &environment);
        let body = r#"{"client":{"id":"c"},"scopes":["a"]}"#;
        let (first, rest) = body.split_at(body.len() / 2);
        let mut slow = TcpStream::connect(server.main).expect("connected");
        let length = body.len();
        let head = format!(
            "POST {HOOK} HTTP/1.1\r\nHost: x\r\n{BASIC}\r\n{JSON}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        );
        slow.write_all(head.as_bytes()).expect("sent");
        let mut go_on = [0; 25];
        slow.set_read_timeout(Some(PATIENCE)).expect("a limit");
        slow.read_exact(&mut go_on).expect("the body is asked for");
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        slow.write_all(first.as_bytes()).expect("sent");
        let idle = TcpStream::connect(server.main).expect("connected");
        server.process.terminate();
        until("no new connections", || TcpStream::connect(server.main).err());
        let ready = try_get(server.operations, "/readyz").expect("operators can still look");
        assert_eq!((ready.status, ready.json()["code"].clone()), (503, json!("stopping")));
        assert_eq!(try_get(server.operations, "/livez").expect("operators can still look").status, 200);
        assert_eq!(server.process.child.try_wait().expect("a status"), None, "it waits for the request");
        slow.write_all(rest.as_bytes()).expect("sent");
        let answer = read_response(&mut slow).expect("an answer, then the end of the connection");
        assert_eq!((answer.status, answer.json()["removeScopes"].clone()), (200, json!([])));
        let status = server.process.wait();
        assert_eq!(status.code(), Some(0), "{}", server.process.stderr());
        drop(idle);
    }

    async fn the_log_tells_what_was_done_and_nothing_that_is_personal_or_secret(database) {
        for filter in ["info", "trace", "trace,sqlx=trace,sea_orm=trace,sqlx::query=trace,sea_orm::database=trace,sqlx::pool=trace"] {
            let folder = Folder::new();
            let environment = [
                ("TOLLGATE_DATABASE_URL", &*database.url), ("TOLLGATE_LOG", filter), ("TOLLGATE_LOG_FORMAT", "json"),
                ("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "secret-password"),
                ("TOLLGATE_ADMIN_TOKEN", "secret-token"),
            ];
            let mut server = Server::start(&folder, &[], &environment);
            ask_with_markers(server.main);
            server.stop();
            let log = server.process.stderr();
            check_log(&log, filter);
        }
    }

    async fn tokens_are_made_listed_and_revoked_at_the_command_line_and_a_service_that_runs_knows(database) {
        let folder = Folder::new();
        let url = [("TOLLGATE_DATABASE_URL", &*database.url)];
        let refused = output(&folder, &["token", "list"], &url);
        assert_eq!((refused.status.code(), stdout(&refused).as_str()), (Some(1), ""));
        assert!(stderr(&refused).contains("run `tollgate migrate`"), "{}", stderr(&refused));
        // Without any other credential: no bootstrap token is set.
        let environment = [&CREDENTIALS[..2], &url, &[("TOLLGATE_LOG", "trace")]].concat();
        let mut server = Server::start(&folder, &[], &environment);
        let status = |secret: &str| send(server.main, "GET", "/v1/scopes", &[&format!("Authorization: Bearer {secret}")], "").status;
        assert_eq!(status("tollgate_x"), 401);
        let create = |name: &str, end: &str| output(&folder, &["token", "create", "--name", name, "--role", "admin", "--expires", end], &environment);
        let created = create("ops", "90d");
        let (secret, said) = (stdout(&created), stderr(&created));
        assert_eq!(created.status.code(), Some(0), "{said}");
        let secret = secret.strip_suffix('\n').expect("a line");
        assert!(secret.starts_with("tollgate_") && secret.len() == 52, "{secret}");
        assert!(said.contains("Token `ops`") && !said.contains(&secret["tollgate_".len()..]), "{said}");
        until("it is known to the service", || (status(secret) == 200).then_some(()));

        let endless = create("endless", "never");
        assert_eq!(endless.status.code(), Some(0), "{}", stderr(&endless));
        let timed = create("timed", "2099-01-01T00:00:00+01:00");
        assert_eq!(timed.status.code(), Some(0), "{}", stderr(&timed));
        let listed = stdout(&output(&folder, &["token", "list"], &environment));
        let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(lines[0], ["NAME", "ROLE", "STATUS", "CREATED", "BY", "EXPIRES", "LAST USED"]);
        let (names, ends): (Vec<_>, Vec<_>) = lines[1..].iter().map(|line| (line[0], line[5])).unzip();
        assert_eq!(names, ["ops", "endless", "timed"]);
        assert_eq!(ends[1..], ["never", "2098-12-31T23:00:00Z"]);
        assert_eq!(lines[1][1..3], ["admin", "active"]);
        assert_eq!(lines[1][4], "command line");

        for (arguments, expected) in [
            (&["token", "create", "--name", "ops", "--role", "reader", "--expires", "1d"][..], "a token of that name exists"),
            (&["token", "create", "--name", "late", "--role", "reader", "--expires", "2020-01-01T00:00:00Z"], "ends in the future"),
            (&["token", "create", "--name", "late", "--role", "reader", "--expires", "0s"], "ends in the future"),
            (&["token", "create", "--name", "late", "--role", "reader", "--expires", "3000000d"], "after the year 9999"),
            (&["token", "revoke", "absent"], "there is no token of that name"),
        ] {
            let refused = output(&folder, arguments, &url);
            assert_eq!((refused.status.code(), stdout(&refused).as_str()), (Some(1), ""), "{arguments:?}");
            assert!(stderr(&refused).contains("tollgate: ") && stderr(&refused).contains(expected), "{}", stderr(&refused));
        }
        let revoked = output(&folder, &["token", "revoke", "ops"], &environment);
        assert_eq!((revoked.status.code(), stdout(&revoked).as_str()), (Some(0), ""), "{}", stderr(&revoked));
        until("the service knows that it is revoked", || (status(secret) == 401).then_some(()));
        let again = output(&folder, &["token", "revoke", "ops"], &url);
        assert!(stderr(&again).contains("already revoked"), "{}", stderr(&again));
        let listed = stdout(&output(&folder, &["token", "list"], &environment));
        assert!(listed.lines().any(|line| line.starts_with("ops\tadmin\trevoked\t")), "{listed}");
        server.stop();
        let log = server.process.stderr();
        assert!(log.contains("list-scopes") && !log.contains(&secret["tollgate_".len()..]), "{log}");
        // When it was last used was written at the end.
        let listed = stdout(&output(&folder, &["token", "list"], &environment));
        assert!(listed.lines().any(|line| line.starts_with("ops\t") && !line.ends_with("\tnever")), "{listed}");
    }

    async fn a_file_is_imported_and_exported_at_the_command_line_and_a_service_that_runs_knows(database) {
        let folder = Folder::new();
        let environment = [&CREDENTIALS[..], &[("TOLLGATE_DATABASE_URL", &*database.url)]].concat();
        let mut server = Server::start(&folder, &[], &environment);
        let created = send(server.main, "POST", "/v1/scopes", &[BEARER, "Content-Type: application/json"], r#"{"name":"email"}"#);
        assert_eq!(created.status, 201);
        let removed = || {
            let request = r#"{"user":{"id":"u1500"},"client":{"id":"c"},"scopes":["email"]}"#;
            let answer = send(server.main, "POST", HOOK, &["Authorization: Basic aG9vazpob29r", "Content-Type: application/json"], request);
            answer.json()["removeScopes"] == serde_json::json!(["email"])
        };
        assert!(removed());
        let line = |id: usize, scope: &str| format!(
            r#"{{"source":"s","externalId":"{id}","subject":{{"type":"user","id":"u{id}"}},"scopes":["{scope}"],"validUntil":null}}"#
        );
        let mut lines: Vec<_> = (0..2_000).map(|id| line(id, "email")).collect();
        let path = folder.0.join("in.ndjson");
        let file = path.to_str().expect("a path");
        fs::write(&path, lines.join("\n")).expect("written");
        let tried = output(&folder, &["import", file, "--dry-run"], &environment);
        assert_eq!((tried.status.code(), stdout(&tried).as_str()), (Some(0), ""), "{}", stderr(&tried));
        assert!(stderr(&tried).contains("2000 lines: 2000 created") && stderr(&tried).contains("dry run"), "{}", stderr(&tried));
        assert!(removed());
        let imported = output(&folder, &["import", file], &environment);
        assert_eq!(imported.status.code(), Some(0), "{}", stderr(&imported));
        assert_eq!(stderr(&imported).lines().last(), Some("2000 lines: 2000 created, 0 changed, 0 unchanged, 0 outdated, 0 refused."));
        until("the service knows", || (!removed()).then_some(()));
        // Again, with a line that is refused: it is told, and the code says so.
        lines.push(line(2_000, "phone"));
        fs::write(&path, lines.join("\n")).expect("written");
        let again = output(&folder, &["import", file], &environment);
        assert_eq!(again.status.code(), Some(1));
        let said = stderr(&again);
        assert!(said.contains("line 2001: unknown_scopes: #/scopes: `phone` is not in the catalogue"), "{said}");
        assert!(said.contains("2001 lines: 0 created, 0 changed, 2000 unchanged, 0 outdated, 1 refused."), "{said}");
        let exported = output(&folder, &["export", "--format", "csv", "--source", "s"], &environment);
        assert_eq!((exported.status.code(), stdout(&exported).lines().count()), (Some(0), 2_001), "{}", stderr(&exported));
        let csv = folder.0.join("out.CSV");
        fs::write(&csv, stdout(&exported)).expect("written");
        let back = output(&folder, &["import", csv.to_str().expect("a path")], &environment);
        assert!(stderr(&back).contains("2000 lines: 0 created, 0 changed, 2000 unchanged"), "{}", stderr(&back));
        for (arguments, words) in [
            (&["import", "absent.ndjson"][..], "absent.ndjson cannot be opened"), (&["import", file, "--format", "csv"], "invalid"),
        ] {
            let refused = output(&folder, arguments, &environment);
            assert_eq!(refused.status.code(), Some(1));
            assert!(stderr(&refused).contains(words) || words == "invalid" && stderr(&refused).contains("first line"), "{}", stderr(&refused));
        }
        server.stop();
    }

    async fn a_fault_is_told_to_the_log_with_its_cause_and_to_the_caller_without(database) {
        let folder = Folder::new();
        let environment = [
            &CREDENTIALS[..],
            &[("TOLLGATE_DATABASE_URL", &*database.url), ("TOLLGATE_LOG_FORMAT", "json")],
        ]
        .concat();
        let mut server = Server::start(&folder, &[], &environment);
        let opened = database.connect().await;
        let transaction = opened.begin().await.expect("begun");
        transaction.execute_unprepared("ALTER TABLE catalogue_scope RENAME TO elsewhere").await.expect("renamed");
        transaction.commit().await.expect("committed");
        opened.close().await;
        let traced = "X-Request-Id: request-fault";
        let answer = send(server.main, "GET", "/v1/scopes", &[BEARER, traced], "");
        assert_eq!((answer.status, answer.json()["code"].clone()), (500, json!("internal")));
        assert!(!answer.body.contains("catalogue_scope"), "{}", answer.body);
        server.stop();
        let log = server.process.stderr();
        let line = log.lines().find(|line| line.contains("request-fault")).unwrap_or_else(|| panic!("{log}"));
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!((&line["level"], &line["operation"]), (&json!("ERROR"), &json!("list-scopes")), "{line}");
        assert!(line["error"].as_str().is_some_and(|error| error.contains("catalogue_scope")), "{line}");
    }

    async fn the_address_of_a_database_never_shows_its_password(database) {
        let folder = Folder::new();
        let [closed] = free_addresses();
        let filter = "trace,sqlx=trace,sqlx::postgres=trace,sea_orm=trace,tollgate=trace";
        let file = folder.0.join("secret-word").join("absent.db");
        let urls = match database.backend {
            Backend::Postgres => vec![
                format!("postgres://u:secret-word@{closed}/x"),
                format!("postgres://u:secret-word@{closed}:nonsense/x"),
                database.url.replace("://postgres@", "://absent:secret-word@"),
                "mysql://u:secret-word@127.0.0.1/x".to_owned(),
                "u:secret-word@127.0.0.1/x".to_owned(),
            ],
            Backend::Sqlite => vec![format!("sqlite://{}?key=secret-word", file.display()), "sqlite://secret-word?mode=nonsense".to_owned()],
        };
        for url in urls {
            let environment = [&CREDENTIALS[..], &[("TOLLGATE_DATABASE_URL", &url), ("TOLLGATE_LOG", filter)]].concat();
            let environment = [&environment[..], &[("TOLLGATE_STARTUP_TIMEOUT", "0s")]].concat();
            for command in ["serve", "migrate"] {
                let output = output(&folder, &[command], &environment);
                let said = stdout(&output) + &stderr(&output);
                assert_eq!(output.status.code(), Some(1), "{said}");
                assert!(said.contains("tollgate: ") && !said.contains("secret-word"), "{said}");
            }
        }
    }
}

/// Asks for many things, each with a marker in a place that no log line may repeat.
fn ask_with_markers(main: SocketAddr) {
    let basic = "Authorization: Basic aG9vazpzZWNyZXQtcGFzc3dvcmQ=";
    let bearer = "Authorization: Bearer secret-token";
    let traced = |id: &'static str| match id {
        "hook" => "X-Request-Id: request-hook",
        "create" => "X-Request-Id: request-create",
        _ => "X-Request-Id: request-other",
    };
    let check = |answer: Response, status: u16| assert_eq!(answer.status, status, "{}", answer.body);
    let created =
        send(main, "POST", "/v1/scopes", &[bearer, JSON], r#"{"name":"email","description":"personal-text"}"#);
    assert!([201, 409].contains(&created.status), "{}", created.body);
    let body = r#"{"subject":{"type":"user","id":"personal-1"},"scopes":["email"],"validUntil":null}"#;
    check(send(main, "POST", "/v1/subscriptions", &[bearer, JSON, traced("create")], body), 201);
    let body = r#"{"user":{"id":"personal-1"},"client":{"id":"personal-2"},"scopes":["email"],"userClaims":{"name":"personal-3"}}"#;
    check(send(main, "POST", HOOK, &[basic, JSON, traced("hook")], body), 200);
    check(send(main, "POST", HOOK, &[basic, JSON], r#"{"user":{"id":"personal-1"},"client":"personal-2"}"#), 400);
    check(send(main, "POST", HOOK, &[basic, JSON], "personal-4"), 400);
    check(send(main, "POST", HOOK, &["Authorization: Basic secret-basic", JSON], body), 401);
    check(send(main, "GET", "/v1/scopes", &["Authorization: Bearer secret-guess"], ""), 401);
    let list = "/v1/subscriptions?subjectType=user&subjectId=personal-1";
    check(send(main, "GET", list, &[bearer, traced("other")], ""), 200);
    check(send(main, "GET", "/v1/subscriptions?status=personal-5", &[bearer], ""), 400);
    check(send(main, "GET", "/v1/entitlements?subjectType=user&subjectId=personal-1", &[bearer], ""), 200);
    check(send(main, "GET", "/personal-6?personal-7=personal-8", &["Cookie: personal-9"], ""), 404);
    check(send(main, "GET", "/v1/subscriptions/personal-10", &[bearer, "X-Forwarded-For: personal-11"], ""), 404);
}

fn check_log(log: &str, filter: &str) {
    let (mut requests, mut refused) = (BTreeSet::new(), 0);
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for member in ["timestamp", "level", "target"] {
            assert!(line[member].is_string(), "{line}");
        }
        let id = line["request_id"].as_str().unwrap_or_default();
        if line["message"] == "credentials were refused" {
            for member in ["surface", "method", "reason", "source"] {
                assert!(line[member].is_string(), "{line}");
            }
            refused += 1;
        } else if !id.is_empty() {
            assert!(line["operation"].is_string() && line["status"].is_u64() && line["duration_us"].is_u64(), "{line}");
            requests.insert(id.to_owned());
        }
    }
    assert_eq!(refused, 2, "{log}");
    assert!(requests.contains("request-create") && requests.contains("request-other"), "{requests:?}");
    // A hook that goes well is counted, and logged on demand only.
    assert_eq!(requests.contains("request-hook"), filter.starts_with("trace"), "{requests:?}");
    assert!(log.contains("\"message\":\"stopped\""), "{log}");
    // `secret-password` and `hook:secret-password`, as they travel, and in hexadecimal, as a text in binary would look.
    for marker in ["personal-", "secret-", "c2VjcmV0", "zZWNyZXQ", "706572736f6e616c", "subjectId", "203.0.113"] {
        let line = log.lines().find(|line| line.contains(marker));
        assert!(line.is_none(), "{filter}: {marker} in {line:?}");
    }
}

#[test]
fn the_demo_does_what_it_says_and_leaves_nothing_behind() {
    let folder = Folder::new();
    let mut server = Server::start(&folder, &["serve", "--demo"], &[("TOLLGATE_DATABASE_URL", "nonsense")]);
    let text = until("what to try", || Some(server.process.stdout()).filter(|text| text.contains("Ctrl-C")));
    let commands = commands(&text);
    let [hook, view, cancel] = &commands[..] else { panic!("not three commands in\n{text}") };
    let items = |answer: &str| -> Vec<(String, bool, String)> {
        let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
        let item = |item: &Value| {
            let text = |name: &str| item[name].as_str().expect("a text").to_owned();
            (text("scope"), item["held"].as_bool().expect("a flag"), text("reason"))
        };
        answer["items"].as_array().expect("items").iter().map(item).collect()
    };
    let standing = |scope: &str, held, reason: &str| (scope.to_owned(), held, reason.to_owned());
    for answer in run(hook) {
        assert_eq!(answer, r#"{"removeScopes":["email"],"additionalClaims":{}}"#);
    }
    for answer in run(view) {
        let items = items(&answer);
        assert!(items.contains(&standing("email", false, "expired")), "{items:?}");
        assert!(items.contains(&standing("reports", true, "active")), "{items:?}");
    }
    let canceled: Value = serde_json::from_str(&run(cancel)[0]).expect("a subscription");
    assert_eq!((&canceled["status"], &canceled["scopes"]), (&json!("canceled"), &json!(["reports"])));
    for answer in run(view) {
        assert!(items(&answer).contains(&standing("reports", false, "canceled")), "{answer}");
    }
    for path in ["/docs", "/docs/hooks"] {
        assert!(text.contains(&format!("http://{}/docs", server.main)));
        assert_eq!(try_get(server.main, path).expect("a page").status, 200);
    }
    assert!(text.contains(&format!("http://{}/metrics", server.operations)));
    assert!(try_get(server.operations, "/metrics").expect("metrics").body.contains("tollgate_scopes_removed_total"));
    let files = folder.files();
    assert!(files.len() == 1 && files[0].starts_with("tollgate-demo-"), "{files:?}");
    server.stop();
    assert_eq!(folder.files(), [""; 0], "the temporary database is gone");
}

/// The commands that a text tells its reader to try, joined where a line goes on in the next.
fn commands(text: &str) -> Vec<String> {
    let text = text.replace("\\\n", " ");
    text.lines().map(str::trim).filter(|line| line.starts_with("curl ")).map(str::to_owned).collect()
}

/// Runs a command as it stands: what `curl` answers, where there is one, and what a stand-in does that sends what the
/// shell makes of the command's words. A command that changes something is run once only.
fn run(command: &str) -> Vec<String> {
    let has_curl = Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success());
    let mut answers = Vec::new();
    if has_curl {
        let output = Command::new("sh").args(["-c", command]).env("no_proxy", "*").output().expect("a shell");
        assert!(output.status.success(), "{command}: {output:?}");
        answers.push(stdout(&output));
    }
    if !has_curl || !command.contains("-X POST") {
        answers.push(run_by_hand(command));
    }
    answers
}

/// Sends what a `curl` command asks for.
fn run_by_hand(command: &str) -> String {
    let script = format!("curl() {{ printf '%s\\n' \"$@\"; }}\n{command}");
    let words = stdout(&Command::new("sh").args(["-c", &script]).output().expect("a shell"));
    let (mut method, mut headers, mut body, mut url) = (None, Vec::new(), None, "");
    let mut words = words.lines();
    while let Some(word) = words.next() {
        let mut next = || words.next().expect("a value");
        match word {
            "-s" => {}
            "-X" => method = Some(next()),
            "-H" => headers.push(next().to_owned()),
            "-d" => body = Some(next()),
            "-u" => {
                assert_eq!(next(), "hook:hook");
                headers.push(BASIC.to_owned());
            }
            word => {
                assert!(url.is_empty() && !word.starts_with('-'), "{word}");
                url = word;
            }
        }
    }
    let (address, path) = url.strip_prefix("http://").and_then(|url| url.split_once('/')).expect("a URL");
    let method = method.unwrap_or(if body.is_some() { "POST" } else { "GET" });
    let address = address.parse().expect("an address");
    let answer = try_send(address, method, &format!("/{path}"), &headers, body.unwrap_or_default()).expect("an answer");
    assert_eq!(answer.status, 200, "{command}: {}", answer.body);
    answer.body
}

#[test]
fn a_listener_of_its_own_keeps_the_management_api_from_those_who_reach_the_hooks() {
    let folder = Folder::new();
    let [api] = free_addresses();
    let api_listen = api.to_string();
    let environment = [&CREDENTIALS[..], &[("TOLLGATE_API_LISTEN", &*api_listen)]].concat();
    let mut server = Server::start(&folder, &[], &environment);
    let body = r#"{"client":{"id":"c"},"scopes":[]}"#;
    for (address, hook, scopes, live) in
        [(server.main, 200, 404, 404), (api, 404, 200, 404), (server.operations, 404, 404, 200)]
    {
        assert_eq!(send(address, "POST", HOOK, &[BASIC, JSON], body).status, hook);
        assert_eq!(send(address, "GET", "/v1/scopes", &[BEARER], "").status, scopes);
        assert_eq!(send(address, "GET", "/docs", &[], "").status, scopes);
        assert_eq!(send(address, "GET", "/livez", &[], "").status, live);
    }
    server.stop();
    assert!(folder.files().contains(&"tollgate.db".to_owned()), "the database that is meant when none is named");
}

/// What `tollgate health` says and how it ends, when the service serves operators at this address.
fn health(folder: &Folder, operations: SocketAddr) -> (Option<i32>, String) {
    let address = operations.to_string();
    let output = output(folder, &["health"], &[("TOLLGATE_OPS_LISTEN", &address)]);
    (output.status.code(), stdout(&output) + &stderr(&output))
}

#[test]
fn health_tells_a_service_that_is_ready_from_one_that_is_not() {
    let folder = Folder::new();
    let [nobody] = free_addresses();
    let (code, said) = health(&folder, nobody);
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with(&format!("tollgate: {nobody} cannot be asked")), "{said}");

    let environment = [&CREDENTIALS[..], &[("TOLLGATE_DRAIN_DELAY", "10s")]].concat();
    let mut server = Server::start(&folder, &[], &environment);
    let everywhere = SocketAddr::new([0, 0, 0, 0].into(), server.operations.port());
    for address in [server.operations, everywhere] {
        assert_eq!(health(&folder, address), (Some(0), "ready\n".to_owned()));
    }
    // Neither hooks nor the management API tell whether it is ready.
    let (code, said) = health(&folder, server.main);
    assert!(code == Some(1) && said.starts_with("tollgate: not ready: 404"), "{said}");
    // Told to stop it goes on serving for a while, and is not ready.
    server.process.terminate();
    let said = until("the end of readiness", || {
        let (code, said) = health(&folder, server.operations);
        (code == Some(1)).then_some(said)
    });
    assert!(said.starts_with("tollgate: not ready: 503"), "{said}");
    server.process.terminate();
    assert!(server.process.wait().success(), "{}", server.process.stderr());
}

#[test]
fn a_supervisor_hears_when_it_serves_and_when_it_stops() {
    let folder = Folder::new();
    let path = folder.0.join("notify").display().to_string();
    let abstract_name = format!("@{path}");
    let listening = [
        UnixDatagram::bind(&path).expect("a socket"),
        UnixDatagram::bind_addr(&UnixAddress::from_abstract_name(&path).expect("a name")).expect("a socket"),
    ];
    for (name, socket) in [&path, &abstract_name].into_iter().zip(listening) {
        socket.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let heard = || {
            let mut message = [0; 64];
            let length = socket.recv(&mut message).expect("a message");
            String::from_utf8_lossy(&message[..length]).into_owned()
        };
        let [main, operations] = free_addresses();
        let (listen, ops_listen) = (main.to_string(), operations.to_string());
        let told = [("NOTIFY_SOCKET", &**name), ("TOLLGATE_LISTEN", &*listen), ("TOLLGATE_OPS_LISTEN", &*ops_listen)];
        let environment = [&CREDENTIALS[..], &told, &[("TOLLGATE_DRAIN_DELAY", "0s")]].concat();
        let mut process = Process::start(&folder.0, &["serve"], &environment);
        assert_eq!(heard(), "READY=1");
        assert_eq!(try_get(operations, "/livez").expect("whoever is told can ask at once").status, 200);
        process.terminate();
        assert_eq!(heard(), "STOPPING=1");
        assert!(process.wait().success(), "{}", process.stderr());
    }
    let absent = [
        ("NOTIFY_SOCKET", "no/such/socket"),
        ("TOLLGATE_LISTEN", "127.0.0.1:0"),
        ("TOLLGATE_OPS_LISTEN", "127.0.0.1:0"),
    ];
    let refused = output(&folder, &["serve"], &[&CREDENTIALS[..], &absent].concat());
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("the supervisor cannot be told"), "{}", stderr(&refused));
}

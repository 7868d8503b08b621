//! TLS: who is let in, certificates that change under way, slow handshakes, the end; and the headers for browsers.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tollgate::{
    http::{
        router::Surface,
        tls::{Files, NamedFile, Tls},
    },
    service,
};

use crate::support::{
    self, ACCESS_TOKEN, ADMIN_CREDENTIALS, Answer, App, HOOK_CREDENTIALS, JSON, Options, eventually, only_on,
};

/// A body that a hook answers with 200.
const HOOK_BODY: &str = r#"{"client":{"id":"c"},"scopes":["a"]}"#;
/// How long anything may take before a test gives it up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Both versions that are spoken.
const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
/// The older one.
const OLDER: &[&SupportedProtocolVersion] = &[&TLS12];
/// The newer one.
const NEWER: &[&SupportedProtocolVersion] = &[&TLS13];
/// The beginning of a handshake, and not its end: a record that announces more than comes.
const HALF_A_HELLO: &[u8] = &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed"))
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose, last_year: i32) -> Identity {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(last_year, 1, 1));
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn server(&self, last_year: i32) -> Identity {
        self.sign(ExtendedKeyUsagePurpose::ServerAuth, last_year)
    }

    fn client(&self, last_year: i32) -> Identity {
        self.sign(ExtendedKeyUsagePurpose::ClientAuth, last_year)
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client that trusts this authority.
    fn trusting(&self) -> Caller {
        Caller { roots: self.pem(), versions: BOTH, protocols: &[], identity: None }
    }
}

impl Identity {
    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("a certificate")
    }
}

/// A folder of one test, with the files of TLS.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tollgate-tls-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("a folder");
        Self(folder)
    }

    /// A folder with the files of an identity.
    fn of(identity: &Identity) -> Self {
        let folder = Self::new();
        folder.put(identity);
        folder
    }

    fn put(&self, identity: &Identity) {
        self.write("tls.crt", &identity.certificate);
        self.write("tls.key", &identity.key);
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        // At once, or a look in between would find half of it.
        let (path, new) = (self.0.join(name), self.0.join("new"));
        fs::write(&new, content).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("permitted");
        fs::rename(new, &path).expect("in its place");
        path
    }

    fn files(&self) -> Files {
        files(&self.0.join("tls.crt"), &self.0.join("tls.key"))
    }

    /// Options for a service over TLS with these files, which are looked at often.
    fn options(&self) -> Options {
        Options { tls: Some(self.files()), reload_interval: ms(20), ..Options::default() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left in the folder for temporary files does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files(certificate: &Path, key: &Path) -> Files {
    let named = |setting, path: &Path| NamedFile { setting, path: path.to_owned() };
    Files {
        certificate: named("TOLLGATE_TLS_CERT_FILE", certificate),
        key: named("TOLLGATE_TLS_KEY_FILE", key),
        hook_clients: None,
        api_clients: None,
    }
}

/// How a client connects.
#[derive(Clone)]
struct Caller {
    roots: String,
    versions: &'static [&'static SupportedProtocolVersion],
    protocols: &'static [&'static str],
    identity: Option<Identity>,
}

impl Caller {
    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.roots.as_bytes()).expect("a certificate")).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(self.versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            Some(identity) => {
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).expect("a key");
                builder.with_client_auth_cert(vec![identity.der()], key).expect("an identity")
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// A connection over TLS, unless the server is not trusted or does not want it.
    async fn open(&self, address: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await.expect("connected");
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        let connector = TlsConnector::from(Arc::new(self.config()));
        timeout(PATIENCE, connector.connect(name, stream)).await.expect("in time").ok()
    }

    /// A kept connection.
    async fn connect(&self, address: SocketAddr) -> Option<Peer> {
        let stream = self.open(address).await?;
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates()?.first()?.clone().into_owned();
        let protocol = session.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).expect("a name"));
        let stream = TokioIo::new(stream);
        let sender = if protocol.as_deref() == Some("h2") {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.ok()?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await.ok()?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        };
        Some(Peer { sender, certificate, protocol })
    }

    /// Asks a hook over a connection of its own; none when that is not let in.
    async fn ask_hook(&self, address: SocketAddr) -> Option<Answer> {
        self.connect(address).await?.ask_hook().await
    }

    /// The certificate that a new connection is shown.
    async fn shown(&self, address: SocketAddr) -> Option<CertificateDer<'static>> {
        Some(self.connect(address).await?.certificate)
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A connection that is kept.
struct Peer {
    sender: Sender,
    certificate: CertificateDer<'static>,
    protocol: Option<String>,
}

impl Peer {
    /// An answer, unless the connection ends before it.
    async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Option<Answer> {
        let uri = match self.sender {
            Sender::Http1(_) => path.to_owned(),
            Sender::Http2(_) => format!("https://127.0.0.1{path}"),
        };
        let mut request = Request::builder().method(method).uri(uri).header("host", "127.0.0.1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
        let exchange = async {
            let response: Response<Incoming> = match &mut self.sender {
                Sender::Http1(sender) => sender.send_request(request).await.ok()?,
                Sender::Http2(sender) => sender.send_request(request).await.ok()?,
            };
            let (parts, body) = response.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some(Answer { status: parts.status, headers: parts.headers, body })
        };
        timeout(PATIENCE, exchange).await.expect("an answer or the end")
    }

    async fn ask_hook(&mut self) -> Option<Answer> {
        self.ask("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON], HOOK_BODY).await
    }
}

/// Waits until the other side ends a connection, and gives what it sent before.
async fn ended(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    // A reset is an end, too.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut received)).await.expect("the end of the connection");
    received
}

async fn reloads(app: &App, outcome: &str) -> f64 {
    app.metric(&format!("tollgate_tls_reloads_total{{outcome=\"{outcome}\"}}")).await
}

/// How a metric gives the beginning of a year.
fn year(year: i32) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "seconds of this age are exact")]
    let seconds = support::instant(&format!("{year}-01-01T00:00:00Z")).timestamp() as f64;
    seconds
}

only_on! { Sqlite:
    async fn a_client_that_trusts_the_authority_is_served_in_each_version_and_protocol(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let app = database.app_with(folder.options()).await;
        for (versions, protocols, expected) in [
            (OLDER, &["h2", "http/1.1"] as &'static [_], Some("h2")),
            (NEWER, &["http/1.1", "h2"], Some("h2")),
            (OLDER, &["http/1.1"], Some("http/1.1")),
            (NEWER, &["http/1.1"], Some("http/1.1")),
            (BOTH, &[], None),
        ] {
            let caller = Caller { versions, protocols, ..authority.trusting() };
            let mut peer = caller.connect(app.address).await.expect("a connection");
            assert_eq!(peer.protocol.as_deref(), expected);
            for _ in 0..2 {
                peer.ask_hook().await.expect("an answer").expect(200);
            }
        }
        let unknown = Caller { protocols: &["http/0.9"], ..authority.trusting() };
        assert!(unknown.open(app.address).await.is_none(), "there is nothing to speak");
        assert!(Authority::new().trusting().open(app.address).await.is_none(), "another authority vouches for nothing");
        assert!((app.metric("tollgate_tls_certificate_expiry_seconds").await - year(2200)).abs() < 0.5);
    }

    async fn who_asks_at_the_command_line_believes_the_authority_that_is_named(database) {
        let (authority, other) = (Authority::new(), Authority::new());
        let folder = Folder::of(&authority.server(2200));
        let app = database.app_with(folder.options()).await;
        let (named, strange) = (folder.write("ca.crt", authority.pem()), folder.write("other.crt", other.pem()));
        let url = format!("https://{}", app.address);
        let ask = |authorities: &Path| {
            let question = ["ask", "--client", "c", "--scope", "openid", "--url", &url, "--ca-file"];
            let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
            command.env_clear().args(question).arg(authorities);
            command.envs([("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "hook")]);
            tokio::task::block_in_place(|| command.output().expect("its end"))
        };
        let answered = ask(&named);
        assert!(answered.status.success(), "{}", String::from_utf8_lossy(&answered.stderr));
        assert!(String::from_utf8_lossy(&answered.stdout).contains("kept     openid"));
        for (file, expected) in [(strange, "invalid peer certificate"), (folder.0.join("absent.crt"), "cannot be read")] {
            let refused = ask(&file);
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(refused.status.code() == Some(1) && said.contains(expected), "{said}");
            assert!(refused.stdout.is_empty());
        }
    }

    async fn without_tls_there_is_no_expiry(database) {
        let app = database.app().await;
        let metrics = app.send_to(app.operations, "GET", "/metrics", &[], "").await.text();
        assert!(!metrics.contains("tollgate_tls_certificate_expiry_seconds "));
    }

    async fn a_renewed_certificate_is_shown_to_new_connections_while_old_ones_go_on(database) {
        let authority = Authority::new();
        let (first, second) = (authority.server(2100), authority.server(2200));
        // As Kubernetes does: the folder is a symbolic link, which is swapped.
        let folder = Folder::new();
        for (name, identity) in [("first", &first), ("second", &second)] {
            fs::create_dir(folder.0.join(name)).expect("a folder");
            folder.write(&format!("{name}/tls.crt"), &identity.certificate);
            folder.write(&format!("{name}/tls.key"), &identity.key);
        }
        let data = folder.0.join("data");
        symlink("first", &data).expect("linked");
        let tls = Some(files(&data.join("tls.crt"), &data.join("tls.key")));
        let app = database.app_with(Options { tls, ..folder.options() }).await;
        let caller = authority.trusting();
        let mut old = caller.connect(app.address).await.expect("a connection");
        assert_eq!(old.certificate, first.der());
        symlink("second", folder.0.join("new")).expect("linked");
        fs::rename(folder.0.join("new"), &data).expect("swapped");
        eventually!("the new certificate", PATIENCE, caller.shown(app.address).await == Some(second.der()));
        old.ask_hook().await.expect("the old connection goes on").expect(200);
        eventually!("the reload is counted", PATIENCE, reloads(&app, "loaded").await > 0.5);
        assert!((reloads(&app, "loaded").await - 1.0).abs() < 0.5 && reloads(&app, "refused").await < 0.5);
        assert!((app.metric("tollgate_tls_certificate_expiry_seconds").await - year(2200)).abs() < 0.5);
    }

    async fn what_does_not_load_leaves_the_last_good_certificate_in_use_and_is_counted_once(database) {
        let authority = Authority::new();
        let (first, second) = (authority.server(2100), authority.server(2200));
        let folder = Folder::of(&first);
        let app = database.app_with(folder.options()).await;
        let caller = authority.trusting();
        let half = &second.certificate[..second.certificate.len() / 2];
        let certificate = folder.0.join("tls.crt");
        for (what, expected) in ["half-written", "another's", "empty", "gone", "absurdly large"].into_iter().zip(1..) {
            match what {
                "half-written" => drop(folder.write("tls.crt", half)),
                "another's" => drop(folder.write("tls.crt", &second.certificate)),
                "empty" => drop(folder.write("tls.crt", "")),
                "gone" => fs::remove_file(&certificate).expect("removed"),
                _ => drop(folder.write("tls.crt", first.certificate.repeat(5_000))),
            }
            eventually!(what, PATIENCE, reloads(&app, "refused").await > f64::from(expected) - 0.5);
            // It is looked at many times more.
            sleep(ms(200)).await;
            let counted = reloads(&app, "refused").await;
            assert!((counted - f64::from(expected)).abs() < 0.5, "{what}: {counted}");
            assert_eq!(caller.shown(app.address).await, Some(first.der()), "{what}");
        }
        folder.write("tls.crt", &first.certificate);
        sleep(ms(200)).await;
        assert!(reloads(&app, "loaded").await < 0.5, "it is what is in use");
        folder.put(&second);
        eventually!("the new certificate", PATIENCE, caller.shown(app.address).await == Some(second.der()));
        assert!((app.metric("tollgate_tls_certificate_expiry_seconds").await - year(2200)).abs() < 0.5);
    }

    async fn who_must_show_a_certificate_gets_in_with_a_right_one_only(database) {
        let (authority, clients) = (Authority::new(), Authority::new());
        let folder = Folder::of(&authority.server(2200));
        let path = folder.write("clients.crt", clients.pem());
        let hook_clients = Some(NamedFile { setting: "TOLLGATE_TLS_CLIENT_CA_FILE", path });
        let tls = Some(Files { hook_clients, ..folder.files() });
        let app = database.app_with(Options { tls, ..folder.options() }).await;
        let with = |versions, identity| Caller { versions, identity, ..authority.trusting() };
        for versions in [OLDER, NEWER] {
            let good = with(versions, Some(clients.client(2200)));
            let mut kept = good.connect(app.address).await.expect("a connection");
            kept.ask_hook().await.expect("an answer").expect(200);
            for (what, identity) in [
                ("none", None),
                ("of another authority", Some(authority.client(2200))),
                ("expired", Some(clients.client(2021))),
                ("a server's", Some(clients.server(2200))),
            ] {
                assert!(with(versions, identity).ask_hook(app.address).await.is_none(), "{what}");
            }
            good.ask_hook(app.address).await.expect("an answer").expect(200);
            kept.ask_hook().await.expect("an answer").expect(200);
        }
        // Who is trusted changes like the certificate does.
        let others = Authority::new();
        folder.write("clients.crt", others.pem());
        let other = with(BOTH, Some(others.client(2200)));
        eventually!("others get in", PATIENCE, other.ask_hook(app.address).await.is_some());
        assert!(with(BOTH, Some(clients.client(2200))).ask_hook(app.address).await.is_none());
    }

    async fn a_handshake_that_does_not_come_to_its_end_is_cut(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let mut options = folder.options();
        options.limits.timeouts.handshake = ms(500);
        let app = database.app_with(options).await;
        let begun = Instant::now();
        let mut silent = TcpStream::connect(app.address).await.expect("connected");
        let mut half = TcpStream::connect(app.address).await.expect("connected");
        half.write_all(HALF_A_HELLO).await.expect("sent");
        let mut trickled = TcpStream::connect(app.address).await.expect("connected");
        trickled.write_all(HALF_A_HELLO).await.expect("sent");
        let trickle = async {
            // Until it is cut.
            while trickled.write_all(&[0]).await.is_ok() && begun.elapsed() < PATIENCE {
                sleep(ms(50)).await;
            }
        };
        tokio::join!(ended(&mut silent), ended(&mut half), trickle);
        assert!(begun.elapsed() > ms(450), "{:?}", begun.elapsed());
        assert!(begun.elapsed() < PATIENCE);
        authority.trusting().ask_hook(app.address).await.expect("an answer").expect(200);
    }

    async fn half_done_handshakes_keep_others_out_up_to_the_limit_and_not_for_long(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let mut options = folder.options();
        options.limits.connections = 100;
        options.limits.timeouts.handshake = ms(1500);
        let app = database.app_with(options).await;
        let caller = authority.trusting();
        let mut kept = caller.connect(app.address).await.expect("a connection");
        kept.ask_hook().await.expect("an answer").expect(200);
        let mut held = Vec::new();
        for index in 0..1_000 {
            let mut stream = TcpStream::connect(app.address).await.expect("connected");
            // It may have been refused already.
            let _ = stream.write_all(HALF_A_HELLO).await;
            if index < 150 {
                held.push(stream);
            }
        }
        let refused = || app.metric("tollgate_shed_requests_total{surface=\"connection\"}");
        assert!(refused().await > 0.5, "they count against the limit");
        kept.ask_hook().await.expect("who is in stays in").expect(200);
        eventually!("others get in again", PATIENCE, match caller.ask_hook(app.address).await {
            Some(answer) => answer.status == 200,
            None => false,
        });
        assert!(refused().await > 49.5);
        assert_eq!(app.send_to(app.operations, "GET", "/readyz", &[], "").await.status, 200);
        drop(held);
    }

    async fn a_client_without_tls_is_told_nothing_and_one_too_many_neither(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let mut options = folder.options();
        options.limits.connections = 1;
        let app = database.app_with(options).await;
        for opening in ["GET /docs HTTP/1.1\r\nhost: test\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let mut stream = TcpStream::connect(app.address).await.expect("connected");
            stream.write_all(opening.as_bytes()).await.expect("sent");
            let received = ended(&mut stream).await;
            // An alert of TLS, at most.
            assert!(received.len() <= 7 && !received.starts_with(b"HTTP"), "{received:?}");
        }
        let failures = "tollgate_tls_handshake_failures_total";
        eventually!("both are counted", PATIENCE, app.metric(failures).await > 1.5);
        let caller = authority.trusting();
        let mut kept;
        eventually!("a connection", PATIENCE, {
            kept = caller.connect(app.address).await;
            kept.is_some()
        });
        let mut stream = TcpStream::connect(app.address).await.expect("connected");
        assert_eq!(ended(&mut stream).await, [0; 0]);
        kept.expect("kept").ask_hook().await.expect("an answer").expect(200);
    }

    async fn within_tls_heads_and_readers_have_the_same_time_as_without(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let mut options = folder.options();
        (options.limits.timeouts.head, options.limits.timeouts.write) = (ms(600), ms(600));
        options.limits.connections = 2;
        let app = database.app_with(options).await;
        let caller = authority.trusting();
        let begun = Instant::now();
        let mut slow = caller.open(app.address).await.expect("a connection");
        slow.write_all(b"POST / HTTP/1.1\r\nhost").await.expect("sent");
        slow.flush().await.expect("sent");
        let mut received = Vec::new();
        let _ = timeout(PATIENCE, slow.read_to_end(&mut received)).await.expect("the end of the connection");
        assert!(begun.elapsed() > ms(550) && received.is_empty(), "{:?}", begun.elapsed());
        let mut greedy = caller.open(app.address).await.expect("a connection");
        let ask = async {
            // It asks for more than all buffers hold, and reads nothing of it.
            let many = "GET /docs HTTP/1.1\r\nhost: test\r\n\r\n".repeat(100);
            greedy.write_all(many.as_bytes()).await?;
            greedy.flush().await
        };
        // It may be cut before all was asked for.
        let _ = timeout(PATIENCE, ask).await.expect("sent, or cut");
        let mut kept = caller.connect(app.address).await.expect("a connection");
        kept.ask_hook().await.expect("an answer").expect(200);
        eventually!("room for another", PATIENCE, caller.ask_hook(app.address).await.is_some());
        drop(greedy);
    }

    async fn the_end_over_tls_lets_requests_end_and_cuts_handshakes(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let mut options = folder.options();
        options.limits.timeouts.handshake = Duration::from_mins(5);
        options.limits.drain_timeout = Duration::from_mins(2);
        let mut app = database.app_with(options).await;
        let (address, caller) = (app.address, authority.trusting());
        let mut half = TcpStream::connect(address).await.expect("connected");
        half.write_all(HALF_A_HELLO).await.expect("sent");
        let (name, value) = HOOK_CREDENTIALS;
        let head = format!(
            "POST {ACCESS_TOKEN} HTTP/1.1\r\nhost: test\r\n{name}: {value}\r\n{}: {}\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
            JSON.0, JSON.1, HOOK_BODY.len(),
        );
        let mut idle = caller.open(address).await.expect("a connection");
        idle.write_all(b"GET /nowhere HTTP/1.1\r\nhost: test\r\n\r\n").await.expect("sent");
        assert_eq!(idle.read_u8().await.expect("an answer"), b'H');
        let mut under_way = caller.open(address).await.expect("a connection");
        under_way.write_all(head.as_bytes()).await.expect("sent");
        let mut go_on = [0; 25];
        under_way.read_exact(&mut go_on).await.expect("the body is asked for");
        let begun = Instant::now();
        let stopping = tokio::spawn(async move { app.stop().await });
        let mut received = Vec::new();
        timeout(PATIENCE, idle.read_to_end(&mut received)).await.expect("in time").expect("a clean end of TLS");
        received.clear();
        ended(&mut half).await;
        assert!(!stopping.is_finished(), "it waits for the request");
        under_way.write_all(HOOK_BODY.as_bytes()).await.expect("sent");
        timeout(PATIENCE, under_way.read_to_end(&mut received)).await.expect("in time").expect("a clean end of TLS");
        let answer = Answer::parse(std::str::from_utf8(&received).expect("text"));
        answer.expect(200);
        assert_eq!(answer.header("connection"), Some("close"));
        timeout(PATIENCE, stopping).await.expect("the end").expect("no panic");
        assert!(begun.elapsed() < Duration::from_mins(1), "{:?}", begun.elapsed());
    }

    async fn every_answer_says_what_browsers_may_not_do_with_it(database) {
        let authority = Authority::new();
        let folder = Folder::of(&authority.server(2200));
        let (plain, secure) = (database.app().await, database.app_with(folder.options()).await);
        let mut peer = authority.trusting().connect(secure.address).await.expect("a connection");
        let (nothing, kept) = ("default-src 'none'; frame-ancestors 'none'", "max-age=300");
        for (method, path, headers, body, status, cache) in [
            ("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON][..], HOOK_BODY, 200, "no-store"),
            ("POST", ACCESS_TOKEN, &[JSON], HOOK_BODY, 401, "no-store"),
            ("POST", ACCESS_TOKEN, &[HOOK_CREDENTIALS, JSON], "{", 400, "no-store"),
            ("GET", "/v1/scopes", &[ADMIN_CREDENTIALS], "", 200, "no-store"),
            ("HEAD", "/v1/scopes", &[ADMIN_CREDENTIALS], "", 200, "no-store"),
            ("GET", "/v1/scopes", &[], "", 401, "no-store"),
            ("GET", "/nowhere", &[], "", 404, "no-store"),
            ("PUT", "/v1/scopes", &[], "", 405, "no-store"),
            ("GET", "/openapi/hooks.yaml", &[], "", 200, kept),
            ("GET", "/docs", &[], "", 200, kept),
        ] {
            let what = format!("{method} {path} {status}");
            let over_tls = peer.ask(method, path, headers, body).await.expect("an answer");
            let answers = [(plain.send(method, path, headers, body.to_owned()).await, None), (over_tls, Some("max-age=31536000"))];
            for (answer, tls_only) in answers {
                assert_eq!(answer.status, status, "{what}");
                assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{what}");
                assert_eq!(answer.header("cache-control"), Some(cache), "{what}");
                assert_eq!(answer.header("strict-transport-security"), tls_only, "{what}");
                let for_browsers = ["referrer-policy", "x-frame-options"].map(|name| answer.header(name));
                let policy = answer.header("content-security-policy");
                if path == ACCESS_TOKEN {
                    assert_eq!((for_browsers, policy), ([None, None], None), "{what}");
                } else {
                    assert_eq!(for_browsers, [Some("no-referrer"), Some("DENY")], "{what}");
                    assert!(policy.is_some_and(|policy| (policy == nothing) != (path == "/docs")), "{what}");
                }
            }
        }
        for path in ["/livez", "/metrics", "/version"] {
            let answer = plain.send_to(plain.operations, "GET", path, &[], "").await;
            assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        }
    }

    async fn the_pages_work_under_their_own_policy(database) {
        let app = database.app().await;
        for path in ["/docs", "/docs/hooks"] {
            let answer = app.send("GET", path, &[], "").await;
            let policy = answer.header("content-security-policy").expect("a policy").to_owned();
            let directives: Vec<_> = policy.split("; ").collect();
            let directive = |name: &str| {
                let found = directives.iter().find_map(|directive| directive.strip_prefix(name)?.strip_prefix(' '));
                found.unwrap_or_else(|| panic!("no {name} in {policy}")).split(' ').collect::<Vec<_>>()
            };
            let page = answer.text();
            let (mut rest, mut outside, mut scripts, mut styles) = (&*page, String::new(), Vec::new(), Vec::new());
            // The browser's way: from tag to tag, and from that of a script or a style to the one that closes it.
            while let Some((before, after)) = rest.split_once('<') {
                let (tag, after) = after.split_once('>').expect("the end of a tag");
                outside = format!("{outside}{before}<{tag}>");
                let found = match tag.split(' ').next() {
                    Some("script") => &mut scripts,
                    Some("style") => &mut styles,
                    _ => {
                        rest = after;
                        continue;
                    }
                };
                let close = if tag.starts_with("script") { "</script>" } else { "</style>" };
                let (content, after) = after.split_once(close).expect("a closing tag");
                found.push(content);
                rest = after;
            }
            assert_eq!((scripts.len(), styles.len()), (2, 1), "{path}: the library, its styles and what starts it");
            let hash = |content: &&str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(content)));
            assert_eq!(directive("script-src"), scripts.iter().map(hash).collect::<Vec<_>>(), "{path}");
            assert_eq!(directive("style-src"), styles.iter().map(hash).collect::<Vec<_>>(), "{path}");
            // What is outside of scripts and styles names nothing that would be loaded, and handles no event.
            for word in ["<link", "<img", "<iframe", "<base", "src=", "href=", "style=", " on"] {
                assert!(!outside.contains(word), "{path}: {word} in {outside}");
            }
            let styles = styles[0];
            assert!(!styles.contains("@import") && !styles.contains("url(http"), "{path}");
            assert!(styles.split("url(").skip(1).all(|url| url.trim_start_matches(['"', '\'']).starts_with("data:")), "{path}");
            assert_eq!(directive("img-src"), ["data:"]);
            assert_eq!(directive("connect-src"), ["'self'"], "operations can be tried out");
            assert_eq!(directive("default-src"), ["'none'"]);
            assert!(!policy.contains("unsafe"), "{policy}");
        }
    }
}

#[tokio::test]
async fn keys_of_each_kind_and_notation_are_read() {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/keys");
    for name in ["rsa-pkcs1.pem", "ec-sec1.pem"] {
        // Certificate and key may lie in one file. These are for this test alone: nothing here makes such keys.
        let file = keys.join(name);
        let tls = Tls::open(files(&file, &file)).expect(name);
        let caller = Caller {
            roots: fs::read_to_string(&file).expect("a file"),
            versions: BOTH,
            protocols: &[],
            identity: None,
        };
        let connector = TlsConnector::from(Arc::new(caller.config()));
        let (client, server) = tokio::io::duplex(10_000);
        let host = ServerName::try_from("127.0.0.1").expect("a name");
        let acceptor = tls.acceptor(Surface::Operations);
        let (connected, accepted) = tokio::join!(connector.connect(host, client), acceptor.accept(server));
        assert!(accepted.is_ok() && connected.is_ok(), "{name}: {:?}", connected.err());
    }
}

#[test]
fn files_that_cannot_be_used_are_refused_by_setting_and_path() {
    let authority = Authority::new();
    let (good, other) = (authority.server(2200), authority.server(2200));
    let damaged = good.certificate.replacen("-----END", "---END", 1);
    let secret = good.key.lines().nth(1).expect("a line").to_owned();
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let encrypted = good.key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    let half_a_key = good.key.replacen("-----END", "---END", 1);
    let strange_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let check = |name: &str, content: Option<&str>, setting: &str, says: &str| {
        let folder = Folder::of(&good);
        let mut files = folder.files();
        if name == "clients.crt" {
            let path = folder.0.join(name);
            files.api_clients = Some(NamedFile { setting: "TOLLGATE_API_TLS_CLIENT_CA_FILE", path });
        }
        match content {
            Some(content) => drop(folder.write(name, content)),
            // It may not have been there at all.
            None => drop(fs::remove_file(folder.0.join(name))),
        }
        let error = service::chain(&Tls::open(files).expect_err(says));
        assert!(error.contains(setting) && error.contains(name) && error.contains(says), "{says}: {error}");
        assert!(!error.contains(&secret), "{error}");
    };
    let (certificate, key, clients) =
        ("TOLLGATE_TLS_CERT_FILE", "TOLLGATE_TLS_KEY_FILE", "TOLLGATE_API_TLS_CLIENT_CA_FILE");
    check("tls.crt", None, certificate, "cannot be read");
    check("tls.crt", Some(""), certificate, "no certificate");
    check("tls.crt", Some(&good.key), certificate, "no certificate");
    check("tls.crt", Some(&damaged), certificate, "not whole");
    check("tls.crt", Some(garbage), certificate, "cannot be used");
    check("tls.crt", Some(&" ".repeat(2_000_000)), certificate, "too large");
    check("tls.key", None, key, "cannot be read");
    check("tls.key", Some(&good.certificate), key, "no private key");
    check("tls.key", Some(&encrypted), key, "no private key");
    check("tls.key", Some(&half_a_key), key, "no private key");
    check("tls.key", Some(strange_key), key, "cannot be used");
    check("tls.key", Some(&other.key), key, "does not hold the key of the certificate");
    check("clients.crt", None, clients, "cannot be read");
    check("clients.crt", Some("nonsense"), clients, "no certificate");
    check("clients.crt", Some(garbage), clients, "cannot be used");
}

/// What the process says that is told to serve with this environment beside what it always needs.
fn serve(folder: &Folder, environment: &[(&str, &str)]) -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_tollgate"))
        .env_clear()
        .envs([("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "hook"), ("TOLLGATE_DRAIN_DELAY", "0s")])
        .envs(environment.iter().copied())
        .current_dir(&folder.0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

#[test]
fn the_process_refuses_files_before_it_begins_anything() {
    let folder = Folder::of(&Authority::new().server(2200));
    let path = |name: &str| folder.0.join(name).display().to_string();
    let (certificate, key) = (path("tls.crt"), path("absent.key"));
    let environment = [("TOLLGATE_TLS_CERT_FILE", &*certificate), ("TOLLGATE_TLS_KEY_FILE", &*key)];
    let output = serve(&folder, &environment).wait_with_output().expect("its end");
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(
        message.starts_with("tollgate: the file of TOLLGATE_TLS_KEY_FILE, ") && message.contains(&key),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "one clear line: {message}");
    assert!(!folder.0.join("tollgate.db").exists(), "nothing was begun");
}

#[test]
fn a_look_before_a_start_reads_the_certificate() {
    let authority = Authority::new();
    for (identity, code, expected) in [
        (authority.server(2200), 0, "ok       certificate  it belongs to its key, and expires at 2200-01-01T00:00:00Z"),
        (authority.server(2021), 1, "error    certificate  it belongs to its key, and expires at 2021-01-01T00:00:00Z"),
        (
            Identity { key: authority.server(2200).key, ..authority.server(2200) },
            1,
            "does not hold the key of the certificate",
        ),
    ] {
        let folder = Folder::of(&identity);
        let path = |name: &str| folder.0.join(name).display().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["check", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .env_clear()
            .envs([("TOLLGATE_HOOK_USERNAME", "hook"), ("TOLLGATE_HOOK_PASSWORD", "hook")])
            .envs([("TOLLGATE_TLS_CERT_FILE", path("tls.crt")), ("TOLLGATE_TLS_KEY_FILE", path("tls.key"))])
            .current_dir(&folder.0)
            .output()
            .expect("its end");
        let told = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(expected), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_of_the_process_asks_for_what_its_settings_say() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let folder = Folder::of(&authority.server(2200));
    folder.write("clients.crt", clients.pem());
    let key = folder.0.join("tls.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("permitted");
    let path = |name: &str| folder.0.join(name).display().to_string();
    // All are held at once, so that they differ.
    let held = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [hooks, api, operations] = held.map(|listener| listener.local_addr().expect("an address"));
    let (certificate, key, trusted) = (path("tls.crt"), path("tls.key"), path("clients.crt"));
    let addresses = [hooks, api, operations].map(|address| address.to_string());
    let process = serve(
        &folder,
        &[
            ("TOLLGATE_TLS_CERT_FILE", &*certificate),
            ("TOLLGATE_TLS_KEY_FILE", &*key),
            ("TOLLGATE_API_TLS_CLIENT_CA_FILE", &*trusted),
            ("TOLLGATE_OPS_TLS", "true"),
            ("TOLLGATE_LISTEN", &*addresses[0]),
            ("TOLLGATE_API_LISTEN", &*addresses[1]),
            ("TOLLGATE_OPS_LISTEN", &*addresses[2]),
        ],
    );
    let anybody = authority.trusting();
    let somebody = Caller { identity: Some(clients.client(2200)), ..anybody.clone() };
    let ready = async || {
        TcpStream::connect(operations).await.ok()?;
        let mut peer = anybody.connect(operations).await?;
        Some(peer.ask("GET", "/readyz", &[], "").await?.status.as_u16())
    };
    eventually!("readiness over TLS", PATIENCE, ready().await == Some(200));
    let health = |is_tls: &str| {
        let mut health = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        health.arg("health").env("TOLLGATE_OPS_LISTEN", &addresses[2]).env("TOLLGATE_OPS_TLS", is_tls);
        health.output().expect("its end").status.code()
    };
    assert_eq!((health("true"), health("false")), (Some(0), Some(1)), "asked over TLS, and without");
    anybody.ask_hook(hooks).await.expect("an answer").expect(200);
    let list = async |caller: &Caller| {
        let mut peer = caller.connect(api).await?;
        Some(peer.ask("GET", "/v1/scopes", &[], "").await?.status.as_u16())
    };
    assert_eq!((list(&anybody).await, list(&somebody).await), (None, Some(401)));
    let pid = process.id().to_string();
    assert!(Command::new("sh").args(["-c", "kill -TERM \"$0\"", &pid]).status().expect("a shell").success());
    let output = process.wait_with_output().expect("its end");
    let log = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{log}");
    let warned = log.lines().filter(|line| line.contains("WARN") && line.contains(&key)).count();
    assert_eq!(warned, 1, "{log}");
}

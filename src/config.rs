//! Every setting, one documented field each; the only reader of the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use clap::{CommandFactory as _, Parser as _};
use ipnet::IpNet;

use crate::{
    domain::{
        claims::ClaimsPrefix,
        decision::{OnUnknown, Unmanaged},
        external,
        token::{Role, SECRET_PREFIX, TokenName},
    },
    http::{
        auth::{issuer::AddressError, jwt},
        collector::Endpoint,
        console::openid::OpenIdSettings,
        contract::Contract,
        tls::Files,
        transfer::Format,
    },
    service::Policy,
};

mod ask;
mod credentials;
mod line;

pub use self::{
    ask::{AskSettings, HookCredentials},
    credentials::{ApiJwt, HookJwt, Secret, Trust},
    line::{LogArgs, LogFormat},
};

use self::{
    credentials::secret,
    line::{
        Cli, CliCommand, DocumentArg, HealthArgs, HookAuthArg, OnUnknownArg, RoleArg, ServeArgs, TokenArg, UnmanagedArg,
    },
};

const DEFAULT_DATABASE_URL: &str = "sqlite://tollgate.db?mode=rwc";
/// The demo's hook user name.
pub const DEMO_USERNAME: &str = "hook";
/// The demo's hook password.
pub const DEMO_PASSWORD: &str = "hook";
/// The demo's bearer token.
pub const DEMO_ADMIN_TOKEN: &str = "demo";
/// The shortest key of the console: whoever has a cookie can try keys for as long as they like.
const MIN_CONSOLE_KEY_BYTES: usize = 32;
/// How long to go on serving after the process was told to stop, unless told otherwise.
const DRAIN_DELAY: Duration = Duration::from_secs(3);

/// How to serve.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct ServeSettings {
    /// Whether to serve the demo.
    pub demo: bool,
    /// The address of the database.
    pub database_url: Secret,
    /// Whether to bring its tables up to date first.
    pub migrate: bool,
    /// Where the hooks are served.
    pub listen: SocketAddr,
    /// Where the management API is served, when not beside the hooks.
    pub api_listen: Option<SocketAddr>,
    /// Where operators look.
    pub ops_listen: SocketAddr,
    /// The files that TLS is made from, where it is used.
    pub tls: Option<Files>,
    /// Whether operators are served over TLS, too.
    pub ops_tls: bool,
    /// The Basic credentials of the hooks, when they are a way in: two while they are exchanged.
    pub hook_basic: Vec<(Secret, Secret)>,
    /// The tokens of Access, when they are a way in.
    pub hook_jwt: Option<HookJwt>,
    /// The tokens of an OpenID provider, when they open the management API.
    pub api_jwt: Option<ApiJwt>,
    /// The proxies whose word on where a request comes from is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether hooks may be called without credentials.
    pub hook_open: bool,
    /// The bearer token of the bootstrap administrator.
    pub admin_token: Option<Secret>,
    /// What is decided where the rules leave it to the operator.
    pub policy: Policy,
    /// Whether replicas wake each other with notifications.
    pub feed_wake_up: bool,
    /// Whether the console is served.
    pub console: bool,
    /// What the sessions of the console are sealed with, if replicas share them.
    pub console_key: Option<Secret>,
    /// How to sign in to the console at an OpenID provider, if people do.
    pub console_openid: Option<OpenIdSettings>,
    /// Whether changes without `If-Match` are refused.
    pub require_if_match: bool,
    /// How long to go on trying to reach the database at the start.
    pub startup_timeout: Duration,
    /// How long to go on serving after the process was told to stop.
    pub drain_delay: Duration,
    /// How long requests under way may then take to end.
    pub drain_timeout: Duration,
    /// Where traces are sent, if they are.
    pub traces: Option<Traces>,
    /// Where the supervisor that started the process wants to hear that it serves: systemd's `NOTIFY_SOCKET`.
    pub notify_socket: Option<String>,
    /// How to log.
    pub log: LogArgs,
}

/// Where traces are sent, and of what.
#[derive(Debug, Clone)]
pub struct Traces {
    /// The collector.
    pub collector: Endpoint,
    /// The share that is traced of the requests whose caller does not say.
    pub share: f64,
}

/// When a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Never.
    Never,
    /// So long after it is made.
    After(Duration),
    /// At an instant.
    At(DateTime<Utc>),
}

/// What to do with tokens of the management API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenCommand {
    /// Make one.
    Create {
        /// Its name.
        name: TokenName,
        /// What it may do.
        role: Role,
        /// When it ends.
        expires: Expiry,
    },
    /// List all.
    List,
    /// Revoke the one of a name.
    Revoke(TokenName),
}

/// Where a file is imported from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportFile {
    /// Standard input.
    Standard,
    /// A file of that path.
    Path(PathBuf),
}

/// What to import.
#[derive(Debug)]
pub struct ImportCommand {
    /// From where.
    pub file: ImportFile,
    /// How it is written.
    pub format: Format,
    /// Whether nothing is kept of it.
    pub is_dry_run: bool,
    /// What the names of claims begin with.
    pub claims_prefix: Option<ClaimsPrefix>,
}

/// What to export.
#[derive(Debug)]
pub struct ExportCommand {
    /// How it is written.
    pub format: Format,
    /// Known to this system by an id of its own.
    pub source: Option<external::Source>,
}

/// What to look at before a start.
#[derive(Debug)]
pub struct CheckSettings {
    /// How to serve, or why that makes no sense.
    pub serve: Result<Box<ServeSettings>, ConfigError>,
    /// The address of the database.
    pub database_url: Secret,
    /// Whether the data are looked at, and nothing else.
    pub is_data: bool,
    /// Whether each line is a JSON object.
    pub is_json: bool,
    /// How to log.
    pub log: LogArgs,
}

/// What the process is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Serve.
    Serve(Box<ServeSettings>),
    /// Bring the tables of a database up to date.
    Migrate {
        /// The address of the database.
        database_url: Secret,
        /// How to log.
        log: LogArgs,
    },
    /// Do something with tokens of the management API.
    Token {
        /// What to do.
        command: TokenCommand,
        /// The address of the database.
        database_url: Secret,
        /// How to log.
        log: LogArgs,
    },
    /// Import a file.
    Import {
        /// Which one, and how.
        command: ImportCommand,
        /// The address of the database.
        database_url: Secret,
        /// How to log.
        log: LogArgs,
    },
    /// Export to standard output.
    Export {
        /// What, and how.
        command: ExportCommand,
        /// The address of the database.
        database_url: Secret,
        /// How to log.
        log: LogArgs,
    },
    /// Look whether serving would succeed, or at the data.
    Check(CheckSettings),
    /// Copy the database to a file.
    Backup {
        /// The file.
        file: PathBuf,
        /// The address of the database.
        database_url: Secret,
        /// How to log.
        log: LogArgs,
    },
    /// Ask a running service what Access would ask.
    Ask(Box<AskSettings>),
    /// Ask a service whether it is ready.
    Health {
        /// Where it serves operators.
        address: SocketAddr,
        /// Whether over TLS.
        is_tls: bool,
    },
    /// Print a contract.
    OpenApi(Contract),
}

/// Settings that do not make sense.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The arguments cannot be parsed, or ask for help.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// A file that holds a secret cannot be read.
    #[error("{variable} names a file that cannot be read: {path}")]
    SecretFile {
        /// The variable.
        variable: String,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A secret is given twice.
    #[error("{0} and {0}_FILE are both set; one of them must go")]
    SecretTwice(&'static str),
    /// A secret is empty, which is more likely a mistake than a secret.
    #[error("{0} is empty")]
    SecretEmpty(&'static str),
    /// Basic authentication without credentials.
    #[error(
        "TOLLGATE_HOOK_AUTH lists `basic`, so TOLLGATE_HOOK_USERNAME and TOLLGATE_HOOK_PASSWORD must be set \
        (or try `tollgate serve --demo`)"
    )]
    HookCredentials,
    /// A user name that Basic authentication cannot carry.
    #[error("{0} holds a colon, which ends a user name in Basic authentication (RFC 7617)")]
    HookUsername(&'static str),
    /// A next user name without a password.
    #[error("TOLLGATE_HOOK_NEXT_USERNAME is set, and TOLLGATE_HOOK_NEXT_PASSWORD is not")]
    HookNextPassword,
    /// A user name without a password, or the other way round.
    #[error("TOLLGATE_HOOK_USERNAME and TOLLGATE_HOOK_PASSWORD must both be set, or neither")]
    HalfCredentials,
    /// The hooks are not asked about another instant than the present.
    #[error("--at asks the management API, so TOLLGATE_API_TOKEN must be set (or TOLLGATE_ADMIN_TOKEN)")]
    InstantWithoutToken,
    /// Tokens are taken, and what they must say is not told.
    #[error("{needs}, so {missing} must be set")]
    JwtIncomplete {
        /// What asks for it.
        needs: &'static str,
        /// What is not set.
        missing: &'static str,
    },
    /// Keys cannot come from an address.
    #[error("{variable}: keys cannot come from there: {source}")]
    KeyAddress {
        /// The variable. The address may hold a password, so it is not repeated.
        variable: &'static str,
        /// Why.
        #[source]
        source: AddressError,
    },
    /// One address for the keys of several issuers.
    #[error("TOLLGATE_HOOK_JWT_JWKS_URL is set, and TOLLGATE_HOOK_JWT_ISSUERS lists more than one issuer")]
    KeysOfSeveral,
    /// Two roles would have one scope.
    #[error("the scope `{0}` stands for two roles; each needs one of its own")]
    SharedScope(String),
    /// A token would open both doors.
    #[error(
        "TOLLGATE_API_JWT_AUDIENCE and TOLLGATE_HOOK_JWT_AUDIENCE both list `{0}`; a token for the hooks must not be \
        one for the management API"
    )]
    SharedAudience(String),
    /// A bootstrap token that would be taken for another kind of credential, and never let anybody in.
    #[error("TOLLGATE_ADMIN_TOKEN begins with `{SECRET_PREFIX}`, as the tokens that Tollgate makes: choose another")]
    AdminToken,
    /// The bootstrap token would be taken for another kind of token.
    #[error("TOLLGATE_ADMIN_TOKEN has the form of a signed token (two dots); choose another one")]
    AdminTokenForm,
    /// A key that could be guessed from what it has sealed.
    #[error("TOLLGATE_CONSOLE_KEY is shorter than {MIN_CONSOLE_KEY_BYTES} bytes: choose a long random one")]
    ConsoleKey,
    /// Whoever stands between would be sent what signs people in.
    #[error("TOLLGATE_CONSOLE_URL: {0}")]
    ConsoleUrl(AddressError),
    /// A certificate without key, or a key without certificate.
    #[error("TOLLGATE_TLS_CERT_FILE and TOLLGATE_TLS_KEY_FILE must both be set, or neither")]
    TlsHalf,
    /// A setting that changes TLS where there is none.
    #[error("{0} needs TLS: TOLLGATE_TLS_CERT_FILE and TOLLGATE_TLS_KEY_FILE must be set")]
    TlsMissing(&'static str),
    /// Client certificates for a listener that does not exist.
    #[error(
        "TOLLGATE_API_TLS_CLIENT_CA_FILE needs TOLLGATE_API_LISTEN: without a listener of its own the management API \
        is served beside the hooks, where TOLLGATE_TLS_CLIENT_CA_FILE counts"
    )]
    ApiClientCa,
    /// Anybody could call the hooks.
    #[error(
        "TOLLGATE_HOOK_AUTH lists `none`, and {0} can be reached from other machines; \
        set TOLLGATE_ALLOW_OPEN_HOOKS=true if that is meant"
    )]
    OpenHooks(SocketAddr),
}

/// Reads the process's arguments and environment.
///
/// # Errors
///
/// [`ConfigError`] when they make no sense, or ask for help.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn from_process() -> Result<Command, ConfigError> {
    from(Cli::try_parse()?, &|name| std::env::var(name).ok())
}

/// The definition of the command line, for documents that are made from it.
#[must_use]
pub fn command_line() -> clap::Command {
    Cli::command()
}

fn from(cli: Cli, environment: &dyn Fn(&str) -> Option<String>) -> Result<Command, ConfigError> {
    let database_url = || -> Result<Secret, ConfigError> {
        Ok(secret(environment, "TOLLGATE_DATABASE_URL")?.unwrap_or_else(|| DEFAULT_DATABASE_URL.into()))
    };
    Ok(match cli.command {
        None => Command::Serve(Box::new(serve(cli.serve, database_url()?, environment)?)),
        Some(CliCommand::Serve(args)) => Command::Serve(Box::new(serve(args, database_url()?, environment)?)),
        Some(CliCommand::Migrate(log)) => Command::Migrate { database_url: database_url()?, log },
        Some(CliCommand::Token { action, log }) => {
            let command = match action {
                TokenArg::Create { name, role, expires } => TokenCommand::Create {
                    name,
                    role: match role {
                        RoleArg::Reader => Role::Reader,
                        RoleArg::Writer => Role::Writer,
                        RoleArg::Admin => Role::Admin,
                    },
                    expires,
                },
                TokenArg::List => TokenCommand::List,
                TokenArg::Revoke { name } => TokenCommand::Revoke(name),
            };
            Command::Token { command, database_url: database_url()?, log }
        }
        Some(CliCommand::Import { file, file_format, dry_run, claims_prefix, log }) => {
            let is_csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
            let by_name = if is_csv { Format::Csv } else { Format::Ndjson };
            let command = ImportCommand {
                format: file_format.map_or(by_name, Into::into),
                file: if file.as_os_str() == "-" { ImportFile::Standard } else { ImportFile::Path(file) },
                is_dry_run: dry_run,
                claims_prefix,
            };
            Command::Import { command, database_url: database_url()?, log }
        }
        Some(CliCommand::Export { file_format, source, log }) => {
            let command = ExportCommand { format: file_format.into(), source };
            Command::Export { command, database_url: database_url()?, log }
        }
        Some(CliCommand::Check { data, json, serve: args }) => {
            let (database_url, log) = (database_url()?, args.log.clone());
            let serve = serve(*args, database_url.clone(), environment).map(Box::new);
            Command::Check(CheckSettings { serve, database_url, is_data: data, is_json: json, log })
        }
        Some(CliCommand::Backup { file, log }) => Command::Backup { file, database_url: database_url()?, log },
        Some(CliCommand::Ask(args)) => Command::Ask(Box::new(args.settings(environment)?)),
        Some(CliCommand::Health(HealthArgs { ops_listen: address, ops_tls: is_tls })) => {
            Command::Health { address, is_tls }
        }
        Some(CliCommand::Openapi { document }) => Command::OpenApi(match document {
            DocumentArg::Hooks => Contract::Hooks,
            DocumentArg::Management => Contract::Management,
        }),
    })
}

fn serve(
    args: ServeArgs,
    database_url: Secret,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<ServeSettings, ConfigError> {
    let or_demo = |given: Option<Secret>, demo: &str| given.or_else(|| args.demo.then(|| demo.into()));
    let username = or_demo(secret(environment, "TOLLGATE_HOOK_USERNAME")?, DEMO_USERNAME);
    let password = or_demo(secret(environment, "TOLLGATE_HOOK_PASSWORD")?, DEMO_PASSWORD);
    let admin_token = or_demo(secret(environment, "TOLLGATE_ADMIN_TOKEN")?, DEMO_ADMIN_TOKEN);
    if admin_token.as_ref().is_some_and(|token| token.expose().starts_with(SECRET_PREFIX)) {
        return Err(ConfigError::AdminToken);
    }
    if args.api_jwt_issuer.is_some() && admin_token.as_ref().is_some_and(|token| jwt::has_form(token.expose())) {
        return Err(ConfigError::AdminTokenForm);
    }
    let hook_basic = if args.hook_auth.contains(&HookAuthArg::Basic) {
        let next_username = secret(environment, "TOLLGATE_HOOK_NEXT_USERNAME")?;
        let next_password = secret(environment, "TOLLGATE_HOOK_NEXT_PASSWORD")?;
        credentials::hook_basic(username.zip(password), next_username, next_password)?
    } else {
        Vec::new()
    };
    let hook_jwt = args.hook_auth.contains(&HookAuthArg::Jwt).then(|| credentials::hook_jwt(&args)).transpose()?;
    let api_jwt = args.api_jwt_issuer.as_ref().map(|issuer| credentials::api_jwt(&args, issuer)).transpose()?;
    if let (Some(hook), Some(api)) = (&hook_jwt, &api_jwt)
        && let Some(shared) = hook.trust.audiences.iter().find(|audience| api.trust.audiences.contains(audience))
    {
        return Err(ConfigError::SharedAudience(shared.clone()));
    }
    let hook_open = args.hook_auth.contains(&HookAuthArg::None);
    if hook_open && !args.listen.ip().is_loopback() && !args.allow_open_hooks {
        return Err(ConfigError::OpenHooks(args.listen));
    }
    let console_key = secret(environment, "TOLLGATE_CONSOLE_KEY")?;
    if console_key.as_ref().is_some_and(|key| key.expose().len() < MIN_CONSOLE_KEY_BYTES) {
        return Err(ConfigError::ConsoleKey);
    }
    let client_secret = secret(environment, "TOLLGATE_CONSOLE_OPENID_CLIENT_SECRET")?;
    let console_openid = credentials::console_openid(&args, client_secret)?;
    let tls = credentials::tls(&args)?;
    Ok(ServeSettings {
        demo: args.demo,
        database_url,
        migrate: args.migrate,
        listen: args.listen,
        api_listen: args.api_listen,
        ops_listen: args.ops_listen,
        tls,
        ops_tls: args.ops_tls,
        hook_basic,
        hook_jwt,
        api_jwt,
        trusted_proxies: args.trusted_proxies,
        hook_open,
        admin_token,
        policy: Policy {
            unmanaged: match args.unmanaged {
                UnmanagedArg::Keep => Unmanaged::Keep,
                UnmanagedArg::Remove => Unmanaged::Remove,
            },
            on_unknown: match args.on_unknown {
                OnUnknownArg::Error => OnUnknown::Error,
                OnUnknownArg::Remove => OnUnknown::Remove,
                OnUnknownArg::Keep => OnUnknown::Keep,
            },
            claims_prefix: args.claims_prefix,
            hook_timeout: args.hook_timeout,
            max_age: args.max_age,
            max_stale: args.max_stale,
            keep_changes: args.keep_changes,
        },
        feed_wake_up: args.feed_wake_up,
        console: args.console,
        console_key,
        console_openid,
        require_if_match: args.require_if_match,
        startup_timeout: args.startup_timeout,
        // Nobody balances the load of a demo, and a person waits for it to end.
        drain_delay: args.drain_delay.unwrap_or(if args.demo { Duration::ZERO } else { DRAIN_DELAY }),
        drain_timeout: args.drain_timeout,
        traces: args.otlp_endpoint.map(|collector| Traces { collector, share: args.otlp_share }),
        notify_socket: environment("NOTIFY_SOCKET"),
        log: args.log,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        line::{parse_duration, parse_expiry, parse_token_name},
        *,
    };
    use crate::http::auth::issuer::{Address, Source};

    fn parse(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Command, ConfigError> {
        let cli = Cli::try_parse_from([&["tollgate"], arguments].concat())?;
        from(cli, &|name| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn serving(arguments: &[&str], environment: &[(&str, &str)]) -> ServeSettings {
        match parse(arguments, environment).expect("settings") {
            Command::Serve(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    const CREDENTIALS: [(&str, &str); 2] = [("TOLLGATE_HOOK_USERNAME", "u"), ("TOLLGATE_HOOK_PASSWORD", "p")];

    #[test]
    fn serving_is_what_happens_without_a_command() {
        let settings = serving(&[], &CREDENTIALS);
        assert_eq!(settings.listen, "127.0.0.1:8080".parse().expect("an address"));
        assert_eq!(settings.ops_listen, "127.0.0.1:9090".parse().expect("an address"));
        assert_eq!(settings.database_url.expose(), "sqlite://tollgate.db?mode=rwc");
        assert_eq!(settings.policy.max_age, Duration::from_mins(1));
        assert_eq!(settings.policy.max_stale, Duration::from_mins(10));
        assert_eq!(settings.policy.hook_timeout, Duration::from_millis(400));
        assert!(settings.migrate && !settings.hook_open && !settings.require_if_match);
        assert_eq!(settings.admin_token, None);
        assert_eq!(serving(&["serve"], &CREDENTIALS).listen, settings.listen);
    }

    #[test]
    fn it_refuses_to_start_without_the_credentials_of_an_enabled_method() {
        for environment in [&[][..], &CREDENTIALS[..1], &CREDENTIALS[1..]] {
            assert!(matches!(parse(&[], environment), Err(ConfigError::HookCredentials)), "{environment:?}");
        }
        assert!(serving(&["--hook-auth", "none"], &[]).hook_basic.is_empty());
        let both = serving(&["--hook-auth", "basic,none"], &CREDENTIALS);
        assert!(both.hook_basic.len() == 1 && both.hook_open);
    }

    #[test]
    fn the_console_is_served_unless_said_otherwise_and_its_key_is_long() {
        let with = |name, value| [&CREDENTIALS[..], &[(name, value)]].concat();
        let plain = serving(&[], &CREDENTIALS);
        assert!(plain.console && plain.console_key.is_none() && plain.console_openid.is_none());
        assert!(!serving(&["--console", "false"], &CREDENTIALS).console);
        let (short, long) = ("x".repeat(31), "x".repeat(32));
        assert!(matches!(parse(&[], &with("TOLLGATE_CONSOLE_KEY", &short)), Err(ConfigError::ConsoleKey)));
        assert!(serving(&[], &with("TOLLGATE_CONSOLE_KEY", &long)).console_key.is_some());
    }

    #[test]
    fn people_sign_in_at_the_provider_of_the_api_where_the_console_is_a_client() {
        let api = ["--api-jwt-issuer", "https://id.example.com/", "--api-jwt-audience", "tollgate"];
        let client = ["--console-openid-client-id", "console"];
        let url = ["--console-url", "https://tollgate.example.com/"];
        let missing = |arguments: &[&str]| match parse(arguments, &CREDENTIALS) {
            Err(ConfigError::JwtIncomplete { missing, .. }) => missing,
            other => panic!("{arguments:?}: {other:?}"),
        };
        assert_eq!(missing(&[&client[..], &url].concat()), "TOLLGATE_API_JWT_ISSUER");
        assert_eq!(missing(&[&api[..], &client].concat()), "TOLLGATE_CONSOLE_URL");
        let plain = [&api[..], &client, &["--console-url", "http://tollgate.example.com"]].concat();
        assert!(matches!(parse(&plain, &CREDENTIALS), Err(ConfigError::ConsoleUrl(_))));
        let secret = [&CREDENTIALS[..], &[("TOLLGATE_CONSOLE_OPENID_CLIENT_SECRET", "s")]].concat();
        assert!(matches!(parse(&api, &secret), Err(ConfigError::JwtIncomplete { .. })));
        let settings = serving(&[&api[..], &client, &url].concat(), &secret).console_openid.expect("a sign-in");
        assert_eq!(
            (settings.base.as_str(), settings.client_secret.as_deref()),
            ("https://tollgate.example.com", Some("s"))
        );
        assert_eq!(settings.scopes, ["tollgate_reader", "tollgate_writer", "tollgate_admin"]);
        assert!(!format!("{settings:?}").contains("client"));
    }

    #[test]
    fn open_hooks_stay_on_loopback_unless_said_otherwise() {
        let open = ["--hook-auth", "none", "--listen"];
        for (address, refused) in [("127.0.0.1:0", false), ("[::1]:0", false), ("0.0.0.0:0", true), ("[::]:0", true)] {
            let parsed = parse(&[&open[..], &[address]].concat(), &[]);
            assert_eq!(matches!(parsed, Err(ConfigError::OpenHooks(_))), refused, "{address}");
        }
        serving(&[&open[..], &["0.0.0.0:0", "--allow-open-hooks"]].concat(), &[]);
    }

    #[test]
    fn tls_is_whole_or_absent_and_nothing_asks_for_certificates_where_nobody_is_served() {
        let refusal = |arguments: &[&str]| match parse(arguments, &CREDENTIALS) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{arguments:?} is accepted"),
        };
        let (certificate, key) = (["--tls-cert-file", "/c"], ["--tls-key-file", "/k"]);
        let (clients, api_clients) = (["--tls-client-ca-file", "/a"], ["--api-tls-client-ca-file", "/b"]);
        let api = ["--api-listen", "127.0.0.1:0"];
        assert_eq!(serving(&[], &CREDENTIALS).tls, None);
        for half in [certificate, key] {
            assert!(refusal(&half).contains("both be set, or neither"));
        }
        assert!(refusal(&clients).starts_with("TOLLGATE_TLS_CLIENT_CA_FILE needs TLS"));
        assert!(refusal(&["--ops-tls"]).starts_with("TOLLGATE_OPS_TLS needs TLS"));
        assert!(refusal(&[api, api_clients].concat()).starts_with("TOLLGATE_API_TLS_CLIENT_CA_FILE needs TLS"));
        let both = [certificate, key].concat();
        let senseless = refusal(&[&both[..], &api_clients].concat());
        assert!(senseless.starts_with("TOLLGATE_API_TLS_CLIENT_CA_FILE needs TOLLGATE_API_LISTEN"), "{senseless}");

        let settings = serving(&both, &CREDENTIALS);
        let files = settings.tls.expect("files");
        assert!(!settings.ops_tls && files.hook_clients.is_none() && files.api_clients.is_none());
        assert_eq!((files.certificate.setting, files.certificate.path), ("TOLLGATE_TLS_CERT_FILE", "/c".into()));
        assert_eq!((files.key.setting, files.key.path), ("TOLLGATE_TLS_KEY_FILE", "/k".into()));
        let all = [&both[..], &clients, &api_clients, &api, &["--ops-tls"]].concat();
        let settings = serving(&all, &CREDENTIALS);
        let files = settings.tls.expect("files");
        assert!(settings.ops_tls);
        assert_eq!(files.hook_clients.map(|file| file.path), Some("/a".into()));
        assert_eq!(files.api_clients.map(|file| file.path), Some("/b".into()));
    }

    #[test]
    fn the_demo_brings_credentials_of_its_own_and_variables_win_over_them() {
        let demo = serving(&["serve", "--demo"], &[]);
        assert_eq!(demo.admin_token, Some("demo".into()));
        assert_eq!(demo.hook_basic, [("hook".into(), "hook".into())]);
        let demo = serving(&["serve", "--demo"], &[("TOLLGATE_ADMIN_TOKEN", "other")]);
        assert_eq!(demo.admin_token, Some("other".into()));
    }

    #[test]
    fn only_the_demo_ends_without_delay_unless_told_otherwise() {
        assert_eq!(serving(&[], &CREDENTIALS).drain_delay, Duration::from_secs(3));
        assert_eq!(serving(&["--demo"], &[]).drain_delay, Duration::ZERO);
        assert_eq!(serving(&["--demo", "--drain-delay", "2s"], &[]).drain_delay, Duration::from_secs(2));
    }

    #[test]
    fn a_secret_may_come_from_a_file_and_never_shows() {
        let file = std::env::temp_dir().join(format!("tollgate-secret-{}", std::process::id()));
        fs::write(&file, "geheim\n").expect("a file");
        let path = file.to_str().expect("a path");
        let environment = [&CREDENTIALS[..], &[("TOLLGATE_ADMIN_TOKEN_FILE", path)]].concat();
        let settings = serving(&[], &environment);
        assert_eq!(settings.admin_token, Some("geheim".into()));
        assert!(!format!("{settings:?}").contains("geheim"));
        let twice = [&environment[..], &[("TOLLGATE_ADMIN_TOKEN", "x")]].concat();
        assert!(matches!(parse(&[], &twice), Err(ConfigError::SecretTwice(_))));
        fs::remove_file(&file).expect("the file");
        assert!(matches!(parse(&[], &environment), Err(ConfigError::SecretFile { .. })));
        let empty = [&CREDENTIALS[..], &[("TOLLGATE_ADMIN_TOKEN", "")]].concat();
        assert!(matches!(parse(&[], &empty), Err(ConfigError::SecretEmpty(_))));
        let made = [&CREDENTIALS[..], &[("TOLLGATE_ADMIN_TOKEN", "tollgate_x")]].concat();
        assert!(matches!(parse(&[], &made), Err(ConfigError::AdminToken)));
        let colon = [("TOLLGATE_HOOK_USERNAME", "a:b"), ("TOLLGATE_HOOK_PASSWORD", "p")];
        assert!(matches!(parse(&[], &colon), Err(ConfigError::HookUsername(_))));
    }

    #[test]
    fn a_credential_of_systemd_is_a_secret_when_the_environment_names_none() {
        let folder = std::env::temp_dir().join(format!("tollgate-credentials-{}", std::process::id()));
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("TOLLGATE_HOOK_USERNAME"), "u").expect("written");
        fs::write(folder.join("TOLLGATE_HOOK_PASSWORD"), "of systemd\n").expect("written");
        let named = ("CREDENTIALS_DIRECTORY", folder.to_str().expect("UTF-8"));
        let password = |more: &[(&str, &str)]| {
            let settings = serving(&[], &[&[named], more].concat());
            assert_eq!(settings.admin_token, None, "a secret that nobody gave");
            settings.hook_basic[0].1.expose().to_owned()
        };
        assert_eq!(password(&[]), "of systemd");
        assert_eq!(password(&[("TOLLGATE_HOOK_PASSWORD", "of the environment")]), "of the environment");
        // One that is there and cannot be read is not the same as none.
        fs::remove_file(folder.join("TOLLGATE_HOOK_PASSWORD")).expect("removed");
        fs::create_dir(folder.join("TOLLGATE_HOOK_PASSWORD")).expect("a folder");
        assert!(matches!(parse(&[], &[named]), Err(ConfigError::SecretFile { .. })));
        fs::remove_dir_all(&folder).expect("removed");
        assert!(matches!(parse(&[], &[named]), Err(ConfigError::HookCredentials)), "a folder that is not there");
    }

    #[test]
    fn two_pairs_of_credentials_may_be_live() {
        let environment = [&CREDENTIALS[..], &[("TOLLGATE_HOOK_NEXT_PASSWORD", "new")]].concat();
        let basic = serving(&[], &environment).hook_basic;
        assert_eq!(basic[1], (basic[0].0.clone(), "new".into()), "the user name stays");
        let environment = [&environment[..], &[("TOLLGATE_HOOK_NEXT_USERNAME", "other")]].concat();
        assert_eq!(serving(&[], &environment).hook_basic[1], ("other".into(), "new".into()));
        let environment = [&CREDENTIALS[..], &[("TOLLGATE_HOOK_NEXT_USERNAME", "other")]].concat();
        assert!(matches!(parse(&[], &environment), Err(ConfigError::HookNextPassword)));
        let colon = [("TOLLGATE_HOOK_NEXT_USERNAME", "a:b"), ("TOLLGATE_HOOK_NEXT_PASSWORD", "p")];
        let refused = parse(&[], &[&CREDENTIALS[..], &colon].concat());
        assert!(matches!(refused, Err(ConfigError::HookUsername("TOLLGATE_HOOK_NEXT_USERNAME"))));
    }

    #[test]
    fn tokens_are_believed_of_issuers_that_are_named() {
        let jwt = ["--hook-auth", "jwt"];
        let refused = |arguments: &[&str], expected: &str| {
            let error = parse(&[&jwt[..], arguments].concat(), &[]).expect_err("refused").to_string();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        };
        refused(&[], "TOLLGATE_HOOK_JWT_ISSUERS");
        refused(&["--hook-jwt-issuers", " ,"], "TOLLGATE_HOOK_JWT_ISSUERS");
        refused(&["--hook-jwt-issuers", "https://a"], "TOLLGATE_HOOK_JWT_AUDIENCE");
        let with = |more: &[&'static str]| {
            let named = ["--hook-jwt-issuers", "https://a/oauth, https://b", "--hook-jwt-audience", "https://hooks"];
            [&named[..], more].concat()
        };
        refused(&with(&["--hook-jwt-scopes", ","]), "TOLLGATE_HOOK_JWT_SCOPES");
        refused(&with(&["--hook-jwt-jwks-url", "https://keys"]), "more than one");
        let one = ["--hook-jwt-audience", "https://hooks", "--hook-jwt-issuers"];
        refused(&[&one[..], &["http://a"]].concat(), "TOLLGATE_HOOK_JWT_ISSUERS");
        refused(&[&one[..], &["a", "--hook-jwt-jwks-url", "http://keys"]].concat(), "TOLLGATE_HOOK_JWT_JWKS_URL");

        let settings = serving(&[&jwt[..], &with(&[])].concat(), &[]);
        let HookJwt { trust, client, scopes } = settings.hook_jwt.expect("tokens");
        let at = |url| Source::At(Address::parse(url).expect(url));
        let expected = [("https://a/oauth", "https://a/oauth/v1/keys"), ("https://b", "https://b/v1/keys")];
        assert_eq!(trust.issuers, expected.map(|(issuer, url)| (issuer.to_owned(), at(url))));
        assert_eq!(trust.audiences, ["https://hooks"]);
        assert_eq!((trust.leeway, client.as_str()), (Duration::from_secs(30), "onewelcomeAccessWebHookClient"));
        assert_eq!(scopes, ["onewelcome_webhooks"]);
        assert!(settings.hook_basic.is_empty() && !settings.hook_open);

        let any_name = [&one[..], &["tenant", "--hook-jwt-jwks-url", "https://keys"]].concat();
        let settings = serving(&[&jwt[..], &any_name].concat(), &[]);
        assert_eq!(settings.hook_jwt.expect("tokens").trust.issuers, [("tenant".to_owned(), at("https://keys"))]);
        let settings = serving(&[&jwt[..], &with(&["--hook-jwt-keys", "discovery"])].concat(), &[]);
        let described = Address::parse("https://a/oauth/.well-known/openid-configuration").expect("an address");
        assert_eq!(settings.hook_jwt.expect("tokens").trust.issuers[0].1, Source::DescribedAt(described));
    }

    #[test]
    fn an_openid_provider_is_for_the_api_alone() {
        let api = ["--api-jwt-issuer", "https://id"];
        let refused = parse(&api, &CREDENTIALS);
        assert!(matches!(refused, Err(ConfigError::JwtIncomplete { missing: "TOLLGATE_API_JWT_AUDIENCE", .. })));
        let api = [&api[..], &["--api-jwt-audience", "api", "--api-jwt-admin-scope", "boss"]].concat();
        let ApiJwt { trust, scopes } = serving(&api, &CREDENTIALS).api_jwt.expect("tokens");
        let described = Address::parse("https://id/.well-known/openid-configuration").expect("an address");
        assert_eq!(trust.issuers, [("https://id".to_owned(), Source::DescribedAt(described))]);
        assert_eq!(scopes.map(|(_, scope)| scope), ["tollgate_reader", "tollgate_writer", "boss"]);
        let hooks = ["--hook-auth", "jwt", "--hook-jwt-issuers", "https://a", "--hook-jwt-audience", "hooks,api"];
        assert!(matches!(parse(&[&api[..], &hooks].concat(), &[]), Err(ConfigError::SharedAudience(_))));
        let plain = [&api[..], &["--api-jwt-jwks-url", "http://id/keys"]].concat();
        assert!(matches!(parse(&plain, &CREDENTIALS), Err(ConfigError::KeyAddress { .. })));
        let token = [&CREDENTIALS[..], &[("TOLLGATE_ADMIN_TOKEN", "a.b.c")]].concat();
        assert!(matches!(parse(&api, &token), Err(ConfigError::AdminTokenForm)));
        assert!(parse(&[], &token).is_ok());
        for scope in ["", " ", "a b"] {
            assert!(
                parse(&[&api[..], &["--api-jwt-reader-scope", scope]].concat(), &CREDENTIALS).is_err(),
                "{scope:?}"
            );
        }
        for other in ["reader", "writer"] {
            let flag = format!("--api-jwt-{other}-scope");
            let shared = [&api[..], &[&flag, "boss"]].concat();
            assert!(matches!(parse(&shared, &CREDENTIALS), Err(ConfigError::SharedScope(_))), "{other}");
        }
        let shared = [&api[..], &["--api-jwt-reader-scope", "x", "--api-jwt-writer-scope", "x"]].concat();
        assert!(matches!(parse(&shared, &CREDENTIALS), Err(ConfigError::SharedScope(_))));
        assert!(
            parse(&["--jwt-leeway", "5m"], &CREDENTIALS).is_ok()
                && parse(&["--jwt-leeway", "301s"], &CREDENTIALS).is_err()
        );
    }

    #[test]
    fn claims_are_made_when_they_have_a_prefix_that_is_nobody_elses() {
        let prefix = |environment: &[(&str, &str)]| serving(&[], environment).policy.claims_prefix;
        assert_eq!(prefix(&CREDENTIALS), None);
        let settings = serving(&["--claims-prefix", "tg:"], &CREDENTIALS);
        assert_eq!(settings.policy.claims_prefix.expect("a prefix").as_str(), "tg:");
        for refused in ["", " ", "a b", "é", "c", "scope", "urn:onegini.com:oidc:", &"x".repeat(65)] {
            let error = parse(&["--claims-prefix", refused], &CREDENTIALS).expect_err(refused).to_string();
            assert!(error.contains("--claims-prefix"), "{refused}: {error}");
        }
    }

    #[test]
    fn a_proxy_is_an_address_or_a_network() {
        let proxies = serving(&["--trusted-proxies", "10.0.0.0/8, 192.0.2.1,2001:db8::/32"], &CREDENTIALS);
        let proxies: Vec<String> = proxies.trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(proxies, ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]);
        assert!(parse(&["--trusted-proxies", "proxy.example.com"], &CREDENTIALS).is_err());
    }

    #[test]
    fn a_duration_is_an_integer_and_a_unit() {
        let check = |text, expected: Option<u64>| {
            assert_eq!(parse_duration(text).ok(), expected.map(Duration::from_millis), "{text:?}");
        };
        check("400ms", Some(400));
        check("60s", Some(60_000));
        check("10m", Some(600_000));
        check("2h", Some(7_200_000));
        check("0s", Some(0));
        for wrong in
            ["", "s", "10", "1.5s", "-1s", "10 s", "1d", "10S", "99999999999999999999s", "9999999999999999999h"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn a_token_ends_after_a_time_or_at_one_or_never() {
        let check = |text, expected: Option<Expiry>| assert_eq!(parse_expiry(text).ok(), expected, "{text:?}");
        check("never", Some(Expiry::Never));
        check("90d", Some(Expiry::After(Duration::from_hours(90 * 24))));
        check("12h", Some(Expiry::After(Duration::from_hours(12))));
        let instant = DateTime::from_timestamp(1_800_000_000, 0).expect("an instant");
        check("2027-01-15T08:00:00Z", Some(Expiry::At(instant)));
        check("2027-01-15T09:00:00+01:00", Some(Expiry::At(instant)));
        for wrong in ["", "d", "90", "1.5d", "-1d", "Never", "2027-01-15", "2027-01-15 08:00:00Z", "99999999999999999d"]
        {
            check(wrong, None);
        }
        let create =
            |end: &[&str]| parse(&[&["token", "create", "--name", "ci", "--role", "writer"], end].concat(), &[]);
        assert!(matches!(create(&[]), Err(ConfigError::Arguments(_))), "an end has to be told");
        let Command::Token { command, .. } = create(&["--expires", "1d"]).expect("a command") else {
            panic!("another")
        };
        let (name, expires) = (parse_token_name("ci").expect("a name"), Expiry::After(Duration::from_hours(24)));
        assert_eq!(command, TokenCommand::Create { name, role: Role::Writer, expires });
        for name in ["a b", "", "bootstrap"] {
            assert!(parse(&["token", "revoke", name], &[]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_command_line_is_sound_and_its_help_names_every_secret() {
        command_line().debug_assert();
        let help = command_line().render_long_help().to_string();
        for secret in ["DATABASE_URL", "HOOK_USERNAME", "HOOK_PASSWORD", "HOOK_NEXT_PASSWORD", "ADMIN_TOKEN"] {
            assert!(help.contains(&format!("TOLLGATE_{secret}")), "{secret}");
        }
    }
}

//! Every setting, one documented field each; the only reader of the environment.

use std::{
    fmt, fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use chrono::{DateTime, Utc};
use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::{
    domain::{
        claims::ClaimsPrefix,
        decision::{OnUnknown, Unmanaged},
        external,
        scope::Scope,
        time,
        token::{Role, SECRET_PREFIX, TokenName},
    },
    http::{
        auth::{
            issuer::{Address, AddressError, Source},
            jwt,
        },
        contract::Contract,
        tls::{Files, NamedFile},
        transfer::Format,
    },
    service::Policy,
};

const DEFAULT_DATABASE_URL: &str = "sqlite://tollgate.db?mode=rwc";
/// The demo's hook user name.
pub const DEMO_USERNAME: &str = "hook";
/// The demo's hook password.
pub const DEMO_PASSWORD: &str = "hook";
/// The demo's bearer token.
pub const DEMO_ADMIN_TOKEN: &str = "demo";
/// How long to go on serving after the process was told to stop, unless told otherwise.
const DRAIN_DELAY: Duration = Duration::from_secs(3);

const SECRETS_HELP: &str = "\
Secrets are read from the environment only, so that no list of processes shows them; each can also be named as a file
by the variable with _FILE appended, whose content is taken without the line break at its end:
  TOLLGATE_DATABASE_URL    sqlite://FILE?mode=rwc or postgres://... [default: sqlite://tollgate.db?mode=rwc]
  TOLLGATE_HOOK_USERNAME   the user name that Access is configured with (Basic authentication)
  TOLLGATE_HOOK_PASSWORD   the password that Access is configured with (Basic authentication)
  TOLLGATE_HOOK_NEXT_PASSWORD
                           a second password, taken as well as the first while it is exchanged
  TOLLGATE_HOOK_NEXT_USERNAME
                           its user name [default: that of the first]
  TOLLGATE_ADMIN_TOKEN     the bearer token of the bootstrap administrator; without it the API takes tokens that Tollgate
                           has made, and those of an OpenID provider

Durations are an integer and `ms`, `s`, `m` or `h`.";

const DATABASE_HELP: &str = "\
The database is the one that TOLLGATE_DATABASE_URL names, or the file that TOLLGATE_DATABASE_URL_FILE names holds
[default: sqlite://tollgate.db?mode=rwc]. A service that runs on it knows of a change within a second or so.";

/// Answers the web hooks of OneWelcome Access: keeps the OAuth scopes whose subscription is valid, removes the others.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, after_help = SECRETS_HELP, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<CliCommand>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is gone once the settings are read")]
enum CliCommand {
    /// Serve the hooks and the management API (what happens without a command, too)
    #[command(after_help = SECRETS_HELP)]
    Serve(ServeArgs),
    /// Bring the tables of the database up to date, then exit
    #[command(after_help = SECRETS_HELP)]
    Migrate(LogArgs),
    /// Make, list and revoke the tokens of the management API, in the database itself
    #[command(after_help = DATABASE_HELP)]
    Token {
        #[command(subcommand)]
        action: TokenArg,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Import subscriptions from a file into the database itself; what is there already is left, so it may be repeated
    #[command(after_help = DATABASE_HELP)]
    Import {
        /// The file; `-` for standard input
        file: PathBuf,
        /// How it is written; by its name when nothing is said, and NDJSON when that says nothing
        #[arg(long = "format")]
        file_format: Option<FormatArg>,
        /// Check each line as if it were imported, and keep nothing
        #[arg(long)]
        dry_run: bool,
        /// What the names of claims begin with, as when serving
        #[arg(long, env = "TOLLGATE_CLAIMS_PREFIX", value_parser = parse_claims_prefix)]
        claims_prefix: Option<ClaimsPrefix>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Export all subscriptions to standard output
    #[command(after_help = DATABASE_HELP)]
    Export {
        /// How it is written
        #[arg(long = "format", default_value = "ndjson")]
        file_format: FormatArg,
        /// Those alone that this system knows by an id of its own
        #[arg(long, value_parser = parse_source)]
        source: Option<external::Source>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Print a contract as OpenAPI document
    Openapi {
        /// Which one
        document: DocumentArg,
    },
}

#[derive(Debug, Subcommand)]
enum TokenArg {
    /// Make a token: its secret is printed alone, once, and all else goes to standard error
    #[command(after_help = DATABASE_HELP)]
    Create {
        /// Its name, under which its changes are recorded: 1 to 64 letters, digits, `.`, `_` and `-`, never used before
        #[arg(long, value_parser = parse_token_name)]
        name: TokenName,
        /// What it may do: each role may do what those before it may
        #[arg(long)]
        role: RoleArg,
        /// When it ends: in an integer and `ms`, `s`, `m`, `h` or `d`, such as `90d`; at an RFC 3339 timestamp; or `never`
        #[arg(long, value_parser = parse_expiry)]
        expires: Expiry,
    },
    /// List all tokens, those that let nobody in any more among them
    #[command(after_help = DATABASE_HELP)]
    List,
    /// Revoke a token, for good
    #[command(after_help = DATABASE_HELP)]
    Revoke {
        /// Its name
        #[arg(value_parser = parse_token_name)]
        name: TokenName,
    },
}

/// How a file is written.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormatArg {
    /// A JSON object a line
    Ndjson,
    /// Comma-separated values, with a line of names before them
    Csv,
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Ndjson => Self::Ndjson,
            FormatArg::Csv => Self::Csv,
        }
    }
}

/// What a token may do.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Look
    Reader,
    /// Change subscriptions
    Writer,
    /// Change the catalogue, and hand out tokens
    Admin,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DocumentArg {
    /// What Access calls
    Hooks,
    /// What billing and support call
    Management,
}

/// What happens to scopes that are not in the catalogue.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum UnmanagedArg {
    Keep,
    Remove,
}

/// What happens to managed scopes when nothing is known.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum OnUnknownArg {
    Error,
    Remove,
    Keep,
}

/// A way for Access to authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HookAuthArg {
    Basic,
    Jwt,
    None,
}

/// Where the keys of Access are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HookJwtKeysArg {
    /// At /v1/keys below the issuer
    Path,
    /// Where /.well-known/openid-configuration below the issuer says
    Discovery,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What is logged: a level, or directives such as `info,tollgate=debug`
    #[arg(long = "log", env = "TOLLGATE_LOG", default_value = "info")]
    pub filter: String,
    /// How log lines look
    #[arg(long = "log-format", env = "TOLLGATE_LOG_FORMAT", default_value = "text")]
    pub format: LogFormat,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct ServeArgs {
    /// Serve an example from a temporary database, with the credentials `hook`/`hook` and the token `demo`
    #[arg(long)]
    demo: bool,
    /// Where the hooks are served, and the management API unless it has a listener of its own
    #[arg(long, env = "TOLLGATE_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where the management API is served, then there only
    #[arg(long, env = "TOLLGATE_API_LISTEN")]
    api_listen: Option<SocketAddr>,
    /// Where /livez, /readyz, /metrics and /version are served
    #[arg(long, env = "TOLLGATE_OPS_LISTEN", default_value = "127.0.0.1:9090")]
    ops_listen: SocketAddr,
    /// The certificate in PEM, and those it was signed with: the hooks and the management API are served over TLS
    #[arg(long, env = "TOLLGATE_TLS_CERT_FILE")]
    tls_cert_file: Option<PathBuf>,
    /// The key of the certificate in PEM
    #[arg(long, env = "TOLLGATE_TLS_KEY_FILE")]
    tls_key_file: Option<PathBuf>,
    /// Who signs the certificates that callers of the hooks must have (and of the management API beside them), in PEM
    #[arg(long, env = "TOLLGATE_TLS_CLIENT_CA_FILE")]
    tls_client_ca_file: Option<PathBuf>,
    /// The same for callers of the management API on a listener of its own
    #[arg(long, env = "TOLLGATE_API_TLS_CLIENT_CA_FILE")]
    api_tls_client_ca_file: Option<PathBuf>,
    /// Serve what is for operators over TLS, too
    #[arg(long, env = "TOLLGATE_OPS_TLS", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    ops_tls: bool,
    /// How Access authenticates: a comma list
    #[arg(long, env = "TOLLGATE_HOOK_AUTH", default_value = "basic", value_delimiter = ',')]
    hook_auth: Vec<HookAuthArg>,
    /// Let `none` stand in the list above even though the hooks can be reached from other machines
    #[arg(long, env = "TOLLGATE_ALLOW_OPEN_HOOKS", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    allow_open_hooks: bool,
    /// Who signs the tokens of Access, as `iss` in them says: a comma list. Tokens of others are refused
    #[arg(long, env = "TOLLGATE_HOOK_JWT_ISSUERS", value_delimiter = ',')]
    hook_jwt_issuers: Vec<String>,
    /// Whom the tokens of Access must be for (`aud`): the base URI of the web hook, exactly as Access is configured
    /// with it; a comma list when there are several
    #[arg(long, env = "TOLLGATE_HOOK_JWT_AUDIENCE", value_delimiter = ',')]
    hook_jwt_audience: Vec<String>,
    /// Where the keys of Access are found, below the issuer
    #[arg(long, env = "TOLLGATE_HOOK_JWT_KEYS", default_value = "path")]
    hook_jwt_keys: HookJwtKeysArg,
    /// Where the keys of Access are, when neither of the above; for one issuer only
    #[arg(long, env = "TOLLGATE_HOOK_JWT_JWKS_URL")]
    hook_jwt_jwks_url: Option<String>,
    /// The client that Access calls its web hooks as (`sub`, and `cid` or `client_id`)
    #[arg(long, env = "TOLLGATE_HOOK_JWT_CLIENT", default_value = "onewelcomeAccessWebHookClient")]
    hook_jwt_client: String,
    /// The scopes that the tokens of Access must have: a comma list. Add `onewelcome_webhook_<name>` to let in one web
    /// hook alone
    #[arg(long, env = "TOLLGATE_HOOK_JWT_SCOPES", default_value = "onewelcome_webhooks", value_delimiter = ',')]
    hook_jwt_scopes: Vec<String>,
    /// The OpenID provider whose access tokens open the management API, as `iss` in them says
    #[arg(long, env = "TOLLGATE_API_JWT_ISSUER")]
    api_jwt_issuer: Option<String>,
    /// Whom those tokens must be for (`aud`): a comma list
    #[arg(long, env = "TOLLGATE_API_JWT_AUDIENCE", value_delimiter = ',')]
    api_jwt_audience: Vec<String>,
    /// Where the keys of the OpenID provider are, when its description is not to be asked
    #[arg(long, env = "TOLLGATE_API_JWT_JWKS_URL")]
    api_jwt_jwks_url: Option<String>,
    /// The scope that stands for the role `reader`
    #[arg(long, env = "TOLLGATE_API_JWT_READER_SCOPE", default_value = "tollgate_reader", value_parser = parse_scope)]
    api_jwt_reader_scope: Scope,
    /// The scope that stands for the role `writer`
    #[arg(long, env = "TOLLGATE_API_JWT_WRITER_SCOPE", default_value = "tollgate_writer", value_parser = parse_scope)]
    api_jwt_writer_scope: Scope,
    /// The scope that stands for the role `admin`
    #[arg(long, env = "TOLLGATE_API_JWT_ADMIN_SCOPE", default_value = "tollgate_admin", value_parser = parse_scope)]
    api_jwt_admin_scope: Scope,
    /// How far the clock of an issuer of tokens may be off, up to 5m
    #[arg(long, env = "TOLLGATE_JWT_LEEWAY", default_value = "30s", value_parser = parse_leeway)]
    jwt_leeway: Duration,
    /// The proxies whose X-Forwarded-For is believed: a comma list of addresses and networks such as 10.0.0.0/8
    #[arg(long, env = "TOLLGATE_TRUSTED_PROXIES", value_delimiter = ',', value_parser = parse_network)]
    trusted_proxies: Vec<IpNet>,
    /// What happens to scopes that are not in the catalogue
    #[arg(long, env = "TOLLGATE_UNMANAGED", default_value = "keep")]
    unmanaged: UnmanagedArg,
    /// What happens to managed scopes when nothing is known and the database cannot be asked: a 503, or a guess
    #[arg(long, env = "TOLLGATE_ON_UNKNOWN", default_value = "error")]
    on_unknown: OnUnknownArg,
    /// Tell tokens what is held and until when, and what scopes and subscriptions say of themselves, in claims whose
    /// names begin so: 1 to 64 printable ASCII characters, with which no claim of Access's own begins, such as `tg:`
    #[arg(long, env = "TOLLGATE_CLAIMS_PREFIX", value_parser = parse_claims_prefix)]
    claims_prefix: Option<ClaimsPrefix>,
    /// How long a hook may take to be answered
    #[arg(long, env = "TOLLGATE_HOOK_TIMEOUT", default_value = "400ms", value_parser = parse_duration)]
    hook_timeout: Duration,
    /// How long facts are believed without asking the database again
    #[arg(long, env = "TOLLGATE_MAX_AGE", default_value = "60s", value_parser = parse_duration)]
    max_age: Duration,
    /// How long facts are used while the database cannot be asked
    #[arg(long, env = "TOLLGATE_MAX_STALE", default_value = "10m", value_parser = parse_duration)]
    max_stale: Duration,
    /// How long changes are kept for the history, 24h at least; for ever when nothing is said
    #[arg(long, env = "TOLLGATE_KEEP_CHANGES", value_parser = parse_keeping)]
    keep_changes: Option<Duration>,
    /// Let replicas on Postgres wake each other with notifications; without, they look once a second
    #[arg(long, env = "TOLLGATE_FEED_WAKE_UP", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = true)]
    feed_wake_up: bool,
    /// Refuse changes without If-Match
    #[arg(long, env = "TOLLGATE_REQUIRE_IF_MATCH", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    require_if_match: bool,
    /// How long to go on trying to reach the database at the start
    #[arg(long, env = "TOLLGATE_STARTUP_TIMEOUT", default_value = "1m", value_parser = parse_duration)]
    startup_timeout: Duration,
    /// Bring the tables up to date before serving
    #[arg(long, env = "TOLLGATE_MIGRATE", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = true)]
    migrate: bool,
    /// How long to go on serving after the process was told to stop, while load balancers notice [default: 3s, in the
    /// demo 0s]
    #[arg(long, env = "TOLLGATE_DRAIN_DELAY", value_parser = parse_duration)]
    drain_delay: Option<Duration>,
    /// How long requests under way may then take to end
    #[arg(long, env = "TOLLGATE_DRAIN_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    drain_timeout: Duration,
    #[command(flatten)]
    log: LogArgs,
}

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Which tokens are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// The issuers, and where their keys are.
    pub issuers: Vec<(String, Source)>,
    /// Whom the tokens must be for: one of these.
    pub audiences: Vec<String>,
    /// How far the clock of an issuer may be off.
    pub leeway: Duration,
}

/// The tokens of Access that open the hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookJwt {
    /// Which are believed.
    pub trust: Trust,
    /// The client that they must be of.
    pub client: String,
    /// The scopes that they must have, all of them.
    pub scopes: Vec<String>,
}

/// The tokens of an OpenID provider that open the management API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiJwt {
    /// Which are believed.
    pub trust: Trust,
    /// The scope of each role.
    pub scopes: [(Role, String); Role::ALL.len()],
}

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
    /// Whether changes without `If-Match` are refused.
    pub require_if_match: bool,
    /// How long to go on trying to reach the database at the start.
    pub startup_timeout: Duration,
    /// How long to go on serving after the process was told to stop.
    pub drain_delay: Duration,
    /// How long requests under way may then take to end.
    pub drain_timeout: Duration,
    /// How to log.
    pub log: LogArgs,
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
        hook_basic(username.zip(password), next_username, next_password)?
    } else {
        Vec::new()
    };
    let hook_jwt = args.hook_auth.contains(&HookAuthArg::Jwt).then(|| hook_jwt(&args)).transpose()?;
    let api_jwt = args.api_jwt_issuer.as_ref().map(|issuer| api_jwt(&args, issuer)).transpose()?;
    if let (Some(hook), Some(api)) = (&hook_jwt, &api_jwt)
        && let Some(shared) = hook.trust.audiences.iter().find(|audience| api.trust.audiences.contains(audience))
    {
        return Err(ConfigError::SharedAudience(shared.clone()));
    }
    let hook_open = args.hook_auth.contains(&HookAuthArg::None);
    if hook_open && !args.listen.ip().is_loopback() && !args.allow_open_hooks {
        return Err(ConfigError::OpenHooks(args.listen));
    }
    let tls = tls(&args)?;
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
        require_if_match: args.require_if_match,
        startup_timeout: args.startup_timeout,
        // Nobody balances the load of a demo, and a person waits for it to end.
        drain_delay: args.drain_delay.unwrap_or(if args.demo { Duration::ZERO } else { DRAIN_DELAY }),
        drain_timeout: args.drain_timeout,
        log: args.log,
    })
}

fn hook_basic(
    current: Option<(Secret, Secret)>,
    next_username: Option<Secret>,
    next_password: Option<Secret>,
) -> Result<Vec<(Secret, Secret)>, ConfigError> {
    let current = current.ok_or(ConfigError::HookCredentials)?;
    let next = match (next_username, next_password) {
        (None, None) => None,
        (username, Some(password)) => Some((username.unwrap_or_else(|| current.0.clone()), password)),
        (Some(_), None) => return Err(ConfigError::HookNextPassword),
    };
    let named = [("TOLLGATE_HOOK_USERNAME", Some(&current)), ("TOLLGATE_HOOK_NEXT_USERNAME", next.as_ref())];
    for (variable, pair) in named {
        if pair.is_some_and(|(username, _)| username.expose().contains(':')) {
            return Err(ConfigError::HookUsername(variable));
        }
    }
    Ok(std::iter::once(current).chain(next).collect())
}

fn hook_jwt(args: &ServeArgs) -> Result<HookJwt, ConfigError> {
    let needs = "TOLLGATE_HOOK_AUTH lists `jwt`";
    let issuers = listed(&args.hook_jwt_issuers);
    if issuers.is_empty() {
        return Err(ConfigError::JwtIncomplete { needs, missing: "TOLLGATE_HOOK_JWT_ISSUERS" });
    }
    let audiences = listed(&args.hook_jwt_audience);
    if audiences.is_empty() {
        return Err(ConfigError::JwtIncomplete { needs, missing: "TOLLGATE_HOOK_JWT_AUDIENCE" });
    }
    let scopes = listed(&args.hook_jwt_scopes);
    if scopes.is_empty() {
        return Err(ConfigError::JwtIncomplete { needs, missing: "TOLLGATE_HOOK_JWT_SCOPES" });
    }
    if args.hook_jwt_jwks_url.is_some() && issuers.len() > 1 {
        return Err(ConfigError::KeysOfSeveral);
    }
    let source = |issuer: String| {
        let source = match (&args.hook_jwt_jwks_url, args.hook_jwt_keys) {
            (Some(url), _) => Source::At(key_address("TOLLGATE_HOOK_JWT_JWKS_URL", url, Address::parse)?),
            (None, HookJwtKeysArg::Path) => {
                Source::At(key_address("TOLLGATE_HOOK_JWT_ISSUERS", &issuer, Address::of_keys)?)
            }
            (None, HookJwtKeysArg::Discovery) => {
                Source::DescribedAt(key_address("TOLLGATE_HOOK_JWT_ISSUERS", &issuer, Address::of_description)?)
            }
        };
        Ok((issuer, source))
    };
    let issuers = issuers.into_iter().map(source).collect::<Result<_, ConfigError>>()?;
    let trust = Trust { issuers, audiences, leeway: args.jwt_leeway };
    Ok(HookJwt { trust, client: args.hook_jwt_client.clone(), scopes })
}

fn api_jwt(args: &ServeArgs, issuer: &str) -> Result<ApiJwt, ConfigError> {
    let audiences = listed(&args.api_jwt_audience);
    if audiences.is_empty() {
        let needs = "TOLLGATE_API_JWT_ISSUER is set";
        return Err(ConfigError::JwtIncomplete { needs, missing: "TOLLGATE_API_JWT_AUDIENCE" });
    }
    let source = match &args.api_jwt_jwks_url {
        Some(url) => Source::At(key_address("TOLLGATE_API_JWT_JWKS_URL", url, Address::parse)?),
        None => Source::DescribedAt(key_address("TOLLGATE_API_JWT_ISSUER", issuer, Address::of_description)?),
    };
    let trust = Trust { issuers: vec![(issuer.to_owned(), source)], audiences, leeway: args.jwt_leeway };
    let scopes = [
        (Role::Reader, args.api_jwt_reader_scope.to_string()),
        (Role::Writer, args.api_jwt_writer_scope.to_string()),
        (Role::Admin, args.api_jwt_admin_scope.to_string()),
    ];
    if let Some(((_, scope), _)) =
        scopes.iter().zip(&scopes[1..]).chain([(&scopes[0], &scopes[2])]).find(|(a, b)| a.1 == b.1)
    {
        return Err(ConfigError::SharedScope(scope.clone()));
    }
    Ok(ApiJwt { trust, scopes })
}

fn key_address(
    variable: &'static str,
    url: &str,
    parse: fn(&str) -> Result<Address, AddressError>,
) -> Result<Address, ConfigError> {
    parse(url).map_err(|source| ConfigError::KeyAddress { variable, source })
}

/// The items of a comma list, without the blanks around them; an empty one is a comma too many.
fn listed(items: &[String]) -> Vec<String> {
    items.iter().map(|item| item.trim()).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// The longest leeway: an issuer whose clock is off by more needs a person, and a token lives some minutes.
const MAX_LEEWAY: Duration = Duration::from_mins(5);

fn parse_leeway(text: &str) -> Result<Duration, String> {
    let leeway = parse_duration(text)?;
    if leeway > MAX_LEEWAY { Err("it is longer than 5m".to_owned()) } else { Ok(leeway) }
}

fn parse_source(text: &str) -> Result<external::Source, String> {
    external::Source::parse(text).map_err(|error| error.to_string())
}

fn parse_claims_prefix(text: &str) -> Result<ClaimsPrefix, String> {
    ClaimsPrefix::parse(text).map_err(|error| error.to_string())
}

fn parse_scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).map_err(|error| error.to_string())
}

/// A network, or a single address.
fn parse_network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let single = || text.parse().ok().map(|address: IpAddr| IpNet::from(address));
    text.parse().ok().or_else(single).ok_or_else(|| "it is neither an address nor a network such as 10.0.0.0/8".into())
}

/// The files that TLS is made from.
fn tls(args: &ServeArgs) -> Result<Option<Files>, ConfigError> {
    let named = |setting, path: Option<&PathBuf>| path.map(|path| NamedFile { setting, path: path.clone() });
    let certificate = named("TOLLGATE_TLS_CERT_FILE", args.tls_cert_file.as_ref());
    let key = named("TOLLGATE_TLS_KEY_FILE", args.tls_key_file.as_ref());
    let hook_clients = named("TOLLGATE_TLS_CLIENT_CA_FILE", args.tls_client_ca_file.as_ref());
    let api_clients = named("TOLLGATE_API_TLS_CLIENT_CA_FILE", args.api_tls_client_ca_file.as_ref());
    if api_clients.is_some() && args.api_listen.is_none() {
        return Err(ConfigError::ApiClientCa);
    }
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(Files { certificate, key, hook_clients, api_clients })),
        (None, None) => {
            let senseless = hook_clients.or(api_clients).map(|file| file.setting);
            match senseless.or(args.ops_tls.then_some("TOLLGATE_OPS_TLS")) {
                Some(setting) => Err(ConfigError::TlsMissing(setting)),
                None => Ok(None),
            }
        }
        (Some(_), None) | (None, Some(_)) => Err(ConfigError::TlsHalf),
    }
}

/// A secret from the variable itself, or from the file that its `_FILE` variable names.
fn secret(environment: &dyn Fn(&str) -> Option<String>, name: &'static str) -> Result<Option<Secret>, ConfigError> {
    let variable = format!("{name}_FILE");
    let secret = match (environment(name), environment(&variable)) {
        (Some(_), Some(_)) => return Err(ConfigError::SecretTwice(name)),
        (Some(text), None) => text,
        (None, Some(path)) => {
            let path = PathBuf::from(path);
            let text =
                fs::read_to_string(&path).map_err(|source| ConfigError::SecretFile { variable, path, source })?;
            text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text)).to_owned()
        }
        (None, None) => return Ok(None),
    };
    if secret.is_empty() { Err(ConfigError::SecretEmpty(name)) } else { Ok(Some(Secret(secret))) }
}

/// The units of durations in milliseconds; a day is one only where long times are meant.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// How long changes are kept: long enough for every replica to have seen them, and every reader of the feed that asks
/// once a day.
fn parse_keeping(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_hours(24) { Err("expected `24h` or more".to_owned()) } else { Ok(duration) }
}

/// A duration: an integer and `ms`, `s`, `m` or `h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text, &UNITS[..4], "expected an integer and `ms`, `s`, `m` or `h`")
}

fn duration(text: &str, units: &[(&str, u64)], expected: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = units.iter().find(|(name, _)| *name == &text[digits.len()..]);
    let (_, milliseconds_each) = unit.ok_or_else(|| expected.to_owned())?;
    let count: u64 = digits.parse().map_err(|_| "expected an integer before the unit".to_owned())?;
    count.checked_mul(*milliseconds_each).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

fn parse_token_name(text: &str) -> Result<TokenName, String> {
    TokenName::parse(text).map_err(|error| error.to_string())
}

/// When a token ends: `never`, a timestamp, or a duration, which here may be one in days.
fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry::Never);
    }
    let expected = "expected an integer and `ms`, `s`, `m`, `h` or `d`, an RFC 3339 timestamp, or `never`";
    time::parse(text).map_or_else(|| duration(text, &UNITS, expected).map(Expiry::After), |at| Ok(Expiry::At(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

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

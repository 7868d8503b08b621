//! The definition of the command line: what `--help` shows, and how each text is read.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use super::{
    Expiry,
    ask::{ASK_HELP, AskArgs},
};
use crate::{
    domain::{claims::ClaimsPrefix, external, scope::Scope, time, token::TokenName},
    http::{
        collector::{Endpoint, EndpointError},
        transfer::Format,
    },
};

const SECRETS_HELP: &str = "\
Secrets are read from the environment only, so that no list of processes shows them; each can also be named as a file
by the variable with _FILE appended, whose content is taken without the line break at its end. Where neither is set, a
file of the variable's name in the folder that CREDENTIALS_DIRECTORY names is taken, as systemd makes it of credentials:
  TOLLGATE_DATABASE_URL    sqlite://FILE?mode=rwc or postgres://... [default: sqlite://tollgate.db?mode=rwc]
  TOLLGATE_HOOK_USERNAME   the user name that Access is configured with (Basic authentication)
  TOLLGATE_HOOK_PASSWORD   the password that Access is configured with (Basic authentication)
  TOLLGATE_HOOK_NEXT_PASSWORD
                           a second password, taken as well as the first while it is exchanged
  TOLLGATE_HOOK_NEXT_USERNAME
                           its user name [default: that of the first]
  TOLLGATE_ADMIN_TOKEN     the bearer token of the bootstrap administrator; without it the API takes tokens that Tollgate
                           has made, and those of an OpenID provider
  TOLLGATE_CONSOLE_KEY     what the sessions of the console are sealed with, 32 bytes or more, the same for all replicas;
                           without it a random key, and each session is one of one process
  TOLLGATE_CONSOLE_OPENID_CLIENT_SECRET
                           the secret of the console at the OpenID provider, if it has one there

Durations are an integer and `ms`, `s`, `m` or `h`.";

const DATABASE_HELP: &str = "\
The database is the one that TOLLGATE_DATABASE_URL names, or the file that TOLLGATE_DATABASE_URL_FILE names holds
[default: sqlite://tollgate.db?mode=rwc]. A service that runs on it knows of a change within a second or so.";

const CHECK_HELP: &str = "\
It reads the settings that `tollgate serve` reads, from the same variables: see `tollgate serve --help`. It exits with 0
when each line says `ok` or `warning`, with 1 when one says `error`, and with 2 when the command line makes no sense. On
Postgres it asks as the role that TOLLGATE_DATABASE_URL names. Where the service is running already, its own listeners
are not free, and that is told as an error.";

/// Answers the web hooks of OneWelcome Access: keeps the OAuth scopes whose subscription is valid, removes the others.
#[derive(Debug, Parser)]
#[command(name = "tollgate", version, about, after_help = SECRETS_HELP, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<CliCommand>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is gone once the settings are read")]
pub enum CliCommand {
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
    /// Look, before a start, whether serving with these settings would succeed: settings, database, keys, certificate and
    /// listeners, a line for each
    #[command(after_help = CHECK_HELP, mut_arg("demo", |demo| demo.hide(true)))]
    Check {
        /// Look at all rows of the database instead, and at nothing else: whether they agree with the rules and with each
        /// other. Nothing is changed, and services may go on meanwhile
        #[arg(long)]
        data: bool,
        /// Print each line as a JSON object
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        serve: Box<ServeArgs>,
    },
    /// Copy an SQLite database to a file that is not there yet, while services go on with it
    #[command(after_help = DATABASE_HELP)]
    Backup {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Ask a running service what Access would ask, and show which scopes it keeps, and why
    #[command(after_help = ASK_HELP)]
    Ask(AskArgs),
    /// Ask the service on this machine whether it is ready: 0 says that it is, 1 that it is not or cannot be asked
    Health(HealthArgs),
    /// Print a contract as OpenAPI document
    Openapi {
        /// Which one
        document: DocumentArg,
    },
}

#[derive(Debug, Subcommand)]
pub enum TokenArg {
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
pub enum FormatArg {
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
pub enum RoleArg {
    /// Look
    Reader,
    /// Change subscriptions
    Writer,
    /// Change the catalogue, and hand out tokens
    Admin,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DocumentArg {
    /// What Access calls
    Hooks,
    /// What billing and support call
    Management,
}

/// What happens to scopes that are not in the catalogue.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum UnmanagedArg {
    Keep,
    Remove,
}

/// What happens to managed scopes when nothing is known.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OnUnknownArg {
    Error,
    Remove,
    Keep,
}

/// A way for Access to authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookAuthArg {
    Basic,
    Jwt,
    None,
}

/// Where the keys of Access are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookJwtKeysArg {
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
pub struct HealthArgs {
    /// Where it serves /readyz; where that is every address of the machine, its loopback address is asked
    #[arg(long, env = "TOLLGATE_OPS_LISTEN", default_value = "127.0.0.1:9090")]
    pub ops_listen: SocketAddr,
    /// Ask over TLS, with whatever certificate it shows: nothing that matters is told or believed
    #[arg(long, env = "TOLLGATE_OPS_TLS", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    pub ops_tls: bool,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct ServeArgs {
    /// Serve an example from a temporary database, with the credentials `hook`/`hook` and the token `demo`
    #[arg(long)]
    pub demo: bool,
    /// Where the hooks are served, and the management API unless it has a listener of its own
    #[arg(long, env = "TOLLGATE_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Where the management API is served, then there only
    #[arg(long, env = "TOLLGATE_API_LISTEN")]
    pub api_listen: Option<SocketAddr>,
    /// Where /livez, /readyz, /metrics and /version are served
    #[arg(long, env = "TOLLGATE_OPS_LISTEN", default_value = "127.0.0.1:9090")]
    pub ops_listen: SocketAddr,
    /// The certificate in PEM, and those it was signed with: the hooks and the management API are served over TLS
    #[arg(long, env = "TOLLGATE_TLS_CERT_FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of the certificate in PEM
    #[arg(long, env = "TOLLGATE_TLS_KEY_FILE")]
    pub tls_key_file: Option<PathBuf>,
    /// Who signs the certificates that callers of the hooks must have (and of the management API beside them), in PEM
    #[arg(long, env = "TOLLGATE_TLS_CLIENT_CA_FILE")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// The same for callers of the management API on a listener of its own
    #[arg(long, env = "TOLLGATE_API_TLS_CLIENT_CA_FILE")]
    pub api_tls_client_ca_file: Option<PathBuf>,
    /// Serve what is for operators over TLS, too
    #[arg(long, env = "TOLLGATE_OPS_TLS", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    pub ops_tls: bool,
    /// How Access authenticates: a comma list
    #[arg(long, env = "TOLLGATE_HOOK_AUTH", default_value = "basic", value_delimiter = ',')]
    pub hook_auth: Vec<HookAuthArg>,
    /// Let `none` stand in the list above even though the hooks can be reached from other machines
    #[arg(long, env = "TOLLGATE_ALLOW_OPEN_HOOKS", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    pub allow_open_hooks: bool,
    /// Who signs the tokens of Access, as `iss` in them says: a comma list. Tokens of others are refused
    #[arg(long, env = "TOLLGATE_HOOK_JWT_ISSUERS", value_delimiter = ',')]
    pub hook_jwt_issuers: Vec<String>,
    /// Whom the tokens of Access must be for (`aud`): the base URI of the web hook, exactly as Access is configured
    /// with it; a comma list when there are several
    #[arg(long, env = "TOLLGATE_HOOK_JWT_AUDIENCE", value_delimiter = ',')]
    pub hook_jwt_audience: Vec<String>,
    /// Where the keys of Access are found, below the issuer
    #[arg(long, env = "TOLLGATE_HOOK_JWT_KEYS", default_value = "path")]
    pub hook_jwt_keys: HookJwtKeysArg,
    /// Where the keys of Access are, when neither of the above; for one issuer only
    #[arg(long, env = "TOLLGATE_HOOK_JWT_JWKS_URL")]
    pub hook_jwt_jwks_url: Option<String>,
    /// The client that Access calls its web hooks as (`sub`, and `cid` or `client_id`)
    #[arg(long, env = "TOLLGATE_HOOK_JWT_CLIENT", default_value = "onewelcomeAccessWebHookClient")]
    pub hook_jwt_client: String,
    /// The scopes that the tokens of Access must have: a comma list. Add `onewelcome_webhook_<name>` to let in one web
    /// hook alone
    #[arg(long, env = "TOLLGATE_HOOK_JWT_SCOPES", default_value = "onewelcome_webhooks", value_delimiter = ',')]
    pub hook_jwt_scopes: Vec<String>,
    /// The OpenID provider whose access tokens open the management API, as `iss` in them says
    #[arg(long, env = "TOLLGATE_API_JWT_ISSUER")]
    pub api_jwt_issuer: Option<String>,
    /// Whom those tokens must be for (`aud`): a comma list
    #[arg(long, env = "TOLLGATE_API_JWT_AUDIENCE", value_delimiter = ',')]
    pub api_jwt_audience: Vec<String>,
    /// Where the keys of the OpenID provider are, when its description is not to be asked
    #[arg(long, env = "TOLLGATE_API_JWT_JWKS_URL")]
    pub api_jwt_jwks_url: Option<String>,
    /// The scope that stands for the role `reader`
    #[arg(long, env = "TOLLGATE_API_JWT_READER_SCOPE", default_value = "tollgate_reader", value_parser = parse_scope)]
    pub api_jwt_reader_scope: Scope,
    /// The scope that stands for the role `writer`
    #[arg(long, env = "TOLLGATE_API_JWT_WRITER_SCOPE", default_value = "tollgate_writer", value_parser = parse_scope)]
    pub api_jwt_writer_scope: Scope,
    /// The scope that stands for the role `admin`
    #[arg(long, env = "TOLLGATE_API_JWT_ADMIN_SCOPE", default_value = "tollgate_admin", value_parser = parse_scope)]
    pub api_jwt_admin_scope: Scope,
    /// How far the clock of an issuer of tokens may be off, up to 5m
    #[arg(long, env = "TOLLGATE_JWT_LEEWAY", default_value = "30s", value_parser = parse_leeway)]
    pub jwt_leeway: Duration,
    /// The proxies whose X-Forwarded-For is believed: a comma list of addresses and networks such as 10.0.0.0/8
    #[arg(long, env = "TOLLGATE_TRUSTED_PROXIES", value_delimiter = ',', value_parser = parse_network)]
    pub trusted_proxies: Vec<IpNet>,
    /// What happens to scopes that are not in the catalogue
    #[arg(long, env = "TOLLGATE_UNMANAGED", default_value = "keep")]
    pub unmanaged: UnmanagedArg,
    /// What happens to managed scopes when nothing is known and the database cannot be asked: a 503, or a guess
    #[arg(long, env = "TOLLGATE_ON_UNKNOWN", default_value = "error")]
    pub on_unknown: OnUnknownArg,
    /// Tell tokens what is held and until when, and what scopes and subscriptions say of themselves, in claims whose
    /// names begin so: 1 to 64 printable ASCII characters, with which no claim of Access's own begins, such as `tg:`
    #[arg(long, env = "TOLLGATE_CLAIMS_PREFIX", value_parser = parse_claims_prefix)]
    pub claims_prefix: Option<ClaimsPrefix>,
    /// How long a hook may take to be answered
    #[arg(long, env = "TOLLGATE_HOOK_TIMEOUT", default_value = "400ms", value_parser = parse_duration)]
    pub hook_timeout: Duration,
    /// How long facts are believed without asking the database again
    #[arg(long, env = "TOLLGATE_MAX_AGE", default_value = "60s", value_parser = parse_duration)]
    pub max_age: Duration,
    /// How long facts are used while the database cannot be asked
    #[arg(long, env = "TOLLGATE_MAX_STALE", default_value = "10m", value_parser = parse_duration)]
    pub max_stale: Duration,
    /// How long changes are kept for the history, 24h at least; for ever when nothing is said
    #[arg(long, env = "TOLLGATE_KEEP_CHANGES", value_parser = parse_keeping)]
    pub keep_changes: Option<Duration>,
    /// Let replicas on Postgres wake each other with notifications; without, they look once a second
    #[arg(long, env = "TOLLGATE_FEED_WAKE_UP", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = true)]
    pub feed_wake_up: bool,
    /// Serve the console, pages for support staff, beside the management API at /console
    #[arg(long, env = "TOLLGATE_CONSOLE", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = true)]
    pub console: bool,
    /// What the OpenID provider of the management API knows the console as: people sign in there, too. It has to send
    /// them back to /console/openid/callback below the URL of the console
    #[arg(long, env = "TOLLGATE_CONSOLE_OPENID_CLIENT_ID")]
    pub console_openid_client_id: Option<String>,
    /// Where browsers find the console: a URL without a path
    #[arg(long, env = "TOLLGATE_CONSOLE_URL")]
    pub console_url: Option<String>,
    /// Refuse changes without If-Match
    #[arg(long, env = "TOLLGATE_REQUIRE_IF_MATCH", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    pub require_if_match: bool,
    /// How long to go on trying to reach the database at the start
    #[arg(long, env = "TOLLGATE_STARTUP_TIMEOUT", default_value = "1m", value_parser = parse_duration)]
    pub startup_timeout: Duration,
    /// Bring the tables up to date before serving
    #[arg(long, env = "TOLLGATE_MIGRATE", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = true)]
    pub migrate: bool,
    /// How long to go on serving after the process was told to stop, while load balancers notice [default: 3s, in the
    /// demo 0s]
    #[arg(long, env = "TOLLGATE_DRAIN_DELAY", value_parser = parse_duration)]
    pub drain_delay: Option<Duration>,
    /// How long requests under way may then take to end
    #[arg(long, env = "TOLLGATE_DRAIN_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    pub drain_timeout: Duration,
    /// The collector that traces are sent to, by OTLP over HTTP in protobuf: the URL before /v1/traces, such as
    /// `http://localhost:4318`. Without it nothing is traced
    #[arg(long, env = "TOLLGATE_OTLP_ENDPOINT", value_parser = parse_endpoint)]
    pub otlp_endpoint: Option<Endpoint>,
    /// The share of the requests without `traceparent` that is traced, from 0 to 1; with one, its sampled flag decides
    #[arg(long, env = "TOLLGATE_OTLP_SHARE", default_value = "1", value_parser = parse_share)]
    pub otlp_share: f64,
    #[command(flatten)]
    pub log: LogArgs,
}

/// The longest leeway: an issuer whose clock is off by more needs a person, and a token lives some minutes.
const MAX_LEEWAY: Duration = Duration::from_mins(5);

fn parse_leeway(text: &str) -> Result<Duration, String> {
    let leeway = parse_duration(text)?;
    if leeway > MAX_LEEWAY { Err("it is longer than 5m".to_owned()) } else { Ok(leeway) }
}

fn parse_endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    Endpoint::parse(text)
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
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

/// The units of durations in milliseconds; a day is one only where long times are meant.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// How long changes are kept: long enough for every replica to have seen them, and every reader of the feed that asks
/// once a day.
fn parse_keeping(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_hours(24) { Err("expected `24h` or more".to_owned()) } else { Ok(duration) }
}

/// A duration: an integer and `ms`, `s`, `m` or `h`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    duration(text, &UNITS[..4], "expected an integer and `ms`, `s`, `m` or `h`")
}

fn duration(text: &str, units: &[(&str, u64)], expected: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = units.iter().find(|(name, _)| *name == &text[digits.len()..]);
    let (_, milliseconds_each) = unit.ok_or_else(|| expected.to_owned())?;
    let count: u64 = digits.parse().map_err(|_| "expected an integer before the unit".to_owned())?;
    count.checked_mul(*milliseconds_each).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

/// The name of a token.
pub fn parse_token_name(text: &str) -> Result<TokenName, String> {
    TokenName::parse(text).map_err(|error| error.to_string())
}

/// When a token ends: `never`, a timestamp, or a duration, which here may be one in days.
pub fn parse_expiry(text: &str) -> Result<Expiry, String> {
    if text == "never" {
        return Ok(Expiry::Never);
    }
    let expected = "expected an integer and `ms`, `s`, `m`, `h` or `d`, an RFC 3339 timestamp, or `never`";
    time::parse(text).map_or_else(|| duration(text, &UNITS, expected).map(Expiry::After), |at| Ok(Expiry::At(at)))
}

//! Every setting, one documented field each; the only reader of the environment.

use std::{fmt, fs, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::{
    domain::decision::{OnUnknown, Unmanaged},
    http::contract::Contract,
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
  TOLLGATE_ADMIN_TOKEN     the bearer token of the bootstrap administrator; without it the API answers 401

Durations are an integer and `ms`, `s`, `m` or `h`.";

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
    /// Print a contract as OpenAPI document
    Openapi {
        /// Which one
        document: DocumentArg,
    },
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
    None,
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
    /// How Access authenticates: a comma list
    #[arg(long, env = "TOLLGATE_HOOK_AUTH", default_value = "basic", value_delimiter = ',')]
    hook_auth: Vec<HookAuthArg>,
    /// Let `none` stand in the list above even though the hooks can be reached from other machines
    #[arg(long, env = "TOLLGATE_ALLOW_OPEN_HOOKS", action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", default_value_t = false)]
    allow_open_hooks: bool,
    /// What happens to scopes that are not in the catalogue
    #[arg(long, env = "TOLLGATE_UNMANAGED", default_value = "keep")]
    unmanaged: UnmanagedArg,
    /// What happens to managed scopes when nothing is known and the database cannot be asked: a 503, or a guess
    #[arg(long, env = "TOLLGATE_ON_UNKNOWN", default_value = "error")]
    on_unknown: OnUnknownArg,
    /// How long a hook may take to be answered
    #[arg(long, env = "TOLLGATE_HOOK_TIMEOUT", default_value = "400ms", value_parser = parse_duration)]
    hook_timeout: Duration,
    /// How long facts are believed without asking the database again
    #[arg(long, env = "TOLLGATE_MAX_AGE", default_value = "60s", value_parser = parse_duration)]
    max_age: Duration,
    /// How long facts are used while the database cannot be asked
    #[arg(long, env = "TOLLGATE_MAX_STALE", default_value = "10m", value_parser = parse_duration)]
    max_stale: Duration,
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
    /// The Basic credentials of the hooks, when they are a way in.
    pub hook_basic: Option<(Secret, Secret)>,
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
    #[error("TOLLGATE_HOOK_USERNAME holds a colon, which ends a user name in Basic authentication (RFC 7617)")]
    HookUsername,
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
    let hook_basic = if args.hook_auth.contains(&HookAuthArg::Basic) {
        Some(username.zip(password).ok_or(ConfigError::HookCredentials)?)
    } else {
        None
    };
    if hook_basic.as_ref().is_some_and(|(username, _)| username.expose().contains(':')) {
        return Err(ConfigError::HookUsername);
    }
    let hook_open = args.hook_auth.contains(&HookAuthArg::None);
    if hook_open && !args.listen.ip().is_loopback() && !args.allow_open_hooks {
        return Err(ConfigError::OpenHooks(args.listen));
    }
    Ok(ServeSettings {
        demo: args.demo,
        database_url,
        migrate: args.migrate,
        listen: args.listen,
        api_listen: args.api_listen,
        ops_listen: args.ops_listen,
        hook_basic,
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
            hook_timeout: args.hook_timeout,
            max_age: args.max_age,
            max_stale: args.max_stale,
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

/// A duration: an integer and `ms`, `s`, `m` or `h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let milliseconds_each = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected an integer and `ms`, `s`, `m` or `h`".to_owned()),
    };
    let count: u64 = digits.parse().map_err(|_| "expected an integer before the unit".to_owned())?;
    count.checked_mul(milliseconds_each).map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
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
        assert!(serving(&["--hook-auth", "none"], &[]).hook_basic.is_none());
        let both = serving(&["--hook-auth", "basic,none"], &CREDENTIALS);
        assert!(both.hook_basic.is_some() && both.hook_open);
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
    fn the_demo_brings_credentials_of_its_own_and_variables_win_over_them() {
        let demo = serving(&["serve", "--demo"], &[]);
        assert_eq!(demo.admin_token, Some("demo".into()));
        assert_eq!(demo.hook_basic, Some(("hook".into(), "hook".into())));
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
        let colon = [("TOLLGATE_HOOK_USERNAME", "a:b"), ("TOLLGATE_HOOK_PASSWORD", "p")];
        assert!(matches!(parse(&[], &colon), Err(ConfigError::HookUsername)));
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
    fn the_command_line_is_sound_and_its_help_names_every_secret() {
        command_line().debug_assert();
        let help = command_line().render_long_help().to_string();
        for secret in ["DATABASE_URL", "HOOK_USERNAME", "HOOK_PASSWORD", "ADMIN_TOKEN"] {
            assert!(help.contains(&format!("TOLLGATE_{secret}")), "{secret}");
        }
    }
}

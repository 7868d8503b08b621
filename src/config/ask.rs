//! The settings of `tollgate ask`, which plays Access: whom to ask, as whom, and about what.

use std::{path::PathBuf, time::Duration};

use clap::Args;

use super::{
    ConfigError, DEMO_ADMIN_TOKEN, DEMO_PASSWORD, DEMO_USERNAME, Secret,
    credentials::secret,
    line::{LogArgs, parse_duration},
};
use crate::{domain::time, http::tls::NamedFile};

/// What `tollgate ask --help` ends with.
pub const ASK_HELP: &str = "\
Secrets are read from the environment only; each can also be named as a file by the variable with _FILE appended:
  TOLLGATE_HOOK_USERNAME, TOLLGATE_HOOK_PASSWORD
                           what Access authenticates with (Basic authentication)
  TOLLGATE_HOOK_TOKEN      a token that Access signed (authentication JWT); it is sent instead of the two above
  TOLLGATE_API_TOKEN       a token of the management API with the role reader: with it the answer says why, and --at can
                           be used [default: what TOLLGATE_ADMIN_TOKEN holds]
Without the credentials of a hook none are sent.

It exits with 0 when the question was answered, whatever the answer is; with 1 when it was not: nobody is there, the
credentials are refused, or Tollgate does not know; and with 2 when the command line makes no sense.

To the service the question is one like any other: it is counted in the metrics. With --at it is not.";

/// What to ask.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// The user who signs in; none, as with client credentials, when nothing is said
    #[arg(long)]
    user: Option<String>,
    /// The client that asks for the scopes
    #[arg(long)]
    client: String,
    /// A requested scope; to be repeated
    #[arg(long = "scope", required = true, value_name = "SCOPE")]
    scopes: Vec<String>,
    /// An RFC 3339 timestamp: what would be answered then, by what is recorded now. The management API is asked, and no
    /// hook
    #[arg(long, value_parser = parse_instant)]
    at: Option<String>,
    /// Where the hooks are: the base URI that Access is configured with
    #[arg(long, env = "TOLLGATE_ASK_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
    /// Where the management API is [default: where the hooks are]
    #[arg(long, env = "TOLLGATE_ASK_API_URL")]
    api_url: Option<String>,
    /// The certificate authorities in PEM that are believed, instead of those of the system
    #[arg(long, env = "TOLLGATE_ASK_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    timeout: Duration,
    /// Print the answer as it came, and nothing else
    #[arg(long)]
    json: bool,
    /// Use the demo's credentials where no others are set
    #[arg(long)]
    demo: bool,
    #[command(flatten)]
    log: LogArgs,
}

/// How to show that one is Access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookCredentials {
    /// Not at all.
    None,
    /// With a user name and a password.
    Basic(Secret, Secret),
    /// With a token.
    Bearer(Secret),
}

/// A question to a service.
#[derive(Debug)]
pub struct AskSettings {
    /// The user.
    pub user: Option<String>,
    /// The client.
    pub client: String,
    /// The requested scopes.
    pub scopes: Vec<String>,
    /// The instant that is asked about; the present when there is none.
    pub at: Option<String>,
    /// The base of the hooks' addresses, without a slash at its end.
    pub url: String,
    /// The same of the management API.
    pub api_url: String,
    /// The certificate authorities that are believed; those of the system when there is no file.
    pub authorities: Option<NamedFile>,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// Whether the answer is printed as it came.
    pub is_raw: bool,
    /// The credentials of the hooks.
    pub credentials: HookCredentials,
    /// The token of the management API.
    pub api_token: Option<Secret>,
    /// How to log.
    pub log: LogArgs,
}

impl AskArgs {
    /// The question, with the secrets that the environment holds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when they make no sense.
    pub fn settings(self, environment: &dyn Fn(&str) -> Option<String>) -> Result<AskSettings, ConfigError> {
        let Self { user, client, scopes, at, url, api_url, ca_file, timeout, json, demo, log } = self;
        let or_demo = |given: Option<Secret>, demo_has: &str| given.or_else(|| demo.then(|| demo_has.into()));
        let token = secret(environment, "TOLLGATE_HOOK_TOKEN")?;
        let username = or_demo(secret(environment, "TOLLGATE_HOOK_USERNAME")?, DEMO_USERNAME);
        let password = or_demo(secret(environment, "TOLLGATE_HOOK_PASSWORD")?, DEMO_PASSWORD);
        let credentials = match (token, username, password) {
            (Some(token), _, _) => HookCredentials::Bearer(token),
            (None, Some(username), Some(password)) => HookCredentials::Basic(username, password),
            (None, None, None) => HookCredentials::None,
            (None, Some(_), None) | (None, None, Some(_)) => return Err(ConfigError::HalfCredentials),
        };
        let api_token = match secret(environment, "TOLLGATE_API_TOKEN")? {
            None => or_demo(secret(environment, "TOLLGATE_ADMIN_TOKEN")?, DEMO_ADMIN_TOKEN),
            token => token,
        };
        if at.is_some() && api_token.is_none() {
            return Err(ConfigError::InstantWithoutToken);
        }
        let base = |url: &str| url.trim_end_matches('/').to_owned();
        Ok(AskSettings {
            user,
            client,
            scopes,
            at,
            api_url: base(api_url.as_deref().unwrap_or(&url)),
            url: base(&url),
            authorities: ca_file.map(|path| NamedFile { setting: "--ca-file", path }),
            timeout,
            is_raw: json,
            credentials,
            api_token,
            log,
        })
    }
}

/// A timestamp, as it was written: the service reads it by the same rules.
fn parse_instant(text: &str) -> Result<String, String> {
    time::parse(text).map(|_| text.to_owned()).ok_or_else(|| "expected an RFC 3339 timestamp with an offset".to_owned())
}

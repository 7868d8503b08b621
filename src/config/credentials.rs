//! The settings of credentials and TLS: secrets, whose tokens are believed, and which files TLS is made from.

use std::{fmt, fs, io, path::PathBuf, time::Duration};

use super::{
    ConfigError,
    line::{HookJwtKeysArg, ServeArgs},
};
use crate::{
    domain::{scope::Scope, token::Role},
    http::{
        auth::issuer::{Address, AddressError, Source},
        console::openid::OpenIdSettings,
        tls::{Files, NamedFile},
    },
};

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

/// The Basic credentials of the hooks: the current ones, and the next while they are exchanged.
pub fn hook_basic(
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

/// The tokens of Access that open the hooks.
pub fn hook_jwt(args: &ServeArgs) -> Result<HookJwt, ConfigError> {
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

/// The tokens of an OpenID provider that open the management API.
pub fn api_jwt(args: &ServeArgs, issuer: &str) -> Result<ApiJwt, ConfigError> {
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

/// How to sign in to the console at the OpenID provider.
pub fn console_openid(args: &ServeArgs, client_secret: Option<Secret>) -> Result<Option<OpenIdSettings>, ConfigError> {
    let Some(client_id) = args.console_openid_client_id.clone() else {
        return match client_secret {
            Some(_) => Err(ConfigError::JwtIncomplete {
                needs: "TOLLGATE_CONSOLE_OPENID_CLIENT_SECRET is set",
                missing: "TOLLGATE_CONSOLE_OPENID_CLIENT_ID",
            }),
            None => Ok(None),
        };
    };
    let needs = "TOLLGATE_CONSOLE_OPENID_CLIENT_ID is set";
    let missing = |missing| ConfigError::JwtIncomplete { needs, missing };
    let issuer = args.api_jwt_issuer.clone().ok_or_else(|| missing("TOLLGATE_API_JWT_ISSUER"))?;
    let base = args.console_url.as_deref().ok_or_else(|| missing("TOLLGATE_CONSOLE_URL"))?;
    // What keeps keys from being exchanged on their way keeps codes from it, too.
    Address::parse(base).map_err(ConfigError::ConsoleUrl)?;
    Ok(Some(OpenIdSettings {
        description: key_address("TOLLGATE_API_JWT_ISSUER", &issuer, Address::of_description)?,
        issuer,
        client_id,
        client_secret: client_secret.map(|secret| secret.expose().to_owned()),
        scopes: [&args.api_jwt_reader_scope, &args.api_jwt_writer_scope, &args.api_jwt_admin_scope]
            .map(Scope::to_string)
            .into(),
        base: base.trim_end_matches('/').to_owned(),
    }))
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

/// The files that TLS is made from.
pub fn tls(args: &ServeArgs) -> Result<Option<Files>, ConfigError> {
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

/// A secret from the variable itself, from the file that its `_FILE` variable names, or else from systemd's credential of
/// the variable's name.
pub fn secret(environment: &dyn Fn(&str) -> Option<String>, name: &'static str) -> Result<Option<Secret>, ConfigError> {
    let variable = format!("{name}_FILE");
    let secret = match (environment(name), environment(&variable)) {
        (Some(_), Some(_)) => return Err(ConfigError::SecretTwice(name)),
        (Some(text), None) => text,
        (None, Some(path)) => {
            let path = PathBuf::from(path);
            let text =
                fs::read_to_string(&path).map_err(|source| ConfigError::SecretFile { variable, path, source })?;
            without_line_break(&text)
        }
        (None, None) => {
            let variable = "CREDENTIALS_DIRECTORY";
            let Some(folder) = environment(variable) else { return Ok(None) };
            let path = PathBuf::from(folder).join(name);
            match fs::read_to_string(&path) {
                Ok(text) => without_line_break(&text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(ConfigError::SecretFile { variable: variable.to_owned(), path, source }),
            }
        }
    };
    if secret.is_empty() { Err(ConfigError::SecretEmpty(name)) } else { Ok(Some(Secret(secret))) }
}

fn without_line_break(text: &str) -> String {
    text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text)).to_owned()
}

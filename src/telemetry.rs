//! Log lines: to standard error, for people or as JSON.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::{LogArgs, LogFormat};

/// Targets whose finer levels would show SQL, which holds personal data, or the address of the database, which may
/// hold a password: they stay at `warn` whatever the filter says.
const QUIET: [&str; 3] = ["sqlx=warn", "sea_orm=warn", "sea_orm_migration=warn"];

/// Begins to log.
///
/// # Errors
///
/// When the filter is none, or something logs already.
pub fn init(log: &LogArgs) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut filter = EnvFilter::try_new(&log.filter)?;
    for directive in QUIET {
        filter = filter.add_directive(directive.parse()?);
    }
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(())
}

//! Log lines: to standard error, for people or as JSON.

use tracing::Level;
use tracing_subscriber::{EnvFilter, filter::filter_fn, fmt, prelude::*};

use crate::config::{LogArgs, LogFormat};

/// Libraries whose finer levels would show SQL or paths, which hold personal data, or the address of the database,
/// which may hold a password: they stay at `warn` whatever the filter says.
const QUIET: [&str; 4] = ["sqlx", "sea_orm", "h2", "hyper"];

fn is_quiet(target: &str) -> bool {
    QUIET.iter().any(|library| target.starts_with(library))
}

/// Begins to log.
///
/// # Errors
///
/// When the filter is none, or something logs already.
pub fn init(log: &LogArgs) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(&log.filter)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(filter_fn(|line| *line.level() <= Level::WARN || !is_quiet(line.target())));
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    Ok(())
}

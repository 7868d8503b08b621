//! Copies an SQLite database while services go on with it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use tollgate::{
    config::Secret,
    store::{Database, database::sqlite_file},
};

/// Writes a copy of the database to a file that is not there yet: all of it as it was at one instant, or no file.
///
/// # Errors
///
/// Why there is no copy.
#[expect(clippy::print_stderr, reason = "a person reads what was done")]
pub async fn backup(file: &Path, url: &Secret) -> anyhow::Result<()> {
    let Some(source) = sqlite_file(url.expose()) else {
        anyhow::bail!("only an SQLite database is copied by Tollgate itself; on Postgres use `pg_dump`");
    };
    if !source.exists() {
        anyhow::bail!("there is no database {}", source.display());
    }
    if file.exists() {
        anyhow::bail!("{} is there already, and is not written over", file.display());
    }
    let part = beside(file)?;
    // It holds personal data, and what opens it later has the rights that it is given now.
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part);
    let made = made.with_context(|| format!("{} cannot be made", part.display()))?;
    let done = write(&part, &made, file, url).await;
    if done.is_err() {
        // What is left of it is of no use, and told by the error.
        let _ = fs::remove_file(&part);
    }
    let bytes = done?;
    eprintln!("{bytes} bytes were written to {}.", file.display());
    Ok(())
}

async fn write(part: &Path, made: &File, file: &Path, url: &Secret) -> anyhow::Result<u64> {
    let database = Database::connect_to_read(url.expose()).await?;
    let text = part.to_str().context("the name of the file is not UTF-8")?;
    let copied = database.copy_into(text).await;
    database.close().await;
    copied.context("the database cannot be copied")?;
    let failed = || format!("{} cannot be written", file.display());
    made.sync_all().with_context(failed)?;
    fs::rename(part, file).with_context(failed)?;
    // The name of the file is safe when its folder is.
    File::open(folder(file)).and_then(|folder| folder.sync_all()).with_context(failed)?;
    Ok(made.metadata().with_context(failed)?.len())
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The file in which the copy grows: beside the other, so that it can be renamed.
fn beside(file: &Path) -> anyhow::Result<PathBuf> {
    let mut name = file.file_name().context("that is no name of a file")?.to_owned();
    name.push(".part");
    Ok(folder(file).join(name))
}

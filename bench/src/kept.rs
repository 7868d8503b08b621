//! Results that are kept: what each row measured last, and the documents that are made of it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tollgate::service::{Clock as _, SystemClock};

use crate::{
    chart,
    ground::{Ground, output},
    report::{Figure, Report},
    rows::ROWS,
    sample::Verdict,
};

/// Where the documents stand, from the root of the repository.
const DOCUMENT: &str = "docs/bench.md";
const CHART: &str = "docs/bench.svg";
const README: &str = "README.md";
/// Between these lines of the README stands the table.
const BEGIN: &str = "<!-- `make bench` writes this table -->";
const END: &str = "<!-- until here -->";

/// What a row measured, and where and when.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept {
    row: String,
    date: String,
    commit: String,
    /// A setting of his own that somebody built it with.
    built: Option<String>,
    machine: String,
    took: String,
    report: Report,
}

fn folder() -> anyhow::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name("bench-results"))
}

/// Keeps what a row measured.
pub fn keep(row: &str, report: &Report, took: String, ground: &Ground) -> anyhow::Result<()> {
    let date = SystemClock.now().format("%Y-%m-%d").to_string();
    let (row, report, machine) = (row.to_owned(), report.clone(), machine(ground)?);
    let built = option_env!("CARGO_PROFILE_RELEASE_LTO").map(|lto| format!("CARGO_PROFILE_RELEASE_LTO={lto}"));
    let kept = Kept { row, date, commit: commit(), built, machine, took, report };
    let folder = folder()?;
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("{}.json", kept.row)), serde_json::to_string_pretty(&kept)?)?;
    Ok(())
}

/// The commit, and whether something has changed since.
fn commit() -> String {
    let git = |arguments: &[&str]| output(Path::new("git"), arguments).map(|said| said.trim().to_owned());
    let Ok(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|changes| changes.is_empty());
    if is_clean { commit } else { format!("{commit} with changes") }
}

fn machine(ground: &Ground) -> anyhow::Result<String> {
    let information = fs::read_to_string("/proc/cpuinfo")?;
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let processors = std::thread::available_parallelism()?;
    let all = information.lines().filter(|line| line.starts_with("processor")).count().max(processors.get());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let postgres = output(&ground.postgres_tools.join("postgres"), &["--version"])?;
    let postgres = postgres.split(' ').nth(2).unwrap_or_default().trim().to_owned();
    let model = model.map_or("unknown processor", |(_, model)| model);
    Ok(format!("{all} × {model}, Linux {}, PostgreSQL {postgres}; {}", kernel.trim(), ground.pins.told()))
}

/// Makes the documents of what each row measured last; one that was never measured is left out, and named.
pub fn write() -> anyhow::Result<()> {
    let (mut all, mut missing) = (Vec::new(), Vec::new());
    for row in ROWS {
        let file = folder()?.join(format!("{}.json", row.name));
        let Ok(text) = fs::read_to_string(&file) else {
            missing.push(row.name);
            continue;
        };
        let kept: Kept = serde_json::from_str(&text).with_context(|| format!("{}", file.display()))?;
        all.push((row.title, kept));
    }
    anyhow::ensure!(!all.is_empty(), "nothing was measured yet");
    let points = all.iter().flat_map(|(_, kept)| kept.report.points.iter().map(move |point| (point, kept)));
    let (points, by): (Vec<_>, Vec<_>) = points.map(|(point, kept)| (*point, kept)).unzip();
    let about =
        by.first().map_or_else(String::new, |kept| format!("make bench, {}, commit {}", kept.date, kept.commit));
    fs::write(CHART, chart::draw(&points, &about)).context(CHART)?;
    fs::write(DOCUMENT, document(&all, &missing)?).context(DOCUMENT)?;
    let readme = fs::read_to_string(README).context(README)?;
    let (before, rest) = readme.split_once(BEGIN).with_context(|| format!("{README} has no line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{README} has no line {END}"))?;
    fs::write(README, format!("{before}{BEGIN}\n\n{}\n{END}{after}", summary(&all, &missing)?))?;
    Ok(())
}

/// The figures that have targets.
fn summary(all: &[(&str, Kept)], missing: &[&str]) -> anyhow::Result<String> {
    let mut lines = String::new();
    let dates = told_once(all.iter().map(|(_, kept)| kept.date.as_str()));
    let commits = told_once(all.iter().map(|(_, kept)| kept.commit.as_str()));
    let machines = told_once(all.iter().map(|(_, kept)| kept.machine.as_str()));
    let built = told_once(all.iter().filter_map(|(_, kept)| kept.built.as_deref()));
    let built = if built.is_empty() { built } else { format!(" (built with `{built}`)") };
    writeln!(lines, "Measured on {dates} by `make bench`{built}, commit {commits}; {machines}.\n")?;
    writeln!(lines, "| row | ratio | measured | target | |\n| --- | --- | --- | --- | --- |")?;
    for (_, kept) in all {
        for figure in kept.report.figures.iter().filter(|figure| figure.target.is_some()) {
            writeln!(lines, "| `{}` {}", kept.row, cells(figure))?;
        }
    }
    if !missing.is_empty() {
        writeln!(lines, "\nNot measured: {}.", missing.join(", "))?;
    }
    Ok(lines)
}

/// Different texts, each once.
fn told_once<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut told: Vec<&str> = Vec::new();
    for text in texts {
        if !told.contains(&text) {
            told.push(text);
        }
    }
    told.join(", ")
}

fn document(all: &[(&str, Kept)], missing: &[&str]) -> anyhow::Result<String> {
    let mut text = String::from(
        "# Bench\n\nWritten by `make bench`, not by hand. Every figure is a ratio to its limit, taken in one run in short \
        blocks there and back; ± is how far the median of the ratios may be off, in nineteen of twenty runs. CPU is \
        processor time as the system counts it.\n\n",
    );
    writeln!(text, "{}", summary(all, missing)?)?;
    writeln!(text, "![What a check costs that the cache does not answer, by size of the database](bench.svg)")?;
    for (title, kept) in all {
        writeln!(text, "\n## {}\n\nAbout {title}. {}, commit {}, {}.\n", kept.row, kept.date, kept.commit, kept.took)?;
        writeln!(text, "{}", table(&kept.report))?;
    }
    Ok(text)
}

/// What a row measured, as a table with its notes.
pub fn table(report: &Report) -> String {
    let mut lines = vec!["| what | measured | target | |".to_owned(), "| --- | --- | --- | --- |".to_owned()];
    lines.extend(report.figures.iter().map(cells));
    if !report.notes.is_empty() {
        lines.push(String::new());
    }
    lines.extend(report.notes.iter().map(|note| format!("- {note}")));
    lines.join("\n")
}

fn cells(figure: &Figure) -> String {
    let verdict = figure.verdict.as_ref().map(Verdict::to_string).unwrap_or_default();
    let target = figure.target.as_deref().unwrap_or_default();
    format!("| {} | {} | {target} | {verdict} |", figure.what, figure.measured)
}

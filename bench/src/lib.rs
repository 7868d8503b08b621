//! Measures Tollgate side by side with the limits of the machine: `make bench` runs it.
//!
//! Every figure is a ratio to its limit, taken in the same run: blocks of requests to the one and to the other, there and
//! back (A B B A), the ratio of each round, then the median of the ratios and how far it may be off. The first figure is
//! the processor time of the server for each request, as the system counts it. Servers run on one processor, and what
//! asks them on another.
//!
//! Everything happens on the loopback interface. Every process that a row starts ends with the row, also when it fails
//! or the run is interrupted.

mod chart;
mod ground;
mod inside;
mod issuer;
mod kept;
mod payload;
mod processor;
mod report;
mod rows;
mod rungs;
mod sample;
mod wire;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum as _};
use stats_alloc::StatsAlloc;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use crate::{
    ground::Ground,
    rows::{ROWS, Row},
    rungs::Rung,
    sample::duration,
};

/// Measures Tollgate side by side with the limits of the machine.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Rows to run; all when none is named
    #[arg(value_parser = ROWS.map(|row| row.name))]
    rows: Vec<String>,
    /// Run a small version, which shows that everything works and whose figures say nothing
    #[arg(long)]
    quick: bool,
    /// The service to measure [default: the one beside this program]
    #[arg(long)]
    tollgate: Option<PathBuf>,
    /// Connections of the rows that ask as fast as they can
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    connections: u16,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the documents anew from what each row measured last; a whole run does so by itself
    Write,
    /// Serves as a rung of the ladder (the bench starts it by itself)
    Serve {
        /// Which one
        rung: Rung,
    },
    /// Serves as the service does (the bench starts it by itself)
    Inside {
        /// The database
        url: String,
        /// Without hearing of changes made elsewhere
        #[arg(long)]
        unwatched: bool,
    },
}

/// Runs what the command line says.
pub fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Does what the arguments say; whether everything could be measured.
fn run(arguments: Arguments) -> anyhow::Result<bool> {
    if let Some(command) = arguments.command {
        // As many workers as there are processors, as the service has them.
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("a runtime")?;
        return runtime.block_on(run_command(command)).map(|()| true);
    }
    let is_named = |row: &Row| arguments.rows.is_empty() || arguments.rows.iter().any(|name| name == row.name);
    let rows: Vec<&Row> = ROWS.iter().filter(|row| is_named(row)).collect();
    let tollgate = match arguments.tollgate {
        Some(named) => named,
        None => std::env::current_exe()?.with_file_name("tollgate"),
    };
    let ground = Ground::new(arguments.quick, arguments.connections.into(), tollgate)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
    let outcome = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = all(&rows, &ground) => Ok(done),
            _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
            _ = terminate.recv() => Err(anyhow::anyhow!("terminated")),
        }
    });
    ground.clean_up();
    let is_whole = outcome?;
    if is_whole && !arguments.quick && rows.len() == ROWS.len() {
        kept::write()?;
    }
    Ok(is_whole)
}

/// Does something else than to measure. What serves does so on a free port, which is printed, until the process ends.
async fn run_command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Write => kept::write(),
        Command::Serve { rung } => {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            say(&listener.local_addr()?.to_string());
            rungs::accept(rung, listener).await
        }
        Command::Inside { url, unwatched } => {
            let inside = inside::serve(&url, !unwatched).await?;
            say(&inside.address.to_string());
            std::future::pending().await
        }
    }
}

/// Prints what requests take of an allocator: to the rung of the ladder, or to the service on the database, that the only
/// argument names.
pub fn count(allocator: &StatsAlloc<std::alloc::System>) -> ExitCode {
    let counted = std::env::args().nth(1).context("what to count").and_then(|what| {
        let rung = Rung::from_str(&what, false).ok();
        Ok(serde_json::to_string(&inside::count(allocator, rung, Some(&what))?)?)
    });
    match counted {
        Ok(counted) => {
            say(&counted);
            ExitCode::SUCCESS
        }
        Err(error) => {
            say(&format!("count: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs rows one after the other, each printed when it has run; whether all of them could be measured.
async fn all(rows: &[&Row], ground: &Ground) -> bool {
    let start = Instant::now();
    say(if ground.quick { "A quick run: it shows that the rows work; its figures say nothing.\n" } else { "" });
    say(&format!("{}.\n", ground.pins.told()));
    let mut is_whole = true;
    for row in rows {
        let row_start = Instant::now();
        say(&format!("{}: {}\n", row.name, row.title));
        let stolen_before = processor::stolen().unwrap_or_default();
        match (row.run)(ground).await {
            Ok(mut report) => {
                let stolen = processor::stolen().unwrap_or_default().saturating_sub(stolen_before);
                let share = stolen.as_secs_f64() / row_start.elapsed().as_secs_f64();
                report
                    .note(format!("meanwhile other guests of the machine took {:.1} % of a processor", share * 100.0));
                say(&kept::table(&report));
                let took = duration(row_start.elapsed());
                // What a small version says is not worth keeping.
                if !ground.quick
                    && let Err(error) = kept::keep(row.name, &report, took, ground)
                {
                    is_whole = false;
                    say(&format!("not kept: {error:#}"));
                }
            }
            Err(error) => {
                is_whole = false;
                say(&format!("not measured: {error:#}"));
            }
        }
        say(&format!("\n{} took {}.\n", row.name, duration(row_start.elapsed())));
        ground.clean_row().await;
    }
    say(&format!("{} rows in {}.", rows.len(), duration(start.elapsed())));
    is_whole
}

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
fn say(line: &str) {
    println!("{line}");
}

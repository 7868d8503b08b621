//! ALLOC: allocations and system calls of a request.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context as _;

use super::{Step, USERS};
use crate::{
    ground::{Ground, Server, output, seed},
    inside::Counted,
    payload::{Question, echoes, questions},
    report::Report,
    rungs::Rung,
    sample::{Sample, Target, digits, float},
};

/// Where strace writes its table.
const TABLE: &str = "strace";

/// ALLOC.
pub async fn allocations(ground: &Ground) -> anyhow::Result<Report> {
    let url = ground.database().await?;
    let tollgate = ground.tollgate(&url, &[]).await?;
    tollgate.register()?;
    seed(&url, USERS, true).await?;
    let mut report = Report::default();
    let count = std::env::current_exe()?.with_file_name("bench_count");
    let counted = |what: &str| -> anyhow::Result<(f64, f64)> {
        let printed = ground.pins.anywhere(|| output(&count, &[what]))?;
        let counted: Counted = serde_json::from_str(&printed)?;
        let median = |figures: Vec<f64>| Sample::from_iter(figures).median();
        Ok((median(counted.allocations), median(counted.reallocations)))
    };
    let (echo, serde, own) = (counted("echo")?, counted("serde")?, counted(&url)?);
    let total = |(allocations, reallocations): (f64, f64)| allocations + reallocations;
    report.exact(
        "allocations and reallocations of a cached hook request, more than of bare hyper's echo",
        total(own) - total(echo),
        Target::AtMost(10.0),
    );
    for (name, (allocations, reallocations)) in
        [("bare hyper, gives the body back", echo), ("bare hyper with serde", serde), ("Tollgate", own)]
    {
        let told = format!("{} allocations, {} reallocations", digits(allocations), digits(reallocations));
        report.figure(format!("{name}: of each request"), told);
    }

    let questions = questions(0..USERS);
    let echoing = ground.rung(Rung::Echo)?;
    let echoes = echoes(&questions);
    for (name, server, questions) in
        [("bare hyper, gives the body back", &echoing, &echoes), ("Tollgate", &tollgate, &questions)]
    {
        match system_calls(ground, server, questions).await? {
            Some(told) => report.figure(format!("{name}: system calls of each request"), told),
            None => report.note("system calls are not measured: strace is not there, or may not look"),
        }
    }
    Ok(report)
}

/// The system calls of a request, one connection at a time, in words; none where strace cannot tell.
async fn system_calls(
    ground: &Ground,
    server: &Server,
    questions: &std::sync::Arc<[Question]>,
) -> anyhow::Result<Option<String>> {
    if output(Path::new("strace"), &["-V"]).is_err() {
        return Ok(None);
    }
    let table = ground.folder()?.join(TABLE);
    let mut step = Step::new("strace", server, questions, 1)?;
    step.load.run(questions, 2_000).await?;
    let mut command = Command::new("strace");
    command.args(["-c", "-f", "-o"]).arg(&table).args(["-p", &server.pid().to_string()]);
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut strace = spawned.context("strace")?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let count = ground.pick(5_000, 1_000);
    let asked = if strace.try_wait()?.is_none() { step.load.run(questions, count).await.map(|_| ()) } else { Ok(()) };
    let interrupted = output(Path::new("kill"), &["-INT", &strace.id().to_string()]);
    if interrupted.is_err() {
        // Else it would be waited for in vain.
        strace.kill()?;
    }
    strace.wait()?;
    asked?;
    let Ok(table) = std::fs::read_to_string(table) else { return Ok(None) };
    let mut total = 0.0;
    let mut names = Vec::new();
    for line in table.lines() {
        // `% time`, `seconds`, `usecs/call`, `calls`, perhaps `errors`, the name.
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(calls), Some(name)) = (fields.get(3).and_then(|calls| calls.parse::<f64>().ok()), fields.last())
        else {
            continue;
        };
        let each = calls / float(count);
        if *name != "total" && each >= 0.01 {
            names.push(format!("{name} {each:.2}"));
            total += each;
        }
    }
    Ok((total > 0.0).then(|| format!("{total:.2} on one connection ({})", names.join(", "))))
}

//! LADDER: what each layer adds to the cost of a request.

use std::time::Instant;

use super::{Step, USERS, race};
use crate::{
    ground::{Ground, seed},
    payload::{answer, echoes, questions, sorted},
    report::Report,
    rungs::Rung,
    sample::{Target, duration},
};

/// LADDER.
pub async fn ladder(ground: &Ground) -> anyhow::Result<Report> {
    let url = ground.database().await?;
    let tollgate = ground.tollgate(&url, &[]).await?;
    tollgate.register()?;
    seed(&url, USERS, true).await?;
    let questions = questions(0..USERS);
    let (echoes, sorted) = (echoes(&questions), sorted(&questions));
    let mut servers = Vec::new();
    let mut steps = Vec::new();
    for rung in Rung::ALL {
        let (name, questions) = match rung {
            Rung::Echo => ("bare hyper, gives the body back", &echoes),
            Rung::Serde => ("bare hyper with serde", &questions),
            Rung::Poem => ("a JSON handler of poem", &questions),
            Rung::Openapi => ("a JSON handler of poem-openapi", &sorted),
        };
        let server = ground.rung(rung)?;
        steps.push(Step::new(name, &server, questions, ground.connections)?);
        servers.push(server);
    }
    steps.push(Step::new("Tollgate, everything on", &tollgate, &questions, ground.connections)?);

    let (rounds, block) = ground.pick((120, 2_000), (8, 1_000));
    for step in &mut steps {
        // The cache fills, and the connections grow to their size.
        step.load.run(&step.questions, 4_000).await?;
    }
    let (last, serde) = (steps.len() - 1, 1);
    let begun = Instant::now();
    let ratios = race(&mut steps, serde, rounds, block).await?;
    let took = duration(begun.elapsed());

    // One connection: the server sleeps between two requests, and to wake it costs more than what it then does.
    let mut alone = Vec::new();
    for (name, server) in [(steps[serde].name, &servers[serde]), (steps[last].name, &tollgate)] {
        alone.push(Step::new(name, server, &questions, 1)?);
    }
    let alone_ratios = race(&mut alone, 0, rounds / 2, block / 5).await?;

    let mut report = Report::default();
    report.target("a cached hook : bare hyper with serde, server CPU a request", &ratios[last], Target::AtMost(1.4));
    for (step, ratio) in steps.iter().zip(&ratios) {
        report.figure(step.name, format!("{} : 1; {}", ratio.told(), step.told()));
    }
    report.figure(
        "a cached hook : bare hyper with serde, one request at a time",
        format!("{}; {}; {}", alone_ratios[1].told(), alone[0].told(), alone[1].told()),
    );
    report.note(format!(
        "{rounds} rounds of {} blocks of {block} requests on {} connections in {took}; {USERS} users, each answered {}",
        2 * steps.len(),
        ground.connections,
        String::from_utf8_lossy(&answer())
    ));
    Ok(report)
}

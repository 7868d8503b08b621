//! AUTH: what it costs to know the caller.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Step, USERS, race};
use crate::{
    ground::{Ground, seed},
    issuer::{AUDIENCE, ISSUER, Issuer},
    payload::{BASIC, Question, questions_with},
    report::Report,
    sample::{Sample, Target, digits, duration},
};

/// The header of the credentials.
const AUTHORIZATION: &str = "Authorization";

/// AUTH.
pub async fn authentication(ground: &Ground) -> anyhow::Result<Report> {
    let mut issuer = Issuer::new().await?;
    let url = ground.database().await?;
    // One process takes all of them, so that nothing but the credentials differs.
    let settings = [
        ("TOLLGATE_HOOK_AUTH", "basic,jwt,none"),
        ("TOLLGATE_HOOK_JWT_ISSUERS", ISSUER),
        ("TOLLGATE_HOOK_JWT_AUDIENCE", AUDIENCE),
        ("TOLLGATE_HOOK_JWT_JWKS_URL", &issuer.keys),
    ];
    let tollgate = ground.tollgate(&url, &settings).await?;
    tollgate.register()?;
    seed(&url, USERS, true).await?;
    let (begun, keys) = (Instant::now(), format!(r#"tollgate_jwt_keys{{issuer="{ISSUER}",surface="hooks"}}"#));
    while tollgate.metric(&keys)? < 0.5 {
        anyhow::ensure!(begun.elapsed() < Duration::from_secs(10), "the keys are not read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let token = issuer.token()?;
    let bearer = format!("Bearer {token}");
    let kinds = [
        ("none", None),
        ("Basic", Some((AUTHORIZATION, BASIC))),
        ("a token seen before", Some((AUTHORIZATION, &*bearer))),
        // What it costs to receive as much.
        ("none, beside as many bytes unread", Some(("X-Filler", &*bearer))),
        // What the machine makes of no difference at all.
        ("none, once more", None),
    ];
    let mut steps = Vec::new();
    for (name, header) in kinds {
        let questions = questions_with(0..USERS, header);
        steps.push(Step::new(name, &tollgate, &questions, ground.connections)?);
    }
    for step in &mut steps {
        step.load.run(&step.questions, 4_000).await?;
    }
    let (rounds, block) = ground.pick((300, 1_000), (8, 500));
    let begun = Instant::now();
    let ratios = race(&mut steps, 0, rounds, block).await?;
    let took = duration(begun.elapsed());

    let by_unread: Sample = steps[2].time.pairs(&steps[3].time).map(|(seen, unread)| seen / unread).collect();
    let (rounds_first, block_first) = ground.pick((40, 200), (4, 100));
    let mut first = Step::new("a token seen for the first time", &tollgate, &steps[0].questions, ground.connections)?;
    let mut differences = Sample::default();
    let mut first_ratios = Sample::default();
    for _ in 0..rounds_first {
        let mut times = [0.0; 2];
        for place in [0, 1, 1, 0] {
            times[place] += if place == 0 {
                steps[0].run(block_first).await? / 2.0
            } else {
                first.questions = fresh(&mut issuer, block_first)?;
                first.run(block_first).await? / 2.0
            };
        }
        differences.push(times[1] - times[0]);
        first_ratios.push(times[1] / times[0]);
    }
    let bare = issuer.bare_verification(&token, ground.pick(200, 20))?;
    let over: Sample = Sample::from_iter([differences.median() / bare.median()]);

    let mut report = Report::default();
    report.target("Basic : authentication off, server CPU a request", &ratios[1], Target::AtMost(1.03));
    report.target("a token seen before : authentication off", &ratios[2], Target::AtMost(1.03));
    for (step, ratio) in steps.iter().zip(&ratios) {
        report.figure(format!("credentials: {}", step.name), format!("{} : 1; {}", ratio.told(), step.told()));
    }
    report.figure("a token seen before : the same request with the token unread", by_unread.told());
    report.figure(
        "a token seen for the first time, more than with authentication off : the bare verification of its signature",
        format!(
            "{}; {} µs more, {} µs of it the bare verification by ring; {} times authentication off",
            digits(over.median()),
            differences.told(),
            bare.told(),
            first_ratios.told()
        ),
    );
    report.note(format!(
        "{rounds} rounds of {} blocks of {block} requests on {} connections in {took}; tokens of {} bytes, signed with \
        RS256 and a key of 2,048 bits",
        2 * steps.len(),
        ground.connections,
        token.len()
    ));
    Ok(report)
}

/// Requests with tokens that nobody has seen.
fn fresh(issuer: &mut Issuer, count: usize) -> anyhow::Result<Arc<[Question]>> {
    let mut questions = Vec::with_capacity(count);
    for user in (0..USERS).cycle().take(count) {
        let bearer = format!("Bearer {}", issuer.token()?);
        questions.extend(questions_with([user], Some((AUTHORIZATION, &bearer))).iter().cloned());
    }
    Ok(questions.into())
}

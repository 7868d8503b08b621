//! WRITES: what the change feed costs a write, and imports against COPY.

use std::{
    fmt::Write as _,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    ground::{ADMIN_TOKEN, Ground, Server, output},
    payload::{HELD, Question, user},
    report::Report,
    sample::{Sample, Target, digits, float},
    wire::{Load, Wire},
};

/// What is imported is told by this source.
const SOURCE: &str = "bench";
/// Connections that write.
const CONNECTIONS: usize = 8;

/// WRITES.
pub async fn writes(ground: &Ground) -> anyhow::Result<Report> {
    let mut report = Report::default();
    ground.pins.free(true)?;
    let measured = async {
        single(ground, &mut report).await?;
        import(ground, &mut report).await
    };
    let measured = measured.await;
    ground.pins.free(false)?;
    measured?;
    Ok(report)
}

/// A service that is written to, and what that took.
struct Written {
    server: Server,
    load: Load,
    next: u64,
    rate: Sample,
    time: Sample,
}

impl Written {
    fn new(ground: &Ground, url: &str, is_watching: bool, next: u64) -> anyhow::Result<Self> {
        let server = ground.inside(url, is_watching)?;
        let load = Load::connect(server.address, CONNECTIONS)?;
        Ok(Self { server, load, next, rate: Sample::new(), time: Sample::new() })
    }

    /// A block of writes: how many a second.
    async fn run(&mut self, block: usize) -> anyhow::Result<f64> {
        let questions: Arc<[Question]> = (self.next..).take(block).map(|number| write(&user(number))).collect();
        self.next += block as u64;
        let before = self.server.time()?;
        let done = self.load.run(&questions, block).await?;
        let time = self.server.time()?.saturating_sub(before);
        self.time.push(time.as_secs_f64() * 1e6 / float(block));
        self.rate.push(done.rate());
        Ok(done.rate())
    }
}

/// A request that records a subscription.
fn write(user: &str) -> Question {
    let body = json!({
        "subject": {"type": "user", "id": user}, "scopes": [HELD], "validFrom": "2020-01-01T00:00:00Z", "validUntil": null,
    });
    let body = body.to_string();
    let request = format!(
        "POST /v1/subscriptions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\
        Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Question { request: request.into_bytes().into(), status: 201, answer: None }
}

async fn single(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    // Both on tables of the same size, each alone on its own.
    let (with, without) = (ground.database().await?, ground.database().await?);
    for url in [&with, &without] {
        ground.tollgate(url, &[]).await?.register()?;
    }
    let mut steps = [Written::new(ground, &without, false, 0)?, Written::new(ground, &with, true, 0)?];
    let (rounds, block) = ground.pick((30, 1_000), (2, 300));
    for step in &mut steps {
        step.run(block).await?;
    }
    let [mut ratios, mut time_ratios] = [const { Sample::new() }; 2];
    for _ in 0..rounds {
        let mut rate = [0.0; 2];
        for place in [0, 1, 1, 0] {
            rate[place] += steps[place].run(block).await?;
        }
        ratios.push(rate[1] / rate[0]);
    }
    for (with, without) in steps[1].time.pairs(&steps[0].time) {
        time_ratios.push(with / without);
    }
    report.figure("single writes with the change feed : without, throughput", ratios.told());
    report.figure("single writes with the change feed : without, CPU of the service", time_ratios.told());
    for (name, step) in
        ["single writes without the change feed", "single writes with the change feed"].iter().zip(&steps)
    {
        report.figure(
            *name,
            format!(
                "{} a second, {} µs CPU of the service a write",
                digits(step.rate.median()),
                digits(step.time.median())
            ),
        );
    }
    report.note(format!(
        "single writes: {rounds} rounds of two blocks of {block} each on {CONNECTIONS} connections, Postgres with `fsync = off`, \
        nothing pinned"
    ));
    Ok(())
}

async fn import(ground: &Ground, report: &mut Report) -> anyhow::Result<()> {
    let (rounds, lines) = ground.pick((3, 200_000), (1, 5_000));
    let folder = ground.folder()?;
    let [mut ratios, mut imports, mut copies] = [const { Sample::new() }; 3];
    let mut file = String::new();
    for number in 0..lines {
        let user = user(number);
        writeln!(
            file,
            r#"{{"source":"{SOURCE}","externalId":"sub_{number}","sourceVersion":1,"subject":{{"type":"user","id":"{user}"}},"scopes":["{HELD}"],"validFrom":"2026-01-01T00:00:00Z","validUntil":"2027-01-01T00:00:00Z"}}"#
        )?;
    }
    let request = format!(
        "POST /v1/subscriptions/import HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n\
        Content-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{file}",
        file.len()
    );
    for _ in 0..rounds {
        let url = ground.database().await?;
        let tollgate = ground.tollgate_anywhere(&url, &[]).await?;
        tollgate.register()?;
        let begun = Instant::now();
        let mut wire = Wire::connect(tollgate.address)?;
        let (status, answer) = wire.exchange(request.as_bytes())?;
        let imported_in = begun.elapsed();
        let answer: Value = serde_json::from_slice(answer)?;
        anyhow::ensure!(status == 200 && answer["created"] == json!(lines), "{status} {answer}");
        drop(tollgate);
        let copied_in = copy(ground, &folder, &url).await?;
        ratios.push(copied_in.as_secs_f64() / imported_in.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let rate = |time: Duration| lines as f64 / time.as_secs_f64();
        imports.push(rate(imported_in));
        copies.push(rate(copied_in));
    }
    report.target("import : COPY of the same rows into the same tables, rows a second", &ratios, Target::AtLeast(0.5));
    report.figure("import", format!("{} rows a second; COPY {}", digits(imports.median()), digits(copies.median())));
    report.note(format!(
        "import: {lines} lines, {rounds} times; what hooks notice of it is measured by `make soak ROWS=IMPORT`"
    ));
    Ok(())
}

/// Copies what was imported into another database with the same tables: how long the writing took.
async fn copy(ground: &Ground, folder: &Path, from: &str) -> anyhow::Result<Duration> {
    let to = ground.database().await?;
    ground.tollgate(&to, &[]).await?.register()?;
    let psql = ground.postgres_tools.join("psql");
    let run = |url: &str, command: String| output(&psql, &["-X", "-q", "-v", "ON_ERROR_STOP=1", url, "-c", &command]);
    let own = format!("SELECT id FROM subscription WHERE source = '{SOURCE}'");
    let parts = [
        ("subscription", format!("id IN ({own})")),
        ("subscription_scope", format!("subscription_id IN ({own})")),
        ("change", format!("subscription_id IN ({own})")),
    ];
    let mut took = Duration::ZERO;
    for (table, condition) in parts {
        let file = folder.join(table);
        run(from, format!("\\copy (SELECT * FROM {table} WHERE {condition}) TO '{}'", file.display()))?;
        let begun = Instant::now();
        run(&to, format!("\\copy {table} FROM '{}'", file.display()))?;
        took += begun.elapsed();
    }
    Ok(took)
}

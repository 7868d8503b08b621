//! Processors: which of them are ours, who runs where, and how much of their time a process has taken.

use std::{fs, time::Duration};

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Who runs where.
#[derive(Debug, Clone, Copy)]
pub struct Pins {
    all: CpuSet,
    /// The processor of the servers, and that of what asks them; none where there are not two.
    apart: Option<(usize, usize)>,
}

impl Pins {
    /// Takes the first two of the processors that this process may use, and moves this process to the second of them.
    pub fn take() -> anyhow::Result<Self> {
        let all = sched_getaffinity(None).context("which processors there are")?;
        let mut ours = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor));
        let apart = ours.next().zip(ours.next());
        if let Some((_, load)) = apart {
            pin(&one(load))?;
        }
        Ok(Self { all, apart })
    }

    /// Starts something on the processor of the servers: threads and processes stay where they were begun.
    pub fn on_servers<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.on(self.apart.map_or(self.all, |(servers, _)| one(servers)), start)
    }

    /// Starts something on all processors.
    pub fn anywhere<T>(&self, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.on(self.all, start)
    }

    fn on<T>(&self, set: CpuSet, start: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let Some((_, load)) = self.apart else { return start() };
        pin(&set)?;
        let started = start();
        pin(&one(load))?;
        started
    }

    /// Lets this thread run on all processors, or on that of the load again.
    pub fn free(&self, free: bool) -> anyhow::Result<()> {
        match self.apart {
            Some((_, load)) => pin(&if free { self.all } else { one(load) }),
            None => Ok(()),
        }
    }

    /// Where everything runs, in words.
    pub fn told(&self) -> String {
        match self.apart {
            Some((servers, load)) => format!("servers on processor {servers}, load on processor {load}"),
            None => "one processor for everything: nothing is pinned apart".to_owned(),
        }
    }
}

fn one(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor);
    set
}

fn pin(set: &CpuSet) -> anyhow::Result<()> {
    sched_setaffinity(None, set).context("pinning to a processor")
}

/// The processor time that the threads of a process have taken so far, to the nanosecond. Those that have ended do not
/// count.
pub fn time(pid: u32) -> anyhow::Result<Duration> {
    let mut time = Duration::ZERO;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the server has ended")? {
        // A thread may end between two lines.
        let Ok(schedule) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        let nanoseconds = schedule.split_whitespace().next().context("/proc/PID/task/TID/schedstat")?;
        time += Duration::from_nanos(nanoseconds.parse()?);
    }
    anyhow::ensure!(!time.is_zero(), "the system does not tell the processor time of threads");
    Ok(time)
}

/// The time that the processors were not given to this machine although it had something to do, as virtual machines
/// are told.
pub fn stolen() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    // After its name: user, nice, system, idle, iowait, irq, softirq, steal, in hundredths of a second.
    let steal = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)).context("/proc/stat")?;
    Ok(Duration::from_millis(10 * steal.parse::<u64>()?))
}

/// The parent of a process.
pub fn parent(pid: u32) -> anyhow::Result<u32> {
    Ok(stat(pid)?.get(1).context("/proc/PID/stat")?.parse()?)
}

/// The fields of a process after its name: its state, its parent, ...
fn stat(pid: u32) -> anyhow::Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// The processor time that a process and its children have taken so far, those included that have ended (of these the
/// system tells hundredths of a second).
pub fn time_with_children(pid: u32) -> anyhow::Result<Duration> {
    let mut total = time(pid)?;
    for entry in fs::read_dir("/proc")? {
        let Some(child) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One may end between two lines.
        if parent(child).is_ok_and(|parent| parent == pid)
            && let Ok(time) = time(child)
        {
            total += time;
        }
    }
    // User and system time of children that have ended stand 16th and 17th of all.
    let fields = stat(pid)?;
    for place in [13, 14] {
        total += Duration::from_millis(10 * fields.get(place).context("/proc/PID/stat")?.parse::<u64>()?);
    }
    Ok(total)
}

/// The memory that a process has resident, in bytes.
pub fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

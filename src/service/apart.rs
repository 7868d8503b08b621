//! Work that takes its time, apart from what answers hooks: imports and exports.
//!
//! It computes for as long as it goes on. On the threads that answer hooks, each piece of it would make them wait; on
//! another thread of the same rank, the system would still let it run on for its time slice, some milliseconds, before
//! a hook gets its turn on the same processor. So it has a thread that the system lets run only when no other one wants
//! the processor (`SCHED_IDLE`, sched(7)), and all that others might wait for is its own, too: the runtime that its
//! connections are served by, and the connections. That runtime stands still while the thread waits for a slow peer, so
//! what must not be left open meanwhile is ended before.
//!
//! Nor does it look into the cache, whose locks hooks take: it might hold one until no other thread wants the processor.
//! What it has to tell the cache is told on the service's runtime.
//!
//! On SQLite there is one connection that writes, for all. The thread has the rank of the others there, and the service's
//! runtime serves it: nobody waits for a connection that is on its way back.

use std::{cell::RefCell, io, panic::resume_unwind, sync::Arc, thread};

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};
use tokio::{
    runtime::{self, Handle, Runtime},
    sync::oneshot,
};

use super::Service;
use crate::store::Database;

thread_local! {
    /// On a thread that has stepped back, the runtime that serves all others.
    static SERVICE_RUNTIME: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// Whether this is a thread that has stepped back.
pub fn has_stepped_back() -> bool {
    SERVICE_RUNTIME.with_borrow(Option::is_some)
}

/// Lets others go first that want the processor, where the present thread has stepped back. Its rank alone does not see
/// to that: a thread that is interrupted while it answers a hook waits for its turn again, and the system may give the
/// next one to the thread that had the least so far, for as long as that computes. So what computes for long calls this
/// between its pieces, the longest of which is what others may wait for.
pub fn give_way() {
    if has_stepped_back() {
        thread::yield_now();
    }
}

/// Does on the service's runtime what takes locks that hooks take, and waits for it.
pub async fn on_service_runtime(work: impl Future<Output = ()> + Send + 'static) {
    let Some(runtime) = SERVICE_RUNTIME.with_borrow(Clone::clone) else { return work.await };
    // What was cut off was so with its runtime, which serves nobody any more.
    if let Err(error) = runtime.spawn(work).await
        && error.is_panic()
    {
        resume_unwind(error.into_panic());
    }
}

/// A thread apart, with what it works with.
#[derive(Debug)]
pub struct Apart {
    /// The database, by connections of its own.
    pub database: Database,
    runtime: Serving,
}

/// Whose runtime serves the connections.
#[derive(Debug)]
enum Serving {
    Own(Runtime),
    Shared(Handle),
}

impl Apart {
    /// Waits for what may be waited for on this thread.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.runtime {
            Serving::Own(runtime) => runtime.block_on(work),
            Serving::Shared(runtime) => runtime.block_on(work),
        }
    }
}

impl Service {
    /// Begins work apart. What is given back is answered when it has ended; dropping it does not end it.
    ///
    /// # Errors
    ///
    /// What the system says when it has no thread for it.
    pub fn begin_apart<T: Send + 'static>(
        self: &Arc<Self>,
        name: &'static str,
        work: impl FnOnce(&Apart) -> T + Send + 'static,
    ) -> io::Result<oneshot::Receiver<T>> {
        let runtime = match self.database.postgres() {
            Some(_) => Serving::Own(runtime::Builder::new_current_thread().enable_all().build()?),
            None => Serving::Shared(Handle::current()),
        };
        let (service, service_runtime) = (Arc::clone(self), Handle::current());
        let (sender, receiver) = oneshot::channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let database = match &runtime {
                Serving::Own(runtime) => {
                    SERVICE_RUNTIME.set(Some(service_runtime));
                    if let Err(error) = step_back() {
                        tracing::warn!(?error, "work apart has the rank of all other work");
                    }
                    let _entered = runtime.enter();
                    service.database.apart()
                }
                Serving::Shared(_) => service.database.apart(),
            };
            let apart = Apart { database, runtime };
            // Who waited for it may have gone.
            let _ = sender.send(work(&apart));
            apart.block_on(apart.database.close_apart());
        })?;
        Ok(receiver)
    }
}

/// The rank of work apart: it runs when nothing else wants the processor.
const IDLE: ThreadSchedulePolicy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);

/// Gives this thread that rank.
fn step_back() -> Result<(), thread_priority::Error> {
    // Of that rank there is one priority only.
    set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, IDLE)
}

#[cfg(test)]
mod tests {
    use thread_priority::thread_schedule_policy;

    use super::*;

    #[test]
    fn a_thread_that_steps_back_runs_when_no_other_wants_to() {
        let policies = thread::spawn(|| {
            let before = thread_schedule_policy();
            (before, step_back(), thread_schedule_policy())
        });
        let (before, stepped, after) = policies.join().expect("it does not panic");
        assert_ne!(before, Ok(IDLE));
        assert_eq!((stepped, after), (Ok(()), Ok(IDLE)));
    }
}

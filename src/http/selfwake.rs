//! A task that is woken while it runs, run on without the scheduler.
//!
//! hyper wakes the task of an HTTP/1 connection from inside it: reading the body of a request asks the same task for the
//! bytes, and the bytes wake the one who reads. tokio then puts the task at the end of a queue and wakes another thread
//! that might take it from there, twice a request: on a machine that is not busy, that costs as much as the request.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// How often in a row a future is polled before the scheduler has its turn again. A request takes three; and for what
/// tokio makes wait because it has done enough for one turn, another round here would do nothing.
const MOST_POLLS: usize = 4;

/// Nothing was noted since the last poll, which has ended.
const AT_REST: u8 = 0;
/// The future is being polled.
const POLLED: u8 = 1;
/// It is to be polled again: by the poll under way, or else by its task, which has been woken.
const WOKEN: u8 = 2;

/// A future that is polled again at once when it was woken while it was polled.
#[derive(Debug)]
pub struct SelfWaking<F> {
    future: F,
    wakes: Arc<Wakes>,
    waker: Waker,
}

/// What has become of the wakes of a future.
#[derive(Debug)]
struct Wakes {
    state: AtomicU8,
    task: AtomicWaker,
}

impl<F> SelfWaking<F> {
    /// Wraps a future.
    pub fn new(future: F) -> Self {
        let wakes = Arc::new(Wakes { state: AtomicU8::new(AT_REST), task: AtomicWaker::new() });
        Self { future, waker: Arc::clone(&wakes).into(), wakes }
    }
}

impl<F: Future + Unpin> Future for SelfWaking<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, wakes, waker } = self.get_mut();
        wakes.task.register(context.waker());
        let mut own = Context::from_waker(waker);
        for _ in 0..MOST_POLLS {
            // What was written before the wakes up to here is seen by the poll.
            wakes.state.swap(POLLED, Ordering::AcqRel);
            if let Poll::Ready(output) = Pin::new(&mut *future).poll(&mut own) {
                return Poll::Ready(output);
            }
            let rested = wakes.state.compare_exchange(POLLED, AT_REST, Ordering::AcqRel, Ordering::Acquire);
            if rested.is_ok() {
                return Poll::Pending;
            }
        }
        // Its state remains `WOKEN`: further wakes need do nothing before the task runs.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == AT_REST {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::atomic::AtomicUsize,
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll<F: Future + Unpin>(future: &mut SelfWaking<F>, task: &Arc<Counted>) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::clone(task))))
    }

    /// A future that wakes itself so often before it is ready, and counts its polls.
    fn waking(times: usize, polls: &AtomicUsize) -> impl Future<Output = ()> + Unpin {
        poll_fn(move |context| {
            if polls.fetch_add(1, Ordering::SeqCst) == times {
                return Poll::Ready(());
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[test]
    fn a_wake_while_polled_is_answered_at_once() {
        for times in 0..MOST_POLLS {
            let (task, polls) = (Arc::new(Counted::default()), AtomicUsize::new(0));
            let mut future = SelfWaking::new(waking(times, &polls));
            assert!(poll(&mut future, &task).is_ready(), "{times}");
            assert_eq!((polls.load(Ordering::SeqCst), task.0.load(Ordering::SeqCst)), (times + 1, 0));
        }
    }

    #[test]
    fn who_wakes_itself_without_end_lets_others_run() {
        let (task, polls) = (Arc::new(Counted::default()), AtomicUsize::new(0));
        let mut future = SelfWaking::new(waking(2 * MOST_POLLS, &polls));
        for turn in 1..=2 {
            assert!(poll(&mut future, &task).is_pending());
            assert_eq!((polls.load(Ordering::SeqCst), task.0.load(Ordering::SeqCst)), (turn * MOST_POLLS, turn));
        }
        assert!(poll(&mut future, &task).is_ready());
    }

    #[test]
    fn a_wake_at_rest_wakes_the_task_that_polled_last() {
        let (first, second) = (Arc::new(Counted::default()), Arc::new(Counted::default()));
        let mut kept = None;
        let mut future = SelfWaking::new(poll_fn(|context| {
            kept = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        assert!(poll(&mut future, &first).is_pending() && poll(&mut future, &second).is_pending());
        drop(future);
        let kept = kept.expect("it was polled");
        kept.wake_by_ref();
        kept.wake();
        assert_eq!((first.0.load(Ordering::SeqCst), second.0.load(Ordering::SeqCst)), (0, 1));
    }

    /// Each count that another thread tells and wakes for is seen, whenever in the poll the wake falls.
    #[test]
    fn no_wake_of_another_thread_is_lost() {
        const COUNTS: usize = 20_000;
        let (told, seen, waker) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicWaker::new()));
        let teller = thread::spawn({
            let (told, seen, waker) = (Arc::clone(&told), Arc::clone(&seen), Arc::clone(&waker));
            move || {
                for count in 1..=COUNTS {
                    told.store(count, Ordering::SeqCst);
                    waker.wake();
                    let since = Instant::now();
                    while seen.load(Ordering::SeqCst) < count {
                        assert!(since.elapsed() < Duration::from_secs(20), "{count} is not seen");
                        std::hint::spin_loop();
                    }
                }
            }
        });
        let listening = SelfWaking::new(poll_fn(|context| {
            waker.register(context.waker());
            let count = told.load(Ordering::SeqCst);
            seen.store(count, Ordering::SeqCst);
            if count == COUNTS { Poll::Ready(()) } else { Poll::Pending }
        }));
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(listening);
        assert!(teller.join().is_ok());
    }
}

//! Wakes that come together, at the end of a batch.
//!
//! A thread that is woken often takes the waker's place on its core at once, finds the one thing it
//! was woken for, and sleeps again. Whoever makes work for others piece by piece therefore holds
//! its wakes until all of it is there: they wake once, for many.

use std::cell::{Cell, RefCell};
use std::ptr;
use std::task::{RawWakerVTable, Waker};

thread_local! {
    /// `Some` while this thread holds its wakes: what the wakers of those have in common whose
    /// tasks the batch polls.
    static OWN: Cell<Option<&'static RawWakerVTable>> = const { Cell::new(None) };
    /// The wakes that are held, each sleeper once; empty while none are to be.
    static HELD: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// Does `work`. Wakes that it leaves to [`late`] come when it is over, also when it panics. `own`
/// is a waker of the kind that the batch polls its tasks with; see [`waits`].
pub(crate) fn hold<R>(own: &Waker, work: impl FnOnce() -> R) -> R {
    let is_outermost = OWN.get().is_none();
    let _end = is_outermost.then(|| {
        OWN.set(Some(own.vtable()));
        End
    });
    work()
}

/// The end of a batch.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        OWN.set(None);
        release();
    }
}

/// Wakes at the end of the batch, or at once when there is none.
pub(crate) fn late(waker: Waker) {
    // At the thread's end there is no batch any more.
    if OWN.try_with(Cell::get).ok().flatten().is_none() {
        return waker.wake();
    }
    HELD.with_borrow_mut(|held| {
        if !held.iter().any(|other| other.will_wake(&waker)) {
            held.push(waker);
        }
    });
}

/// Whether this thread holds wakes.
pub(crate) fn are_held() -> bool {
    HELD.try_with(|held| !held.borrow().is_empty()).unwrap_or(false)
}

/// Makes the wakes that are held so far: there is enough to do for those who are woken, or the
/// caller is going to wait for them.
pub(crate) fn release() {
    if are_held() {
        // Taken out first: a wake runs foreign code.
        HELD.take().into_iter().for_each(Waker::wake);
    }
}

/// Something that waits for those who are woken is polled with `waker`. Unless that is one of the
/// batch's own tasks, which gives its thread back to wait, this thread may be about to block.
pub(crate) fn waits(waker: &Waker) {
    let own = OWN.try_with(Cell::get).ok().flatten();
    if own.is_some_and(|own| !ptr::eq(own, waker.vtable())) {
        release();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_sleeper_is_woken_once_at_the_end_of_the_batch() {
        let [one, other] = [(); 2].map(|()| Arc::<Count>::default());
        let woken = || [&one, &other].map(|count| count.0.load(Ordering::SeqCst));
        let [first, second] = [&one, &other].map(|count| Waker::from(Arc::clone(count)));
        let own = &first;
        hold(own, || {
            for _ in 0..3 {
                late(first.clone());
                hold(own, || late(second.clone()));
            }
            assert_eq!(woken(), [0, 0]);
        });
        assert_eq!(woken(), [1, 1]);
        late(first.clone());
        assert_eq!(woken(), [2, 1], "without a batch they come at once");
        hold(own, || {
            late(first.clone());
            release();
            assert_eq!(woken(), [3, 1]);
            late(first.clone());
            waits(&second);
            assert_eq!(woken(), [3, 1], "a task of the batch waits");
            waits(Waker::noop());
            assert_eq!(woken(), [4, 1], "its thread may wait");
        });
        assert_eq!(woken(), [4, 1]);
    }

    #[test]
    fn a_batch_that_panics_wakes_all_the_same() {
        let count = Arc::<Count>::default();
        let batch = || {
            hold(Waker::noop(), || {
                late(Waker::from(Arc::clone(&count)));
                panic!("in the middle of it");
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(batch)).is_err());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}

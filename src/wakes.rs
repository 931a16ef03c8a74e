//! Wakes that come together, at the end of a batch.
//!
//! A thread that is woken often takes the waker's place on its core at once, finds the one thing it
//! was woken for, and sleeps again. Whoever makes work for others piece by piece therefore holds
//! its wakes until all of it is there: they wake once, for many.

use std::cell::RefCell;
use std::task::Waker;

thread_local! {
    /// `Some` while this thread holds its wakes. Each sleeper is in it once.
    static HELD: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Does `work`. Wakes that it leaves to [`late`] come when it is over, also when it panics.
pub(crate) fn hold<R>(work: impl FnOnce() -> R) -> R {
    let is_outermost = HELD.with_borrow_mut(|held| {
        let is_outermost = held.is_none();
        held.get_or_insert_default();
        is_outermost
    });
    let _end = is_outermost.then(|| End);
    work()
}

/// The end of a batch.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        let held = HELD.with_borrow_mut(Option::take);
        held.into_iter().flatten().for_each(Waker::wake);
    }
}

/// Wakes at the end of the batch, or at once when there is none.
pub(crate) fn late(waker: Waker) {
    let mut now = Some(waker);
    // At the thread's end there is no batch any more.
    HELD.try_with(|held| {
        if let Ok(mut held) = held.try_borrow_mut()
            && let Some(held) = &mut *held
            && let Some(waker) = now.take()
            && !held.iter().any(|other| other.will_wake(&waker))
        {
            held.push(waker);
        }
    })
    .unwrap_or_default();
    if let Some(waker) = now {
        waker.wake();
    }
}

/// Makes the wakes that are held so far: the caller is going to wait for those who are woken.
pub(crate) fn release() {
    let held = HELD.try_with(|held| held.borrow_mut().as_mut().map(std::mem::take));
    held.ok().flatten().into_iter().flatten().for_each(Waker::wake);
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
        hold(|| {
            for _ in 0..3 {
                late(first.clone());
                hold(|| late(second.clone()));
            }
            assert_eq!(woken(), [0, 0]);
        });
        assert_eq!(woken(), [1, 1]);
        late(first.clone());
        assert_eq!(woken(), [2, 1], "without a batch they come at once");
        hold(|| {
            late(first.clone());
            release();
            assert_eq!(woken(), [3, 1]);
            late(first.clone());
        });
        assert_eq!(woken(), [4, 1]);
    }

    #[test]
    fn a_batch_that_panics_wakes_all_the_same() {
        let count = Arc::<Count>::default();
        let batch = || {
            hold(|| {
                late(Waker::from(Arc::clone(&count)));
                panic!("in the middle of it");
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(batch)).is_err());
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
    }
}

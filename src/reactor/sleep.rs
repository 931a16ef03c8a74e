//! Sleeping on the reactor, to the millisecond.
//!
//! Deadlines of connections go through the coarse [`Wheel`](super::timer::Wheel); a sleep that a
//! handler asked for is rarer and wants to be exact, so it has an ordered map of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::task;

/// The sleeps of one reactor, by the instant they end.
#[derive(Debug, Default)]
pub struct Sleeps {
    waiting: BTreeMap<SleepId, Waker>,
    /// Distinguishes sleeps that end at the same instant.
    next_serial: u64,
}

type SleepId = (Instant, u64);

impl Sleeps {
    /// When the first sleep ends.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the waker of one sleep that is over at `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        let first = self.waiting.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    fn add(&mut self, at: Instant, waker: Waker) -> SleepId {
        let id = (at, self.next_serial);
        self.next_serial += 1;
        self.waiting.insert(id, waker);
        id
    }

    /// Puts a new waker in the place of the old one; false when the sleep is over.
    fn renew(&mut self, id: SleepId, waker: &Waker) -> bool {
        match self.waiting.get_mut(&id) {
            Some(current) => {
                current.clone_from(waker);
                true
            }
            None => false,
        }
    }

    /// The waker is handed out so that the caller drops it with nothing borrowed: dropping a waker
    /// may run foreign code.
    fn remove(&mut self, id: SleepId) -> Option<Waker> {
        self.waiting.remove(&id)
    }
}

/// Waits for `duration` without holding the worker. For handlers and body streams.
///
/// The time counts from the turn in which the future is first polled. It ends up to a millisecond
/// late (epoll waits in whole milliseconds) plus whatever the worker is busy with.
pub fn sleep(duration: Duration) -> Sleep {
    Sleep { duration, waiting: None }
}

/// The future of [`sleep`].
#[derive(Debug)]
#[must_use = "a sleep does nothing unless awaited"]
pub struct Sleep {
    duration: Duration,
    /// `Some` from the first poll on.
    waiting: Option<SleepId>,
}

impl Future for Sleep {
    type Output = ();

    /// # Panics
    /// When polled on a thread that runs no reactor.
    fn poll(mut self: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        let duration = self.duration;
        let waiting = self.waiting;
        task::with(|local| {
            let mut sleeps = local.sleeps.borrow_mut();
            match waiting {
                // Whether still listed or already woken: Drop takes the entry out.
                Some(id) if id.0 <= local.now() => Poll::Ready(()),
                Some(id) => {
                    if !sleeps.renew(id, cx.waker()) {
                        return Poll::Ready(());
                    }
                    Poll::Pending
                }
                None => {
                    let Some(at) = local.now().checked_add(duration) else { return Poll::Pending };
                    self.waiting = Some(sleeps.add(at, cx.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .expect("ebbtide::sleep is for code that runs on a worker of ebbtide")
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.waiting {
            drop(task::with(|local| local.sleeps.borrow_mut().remove(id)));
        }
    }
}

//! What a job of SQLite waits for: its turn to write, other processes that have the file, and
//! sleep. Each wait ends with the job's cancelling, which SQLite's own do not, and waits for others
//! are over [`PATIENCE`] after the job was begun: it has done nothing then.

use std::cell::RefCell;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::clock;
use super::error::DatabaseError;

/// The waits of one connection's jobs.
pub struct Waits {
    state: Mutex<State>,
    cancelled: Condvar,
}

struct State {
    is_cancelled: bool,
    /// When the job in hand has waited enough for others.
    until: Instant,
}

thread_local! {
    /// Those of the connection that this thread has. SQLite calls [`be_patient`] without any.
    static OWN: RefCell<Option<Arc<Waits>>> = const { RefCell::new(None) };
}

impl Waits {
    /// For a connection that the calling thread is about to make, which is its first job.
    pub fn of_this_thread() -> Arc<Waits> {
        let state = State { is_cancelled: false, until: clock::now() + PATIENCE };
        let waits = Arc::new(Waits { state: Mutex::new(state), cancelled: Condvar::new() });
        OWN.set(Some(Arc::clone(&waits)));
        waits
    }

    /// A job is begun.
    pub fn begin(&self) {
        self.lock().until = clock::now() + PATIENCE;
    }

    /// The job in hand waits for nothing any more.
    pub fn cancel(&self) {
        self.lock().is_cancelled = true;
        self.cancelled.notify_all();
    }

    /// The job that was cancelled is over.
    pub fn forget(&self) {
        self.lock().is_cancelled = false;
    }

    /// Waits for nothing.
    ///
    /// # Errors
    /// `Cancelled`, when that comes first.
    pub fn sleep(&self, span: Duration) -> Result<(), DatabaseError> {
        let is_on = |state: &mut State| !state.is_cancelled;
        let slept = self.cancelled.wait_timeout_while(self.lock(), span, is_on);
        let (state, _) = slept.unwrap_or_else(PoisonError::into_inner);
        if state.is_cancelled { Err(DatabaseError::Cancelled) } else { Ok(()) }
    }

    /// Waits a moment for others.
    ///
    /// # Errors
    /// `Busy` when the job has waited enough, `Cancelled`.
    pub fn pause(&self, span: Duration) -> Result<(), DatabaseError> {
        self.check()?;
        self.sleep(span)
    }

    /// Whether the job may go on waiting for others.
    fn check(&self) -> Result<(), DatabaseError> {
        let state = self.lock();
        if state.is_cancelled {
            return Err(DatabaseError::Cancelled);
        }
        if clock::now() < state.until { Ok(()) } else { Err(DatabaseError::Busy) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waits").finish_non_exhaustive()
    }
}

/// What SQLite is to call when another process is in the way: whether to ask again. A thread that
/// has no connection has no patience either.
pub fn be_patient(_attempts: i32) -> bool {
    let own = OWN.with_borrow(Clone::clone);
    own.is_some_and(|waits| waits.pause(BUSY_PAUSE).is_ok())
}

/// The turn to write, of which there is one in a client.
#[derive(Debug, Default)]
pub struct Turns {
    is_taken: Mutex<bool>,
    free: Condvar,
}

/// Ends with its value.
#[derive(Debug)]
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// # Errors
    /// As [`Waits::pause`].
    pub fn take(&self, waits: &Waits) -> Result<Turn<'_>, DatabaseError> {
        let mut is_taken = self.lock();
        loop {
            waits.check()?;
            if !*is_taken {
                *is_taken = true;
                return Ok(Turn(self));
            }
            let waited = self.free.wait_timeout(is_taken, LOOK_INTERVAL);
            is_taken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.lock() = false;
        self.0.free.notify_one();
    }
}

/// How long a job waits for others that write, its turn included. Less than it may take as a whole,
/// so that its client is told that it was not done.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between two questions whether another process has done.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// How soon a job that waits for its turn notices that it was cancelled.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_one_at_a_time_and_comes_free_with_its_end() {
        let (turns, waits) = (Turns::default(), Waits::of_this_thread());
        let turn = turns.take(&waits).expect("it is free");
        waits.cancel();
        assert_eq!(turns.take(&waits).map(drop), Err(DatabaseError::Cancelled));
        assert!(!be_patient(0));
        waits.forget();
        drop(turn);
        assert!(turns.take(&waits).is_ok());
        assert!(be_patient(0));
    }

    #[test]
    fn who_has_waited_enough_waits_no_longer() {
        let (turns, waits) = (Turns::default(), Waits::of_this_thread());
        let _turn = turns.take(&waits).expect("it is free");
        waits.lock().until = clock::now();
        assert_eq!(turns.take(&waits).map(drop), Err(DatabaseError::Busy));
        assert!(!be_patient(0));
        waits.begin();
        assert!(be_patient(0));
        assert_eq!(waits.sleep(Duration::ZERO), Ok(()));
    }
}

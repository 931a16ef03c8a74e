//! The place of one thread in its pool: what it is doing, for readers on other threads.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::pooled::RunningJob;
use super::resource::{Canceller, Reason};
use super::ticket::{Entry, Stage};

/// See the module's essay.
pub struct Slot {
    /// Never given twice in a pool.
    pub id: u64,
    pub care: Care,
    /// A ticket of a job in hand was dropped since the thread looked.
    pub is_rung: AtomicBool,
    state: Mutex<State>,
}

struct State {
    health: Health,
    /// The jobs it has in hand: one at most, unless its connection pipelines.
    running: VecDeque<Running>,
    /// `Some` while it has a connection that another thread can cancel.
    canceller: Option<Arc<dyn Canceller>>,
    cancel: Cancel,
    /// When cancelling the job in hand was last asked for.
    asked_at: Option<Instant>,
    /// It was replaced: it is to close its connection and end.
    is_given_up: bool,
    /// It was given up and its connection is not counted any more.
    is_gone: bool,
    /// Wakes the thread, wherever it waits.
    waker: Waker,
}

/// Who sees to it that the jobs in hand end on time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// The pool's watcher: the thread may be stuck.
    Watcher,
    /// The thread, which is woken for it.
    Thread,
}

struct Running {
    entry: Arc<dyn Entry>,
    since: Instant,
    /// When it was seen that nobody waits for it.
    unwanted: Option<Instant>,
}

/// How its connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Connecting { since: Instant },
    Connected,
    Down { reason: Reason, since: Instant },
}

/// What became of cancelling the job in hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    No,
    /// A thread is asking for it.
    Asking,
    Asked,
}

/// What the watcher is to do about a job that runs.
pub enum Due {
    Nothing,
    /// Look again.
    By(Instant),
    /// Call this on a thread of its own, and say [`Slot::asked`].
    Cancel(Arc<dyn Canceller>),
}

impl Slot {
    pub fn new(id: u64, care: Care, now: Instant) -> Slot {
        let state = State {
            health: Health::Connecting { since: now },
            running: VecDeque::new(),
            canceller: None,
            cancel: Cancel::No,
            asked_at: None,
            is_given_up: false,
            is_gone: false,
            waker: Waker::noop().clone(),
        };
        Slot { id, care, is_rung: AtomicBool::new(false), state: Mutex::new(state) }
    }

    pub fn set_health(&self, health: Health) {
        self.state().health = health;
    }

    /// It has a connection: whether that is to be counted.
    #[must_use]
    pub fn connect(&self) -> bool {
        let mut state = self.state();
        state.health = Health::Connected;
        state.is_gone = state.is_given_up;
        !state.is_given_up
    }

    /// It has none any more, or will have none: whether one had been counted.
    #[must_use]
    pub fn disconnect(&self, now: Instant) -> bool {
        let mut state = self.state();
        let is_counted = state.health == Health::Connected && !state.is_gone;
        state.is_gone = state.is_given_up;
        if !state.is_given_up {
            state.health = Health::Connecting { since: now };
        }
        is_counted
    }

    /// It has another connection, or none: what was asked for of the one before is over.
    pub fn set_canceller(&self, canceller: Option<Arc<dyn Canceller>>) {
        let mut state = self.state();
        (state.cancel, state.asked_at) = (Cancel::No, None);
        state.canceller = canceller;
    }

    /// What wakes the thread, wherever it waits.
    pub fn set_waker(&self, waker: &Waker) {
        let mut state = self.state();
        if !state.waker.will_wake(waker) {
            state.waker.clone_from(waker);
        }
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        let waker = self.state().waker.clone();
        waker.wake();
    }

    /// A job is in hand.
    pub fn begin(&self, entry: Arc<dyn Entry>, now: Instant) {
        self.state().running.push_back(Running { entry, since: now, unwanted: None });
    }

    /// A job is not in hand any more. Jobs end in any order.
    pub fn end(&self, entry: &Arc<dyn Entry>) {
        let mut state = self.state();
        // Dropped with nothing locked: it may be the last of its job.
        let mut ended = None;
        if let Some(at) = state.running.iter().position(|job| Arc::ptr_eq(&job.entry, entry)) {
            ended = state.running.remove(at);
        }
        drop(state);
        drop(ended);
    }

    /// What became of cancelling the job that has ended; `No` again from now on, unless a thread
    /// is still asking.
    pub fn take_cancel(&self) -> Cancel {
        let mut state = self.state();
        let cancel = state.cancel;
        if cancel == Cancel::Asked {
            state.cancel = Cancel::No;
        }
        state.asked_at = None;
        cancel
    }

    /// This canceller has returned, which concerns its own connection only.
    pub fn asked(&self, by: &Arc<dyn Canceller>) {
        let mut state = self.state();
        if state.canceller.as_ref().is_some_and(|canceller| Arc::ptr_eq(canceller, by)) {
            state.cancel = Cancel::Asked;
        }
        drop(state);
        self.wake();
    }

    /// What is due for the one job in hand.
    pub fn due(&self, now: Instant, grace: Duration) -> Due {
        let mut state = self.state();
        let State { running, canceller, cancel, asked_at, .. } = &mut *state;
        let Some(job) = running.front_mut() else { return Due::Nothing };
        let deadline = job.entry.facts().deadline;
        if job.entry.stage() == Stage::Running && now < deadline {
            return Due::By(deadline);
        }
        let unwanted = *job.unwanted.get_or_insert(now);
        // Asked again: the job may have been between two statements, which is nothing to cancel.
        let next = match *asked_at {
            Some(asked_at) => asked_at + CANCEL_INTERVAL,
            None => unwanted + grace,
        };
        if *cancel == Cancel::Asking || now < next {
            return Due::By(next.max(now + CANCEL_INTERVAL / 2));
        }
        let Some(canceller) = canceller else { return Due::Nothing };
        *cancel = Cancel::Asking;
        *asked_at = Some(now);
        Due::Cancel(Arc::clone(canceller))
    }

    /// When the oldest job in hand was begun, and how many there are.
    #[cfg(feature = "postgres")]
    pub fn oldest(&self) -> (Option<Instant>, usize) {
        let state = self.state();
        (state.running.front().map(|job| job.since), state.running.len())
    }

    /// The jobs in hand, oldest first.
    pub fn entries(&self) -> Vec<Arc<dyn Entry>> {
        self.state().running.iter().map(|job| Arc::clone(&job.entry)).collect()
    }

    /// Its thread is stuck: it was replaced.
    pub fn give_up(&self) {
        self.state().is_given_up = true;
    }

    pub fn is_given_up(&self) -> bool {
        self.state().is_given_up
    }

    /// Since when it is connecting.
    pub fn connecting_since(&self) -> Option<Instant> {
        match self.state().health {
            Health::Connecting { since } => Some(since),
            Health::Connected | Health::Down { .. } => None,
        }
    }

    pub fn is_busy(&self) -> bool {
        !self.state().running.is_empty()
    }

    /// Why it has no connection, once an attempt has failed.
    pub fn reason(&self) -> Option<Reason> {
        match &self.state().health {
            Health::Down { reason, .. } => Some(reason.clone()),
            Health::Connecting { .. } | Health::Connected => None,
        }
    }

    pub fn jobs(&self, now: Instant) -> Vec<RunningJob> {
        let told = |job: &Running| RunningJob {
            statement: job.entry.facts().statement.clone().into_owned(),
            age: now.saturating_duration_since(job.since),
        };
        self.state().running.iter().map(told).collect()
    }

    /// What it is doing, in a word.
    pub fn told(&self, now: Instant) -> String {
        let state = self.state();
        let age = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        match (&state.health, state.running.front()) {
            (Health::Connected, None) => "idle".to_owned(),
            (Health::Connected, Some(job)) => {
                let (statement, more) = (&job.entry.facts().statement, state.running.len() - 1);
                let more = if more == 0 { String::new() } else { format!(" and {more} more") };
                format!("busy for {:.1} s: {statement}{more}", age(job.since))
            }
            (Health::Connecting { since }, _) => format!("connecting for {:.1} s", age(*since)),
            (Health::Down { reason, since }, _) => {
                format!("no connection for {:.1} s: {reason}", age(*since))
            }
        }
    }

    /// Poisoning is passed over: every critical section leaves it whole at each step.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often a job is cancelled that goes on.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::ticket::Cell;
    use super::*;

    struct Nothing;

    impl Canceller for Nothing {
        fn cancel(&self) {}
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "any instant will do as the origin")]
    fn a_canceller_that_returns_late_says_nothing_of_the_next_connection() {
        let now = Instant::now();
        let slot = Slot::new(0, Care::Watcher, now);
        let job = || {
            let cell: Arc<Cell<()>> = Cell::new(Cow::Borrowed("job"), now, now);
            let entry = Arc::clone(&cell) as Arc<dyn Entry>;
            assert!(entry.take(0));
            entry
        };
        let (first, second): (Arc<dyn Canceller>, Arc<dyn Canceller>) =
            (Arc::new(Nothing), Arc::new(Nothing));
        slot.set_canceller(Some(first));
        let late = job();
        slot.begin(Arc::clone(&late), now);
        let Due::Cancel(asking) = slot.due(now, Duration::ZERO) else { panic!("it is late") };
        assert_eq!(slot.take_cancel(), Cancel::Asking);
        slot.end(&late);
        slot.set_canceller(None);
        slot.set_canceller(Some(second));
        assert_eq!(slot.take_cancel(), Cancel::No, "nobody asks for the new one");
        slot.asked(&asking);
        assert_eq!(slot.take_cancel(), Cancel::No, "it was another's");
        // And the new one can be asked for.
        slot.begin(job(), now);
        let Due::Cancel(asking) = slot.due(now, Duration::ZERO) else { panic!("it is late") };
        slot.asked(&asking);
        assert_eq!(slot.take_cancel(), Cancel::Asked);
    }
}

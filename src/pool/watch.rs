//! The watcher of a pool: a thread that looks at it when something is due or when it is told to,
//! so that nobody who waits depends on a thread that is stuck in a connection.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::Instant;

use super::clock;

/// What a watcher looks at.
pub trait Watched: Send + Sync + 'static {
    /// Does what is due. Returns when to look again, at the latest.
    fn look(self: Arc<Self>, now: Instant) -> Look;
}

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    At(Instant),
    /// When told to.
    WhenTold,
    /// There is nothing left to look at.
    Never,
}

impl Look {
    /// At `at`, if not before.
    #[must_use]
    pub fn or_at(self, at: Instant) -> Look {
        match self {
            Look::At(sooner) => Look::At(sooner.min(at)),
            Look::WhenTold | Look::Never => Look::At(at),
        }
    }
}

/// Tells the watcher to look.
#[derive(Debug, Default)]
pub struct Bell {
    due: Mutex<Due>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct Due {
    /// When the watcher looks next; `None` when only told to.
    next: Option<Instant>,
    is_rung: bool,
}

impl Bell {
    /// It is to look now.
    pub fn ring(&self) {
        self.due().is_rung = true;
        self.rung.notify_one();
    }

    /// It is to look at `at`, if not before.
    pub fn ring_by(&self, at: Instant) {
        let mut due = self.due();
        if due.next.is_none_or(|next| at < next) {
            due.next = Some(at);
            self.rung.notify_one();
        }
    }

    /// Starts the thread that watches.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn watch(self: &Arc<Bell>, name: &str, watched: Arc<dyn Watched>) -> io::Result<()> {
        let bell = Arc::clone(self);
        let run = move || bell.run(&watched);
        Builder::new().name(format!("ebbtide-{name}-watch")).spawn(run).map(drop)
    }

    fn run(&self, watched: &Arc<dyn Watched>) {
        loop {
            let mut due = self.due();
            loop {
                let patience = due.next.map(|at| at.saturating_duration_since(clock::now()));
                if due.is_rung || patience.is_some_and(|patience| patience.is_zero()) {
                    break;
                }
                due = match patience {
                    Some(patience) => {
                        let waited = self.rung.wait_timeout(due, patience);
                        waited.unwrap_or_else(PoisonError::into_inner).0
                    }
                    None => self.rung.wait(due).unwrap_or_else(PoisonError::into_inner),
                };
            }
            *due = Due::default();
            drop(due);
            match Arc::clone(watched).look(clock::now()) {
                Look::At(at) => {
                    let mut due = self.due();
                    due.next = Some(due.next.map_or(at, |next| next.min(at)));
                }
                Look::WhenTold => {}
                Look::Never => return,
            }
        }
    }

    /// Poisoning is passed over: every critical section leaves it whole at each step.
    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The pool against models that are too simple to be wrong: its queue, its tickets, and its end
//! with connections that do what a script says.

mod closing;
mod queue;
mod ticket;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;
use std::time::Duration;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_secs(20);

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Count>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn get(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

//! What code on a reactor's own thread can reach: the turn's clock, local wakes, sleeping.
//!
//! The state is thread-local and exists while an [`Entered`] guard does. Wakes from the reactor's
//! own thread are a push on a plain vector; wakes from elsewhere go through the
//! [`Remote`]. A waker never refers to the connection it wakes, only to its
//! key: one that outlives the connection finds a stale token and does nothing.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::Instant;

use super::blocking::Pool;
use super::mailbox::Remote;
use super::sleep::Sleeps;
use super::turn::Key;

/// The thread's side of a reactor.
#[derive(Debug)]
pub struct Local {
    remote: Arc<Remote>,
    now: Cell<Instant>,
    woken: RefCell<Vec<Key>>,
    pub(super) sleeps: RefCell<Sleeps>,
    pub(super) blocking: Pool,
}

impl Local {
    pub(super) fn new(remote: Arc<Remote>, now: Instant, blocking: Pool) -> Local {
        Local {
            remote,
            now: Cell::new(now),
            woken: RefCell::default(),
            sleeps: RefCell::default(),
            blocking,
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Local>> = const { RefCell::new(None) };
}

/// Keeps a reactor current on this thread.
#[derive(Debug)]
pub struct Entered(std::marker::PhantomData<*const ()>);

/// Makes `local` current.
///
/// # Panics
/// When the thread already runs a reactor: two cannot share a thread.
pub(super) fn enter(local: Local) -> Entered {
    CURRENT.with_borrow_mut(|current| {
        assert!(current.is_none(), "this thread already runs a reactor");
        *current = Some(local);
    });
    Entered(std::marker::PhantomData)
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Taken out first: dropping it drops wakers and jobs, which may look at CURRENT themselves.
        let local = CURRENT.with_borrow_mut(Option::take);
        drop(local);
    }
}

/// Runs `f` on the current reactor's local side; `None` when the thread runs no reactor, or is
/// ending and its thread-locals are gone.
pub(super) fn with<R>(f: impl FnOnce(&Local) -> R) -> Option<R> {
    CURRENT
        .try_with(|current| match current.try_borrow() {
            Ok(current) => current.as_ref().map(f),
            Err(_) => None,
        })
        .ok()
        .flatten()
}

pub(crate) fn set_now(now: Instant) {
    with(|local| local.now.set(now));
}

pub(crate) fn has_woken() -> bool {
    with(|local| !local.woken.borrow().is_empty()).unwrap_or(false)
}

/// Hands every local wake to `f`. The list is taken first: `f` may cause further wakes, which are
/// left for the next turn.
pub(crate) fn drain_woken(mut f: impl FnMut(Key)) {
    let Some(mut woken) = with(|local| local.woken.take()) else { return };
    for key in woken.drain(..) {
        f(key);
    }
    // The emptied vector goes back for its capacity, unless something was woken meanwhile.
    with(|local| {
        let mut current = local.woken.borrow_mut();
        if current.is_empty() {
            *current = woken;
        }
    });
}

pub(crate) fn next_sleep() -> Option<Instant> {
    with(|local| local.sleeps.borrow().next()).flatten()
}

pub(crate) fn end_sleeps(now: Instant) {
    // One at a time: a waker runs foreign code, which may start or drop sleeps.
    while let Some(waker) = with(|local| local.sleeps.borrow_mut().pop_due(now)).flatten() {
        waker.wake();
    }
}

/// A waker for the task behind `key`. One allocation; clones share it.
pub fn waker(key: Key, remote: Arc<Remote>) -> Waker {
    Waker::from(Arc::new(TaskWaker { key, remote }))
}

struct TaskWaker {
    key: Key,
    remote: Arc<Remote>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<TaskWaker>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<TaskWaker>) {
        let pushed = with(|local| {
            let here = Arc::ptr_eq(&local.remote, &self.remote);
            if here {
                local.woken.borrow_mut().push(self.key);
            }
            here
        });
        match pushed {
            Some(true) => {}
            // From another reactor at once: its code may be about to wait for this task.
            Some(false) => self.remote.wake_task(self.key),
            None => self.remote.wake_task_late(self.key),
        }
    }
}

//! A gate that holds handlers until the test lets them go.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::support::PATIENCE;

/// Holds handlers until the test lets them go. Clones are the same gate.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateShared>);

#[derive(Default)]
struct GateShared {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// How many may still pass.
    passes: usize,
    /// How many have come, passed or not.
    arrived: usize,
    wakers: Vec<Waker>,
}

impl Gate {
    /// Waits without holding the worker.
    pub fn pass(&self) -> Pass {
        Pass { gate: self.clone(), arrived: false }
    }

    /// Waits with the thread: a handler that does so holds its worker.
    pub fn block(&self) {
        let mut state = self.lock();
        state.arrived += 1;
        self.0.changed.notify_all();
        let waited = self.0.changed.wait_timeout_while(state, PATIENCE, |state| state.passes == 0);
        let (mut state, _) = waited.expect("no panic while held");
        state.passes = state.passes.saturating_sub(1);
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.allow(usize::MAX);
    }

    /// Lets one pass.
    pub fn let_one(&self) {
        self.allow(1);
    }

    /// Whether everybody may pass.
    pub fn is_open(&self) -> bool {
        self.lock().passes == usize::MAX
    }

    /// How many have come by now.
    pub fn arrived(&self) -> usize {
        self.lock().arrived
    }

    /// Waits until so many have come.
    pub fn until_arrived(&self, count: usize) {
        let came = self.arrives_within(count, PATIENCE);
        assert!(came, "{count} were to come, {} came", self.arrived());
    }

    /// Waits so long for so many to come.
    pub fn arrives_within(&self, count: usize, patience: Duration) -> bool {
        let state = self.lock();
        let waited =
            self.0.changed.wait_timeout_while(state, patience, |state| state.arrived < count);
        let (state, _) = waited.expect("no panic while held");
        state.arrived >= count
    }

    fn allow(&self, passes: usize) {
        let wakers = {
            let mut state = self.lock();
            state.passes = state.passes.saturating_add(passes);
            std::mem::take(&mut state.wakers)
        };
        self.0.changed.notify_all();
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.0.state.lock().expect("no panic while held")
    }
}

/// The future of [`Gate::pass`].
pub struct Pass {
    gate: Gate,
    /// Whether it has been counted.
    arrived: bool,
}

impl Future for Pass {
    type Output = ();

    fn poll(mut self: Pin<&mut Pass>, cx: &mut Context<'_>) -> Poll<()> {
        let gate = self.gate.clone();
        let mut state = gate.lock();
        if !self.arrived {
            self.arrived = true;
            state.arrived += 1;
            gate.0.changed.notify_all();
        }
        if state.passes == 0 {
            state.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        if state.passes != usize::MAX {
            state.passes -= 1;
        }
        Poll::Ready(())
    }
}

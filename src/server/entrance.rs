//! Where connections come in: the listeners of one reactor, and their way out.
//!
//! An endpoint has an entrance for the listeners of its worker, the dealer one for those that the
//! workers share. While it is open it accepts, so many a turn and as long as there is room. Once it
//! retires each listener leaves in its own way ([`Acceptor::retire`]). One whose queue lives on
//! elsewhere is closed at once. The others are accepted from until their queues are empty, then for
//! [`LISTENER_SETTLE`], and once more before they are closed. When new connections are steered to a
//! successor there is time before that: [`STEERED_FOR`], and until nothing has come for the
//! settling time. What arrives between the last look and the close is reset by the kernel.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::reactor::listener::{Accepted, Acceptor, Farewell, Listener};
use crate::reactor::socket::Peer;
use crate::reactor::turn::earliest;

/// See the module's essay.
#[derive(Debug)]
pub struct Entrance<L: Acceptor = Listener> {
    listeners: Vec<L>,
    stage: Stage,
}

/// How far the listeners are on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    /// New connections go elsewhere; those whose handshakes had begun are waited for.
    Steered {
        /// When it is over, if nothing comes just before.
        until: Instant,
        at_most: Instant,
    },
    /// Until the queues are empty.
    Emptying {
        at_most: Instant,
    },
    /// They were empty: time for handshakes under way.
    Settling {
        until: Instant,
    },
    Closed,
}

impl<L: Acceptor> Default for Entrance<L> {
    fn default() -> Entrance<L> {
        Entrance { listeners: Vec::new(), stage: Stage::Open }
    }
}

impl<L: Acceptor> Entrance<L> {
    /// How many listeners it has; also the number of the next one.
    pub fn len(&self) -> usize {
        self.listeners.len()
    }

    /// Accepts from `listener` as well.
    pub fn add(&mut self, listener: L) {
        self.listeners.push(listener);
    }

    /// See [`Acceptor::lead`].
    pub fn lead(&mut self) {
        self.listeners.iter_mut().for_each(L::lead);
    }

    /// Readiness came for listener `number`.
    pub fn ready(&mut self, number: u32) {
        if let Some(listener) = self.listeners.get_mut(number as usize) {
            listener.announce();
        }
    }

    /// A descriptor was freed.
    pub fn resume(&mut self) {
        self.listeners.iter_mut().for_each(L::resume);
    }

    /// Whether something is to be done that no event will announce.
    pub fn is_busy(&self, now: Instant) -> bool {
        self.listeners.iter().any(|listener| listener.is_ready(now))
            || self.stage_ends().is_some_and(|at| now >= at)
    }

    /// Whether an accept would do nothing at all.
    pub fn is_at_rest(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Open | Stage::Closed)
            && !self.listeners.iter().any(|listener| listener.is_ready(now))
    }

    /// When it is busy again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        earliest(self.listeners.iter().filter_map(L::deadline).min(), self.stage_ends())
    }

    /// Whether the kernel has shown that it keeps the books of Linux.
    pub fn is_counted(&self) -> bool {
        self.listeners.iter().any(L::is_counted)
    }

    /// Whether the last listener is gone.
    pub fn is_closed(&self) -> bool {
        self.stage == Stage::Closed
    }

    /// Begins the way out, unless it has begun.
    pub fn retire(&mut self, now: Instant) {
        if self.stage != Stage::Open {
            return;
        }
        let mut is_steered = false;
        self.listeners.retain_mut(|listener| match listener.retire() {
            Farewell::Close => false,
            Farewell::EmptyQueue => true,
            Farewell::Steered => {
                is_steered = true;
                true
            }
        });
        if self.listeners.is_empty() {
            self.stage = Stage::Closed;
            return;
        }
        self.listeners.iter_mut().for_each(L::announce);
        self.stage = if is_steered {
            let until = now + STEERED_FOR;
            Stage::Steered { until, at_most: until + LISTENER_SWEEP_MAX }
        } else {
            Stage::Emptying { at_most: now + LISTENER_SWEEP_MAX }
        };
    }

    /// No more time for stragglers: what is queued by then is accepted in this turn or never.
    pub fn hurry(&mut self, now: Instant) {
        match self.stage {
            Stage::Open | Stage::Closed => {}
            Stage::Steered { .. } | Stage::Emptying { .. } | Stage::Settling { .. } => {
                self.stage = Stage::Settling { until: now };
            }
        }
    }

    /// Closes the listeners with what is in their queues.
    pub fn cut(&mut self) {
        self.listeners.clear();
        self.stage = Stage::Closed;
    }

    /// Accepts within the budget of a turn. What comes has its seat of `capacity`.
    pub fn accept(
        &mut self,
        now: Instant,
        capacity: &Capacity,
        mut take: impl FnMut(L::Stream, Peer, Seat),
    ) {
        let mut budget = ACCEPTS_PER_TURN;
        let (mut is_empty, mut has_come) = (true, false);
        for listener in &mut self.listeners {
            while budget > 0 && listener.is_ready(now) {
                if !capacity.has_room() {
                    listener.pause(now);
                    break;
                }
                budget -= 1;
                match listener.accept(now) {
                    Accepted::Connection(stream, peer) => {
                        has_come = true;
                        take(stream, peer, capacity.take());
                    }
                    Accepted::Nothing => break,
                    Accepted::Gone | Accepted::Exhausted => {}
                }
            }
            // Ready still: the budget is used up, or it pauses.
            is_empty &= !listener.is_ready(now) && listener.deadline().is_none();
        }
        self.go_on(now, is_empty, has_come);
        if let Stage::Settling { until } = self.stage
            && now >= until
        {
            self.close(now, capacity, take);
        }
    }

    /// Takes the next steps of the way out that follow from what this turn found.
    fn go_on(&mut self, now: Instant, is_empty: bool, has_come: bool) {
        if let Stage::Steered { until, at_most } = &mut self.stage {
            if !is_empty || has_come {
                *until = (now + LISTENER_SETTLE).max(*until).min(*at_most);
            }
            if now >= *until {
                self.stage = Stage::Emptying { at_most: *at_most };
            }
        }
        if let Stage::Emptying { at_most } = self.stage
            && (is_empty || now >= at_most)
        {
            // SYNs that are dropped are sent again, to whoever listens then.
            self.listeners.iter_mut().for_each(L::drop_syns);
            self.stage = Stage::Settling { until: now + LISTENER_SETTLE };
        }
    }

    /// The last look into each queue, and the end of it.
    fn close(
        &mut self,
        now: Instant,
        capacity: &Capacity,
        mut take: impl FnMut(L::Stream, Peer, Seat),
    ) {
        for mut listener in std::mem::take(&mut self.listeners) {
            listener.turn_away();
            while listener.is_ready(now) {
                match listener.accept(now) {
                    Accepted::Connection(stream, peer) => take(stream, peer, capacity.take()),
                    Accepted::Gone => {}
                    Accepted::Nothing | Accepted::Exhausted => break,
                }
            }
        }
        self.stage = Stage::Closed;
    }

    fn stage_ends(&self) -> Option<Instant> {
        match self.stage {
            Stage::Steered { until, .. } | Stage::Settling { until } => Some(until),
            Stage::Emptying { at_most } => Some(at_most),
            Stage::Open | Stage::Closed => None,
        }
    }
}

/// How many connections the process takes.
#[derive(Debug)]
pub struct Capacity {
    open: AtomicUsize,
    max: usize,
}

/// What a connection gets when it is accepted, until [`Capacity::give_back`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// It is within the limit.
    Granted,
    /// It is over the limit, and taken only to be turned away.
    Over,
}

impl Capacity {
    /// For `max` connections.
    pub fn new(max: usize) -> Arc<Capacity> {
        Arc::new(Capacity { open: AtomicUsize::new(0), max })
    }

    /// Whether another connection can be taken, if only to turn it away.
    fn has_room(&self) -> bool {
        self.open.load(Ordering::Relaxed) < self.max + SHEDDING_MAX
    }

    fn take(&self) -> Seat {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        if before < self.max { Seat::Granted } else { Seat::Over }
    }

    /// A connection is gone.
    pub fn give_back(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections accepted in one turn; then those that are there get their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Connections over the limit that are told so at the same time; beyond, the queue waits.
const SHEDDING_MAX: usize = 64;

/// Between the two last looks into a listener's queue: longer than a handshake on a local network.
const LISTENER_SETTLE: Duration = Duration::from_millis(5);

/// How long before that when new connections go to a successor: longer than most handshakes over
/// the internet. All it costs is that the shutdown takes so much longer.
const STEERED_FOR: Duration = Duration::from_millis(100);

/// How long a listener goes on accepting when its queue does not become empty.
const LISTENER_SWEEP_MAX: Duration = Duration::from_millis(250);

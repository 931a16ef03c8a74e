//! Listeners, their connections and the application that answers them, on one reactor.
//!
//! The worker's share of the server. It owns the slots and the deadlines; what a connection does in
//! a run is the connection's business, when it runs is the endpoint's.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::error::StartError;
use super::holders::HOLDS_MAX;
use super::listener::Bound;
use crate::drain::Policy;
use crate::http::connection::{Connection, Means, Step};
use crate::http::hold::Hold;
use crate::http::site::{Grace, Mode, Site};
use crate::http::wire::Loan;
use crate::ledger::{ConnectionOutcome, ConnectionState};
use crate::reactor::listener::{Accepted, Acceptor, Listener};
use crate::reactor::mailbox::Remote;
use crate::reactor::slots::{Slots, Token};
use crate::reactor::socket::{Peer, Readiness, Stream, Transport};
use crate::reactor::timer::{Tick, Wheel};
use crate::reactor::turn::{Key, earliest};

/// See the module's essay.
pub struct Endpoint<L: Acceptor = Listener> {
    /// Keys of its connections are in this space, keys of its listeners in the next.
    space: u8,
    site: Rc<Site>,
    remote: Arc<Remote>,
    registrar: L::Registrar,
    capacity: Arc<Capacity>,
    listeners: Vec<L>,
    retiring: Retiring,
    slots: Slots<Slot<L::Stream>>,
    /// One entry per slot with a deadline, filed at it or earlier.
    wheel: Wheel,
    /// Slots to run, each at most once (see [`Slot::queued`]).
    runnable: VecDeque<Token>,
    /// Slots whose wheel entry is due; empty between calls, kept for its capacity.
    due: Vec<u32>,
    loan: Loan,
    /// When the metrics were last flushed.
    flushed: Instant,
}

/// A connection with what its endpoint knows of it.
struct Slot<S: Transport + 'static> {
    connection: Connection<S>,
    peer: Peer,
    /// When it is to run at the latest, [`NEVER`] if it need not; the wheel may hold an earlier
    /// entry.
    deadline: Tick,
    /// The state under which the ledger has it.
    booked: ConnectionState,
    /// Whether it is in the run queue.
    queued: bool,
}

/// How far the listeners are on their way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Retiring {
    No,
    /// Accepting until the queue is empty.
    Sweeping,
    /// Empty once; the queue is looked at again at this instant, and then closed.
    Settling(Instant),
    /// The listeners are closed.
    Done,
}

/// How many connections the process takes.
#[derive(Debug)]
pub struct Capacity {
    open: AtomicUsize,
    max: usize,
}

impl Capacity {
    pub fn new(max: usize) -> Arc<Capacity> {
        Arc::new(Capacity { open: AtomicUsize::new(0), max })
    }
}

/// What control tells its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Announce,
    /// The shutdown was taken back.
    Resume,
    Drain(Grace),
    Cancel,
    Refuse,
    Cut,
    /// Tidy up the thread's heap: memory is going to be given back.
    Consolidate,
    /// End the thread.
    Leave,
}

impl Endpoint {
    /// Begins to listen. Last of all, when everything else is ready.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub fn listen(&mut self, bound: Vec<Bound>) -> Result<(), StartError> {
        for bound in bound {
            let listener = bound.listen(&self.registrar, self.listener_key())?;
            self.listeners.push(listener);
        }
        Ok(())
    }
}

impl<L: Acceptor> Endpoint<L> {
    pub fn new(
        space: u8,
        site: Site,
        remote: Arc<Remote>,
        registrar: L::Registrar,
        capacity: Arc<Capacity>,
    ) -> Endpoint<L> {
        Endpoint {
            space,
            remote,
            registrar,
            capacity,
            listeners: Vec::new(),
            retiring: Retiring::No,
            slots: Slots::new(),
            wheel: Wheel::new(site.epoch),
            runnable: VecDeque::new(),
            due: Vec::new(),
            loan: Loan::new(site.limits.head_bytes_max),
            flushed: site.epoch,
            site: Rc::new(site),
        }
    }

    /// The key of the next listener.
    fn listener_key(&self) -> Key {
        Key::new(self.space + 1, Token::from_bits(self.listeners.len() as u64))
    }

    /// Whether `key` is of one of its spaces.
    pub fn owns(&self, key: Key) -> bool {
        key.space() == self.space || key.space() == self.space + 1
    }

    pub fn ready(&mut self, key: Key, readiness: Readiness) {
        if key.space() != self.space {
            if let Some(listener) = self.listeners.get_mut(key.token().index() as usize) {
                listener.announce();
            }
            return;
        }
        let Some(slot) = self.slots.get_mut(key.token()) else { return };
        slot.connection.announce(readiness);
        enqueue(&mut self.runnable, slot, key.token());
    }

    pub fn woken(&mut self, key: Key) {
        if let Some(slot) = self.slots.get_mut(key.token()) {
            enqueue(&mut self.runnable, slot, key.token());
        }
    }

    pub fn is_busy(&self) -> bool {
        !self.runnable.is_empty()
            || self.retiring == Retiring::Sweeping
            || self.listeners.iter().any(|listener| listener.is_ready(self.site.now.get()))
    }

    pub fn deadline(&self) -> Option<Instant> {
        let wheel = self.wheel.next().map(|tick| self.wheel.instant_of(tick));
        let paused = self.listeners.iter().filter_map(L::deadline).min();
        let settling = match self.retiring {
            Retiring::Settling(at) => Some(at),
            Retiring::No | Retiring::Sweeping | Retiring::Done => None,
        };
        let flush =
            self.site.metrics.borrow().is_dirty().then(|| self.flushed + METRICS_FLUSH_INTERVAL);
        earliest(earliest(wheel, paused), earliest(settling, flush))
    }

    pub fn expire(&mut self, now: Instant) {
        let tick = self.wheel.now_tick(now);
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(tick, &mut due);
        for index in due.drain(..) {
            let Some(token) = self.slots.token_at(index) else { continue };
            let Some(slot) = self.slots.get_mut(token) else { continue };
            if slot.deadline <= tick {
                enqueue(&mut self.runnable, slot, token);
            } else if slot.deadline != NEVER {
                self.wheel.file_by(index, slot.deadline);
            }
        }
        self.due = due;
        if let Retiring::Settling(at) = self.retiring
            && now >= at
        {
            self.retiring = Retiring::Sweeping;
        }
    }

    /// Accepts, then runs what is runnable: each connection at most once.
    pub fn work(&mut self, now: Instant) {
        self.site.now.set(now);
        self.accept(now);
        for _ in 0..self.runnable.len() {
            let Some(token) = self.runnable.pop_front() else { break };
            self.run(token);
        }
    }

    /// Closes the turn.
    pub fn finish(&mut self, now: Instant, worked: Duration) {
        self.site.observe_answered(now + worked);
        let mut metrics = self.site.metrics.borrow_mut();
        metrics.turn(worked.as_secs_f64());
        if metrics.is_dirty() && now >= self.flushed + METRICS_FLUSH_INTERVAL {
            metrics.flush();
            self.flushed = now;
        }
        drop(metrics);
        if cfg!(debug_assertions) {
            self.site.ledger.counts().check();
        }
    }

    /// Whether its listeners are retired and its connections gone.
    pub fn is_quiet(&self) -> bool {
        self.retiring == Retiring::Done && self.slots.is_empty()
    }

    /// Does what control says.
    pub fn obey(&mut self, command: Command, now: Instant) {
        self.site.now.set(now);
        match command {
            Command::Announce => self.enter(Mode::Announcing),
            Command::Resume => self.enter(Mode::Serving),
            Command::Drain(grace) => {
                self.enter(Mode::Draining { since: now, grace: self.spread(grace) });
                if self.retiring == Retiring::No {
                    self.retiring = Retiring::Sweeping;
                    self.listeners.iter_mut().for_each(L::announce);
                }
                self.run_all(Connection::recheck);
            }
            Command::Cancel => {
                self.enter(Mode::Cancelling);
                self.site.shutdown.cancel();
                self.run_all(Connection::recheck);
            }
            Command::Refuse => {
                self.enter(Mode::Refusing);
                self.run_all(Connection::refuse);
            }
            Command::Cut => {
                self.listeners.clear();
                self.retiring = Retiring::Done;
                let tokens: Vec<Token> = self.slots.tokens().collect();
                for token in tokens {
                    if let Some(slot) = self.slots.get_mut(token) {
                        let outcome = slot.connection.cut();
                        self.free(token, outcome);
                    }
                }
            }
            Command::Consolidate => consolidate_heap(),
            Command::Leave => {}
        }
        if cfg!(debug_assertions) || command != Command::Announce {
            self.site.ledger.counts().check();
        }
    }

    /// What its oldest connections are doing and wait for, in any order. All are looked at, but
    /// strings are made for the chosen ones only.
    pub fn holds(&self, now: Instant) -> Vec<(Peer, Hold)> {
        self.site.now.set(now);
        let since =
            |(token, slot): (Token, &Slot<L::Stream>)| (slot.connection.since(&self.site), token);
        let mut all: Vec<(Instant, Token)> = self.slots.iter().map(since).collect();
        if all.len() > HOLDS_MAX {
            all.select_nth_unstable_by_key(HOLDS_MAX, |(since, _)| *since);
            all.truncate(HOLDS_MAX);
        }
        let hold = |(_, token): (Instant, Token)| {
            let slot = self.slots.get(token)?;
            Some((slot.peer, slot.connection.hold(&self.site, token.index())))
        };
        all.into_iter().filter_map(hold).collect()
    }

    fn enter(&self, mode: Mode) {
        self.site.mode.set(mode);
    }

    /// When many connections are idle their closing is spread, so that their clients do not all
    /// come back at once.
    fn spread(&self, grace: Grace) -> Grace {
        let crowd = self.slots.len() >= CROWD_MIN;
        Grace { spread: if crowd { grace.idle / 10 } else { Duration::ZERO }, ..grace }
    }

    fn run_all(&mut self, each: impl Fn(&mut Connection<L::Stream>)) {
        let tokens: Vec<Token> = self.slots.tokens().collect();
        for token in tokens {
            if let Some(slot) = self.slots.get_mut(token) {
                each(&mut slot.connection);
                enqueue(&mut self.runnable, slot, token);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        let mut budget = ACCEPTS_PER_TURN;
        let mut is_empty = true;
        let mut listeners = std::mem::take(&mut self.listeners);
        for listener in &mut listeners {
            while listener.is_ready(now) {
                if budget == 0 || !self.has_room() {
                    is_empty = false;
                    if budget > 0 {
                        listener.pause(now);
                    }
                    break;
                }
                match listener.accept(now) {
                    Accepted::Connection(stream, peer) => self.open(stream, peer),
                    Accepted::Nothing => break,
                    Accepted::Gone => {}
                    Accepted::Exhausted => is_empty = false,
                }
                budget -= 1;
            }
        }
        self.listeners = listeners;
        match self.retiring {
            Retiring::Sweeping if is_empty || self.has_swept_enough(now) => self.retire(now),
            Retiring::No | Retiring::Sweeping | Retiring::Settling(_) | Retiring::Done => {}
        }
    }

    /// Whether clients reconnect faster than this server accepts: the queue would never be empty.
    fn has_swept_enough(&self, now: Instant) -> bool {
        match self.site.mode.get() {
            Mode::Draining { since, .. } => now >= since + LISTENER_SWEEP_MAX,
            _ => true,
        }
    }

    /// The queues are empty: wait for stragglers once, then close.
    ///
    /// What arrives between the last accept and the close is reset by the kernel. So while the
    /// listener settles the kernel is told to drop SYNs, and the handshakes under way get the time
    /// to end. Without the privilege for that it takes one connection at most after the last look,
    /// however long the thread is kept from going on there.
    fn retire(&mut self, now: Instant) {
        let Mode::Draining { since, .. } = self.site.mode.get() else {
            // Cancelling already: no time to settle.
            self.close_listeners(now);
            return;
        };
        if now >= since + LISTENER_SETTLE {
            self.close_listeners(now);
        } else {
            self.retiring = Retiring::Settling(since + LISTENER_SETTLE);
            for listener in &mut self.listeners {
                listener.announce();
                listener.drop_syns();
            }
        }
    }

    fn close_listeners(&mut self, now: Instant) {
        let mut listeners = std::mem::take(&mut self.listeners);
        for listener in &mut listeners {
            listener.turn_away();
            // What was queued by then, and at most one more.
            while listener.is_ready(now) {
                match listener.accept(now) {
                    Accepted::Connection(stream, peer) => self.open(stream, peer),
                    Accepted::Gone => {}
                    Accepted::Nothing | Accepted::Exhausted => break,
                }
            }
        }
        drop(listeners);
        self.retiring = Retiring::Done;
    }

    /// Whether another connection can be taken, if only to turn it away.
    fn has_room(&self) -> bool {
        self.capacity.open.load(Ordering::Relaxed) < self.capacity.max + SHEDDING_MAX
    }

    fn open(&mut self, mut stream: L::Stream, peer: Peer) {
        let open = self.capacity.open.fetch_add(1, Ordering::Relaxed);
        self.site.ledger.opened();
        let token = self.slots.insert(Slot {
            // A placeholder's place is needed before the key is known: register, then store.
            connection: Connection::pending(),
            peer,
            deadline: NEVER,
            booked: ConnectionState::New,
            queued: false,
        });
        let key = Key::new(self.space, token);
        if let Err(error) = L::watch(&self.registrar, &mut stream, key) {
            log::error!(event_type = "accept_failed"; "cannot watch a connection: {error}");
            self.free(token, ConnectionOutcome::Shed);
            return;
        }
        let site = Rc::clone(&self.site);
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.connection = Connection::accepted(stream, &site);
        if open >= self.capacity.max {
            slot.connection.shed(&site);
        }
        // Runs once to file its deadline; costs no system call before readiness is announced.
        if site.mode.get() != Mode::Serving {
            slot.connection.recheck();
        }
        enqueue(&mut self.runnable, slot, token);
    }

    fn run(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.queued = false;
        let was_hot = is_hot(slot.booked);
        let mut means = Means {
            site: &self.site,
            loan: &mut self.loan,
            remote: &self.remote,
            key: Key::new(self.space, token),
            peer: slot.peer,
        };
        let step = slot.connection.run(&mut means);
        match step {
            Step::Wait(at) => {
                slot.deadline = at.map_or(NEVER, |at| self.wheel.tick_of(at));
                if slot.deadline != NEVER {
                    self.wheel.file_by(token.index(), slot.deadline);
                }
            }
            Step::Again => enqueue(&mut self.runnable, slot, token),
            Step::Closed(outcome) => {
                if was_hot {
                    self.site.ledger.cooled();
                }
                self.free(token, outcome);
                return;
            }
        }
        let state = slot.connection.state();
        if state != slot.booked {
            self.site.ledger.moved(slot.booked, state);
            slot.booked = state;
            if was_hot && !is_hot(state) {
                self.site.ledger.cooled();
            }
        }
    }

    fn free(&mut self, token: Token, outcome: ConnectionOutcome) {
        let Some(slot) = self.slots.remove(token) else { return };
        log::debug!(
            event_type = "connection_closed",
            peer:% = slot.peer,
            state = slot.booked.name(),
            outcome = outcome.name();
            "Connection closed: {}", outcome.name()
        );
        self.wheel.cancel(token.index());
        self.site.ledger.closed(slot.booked, outcome);
        drop(slot);
        self.capacity.open.fetch_sub(1, Ordering::Relaxed);
        self.listeners.iter_mut().for_each(L::resume);
    }
}

/// Has malloc join the small pieces of this thread's heap that it keeps apart, and give back what
/// is
/// free at the heap's top. It does so when a block of 64 KiB or more is freed, for the heap of the
/// thread that frees it, and at no other time: `malloc_trim` joins the pieces as well, but leaves a
/// top that has grown by it untouched (glibc 2.36, `_int_free` and `mtrim`).
fn consolidate_heap() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(CONSOLIDATING_BYTES)));
}

/// Above glibc's `FASTBIN_CONSOLIDATION_THRESHOLD` (64 KiB), below its mapping threshold (128 KiB).
const CONSOLIDATING_BYTES: usize = 96 * 1024;

fn enqueue<S: Transport>(runnable: &mut VecDeque<Token>, slot: &mut Slot<S>, token: Token) {
    if !slot.queued {
        slot.queued = true;
        runnable.push_back(token);
    }
}

/// Whether hyper's buffers are there in this state.
fn is_hot(state: ConnectionState) -> bool {
    matches!(state, ConnectionState::Handling | ConnectionState::Streaming | ConnectionState::Idle)
}

/// How a policy treats idle clients.
pub fn grace(policy: &Policy, idle: crate::drain::Patience) -> Grace {
    match idle {
        crate::drain::Patience::Window => Grace {
            first_byte: policy.first_byte_grace,
            idle: policy.idle_window,
            spread: Duration::ZERO,
        },
        crate::drain::Patience::None => {
            Grace { first_byte: Duration::ZERO, idle: Duration::ZERO, spread: Duration::ZERO }
        }
    }
}

/// No deadline. 13 years ahead as a tick: nothing else lies there.
const NEVER: Tick = Tick(u32::MAX);

/// Connections accepted in one turn; then those that are there get their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Connections over the limit that are told so at the same time; beyond, the queue waits.
const SHEDDING_MAX: usize = 64;

/// Between the two last looks into a listener's queue: longer than a handshake on a local network.
const LISTENER_SETTLE: Duration = Duration::from_millis(5);

/// How long a listener goes on accepting when its queue does not become empty.
const LISTENER_SWEEP_MAX: Duration = Duration::from_millis(250);

/// How stale the per-worker metrics may be.
const METRICS_FLUSH_INTERVAL: Duration = Duration::from_millis(250);

/// Connections from which on closing them is spread.
const CROWD_MIN: usize = 64;
/// Paid for by every idle connection, next to 8 bytes of its slot and 12 of the wheel. Debug builds
/// of mio keep more per socket.
const _: () = assert!(cfg!(debug_assertions) || size_of::<Slot<Stream>>() <= 56);

//! Listeners, their connections and the application that answers them, on one reactor.
//!
//! The worker's share of the server. It owns the slots and the deadlines; what a connection does in
//! a run is the connection's business, when it runs is the endpoint's.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::balance::{Balance, Fresh, Give};
use super::entrance::{Capacity, Entrance, Seat};
use super::error::StartError;
use super::holders::HOLDS_MAX;
use super::hunch::{Found, Hunch, Look};
use super::listener::Bound;
use super::slot::{NEVER, Slot, is_hot};
use crate::drain::{Order, Patience, Policy};
use crate::http::buffers::Loan;
use crate::http::connection::{Connection, Means, Step};
use crate::http::hold::Hold;
use crate::http::site::{Delivery, Grace, Mode, Site};
use crate::ledger::{ConnectionOutcome, ConnectionState};
use crate::reactor::listener::{Acceptor, Listener};
use crate::reactor::mailbox::Remote;
use crate::reactor::slots::{Slots, Token};
use crate::reactor::socket::{Peer, Readiness};
use crate::reactor::timer::{TICK, Tick, Wheel};
use crate::reactor::turn::{Key, earliest};

/// See the module's essay.
pub struct Endpoint<L: Acceptor = Listener> {
    /// Keys of its connections are in this space, keys of its listeners in the next.
    space: u8,
    site: Rc<Site>,
    remote: Arc<Remote>,
    registrar: L::Registrar,
    capacity: Arc<Capacity>,
    entrance: Entrance<L>,
    /// Who may still send connections that it has accepted.
    sources: Vec<Source>,
    /// `Some` beside other workers.
    balance: Option<Balance<L::Stream>>,
    slots: Slots<Slot<L::Stream>>,
    /// One entry per slot with a deadline, filed at it or earlier.
    wheel: Wheel,
    hunch: Hunch,
    /// Slots to run, each at most once (see [`Slot::enqueue`]).
    runnable: Vec<Token>,
    /// Those of the turn before; empty between turns, kept for its capacity.
    ran: Vec<Token>,
    /// The deadline that was last turned into a tick: most of a turn's are the same.
    last_deadline: (Instant, Tick),
    /// Slots whose wheel entry is due; empty between calls, kept for its capacity.
    due: Vec<u32>,
    loan: Loan,
    /// When the metrics were last flushed.
    flushed: Instant,
}

/// Who sends a worker connections that it has accepted itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a queue that all workers share.
    Control,
    /// Another worker, which would have more than its share.
    Worker(usize),
}

/// What control tells its workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Lame duck: responses announce the close.
    Announce,
    /// The shutdown was taken back.
    Resume,
    /// Retire the listeners, and treat each connection by its state.
    Drain(Grace),
    /// Tell the handlers to come to an end.
    Cancel,
    /// Answer 503 where there is no response head yet.
    Refuse,
    /// End what is left.
    Cut,
    /// No older server shares our ports.
    Lead,
    /// No accepted connection comes from there any more.
    DealingDone(Source),
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
            self.attend(listener);
        }
        Ok(())
    }
}

impl<L: Acceptor> Endpoint<L> {
    /// Without listeners yet. Keys of its connections will be in `space`, those of its listeners in
    /// the next.
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
            entrance: Entrance::default(),
            sources: Vec::new(),
            balance: None,
            slots: Slots::new(),
            wheel: Wheel::new(site.epoch),
            hunch: Hunch::new(),
            runnable: Vec::new(),
            ran: Vec::new(),
            last_deadline: (site.epoch, Tick(0)),
            due: Vec::new(),
            loan: Loan::new(site.limits.head_bytes_max),
            flushed: site.epoch,
            site: Rc::new(site),
        }
    }

    /// Accepts from `listener`, whose readiness is announced under
    /// [`listener_key`](Self::listener_key).
    pub fn attend(&mut self, listener: L) {
        self.entrance.add(listener);
    }

    /// The key of the next listener.
    pub fn listener_key(&self) -> Key {
        Key::new(self.space + 1, Token::from_bits(self.entrance.len() as u64))
    }

    /// Has it wait for [`Command::DealingDone`] of `source` before it is quiet.
    pub fn expect(&mut self, source: Source) {
        self.sources.push(source);
    }

    /// Has it count its connections beside those of other workers.
    pub(super) fn balance(&mut self, balance: Balance<L::Stream>) {
        self.balance = Some(balance);
    }

    /// The others can be given connections from now on, until the drain.
    pub(super) fn begin_balancing(&mut self, give: Give<L::Stream>) {
        if let Some(balance) = &mut self.balance {
            balance.begin(give);
        }
    }

    /// Whether `key` is of one of its spaces.
    pub fn owns(&self, key: Key) -> bool {
        key.space() == self.space || key.space() == self.space + 1
    }

    /// Readiness came for `key`, which may be stale.
    pub fn ready(&mut self, key: Key, readiness: Readiness) {
        if key.space() != self.space {
            self.entrance.ready(key.token().index());
            return;
        }
        let Some(slot) = self.slots.get_mut(key.token()) else { return };
        slot.connection.announce(readiness);
        slot.enqueue(&mut self.runnable, key.token());
    }

    /// The task behind `key` was woken; the key may be stale.
    pub fn woken(&mut self, key: Key) {
        if let Some(slot) = self.slots.get_mut(key.token()) {
            slot.enqueue(&mut self.runnable, key.token());
        }
    }

    /// Whether something is to be done that no event will announce.
    pub fn is_busy(&self) -> bool {
        !self.runnable.is_empty() || self.entrance.is_busy(self.site.now.get())
    }

    /// When [`expire`](Self::expire) is due.
    pub fn deadline(&self) -> Option<Instant> {
        let wheel = self.wheel.next().map(|tick| self.wheel.instant_of(tick));
        let flush =
            self.site.metrics.borrow().is_dirty().then(|| self.flushed + METRICS_FLUSH_INTERVAL);
        earliest(earliest(wheel, self.entrance.deadline()), flush)
    }

    /// Makes those runnable whose deadlines are due.
    pub fn expire(&mut self, now: Instant) {
        let tick = self.wheel.now_tick(now);
        let mut due = std::mem::take(&mut self.due);
        self.wheel.expire(tick, &mut due);
        for index in due.drain(..) {
            let Some(token) = self.slots.token_at(index) else { continue };
            let Some(slot) = self.slots.get_mut(token) else { continue };
            if slot.deadline <= tick {
                slot.deadline = NEVER;
                slot.enqueue(&mut self.runnable, token);
            } else if slot.deadline != NEVER {
                self.wheel.file_by(index, slot.deadline);
            }
        }
        self.due = due;
    }

    /// Accepts, then runs what is runnable: each connection at most once.
    pub fn work(&mut self, now: Instant) {
        self.site.now.set(now);
        self.accept(now);
        // What a run makes runnable again is left for the next turn.
        let mut turn = std::mem::replace(&mut self.runnable, std::mem::take(&mut self.ran));
        for token in turn.drain(..) {
            self.run(token);
        }
        self.ran = turn;
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

    /// Whether its listeners are retired and its connections gone, those included that control has
    /// accepted for it.
    pub fn is_quiet(&self) -> bool {
        self.entrance.is_closed() && self.sources.is_empty() && self.slots.is_empty()
    }

    /// Does what control says.
    pub fn obey(&mut self, command: Command, now: Instant) {
        self.site.now.set(now);
        match command {
            Command::Announce => self.enter(Mode::Announcing),
            Command::Resume => self.enter(Mode::Serving),
            Command::Drain(grace) => {
                self.enter(Mode::Draining { since: now, grace: self.spread(grace) });
                self.end_balancing();
                self.entrance.retire(now);
                self.run_all(Connection::recheck);
            }
            Command::Cancel => {
                self.enter(Mode::Cancelling);
                self.site.shutdown.cancel();
                self.entrance.hurry(now);
                self.run_all(Connection::recheck);
            }
            Command::Refuse => {
                self.enter(Mode::Refusing);
                self.run_all(Connection::refuse);
            }
            Command::Cut => {
                self.end_balancing();
                self.entrance.cut();
                let tokens: Vec<Token> = self.slots.tokens().collect();
                for token in tokens {
                    if let Some(slot) = self.slots.get_mut(token) {
                        let outcome = slot.connection.cut();
                        self.free(token, outcome);
                    }
                }
            }
            Command::Lead => self.entrance.lead(),
            Command::DealingDone(source) => self.sources.retain(|other| *other != source),
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
    /// come back at once: over the end of the window, for the window is what the shutdown takes. A
    /// deadline is met up to a tick late, and so is the look whether the client has our FIN.
    fn spread(&self, grace: Grace) -> Grace {
        if self.slots.len() < CROWD_MIN {
            return grace;
        }
        let spread = grace.idle / 10;
        let idle = grace.idle.saturating_sub(spread + (2 * TICK).min(2 * spread));
        Grace { idle, spread, ..grace }
    }

    fn run_all(&mut self, each: impl Fn(&mut Connection<L::Stream>)) {
        let tokens: Vec<Token> = self.slots.tokens().collect();
        for token in tokens {
            if let Some(slot) = self.slots.get_mut(token) {
                each(&mut slot.connection);
                slot.enqueue(&mut self.runnable, token);
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        if self.entrance.is_at_rest(now) {
            return;
        }
        let mut entrance = std::mem::take(&mut self.entrance);
        let capacity = Arc::clone(&self.capacity);
        entrance.accept(now, &capacity, |stream, peer, seat| {
            let fresh = (stream, peer, seat);
            let kept = match &self.balance {
                Some(balance) => balance.keep(fresh),
                None => Some(fresh),
            };
            if let Some(fresh) = kept {
                self.open(fresh);
            }
        });
        if self.site.delivery.get() == Delivery::OursYet && entrance.is_counted() {
            self.site.delivery.set(Delivery::Kernels);
        }
        self.entrance = entrance;
    }

    /// Takes a connection that control has accepted.
    pub fn take(&mut self, stream: L::Stream, peer: Peer, seat: Seat, now: Instant) {
        if let Some(balance) = &self.balance {
            balance.opened();
        }
        self.take_given((stream, peer, seat), now);
    }

    /// Takes a connection that another worker has accepted.
    pub(super) fn take_given(&mut self, fresh: Fresh<L::Stream>, now: Instant) {
        self.site.now.set(now);
        self.open(fresh);
    }

    fn end_balancing(&mut self) {
        if let Some(balance) = &mut self.balance {
            balance.end();
        }
    }

    fn open(&mut self, (stream, peer, seat): Fresh<L::Stream>) {
        self.site.ledger.opened();
        let mut connection = Connection::accepted(stream, &self.site);
        // On a unix socket a client that has sent and gone is announced as one that is gone.
        let look = match (seat, self.site.mode.get()) {
            (Seat::Granted, Mode::Serving) if peer != Peer::LOCAL => self.hunch.look(),
            _ => Look::Now,
        };
        match (seat, look) {
            (Seat::Over, _) => connection.shed(&self.site),
            (Seat::Granted, Look::Now) => connection.recheck(),
            (Seat::Granted, Look::Announced) => {}
        }
        let token = self.slots.insert(Slot::new(connection, peer));
        let Some(slot) = self.slots.get_mut(token) else { return };
        match look {
            Look::Now => slot.enqueue(&mut self.runnable, token),
            Look::Announced => {
                let at = slot.connection.idle_until(&self.site, token.index());
                slot.wait(token, at, &mut self.wheel, &mut self.last_deadline);
                self.watch(token);
            }
        }
    }

    fn run(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        slot.dequeued();
        let was_hot = is_hot(slot.booked);
        let mut means = Means {
            site: &self.site,
            loan: &mut self.loan,
            remote: &self.remote,
            key: Key::new(self.space, token),
            peer: slot.peer,
        };
        let step = slot.connection.run(&mut means);
        if slot.is_unwatched() {
            let is_new = slot.connection.state() == ConnectionState::New;
            self.hunch.note(if is_new { Found::Nothing } else { Found::Something });
        }
        match step {
            Step::Wait(at) => {
                slot.wait(token, at, &mut self.wheel, &mut self.last_deadline);
            }
            Step::Again => slot.enqueue(&mut self.runnable, token),
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
        if slot.lacks_watch() {
            self.watch(token);
        }
    }

    /// Has its readiness announced, as far as it is of interest. What has come before is announced
    /// as well: epoll looks when it is told.
    fn watch(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(token) else { return };
        let key = Key::new(self.space, token);
        if let Err(error) = slot.watch_by::<L>(&self.registrar, key) {
            log::error!(event_type = "accept_failed"; "cannot watch a connection: {error}");
            let outcome = match slot.booked {
                ConnectionState::New => ConnectionOutcome::Shed,
                _ => slot.connection.cut(),
            };
            if is_hot(slot.booked) {
                self.site.ledger.cooled();
            }
            self.free(token, outcome);
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
        if let Some(balance) = &self.balance {
            balance.closed();
        }
        self.capacity.give_back();
        self.entrance.resume();
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

impl Command {
    /// What an order means to the workers; `None`: nothing.
    pub fn of(order: Order, policy: &Policy) -> Option<Command> {
        match order {
            Order::Announce => Some(Command::Announce),
            Order::Resume => Some(Command::Resume),
            Order::Drain { idle } => Some(Command::Drain(grace(policy, idle))),
            Order::Cancel => Some(Command::Cancel),
            Order::Refuse => Some(Command::Refuse),
            Order::Cut => Some(Command::Cut),
            Order::CleanUp | Order::Stop | Order::Quit(_) => None,
        }
    }
}

impl<L: Acceptor> fmt::Debug for Endpoint<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut endpoint = f.debug_struct("Endpoint");
        endpoint.field("connections", &self.slots.len()).finish_non_exhaustive()
    }
}

/// How a policy treats idle clients.
fn grace(policy: &Policy, idle: Patience) -> Grace {
    match idle {
        Patience::Window => Grace {
            first_byte: policy.first_byte_grace,
            idle: policy.idle_window,
            spread: Duration::ZERO,
        },
        Patience::None => {
            Grace { first_byte: Duration::ZERO, idle: Duration::ZERO, spread: Duration::ZERO }
        }
    }
}

/// How stale the per-worker metrics may be.
const METRICS_FLUSH_INTERVAL: Duration = Duration::from_millis(250);

/// Connections from which on closing them is spread.
const CROWD_MIN: usize = 64;

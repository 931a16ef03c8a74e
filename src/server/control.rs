//! Control: the calling thread's reactor, with the signals, the admin listener and the clock of the
//! shutdown. It feeds facts to [`Drain`] and passes its orders on.
//!
//! It reads the workers' books and never waits for a worker: one that is stuck in a handler cannot
//! hold the exit. With `workers = 0` the public endpoint lives here as well.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::endpoint::{Command, Endpoint, grace};
use super::handle::GracefulShutdown;
use super::narrate;
use super::worker::Pulse;
use crate::app::status::{ShutdownFacts, Status};
use crate::drain::{Drain, Input, Order, Phase, Signal};
use crate::http::watch::Watch;
use crate::ledger::{Counts, Ledger, RequestOutcome};
use crate::reactor::mailbox::Mailbox;
use crate::reactor::slots::Token;
use crate::reactor::socket::Readiness;
use crate::reactor::turn::{Host, Key, earliest};
use crate::report::{LostLine, Report};
use crate::signals::{Caught, Signals};

/// What control is told.
#[derive(Debug)]
pub enum ControlMail {
    /// Begin the shutdown, unless it has begun.
    Begin,
    Signal(Signal),
    /// A worker's listeners are retired and its connections gone; its pulse says so as well.
    Quiet,
    /// This worker's thread has ended by a fault of ours.
    WorkerLost(usize),
}

/// What control knows of a worker.
pub struct WorkerView {
    /// `None` for the endpoint on control's own thread.
    pub mailbox: Option<Mailbox<Command>>,
    pub ledger: Arc<Ledger>,
    pub watch: Arc<Watch>,
    pub pulse: Arc<Pulse>,
    /// Whether it was reported as blocked in its current turn.
    pub complained: bool,
    /// Whether its thread has ended by a fault: nothing more is to be expected of it.
    pub is_lost: bool,
}

/// See the module's essay.
pub struct Control {
    pub drain: Drain,
    pub mailbox: Mailbox<ControlMail>,
    pub signals: Option<Signals>,
    pub admin: Option<Endpoint>,
    /// `Some` with `workers = 0`.
    pub public: Option<Endpoint>,
    pub workers: Vec<WorkerView>,
    pub status: Arc<Status>,
    pub handle: GracefulShutdown,
    /// When each phase after the first began.
    pub phases: Vec<(Phase, Instant)>,
    pub reason: String,
    /// The books when the shutdown began.
    pub at_shutdown: Counts,
    /// When control looks around next.
    pub next_tick: Instant,
    /// When it looks for stuck workers next.
    pub next_look: Instant,
    pub trim: Trim,
    pub said_quiet: bool,
    /// The status to end with; `Some` ends the loop.
    pub verdict: Option<Verdict>,
}

/// When memory is given back.
#[derive(Debug, Default)]
pub struct Trim {
    /// Hot connections that had been dropped at the last look.
    cooled: u64,
    /// When the number was last seen to change.
    changed: Option<Instant>,
    /// The number when memory was last given back.
    trimmed: u64,
    /// Whether the workers were told to tidy up their heaps for it.
    is_consolidated: bool,
}

/// How the shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// In its own time.
    Stopped,
    /// At once, with this status.
    Quit(u8),
}

impl Control {
    /// Takes a fact in and obeys what follows from it.
    fn feed(&mut self, now: Instant, input: Input) {
        let before = self.drain.phase();
        let orders = self.drain.handle(now, input);
        self.enter_phase(before, now);
        for order in orders {
            self.obey(order, now);
        }
        if before == Phase::Running && self.drain.phase() != Phase::Running {
            // Last: whoever waits for it may rely on the workers having their orders.
            self.handle.set_begun();
        }
    }

    fn enter_phase(&mut self, before: Phase, now: Instant) {
        let phase = self.drain.phase();
        if phase == before {
            return;
        }
        if before == Phase::Running {
            self.at_shutdown = self.status.counts();
            for worker in &self.workers {
                // What was refused for overload before is no business of the shutdown.
                let _before = worker.watch.take_lost();
            }
            let (open, in_flight) = (self.at_shutdown.open(), self.at_shutdown.in_flight);
            if phase == Phase::Stopped {
                narrate::forced(&self.reason, open, in_flight);
            } else {
                narrate::initiated(&self.reason, open, in_flight);
            }
            self.next_tick = now + TICK_INTERVAL;
        }
        self.status.set_phase(phase);
        self.phases.push((phase, now));
        self.publish(now);
        if phase != Phase::Stopped {
            let left = self.drain.deadline().map(|at| at.saturating_duration_since(now));
            narrate::phase(phase, left);
        }
    }

    /// Updates the numbers that the metrics tell of the shutdown.
    fn publish(&self, now: Instant) {
        let Some(begun) = self.drain.begun() else { return };
        let counts = self.status.counts();
        let forced = self.lost_since_begin(&counts, RequestOutcome::Cut)
            + self.lost_since_begin(&counts, RequestOutcome::Refused);
        self.status.set_shutdown(ShutdownFacts {
            duration: now.saturating_duration_since(begun),
            active_connections: self.at_shutdown.open(),
            forced: u64::from(forced > 0),
        });
    }

    fn lost_since_begin(&self, counts: &Counts, outcome: RequestOutcome) -> u64 {
        counts.finished_as(outcome).saturating_sub(self.at_shutdown.finished_as(outcome))
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Announce => self.command(Command::Announce, now),
            Order::Drain { idle } => {
                let grace = grace(self.drain.policy(), idle);
                self.command(Command::Drain(grace), now);
            }
            Order::Cancel => self.command(Command::Cancel, now),
            Order::Refuse => self.command(Command::Refuse, now),
            Order::Cut => self.command(Command::Cut, now),
            Order::CleanUp => self.feed(now, Input::CleanedUp),
            Order::Stop => self.verdict = Some(Verdict::Stopped),
            Order::Quit(status) => self.verdict = Some(Verdict::Quit(status)),
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        for worker in &self.workers {
            if let Some(mailbox) = &worker.mailbox {
                mailbox.post(command);
            }
        }
        if let Some(public) = &mut self.public {
            public.obey(command, now);
        }
    }

    fn take_signal(&mut self, caught: Caught, now: Instant) {
        let signal = match caught {
            Caught::Terminate => Signal::Terminate,
            Caught::Interrupt => Signal::Interrupt,
            Caught::HangUp => Signal::HangUp,
            Caught::Quit => Signal::Quit,
            Caught::User1 => {
                narrate::snapshot(self.drain.phase(), &self.status.counts(), &self.workers, now);
                return;
            }
        };
        self.signal(signal, now);
    }

    fn signal(&mut self, signal: Signal, now: Instant) {
        if self.drain.phase() == Phase::Running {
            signal.name().clone_into(&mut self.reason);
        } else {
            narrate::further_signal(signal, self.drain.phase());
        }
        self.feed(now, Input::Signal(signal));
    }

    /// Whether every worker has said that nothing is left.
    fn is_quiet(&self) -> bool {
        self.workers
            .iter()
            .all(|worker| worker.is_lost || worker.pulse.quiet.load(Ordering::Acquire))
    }

    /// A server without one of its workers is no server: its share of the connections is gone.
    fn worker_lost(&mut self, index: usize, now: Instant) {
        self.workers[index].is_lost = true;
        if self.drain.phase() == Phase::Running {
            "a lost worker".clone_into(&mut self.reason);
            self.feed(now, Input::Signal(Signal::Terminate));
        }
        if self.is_quiet() {
            self.feed(now, Input::Quiet);
        }
    }

    /// Looks for stuck workers, and says when to look again: when a turn that is running would
    /// have lasted too long.
    fn look_at_workers(&mut self, now: Instant) {
        self.next_look = now + TICK_INTERVAL;
        for (index, worker) in self.workers.iter_mut().enumerate() {
            match worker.pulse.turn_age(now) {
                Some(age) if age > BLOCKED_AFTER => {
                    if !std::mem::replace(&mut worker.complained, true) {
                        narrate::worker_blocked(index, age, worker.watch.running());
                    }
                }
                Some(age) => {
                    let left = BLOCKED_AFTER.saturating_sub(age) + LOOK_MARGIN;
                    self.next_look = self.next_look.min(now + left);
                }
                None => worker.complained = false,
            }
        }
    }

    /// Once a second: tells what a shutdown waits for.
    fn tick(&mut self, now: Instant) {
        self.next_tick = now + TICK_INTERVAL;
        self.trim(now);
        let Some(begun) = self.drain.begun() else { return };
        self.publish(now);
        if self.drain.is_overtime() {
            // Nobody knows how long this goes on: say it less often.
            self.next_tick = now + OVERTIME_INTERVAL;
        }
        let left = self.drain.end().map(|end| end.saturating_duration_since(now));
        let age = now.saturating_duration_since(begun);
        narrate::progress(self.drain.phase(), age, left, &self.status.counts(), &self.workers, now);
    }

    /// Gives memory back once the burst that freed it is over, on a thread of its own: it takes
    /// milliseconds and locks the heaps.
    fn trim(&mut self, now: Instant) {
        let cooled = self.workers.iter().map(|worker| worker.ledger.cooled_so_far()).sum();
        if cooled != self.trim.cooled {
            self.trim.cooled = cooled;
            self.trim.changed = Some(now);
        }
        let is_over = self.trim.changed.is_some_and(|at| now >= at + TRIM_QUIET);
        if !is_over || cooled < self.trim.trimmed + TRIM_AFTER {
            return;
        }
        if !self.trim.is_consolidated {
            // The workers tidy up first; what that takes is not known here, but it is not a second.
            self.trim.is_consolidated = true;
            self.command(Command::Consolidate, now);
            return;
        }
        self.trim.is_consolidated = false;
        self.trim.trimmed = cooled;
        let spawned = std::thread::Builder::new()
            .name("ebbtide-trim".to_owned())
            .spawn(crate::os::trim_memory);
        if let Err(error) = spawned {
            log::debug!(event_type = "trim_failed"; "cannot give memory back: {error}");
        }
    }

    /// The report, once there is a verdict.
    pub fn report(&self, now: Instant) -> Report {
        let verdict = self.verdict.unwrap_or(Verdict::Stopped);
        let mut counts = Counts::default();
        let mut lost = Vec::new();
        let mut lost_unnamed = 0;
        for worker in &self.workers {
            let (books, named, unnamed) = close_books(worker, now);
            counts.add(&books);
            lost.extend(named);
            lost_unnamed += unnamed;
        }
        let refused = self.lost_since_begin(&counts, RequestOutcome::Refused);
        let cut = self.lost_since_begin(&counts, RequestOutcome::Cut);
        let exit_status = match verdict {
            Verdict::Quit(status) => status,
            Verdict::Stopped if self.workers.iter().any(|worker| worker.is_lost) => EXIT_FAULT,
            Verdict::Stopped if refused + cut > 0 => EXIT_LOST,
            Verdict::Stopped => 0,
        };
        let ends = self.phases.iter().skip(1).map(|(_, at)| *at).chain([now]);
        let phases = self.phases.iter().zip(ends);
        Report {
            reason: self.reason.clone(),
            phases: phases
                .filter(|((phase, _), _)| *phase != Phase::Stopped)
                .map(|((phase, began), end)| (*phase, end.saturating_duration_since(*began)))
                .collect(),
            budget: self.drain.policy().timeout,
            budget_left: self
                .drain
                .end()
                .map_or(Duration::ZERO, |end| end.saturating_duration_since(now)),
            active_connections_at_shutdown: self.at_shutdown.open(),
            counts,
            refused,
            cut,
            lost,
            lost_unnamed,
            exit_status,
        }
    }
}

/// Closes a worker's books at the end: what it still has is cut by the end of the process, be it
/// stuck in a handler or not asked to finish. Names what can be named; the number is of those that
/// cannot.
fn close_books(worker: &WorkerView, now: Instant) -> (Counts, Vec<LostLine>, u64) {
    let mut counts = worker.ledger.counts().closed_by_cut();
    let unfinished = std::mem::take(&mut counts.in_flight);
    counts.finished[RequestOutcome::Cut as usize] += unfinished;
    let (named, mut unnamed) = worker.watch.take_lost();
    let mut lost: Vec<LostLine> = named.iter().map(|request| LostLine::new(request, now)).collect();
    if unfinished > 0 {
        let running =
            worker.watch.running().map(|info| (info, "its handler, which holds the worker"));
        let waiting = worker.watch.waiting().into_iter().map(|info| (info, "its handler"));
        let before = lost.len();
        lost.extend(running.into_iter().chain(waiting).map(|(info, waited_for)| {
            LostLine::unfinished(info, RequestOutcome::Cut, waited_for, now)
        }));
        unnamed += unfinished.saturating_sub((lost.len() - before) as u64);
    }
    (counts, lost, unnamed)
}

impl Host for Control {
    fn is_busy(&self) -> bool {
        self.verdict.is_some() || self.endpoints().any(Endpoint::is_busy)
    }

    fn deadline(&self) -> Option<Instant> {
        let endpoints = self.endpoints().filter_map(Endpoint::deadline).min();
        let own = self.next_tick.min(self.next_look);
        earliest(earliest(Some(own), self.drain.deadline()), endpoints)
    }

    fn ready(&mut self, key: Key, readiness: Readiness) {
        // The signal pipe is looked at in every turn.
        for endpoint in [&mut self.admin, &mut self.public].into_iter().flatten() {
            if endpoint.owns(key) {
                endpoint.ready(key, readiness);
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        for endpoint in [&mut self.admin, &mut self.public].into_iter().flatten() {
            endpoint.expire(now);
        }
        self.feed(now, Input::Expired);
        if now >= self.next_look {
            self.look_at_workers(now);
        }
        if now >= self.next_tick {
            self.tick(now);
        }
    }

    fn has_mail(&self) -> bool {
        !self.mailbox.is_empty()
    }

    fn take_mail(&mut self, now: Instant) {
        let caught = self.signals.as_mut().map(Signals::pending).unwrap_or_default();
        for caught in caught {
            self.take_signal(caught, now);
        }
        while let Some(mail) = self.mailbox.take() {
            match mail {
                ControlMail::Begin if self.drain.phase() == Phase::Running => {
                    "shutdown()".clone_into(&mut self.reason);
                    self.feed(now, Input::Signal(Signal::Terminate));
                }
                ControlMail::Begin => {}
                ControlMail::Signal(signal) => self.signal(signal, now),
                ControlMail::Quiet => {
                    if self.is_quiet() {
                        self.feed(now, Input::Quiet);
                    }
                }
                ControlMail::WorkerLost(index) => self.worker_lost(index, now),
            }
        }
    }

    fn woken(&mut self, key: Key) {
        for endpoint in [&mut self.admin, &mut self.public].into_iter().flatten() {
            if endpoint.owns(key) {
                endpoint.woken(key);
            }
        }
    }

    fn work(&mut self, now: Instant) {
        for endpoint in [&mut self.admin, &mut self.public].into_iter().flatten() {
            endpoint.work(now);
        }
    }

    fn finish(&mut self, now: Instant, worked: Duration) {
        for endpoint in [&mut self.admin, &mut self.public].into_iter().flatten() {
            endpoint.finish(now, worked);
        }
        if !self.said_quiet && self.public.as_ref().is_some_and(Endpoint::is_quiet) {
            self.said_quiet = true;
            for worker in &self.workers {
                worker.pulse.quiet.store(true, Ordering::Release);
            }
            self.feed(now, Input::Quiet);
        }
    }
}

impl Control {
    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.admin.iter().chain(&self.public)
    }
}

/// The key of the signal pipe.
pub fn signals_key() -> Key {
    Key::new(SIGNALS_SPACE, Token::from_bits(0))
}

/// The key space of the admin endpoint's connections. Its listeners have the next one.
pub const ADMIN_SPACE: u8 = 3;

const SIGNALS_SPACE: u8 = 5;

/// The exit status when the shutdown refused or cut a request.
pub const EXIT_LOST: u8 = 3;

/// The exit status when a worker was lost.
pub const EXIT_FAULT: u8 = 1;

/// How often control looks around.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a shutdown without an end is mentioned.
const OVERTIME_INTERVAL: Duration = Duration::from_secs(5);

/// So that a turn is surely too long when it is looked at for that.
const LOOK_MARGIN: Duration = Duration::from_millis(5);

/// A worker's turn that lasts longer is worth a warning.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);

/// How long no connection may have cooled: longer than an idle one stays hot, so that what a burst
/// took is given back in one piece, and between two ticks.
const TRIM_QUIET: Duration = Duration::from_millis(1800);

/// Dropped hot connections (some 10 to 18 KiB each) that are worth it.
const TRIM_AFTER: u64 = 16;

//! Control: the calling thread's reactor, with the signals, the admin listener and the clock of the
//! shutdown. It feeds facts to [`Drain`] and passes its orders on.
//!
//! It reads the workers' books and never waits for a worker: one that is stuck in a handler cannot
//! hold the exit. With `workers = 0` the public endpoint lives here as well.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::balance::Shares;
use super::dealer::Dealer;
use super::elders::Elders;
use super::endpoint::{Command, Endpoint, Source};
use super::handle::GracefulShutdown;
use super::holders::Inquiry;
use super::hooks;
use super::manager::ServiceManager;
use super::narrate;
use super::orphans::{Orphans, Waits};
use super::trim::Trim;
use super::view::WorkerView;
use super::worker::WorkerMail;
use crate::app::status::{ShutdownFacts, Status};
use crate::cleanup::{Cleanup, HookId, HookOutcome, Start};
use crate::drain::{AtDeadline, Drain, Input, Order, Phase, Signal};
use crate::ledger::{ConnectionOutcome, Counts, RequestOutcome};
use crate::reactor::mailbox::Mailbox;
use crate::reactor::slots::Token;
use crate::reactor::socket::Readiness;
use crate::reactor::turn::{Host, Key, earliest};
use crate::report::JobLine;
use crate::signals::{Caught, Signals};

/// What control is told.
#[derive(Debug)]
pub enum ControlMail {
    /// Begin the shutdown, unless it has begun.
    Begin,
    Signal(Signal),
    /// End what stands.
    Force,
    /// Take the shutdown back.
    Undo,
    /// A worker's listeners are retired and its connections gone (its pulse says so as well), or
    /// other work is done.
    Quiet,
    /// A clean-up hook has ended.
    HookEnded(HookId, HookOutcome),
    /// This worker's thread has ended by a fault of ours.
    WorkerLost(usize),
    /// What are the connections doing?
    Inquire(Weak<Inquiry>),
}

impl ControlMail {
    /// Whether a server that is told so begins its shutdown.
    pub fn begins(&self) -> bool {
        matches!(self, ControlMail::Begin | ControlMail::Signal(_) | ControlMail::Force)
    }
}

/// See the module's essay.
pub struct Control {
    pub drain: Drain,
    pub mailbox: Mailbox<ControlMail>,
    pub signals: Option<Signals>,
    pub manager: Option<ServiceManager>,
    pub admin: Option<Endpoint>,
    /// `Some` with `workers = 0`.
    pub public: Option<Endpoint>,
    /// `Some` when workers get connections from a queue that they share.
    pub dealer: Option<Dealer>,
    /// `Some` when there are workers.
    pub shares: Option<Arc<Shares>>,
    /// `Some` with `reuse_port`, until there are none.
    pub elders: Option<Elders>,
    /// `Some` where the workers may leave connections to the kernel.
    pub orphans: Option<Orphans>,
    /// How many of them there were when nobody waited any more.
    pub undelivered: usize,
    pub workers: Vec<WorkerView>,
    pub status: Arc<Status>,
    pub handle: GracefulShutdown,
    pub cleanup: Cleanup,
    /// How many of its reports have been told.
    pub hooks_told: usize,
    /// What the databases were doing when it was cancelled; `Some` from then on.
    pub cancelled_jobs: Option<Vec<JobLine>>,
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
            // Last: for whoever waits for it, the orders are in the mailboxes of the workers.
            self.handle.set_begun();
        }
    }

    fn enter_phase(&mut self, before: Phase, now: Instant) {
        let phase = self.drain.phase();
        if phase == before {
            return;
        }
        if phase == Phase::Running {
            self.forget(now);
            return;
        }
        if before == Phase::Running {
            self.at_shutdown = self.status.counts();
            for worker in &self.workers {
                // What was refused for overload before is no business of the shutdown.
                let _before = worker.watch.take_lost();
                let _before = worker.watch.take_slowest();
            }
            let (open, in_flight) = (self.at_shutdown.open(), self.at_shutdown.in_flight);
            if phase == Phase::Stopped {
                narrate::forced(&self.reason, open, in_flight);
            } else {
                narrate::initiated(&self.reason, open, in_flight);
            }
            self.next_tick = now + TICK_INTERVAL;
        }
        if before == Phase::Running
            && let Some(manager) = &self.manager
        {
            manager.stopping(&self.progress(now));
        }
        self.status.set_phase(phase);
        self.phases.push((phase, now));
        self.publish();
        if phase != Phase::Stopped {
            let waits_on =
                phase == Phase::Draining && self.drain.policy().at_deadline == AtDeadline::WaitOn;
            let end = self.drain.deadline().filter(|_| !waits_on);
            narrate::phase(phase, end.map(|at| at.saturating_duration_since(now)));
        }
    }

    /// The shutdown was taken back.
    fn forget(&mut self, now: Instant) {
        narrate::undone(&self.reason);
        if let Some(manager) = &self.manager {
            manager.serving();
        }
        self.status.set_phase(Phase::Running);
        self.status.set_shutdown(ShutdownFacts::default());
        self.handle.set_undone();
        self.phases.clear();
        self.reason.clear();
        self.at_shutdown = Counts::default();
        self.next_tick = now + TICK_INTERVAL;
    }

    /// Updates the numbers that the metrics tell of the shutdown.
    fn publish(&self) {
        let counts = self.status.counts();
        let is_forced = self.lost_since_begin(&counts, RequestOutcome::Cut) > 0
            || self.lost_since_begin(&counts, RequestOutcome::Refused) > 0
            || self.cut_connections(&counts) > 0
            || self.undelivered > 0
            || (self.drain.phase() >= Phase::CleaningUp && self.handle.other_work() > 0);
        self.status.set_shutdown(ShutdownFacts {
            begun: self.drain.begun(),
            active_connections: self.at_shutdown.open(),
            forced: is_forced.into(),
        });
    }

    /// Connections cut since the shutdown began.
    pub(super) fn cut_connections(&self, counts: &Counts) -> u64 {
        let cut = |counts: &Counts| counts.closed_as(ConnectionOutcome::Cut);
        cut(counts).saturating_sub(cut(&self.at_shutdown))
    }

    pub(super) fn lost_since_begin(&self, counts: &Counts, outcome: RequestOutcome) -> u64 {
        counts.finished_as(outcome).saturating_sub(self.at_shutdown.finished_as(outcome))
    }

    fn obey(&mut self, order: Order, now: Instant) {
        match order {
            Order::Drain { .. } => self.look_for_elders(now),
            Order::Cancel => {
                // First: handlers that hear of it drop their tickets.
                self.name_jobs(now);
                // Before the jobs end: what a handler answers for want of one is a refusal.
                self.handle.cancellation().cancel();
                self.cancel_jobs(now);
            }
            Order::Cut => self.cancel_jobs(now),
            Order::Announce | Order::Resume | Order::Refuse => {}
            Order::CleanUp => self.clean_up(now),
            Order::Stop => self.verdict = Some(Verdict::Stopped),
            Order::Quit(status) => self.verdict = Some(Verdict::Quit(status)),
        }
        if let Some(command) = Command::of(order, self.drain.policy()) {
            self.command(command, now);
        }
    }

    fn clean_up(&mut self, now: Instant) {
        let orphans = self.orphans.take().filter(|_| self.has_left());
        self.undelivered = orphans.map_or(0, Orphans::undelivered);
        if self.undelivered > 0 {
            narrate::undelivered(self.undelivered);
            self.publish();
        }
        let end = self.drain.deadline().unwrap_or(now);
        let starts = self.cleanup.begin(now, end, self.handle.take_hooks());
        self.go_on_cleaning(starts, now);
    }

    /// Starts hooks, tells of those that have ended, and notes the end of the clean-up.
    fn go_on_cleaning(&mut self, starts: Vec<Start>, now: Instant) {
        for start in starts {
            let mailbox = self.mailbox.clone();
            hooks::spawn(start, move |id, outcome| {
                mailbox.post(ControlMail::HookEnded(id, outcome));
            });
        }
        for report in &self.cleanup.reports()[self.hooks_told..] {
            narrate::hook(report);
            self.status.add_hook(report.name.clone(), report.took.as_secs_f64());
        }
        self.hooks_told = self.cleanup.reports().len();
        if self.cleanup.is_over() {
            self.feed(now, Input::CleanedUp);
        }
    }

    /// Has the listeners know when no older server shares their ports.
    pub fn look_for_elders(&mut self, now: Instant) {
        if self.elders.as_mut().is_some_and(Elders::are_gone) {
            self.elders = None;
            self.command(Command::Lead, now);
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        if let Some(dealer) = &mut self.dealer {
            dealer.obey(command, now);
        }
        self.tell_workers(command);
        if let Some(public) = &mut self.public {
            public.obey(command, now);
        }
    }

    fn tell_workers(&self, command: Command) {
        for mailbox in self.workers.iter().filter_map(|worker| worker.mailbox.as_ref()) {
            mailbox.post(WorkerMail::Order(command));
        }
    }

    /// Has each worker know the others, to whom it may give connections.
    pub fn introduce_workers(&self) {
        let mailboxes = || self.workers.iter().filter_map(|worker| worker.mailbox.clone());
        let all: Arc<[_]> = mailboxes().collect();
        for mailbox in all.iter() {
            mailbox.post(WorkerMail::Neighbours(Arc::clone(&all)));
        }
    }

    fn take_signal(&mut self, caught: Caught, now: Instant) {
        let signal = match caught {
            Caught::Terminate => Signal::Terminate,
            Caught::Interrupt => Signal::Interrupt,
            Caught::HangUp => Signal::HangUp,
            Caught::Quit => Signal::Quit,
            Caught::User1 => {
                narrate::snapshot(&self.progress(now), &self.workers, now);
                return;
            }
        };
        self.signal(signal, now);
    }

    fn take_one(&mut self, mail: ControlMail, now: Instant) {
        let is_running = self.drain.phase() == Phase::Running;
        match mail {
            ControlMail::Begin if is_running => {
                "shutdown()".clone_into(&mut self.reason);
                self.feed(now, Input::Signal(Signal::Terminate));
            }
            ControlMail::Begin => {}
            ControlMail::Signal(signal) => self.signal(signal, now),
            ControlMail::Force => {
                if is_running {
                    "force()".clone_into(&mut self.reason);
                }
                self.feed(now, Input::Force);
            }
            ControlMail::Undo => {
                if !is_running && self.drain.phase() != Phase::LameDuck {
                    narrate::undo_too_late(self.drain.phase());
                }
                self.feed(now, Input::Undo);
            }
            ControlMail::Quiet => {
                self.note_quiet(now);
                self.publish();
            }
            ControlMail::HookEnded(id, outcome) => {
                let starts = self.cleanup.ended(now, id, outcome);
                self.go_on_cleaning(starts, now);
            }
            ControlMail::WorkerLost(index) => self.worker_lost(index, now),
            ControlMail::Inquire(inquiry) => self.inquire(&inquiry, now),
        }
    }

    fn signal(&mut self, signal: Signal, now: Instant) {
        if self.drain.phase() == Phase::Running {
            signal.name().clone_into(&mut self.reason);
        } else {
            narrate::further_signal(signal, self.drain.phase());
        }
        self.feed(now, Input::Signal(signal));
    }

    /// Whether every worker has said that nothing is left, and there is no other work.
    fn is_quiet(&self) -> bool {
        self.workers.iter().all(WorkerView::is_quiet) && self.handle.other_work() == 0
    }

    fn note_quiet(&mut self, now: Instant) {
        // What quiet workers have left to the kernel is to be delivered, too.
        let is_quiet = self.is_quiet();
        let waits = if is_quiet && self.has_left() { Waits::Yes } else { Waits::No };
        let is_held = self.orphans.as_mut().is_some_and(|orphans| orphans.hold(waits, now));
        if is_quiet && !is_held {
            self.feed(now, Input::Quiet);
        }
    }

    fn has_left(&self) -> bool {
        self.workers.iter().any(|worker| worker.ledger.left_to_kernel_so_far() > 0)
    }

    /// A server without one of its workers is no server: its share of the connections is gone.
    fn worker_lost(&mut self, index: usize, now: Instant) {
        self.workers[index].is_lost = true;
        if let Some(shares) = &self.shares {
            shares.lose(index);
        }
        // What it would have said itself.
        self.tell_workers(Command::DealingDone(Source::Worker(index)));
        if let Some(dealer) = &mut self.dealer {
            dealer.lose(index);
        }
        if self.drain.phase() == Phase::Running {
            "a lost worker".clone_into(&mut self.reason);
            self.feed(now, Input::Signal(Signal::Terminate));
        }
        self.note_quiet(now);
    }

    /// Looks for stuck workers, and says when to look again: when a turn that is running would
    /// have lasted too long.
    fn look_at_workers(&mut self, now: Instant) {
        let looks = self.workers.iter_mut().enumerate();
        let next = looks.filter_map(|(index, worker)| worker.look(index, now)).min();
        self.next_look = next.map_or(now + TICK_INTERVAL, |at| at.min(now + TICK_INTERVAL));
    }

    fn progress(&self, now: Instant) -> narrate::Progress<'_> {
        let begun = self.drain.begun().unwrap_or(now);
        narrate::Progress {
            phase: self.drain.phase(),
            age: now.saturating_duration_since(begun),
            left: self.drain.end().map(|end| end.saturating_duration_since(now)),
            counts: self.status.counts(),
            other_work: self.handle.other_work(),
            to_deliver: self.orphans.as_ref().map_or(0, Orphans::left),
            hooks: self.cleanup.running(now),
            data: self.status.data(),
        }
    }

    /// Once a second: tells what a shutdown waits for.
    fn tick(&mut self, now: Instant) {
        self.next_tick = now + TICK_INTERVAL;
        let cooled = self.workers.iter().map(|worker| worker.ledger.cooled_so_far()).sum();
        if self.trim.is_due(cooled, now) {
            // What that takes is not known here, but it is not a second.
            self.command(Command::Consolidate, now);
        }
        if self.drain.begun().is_none() {
            self.look_for_elders(now);
            return;
        }
        self.publish();
        if self.drain.is_overtime() {
            // Nobody knows how long this goes on: say it less often.
            self.next_tick = now + OVERTIME_INTERVAL;
        }
        let progress = self.progress(now);
        narrate::progress(&progress, &self.workers, now);
        if let Some(manager) = &self.manager {
            manager.progress(&progress);
        }
    }

    /// Tells the service manager that clients are served.
    pub fn say_ready(&mut self, now: Instant) {
        if let Some(manager) = &mut self.manager {
            manager.ready(now);
        }
    }

    /// Asks the workers for a sign of life when the service manager wants one.
    fn watch_workers(&mut self, now: Instant) {
        let Some(manager) = &mut self.manager else { return };
        let has_answered = |worker: &WorkerView, ping| {
            worker.is_lost || worker.mailbox.is_none() || worker.pulse.has_answered(ping)
        };
        let all = |ping| self.workers.iter().all(|worker| has_answered(worker, ping));
        if let Some(ping) = manager.watch(now, all) {
            for mailbox in self.workers.iter().filter_map(|worker| worker.mailbox.as_ref()) {
                mailbox.post(WorkerMail::Ping(ping));
            }
        }
    }
}

impl Host for Control {
    fn is_busy(&self) -> bool {
        self.verdict.is_some()
            || self.endpoints().any(Endpoint::is_busy)
            || self.dealer.as_ref().is_some_and(Dealer::is_busy)
    }

    fn deadline(&self) -> Option<Instant> {
        let endpoints = self.endpoints().filter_map(Endpoint::deadline).min();
        let dealer = self.dealer.as_ref().and_then(Dealer::deadline);
        let own = self.next_tick.min(self.next_look);
        let watchdog = self.manager.as_ref().and_then(ServiceManager::deadline);
        let own = watchdog.map_or(own, |at| at.min(own));
        let shutdown = earliest(self.drain.deadline(), self.cleanup.deadline());
        let shutdown = earliest(shutdown, self.orphans.as_ref().and_then(Orphans::deadline));
        earliest(earliest(Some(own), shutdown), earliest(endpoints, dealer))
    }

    fn ready(&mut self, key: Key, readiness: Readiness) {
        if key == signals_key() {
            if let Some(signals) = &mut self.signals {
                signals.announce();
            }
        } else if let Some(endpoint) = self.public.as_mut().filter(|public| public.owns(key)) {
            endpoint.ready(key, readiness);
        } else if let Some(endpoint) = self.admin.as_mut().filter(|admin| admin.owns(key)) {
            endpoint.ready(key, readiness);
        } else if let Some(dealer) = &mut self.dealer {
            dealer.ready(key);
        }
    }

    fn expire(&mut self, now: Instant) {
        for endpoint in [&mut self.admin, &mut self.public].into_iter().flatten() {
            endpoint.expire(now);
        }
        // Hooks first: those that overrun at the end of the budget are to have their outcome.
        if self.cleanup.deadline().is_some_and(|at| now >= at) {
            let starts = self.cleanup.expire(now);
            self.go_on_cleaning(starts, now);
        }
        if self.orphans.as_ref().and_then(Orphans::deadline).is_some_and(|at| now >= at) {
            self.note_quiet(now);
        }
        self.feed(now, Input::Expired);
        self.watch_workers(now);
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
        let caught = self.signals.as_mut().map(Signals::announced).unwrap_or_default();
        for caught in caught {
            self.take_signal(caught, now);
        }
        while let Some(mail) = self.mailbox.take() {
            self.take_one(mail, now);
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
        if let Some(dealer) = &mut self.dealer {
            dealer.work(now);
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
            self.note_quiet(now);
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

/// How often control looks around.
const TICK_INTERVAL: Duration = Duration::from_secs(1);

/// How often a shutdown without an end is mentioned.
const OVERTIME_INTERVAL: Duration = Duration::from_secs(5);

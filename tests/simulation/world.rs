//! A server and its clients in one thread: real drain, real endpoints, everything else made up.
//!
//! A worker takes a turn when the reactor would have it take one: after an event, a wake, mail, or
//! at a deadline, and never just in case. What has been forgotten hangs. Now and then packets
//! arrive while a turn is running: after its events were fetched, before its work is done.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::app::Lab;
use super::backlog::{Backlog, FakeListener, Knock};
use super::client::Session;
use super::kernel::{Event, Fin, Kernel, Link, MILLISECOND, Micros, Moment, SECOND, Way};
use super::rng::Rng;
use super::script::Writer;
use super::settings::Settings;
use crate::drain::{Drain, Input, Order, Phase};
use crate::http::site::{
    AccessLog, Delivery, Fault, Grace, Lines, Mode, RequestIds, Site, builder,
};
use crate::http::watch::{EndedRequest, Watch};
use crate::ledger::{Counts, Ledger};
use crate::metrics::Metrics;
use crate::reactor::cancel::CancellationToken;
use crate::reactor::mailbox::Remote;
use crate::reactor::socket::Readiness;
use crate::reactor::task;
use crate::reactor::turn::{Key, earliest};
use crate::server::endpoint::{Command, Endpoint};
use crate::server::entrance::Capacity;

/// What worlds of one thread share: made once, it costs descriptors.
pub struct Stage {
    pub remote: Arc<Remote>,
    pub epoch: Instant,
    pub metrics: Metrics,
}

/// Which world.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub fault: Fault,
    /// The clients that take part; `None`: all.
    pub only: Option<Vec<usize>>,
    pub is_traced: bool,
}

pub struct World {
    pub settings: Settings,
    pub kernel: Rc<Kernel>,
    epoch: Instant,
    rng: Rng,
    drain: Drain,
    pub workers: Vec<Worker>,
    pub links: Vec<Rc<RefCell<Link>>>,
    pub sessions: Vec<Session>,
    clients: Vec<Client>,
    pub phases: Vec<(Phase, Moment)>,
    pub end: Option<(End, Moment)>,
    turns: usize,
    /// What went wrong with the world itself.
    pub stuck: Option<Stuck>,
}

/// How the shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Stopped,
    Quit,
}

/// Why a world never came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing is left that could happen.
    Hang,
    /// It takes one turn after the other.
    Spin,
}

pub struct Worker {
    endpoint: Option<Endpoint<FakeListener>>,
    space: u8,
    listener: Key,
    pub backlog: Rc<RefCell<Backlog>>,
    ledger: Arc<Ledger>,
    watch: Arc<Watch>,
    mail: VecDeque<Command>,
    /// How much of the mail has come.
    delivered: usize,
    woken: Vec<Key>,
    is_quiet: bool,
    is_known_quiet: bool,
    /// When it was told.
    pub announced: Option<Moment>,
    pub drained: Option<(Moment, Grace)>,
    pub cancelled: Option<Moment>,
    pub refused: Option<Moment>,
    pub cut: Option<Moment>,
    /// The books at the end.
    pub counts: Counts,
    pub lost: Vec<EndedRequest>,
    /// Connections that its listener reset, before the process ended: in the accept queue, and in
    /// the middle of the handshake.
    pub queue_resets: Vec<usize>,
    pub handshake_resets: Vec<usize>,
}

struct Client {
    rng: Rng,
    /// Connections that it will still open.
    left: usize,
    /// How often it still takes a refusal.
    patience: usize,
}

impl World {
    pub fn new(case: &Case, stage: &Stage) -> World {
        let settings = Settings::new(case.seed);
        let kernel = Kernel::new(case.is_traced);
        kernel.tell(|| format!("{settings:?}"));
        for (index, (at, _)) in settings.inputs.iter().enumerate() {
            kernel.schedule(*at, Event::Signal(index));
        }
        let capacity = Capacity::new(1000);
        let workers = (0..settings.workers)
            .map(|index| Worker::new(index, case, &settings, stage, &kernel, &capacity))
            .collect();
        let clients = (0..settings.clients).map(|index| {
            let mut rng = Rng::new(case.seed, 1000 + index as u64);
            let left = if rng.chance(30) { rng.size(2, 8) } else { 1 };
            let is_in = case.only.as_ref().is_none_or(|only| only.contains(&index));
            if is_in {
                kernel.schedule(rng.between(0, settings.begin() + SECOND), Event::Connect(index));
            }
            Client { rng, left, patience: 3 }
        });
        World {
            clients: clients.collect(),
            drain: Drain::new(settings.policy.clone()),
            settings,
            kernel,
            epoch: stage.epoch,
            rng: Rng::new(case.seed, 2),
            workers,
            links: Vec::new(),
            sessions: Vec::new(),
            phases: Vec::new(),
            end: None,
            turns: 0,
            stuck: None,
        }
    }

    fn instant(&self) -> Instant {
        self.epoch + Duration::from_micros(self.kernel.now.get())
    }

    fn micros(&self, at: Instant) -> Micros {
        let since = at.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos().div_ceil(1000)).expect("within years")
    }

    /// From the first packet to the last.
    pub fn run(&mut self) {
        while self.end.is_none() && self.stuck.is_none() {
            self.happen();
            task::set_now(self.instant());
            if self.drain.deadline().is_some_and(|at| at <= self.instant()) {
                self.feed(Input::Expired);
            }
            task::end_sleeps(self.instant());
            self.hand_out_wakes();
            let mut is_at_work = false;
            for index in 0..self.workers.len() {
                if self.end.is_none() && self.wants_turn(index) {
                    is_at_work = true;
                    self.turn(index);
                }
            }
            if !is_at_work && self.end.is_none() {
                self.sleep();
            }
            if self.turns > TURNS_MAX {
                self.stuck = Some(Stuck::Spin);
            }
        }
        self.close();
        // The kernels go on.
        let last = self.kernel.now.get() + 120 * SECOND;
        while let Some(at) = self.next_event().filter(|at| *at <= last) {
            self.kernel.now.set(at.max(self.kernel.now.get()));
            self.happen();
        }
    }

    /// Whether there was time to act after `moment`.
    pub fn end_is_later_than(&self, moment: Moment) -> bool {
        self.end.is_some_and(|(_, end)| end.at > moment.at + MILLISECOND)
    }

    fn next_event(&self) -> Option<Micros> {
        self.kernel.agenda.borrow().peek().map(|Reverse((at, ..))| *at)
    }

    /// Nobody has anything to do: time passes until somebody has.
    fn sleep(&mut self) {
        let mut deadline = earliest(self.drain.deadline(), task::next_sleep());
        for worker in &self.workers {
            deadline = earliest(deadline, worker.endpoint().deadline());
        }
        // epoll waits for whole milliseconds, rounded up.
        let late = self.rng.between(0, MILLISECOND);
        let deadline = deadline.map(|at| self.micros(at) + late);
        let next = match (self.next_event(), deadline) {
            (Some(event), Some(deadline)) => event.min(deadline),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => {
                self.stuck = Some(Stuck::Hang);
                return;
            }
        };
        self.kernel.now.set(next.max(self.kernel.now.get()));
    }

    /// All that is on the agenda up to now.
    fn happen(&mut self) {
        let now = self.kernel.now.get();
        while self.next_event().is_some_and(|at| at <= now) {
            let popped = self.kernel.agenda.borrow_mut().pop();
            let Some(Reverse((_, _, event))) = popped else { return };
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        let kernel = Rc::clone(&self.kernel);
        match event {
            Event::Up(id) => self.links[id].borrow_mut().land_up(&kernel, kernel.now.get()),
            Event::Down(id) => {
                let any = self.links[id].borrow_mut().land_down(&kernel);
                if any {
                    self.run_client(id);
                }
            }
            Event::Acknowledged(id, bytes) => self.links[id].borrow_mut().acknowledged(bytes),
            Event::FinAcknowledged(id) => {
                self.links[id].borrow_mut().down.fin = Fin::Acknowledged;
            }
            Event::PumpUp(id) => self.links[id].borrow_mut().pump(&kernel, Way::Up),
            Event::PumpDown(id) => self.links[id].borrow_mut().pump(&kernel, Way::Down),
            Event::Connect(client) => self.connect(client),
            Event::Syn(id) => self.knock(id),
            Event::Established(id) => {
                let link = Rc::clone(&self.links[id]);
                let worker = link.borrow().worker;
                self.workers[worker].backlog.borrow_mut().establish(&kernel, &link);
                self.run_client(id);
            }
            Event::Client(id) => self.run_client(id),
            _ if self.end.is_some() => {}
            Event::Signal(index) => {
                let (_, input) = self.settings.inputs[index];
                kernel.tell(|| format!("{input:?} comes"));
                self.feed(input);
            }
            Event::Mail(worker) => self.workers[worker].delivered += 1,
            Event::Quiet(worker) => {
                self.workers[worker].is_known_quiet = true;
                if self.workers.iter().all(|worker| worker.is_known_quiet) {
                    self.feed(Input::Quiet);
                }
            }
            Event::CleanedUp => self.feed(Input::CleanedUp),
        }
    }

    fn connect(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.left -= 1;
        let id = self.links.len();
        let worker = client.rng.size(0, self.workers.len() - 1);
        let rng = Rng::new(client.rng.next(), 3);
        let mut link = Link::new(id, index, worker, rng);
        let signal = self.settings.begin();
        let script = Writer::new(&self.kernel, &mut link, &mut client.rng, signal).write();
        self.kernel.tell(|| format!("client {index} opens link {id} to worker {worker}"));
        self.kernel.after(link.latency, Event::Syn(id));
        let link = Rc::new(RefCell::new(link));
        self.links.push(Rc::clone(&link));
        self.sessions.push(Session::new(link, script));
    }

    /// A client's first packet arrives.
    fn knock(&mut self, id: usize) {
        let (worker, latency, client) = {
            let link = self.links[id].borrow();
            (link.worker, link.latency, link.client)
        };
        let knock = self.workers[worker].backlog.borrow().knock();
        self.kernel.tell(|| format!("link {id} knocks: {knock:?}"));
        match knock {
            Knock::Answered => self.kernel.after(2 * latency, Event::Established(id)),
            // `tcp_synack` is asked for again after a second.
            Knock::Dropped => self.kernel.after(SECOND, Event::Syn(id)),
            Knock::Refused => {
                self.sessions[id].is_over = true;
                let client_state = &mut self.clients[client];
                if client_state.patience > 0 {
                    client_state.patience -= 1;
                    client_state.left += 1;
                    let pause = client_state.rng.between(0, SECOND);
                    self.kernel.after(pause, Event::Connect(client));
                }
            }
        }
    }

    fn run_client(&mut self, id: usize) {
        let session = &mut self.sessions[id];
        if session.is_over {
            return;
        }
        session.run(&self.kernel);
        if session.is_over {
            let index = self.links[id].borrow().client;
            let client = &mut self.clients[index];
            if client.left > 0 {
                let pause = client.rng.skewed(50_000) as u64;
                self.kernel.after(pause, Event::Connect(index));
            }
        }
    }

    /// As control does.
    fn feed(&mut self, input: Input) {
        let before = self.drain.phase();
        let orders = self.drain.handle(self.instant(), input);
        if self.drain.phase() != before {
            let phase = self.drain.phase();
            self.kernel.tell(|| format!("phase {}", phase.name()));
            self.phases.push((phase, self.kernel.moment()));
        }
        for order in orders {
            if let Some(command) = Command::of(order, self.drain.policy()) {
                for index in 0..self.workers.len() {
                    self.workers[index].mail.push_back(command);
                    let delay = self.rng.between(0, self.settings.mail_delay);
                    self.kernel.after(delay, Event::Mail(index));
                }
            }
            match order {
                Order::CleanUp => self.kernel.after(self.settings.clean_up, Event::CleanedUp),
                Order::Stop => self.end = Some((End::Stopped, self.kernel.moment())),
                Order::Quit(_) => self.end = Some((End::Quit, self.kernel.moment())),
                Order::Announce
                | Order::Resume
                | Order::Drain { .. }
                | Order::Cancel
                | Order::Refuse
                | Order::Cut => {}
            }
        }
    }

    fn hand_out_wakes(&mut self) {
        let workers = &mut self.workers;
        task::drain_woken(|key| {
            let owner = workers.iter_mut().find(|worker| worker.space == key.space());
            owner.expect("keys are of a worker").woken.push(key);
        });
    }

    fn wants_turn(&self, index: usize) -> bool {
        let worker = &self.workers[index];
        let endpoint = worker.endpoint();
        let now = self.instant();
        worker.delivered > 0
            || !worker.woken.is_empty()
            || endpoint.is_busy()
            || endpoint.deadline().is_some_and(|at| at <= now)
            || worker.backlog.borrow().is_pending
            || self.links_of(index).any(|link| link.borrow().is_pending)
    }

    /// The links that epoll knows of.
    fn links_of(&self, worker: usize) -> impl Iterator<Item = &Rc<RefCell<Link>>> {
        self.links.iter().filter(move |link| {
            let link = link.borrow();
            link.worker == worker && link.key.is_some() && link.closed.is_none()
        })
    }

    /// In the order of `reactor/turn.rs`.
    fn turn(&mut self, index: usize) {
        self.turns += 1;
        let now = self.instant();
        let kernel = Rc::clone(&self.kernel);
        let mut events: Vec<(Key, Readiness)> = Vec::new();
        for link in self.links_of(index) {
            let mut link = link.borrow_mut();
            if std::mem::take(&mut link.is_pending) {
                let readiness = link.readiness();
                events.extend(link.key.map(|key| (key, readiness)));
            }
        }
        let backlog = Rc::clone(&self.workers[index].backlog);
        if std::mem::take(&mut backlog.borrow_mut().is_pending) {
            events.push((self.workers[index].listener, Readiness::READABLE));
        }
        kernel.fetched.set(kernel.moment().serial);
        if self.rng.chance(30) {
            // When it is a deadline's, whatever is on its way may arrive now.
            let is_alone = events.is_empty() && self.workers[index].delivered == 0;
            let ahead = if is_alone { 10 * SECOND } else { MILLISECOND };
            let until = kernel.now.get() + self.rng.between(0, ahead);
            for link in self.links_of(index) {
                link.borrow_mut().land_up(&kernel, until);
            }
        }
        let worker = &mut self.workers[index];
        let woken = std::mem::take(&mut worker.woken);
        let endpoint = worker.endpoint.as_mut().expect("the server runs");
        for (key, readiness) in events {
            endpoint.ready(key, readiness);
        }
        endpoint.expire(now);
        worker.take_mail(now, &kernel);
        let endpoint = worker.endpoint.as_mut().expect("the server runs");
        for key in woken {
            endpoint.woken(key);
        }
        endpoint.work(now);
        endpoint.finish(now, Duration::ZERO);
        if !worker.is_quiet && endpoint.is_quiet() {
            worker.is_quiet = true;
            kernel.tell(|| format!("worker {index} is quiet"));
            let delay = self.rng.between(0, self.settings.mail_delay);
            kernel.after(delay, Event::Quiet(index));
        }
        worker.ledger.counts().check();
        self.hand_out_wakes();
        kernel.now.set(kernel.now.get() + self.rng.between(5, 80));
    }

    /// The process ends.
    fn close(&mut self) {
        self.kernel.tell(|| format!("the process ends: {:?} {:?}", self.end, self.stuck));
        for worker in &mut self.workers {
            worker.counts = worker.ledger.counts();
            worker.lost = worker.watch.take_lost().0;
            {
                let backlog = worker.backlog.borrow();
                worker.queue_resets.clone_from(&backlog.reset_in_queue);
                worker.handshake_resets.clone_from(&backlog.reset_in_handshake);
            }
            worker.endpoint = None;
        }
    }
}

impl Worker {
    fn new(
        index: usize,
        case: &Case,
        settings: &Settings,
        stage: &Stage,
        kernel: &Rc<Kernel>,
        capacity: &Arc<Capacity>,
    ) -> Worker {
        let (ledger, watch) = (Arc::new(Ledger::default()), Arc::new(Watch::default()));
        let site = Site {
            delivery: Cell::new(Delivery::Ours),
            builder: builder(&settings.limits),
            app: Rc::new(Lab { kernel: Rc::clone(kernel) }),
            ledger: Arc::clone(&ledger),
            watch: Arc::clone(&watch),
            metrics: RefCell::new(stage.metrics.worker()),
            answered: RefCell::default(),
            access_log: AccessLog::Off,
            on_failure: None,
            hot: Cell::new(0),
            last_host: RefCell::default(),
            ids: RequestIds::new(1),
            epoch: stage.epoch,
            shutdown: CancellationToken::new(),
            half_close: settings.half_close,
            lines: Lines::new(&settings.limits),
            mode: Cell::new(Mode::Serving),
            now: Cell::new(stage.epoch),
            fault: Cell::new(case.fault),
            limits: settings.limits.clone(),
        };
        let space = u8::try_from(1 + 2 * index).expect("few workers");
        let remote = Arc::clone(&stage.remote);
        let mut endpoint = Endpoint::new(space, site, remote, (), Arc::clone(capacity));
        let backlog = Backlog::new(settings.may_drop, Rng::new(case.seed, 100 + index as u64));
        let listener = endpoint.listener_key();
        let fake = FakeListener::new(Rc::clone(&backlog), Rc::clone(kernel));
        endpoint.attend(fake);
        Worker {
            endpoint: Some(endpoint),
            space,
            listener,
            backlog,
            ledger,
            watch,
            mail: VecDeque::new(),
            delivered: 0,
            woken: Vec::new(),
            is_quiet: false,
            is_known_quiet: false,
            announced: None,
            drained: None,
            cancelled: None,
            refused: None,
            cut: None,
            counts: Counts::default(),
            lost: Vec::new(),
            queue_resets: Vec::new(),
            handshake_resets: Vec::new(),
        }
    }

    fn endpoint(&self) -> &Endpoint<FakeListener> {
        self.endpoint.as_ref().expect("the server runs")
    }

    fn take_mail(&mut self, now: Instant, kernel: &Kernel) {
        for _ in 0..std::mem::take(&mut self.delivered) {
            let Some(command) = self.mail.pop_front() else { return };
            kernel.tell(|| format!("the worker of space {} is told: {command:?}", self.space));
            let moment = kernel.moment();
            match command {
                Command::Announce => self.announced = Some(moment),
                Command::Resume => self.announced = None,
                Command::Drain(grace) => self.drained = Some((moment, grace)),
                Command::Cancel => self.cancelled = Some(moment),
                Command::Refuse => self.refused = Some(moment),
                Command::Cut => self.cut = Some(moment),
                Command::Lead | Command::DealingDone(_) | Command::Consolidate | Command::Leave => {
                }
            }
            self.endpoint.as_mut().expect("the server runs").obey(command, now);
        }
    }
}

/// More than any world needs: thousands of small pieces, each its own event.
const TURNS_MAX: usize = 200_000;

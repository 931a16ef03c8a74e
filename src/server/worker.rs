//! A worker: a thread with a reactor that serves clients.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use super::balance::{Balance, Shares};
use super::control::ControlMail;
use super::endpoint::{Command, Endpoint, Source};
use super::entrance::{Capacity, Seat};
use super::error::StartError;
use super::holders::Question;
use super::listener::Bound;
use super::site::SiteSetup;
use crate::reactor::blocking::Pool;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::socket::{Peer, Readiness, Stream};
use crate::reactor::turn::{Host, Key, Reactor};

/// What control sends a worker. In order: a connection that was accepted before a command is there
/// when the command is obeyed.
#[derive(Debug)]
pub enum WorkerMail {
    Order(Command),
    /// One that control has accepted. No epoll knows of it yet.
    Connection(Stream, Peer, Seat),
    /// One that a neighbour has accepted, and counted as one of ours.
    Given(Stream, Peer, Seat),
    /// All workers, by their numbers.
    Neighbours(Arc<[Mailbox<WorkerMail>]>),
    /// What are your connections doing?
    Question(Question),
    /// The service manager wants a sign of life.
    Ping(u64),
}

/// What a worker is made of, on its way to its thread.
pub struct WorkerSetup {
    pub index: usize,
    pub site: SiteSetup,
    pub bound: Vec<Bound>,
    pub dealing: Dealing,
    pub shares: Arc<Shares>,
    pub capacity: Arc<Capacity>,
    pub control: Mailbox<ControlMail>,
    pub pulse: Arc<Pulse>,
    pub blocking: Pool,
}

/// Whether control accepts connections for the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dealing {
    No,
    Yes,
}

/// Signs of life that a worker leaves for control.
#[derive(Debug)]
pub struct Pulse {
    epoch: Instant,
    /// Microseconds since `epoch` at which the current turn began, plus one; 0 while it waits.
    turn_began: AtomicU64,
    /// Set once the worker's listeners are retired and its connections gone.
    pub quiet: AtomicBool,
    /// The last question for a sign of life that was answered.
    pong: AtomicU64,
}

impl Pulse {
    pub fn new(epoch: Instant) -> Arc<Pulse> {
        Arc::new(Pulse {
            epoch,
            turn_began: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            pong: AtomicU64::new(0),
        })
    }

    fn answer(&self, ping: u64) {
        self.pong.store(ping, Ordering::Relaxed);
    }

    pub fn has_answered(&self, ping: u64) -> bool {
        self.pong.load(Ordering::Relaxed) >= ping
    }

    pub fn begin_turn(&self, now: Instant) {
        let micros = now.saturating_duration_since(self.epoch).as_micros();
        let mark = u64::try_from(micros).unwrap_or(u64::MAX - 1) + 1;
        self.turn_began.store(mark, Ordering::Relaxed);
    }

    pub fn end_turn(&self) {
        self.turn_began.store(0, Ordering::Relaxed);
    }

    /// How long the turn in progress has been running.
    pub fn turn_age(&self, now: Instant) -> Option<Duration> {
        match self.turn_began.load(Ordering::Relaxed) {
            0 => None,
            mark => {
                let began = self.epoch + Duration::from_micros(mark - 1);
                Some(now.saturating_duration_since(began))
            }
        }
    }
}

/// Runs a worker until it is told to leave. Says through `started` whether it could start.
pub fn run(setup: WorkerSetup, started: &Sender<Result<Mailbox<WorkerMail>, StartError>>) {
    let (index, control) = (setup.index, setup.control.clone());
    let (mut reactor, mut worker, blocking) = match Worker::start(setup) {
        Ok(parts) => parts,
        Err(error) => {
            // Nobody listens any more when another worker failed first.
            let _failed_already = started.send(Err(error));
            return;
        }
    };
    let _entered = reactor.enter(blocking);
    if started.send(Ok(worker.mailbox.clone())).is_err() {
        return;
    }
    // Handlers' panics are caught where they are called. One that comes up here is a fault of ours;
    // the other workers go on, and control shuts the server down so that it is started afresh.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        while !worker.is_leaving {
            reactor.turn(&mut worker)?;
        }
        Ok(())
    }));
    let why = match ended {
        Ok(Ok(())) => return,
        Ok(Err(error)) => io::Error::to_string(&error),
        Err(_) => "it panicked".to_owned(),
    };
    log::error!(event_type = "worker_lost", worker = index; "Worker {index} is lost: {why}");
    control.post(ControlMail::WorkerLost(index));
}

struct Worker {
    index: usize,
    /// All workers, once they are there and until this one has told them that it gives nothing away
    /// any more.
    neighbours: Arc<[Mailbox<WorkerMail>]>,
    endpoint: Endpoint,
    mailbox: Mailbox<WorkerMail>,
    control: Mailbox<ControlMail>,
    pulse: Arc<Pulse>,
    is_leaving: bool,
    /// Whether control was told that nothing is left.
    said_quiet: bool,
}

impl Worker {
    fn start(setup: WorkerSetup) -> Result<(Reactor, Worker, Pool), StartError> {
        let reactor = Reactor::new()
            .map_err(|source| StartError::System { what: "open an epoll instance", source })?;
        let remote = Arc::clone(reactor.remote());
        let registrar = reactor
            .registrar()
            .map_err(|source| StartError::System { what: "duplicate a descriptor", source })?;
        let mut endpoint = Endpoint::new(
            PUBLIC_SPACE,
            setup.site.into_site(reactor.now()),
            Arc::clone(&remote),
            registrar,
            setup.capacity,
        );
        if setup.dealing == Dealing::Yes {
            endpoint.expect(Source::Control);
        }
        for other in (0..setup.shares.workers()).filter(|other| *other != setup.index) {
            endpoint.expect(Source::Worker(other));
        }
        endpoint.balance(Balance::new(setup.index, setup.shares));
        endpoint.listen(setup.bound)?;
        let worker = Worker {
            index: setup.index,
            neighbours: Arc::default(),
            endpoint,
            mailbox: Mailbox::new(remote),
            control: setup.control,
            pulse: setup.pulse,
            is_leaving: false,
            said_quiet: false,
        };
        Ok((reactor, worker, setup.blocking))
    }
}

impl Worker {
    /// Tells the others, once, that nothing more comes from here.
    fn say_done(&mut self) {
        let all = std::mem::take(&mut self.neighbours);
        for mailbox in all.iter() {
            let done = Command::DealingDone(Source::Worker(self.index));
            mailbox.post(WorkerMail::Order(done));
        }
    }
}

impl Host for Worker {
    fn is_busy(&self) -> bool {
        self.endpoint.is_busy()
    }

    fn deadline(&self) -> Option<Instant> {
        self.endpoint.deadline()
    }

    fn ready(&mut self, key: Key, readiness: Readiness) {
        self.endpoint.ready(key, readiness);
    }

    fn expire(&mut self, now: Instant) {
        self.pulse.begin_turn(now);
        self.endpoint.expire(now);
    }

    fn has_mail(&self) -> bool {
        !self.mailbox.is_empty()
    }

    fn take_mail(&mut self, now: Instant) {
        while let Some(mail) = self.mailbox.take() {
            match mail {
                WorkerMail::Order(command) => {
                    self.is_leaving |= command == Command::Leave;
                    self.endpoint.obey(command, now);
                    if matches!(command, Command::Drain(_) | Command::Cut) {
                        self.say_done();
                    }
                }
                WorkerMail::Connection(stream, peer, seat) => {
                    self.endpoint.take(stream, peer, seat, now);
                }
                WorkerMail::Given(stream, peer, seat) => {
                    self.endpoint.take_given((stream, peer, seat), now);
                }
                WorkerMail::Neighbours(all) => {
                    self.neighbours = Arc::clone(&all);
                    self.endpoint.begin_balancing(Box::new(move |to, (stream, peer, seat)| {
                        all[to].post(WorkerMail::Given(stream, peer, seat));
                    }));
                }
                WorkerMail::Ping(ping) => self.pulse.answer(ping),
                WorkerMail::Question(question) => question.answer(|| self.endpoint.holds(now)),
            }
        }
    }

    fn woken(&mut self, key: Key) {
        self.endpoint.woken(key);
    }

    fn work(&mut self, now: Instant) {
        self.endpoint.work(now);
    }

    fn finish(&mut self, now: Instant, worked: Duration) {
        self.endpoint.finish(now, worked);
        self.pulse.end_turn();
        if !self.said_quiet && self.endpoint.is_quiet() {
            self.said_quiet = true;
            self.pulse.quiet.store(true, Ordering::Release);
            self.control.post(ControlMail::Quiet);
        }
    }
}

/// The key space of a server's public connections. Its listeners have the next one.
pub const PUBLIC_SPACE: u8 = 1;

//! The load: a few threads, each a loop over its own connections, and what they tell of.
//!
//! A thread takes its share of the plan ([`Arrival::shard`]). What is due goes to the connection
//! of its kind that has been idle longest, to a new one when there is none, or waits at the client
//! when the kind has as many as it may. It is late then, and its latency says so.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::iter::Peekable;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};

use crate::client::{Client, Event, Fate};
use crate::kind::{Kind, Routes};
use crate::outcome::{End, Outcome};
use crate::schedule::{Arrival, Arrivals, Plan};

/// What to load with, and where.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server's address.
    pub to: SocketAddr,
    /// Its paths.
    pub routes: Routes,
    /// What comes when.
    pub plan: Plan,
    /// How many threads.
    pub threads: u32,
    /// How long a request may take from when it was due.
    pub patience: Duration,
}

/// A load that runs. Dropped, it stops, and does not wait.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    events: Receiver<Event>,
}

impl Load {
    /// Begins. All times are since `epoch`; the plan begins now.
    ///
    /// # Errors
    /// When a thread or an epoll instance cannot be made.
    pub fn start(&self, epoch: Instant) -> io::Result<Running> {
        let (sender, events) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut running = Running { stop, threads: Vec::new(), events };
        let begun = epoch.elapsed();
        for shard in 0..self.threads {
            let mut worker = Loop {
                load: self.clone(),
                epoch,
                begun,
                shard,
                arrivals: self.plan.arrivals().peekable(),
                poll: Poll::new()?,
                clients: BTreeMap::new(),
                next_token: 0,
                lines: BTreeMap::new(),
                to_connect: VecDeque::new(),
                told: Vec::new(),
                sender: sender.clone(),
                stop: Arc::clone(&running.stop),
            };
            let thread = thread::Builder::new().name(format!("load-{shard}"));
            running.threads.push(thread.spawn(move || worker.run())?);
        }
        Ok(running)
    }
}

impl Running {
    /// What the clients tell of; ends when all threads have.
    pub fn events(&self) -> &Receiver<Event> {
        &self.events
    }

    /// Sends nothing new, waits for what is on its way, and returns what was told meanwhile.
    pub fn finish(mut self) -> Vec<Event> {
        self.stop.store(true, Ordering::Relaxed);
        let rest: Vec<Event> = self.events.iter().collect();
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        rest
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whose connections one another's requests may use: those of a kind, or of one user.
type Line = (Kind, u32);

/// The connections of a line that are idle, longest first; what waits for one; how many there are.
#[derive(Debug, Default)]
struct Queue {
    idle: VecDeque<usize>,
    waiting: VecDeque<Arrival>,
    open: usize,
}

/// One thread's part.
#[derive(Debug)]
struct Loop {
    load: Load,
    epoch: Instant,
    begun: Duration,
    shard: u32,
    arrivals: Peekable<Arrivals>,
    poll: Poll,
    clients: BTreeMap<usize, (Client, Option<Duration>)>,
    next_token: usize,
    lines: BTreeMap<Line, Queue>,
    /// What gets a connection of its own before the thread waits again.
    to_connect: VecDeque<Arrival>,
    told: Vec<Event>,
    sender: Sender<Event>,
    stop: Arc<AtomicBool>,
}

impl Loop {
    fn run(&mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            let is_stopping = self.stop.load(Ordering::Relaxed);
            let now = self.epoch.elapsed();
            if !is_stopping {
                self.take_arrivals(now);
            }
            self.take_timers(now);
            self.connect_all(now);
            if !self.tell() || (is_stopping && self.is_done()) {
                return;
            }
            let wait = self.wait(self.epoch.elapsed());
            if let Err(error) = self.poll.poll(&mut events, Some(wait))
                && error.kind() != io::ErrorKind::Interrupted
            {
                self.told.push(Event::Failed(format!("epoll failed: {error}")));
            }
            let now = self.epoch.elapsed();
            for event in &events {
                self.drive(event.token().0, now);
            }
            self.connect_all(now);
        }
    }

    /// Connects for what lost its connection. In a loop: each that is refused at once makes room
    /// for the next, thousands of them when a server goes away.
    fn connect_all(&mut self, now: Duration) {
        while let Some(arrival) = self.to_connect.pop_front() {
            self.connect(arrival, now);
        }
    }

    /// Passes on what happened; whether somebody listens.
    fn tell(&mut self) -> bool {
        self.told.drain(..).all(|event| self.sender.send(event).is_ok())
    }

    /// Nothing is on its way.
    fn is_done(&self) -> bool {
        let is_waiting = self.lines.values().any(|queue| !queue.waiting.is_empty());
        !is_waiting && self.clients.values().all(|(client, _)| client.oldest().is_none())
    }

    /// Until the next arrival, or the next time a connection wants to be driven.
    fn wait(&mut self, now: Duration) -> Duration {
        let arrival = self.arrivals.peek().map(|arrival| self.begun + arrival.at);
        let timers = self.clients.values().filter_map(|(_, timer)| *timer);
        let next = timers.chain(arrival).min().unwrap_or(now + LOOK_AT_LEAST);
        next.saturating_sub(now).min(LOOK_AT_LEAST)
    }

    fn take_arrivals(&mut self, now: Duration) {
        while let Some(arrival) = self.arrivals.next_if(|arrival| self.begun + arrival.at <= now) {
            if arrival.shard(self.load.threads) == self.shard {
                let at = self.begun + arrival.at;
                self.dispatch(Arrival { at, ..arrival }, now);
            }
        }
    }

    fn take_timers(&mut self, now: Duration) {
        let is_due = |timer: &Option<Duration>| timer.is_some_and(|at| at <= now);
        let due: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, (_, timer))| is_due(timer))
            .map(|(token, _)| *token)
            .collect();
        for token in due {
            self.drive(token, now);
        }
        let is_over = |at: Duration| now.saturating_sub(at) > self.load.patience;
        let late: Vec<usize> = self
            .clients
            .iter()
            .filter(|(_, (client, _))| client.oldest().is_some_and(is_over))
            .map(|(token, _)| *token)
            .collect();
        for token in late {
            if let Some((client, _)) = self.clients.get_mut(&token) {
                client.give_up(now, &mut self.told);
                self.remove(token);
            }
        }
        self.give_up_waiting(now);
    }

    /// What has waited at the client for too long was never sent.
    fn give_up_waiting(&mut self, now: Duration) {
        let patience = self.load.patience;
        for queue in self.lines.values_mut() {
            let is_over = |arrival: &Arrival| now.saturating_sub(arrival.at) > patience;
            let late = queue.waiting.iter().take_while(|arrival| is_over(arrival)).count();
            for arrival in queue.waiting.drain(..late) {
                for index in 0..u64::from(arrival.kind.batch()) {
                    self.told.push(Event::Ended(unsent(arrival, index, now)));
                }
            }
        }
    }

    /// Sends what is due, or lets it wait.
    fn dispatch(&mut self, arrival: Arrival, now: Duration) {
        let line = (arrival.kind, arrival.user);
        let queue = self.lines.entry(line).or_default();
        if !queue.waiting.is_empty() {
            queue.waiting.push_back(arrival);
            return;
        }
        while let Some(token) = self.lines.entry(line).or_default().idle.pop_front() {
            let Some((client, _)) = self.clients.get_mut(&token) else { continue };
            if client.is_stale() {
                self.remove(token);
                continue;
            }
            client.ask(arrival, &self.load.routes);
            self.drive(token, now);
            return;
        }
        self.connect(arrival, now);
    }

    fn connect(&mut self, arrival: Arrival, now: Duration) {
        let queue = self.lines.entry((arrival.kind, arrival.user)).or_default();
        if queue.open >= open_max(arrival.kind) {
            queue.waiting.push_back(arrival);
            return;
        }
        let token = self.next_token;
        let connected = Client::connect(self.load.to, arrival).and_then(|mut client| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(client.stream(), Token(token), interest)?;
            Ok(client)
        });
        match connected {
            Ok(mut client) => {
                client.ask(arrival, &self.load.routes);
                queue.open += 1;
                self.next_token += 1;
                self.clients.insert(token, (client, None));
                // On loopback the handshake is done by now.
                self.drive(token, now);
            }
            Err(error) => {
                self.told.push(Event::Failed(format!("no socket for a client: {error}")));
                for index in 0..u64::from(arrival.kind.batch()) {
                    self.told.push(Event::Ended(unsent(arrival, index, now)));
                }
            }
        }
    }

    fn drive(&mut self, token: usize, now: Duration) {
        let Some((client, timer)) = self.clients.get_mut(&token) else { return };
        let was_idle = client.oldest().is_none();
        match client.drive(now, &mut self.told) {
            Fate::Busy(at) => *timer = at,
            Fate::Idle => {
                *timer = None;
                if !was_idle {
                    self.idle(token, now);
                }
            }
            Fate::Gone => self.remove(token),
            Fate::Retry(arrival) => {
                self.remove(token);
                self.to_connect.push_back(arrival);
            }
        }
    }

    /// A connection has no request any more: it takes the next that waits.
    fn idle(&mut self, token: usize, now: Duration) {
        let Some((client, _)) = self.clients.get_mut(&token) else { return };
        let line = (client.arrival().kind, client.arrival().user);
        let queue = self.lines.entry(line).or_default();
        if !queue.waiting.is_empty() && client.is_stale() {
            self.remove(token);
            return;
        }
        match queue.waiting.pop_front() {
            Some(arrival) => {
                client.ask(arrival, &self.load.routes);
                self.drive(token, now);
            }
            None => queue.idle.push_back(token),
        }
    }

    /// A connection is gone: what waited for it gets another.
    fn remove(&mut self, token: usize) {
        let Some((client, _)) = self.clients.remove(&token) else { return };
        let queue = self.lines.entry((client.arrival().kind, client.arrival().user)).or_default();
        queue.open -= 1;
        queue.idle.retain(|idle| *idle != token);
        drop(client);
        self.to_connect.extend(queue.waiting.pop_front());
    }
}

/// What became of a request that was never put on a connection.
fn unsent(arrival: Arrival, index: u64, now: Duration) -> End {
    End {
        id: arrival.id() + index,
        kind: arrival.kind,
        outcome: Outcome::Timeout,
        planned: arrival.at,
        sent: None,
        ended: now,
        connected: None,
        port: 0,
        nth: 0,
        reset_unheard: false,
        detail: "waited for a connection all the time".into(),
    }
}

/// Connections of a kind, or of a user, on one thread.
fn open_max(kind: Kind) -> usize {
    if kind == Kind::Paused { 1 } else { OPEN_MAX }
}

const OPEN_MAX: usize = 64;

/// A thread looks around at least so often: somebody may want it to stop.
const LOOK_AT_LEAST: Duration = Duration::from_millis(50);

//! What the two kernels and the network between them do: queues, windows, acknowledgements, FIN and
//! RST, and epoll's announcements.
//!
//! After Linux: a close with unread input sends RST, and so does what arrives at a closed socket;
//! an announcement is made once per change and says what is so when it is fetched; space in the
//! send buffer is announced when a third of it is free and somebody had found it full. The network
//! delays and cuts, and keeps the order.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::rc::Rc;

use super::app::Plan;
use super::rng::Rng;
use crate::reactor::socket::Readiness;
use crate::reactor::turn::Key;

/// Microseconds since the world began.
pub type Micros = u64;

/// What comes at its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Packets of a link have arrived at the server, or at the client.
    Up(usize),
    Down(usize),
    /// So many bytes, or our FIN, were acknowledged.
    Acknowledged(usize, usize),
    FinAcknowledged(usize),
    /// A window may have opened.
    PumpUp(usize),
    PumpDown(usize),
    /// A client opens its next connection.
    Connect(usize),
    /// A link's first packet arrives; its handshake is complete.
    Syn(usize),
    Established(usize),
    /// A client has something to do.
    Client(usize),
    Signal(usize),
    /// The oldest mail to a worker has come.
    Mail(usize),
    /// A worker's word that nothing is left has come.
    Quiet(usize),
    CleanedUp,
}

/// The clock, the agenda, and what everybody may look up.
pub struct Kernel {
    pub now: Cell<Micros>,
    /// Counts what happens: tells before from after within a microsecond.
    serial: Cell<u64>,
    /// The serial when the events of the running turn were fetched.
    pub fetched: Cell<u64>,
    pub agenda: RefCell<BinaryHeap<Reverse<(Micros, u64, Event)>>>,
    pub plans: RefCell<Vec<Plan>>,
    trace: Option<RefCell<Vec<String>>>,
}

/// When something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub serial: u64,
    pub at: Micros,
}

impl Kernel {
    pub fn new(is_traced: bool) -> Rc<Kernel> {
        Rc::new(Kernel {
            now: Cell::new(0),
            serial: Cell::new(0),
            fetched: Cell::new(0),
            agenda: RefCell::default(),
            plans: RefCell::default(),
            trace: is_traced.then(RefCell::default),
        })
    }

    pub fn schedule(&self, at: Micros, event: Event) {
        let moment = self.moment();
        self.agenda.borrow_mut().push(Reverse((at, moment.serial, event)));
    }

    pub fn after(&self, delay: Micros, event: Event) {
        self.schedule(self.now.get() + delay, event);
    }

    pub fn moment(&self) -> Moment {
        self.serial.set(self.serial.get() + 1);
        Moment { serial: self.serial.get(), at: self.now.get() }
    }

    pub fn tell(&self, what: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            let now = self.now.get();
            trace.borrow_mut().push(format!("{:>4}.{:06} {}", now / SECOND, now % SECOND, what()));
        }
    }

    pub fn take_trace(&self) -> Vec<String> {
        self.trace.as_ref().map(RefCell::take).unwrap_or_default()
    }
}

/// One direction of a connection.
pub struct Lane {
    /// Written, not yet on its way.
    pub unsent: VecDeque<u8>,
    /// On its way, with the time of its arrival.
    flying: VecDeque<(Micros, Packet)>,
    flying_bytes: usize,
    /// Sent and not acknowledged.
    unacknowledged: usize,
    /// Arrived and not read.
    pub queue: VecDeque<u8>,
    /// The most that `queue` takes.
    window: usize,
    pub fin: Fin,
    /// Bytes that have ever arrived.
    pub arrived: u64,
}

enum Packet {
    Data(Vec<u8>),
    Fin,
    Reset,
}

/// How far a FIN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fin {
    No,
    Queued,
    Sent,
    Arrived,
    Acknowledged,
}

impl Lane {
    fn new(window: usize) -> Lane {
        Lane {
            unsent: VecDeque::new(),
            flying: VecDeque::new(),
            flying_bytes: 0,
            unacknowledged: 0,
            queue: VecDeque::new(),
            window,
            fin: Fin::No,
            arrived: 0,
        }
    }

    /// The packets that have arrived by `until`.
    fn land(&mut self, until: Micros) -> Option<Packet> {
        self.flying.front().filter(|(at, _)| *at <= until)?;
        let (_, packet) = self.flying.pop_front()?;
        if let Packet::Data(bytes) = &packet {
            self.flying_bytes -= bytes.len();
        }
        Some(packet)
    }

    fn reset(&mut self, at: Micros) {
        self.unsent.clear();
        let at = self.flying.back().map_or(at, |(last, _)| at.max(*last));
        self.flying.push_back((at, Packet::Reset));
    }
}

/// A TCP connection with both its ends.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Link {
    pub id: usize,
    pub worker: usize,
    pub client: usize,
    pub up: Lane,
    pub down: Lane,
    rng: Rng,
    /// The usual time of a packet, and the chance in percent that one takes much longer.
    pub latency: Micros,
    stalls: u64,
    /// How long then, at most.
    pub slowest: Micros,
    // The server's end.
    pub key: Option<Key>,
    /// Whether epoll has it in its list.
    pub is_pending: bool,
    /// Whether epoll is to tell of room to write.
    pub is_room_watched: bool,
    pub send_buffer: usize,
    /// Whether somebody waits for space.
    pub wants_space: bool,
    pub resets_on_close: bool,
    /// Whether the client's RST has come, and whether the server was told by an error.
    pub is_reset: bool,
    pub error_told: bool,
    /// The descriptor is closed; the kernel may still be sending.
    pub closed: Option<Moment>,
    /// RST went out: nothing is sent or taken any more.
    pub is_aborted: bool,
    // The client's end.
    /// The client has closed or reset it.
    pub left: Option<Moment>,
    pub client_reset: bool,
    /// Whether an RST makes the client's kernel forget what was not read (RFC 9112, 9.6).
    forgets: bool,
    // The record.
    /// Everything that the server's kernel took.
    pub sent: Vec<u8>,
    pub sent_last: Micros,
    /// When the server sent FIN or RST, whichever came first.
    pub finished: Option<Moment>,
    pub accepted: Option<Moment>,
    /// When bytes last arrived at the server.
    pub heard: Micros,
    /// Bytes that had arrived when the server finished.
    pub heard_by_finish: u64,
    /// Whether the client's FIN had.
    pub fin_by_finish: bool,
    /// Where in the client's stream heads and requests end: position, plan, whether it is the head.
    pub marks: VecDeque<(u64, usize, Mark)>,
    pub plans: Vec<usize>,
}

/// What ends at a position of the client's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Head,
    Request,
}

impl Link {
    pub fn new(id: usize, client: usize, worker: usize, mut rng: Rng) -> Link {
        let windows = [1024, 4096, 16 * 1024, 64 * 1024, 256 * 1024, 1024 * 1024];
        Link {
            id,
            worker,
            client,
            up: Lane::new(rng.pick(&windows[1..])),
            down: Lane::new(rng.pick(&windows)),
            latency: rng.between(10, 1200),
            stalls: rng.pick(&[0, 0, 1, 10]),
            slowest: rng.pick(&[20, 150, 150, 5000]) * MILLISECOND,
            key: None,
            is_pending: false,
            is_room_watched: false,
            send_buffer: rng.pick(&windows[1..]),
            wants_space: false,
            resets_on_close: false,
            is_reset: false,
            error_told: false,
            closed: None,
            is_aborted: false,
            left: None,
            client_reset: false,
            forgets: rng.chance(50),
            sent: Vec::new(),
            sent_last: 0,
            finished: None,
            accepted: None,
            heard: 0,
            heard_by_finish: 0,
            fin_by_finish: false,
            marks: VecDeque::new(),
            plans: Vec::new(),
            rng,
        }
    }

    pub fn delay(&mut self) -> Micros {
        let latency = self.latency;
        if self.rng.chance(self.stalls) {
            self.rng.between(latency, self.slowest)
        } else {
            self.rng.between(latency / 2, latency)
        }
    }

    /// Whether nothing holds up what is sent.
    pub fn is_smooth(&self) -> bool {
        self.stalls == 0 && self.down.window >= 64 * 1024 && self.up.window >= 64 * 1024
    }

    /// Puts on its way what the windows allow.
    pub fn pump(&mut self, kernel: &Kernel, way: Way) {
        let event = match way {
            Way::Up => Event::Up(self.id),
            Way::Down => Event::Down(self.id),
        };
        loop {
            let delay = self.delay();
            let lane = self.lane(way);
            let room = lane.window.saturating_sub(lane.queue.len() + lane.flying_bytes);
            let most = lane.unsent.len().min(room).min(16 * 1024);
            let packet = if most > 0 {
                // Mostly what there is, at times a few bytes.
                let size = if self.rng.chance(70) { most } else { 1 + self.rng.skewed(most - 1) };
                let lane = self.lane(way);
                lane.flying_bytes += size;
                lane.unacknowledged += size;
                Packet::Data(lane.unsent.drain(..size).collect())
            } else if lane.unsent.is_empty() && lane.fin == Fin::Queued {
                lane.fin = Fin::Sent;
                Packet::Fin
            } else {
                return;
            };
            let lane = self.lane(way);
            let soonest = lane.flying.back().map_or(0, |(at, _)| *at);
            let at = (kernel.now.get() + delay).max(soonest);
            lane.flying.push_back((at, packet));
            kernel.schedule(at, event);
        }
    }

    fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    /// What arrives at the server by `until`.
    pub fn land_up(&mut self, kernel: &Kernel, until: Micros) {
        while let Some(packet) = self.up.land(until) {
            if self.is_aborted {
                continue;
            }
            match packet {
                Packet::Data(bytes) if self.closed.is_some() => {
                    kernel.tell(|| format!("link {}: {} bytes after close", self.id, bytes.len()));
                    self.abort(kernel);
                }
                Packet::Data(bytes) => {
                    self.up.arrived += bytes.len() as u64;
                    self.up.unacknowledged -= bytes.len();
                    self.heard = kernel.now.get();
                    let (count, id) = (bytes.len(), self.id);
                    kernel.tell(|| format!("link {id}: {count} bytes reach the server"));
                    self.up.queue.extend(bytes);
                    self.note_marks(kernel);
                }
                Packet::Fin => {
                    kernel.tell(|| format!("link {}: FIN reaches the server", self.id));
                    self.up.fin = Fin::Arrived;
                }
                Packet::Reset => {
                    kernel.tell(|| format!("link {}: RST reaches the server", self.id));
                    self.is_reset = true;
                    self.down.unsent.clear();
                }
            }
            self.is_pending = true;
        }
    }

    fn note_marks(&mut self, kernel: &Kernel) {
        let moment = kernel.moment();
        while let Some((at, plan, mark)) = self.marks.front().copied()
            && at <= self.up.arrived
        {
            self.marks.pop_front();
            let plan = &mut kernel.plans.borrow_mut()[plan];
            match mark {
                Mark::Head => plan.head_arrived = Some(moment),
                Mark::Request => plan.whole_arrived = Some(moment),
            }
        }
    }

    /// What arrives at the client. Whether there was anything.
    pub fn land_down(&mut self, kernel: &Kernel) -> bool {
        let mut any = false;
        while let Some(packet) = self.down.land(kernel.now.get()) {
            any = true;
            match packet {
                Packet::Data(bytes) => {
                    if self.left.is_some() {
                        // To a closed socket: the client's kernel answers with RST.
                        self.up.reset(kernel.now.get() + self.latency);
                        kernel.after(self.latency, Event::Up(self.id));
                        continue;
                    }
                    self.down.arrived += bytes.len() as u64;
                    // A delayed acknowledgement takes up to 40 ms.
                    let delayed = if self.rng.chance(10) { self.rng.between(0, 40_000) } else { 0 };
                    let delay = self.delay() + delayed;
                    kernel.after(delay, Event::Acknowledged(self.id, bytes.len()));
                    self.down.queue.extend(bytes);
                }
                Packet::Fin => {
                    kernel.tell(|| format!("link {}: FIN reaches the client", self.id));
                    self.down.fin = Fin::Arrived;
                    let delay = self.delay();
                    kernel.after(delay, Event::FinAcknowledged(self.id));
                }
                Packet::Reset => {
                    kernel.tell(|| format!("link {}: RST reaches the client", self.id));
                    self.client_reset = true;
                    if self.forgets {
                        self.down.queue.clear();
                    }
                }
            }
        }
        any
    }

    pub fn acknowledged(&mut self, bytes: usize) {
        self.down.unacknowledged -= bytes;
        if self.wants_space && self.has_space() {
            self.wants_space = false;
            self.is_pending |= self.is_room_watched;
        }
    }

    pub fn used(&self) -> usize {
        self.down.unsent.len() + self.down.unacknowledged
    }

    /// `sk_stream_is_writeable`: free space is at least half of what is used.
    fn has_space(&self) -> bool {
        self.send_buffer.saturating_sub(self.used()) >= self.used() / 2
    }

    /// Whether there is something to read, an end or an error.
    pub fn has_news(&self) -> bool {
        !self.up.queue.is_empty() || self.up.fin >= Fin::Arrived || self.is_reset
    }

    /// What epoll says when it is asked.
    pub fn readiness(&mut self) -> Readiness {
        let mut bits = Readiness::NONE;
        let is_ended = self.up.fin >= Fin::Arrived || self.is_reset;
        if !self.up.queue.is_empty() {
            bits = bits | Readiness::READABLE;
        }
        if !self.is_room_watched {
            // epoll says nothing of it.
        } else if self.has_space() || self.down.fin != Fin::No {
            bits = bits | Readiness::WRITABLE;
        } else {
            self.wants_space = true;
        }
        if is_ended {
            bits = bits | Readiness::READ_CLOSED | Readiness::READABLE;
        }
        if self.is_reset || (is_ended && self.down.fin != Fin::No) {
            bits = bits | Readiness::BROKEN | Readiness::READABLE | Readiness::WRITABLE;
        }
        bits
    }

    /// Sends RST and forgets what was to be sent.
    pub fn abort(&mut self, kernel: &Kernel) {
        kernel.tell(|| format!("link {}: the server's kernel sends RST", self.id));
        self.is_aborted = true;
        self.note_finish(kernel);
        let at = kernel.now.get() + self.latency;
        self.down.reset(at);
        kernel.schedule(at, Event::Down(self.id));
        let last = self.down.flying.back().map_or(at, |(at, _)| *at);
        kernel.schedule(last, Event::Down(self.id));
    }

    fn note_finish(&mut self, kernel: &Kernel) {
        if self.finished.is_none() {
            self.finished = Some(kernel.moment());
            self.heard_by_finish = self.up.arrived;
            self.fin_by_finish = self.up.fin >= Fin::Arrived;
        }
    }

    pub fn finish(&mut self, kernel: &Kernel) {
        if self.down.fin == Fin::No {
            kernel.tell(|| format!("link {}: the server sends FIN", self.id));
            self.note_finish(kernel);
            self.down.fin = Fin::Queued;
            self.pump(kernel, Way::Down);
        }
    }

    pub fn close(&mut self, kernel: &Kernel) {
        let unread = self.up.queue.len();
        kernel.tell(|| format!("link {}: the server closes, {unread} bytes unread", self.id));
        self.closed = Some(kernel.moment());
        if self.is_reset || self.is_aborted {
            self.note_finish(kernel);
        } else if self.resets_on_close || unread > 0 {
            self.abort(kernel);
        } else {
            self.finish(kernel);
        }
    }

    /// The client sends FIN behind what it has written.
    pub fn client_finishes(&mut self, kernel: &Kernel) {
        if self.up.fin == Fin::No {
            self.up.fin = Fin::Queued;
            self.pump(kernel, Way::Up);
        }
    }

    /// The client closes: FIN, or RST when it leaves something unread.
    pub fn client_closes(&mut self, kernel: &Kernel) {
        if self.down.queue.is_empty() {
            self.client_finishes(kernel);
            self.left.get_or_insert(kernel.moment());
        } else {
            self.client_resets(kernel);
        }
    }

    pub fn client_resets(&mut self, kernel: &Kernel) {
        self.left.get_or_insert(kernel.moment());
        let at = kernel.now.get() + self.latency;
        self.up.reset(at);
        let last = self.up.flying.back().map_or(at, |(at, _)| *at);
        kernel.schedule(last, Event::Up(self.id));
    }
}

/// The two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

pub const SECOND: Micros = 1_000_000;
pub const MILLISECOND: Micros = 1000;

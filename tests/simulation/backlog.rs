//! A listening socket: handshakes, the accept queue, and what a close does to both.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::kernel::{Kernel, Link, MILLISECOND, Micros};
use super::rng::Rng;
use super::stream::Stream;
use crate::reactor::listener::{Accepted, Acceptor};
use crate::reactor::socket::Peer;
use crate::reactor::turn::Key;

/// The kernel's side of a listener.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Backlog {
    queue: VecDeque<Rc<RefCell<Link>>>,
    pub is_open: bool,
    /// When it was closed.
    pub closed: Micros,
    /// Whether epoll has it in its list.
    pub is_pending: bool,
    /// Whether the process may have SYNs dropped, and whether they are.
    pub may_drop: bool,
    pub drops: bool,
    /// Connections that were reset: in the queue, and in the middle of their handshake.
    pub reset_in_queue: Vec<usize>,
    pub reset_in_handshake: Vec<usize>,
    /// Until when there are no descriptors.
    pub exhausted_until: Micros,
    rng: Rng,
}

/// What becomes of a client's first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    Answered,
    Dropped,
    Refused,
}

impl Backlog {
    pub fn new(may_drop: bool, rng: Rng) -> Rc<RefCell<Backlog>> {
        Rc::new(RefCell::new(Backlog {
            queue: VecDeque::new(),
            is_open: true,
            closed: 0,
            is_pending: false,
            may_drop,
            drops: false,
            reset_in_queue: Vec::new(),
            reset_in_handshake: Vec::new(),
            exhausted_until: 0,
            rng,
        }))
    }

    pub fn knock(&self) -> Knock {
        match (self.is_open, self.drops) {
            (false, _) => Knock::Refused,
            (true, true) => Knock::Dropped,
            (true, false) => Knock::Answered,
        }
    }

    /// The last packet of a handshake.
    pub fn establish(&mut self, kernel: &Kernel, link: &Rc<RefCell<Link>>) {
        let id = link.borrow().id;
        if self.is_open {
            kernel.tell(|| format!("link {id}: in the accept queue"));
            self.queue.push_back(Rc::clone(link));
            self.is_pending = true;
        } else {
            self.reset_in_handshake.push(id);
            link.borrow_mut().abort(kernel);
        }
    }
}

/// The server's side of a listener.
pub struct FakeListener {
    pub backlog: Rc<RefCell<Backlog>>,
    pub kernel: Rc<Kernel>,
    ready: bool,
    paused_until: Option<Instant>,
}

impl FakeListener {
    pub fn new(backlog: Rc<RefCell<Backlog>>, kernel: Rc<Kernel>) -> FakeListener {
        FakeListener { backlog, kernel, ready: true, paused_until: None }
    }
}

impl Acceptor for FakeListener {
    type Stream = Stream;
    type Registrar = ();

    fn watch(_registrar: &(), stream: &mut Stream, key: Key) -> io::Result<()> {
        let mut link = stream.link.borrow_mut();
        link.key = Some(key);
        link.is_pending = link.has_news();
        Ok(())
    }

    fn watch_room(_registrar: &(), stream: &mut Stream, _key: Key) -> io::Result<()> {
        let mut link = stream.link.borrow_mut();
        link.is_room_watched = true;
        link.is_pending = true;
        Ok(())
    }

    fn announce(&mut self) {
        self.ready = true;
    }

    fn is_ready(&self, now: Instant) -> bool {
        self.ready && self.paused_until.is_none_or(|until| now >= until)
    }

    fn deadline(&self) -> Option<Instant> {
        self.paused_until.filter(|_| self.ready)
    }

    fn resume(&mut self) {
        self.paused_until = None;
    }

    fn pause(&mut self, now: Instant) {
        self.paused_until = Some(now + Duration::from_millis(50));
    }

    fn drop_syns(&mut self) {
        let mut backlog = self.backlog.borrow_mut();
        backlog.drops = backlog.may_drop;
    }

    fn turn_away(&mut self) {
        self.drop_syns();
        self.ready = true;
        self.paused_until = None;
    }

    fn accept(&mut self, now: Instant) -> Accepted<Stream> {
        let mut backlog = self.backlog.borrow_mut();
        if self.kernel.now.get() < backlog.exhausted_until {
            drop(backlog);
            self.pause(now);
            return Accepted::Exhausted;
        }
        let Some(link) = backlog.queue.pop_front() else {
            self.ready = false;
            return Accepted::Nothing;
        };
        if backlog.rng.chance(5) {
            // Others in the process use up the descriptors, for a moment.
            backlog.exhausted_until =
                self.kernel.now.get() + backlog.rng.between(0, 80 * MILLISECOND);
        }
        let id = link.borrow().id;
        self.kernel.tell(|| format!("link {id}: accepted"));
        link.borrow_mut().accepted = Some(self.kernel.moment());
        let port = u16::try_from(1024 + id).expect("few links");
        let peer = Peer::from(SocketAddr::from(([10, 0, 0, 1], port)));
        Accepted::Connection(Stream { link, kernel: Rc::clone(&self.kernel) }, peer)
    }
}

impl Drop for FakeListener {
    fn drop(&mut self) {
        let mut backlog = self.backlog.borrow_mut();
        backlog.is_open = false;
        backlog.closed = self.kernel.now.get();
        for link in std::mem::take(&mut backlog.queue) {
            let id = link.borrow().id;
            self.kernel.tell(|| format!("link {id}: reset in the accept queue"));
            backlog.reset_in_queue.push(id);
            link.borrow_mut().abort(&self.kernel);
        }
    }
}

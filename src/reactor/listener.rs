//! Accepting connections.
//!
//! Edge-triggered like any socket: an event says that the queue was not empty, once. So a listener
//! remembers that it is *ready* until its queue is empty; an accept that fails for want of
//! descriptors leaves it ready and paused, or the rest of the queue would never be heard of again.
//!
//! An accept that would block costs the kernel a socket and a file, made and thrown away: as much
//! as one that brings a connection. So a listener asks how many wait, once for each announcement,
//! and accepts those; what comes after the question is announced again.

use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use super::origin::Origin;
use super::socket::{Peer, Stream, Transport};
use super::turn::{Key, Registrar};

/// Where connections come from: the kernel, or a simulation of it.
pub trait Acceptor {
    /// What clients connect with.
    type Stream: Transport + 'static;
    /// What announces the readiness of streams.
    type Registrar;

    /// Has it announced under `key`, edge-triggered, when `stream` can be read, until it is closed.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    fn watch(registrar: &Self::Registrar, stream: &mut Self::Stream, key: Key) -> io::Result<()>;

    /// Has it announced as well, from now on, when `stream` can be written to. It is watched.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    fn watch_room(
        registrar: &Self::Registrar,
        stream: &mut Self::Stream,
        key: Key,
    ) -> io::Result<()>;

    /// Notes that the queue is not empty.
    fn announce(&mut self);

    /// Whether an accept may bring something at `now`.
    fn is_ready(&self, now: Instant) -> bool;

    /// When a pause ends, if there is one.
    fn deadline(&self) -> Option<Instant>;

    /// A descriptor was freed.
    fn resume(&mut self);

    /// Leaves the queue alone for a while.
    fn pause(&mut self, now: Instant);

    /// Nobody older listens where this does. Takes back how an older one steered connections.
    fn lead(&mut self) {}

    /// The way out begins: has clients go elsewhere, where that can be arranged, and says what is
    /// left to do.
    fn retire(&mut self) -> Farewell {
        Farewell::EmptyQueue
    }

    /// Has the kernel drop SYNs from now on, where the process may: handshakes that have begun are
    /// completed, and clients that come later are refused once the socket is closed (they ask again
    /// after a second), instead of being reset after having sent a request.
    fn drop_syns(&mut self);

    /// Before the last look into the queue. Where SYNs could not be dropped the queue is cut down
    /// to one place (`listen(2)` with a backlog of 0; measured): one connection may still slip in.
    fn turn_away(&mut self);

    /// Accepts one connection.
    fn accept(&mut self, now: Instant) -> Accepted<Self::Stream>;

    /// Whether the kernel has shown that it keeps the books of Linux: see [`Listener`].
    fn is_counted(&self) -> bool {
        false
    }
}

/// What is to be done with a listener on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Its queue ends with it: empty it, then close it.
    EmptyQueue,
    /// As `EmptyQueue`; new connections go elsewhere, so it may take its time.
    Steered,
    /// Another process has the socket as well, and will accept what is queued: close it.
    Close,
}

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    /// Before `inner`: a file is removed while its inode is still in use, by which it is known.
    origin: Origin,
    inner: Inner,
    /// Whether the queue may hold connections: set by events, cleared when it is empty.
    /// Edge-triggered, so an accept that failed for want of descriptors leaves it set.
    ready: bool,
    waiting: Waiting,
    /// Whether the kernel has ever said that somebody waits. Before that its "nobody" is not
    /// believed: kernels that are none, such as gVisor's, leave the field at zero.
    has_counted: bool,
    /// Descriptors or memory ran out: not before then.
    paused_until: Option<Instant>,
    /// When that was last logged.
    complained: Option<Instant>,
    /// Whether the kernel drops the SYNs that come.
    drops_syns: bool,
}

/// What is known of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// Nothing; it is to be asked.
    Unknown,
    /// It held so many at the last question, those accepted since not counted. Who came since has
    /// been announced, or will be.
    Known(u32),
    /// It is not to be asked: it is empty when an accept would block.
    Untold,
}

#[derive(Debug)]
enum Inner {
    Tcp(mio::net::TcpListener),
    Unix(mio::net::UnixListener),
}

/// What one attempt to accept brought.
#[derive(Debug)]
pub enum Accepted<S> {
    /// A connection, and who is at its other end.
    Connection(S, Peer),
    /// The queue is empty.
    Nothing,
    /// The connection was gone before it was accepted; there may be more.
    Gone,
    /// Descriptors or memory ran out. The listener pauses.
    Exhausted,
}

impl Listener {
    /// Accepts from a non-blocking socket that listens.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn tcp(
        socket: TcpListener,
        origin: Origin,
        registrar: &Registrar,
        key: Key,
    ) -> io::Result<Listener> {
        let mut tcp = mio::net::TcpListener::from_std(socket);
        registrar.watch(&mut tcp, key)?;
        Ok(Listener::new(Inner::Tcp(tcp), origin))
    }

    /// As [`tcp`](Listener::tcp).
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn unix(
        socket: UnixListener,
        origin: Origin,
        registrar: &Registrar,
        key: Key,
    ) -> io::Result<Listener> {
        let mut unix = mio::net::UnixListener::from_std(socket);
        registrar.watch(&mut unix, key)?;
        Ok(Listener::new(Inner::Unix(unix), origin))
    }

    fn new(inner: Inner, origin: Origin) -> Listener {
        Listener {
            origin,
            // The queue may have filled before epoll knew of the socket.
            ready: true,
            waiting: match inner {
                Inner::Tcp(_) => Waiting::Unknown,
                Inner::Unix(_) => Waiting::Untold,
            },
            has_counted: false,
            paused_until: None,
            complained: None,
            drops_syns: false,
            inner,
        }
    }

    /// Whether the queue is empty, as far as that is known without an accept.
    fn is_empty(&mut self) -> bool {
        if let (Waiting::Unknown, Inner::Tcp(tcp)) = (self.waiting, &self.inner) {
            self.note(crate::os::queued(tcp));
        }
        self.waiting == Waiting::Known(0)
    }

    /// The kernel said that so many wait, or nothing.
    fn note(&mut self, count: Option<u32>) {
        self.has_counted |= count.is_some_and(|count| count > 0);
        self.waiting = match count {
            Some(count) if self.has_counted => Waiting::Known(count),
            Some(_) => Waiting::Unknown,
            None => Waiting::Untold,
        };
    }

    /// One of the queue was accepted.
    fn took_one(&mut self) {
        if let Waiting::Known(count) = &mut self.waiting {
            *count = count.saturating_sub(1);
            self.ready = *count > 0;
        }
    }

    /// What was known of the queue is no longer true.
    fn ask_again(&mut self) {
        if self.waiting != Waiting::Untold {
            self.waiting = Waiting::Unknown;
        }
    }
}

impl Acceptor for Listener {
    type Stream = Stream;
    type Registrar = Registrar;

    fn watch(registrar: &Registrar, stream: &mut Stream, key: Key) -> io::Result<()> {
        registrar.watch(stream, key)
    }

    fn watch_room(registrar: &Registrar, stream: &mut Stream, key: Key) -> io::Result<()> {
        registrar.watch_room(stream, key)
    }

    fn announce(&mut self) {
        self.ready = true;
        self.ask_again();
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
        self.paused_until = Some(now + EXHAUSTED_PAUSE);
    }

    fn lead(&mut self) {
        if let (Origin::Shared(group), Inner::Tcp(tcp)) = (&self.origin, &self.inner) {
            group.lead(tcp);
        }
    }

    fn retire(&mut self) -> Farewell {
        // From now on it matters that nobody is there when it is taken for empty.
        self.waiting = Waiting::Untold;
        match (&mut self.origin, &self.inner) {
            (Origin::Inherited, _) => Farewell::Close,
            (Origin::Shared(group), Inner::Tcp(tcp)) => group.retire(tcp),
            // A client that comes now is refused by the file system, and no handshake is cut short:
            // connect(2) to a unix socket queues or fails.
            (Origin::File(file), _) => {
                file.remove();
                Farewell::EmptyQueue
            }
            (Origin::Alone | Origin::Shared(_), _) => Farewell::EmptyQueue,
        }
    }

    /// Of a port that a successor has as well: it gets the SYNs by then, so that none is dropped
    /// here. Without a successor the steering changed nothing, and this is the listener alone.
    fn drop_syns(&mut self) {
        if let Inner::Tcp(tcp) = &self.inner
            && !self.drops_syns
        {
            self.drops_syns = crate::os::drop_syns(tcp).is_ok();
        }
    }

    fn is_counted(&self) -> bool {
        self.has_counted
    }

    fn turn_away(&mut self) {
        if let (Origin::Shared(group), Inner::Tcp(tcp)) = (&self.origin, &self.inner) {
            group.leave(tcp);
        }
        self.drop_syns();
        match &self.inner {
            Inner::Tcp(tcp) if !self.drops_syns => {
                // A failure leaves the queue as it is: the gap is then a little wider.
                let _unchanged = socket2::SockRef::from(tcp).listen(0);
            }
            // Nothing finds a unix socket any more whose file is gone.
            Inner::Tcp(_) | Inner::Unix(_) => {}
        }
        self.ready = true;
        self.paused_until = None;
    }

    fn accept(&mut self, now: Instant) -> Accepted<Stream> {
        if self.is_empty() {
            self.ready = false;
            return Accepted::Nothing;
        }
        let result = match &self.inner {
            Inner::Tcp(tcp) => {
                tcp.accept().map(|(stream, peer)| (Stream::Tcp(stream), Peer::from(peer)))
            }
            Inner::Unix(unix) => {
                unix.accept().map(|(stream, _)| (Stream::Unix(stream), Peer::LOCAL))
            }
        };
        match result {
            Ok((stream, peer)) => {
                self.took_one();
                Accepted::Connection(stream, peer)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.ready = false;
                self.ask_again();
                Accepted::Nothing
            }
            Err(error) if crate::os::is_exhausted(&error) => {
                self.pause(now);
                if self.complained.is_none_or(|at| now >= at + COMPLAINT_INTERVAL) {
                    self.complained = Some(now);
                    log::warn!(
                        event_type = "accept_exhausted";
                        "cannot accept: {error}"
                    );
                }
                Accepted::Exhausted
            }
            // ECONNABORTED, EPROTO and the network errors that accept(2) passes on concern the one
            // connection; EINTR nothing at all.
            Err(_) => {
                self.ask_again();
                Accepted::Gone
            }
        }
    }
}

/// How long a listener rests when descriptors run out, unless one is freed before.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// How often that is logged at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::slots::Token;
    use super::super::turn::Reactor;
    use super::*;

    struct Pair {
        listener: Listener,
        address: std::net::SocketAddr,
        _reactor: Reactor,
    }

    impl Pair {
        fn new() -> Pair {
            let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
            socket.set_nonblocking(true).expect("it can be set");
            let address = socket.local_addr().expect("it is bound");
            let reactor = Reactor::new().expect("epoll");
            let registrar = reactor.registrar().expect("a descriptor");
            let key = Key::new(0, Token::from_bits(0));
            let listener = Listener::tcp(socket, Origin::Alone, &registrar, key);
            Pair { listener: listener.expect("it is watched"), address, _reactor: reactor }
        }

        /// Connections that are in the accept queue when this returns: loopback has no latency.
        fn connect(&self, count: usize) -> Vec<std::net::TcpStream> {
            let connect = |_| std::net::TcpStream::connect(self.address).expect("a connection");
            (0..count).map(connect).collect()
        }

        fn accepts(&mut self) -> bool {
            matches!(self.listener.accept(super::super::turn::clock()), Accepted::Connection(..))
        }

        fn is_ready(&self) -> bool {
            self.listener.is_ready(super::super::turn::clock())
        }
    }

    #[test]
    fn the_last_that_waited_is_known_for_the_last() {
        let mut pair = Pair::new();
        let _clients = pair.connect(3);
        for left in [2, 1, 0] {
            assert!(pair.accepts());
            assert_eq!(pair.is_ready(), left > 0, "{left} are left");
        }
        pair.listener.announce();
        assert!(pair.is_ready() && !pair.accepts() && !pair.is_ready());
    }

    #[test]
    fn whoever_comes_after_the_question_is_left_to_its_announcement() {
        let mut pair = Pair::new();
        let _first = pair.connect(2);
        assert!(pair.accepts());
        let _second = pair.connect(1);
        assert!(pair.accepts());
        assert!(!pair.is_ready(), "its event is on the way");
        pair.listener.announce();
        assert!(pair.accepts() && !pair.is_ready());
    }

    #[test]
    fn an_announcement_in_the_middle_makes_it_ask_again() {
        let mut pair = Pair::new();
        let _first = pair.connect(2);
        assert!(pair.accepts());
        let _second = pair.connect(2);
        pair.listener.announce();
        assert!(pair.accepts() && pair.accepts() && pair.is_ready());
        assert!(pair.accepts() && !pair.is_ready());
    }

    #[test]
    fn a_kernel_that_never_counts_is_not_believed() {
        let mut pair = Pair::new();
        pair.listener.note(Some(0));
        assert_eq!(pair.listener.waiting, Waiting::Unknown, "it goes on to accept");
        pair.listener.note(Some(2));
        assert_eq!(pair.listener.waiting, Waiting::Known(2));
        pair.listener.note(Some(0));
        assert_eq!(pair.listener.waiting, Waiting::Known(0));
        pair.listener.note(None);
        assert_eq!(pair.listener.waiting, Waiting::Untold);
    }

    #[test]
    fn on_the_way_out_nobody_is_left_to_an_announcement() {
        let mut pair = Pair::new();
        let _first = pair.connect(1);
        assert_eq!(pair.listener.retire(), Farewell::EmptyQueue);
        assert!(pair.accepts());
        let _second = pair.connect(1);
        assert!(pair.is_ready() && pair.accepts());
        assert!(pair.is_ready() && !pair.accepts() && !pair.is_ready());
    }

    #[test]
    fn an_empty_queue_is_told_from_one_that_is_not_without_an_accept() {
        let mut pair = Pair::new();
        let Inner::Tcp(tcp) = &pair.listener.inner else { unreachable!("it is made from TCP") };
        assert_eq!(crate::os::queued(tcp), Some(0));
        let _clients = pair.connect(5);
        let Inner::Tcp(tcp) = &pair.listener.inner else { unreachable!("it is made from TCP") };
        assert_eq!(crate::os::queued(tcp), Some(5));
        assert!(pair.accepts());
        let Inner::Tcp(tcp) = &pair.listener.inner else { unreachable!("it is made from TCP") };
        assert_eq!(crate::os::queued(tcp), Some(4));
    }
}

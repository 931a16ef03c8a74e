//! The loop. One turn is:
//!
//! 1. say how long the thread may sleep: not at all while work is left, else until the next
//!    deadline;
//! 2. announce the sleep, look once more for wakes and mail that came meanwhile;
//! 3. wait for readiness;
//! 4. take `now`: the turn's only reading of the clock that anything may act upon;
//! 5. hand the readiness to the host;
//! 6. end the sleeps and expire the deadlines that are due at `now`;
//! 7. hand over mail and wakes from other threads, then wakes from this one;
//! 8. let the host work through its run queue, within its budget; whom that wakes on other threads
//!    is woken at its end;
//! 9. let the host close the turn (flush its counters, check its books).
//!
//! Steps 5 to 7 only mark things as runnable; step 8 alone runs them. So nothing is freed under
//! an event of the same batch, and what happened first in a batch decides nothing.
//!
//! Facts of mio and epoll this relies on: registration is edge-triggered, and what is there already
//! is announced when it is done; timeouts are whole milliseconds rounded up; `EINTR` is returned to
//! the caller; closing the last descriptor of a socket removes its registration, but events of the
//! batch at hand may still name it, hence the generation in every token.

use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::mailbox::{Remote, remote};
use super::slots::Token;
use super::socket::Readiness;
use super::task::{self, Local};
use crate::wakes;

/// Whom an event concerns: a space (one per table of the host) and a token within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of `token` in `space`.
    pub fn new(space: u8, token: Token) -> Key {
        Key(u64::from(space) << SPACE_SHIFT | token.to_bits())
    }

    /// The space it was made with.
    pub fn space(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// The token it was made with.
    pub fn token(self) -> Token {
        Token::from_bits(self.0)
    }

    fn to_mio(self) -> mio::Token {
        mio::Token(usize::try_from(self.0).expect("ebbtide is built for 64-bit systems only"))
    }

    fn from_mio(token: mio::Token) -> Key {
        Key(token.0 as u64)
    }
}

/// What lives on a reactor. Called in the order of the turn's steps.
pub trait Host {
    /// Whether work is left that must not wait for an event.
    fn is_busy(&self) -> bool;
    /// The next instant at which [`expire`](Host::expire) has something to do.
    fn deadline(&self) -> Option<Instant>;
    /// Step 5: readiness came for `key`. The key may be stale.
    fn ready(&mut self, key: Key, readiness: Readiness);
    /// Step 6: deadlines up to `now` are due.
    fn expire(&mut self, now: Instant);
    /// Step 7: whether mail waits.
    fn has_mail(&self) -> bool;
    /// Step 7: take the mail.
    fn take_mail(&mut self, now: Instant);
    /// Step 7: the task behind `key` was woken. The key may be stale.
    fn woken(&mut self, key: Key);
    /// Step 8: run what is runnable, within the budget of a turn.
    fn work(&mut self, now: Instant);
    /// Step 9. `worked` is the time since step 4.
    fn finish(&mut self, now: Instant, worked: Duration);
}

/// One epoll instance and what belongs to it. Made on any thread, run on one.
#[derive(Debug)]
pub struct Reactor {
    poll: mio::Poll,
    events: mio::Events,
    remote: Arc<Remote>,
    /// As those of its tasks.
    sample: Waker,
    /// `now` of the current turn.
    now: Instant,
}

impl Reactor {
    /// Opens an epoll instance and its eventfd.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)` and `eventfd(2)`: descriptors or memory are exhausted.
    pub fn new() -> io::Result<Reactor> {
        let poll = mio::Poll::new()?;
        let remote = remote(poll.registry(), REMOTE)?;
        Ok(Reactor {
            poll,
            events: mio::Events::with_capacity(EVENTS_PER_TURN),
            sample: task::waker(Key::from_mio(REMOTE), Arc::clone(&remote)),
            remote,
            now: clock(),
        })
    }

    /// How other threads reach this reactor.
    pub fn remote(&self) -> &Arc<Remote> {
        &self.remote
    }

    /// The clock as of the current turn.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// See [`Registrar::watch`].
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn watch(&self, source: &mut dyn mio::event::Source, key: Key) -> io::Result<()> {
        register(self.poll.registry(), source, key)
    }

    /// A handle that can add sources while the reactor itself is borrowed by its turn.
    ///
    /// # Errors
    /// Those of `dup(2)`: no descriptor is left for the handle.
    pub fn registrar(&self) -> io::Result<Registrar> {
        Ok(Registrar(self.poll.registry().try_clone()?))
    }

    /// Makes this reactor the current one of the calling thread until the guard is dropped.
    pub fn enter(&self, blocking: super::blocking::Pool) -> task::Entered {
        task::enter(Local::new(Arc::clone(&self.remote), self.now, blocking))
    }

    /// Takes one turn. The thread must have [`enter`](Reactor::enter)ed.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)` other than `EINTR`, which ends the wait early and is no error.
    pub fn turn(&mut self, host: &mut impl Host) -> io::Result<()> {
        // 1
        let deadline = earliest(host.deadline(), task::next_sleep());
        let mut timeout = if host.is_busy() || task::has_woken() {
            Some(Duration::ZERO)
        } else {
            // The turn's `now` is old by the work done since; reading late can only shorten a wait.
            deadline.map(|at| at.saturating_duration_since(clock()))
        };
        // 2
        if timeout != Some(Duration::ZERO) {
            self.remote.bell().doze();
            if self.remote.has_woken() || host.has_mail() {
                timeout = Some(Duration::ZERO);
            }
        }
        // 3
        let polled = self.poll.poll(&mut self.events, timeout);
        self.remote.bell().awake();
        // 4
        self.now = clock();
        task::set_now(self.now);
        match polled {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            Err(error) => return Err(error),
        }
        // 5
        for event in &self.events {
            if event.token() != REMOTE {
                host.ready(Key::from_mio(event.token()), Readiness::of(event));
            }
        }
        // 6
        task::end_sleeps(self.now);
        host.expire(self.now);
        // 7
        host.take_mail(self.now);
        while let Some(key) = self.remote.take_woken() {
            host.woken(key);
        }
        task::drain_woken(|key| host.woken(key));
        // 8
        wakes::hold(&self.sample, || host.work(self.now));
        // 9
        host.finish(self.now, clock().saturating_duration_since(self.now));
        Ok(())
    }
}

/// Adds sources to a reactor. Cheap to keep, one descriptor.
#[derive(Debug)]
pub struct Registrar(mio::Registry);

impl Registrar {
    /// Has it announced when `source` can be read, edge-triggered, until it is closed.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn watch(&self, source: &mut dyn mio::event::Source, key: Key) -> io::Result<()> {
        register(&self.0, source, key)
    }

    /// Has it announced as well when `source` can be written to. It is watched under `key`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn watch_room(&self, source: &mut dyn mio::event::Source, key: Key) -> io::Result<()> {
        let interest = mio::Interest::READABLE | mio::Interest::WRITABLE;
        mio::event::Source::reregister(source, &self.0, key.to_mio(), interest)
    }
}

/// Not for writing: a new socket has room, and to be told so would cost each connection a turn.
fn register(
    registry: &mio::Registry,
    source: &mut dyn mio::event::Source,
    key: Key,
) -> io::Result<()> {
    mio::event::Source::register(source, registry, key.to_mio(), mio::Interest::READABLE)
}

/// The earlier of two optional instants.
pub fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The one place in which threads that run a reactor read the clock.
pub(crate) fn clock() -> Instant {
    #[allow(clippy::disallowed_methods, reason = "the single reading place; see the essay above")]
    Instant::now()
}

/// Events fetched by one `epoll_wait`. More that are ready come with the next turn.
const EVENTS_PER_TURN: usize = 1024;

/// Bits of a key below its space.
const SPACE_SHIFT: u32 = 56;

/// The space of the reactor's own eventfd; hosts use the spaces below.
const REMOTE: mio::Token = mio::Token(usize::MAX);

//! A worker's connection with what its endpoint knows of it.

use std::io;
use std::time::Instant;

use crate::http::connection::Connection;
use crate::ledger::ConnectionState;
use crate::reactor::listener::Acceptor;
use crate::reactor::slots::Token;
use crate::reactor::socket::{Peer, Stream, Transport};
use crate::reactor::timer::{Tick, Wheel};
use crate::reactor::turn::Key;

/// See the module's essay.
pub(super) struct Slot<S: Transport + 'static> {
    pub connection: Connection<S>,
    pub peer: Peer,
    /// When it is to run at the latest, [`NEVER`] if it need not. Otherwise the wheel has an entry
    /// for then or earlier.
    pub deadline: Tick,
    /// The state under which the ledger has it.
    pub booked: ConnectionState,
    standing: Standing,
}

/// Whether it is in the run queue, and what of its readiness is announced: bits of one byte.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Standing(u8);

impl Standing {
    /// It is in the run queue. Otherwise it runs when something calls for it.
    const QUEUED: Standing = Standing(1);
    /// What comes from the client is announced. One that is looked into at once is not watched
    /// before that: if it is answered and closed then, it need not be watched at all.
    const WATCHED: Standing = Standing(2);
    /// Room in the send buffer is announced, which was full once.
    const ROOM_WATCHED: Standing = Standing(4);

    fn has(self, bit: Standing) -> bool {
        self.0 & bit.0 != 0
    }

    fn set(&mut self, bit: Standing) {
        self.0 |= bit.0;
    }

    fn clear(&mut self, bit: Standing) {
        self.0 &= !bit.0;
    }
}

impl<S: Transport + 'static> Slot<S> {
    /// A connection that has not been run yet.
    pub fn new(connection: Connection<S>, peer: Peer) -> Slot<S> {
        Slot {
            connection,
            peer,
            deadline: NEVER,
            booked: ConnectionState::New,
            standing: Standing(0),
        }
    }

    /// Puts it into the run queue, unless it is there.
    pub fn enqueue(&mut self, runnable: &mut Vec<Token>, token: Token) {
        if !self.standing.has(Standing::QUEUED) {
            self.standing.set(Standing::QUEUED);
            runnable.push(token);
        }
    }

    /// It is not in the run queue any more.
    pub fn dequeued(&mut self) {
        self.standing.clear(Standing::QUEUED);
    }

    /// Has `wheel` tell of `token` by `at`. `last` is what was asked of it last: most of a turn's
    /// deadlines are the same.
    pub fn wait(
        &mut self,
        token: Token,
        at: Option<Instant>,
        wheel: &mut Wheel,
        last: &mut (Instant, Tick),
    ) {
        let deadline = match at {
            None => NEVER,
            Some(at) if at == last.0 => last.1,
            Some(at) => {
                *last = (at, wheel.tick_of(at));
                last.1
            }
        };
        // One that moves away is filed again when the wheel tells of the earlier one.
        if deadline < std::mem::replace(&mut self.deadline, deadline) {
            wheel.file_by(token.index(), deadline);
        }
    }

    /// Whether nothing of its readiness is announced yet.
    pub fn is_unwatched(&self) -> bool {
        !self.standing.has(Standing::WATCHED)
    }

    /// Whether less of its readiness is announced than it needs.
    pub fn lacks_watch(&self) -> bool {
        self.is_unwatched()
            || (self.connection.is_full() && !self.standing.has(Standing::ROOM_WATCHED))
    }

    /// Has what it needs of its readiness announced under `key`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`.
    pub fn watch_by<L>(&mut self, registrar: &L::Registrar, key: Key) -> io::Result<()>
    where
        L: Acceptor<Stream = S>,
    {
        if self.is_unwatched() {
            self.standing.set(Standing::WATCHED);
            self.connection.watch_by(|stream| L::watch(registrar, stream, key))?;
        }
        if self.lacks_watch() {
            self.standing.set(Standing::ROOM_WATCHED);
            self.connection.watch_by(|stream| L::watch_room(registrar, stream, key))?;
        }
        Ok(())
    }
}

/// Whether a request's buffers are there in this state.
pub(super) fn is_hot(state: ConnectionState) -> bool {
    matches!(state, ConnectionState::Handling | ConnectionState::Streaming | ConnectionState::Idle)
}

/// No deadline. 13 years ahead as a tick: nothing else lies there.
pub(super) const NEVER: Tick = Tick(u32::MAX);

/// Paid for by every idle connection, next to 8 bytes of its slot and 12 of the wheel. Debug builds
/// of mio keep more per socket.
const _: () = assert!(cfg!(debug_assertions) || size_of::<Slot<Stream>>() <= 56);

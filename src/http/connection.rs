//! One connection's life.
//!
//! ```text
//! accept ─► cold (new)─complete head─► hot (handling ⇄ streaming ⇄ idle)─close─► lingering ─► gone
//!             ▲  │ part of a head: reading_head              │
//!             │  └──408, 414, 431, 400──► lingering          │
//!             └── cold (hibernating) ◄──a moment idle────────┘
//! ```
//!
//! *Cold* is a socket and perhaps some bytes. *Hot* is hyper with its buffers. A connection is run
//! by the worker when its socket became ready, its task was woken or a deadline is due; a run does
//! all that can be done and says until when to wait. It never blocks, and it moves at most
//! `TURN_BYTES_MAX` (`limits.rs`) bytes.
//!
//! TLS, HTTP/2 and upgraded connections will be further variants of `Life`.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::buffers::{Input, Loan, Next, Output};
use super::date::wall_clock;
use super::hold::{self, Hold, Why};
use super::hot::{Hot, Ran};
use super::limits::Limits;
use super::linger::{Linger, Lingering, Manner};
use super::reject;
use super::site::{Mode, Site, Stamp};
use crate::ledger::{ConnectionOutcome, ConnectionState, RejectedCode};
use crate::reactor::mailbox::Remote;
use crate::reactor::socket::{Peer, Readiness, Socket, Transport};
use crate::reactor::turn::Key;

/// A client's connection.
pub struct Connection<T: Transport + 'static> {
    life: Life<T>,
}

/// What a connection consists of.
enum Life<T: Transport + 'static> {
    Cold(Cold<T>),
    Hot(Box<Hot<T>>),
    Lingering(Box<Linger<T>>),
    /// Only while one of the others is being turned into another, and after the end.
    Gone,
}

/// A socket without hyper.
struct Cold<T> {
    socket: Socket<T>,
    /// Some of a head, never empty. Boxed: most cold connections have none.
    #[allow(clippy::box_collection, reason = "one word instead of three in each idle connection")]
    partial: Option<Box<Vec<u8>>>,
    /// Since when it is in this state: accepted, first byte of the head, or idle.
    since: Stamp,
    served: Served,
}

/// Whether a connection has answered a request yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Served {
    Nothing,
    Something,
}

/// What every run of a connection gets to work with.
#[derive(Debug)]
pub struct Means<'a> {
    /// What all connections of the listener share.
    pub site: &'a Rc<Site>,
    /// The worker's buffers, for the time of the run.
    pub loan: &'a mut Loan,
    /// How other threads wake the worker.
    pub remote: &'a Arc<Remote>,
    /// The connection's own key.
    pub key: Key,
    /// Who is at its other end.
    pub peer: Peer,
}

/// What a run ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Run it again by then, when its socket is ready or when its task is woken.
    Wait(Option<Instant>),
    /// Run it again in the next turn: its budget for this one is used up.
    Again,
    /// It has ended. Drop it.
    Closed(ConnectionOutcome),
}

impl<T: Transport> Connection<T> {
    /// A connection that was just accepted.
    pub fn accepted(transport: T, site: &Site) -> Connection<T> {
        let cold = Cold {
            socket: Socket::new(transport),
            partial: None,
            since: site.stamp(),
            served: Served::Nothing,
        };
        Connection { life: Life::Cold(cold) }
    }

    /// Whether it waits for room in its socket's send buffer.
    pub fn is_full(&self) -> bool {
        match &self.life {
            Life::Cold(_) | Life::Gone => false,
            Life::Hot(hot) => hot.is_full(),
            Life::Lingering(linger) => linger.is_full(),
        }
    }

    /// When it has to run at the latest, if nothing comes and it is not at work. `index` is its
    /// slot's.
    pub fn idle_until(&self, site: &Site, index: u32) -> Option<Instant> {
        match &self.life {
            Life::Cold(cold) => Some(cold.deadline(site, cold.partial.is_some(), index % SHARES)),
            Life::Hot(_) | Life::Lingering(_) | Life::Gone => None,
        }
    }

    /// Has `watch` see to it that its readiness is announced.
    ///
    /// # Errors
    /// Those of `watch`.
    pub fn watch_by(&mut self, watch: impl FnOnce(&mut T) -> io::Result<()>) -> io::Result<()> {
        match &mut self.life {
            Life::Cold(cold) => watch(cold.socket.transport_mut()),
            Life::Hot(hot) => hot.watch_by(watch),
            Life::Lingering(linger) => watch(linger.socket_mut().transport_mut()),
            Life::Gone => Ok(()),
        }
    }

    /// Turns away a connection over the limit: 503, then the usual lingering close.
    pub fn shed(&mut self, site: &Site) {
        if let Life::Cold(cold) = std::mem::replace(&mut self.life, Life::Gone) {
            let output = Output::holding(reject::shed(wall_clock()));
            self.linger(cold.socket, output, Manner::Sending, ConnectionOutcome::Shed, site);
        }
    }

    /// Notes what an event announced.
    pub fn announce(&mut self, readiness: Readiness) {
        match &mut self.life {
            Life::Cold(cold) => cold.socket.announce(readiness),
            Life::Hot(hot) => hot.announce(readiness),
            Life::Lingering(linger) => linger.socket_mut().announce(readiness),
            Life::Gone => {}
        }
    }

    /// Makes the next run look into the kernel's buffer, announced or not.
    pub fn recheck(&mut self) {
        match &mut self.life {
            Life::Cold(cold) => cold.socket.recheck(),
            Life::Hot(hot) => hot.recheck(),
            Life::Lingering(_) | Life::Gone => {}
        }
    }

    /// Answers a request that has no response head yet 503, at the next run.
    pub fn refuse(&mut self) {
        if let Life::Hot(hot) = &mut self.life {
            hot.refuse();
        }
    }

    /// What it is doing, as the ledger and the metrics name it.
    pub fn state(&self) -> ConnectionState {
        match &self.life {
            Life::Cold(Cold { partial: Some(_), .. }) => ConnectionState::ReadingHead,
            Life::Cold(Cold { served: Served::Nothing, .. }) => ConnectionState::New,
            Life::Cold(_) => ConnectionState::Hibernating,
            Life::Hot(hot) => hot.state(),
            Life::Lingering(_) | Life::Gone => ConnectionState::Lingering,
        }
    }

    /// Since when it is in its [`state`](Connection::state).
    pub fn since(&self, site: &Site) -> Instant {
        match &self.life {
            Life::Cold(cold) => site.at(cold.since),
            Life::Hot(hot) => hot.since(),
            Life::Lingering(linger) => linger.since(),
            Life::Gone => site.now.get(),
        }
    }

    /// What it is doing and what it waits for. `index` is its slot's.
    pub fn hold(&self, site: &Site, index: u32) -> Hold {
        let (why, request) = match &self.life {
            Life::Cold(cold) => (cold.why(site, index % SHARES), None),
            Life::Hot(hot) => hot.hold(),
            Life::Lingering(linger) => linger.hold(),
            Life::Gone => (Why::waits_for(hold::CLIENT_TO_CLOSE), None),
        };
        Hold { state: self.state(), since: self.since(site), why, request }
    }

    /// Does what can be done now.
    pub fn run(&mut self, means: &mut Means<'_>) -> Step {
        // A deadline that has passed changes the state, which has another deadline; each change
        // goes forward in the life of the connection or ends the run, so this ends.
        loop {
            let step = match &mut self.life {
                Life::Cold(_) => self.run_cold(means),
                Life::Hot(_) => self.run_hot(means),
                Life::Lingering(linger) => match linger.run(means.site, means.loan) {
                    Lingering::Until(at) => return Step::Wait(Some(at)),
                    Lingering::Again => return Step::Again,
                    Lingering::Closed(outcome) => return Step::Closed(outcome),
                },
                Life::Gone => unreachable!("a connection that has ended was run"),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Ends it at once: the shutdown's deadline has come.
    pub fn cut(&mut self) -> ConnectionOutcome {
        match std::mem::replace(&mut self.life, Life::Gone) {
            Life::Cold(cold) if cold.partial.is_some() => ConnectionOutcome::Cut,
            Life::Cold(_) => ConnectionOutcome::ClosedIdle,
            Life::Hot(hot) => hot.cut(),
            Life::Lingering(mut linger) => linger.cut(),
            Life::Gone => ConnectionOutcome::Cut,
        }
    }

    /// A run of a cold connection; `None` when it is something else now.
    fn run_cold(&mut self, means: &mut Means<'_>) -> Option<Step> {
        let Life::Cold(mut cold) = std::mem::replace(&mut self.life, Life::Gone) else {
            return None;
        };
        if cold.socket.is_broken() {
            return Some(Step::Closed(ConnectionOutcome::Reset));
        }
        let site = means.site;
        let mut input = match cold.partial.take() {
            Some(bytes) => Input::owning(*bytes),
            None => Input::default(),
        };
        let had_bytes = !input.is_empty();
        let share = means.key.token().index() % SHARES;
        #[cfg(test)]
        let looks_again = !site.has_fault(super::site::Fault::NoLastLook);
        #[cfg(not(test))]
        let looks_again = true;
        if looks_again && site.now.get() >= cold.deadline(site, had_bytes, share) {
            // Its time is up, but what the client sent in it may not have been announced yet.
            cold.socket.recheck();
        }
        input.attach(means.loan);
        let glimpse = input.glimpse_head(&mut cold.socket, &site.limits.head());
        let Some(next) = glimpse.transpose() else {
            // The input stays attached: the hot connection goes on reading from it.
            let hot = Hot::new(cold.socket, input, cold.served, means);
            self.life = Life::Hot(Box::new(hot));
            return self.run_hot(means);
        };
        input.detach(means.loan);
        match next {
            Ok(Next::Nothing | Next::Partial) => {
                if !input.is_empty() {
                    cold.partial = Some(Box::new(input.into_bytes()));
                    if !had_bytes {
                        cold.since = site.stamp();
                    }
                }
                self.wait_cold(cold, site, share)
            }
            Ok(Next::End) => Some(Step::Closed(ConnectionOutcome::ClientClosed)),
            Ok(Next::Rejected(code)) => {
                self.reject(cold.socket, code, ConnectionOutcome::Rejected, site);
                None
            }
            Ok(Next::Complete(_)) => unreachable!("a glimpse tells of none"),
            Err(_) => Some(Step::Closed(ConnectionOutcome::Reset)),
        }
    }

    /// Waits, unless the time is up.
    fn wait_cold(&mut self, cold: Cold<T>, site: &Site, share: u32) -> Option<Step> {
        let deadline = cold.deadline(site, cold.partial.is_some(), share);
        if site.now.get() < deadline {
            self.life = Life::Cold(cold);
            return Some(Step::Wait(Some(deadline)));
        }
        match (&cold.partial, cold.served, site.mode.get()) {
            (Some(_), _, _) | (None, Served::Nothing, Mode::Serving | Mode::Announcing) => {
                let code = RejectedCode::RequestTimeout;
                self.reject(cold.socket, code, ConnectionOutcome::TimedOut, site);
            }
            (None, _, _) => {
                let outcome = ConnectionOutcome::ClosedIdle;
                self.linger(cold.socket, Output::default(), Manner::Silent, outcome, site);
            }
        }
        None
    }

    /// A run of a hot connection; `None` when it is something else now.
    fn run_hot(&mut self, means: &mut Means<'_>) -> Option<Step> {
        let Life::Hot(hot) = &mut self.life else { return None };
        let ran = hot.run(means);
        let site = means.site;
        match ran {
            Ran::Wait(at) => return Some(Step::Wait(at)),
            Ran::Again => return Some(Step::Again),
            Ran::Closed(_) | Ran::Linger(..) | Ran::Reject(..) | Ran::Hibernate => {}
        }
        let Life::Hot(hot) = std::mem::replace(&mut self.life, Life::Gone) else { return None };
        match ran {
            Ran::Closed(outcome) => {
                hot.discard();
                return Some(Step::Closed(outcome));
            }
            Ran::Hibernate => {
                let (since, partial, socket) = hot.hibernate();
                let partial = (!partial.is_empty()).then(|| Box::new(partial));
                let since = site.stamp_of(since);
                let cold = Cold { socket, partial, since, served: Served::Something };
                // Run once more: what hyper had read of a head has not been looked at by us. But in
                // the next turn: a client that always has a next request would never let this one
                // end.
                self.life = Life::Cold(cold);
                return Some(Step::Again);
            }
            Ran::Linger(manner, outcome) => {
                let linger = hot.into_linger(manner, outcome, None, site.now.get());
                self.life = Life::Lingering(Box::new(linger));
            }
            Ran::Reject(code, outcome) => {
                site.ledger.rejected(code);
                let extra = reject::rejection(code, wall_clock());
                let linger =
                    hot.into_linger(Manner::Sending, outcome, Some(&extra), site.now.get());
                self.life = Life::Lingering(Box::new(linger));
            }
            Ran::Wait(_) | Ran::Again => unreachable!("handled above"),
        }
        None
    }

    fn reject(
        &mut self,
        socket: Socket<T>,
        code: RejectedCode,
        outcome: ConnectionOutcome,
        site: &Site,
    ) {
        site.ledger.rejected(code);
        let output = Output::holding(reject::rejection(code, wall_clock()));
        self.linger(socket, output, Manner::Sending, outcome, site);
    }

    fn linger(
        &mut self,
        socket: Socket<T>,
        output: Output,
        manner: Manner,
        outcome: ConnectionOutcome,
        site: &Site,
    ) {
        let linger = Linger::new(socket, output, manner, outcome, site.now.get());
        self.life = Life::Lingering(Box::new(linger));
    }
}

impl<T: Transport> fmt::Debug for Connection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut connection = f.debug_struct("Connection");
        connection.field("state", &self.state()).finish_non_exhaustive()
    }
}

impl<T> Cold<T> {
    fn why(&self, site: &Site, share: u32) -> Why {
        let ends = self.deadline(site, self.partial.is_some(), share);
        let is_draining = matches!(site.mode.get(), Mode::Draining { .. });
        match (&self.partial, self.served) {
            (Some(_), _) => Why::until(hold::INCOMPLETE_HEAD, "408", ends),
            (None, Served::Nothing) => {
                let end = if is_draining { "grace ends" } else { "408" };
                Why::until(hold::FIRST_REQUEST, end, ends)
            }
            (None, Served::Something) => {
                let end = if is_draining { "idle window ends" } else { "keep-alive ends" };
                Why::until(hold::NEXT_REQUEST, end, ends)
            }
        }
    }

    /// Until when it may stay as it is, with or without some bytes of a head. `share` tells
    /// connections of a crowd apart, below [`SHARES`].
    fn deadline(&self, site: &Site, has_bytes: bool, share: u32) -> Instant {
        let since = site.at(self.since);
        let limits: &Limits = &site.limits;
        if has_bytes {
            let head = since + limits.head_timeout;
            return if site.mode.get().is_cancelling() { site.now.get() } else { head };
        }
        let ordinary = match self.served {
            Served::Nothing => since + limits.first_byte_timeout,
            Served::Something => since + limits.keep_alive_timeout,
        };
        match (site.mode.get(), self.served) {
            (Mode::Serving | Mode::Announcing, _) => ordinary,
            (Mode::Draining { since: draining, grace }, Served::Nothing) => {
                ordinary.min(since.max(draining) + grace.first_byte)
            }
            (Mode::Draining { since: draining, grace }, Served::Something) => {
                ordinary.min(since.max(draining) + grace.idle + grace.spread * share / SHARES)
            }
            (Mode::Cancelling | Mode::Refusing, _) => site.now.get(),
        }
    }
}

/// Into how many parts the closing of idle connections is spread.
const SHARES: u32 = 64;

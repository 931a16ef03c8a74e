//! Closing without losing the response.
//!
//! `close(2)` on a socket with unread input makes the kernel send RST, and an RST makes the peer's
//! kernel drop what its application has not read yet: the end of our response (RFC 9112, 9.6). So a
//! connection is closed in steps: the output is written, FIN is sent, and what the client still
//! sends is read and thrown away until it closes, too.
//!
//! While bytes are unacknowledged the write-stall limit rules; a client that takes nothing is
//! reset, for a plain close would leave the kernel with the send queue. Once all is acknowledged,
//! the client has a moment to close in. One that was not done sending its request has that moment
//! from its last byte on, for a longer but limited time; what others still send gains them nothing.
//! A client that asked for the close itself and has everything is not waited for. One that did so
//! with its only request is not even asked, while the server runs: see [`Delivery`].
//!
//! [`Delivery`]: super::site::Delivery

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::buffers::{Loan, Output};
use super::flow::Flow;
use super::hold::{self, Why};
use super::limits::{LINGER_MAX, LINGER_SILENCE_MAX, Limits, TURN_BYTES_MAX};
use super::site::Site;
use super::watch::RequestInfo;
use crate::ledger::{ConnectionOutcome, RequestOutcome};
use crate::reactor::socket::{Received, Socket, Transport};

/// A connection on its way out.
pub struct Linger<T> {
    socket: Socket<T>,
    output: Output,
    /// How much of all output the kernel has accepted; counts on from the wire's.
    flushed: u64,
    /// `Some` while responses are not answered yet.
    flow: Option<Rc<Flow>>,
    outcome: ConnectionOutcome,
    manner: Manner,
    /// Since when it is on its way out.
    since: Instant,
    /// When FIN was sent; `None` while output is left.
    finished: Option<Instant>,
    /// When the client last took something, or sent what it was in the middle of.
    progress: Instant,
    /// As of the last look.
    unacknowledged: usize,
}

/// What is known of the client's side when its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It owes nothing and was silent: no need to wait for its FIN, only for it to have ours.
    Silent,
    /// It was answered, with all of its request read. What it still sends comes too late.
    Answered,
    /// As `Answered`, and it had asked for the close: it sends nothing any more (RFC 9112, 9.6).
    Asked,
    /// It may be in the middle of sending what nobody wants.
    Sending,
}

/// What is to be done with a lingering connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lingering {
    /// Look again by then, or when the socket is ready.
    Until(Instant),
    /// The turn's budget is used up.
    Again,
    /// Drop it.
    Closed(ConnectionOutcome),
}

impl<T: Transport> Linger<T> {
    pub fn new(
        socket: Socket<T>,
        output: Output,
        manner: Manner,
        outcome: ConnectionOutcome,
        now: Instant,
    ) -> Linger<T> {
        Linger {
            socket,
            output,
            flushed: 0,
            flow: None,
            outcome,
            manner,
            since: now,
            finished: None,
            progress: now,
            unacknowledged: 0,
        }
    }

    /// Responses of `flow` end within the output, which begins at `flushed`.
    pub fn owing(mut self, flow: Rc<Flow>, flushed: u64) -> Linger<T> {
        self.flushed = flushed;
        self.flow = (!flow.is_settled()).then_some(flow);
        if let Some(flow) = &self.flow {
            flow.client_waits();
        }
        self
    }

    /// Since when it is on its way out.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// What it waits for, and with which request.
    pub fn hold(&self) -> (Why, Option<RequestInfo>) {
        // A silent client has nothing of a response to acknowledge, only the FIN.
        let is_taken = self.unacknowledged == 0 || self.manner == Manner::Silent;
        let what = if self.output.is_empty() && is_taken {
            hold::CLIENT_TO_CLOSE
        } else {
            hold::CLIENT_TO_TAKE
        };
        let request = self.flow.as_ref().and_then(|flow| flow.at_hand());
        (Why::waits_for(what), request)
    }

    pub fn is_full(&self) -> bool {
        self.socket.is_full()
    }

    pub fn socket_mut(&mut self) -> &mut Socket<T> {
        &mut self.socket
    }

    /// Does what can be done now.
    pub fn run(&mut self, site: &Site, loan: &mut Loan) -> Lingering {
        let now = site.now.get();
        match self.step(now, site, loan) {
            Ok(Some(step)) => step,
            Ok(None) => self.wait(now, &site.limits),
            Err(_) => self.give_up(RequestOutcome::Abandoned, self.outcome),
        }
    }

    /// Ends it at once, as the shutdown's deadline does.
    pub fn cut(&mut self) -> ConnectionOutcome {
        self.socket.transport().reset_on_close();
        // With everything acknowledged nothing was lost but the waiting.
        let is_clean =
            self.output.is_empty() && self.socket.transport().unacknowledged() == Some(0);
        let outcome = if is_clean { self.outcome } else { ConnectionOutcome::Cut };
        self.give_up(RequestOutcome::Cut, outcome);
        outcome
    }

    fn step(
        &mut self,
        now: Instant,
        site: &Site,
        loan: &mut Loan,
    ) -> io::Result<Option<Lingering>> {
        let written = self.output.flush(&mut self.socket)?;
        if written > 0 {
            self.flushed += written as u64;
            self.progress = now;
            self.settle();
        }
        if self.output.is_empty() && self.finished.is_none() {
            if self.manner == Manner::Asked && has_all(&self.socket) {
                return Ok(Some(Lingering::Closed(self.outcome)));
            }
            self.socket.transport().shutdown_write()?;
            self.finished = Some(now);
            self.progress = now;
        }
        let mut budget = TURN_BYTES_MAX;
        loop {
            match self.socket.receive(loan.scratch())? {
                Received::Bytes(count) => {
                    if self.finished.is_some() && self.manner != Manner::Sending {
                        site.ledger.late_bytes(count);
                    }
                    if self.output.is_empty() && self.manner == Manner::Sending {
                        self.progress = now;
                    }
                    budget = budget.saturating_sub(count);
                    if budget == 0 {
                        return Ok(Some(Lingering::Again));
                    }
                }
                Received::End if self.finished.is_some() => {
                    if self.socket.transport().unacknowledged() != Some(0) {
                        site.ledger.left_to_kernel();
                    }
                    return Ok(Some(Lingering::Closed(self.outcome)));
                }
                // At the end: the client half-closed and still takes its response.
                Received::Nothing | Received::End => return Ok(None),
            }
        }
    }

    /// How long to wait, or how to end the wait.
    fn wait(&mut self, now: Instant, limits: &Limits) -> Lingering {
        let unacknowledged = self.socket.transport().unacknowledged().unwrap_or(0);
        if unacknowledged < self.unacknowledged {
            self.progress = now;
        }
        self.unacknowledged = unacknowledged;
        let is_taken = self.output.is_empty() && unacknowledged == 0;
        if !is_taken {
            let stalled = self.progress + limits.write_stall_timeout;
            if now >= stalled {
                self.socket.transport().reset_on_close();
                return self.give_up(RequestOutcome::Cut, ConnectionOutcome::TimedOut);
            }
            return Lingering::Until(stalled.min(now + ACKNOWLEDGED_CHECK));
        }
        if self.manner == Manner::Silent {
            return Lingering::Closed(self.outcome);
        }
        let patience = self.progress + LINGER_SILENCE_MAX;
        let until = self.finished.map_or(patience, |at| patience.min(at + LINGER_MAX));
        if now >= until { Lingering::Closed(self.outcome) } else { Lingering::Until(until) }
    }

    fn settle(&mut self) {
        if let Some(flow) = &self.flow {
            flow.settle(self.flushed);
            if flow.is_settled() {
                self.flow = None;
            }
        }
    }

    fn give_up(&mut self, request: RequestOutcome, outcome: ConnectionOutcome) -> Lingering {
        if let Some(flow) = self.flow.take() {
            flow.end(request, hold::CLIENT_TO_TAKE);
        }
        Lingering::Closed(outcome)
    }
}

/// Whether the client's kernel has all that was sent and nothing of the client is unread.
pub(super) fn has_all<T: Transport>(socket: &Socket<T>) -> bool {
    !socket.is_readable() && socket.transport().unacknowledged() == Some(0)
}

/// How often unacknowledged bytes are looked at: the kernel announces nothing when they are gone.
const ACKNOWLEDGED_CHECK: Duration = Duration::from_millis(100);

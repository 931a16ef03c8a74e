//! How a connection that hyper works on ends, or is taken from hyper.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use http::StatusCode;

use super::buffers::Output;
use super::connection::Served;
use super::failure::{FailureCause, tell_failure};
use super::frame::Frame;
use super::hold;
use super::hot::{Hot, Ran};
use super::linger::{self, Linger, Manner};
use super::service::drop_quietly;
use super::short::Closes;
use super::site::{Delivery, Mode, Site};
use super::wire::Wire;
use crate::ledger::{ConnectionOutcome, RejectedCode, RequestOutcome};
use crate::reactor::socket::{Socket, Transport};
use crate::said::chain;

impl<T: Transport> Hot<T> {
    /// Whether the connection may be closed with its response, and the delivery left to the kernel:
    /// the client asked for the close with its only request, so nothing else is on its way to it
    /// and what the kernel gets to keep is small.
    pub(super) fn is_the_kernels(&self, site: &Site) -> bool {
        let wire = self.wire.borrow();
        self.flow.asks_to_close.get() == Closes::Yes
            && self.served == Served::Nothing
            && self.flow.serial.get() == 1
            && !self.flow.gate_rejected.get()
            && !self.flow.is_close_delimited.get()
            && self.flow.frame.get() != Frame::Anything
            && site.delivery.get() == Delivery::Kernels
            && site.mode.get() == Mode::Serving
            && self.expects_head()
            && wire.input.is_empty()
            && wire.flushed() == 0
            && wire.output.bytes().len() <= KERNELS_BYTES_MAX
            && !wire.socket.is_readable()
            && wire.socket.transport().is_listed()
    }

    /// The last response is written, as far as the protocol goes.
    pub(super) fn ended(&self, delivery: Delivery) -> Ran {
        if delivery == Delivery::Kernels && self.is_left() {
            self.flow.site().ledger.left_to_kernel();
            return Ran::Closed(self.outcome());
        }
        let asked = self.flow.asks_to_close.get() == Closes::Yes;
        let is_last = asked && self.wire.borrow().input.is_empty();
        let manner = match self.expects_head() {
            false => Manner::Sending,
            true if is_last && self.has_all() => return Ran::Closed(self.outcome()),
            true if is_last => Manner::Asked,
            true => Manner::Answered,
        };
        Ran::Linger(manner, self.outcome())
    }

    /// How a connection ends that is done with: by its client, if that has finished sending
    /// and no response announced the close.
    fn outcome(&self) -> ConnectionOutcome {
        let flow = &self.flow;
        let is_clients = self.wire.borrow().socket.is_read_closed()
            && flow.persists.get()
            && !flow.close_announced.get()
            && !flow.has_unwanted_body();
        if is_clients { ConnectionOutcome::ClientClosed } else { flow.close_outcome() }
    }

    /// Whether the client's kernel has all that there was to send, and nothing of it is unread:
    /// then there is nothing to linger for.
    fn has_all(&self) -> bool {
        let wire = self.wire.borrow();
        wire.output.is_empty() && self.flow.is_settled() && linger::has_all(&wire.socket)
    }

    /// Sends FIN, if the kernel has all that comes before it: whether it has.
    fn is_left(&self) -> bool {
        let wire = self.wire.borrow();
        wire.output.is_empty()
            && self.flow.is_settled()
            && wire.socket.transport().shutdown_write().is_ok()
    }

    /// hyper gave up: bad bytes, a failed body, a dead socket.
    pub(super) fn failed(&mut self, site: &Site, error: &hyper::Error) -> Ran {
        if error.is_parse_version_h2() {
            // The one parse error that hyper leaves to its user to answer.
            return Ran::Reject(RejectedCode::BadRequest, ConnectionOutcome::Rejected);
        }
        if error.is_parse() {
            let code = if error.is_parse_too_large() {
                RejectedCode::FieldsTooLarge
            } else {
                RejectedCode::BadRequest
            };
            site.ledger.rejected(code);
            // hyper has written the response itself.
            return Ran::Linger(Manner::Sending, ConnectionOutcome::Rejected);
        }
        if self.flow.is_idle() {
            return Ran::Linger(Manner::Sending, ConnectionOutcome::ClosedAfterResponse);
        }
        if error.is_user() {
            let (method, path) = self.flow.target();
            let what = chain(error);
            log::error!(
                event_type = "response_failed",
                method = method.as_str(),
                path = path.as_str();
                "a response body failed: {what}"
            );
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            tell_failure(&self.flow, status, FailureCause::Body(&what));
            if self.flow.is_close_delimited.get() {
                return self.lost(ConnectionOutcome::Cut, RequestOutcome::Cut);
            }
            // No RST: responses before this one may still be on their way, and one that announced
            // its length or came in chunks shows by itself that its end is missing.
            self.flow.break_off(RequestOutcome::Cut, hold::RESPONSE_BODY);
            return Ran::Linger(Manner::Sending, ConnectionOutcome::Cut);
        }
        self.lost(ConnectionOutcome::Reset, RequestOutcome::Abandoned)
    }

    /// Ends the connection at once, with RST when something was left to send.
    pub(super) fn lost(&mut self, outcome: ConnectionOutcome, request: RequestOutcome) -> Ran {
        if request == RequestOutcome::Cut {
            self.wire.borrow().socket.transport().reset_on_close();
        }
        self.flow.end(request, self.waits_for());
        Ran::Closed(outcome)
    }

    /// Drops everything. The exchanges have been ended.
    pub fn discard(self: Box<Self>) {
        let flow = Rc::clone(&self.flow);
        flow.take_down();
        drop_quietly(&flow, (self, flow.prepared.take()));
    }

    /// The shutdown's deadline has come.
    pub fn cut(mut self: Box<Self>) -> ConnectionOutcome {
        let outcome = if self.flow.is_settled() && self.head_since.is_none() {
            ConnectionOutcome::ClosedIdle
        } else {
            ConnectionOutcome::Cut
        };
        self.lost(outcome, RequestOutcome::Cut);
        self.discard();
        outcome
    }

    /// Takes hyper down and gives the socket back, with what had been read of a next head and since
    /// when the connection is in the state it then has.
    pub fn hibernate(self) -> (Instant, Vec<u8>, Socket<T>) {
        debug_assert!(self.flow.is_settled(), "a connection hibernates with nothing at hand");
        let since = self.head_since.unwrap_or(self.idle_since);
        let Hot { ways, wire, flow, .. } = self;
        // What hyper read comes before what we read after it.
        let mut bytes = ways.into_read();
        drop(flow);
        let wire = unshare(wire);
        bytes.extend_from_slice(wire.input.bytes());
        (since, bytes, wire.socket)
    }

    /// Turns into a closing connection, with `extra` behind its output.
    pub fn into_linger(
        self,
        manner: Manner,
        outcome: ConnectionOutcome,
        extra: Option<&[u8]>,
        now: Instant,
    ) -> Linger<T> {
        let Hot { ways, wire, flow, .. } = self;
        flow.take_down();
        drop_quietly(&flow, (ways, flow.prepared.take()));
        let wire = unshare(wire);
        let flushed = wire.flushed();
        let (socket, mut bytes) = (wire.socket, wire.output.bytes().to_vec());
        if let Some(extra) = extra {
            bytes.extend_from_slice(extra);
        }
        let linger = Linger::new(socket, Output::holding(bytes), manner, outcome, now);
        linger.owing(flow, flushed)
    }
}

/// What the kernel gets to keep for a client that takes nothing: for a minute or two, beside all
/// that is counted of connections.
const KERNELS_BYTES_MAX: usize = 16 * 1024;

/// Takes the wire back from hyper, which has been dropped.
fn unshare<T>(wire: Rc<RefCell<Wire<T>>>) -> Wire<T> {
    let Ok(wire) = Rc::try_unwrap(wire) else {
        unreachable!("only hyper's io shares the wire, and it is gone")
    };
    wire.into_inner()
}

//! Through whom a hot connection's requests go: hyper, or the [short way](super::short) past it.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use hyper::server::conn::http1;

use super::flow::Flow;
use super::frame::{BodyOwner, Frame};
use super::message::Request;
use super::service::{CallFuture, Gate, answer, begin_short, drop_quietly};
use super::short::{self, Closes};
use super::site::Mode;
use super::wire::{Io, Pieces, Wire};
use crate::reactor::mailbox::Remote;
use crate::reactor::socket::Transport;
use crate::reactor::task;
use crate::reactor::turn::Key;

/// Both ways. One request at a time is on either.
pub(super) struct Ways<T: Transport + 'static> {
    /// Made for the first request that needs it, and large.
    hyper: Option<Box<http1::Connection<Io<T>, Gate>>>,
    /// What it was or will be made with.
    pieces: Pieces,
    /// A request that took the short way and has not reached the application.
    taken: Option<Request>,
    /// The call for the one that has.
    call: Option<CallFuture>,
}

/// What wakes a connection. Most have their requests answered on the spot, and need no waker.
pub(super) struct Alarm<'a> {
    /// Made once for a connection.
    pub made: &'a mut Option<Waker>,
    pub key: Key,
    pub remote: &'a Arc<Remote>,
}

impl Alarm<'_> {
    fn waker(&mut self) -> &Waker {
        self.made.get_or_insert_with(|| task::waker(self.key, Arc::clone(self.remote)))
    }
}

/// How far a request got on the short way.
enum Got {
    /// All there was to do is done.
    Far,
    /// The connection closes after the response that was written last.
    End,
    /// Hyper is to go on.
    Hyper,
}

impl<T: Transport> Ways<T> {
    pub fn new() -> Ways<T> {
        Ways { hyper: None, pieces: Pieces::Copied, taken: None, call: None }
    }

    /// Goes on with the request at hand, or with the head that hyper is to get, and with what has
    /// come behind. Ready when the connection closes.
    pub fn poll(
        &mut self,
        wire: &Rc<RefCell<Wire<T>>>,
        flow: &Rc<Flow>,
        alarm: &mut Alarm<'_>,
    ) -> Poll<hyper::Result<()>> {
        if self.taken.is_some() || self.call.is_some() {
            match self.go(wire, flow, alarm) {
                Got::Far => return Poll::Pending,
                Got::End => return Poll::Ready(Ok(())),
                Got::Hyper => {}
            }
        }
        Pin::new(self.hyper(wire, flow)).poll(&mut Context::from_waker(alarm.waker()))
    }

    /// Takes the request that begins what was read, if it is ordinary. For idle connections; the
    /// next poll goes on with it.
    pub fn take(&mut self, wire: &RefCell<Wire<T>>, flow: &Rc<Flow>) -> bool {
        // A shutdown has rules of its own for what is announced when: they are those of hyper's
        // way.
        if flow.site().mode.get() != Mode::Serving {
            return false;
        }
        // Somebody has kept the last request's body: hyper does not go on before that has ended.
        if flow.body.get() == BodyOwner::Application {
            return false;
        }
        let mut wire = wire.borrow_mut();
        let Some(short) = short::read(wire.input.bytes(), flow.site()) else { return false };
        let (request, size) = (begin_short(flow, &short), short.size());
        wire.pass(size, flow);
        self.taken = Some(request);
        true
    }

    /// Goes on with the request on the short way, and with those behind it that take it as well.
    fn go(&mut self, wire: &RefCell<Wire<T>>, flow: &Rc<Flow>, alarm: &mut Alarm<'_>) -> Got {
        for number in 1..=REQUESTS_MAX {
            if let Some(request) = self.taken.take() {
                self.call = Some(answer(flow, request));
            }
            let Some(call) = &mut self.call else { return Got::Far };
            let waker = if call.is_answered() { Waker::noop() } else { alarm.waker() };
            let answer = call.poll_response(&mut Context::from_waker(waker));
            let Poll::Ready(response) = answer else { return Got::Far };
            self.call = None;
            if !wire.borrow_mut().write_short(&response, flow) {
                flow.prepared.set(Some(response));
                flow.frame.set(Frame::StandIn);
                return Got::Hyper;
            }
            flow.over();
            flow.mark(wire.borrow().written());
            drop_quietly(flow, response);
            if flow.asks_to_close.get() == Closes::Yes {
                return Got::End;
            }
            // None is taken that is not called in this turn: its client may be gone in the next.
            if number == REQUESTS_MAX || wire.borrow().is_spent() {
                let mut wire = wire.borrow_mut();
                wire.yielded = !wire.input.is_empty();
                break;
            }
            // What is not taken is looked at with other eyes.
            if !self.take(wire, flow) {
                break;
            }
        }
        Got::Far
    }

    fn hyper(
        &mut self,
        wire: &Rc<RefCell<Wire<T>>>,
        flow: &Rc<Flow>,
    ) -> &mut http1::Connection<Io<T>, Gate> {
        let pieces = self.pieces;
        self.hyper.get_or_insert_with(|| {
            let io = Io { wire: Rc::clone(wire), flow: Rc::clone(flow), pieces };
            Box::new(flow.site().builder.serve_connection(io, Gate::new(Rc::clone(flow))))
        })
    }

    /// Has hyper write as suits the responses so far. With a head at hand that it has not seen, it
    /// holds nothing of a request or a response: it may be made anew.
    pub fn suit_responses(&mut self, flow: &Flow) {
        if flow.sends_large.get() && self.pieces == Pieces::Copied {
            self.pieces = Pieces::Queued;
            self.hyper = None;
        }
    }

    /// Takes hyper down and gives what it had read of a next head.
    pub fn into_read(self) -> Vec<u8> {
        debug_assert!(self.call.is_none(), "a connection hibernates with nothing at hand");
        self.hyper.map(|hyper| hyper.into_parts().read_buf.to_vec()).unwrap_or_default()
    }

    /// hyper's own shutdown, which loses requests.
    #[cfg(test)]
    pub fn shut_down_by_hyper(&mut self, wire: &Rc<RefCell<Wire<T>>>, flow: &Rc<Flow>) {
        if self.call.is_none() {
            Pin::new(self.hyper(wire, flow)).graceful_shutdown();
        }
    }
}

/// Requests of one connection that are answered in one go, as many as hyper's.
const REQUESTS_MAX: usize = 16;

//! What happens to the requests of one connection: the state that hyper's service side, its IO side
//! and the connection share.
//!
//! hyper works on one request at a time, so there is at most one *current* exchange. When its body
//! is done it is *finished*: hyper may still hold its last bytes, then we do. Once hyper has
//! flushed into our buffer, the exchange is *marked* with the position of its end; once the kernel
//! has accepted that position, it is answered.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};

use super::exchange::{Exchange, Exchanges};
use super::frame::{Ahead, BodyOwner, Frame, HYPER_READ_BYTES};
use super::hold;
use super::limits::{BODY_RATE_AFTER, DIRECT_BYTES_MIN};
use super::message::{Media, RequestSlot, Response, Route};
use super::short::Closes;
use super::site::{AccessLog, HalfClose, Site};
use super::spare::{self, Places};
use super::verdict::Verdict;
use super::watch::{EndedRequest, RequestInfo};
use crate::ledger::{ConnectionOutcome, ConnectionState, RequestOutcome};
use crate::reactor::cancel::CancellationToken;
use crate::reactor::socket::Peer;
use crate::reactor::turn::clock;

/// The requests of one hot connection.
pub struct Flow {
    site: Rc<Site>,
    peer: Peer,
    /// What hyper may be given next.
    pub(super) frame: Cell<Frame>,
    /// What was there behind the last bytes that hyper was given.
    pub(super) ahead: Cell<Ahead>,
    /// Whether the request at hand, or the last one, has a chunked body.
    pub(super) chunked: Cell<bool>,
    /// Counts the requests.
    pub(super) serial: Cell<u64>,
    /// Who has the request's body.
    pub(super) body: Cell<BodyOwner>,
    /// Whether the last response head announced the close: no head is read after it.
    pub(super) close_announced: Cell<bool>,
    /// Whether the client of the request at hand knows no response that tells its own end
    /// (HTTP/1.0).
    pub(super) is_close_delimited: Cell<bool>,
    /// Whether the handler of the request at hand panicked.
    pub(super) has_panicked: Cell<bool>,
    /// What the handler of the request at hand waits for, when that is known.
    pub(super) awaited: Cell<Option<&'static str>>,
    /// Whether the gate turned the last head down.
    pub(super) gate_rejected: Cell<bool>,
    stage: Cell<Stage>,
    /// How the request at hand is to be answered instead of by its handler.
    verdict: Cell<Option<Verdict>>,
    incoming: Cell<Incoming>,
    /// The connection is being taken down: what is dropped now has not completed.
    ended: Cell<bool>,
    /// What is over for the handler and not yet accepted by the kernel, and the request at hand:
    /// there is one unless the stage is `Idle`.
    exchanges: RefCell<Exchanges>,
    /// Where the next request is put; `None` while a handler has one.
    pub(super) request_slot: Cell<Option<Box<RequestSlot>>>,
    /// Of the request at hand; `Some` once somebody has asked for it, `None` again at its end.
    token: RefCell<Option<CancellationToken>>,
    /// Whether the client has finished sending, which may mean that it is gone.
    pub(super) client_finished: Cell<bool>,
    /// Whether the client asked, with the request at hand, for the connection to be closed.
    pub(super) asks_to_close: Cell<Closes>,
    /// Whether the connection stays open after the request at hand, for all that its head says.
    pub(super) persists: Cell<bool>,
    /// Whether the head of the request at hand has a field with an id.
    pub(super) brings_id: Cell<bool>,
    /// Whether a piece of a response was so large that hyper had better not copied it.
    pub(super) sends_large: Cell<bool>,
    /// What the head that is written next is to say besides.
    pub(super) splice: Cell<Splice>,
    /// A response that is complete and hyper is to write.
    pub(super) prepared: Cell<Option<Response>>,
}

/// Lines of a response's head that do not pass through hyper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Splice {
    /// Whether to tell how long the connection may be idle.
    pub advertises: bool,
    pub(super) media: Media,
}

/// How far the request at hand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none.
    Idle,
    /// No response head yet.
    Handling,
    /// The response's head is decided, its body is not done.
    Streaming,
}

/// The request body, as far as its deadlines are concerned.
#[derive(Clone, Copy, Debug)]
struct Incoming {
    /// When the handler began to wait for bytes; `None` while it does not wait.
    awaited_since: Option<Instant>,
    /// When the handler first waited.
    started: Option<Instant>,
    received: u64,
    /// When the last bytes were read, or the body ended: the request time limit counts from there.
    touched: Option<Instant>,
}

const NO_BODY: Incoming =
    Incoming { awaited_since: None, started: None, received: 0, touched: None };

impl Flow {
    pub fn new(site: Rc<Site>, peer: Peer) -> Rc<Flow> {
        let Places { request, exchanges } = spare::take_places();
        Rc::new(Flow {
            site,
            peer,
            frame: Cell::new(Frame::Head),
            ahead: Cell::new(Ahead::default()),
            chunked: Cell::new(false),
            serial: Cell::new(0),
            body: Cell::new(BodyOwner::Nobody),
            close_announced: Cell::new(false),
            is_close_delimited: Cell::new(false),
            has_panicked: Cell::new(false),
            awaited: Cell::new(None),
            gate_rejected: Cell::new(false),
            stage: Cell::new(Stage::Idle),
            verdict: Cell::new(None),
            incoming: Cell::new(NO_BODY),
            ended: Cell::new(false),
            exchanges: RefCell::new(exchanges),
            request_slot: Cell::new(request),
            token: RefCell::new(None),
            client_finished: Cell::new(false),
            persists: Cell::new(false),
            asks_to_close: Cell::new(Closes::No),
            brings_id: Cell::new(false),
            sends_large: Cell::new(false),
            splice: Cell::default(),
            prepared: Cell::new(None),
        })
    }

    pub fn site(&self) -> &Site {
        &self.site
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Whether no request is at hand (finished ones may still be on their way out).
    pub fn is_idle(&self) -> bool {
        self.stage.get() == Stage::Idle
    }

    /// Whether hyper holds nothing of the responses that are done.
    pub fn is_written(&self) -> bool {
        self.exchanges.borrow().is_marked()
    }

    /// Whether nothing at all is left to send.
    pub fn is_settled(&self) -> bool {
        self.exchanges.borrow().is_empty()
    }

    /// The state's name, for a connection that hyper works on.
    pub fn state(&self) -> ConnectionState {
        match self.stage.get() {
            Stage::Idle if self.exchanges.borrow().is_empty() => ConnectionState::Idle,
            Stage::Handling => ConnectionState::Handling,
            Stage::Idle | Stage::Streaming => ConnectionState::Streaming,
        }
    }

    // A request's way. A call of `begin` is followed by one of `responded`, unless the connection
    // comes to its end, and by one of `over`, unless the body fails.

    /// A request came: it is at hand from now on.
    pub(super) fn begin(&self, method: &Method, path: &str, id: Option<&str>) {
        self.site.ledger.begun();
        self.serial.set(self.serial.get() + 1);
        self.stage.set(Stage::Handling);
        self.verdict.set(None);
        self.incoming.set(NO_BODY);
        self.has_panicked.set(false);
        self.awaited.set(None);
        drop(self.token.take());
        let mut exchanges = self.exchanges.borrow_mut();
        let exchange = exchanges.begin(method.clone(), self.site.now.get());
        exchange.path.push_str(path);
        match id {
            Some(id) => exchange.id = Some(Rc::from(id)),
            None if self.site.access_log == AccessLog::On => {
                exchange.id = Some(Rc::from(self.site.ids.next()));
            }
            None => {}
        }
    }

    /// The response's head is decided. Returns the id that it should carry, if there is one by
    /// now.
    pub(super) fn responded(&self, status: StatusCode) -> Option<Rc<str>> {
        self.stage.set(Stage::Streaming);
        let mut exchanges = self.exchanges.borrow_mut();
        let exchange = exchanges.at_hand_mut()?;
        exchange.status = status.as_u16();
        exchange.responded = Some(self.site.now.get());
        exchange.refused = self.verdict.get().is_some_and(Verdict::is_refusal)
            || (status.is_server_error() && self.site.shutdown.is_cancelled());
        if self.verdict.get().is_none() {
            exchange.handler_waited_for = self.awaited.get().unwrap_or(hold::HANDLER);
        }
        exchange.id.clone()
    }

    /// Bytes of the response's body were handed out.
    pub(super) fn sent(&self, bytes: usize) {
        if bytes >= DIRECT_BYTES_MIN {
            self.sends_large.set(true);
        }
        if let Some(exchange) = self.exchanges.borrow_mut().at_hand_mut() {
            exchange.bytes += bytes as u64;
        }
    }

    /// hyper has done with the request at hand. What it drops while it goes on working was not to
    /// be sent any further; what is dropped with the connection leaves its exchange unfinished.
    pub(super) fn over(&self) {
        if self.ended.get() {
            return;
        }
        if self.exchanges.borrow_mut().finish() {
            self.stage.set(Stage::Idle);
            // It has its answer: what becomes of connection and server is no news for its token.
            if let Some(token) = self.token.take() {
                token.detach();
            }
        }
    }

    /// The request at hand goes to a handler of `route`.
    pub(super) fn set_route(&self, route: &Rc<Route>) {
        if let Some(exchange) = self.exchanges.borrow_mut().at_hand_mut() {
            let Exchange { method, path, begun, .. } = exchange;
            self.site.watch.call(*begun, method, path, self.peer, &route.template);
            exchange.route = Some(Rc::clone(route));
        }
    }

    /// The id of the request at hand, made when there is none yet.
    pub(super) fn request_id(&self) -> Rc<str> {
        let mut exchanges = self.exchanges.borrow_mut();
        let fresh = || Rc::from(self.site.ids.next());
        match exchanges.at_hand_mut() {
            Some(exchange) => Rc::clone(exchange.id.get_or_insert_with(fresh)),
            None => fresh(),
        }
    }

    /// Method and path of the request at hand.
    pub(super) fn target(&self) -> (String, String) {
        match self.exchanges.borrow().at_hand() {
            Some(exchange) => (exchange.method.to_string(), exchange.path.clone()),
            None => (String::new(), String::new()),
        }
    }

    /// The route of the request at hand, if one was found.
    pub(super) fn route(&self) -> Option<Rc<Route>> {
        self.exchanges.borrow().at_hand()?.route.clone()
    }

    /// The id that the response should carry, if there is one by now.
    pub(super) fn known_id(&self) -> Option<Rc<str>> {
        self.exchanges.borrow().at_hand()?.id.clone()
    }

    /// Fires when nobody waits for the request at hand any more.
    pub(super) fn token(&self) -> CancellationToken {
        let token =
            self.token.borrow_mut().get_or_insert_with(|| self.site.shutdown.child()).clone();
        self.notify();
        token
    }

    /// Fires the token of the request at hand if it is time.
    pub(super) fn notify(&self) {
        let token = self.token.borrow();
        let Some(token) = token.as_ref() else { return };
        let is_gone = self.client_finished.get() && self.site.half_close == HalfClose::Cancel;
        if is_gone {
            token.cancel();
        }
    }

    /// Decides the request at hand over its handler's head, unless its response has begun.
    pub(super) fn judge(&self, verdict: Verdict) {
        if self.stage.get() == Stage::Handling && self.verdict.get().is_none() {
            self.verdict.set(Some(verdict));
            if let Some(exchange) = self.exchanges.borrow_mut().at_hand_mut() {
                exchange.handler_waited_for = self.handler_waits_for();
            }
        }
    }

    pub(super) fn verdict(&self) -> Option<Verdict> {
        self.verdict.get()
    }

    /// Whether a next request may be in hand already. Announcing the close would lose it.
    pub(super) fn has_surplus(&self) -> bool {
        #[cfg(test)]
        if self.site.has_fault(super::site::Fault::NoSurplusRule) {
            return false;
        }
        let ahead = self.ahead.get();
        match self.frame.get() {
            Frame::Chunked | Frame::Anything => true,
            Frame::Body(rest) if rest > 0 => {
                ahead.held > rest || (ahead.held == rest && ahead.readable)
            }
            Frame::Body(_)
            | Frame::Head
            | Frame::HeadRest(_)
            | Frame::HeadDone
            | Frame::StandIn => ahead.held > 0 || ahead.readable,
        }
    }

    /// Whether the connection cannot go on because nobody will read the request's body to its end,
    /// or because that end is not known. hyper closes after a chunked body that was not read, and
    /// after
    /// any of which one more read does not bring the rest; it decides so when the response's head
    /// is gone, so it has to be announced here.
    pub(super) fn has_unwanted_body(&self) -> bool {
        let is_dropped = self.body.get() == BodyOwner::Dropped;
        match self.frame.get() {
            Frame::Anything => true,
            Frame::Body(rest) => is_dropped && rest > self.ahead.get().held.min(HYPER_READ_BYTES),
            Frame::Chunked
            | Frame::Head
            | Frame::HeadRest(_)
            | Frame::HeadDone
            | Frame::StandIn => is_dropped && self.chunked.get(),
        }
    }

    /// How a connection ends that closes after its last response.
    pub(super) fn close_outcome(&self) -> ConnectionOutcome {
        if self.gate_rejected.get() {
            ConnectionOutcome::Rejected
        } else {
            ConnectionOutcome::ClosedAfterResponse
        }
    }

    /// Whether a request waits for its response head.
    pub fn is_handling(&self) -> bool {
        self.stage.get() == Stage::Handling
    }

    /// The request at hand goes to wait: other threads may want to know.
    pub(super) fn waits(&self, what: &'static str) {
        if let Some(exchange) = self.exchanges.borrow_mut().at_hand_mut() {
            exchange.waits(what, &self.site.watch, self.peer);
        }
    }

    /// The responses that are done wait for their client.
    pub(super) fn client_waits(&self) {
        for exchange in self.exchanges.borrow_mut().finished_mut() {
            exchange.waits(hold::CLIENT_TO_TAKE, &self.site.watch, self.peer);
        }
    }

    /// What the request at hand waits for, unless its client takes nothing.
    pub(super) fn waits_for(&self) -> &'static str {
        match self.stage.get() {
            _ if self.incoming.get().awaited_since.is_some() => hold::REQUEST_BODY,
            Stage::Handling => self.handler_waits_for(),
            Stage::Streaming => hold::RESPONSE_BODY,
            Stage::Idle => hold::CLIENT_TO_TAKE,
        }
    }

    fn handler_waits_for(&self) -> &'static str {
        let awaits_body = self.incoming.get().awaited_since.map(|_| hold::REQUEST_BODY);
        awaits_body.or(self.awaited.get()).unwrap_or(hold::HANDLER)
    }

    /// The request at hand, or the oldest one whose response is not all taken.
    pub(super) fn at_hand(&self) -> Option<RequestInfo> {
        self.look_at_hand(|exchange| exchange.info(self.peer))
    }

    /// Since when that one is what the state calls it.
    pub(super) fn since(&self) -> Option<Instant> {
        self.look_at_hand(Exchange::since)
    }

    fn look_at_hand<R>(&self, look: impl FnOnce(&Exchange) -> R) -> Option<R> {
        let exchanges = self.exchanges.borrow();
        exchanges.at_hand().or(exchanges.oldest()).map(look)
    }

    // The request body's deadlines.

    pub(super) fn body_awaited(&self) {
        let mut incoming = self.incoming.get();
        if incoming.awaited_since.is_none() {
            let now = self.site.now.get();
            incoming.awaited_since = Some(now);
            incoming.started.get_or_insert(now);
            self.incoming.set(incoming);
        }
    }

    pub(super) fn body_received(&self, bytes: u64) {
        let mut incoming = self.incoming.get();
        incoming.awaited_since = None;
        incoming.received += bytes;
        incoming.touched = Some(self.site.now.get());
        self.incoming.set(incoming);
    }

    pub(super) fn body_finished(&self) {
        let mut incoming = self.incoming.get();
        if incoming.awaited_since.take().is_some() {
            incoming.touched = Some(self.site.now.get());
        }
        self.incoming.set(incoming);
    }

    /// When the request at hand runs out of time, and what happens then. `None` for a response that
    /// has begun, unless its handler still waits for the request's body.
    pub fn deadline(&self) -> Option<(Instant, Verdict)> {
        if self.is_idle() {
            return None;
        }
        let exchanges = self.exchanges.borrow();
        let exchange = exchanges.at_hand()?;
        let limits = &self.site.limits;
        let incoming = self.incoming.get();
        if let Some(since) = incoming.awaited_since {
            let stalled = since + limits.body_stall_timeout;
            let slow = incoming.started.map(|started| {
                // The instant by which the bytes so far are too few, at the earliest.
                let paid = match limits.body_rate_min {
                    0 => Duration::from_secs(86_400 * 365),
                    rate => Duration::from_millis(incoming.received.saturating_mul(1000) / rate),
                };
                started + paid.max(BODY_RATE_AFTER)
            });
            return Some((slow.map_or(stalled, |slow| slow.min(stalled)), Verdict::BodyStalled));
        }
        if self.stage.get() == Stage::Streaming {
            return None;
        }
        let from = incoming.touched.unwrap_or(exchange.begun);
        Some((from + limits.request_timeout, Verdict::TooSlow))
    }

    // From finished to answered.

    /// hyper has written all it had: what is finished ends at `position` of the output.
    pub(super) fn mark(&self, position: u64) {
        self.exchanges.borrow_mut().mark(position);
    }

    /// The kernel has accepted the output up to `position`: what ends there is answered.
    pub(super) fn settle(&self, position: u64) {
        let mut exchanges = self.exchanges.borrow_mut();
        while let Some(exchange) = exchanges.settled(position) {
            let (outcome, waited_for) = if exchange.refused {
                (RequestOutcome::Refused, exchange.handler_waited_for)
            } else {
                (RequestOutcome::Answered, exchange.waited_for)
            };
            self.close_exchange(exchange, outcome, waited_for);
            exchanges.forget_settled();
        }
    }

    /// The connection ends now: whatever is not settled ends as `outcome`. The request at hand
    /// waited for `what`.
    pub(super) fn end(&self, outcome: RequestOutcome, what: &'static str) {
        self.ended.set(true);
        self.stage.set(Stage::Idle);
        let (rest, is_at_hand) = self.exchanges.borrow_mut().take();
        let last = rest.len();
        for (index, exchange) in rest.iter().enumerate() {
            let waited_for =
                if is_at_hand && index + 1 == last { what } else { hold::CLIENT_TO_TAKE };
            self.close_exchange(exchange, outcome, waited_for);
        }
        if let Some(token) = self.token.take() {
            token.cancel();
        }
    }

    /// The request at hand ends as `outcome`; it waited for `what`. The responses before it go
    /// their way.
    pub(super) fn break_off(&self, outcome: RequestOutcome, what: &'static str) {
        self.stage.set(Stage::Idle);
        if let Some(token) = self.token.take() {
            token.cancel();
        }
        let exchange = self.exchanges.borrow_mut().take_at_hand();
        if let Some(exchange) = exchange {
            self.close_exchange(&exchange, outcome, what);
        }
    }

    /// Marks the connection as being taken down without ending its exchanges yet.
    pub(super) fn take_down(&self) {
        self.ended.set(true);
    }

    fn close_exchange(
        &self,
        exchange: &Exchange,
        outcome: RequestOutcome,
        waited_for: &'static str,
    ) {
        let site = &*self.site;
        let now = site.now.get();
        site.ledger.finished(outcome);
        if let Some(key) = exchange.watched {
            site.watch.ended(key);
            if site.mode.get().announces()
                && matches!(outcome, RequestOutcome::Answered | RequestOutcome::Abandoned)
            {
                let info = exchange.info(self.peer);
                site.watch.slow(EndedRequest { info, outcome, waited_for, at: now });
            }
        }
        match outcome {
            RequestOutcome::Answered | RequestOutcome::Refused => {
                site.note_answered(&exchange.method, exchange.status, exchange.begun);
            }
            RequestOutcome::Cut | RequestOutcome::Abandoned => {}
        }
        if matches!(outcome, RequestOutcome::Refused | RequestOutcome::Cut) {
            let info = exchange.info(self.peer);
            site.watch.lost(EndedRequest { info, outcome, waited_for, at: now });
        }
        if site.access_log == AccessLog::On {
            // The line wants the time that this request took, not the turn's beginning.
            let taken = clock().saturating_duration_since(exchange.begun);
            exchange.log(self.peer, outcome, taken);
        }
    }
}

/// Its places go to the next connection.
impl Drop for Flow {
    fn drop(&mut self) {
        let (request, exchanges) = (self.request_slot.take(), self.exchanges.take());
        spare::keep_places(Places { request, exchanges });
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut flow = f.debug_struct("Flow");
        flow.field("stage", &self.stage.get()).field("peer", &self.peer).finish_non_exhaustive()
    }
}

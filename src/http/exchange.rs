//! One request and its response, as [`Flow`](super::flow::Flow) keeps it from the call to the last
//! byte, and the row of those that a connection has.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::Method;

use super::hold;
use super::message::Route;
use super::watch::{RequestInfo, Watch, WatchKey, refill};
use crate::ledger::RequestOutcome;
use crate::reactor::socket::Peer;

/// One request and its response.
#[derive(Debug)]
pub struct Exchange {
    pub method: Method,
    pub path: String,
    pub begun: Instant,
    pub status: u16,
    pub bytes: u64,
    pub refused: bool,
    /// What its handler waited for when its response's head was decided.
    pub handler_waited_for: &'static str,
    /// Where its last byte lies in the connection's output, once hyper has written it.
    pub mark: Option<u64>,
    pub route: Option<Rc<Route>>,
    /// `Some` when the client sent one, someone asked for it, or it will be logged.
    pub id: Option<Rc<str>>,
    /// When its response's head was decided.
    pub responded: Option<Instant>,
    /// `Some` while it is listed for other threads.
    pub watched: Option<WatchKey>,
    /// What it waited for last.
    pub waited_for: &'static str,
}

impl Exchange {
    fn new(method: Method, now: Instant) -> Exchange {
        Exchange {
            method,
            path: String::new(),
            begun: now,
            status: 0,
            bytes: 0,
            refused: false,
            handler_waited_for: hold::HANDLER,
            mark: None,
            route: None,
            id: None,
            responded: None,
            watched: None,
            waited_for: hold::HANDLER,
        }
    }

    /// As new, but for the room that its path takes.
    fn reset(&mut self, method: Method, now: Instant) {
        self.method = method;
        self.path.clear();
        let Exchange { begun, status, bytes, refused, .. } = self;
        (*begun, *status, *bytes, *refused) = (now, 0, 0, false);
        let Exchange { mark, route, id, responded, watched, .. } = self;
        (*mark, *route, *id) = (None, None, None);
        (*responded, *watched) = (None, None);
        (self.handler_waited_for, self.waited_for) = (hold::HANDLER, hold::HANDLER);
    }

    /// Lists it for other threads, or says there what it waits for now.
    pub fn waits(&mut self, what: &'static str, watch: &Watch, peer: Peer) {
        match self.watched {
            None => {
                self.watched = Some(watch.waits(|info| self.tell(info, peer), what));
            }
            Some(key) if self.waited_for != what => watch.waits_for(key, what),
            Some(_) => {}
        }
        self.waited_for = what;
    }

    /// Since when it has a response head, or else since when it is there.
    pub fn since(&self) -> Instant {
        self.responded.unwrap_or(self.begun)
    }

    /// What is told of it.
    pub fn info(&self, peer: Peer) -> RequestInfo {
        let mut info = RequestInfo::default();
        self.tell(&mut info, peer);
        info
    }

    fn tell(&self, info: &mut RequestInfo, peer: Peer) {
        refill(&mut info.method, self.method.as_str());
        refill(&mut info.path, &self.path);
        info.peer = peer;
        refill(&mut info.route, self.route.as_ref().map_or("", |route| &route.template));
        info.begun = Some(self.begun);
    }

    /// Its line of the access log.
    pub fn log(&self, peer: Peer, outcome: RequestOutcome, taken: Duration) {
        log::info!(
            event_type = "request",
            method = self.method.as_str(),
            path = self.path.as_str(),
            status = self.status,
            bytes = self.bytes,
            duration_ms = (taken.as_secs_f64() * 1e6).round() / 1e3,
            peer:% = peer,
            route = self.route.as_ref().map_or("", |route| route.template.as_str()),
            request_id = self.id.as_deref().unwrap_or(""),
            outcome = outcome.name();
            "{} {} {}", self.method, self.path, self.status
        );
    }
}

/// A connection's exchanges, oldest first: finished ones, then perhaps the one at hand. Those that
/// are over keep their places for the next, so that a request costs no allocation and no move.
#[derive(Debug, Default)]
pub struct Exchanges {
    /// Of these `first..end` are alive.
    slots: Vec<Exchange>,
    first: usize,
    end: usize,
    /// How many of the finished ones have no mark: they are the last.
    unmarked: usize,
    /// Whether the last one alive is at hand.
    at_hand: bool,
}

impl Exchanges {
    /// Adds one, which is at hand from now on.
    pub fn begin(&mut self, method: Method, now: Instant) -> &mut Exchange {
        if self.first == self.end {
            (self.first, self.end) = (0, 0);
        } else if self.end == self.slots.len() && self.first > 0 {
            self.slots.rotate_left(self.first);
            (self.first, self.end) = (0, self.end - self.first);
        }
        match self.slots.get_mut(self.end) {
            Some(slot) => slot.reset(method, now),
            None => self.slots.push(Exchange::new(method, now)),
        }
        self.end += 1;
        self.at_hand = true;
        &mut self.slots[self.end - 1]
    }

    /// The one at hand.
    pub fn at_hand(&self) -> Option<&Exchange> {
        if self.at_hand { self.slots.get(self.end - 1) } else { None }
    }

    /// The one at hand.
    pub fn at_hand_mut(&mut self) -> Option<&mut Exchange> {
        if self.at_hand { self.slots.get_mut(self.end - 1) } else { None }
    }

    /// The one at hand is finished. Whether there was one.
    pub fn finish(&mut self) -> bool {
        let finished = std::mem::take(&mut self.at_hand);
        self.unmarked += usize::from(finished);
        finished
    }

    /// The finished ones.
    pub fn finished_mut(&mut self) -> &mut [Exchange] {
        &mut self.slots[self.first..self.end - usize::from(self.at_hand)]
    }

    /// The oldest.
    pub fn oldest(&self) -> Option<&Exchange> {
        if self.is_empty() { None } else { self.slots.get(self.first) }
    }

    /// Whether hyper holds nothing of the finished ones.
    pub fn is_marked(&self) -> bool {
        self.unmarked == 0
    }

    /// The finished ones without a mark end at `position` of the output.
    pub fn mark(&mut self, position: u64) {
        if self.unmarked > 0 {
            let end = self.end - usize::from(self.at_hand);
            let unmarked = end - std::mem::take(&mut self.unmarked)..end;
            for exchange in &mut self.slots[unmarked] {
                exchange.mark = Some(position);
            }
        }
    }

    /// The oldest finished one, if it is marked at `position` or before.
    pub fn settled(&mut self, position: u64) -> Option<&mut Exchange> {
        if self.first + usize::from(self.at_hand) >= self.end {
            return None;
        }
        let first = self.slots.get_mut(self.first)?;
        if first.mark.is_some_and(|mark| mark <= position) { Some(first) } else { None }
    }

    /// The oldest is over: a finished one that is marked.
    pub fn forget_settled(&mut self) {
        self.first += 1;
    }

    /// Takes all that are alive out, whatever they are, and tells whether the last is at hand.
    pub fn take(&mut self) -> (Vec<Exchange>, bool) {
        let Exchanges { mut slots, first, end, at_hand, .. } = std::mem::take(self);
        slots.truncate(end);
        slots.drain(..first);
        (slots, at_hand)
    }

    /// Takes the one at hand out. The finished ones stay.
    pub fn take_at_hand(&mut self) -> Option<Exchange> {
        if !std::mem::take(&mut self.at_hand) {
            return None;
        }
        self.end -= 1;
        Some(self.slots.swap_remove(self.end))
    }

    /// Lets go of what the place of one shares with others. Whether that is all there is: none is
    /// alive, and the place is the only one and its path takes no more than so many bytes.
    pub fn vacate(&mut self, bytes_max: usize) -> bool {
        let [place] = &mut *self.slots else { return false };
        (place.route, place.id) = (None, None);
        let is_small = place.path.capacity() <= bytes_max;
        is_small && self.is_empty()
    }

    /// Whether none is alive.
    pub fn is_empty(&self) -> bool {
        self.first == self.end
    }
}

//! One request and its response, as [`Flow`](super::flow::Flow) keeps it from the call to the last
//! byte.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::Method;

use super::hold;
use super::message::Route;
use super::watch::{RequestInfo, Watch, WatchKey};
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
    /// A request that was just begun.
    pub fn new(now: Instant) -> Exchange {
        Exchange {
            method: Method::GET,
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

    /// Lists it for other threads, or says there what it waits for now.
    pub fn waits(&mut self, what: &'static str, watch: &Watch, peer: Peer) {
        match self.watched {
            None => self.watched = Some(watch.waits(self.info(peer), what)),
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
        RequestInfo {
            method: self.method.to_string(),
            path: self.path.clone(),
            peer,
            route: self.route.as_ref().map(|route| route.template.clone()).unwrap_or_default(),
            begun: Some(self.begun),
        }
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

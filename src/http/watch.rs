//! What other threads may know of a worker's requests, even when the worker is stuck.
//!
//! A worker that a handler blocks can answer no question, so it leaves the answers beforehand: the
//! handler it is about to call, and the requests whose handlers or streams have gone to wait. A
//! request that is answered on the spot costs one uncontended lock; only one that waits is listed.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::ledger::RequestOutcome;
use crate::reactor::socket::Peer;

/// One worker's requests, for readers on other threads.
#[derive(Debug, Default)]
pub struct Watch {
    running: Mutex<Running>,
    waiting: Mutex<HashMap<WatchKey, RequestInfo>>,
    lost: Mutex<Lost>,
}

/// Names a waiting request within its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchKey(u64);

/// The handler call in progress.
#[derive(Debug, Default)]
struct Running {
    /// `None` between calls. The strings of `info` are kept for their capacity.
    since: Option<Instant>,
    info: RequestInfo,
    next_key: u64,
}

/// What is told of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// As sent.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// The client's address.
    pub peer: Peer,
    /// The template of the matched route; empty until it is known.
    pub route: String,
    /// When its head was complete.
    pub begun: Option<Instant>,
}

/// Requests that ended refused or cut.
#[derive(Debug, Default)]
struct Lost {
    requests: Vec<LostRequest>,
    /// How many more there were than are kept.
    unnamed: u64,
}

/// A request that the shutdown (or an overload) refused or cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRequest {
    /// Which request it was.
    pub info: RequestInfo,
    /// Refused or cut.
    pub outcome: RequestOutcome,
    /// What it was doing when it was ended.
    pub waited_for: &'static str,
    /// When it ended.
    pub at: Instant,
}

impl Watch {
    /// A handler is about to be called.
    pub fn call(&self, begun: Instant, method: &str, path: &str, peer: Peer) {
        let mut running = lock(&self.running);
        running.since = Some(begun);
        let info = &mut running.info;
        info.begun = Some(begun);
        refill(&mut info.method, method);
        refill(&mut info.path, path);
        info.peer = peer;
        info.route.clear();
    }

    /// The route of the request being called is known.
    pub fn routed(&self, template: &str) {
        refill(&mut lock(&self.running).info.route, template);
    }

    /// The call returned.
    pub fn returned(&self) {
        lock(&self.running).since = None;
    }

    /// Lists a request that waits.
    pub fn waits(&self, info: RequestInfo) -> WatchKey {
        let key = {
            let mut running = lock(&self.running);
            running.next_key += 1;
            WatchKey(running.next_key)
        };
        lock(&self.waiting).insert(key, info);
        key
    }

    /// A listed request came to its end.
    pub fn ended(&self, key: WatchKey) {
        lock(&self.waiting).remove(&key);
    }

    /// Remembers a request that was refused or cut.
    pub fn lost(&self, request: LostRequest) {
        let mut lost = lock(&self.lost);
        if lost.requests.len() < LOST_NAMED_MAX {
            lost.requests.push(request);
        } else {
            lost.unnamed += 1;
        }
    }

    /// The handler call that holds the worker, if one does.
    pub fn running(&self) -> Option<RequestInfo> {
        let running = lock(&self.running);
        running.since.map(|_| running.info.clone())
    }

    /// All requests that wait, oldest first.
    pub fn waiting(&self) -> Vec<RequestInfo> {
        let mut all: Vec<RequestInfo> = lock(&self.waiting).values().cloned().collect();
        all.sort_by_key(|info| info.begun);
        all
    }

    /// The requests that were refused or cut, and how many more there were.
    pub fn take_lost(&self) -> (Vec<LostRequest>, u64) {
        let lost = std::mem::take(&mut *lock(&self.lost));
        (lost.requests, lost.unnamed)
    }
}

/// Poisoning is passed over: every critical section leaves the data whole at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refill(buffer: &mut String, text: &str) {
    buffer.clear();
    buffer.push_str(text);
}

/// Refused and cut requests that a report names one by one; the rest is only counted.
const LOST_NAMED_MAX: usize = 1000;

//! What other threads may know of a worker's requests, even when the worker is stuck.
//!
//! A worker that a handler blocks can answer no question, so it leaves the answers beforehand: the
//! handler it is about to call, and the requests whose handlers or streams have gone to wait. A
//! request that is answered on the spot costs one uncontended lock; only one that waits is listed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Method;

use crate::ledger::RequestOutcome;
use crate::reactor::socket::Peer;

/// One worker's requests, for readers on other threads.
#[derive(Debug, Default)]
pub struct Watch {
    /// Whether a handler is being called; if so, `called` tells for which request.
    is_running: AtomicBool,
    called: Mutex<Called>,
    next_key: AtomicU64,
    waiting: Mutex<Waiting>,
    lost: Mutex<Lost>,
    /// The slowest that came to their end by themselves, slowest first; at most
    /// [`SLOWEST_MAX`].
    slowest: Mutex<Vec<EndedRequest>>,
}

/// Names a waiting request within its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchKey(u64);

/// The requests that wait.
#[derive(Debug, Default)]
struct Waiting {
    listed: HashMap<WatchKey, WaitingRequest, BuildHasherDefault<KeyHasher>>,
    /// Of requests that are over, kept for the capacity of their strings; at most [`SPARE_MAX`].
    spare: Vec<WaitingRequest>,
}

/// Spreads keys that count up, and that no client chooses.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        // 2^64 divided by the golden ratio: Knuth's multiplicative hashing.
        self.0 = (self.0 ^ key).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The request whose handler was called last. The strings are kept for their capacity.
#[derive(Debug, Default)]
struct Called {
    method: Method,
    path: String,
    peer: Peer,
    route: String,
    begun: Option<Instant>,
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

/// A request that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingRequest {
    /// Which request it is.
    pub info: RequestInfo,
    /// What it waits for.
    pub waits_for: &'static str,
}

/// Requests that ended refused or cut.
#[derive(Debug, Default)]
struct Lost {
    requests: Vec<EndedRequest>,
    /// How many more there were than are kept.
    unnamed: u64,
}

/// A request with its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedRequest {
    /// Which request it was.
    pub info: RequestInfo,
    /// How it ended.
    pub outcome: RequestOutcome,
    /// What it was doing when it ended.
    pub waited_for: &'static str,
    /// When it ended.
    pub at: Instant,
}

impl EndedRequest {
    /// How long it took.
    pub fn age(&self) -> Duration {
        self.info.begun.map_or(Duration::ZERO, |begun| self.at.saturating_duration_since(begun))
    }
}

impl Watch {
    /// The handler of `route`, a template, is about to be called.
    pub fn call(&self, begun: Instant, method: &Method, path: &str, peer: Peer, route: &str) {
        let mut called = lock(&self.called);
        called.method.clone_from(method);
        refill(&mut called.path, path);
        called.peer = peer;
        refill(&mut called.route, route);
        called.begun = Some(begun);
        drop(called);
        self.is_running.store(true, Ordering::Release);
    }

    /// The call returned.
    pub fn returned(&self) {
        self.is_running.store(false, Ordering::Release);
    }

    /// Lists a request that waits, which `tell` makes known.
    pub fn waits(&self, tell: impl FnOnce(&mut RequestInfo), waits_for: &'static str) -> WatchKey {
        let key = WatchKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        let mut waiting = lock(&self.waiting);
        let mut request = waiting.spare.pop().unwrap_or_default();
        tell(&mut request.info);
        request.waits_for = waits_for;
        waiting.listed.insert(key, request);
        key
    }

    /// A listed request waits for something else now.
    pub fn waits_for(&self, key: WatchKey, what: &'static str) {
        if let Some(request) = lock(&self.waiting).listed.get_mut(&key) {
            request.waits_for = what;
        }
    }

    /// A listed request came to its end.
    pub fn ended(&self, key: WatchKey) {
        let mut waiting = lock(&self.waiting);
        if let Some(request) = waiting.listed.remove(&key)
            && waiting.spare.len() < SPARE_MAX
        {
            waiting.spare.push(request);
        }
    }

    /// Remembers a request that was refused or cut.
    pub fn lost(&self, request: EndedRequest) {
        let mut lost = lock(&self.lost);
        if lost.requests.len() < LOST_NAMED_MAX {
            lost.requests.push(request);
        } else {
            lost.unnamed += 1;
        }
    }

    /// Remembers a request that came to its end by itself, if it is one of the slowest.
    pub fn slow(&self, request: EndedRequest) {
        keep_slowest(&mut lock(&self.slowest), request);
    }

    /// The handler call that holds the worker, if one does.
    pub fn running(&self) -> Option<RequestInfo> {
        if !self.is_running.load(Ordering::Acquire) {
            return None;
        }
        let called = lock(&self.called);
        Some(RequestInfo {
            method: called.method.to_string(),
            path: called.path.clone(),
            peer: called.peer,
            route: called.route.clone(),
            begun: called.begun,
        })
    }

    /// All requests that wait, oldest first.
    pub fn waiting(&self) -> Vec<WaitingRequest> {
        let mut all: Vec<WaitingRequest> = lock(&self.waiting).listed.values().cloned().collect();
        all.sort_by_key(|request| request.info.begun);
        all
    }

    /// The requests that were refused or cut, and how many more there were.
    pub fn take_lost(&self) -> (Vec<EndedRequest>, u64) {
        let lost = std::mem::take(&mut *lock(&self.lost));
        (lost.requests, lost.unnamed)
    }

    /// The slowest requests that came to their end by themselves, slowest first.
    pub fn take_slowest(&self) -> Vec<EndedRequest> {
        std::mem::take(&mut *lock(&self.slowest))
    }
}

/// Adds a request to the slowest, if it is one of them.
pub fn keep_slowest(slowest: &mut Vec<EndedRequest>, request: EndedRequest) {
    let age = request.age();
    let place = slowest.partition_point(|other| other.age() >= age);
    if place < SLOWEST_MAX {
        slowest.truncate(SLOWEST_MAX - 1);
        slowest.insert(place, request);
    }
}

/// Poisoning is passed over: every critical section leaves the data whole at each step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts `text` in the place of what is in `buffer`.
pub fn refill(buffer: &mut String, text: &str) {
    buffer.clear();
    buffer.push_str(text);
}

/// Slow requests that a report names.
pub const SLOWEST_MAX: usize = 10;

/// As many as mostly wait at once; a crowd's memory is given back.
const SPARE_MAX: usize = 64;

/// Refused and cut requests that a report names one by one; the rest is only counted.
const LOST_NAMED_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_are_kept_and_the_slowest_come_first() {
        let begun = crate::reactor::turn::clock();
        let watch = Watch::default();
        for seconds in [3, 1, 14, 2, 9, 11, 5, 8, 13, 4, 7, 12, 6, 10, 14] {
            watch.slow(EndedRequest {
                info: RequestInfo { begun: Some(begun), ..RequestInfo::default() },
                outcome: RequestOutcome::Answered,
                waited_for: "",
                at: begun + Duration::from_secs(seconds),
            });
        }
        let ages: Vec<u64> =
            watch.take_slowest().iter().map(|request| request.age().as_secs()).collect();
        assert_eq!(ages, [14, 14, 13, 12, 11, 10, 9, 8, 7, 6]);
        assert_eq!(watch.take_slowest(), []);
    }
}

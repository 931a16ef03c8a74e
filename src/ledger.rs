//! The ledger: what became of every connection and every request.
//!
//! One ledger per worker, written by that worker, read by anybody at any time: plain atomics, no
//! lock, so that nothing a worker is stuck in can hide its books. Two laws hold between the turns
//! of a worker, and [`Counts::check`] says so when they do not:
//!
//! * `opened = closed + open`, with `closed` the sum over the connection outcomes;
//! * `begun = answered + refused + cut + abandoned + in_flight`.
//!
//! A reader on another thread may see a request between two counters; the laws hold for it again
//! once the worker's turn is over.

use std::sync::atomic::{AtomicU64, Ordering};

/// How a request ended. Exactly one per request that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    /// The kernel accepted the response's last byte.
    Answered,
    /// Shutdown or overload answered it 503.
    Refused,
    /// We ended it unanswered.
    Cut,
    /// The client went away first.
    Abandoned,
}

impl RequestOutcome {
    /// All outcomes; their positions are those of [`Counts::finished`].
    pub const ALL: [RequestOutcome; 4] = [
        RequestOutcome::Answered,
        RequestOutcome::Refused,
        RequestOutcome::Cut,
        RequestOutcome::Abandoned,
    ];

    /// Its name in metrics and the report.
    pub fn name(self) -> &'static str {
        match self {
            RequestOutcome::Answered => "answered",
            RequestOutcome::Refused => "refused",
            RequestOutcome::Cut => "cut",
            RequestOutcome::Abandoned => "abandoned",
        }
    }
}

/// How a connection ended. Exactly one per connection that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionOutcome {
    /// The client closed it between requests.
    ClientClosed,
    /// Closed after a response that announced it.
    ClosedAfterResponse,
    /// Idle for its time, closed by us.
    ClosedIdle,
    /// A deadline of ours ran out in the middle of something.
    TimedOut,
    /// What it sent was no request (400, 408, 414, 431).
    Rejected,
    /// Over the connection limit.
    Shed,
    /// The client reset it, or vanished in the middle of a request.
    Reset,
    /// Ended by the shutdown's deadline.
    Cut,
}

impl ConnectionOutcome {
    /// All outcomes; their positions are those of [`Counts::closed`].
    pub const ALL: [ConnectionOutcome; 8] = [
        ConnectionOutcome::ClientClosed,
        ConnectionOutcome::ClosedAfterResponse,
        ConnectionOutcome::ClosedIdle,
        ConnectionOutcome::TimedOut,
        ConnectionOutcome::Rejected,
        ConnectionOutcome::Shed,
        ConnectionOutcome::Reset,
        ConnectionOutcome::Cut,
    ];

    /// Its name in metrics and the report.
    pub fn name(self) -> &'static str {
        match self {
            ConnectionOutcome::ClientClosed => "client_closed",
            ConnectionOutcome::ClosedAfterResponse => "closed_after_response",
            ConnectionOutcome::ClosedIdle => "closed_idle",
            ConnectionOutcome::TimedOut => "timed_out",
            ConnectionOutcome::Rejected => "rejected",
            ConnectionOutcome::Shed => "shed",
            ConnectionOutcome::Reset => "reset",
            ConnectionOutcome::Cut => "cut",
        }
    }
}

/// What a connection is doing, in life order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Accepted, no byte yet.
    New,
    /// Part of a request's head has come.
    ReadingHead,
    /// A request was begun and has no response head yet.
    Handling,
    /// A response is on its way.
    Streaming,
    /// Between two requests, hyper still in place.
    Idle,
    /// Between two requests, a socket and a slot.
    Hibernating,
    /// Closing: the last bytes go out, the client's are discarded.
    Lingering,
}

impl ConnectionState {
    /// All states; their positions are those of [`Counts::states`].
    pub const ALL: [ConnectionState; 7] = [
        ConnectionState::New,
        ConnectionState::ReadingHead,
        ConnectionState::Handling,
        ConnectionState::Streaming,
        ConnectionState::Idle,
        ConnectionState::Hibernating,
        ConnectionState::Lingering,
    ];

    /// Its name in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            ConnectionState::New => "new",
            ConnectionState::ReadingHead => "reading_head",
            ConnectionState::Handling => "handling",
            ConnectionState::Streaming => "streaming",
            ConnectionState::Idle => "idle",
            ConnectionState::Hibernating => "hibernating",
            ConnectionState::Lingering => "lingering",
        }
    }
}

/// The status of an answer to what never was a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectedCode {
    /// 400: no valid request.
    BadRequest,
    /// 408: not complete in time.
    RequestTimeout,
    /// 414: the request line is too long.
    UriTooLong,
    /// 431: the head is too large, or has too many fields.
    FieldsTooLarge,
}

impl RejectedCode {
    /// Every code, in the order of [`Counts::rejected`].
    pub const ALL: [RejectedCode; 4] = [
        RejectedCode::BadRequest,
        RejectedCode::RequestTimeout,
        RejectedCode::UriTooLong,
        RejectedCode::FieldsTooLarge,
    ];

    /// The status code on the wire.
    pub fn status(self) -> u16 {
        match self {
            RejectedCode::BadRequest => 400,
            RejectedCode::RequestTimeout => 408,
            RejectedCode::UriTooLong => 414,
            RejectedCode::FieldsTooLarge => 431,
        }
    }
}

/// The books of one worker, who alone writes them: see [`ConnectionTracking`] for counting on
/// several threads.
///
/// [`ConnectionTracking`]: crate::ConnectionTracking
#[derive(Debug, Default)]
pub struct Ledger {
    opened: AtomicU64,
    closed: [AtomicU64; 8],
    states: [AtomicU64; 7],
    begun: AtomicU64,
    in_flight: AtomicU64,
    finished: [AtomicU64; 4],
    rejected: [AtomicU64; 4],
    late_bytes: AtomicU64,
    cooled: AtomicU64,
    left: AtomicU64,
}

impl Ledger {
    /// A connection was accepted, in state `new`.
    pub fn opened(&self) {
        add(&self.opened);
        add(&self.states[ConnectionState::New as usize]);
    }

    /// A connection passed from one state to another.
    pub fn moved(&self, from: ConnectionState, to: ConnectionState) {
        sub(&self.states[from as usize]);
        add(&self.states[to as usize]);
    }

    /// A connection in state `from` is gone.
    pub fn closed(&self, from: ConnectionState, outcome: ConnectionOutcome) {
        sub(&self.states[from as usize]);
        add(&self.closed[outcome as usize]);
    }

    /// A complete request head reached the service.
    pub fn begun(&self) {
        add(&self.begun);
        add(&self.in_flight);
    }

    /// A begun request came to its one end.
    pub fn finished(&self, outcome: RequestOutcome) {
        sub(&self.in_flight);
        add(&self.finished[outcome as usize]);
    }

    /// As [`begun`](Self::begun), on any of several threads that count in one ledger.
    pub(crate) fn begun_anywhere(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// As [`finished`](Self::finished), on any of several threads that count in one ledger.
    pub(crate) fn finished_anywhere(&self, outcome: RequestOutcome) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.finished[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Something that never was a request was answered.
    pub fn rejected(&self, code: RejectedCode) {
        add(&self.rejected[code as usize]);
    }

    /// Request bytes arrived after our FIN.
    pub fn late_bytes(&self, count: usize) {
        self.late_bytes.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// A connection gave up its hyper state, which is most of its memory.
    pub fn cooled(&self) {
        add(&self.cooled);
    }

    /// How often that has happened.
    pub fn cooled_so_far(&self) -> u64 {
        self.cooled.load(Ordering::Relaxed)
    }

    /// A connection was closed whose last response the kernel may have to deliver yet.
    pub fn left_to_kernel(&self) {
        add(&self.left);
    }

    /// How often that has happened.
    pub fn left_to_kernel_so_far(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Requests begun and not yet at their end.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A copy of all counters. Closings are read before openings, so that `open` is never negative
    /// for a reader on another thread.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            closed: std::array::from_fn(|i| read(&self.closed[i])),
            finished: std::array::from_fn(|i| read(&self.finished[i])),
            states: std::array::from_fn(|i| read(&self.states[i])),
            rejected: std::array::from_fn(|i| read(&self.rejected[i])),
            in_flight: read(&self.in_flight),
            late_bytes: read(&self.late_bytes),
            opened: read(&self.opened),
            begun: read(&self.begun),
        }
    }
}

/// The counters of one ledger, or the sum of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub opened: u64,
    /// By [`ConnectionOutcome`], in the order of its `ALL`.
    pub closed: [u64; 8],
    /// By [`ConnectionState`], in the order of its `ALL`.
    pub states: [u64; 7],
    /// Requests whose complete head reached the service.
    pub begun: u64,
    /// Requests begun and not at their end.
    pub in_flight: u64,
    /// By [`RequestOutcome`], in the order of its `ALL`.
    pub finished: [u64; 4],
    /// By status: 400, 408, 414, 431.
    pub rejected: [u64; 4],
    /// Request bytes that arrived after our FIN.
    pub late_bytes: u64,
}

impl Counts {
    /// Connections that are open.
    pub fn open(&self) -> u64 {
        self.opened.saturating_sub(self.closed.iter().sum())
    }

    /// Connections that ended so.
    pub fn closed_as(&self, outcome: ConnectionOutcome) -> u64 {
        self.closed[outcome as usize]
    }

    /// Requests that ended so.
    pub fn finished_as(&self, outcome: RequestOutcome) -> u64 {
        self.finished[outcome as usize]
    }

    /// Connections that are doing so.
    pub fn in_state(&self, state: ConnectionState) -> u64 {
        self.states[state as usize]
    }

    /// The counters of a worker that will not count any more: in flight is what was begun and not
    /// finished, and the connections that are open are cut. Exact even when the counters were read
    /// in the middle of a turn.
    #[must_use]
    pub fn closed_by_cut(mut self) -> Counts {
        self.in_flight = self.begun.saturating_sub(self.finished.iter().sum());
        self.closed[ConnectionOutcome::Cut as usize] += self.open();
        self.states = [0; 7];
        self
    }

    /// Adds another worker's counters.
    pub fn add(&mut self, other: &Counts) {
        fn each<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
            for (to, from) in to.iter_mut().zip(from) {
                *to += from;
            }
        }
        self.opened += other.opened;
        self.begun += other.begun;
        self.in_flight += other.in_flight;
        self.late_bytes += other.late_bytes;
        each(&mut self.closed, &other.closed);
        each(&mut self.states, &other.states);
        each(&mut self.finished, &other.finished);
        each(&mut self.rejected, &other.rejected);
    }

    /// The conservation laws.
    ///
    /// # Panics
    /// When a connection or a request is missing from the books: a fault of ours, at any time.
    pub fn check(&self) {
        let closed: u64 = self.closed.iter().sum();
        let open: u64 = self.states.iter().sum();
        assert_eq!(self.opened, closed + open, "opened = closed + open: {self:?}");
        let finished: u64 = self.finished.iter().sum();
        assert_eq!(
            self.begun,
            finished + self.in_flight,
            "begun = answered + refused + cut + abandoned + in_flight: {self:?}"
        );
    }
}

/// Adds one. A ledger has one writer, so a load and a store do, without a locked instruction.
fn add(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

fn sub(counter: &AtomicU64) {
    let before = counter.load(Ordering::Relaxed);
    debug_assert!(before > 0, "a gauge of the ledger went below zero");
    counter.store(before.wrapping_sub(1), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_balance_through_a_life() {
        let ledger = Ledger::default();
        ledger.opened();
        ledger.moved(ConnectionState::New, ConnectionState::Handling);
        ledger.begun();
        ledger.counts().check();
        assert_eq!(ledger.in_flight(), 1);
        ledger.finished(RequestOutcome::Answered);
        ledger.moved(ConnectionState::Handling, ConnectionState::Idle);
        ledger.closed(ConnectionState::Idle, ConnectionOutcome::ClosedIdle);
        let counts = ledger.counts();
        counts.check();
        assert_eq!(counts.open(), 0);
        assert_eq!(counts.finished_as(RequestOutcome::Answered), 1);
        assert_eq!(counts.closed_as(ConnectionOutcome::ClosedIdle), 1);
    }

    #[test]
    #[should_panic(expected = "opened = closed + open")]
    fn a_lost_connection_is_noticed() {
        let counts = Counts { opened: 2, ..Counts::default() };
        counts.check();
    }

    #[test]
    fn names_and_positions_agree() {
        for (i, outcome) in RequestOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, i);
        }
        for (i, outcome) in ConnectionOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, i);
        }
        for (i, state) in ConnectionState::ALL.iter().enumerate() {
            assert_eq!(*state as usize, i);
        }
        for (i, code) in RejectedCode::ALL.iter().enumerate() {
            assert_eq!(*code as usize, i);
        }
    }
}

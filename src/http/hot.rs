//! A connection that hyper works on.

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Instant;

use super::buffers::{Input, Next};
use super::connection::{Means, Served};
use super::flow::Flow;
use super::frame::Frame;
use super::hold::{self, Why};
use super::limits::{HIBERNATE_AFTER, HOT_MAX};
use super::linger::Manner;
use super::service::{drop_quietly, log_panic};
use super::site::{Delivery, Mode, Site};
use super::verdict::Verdict;
use super::watch::RequestInfo;
use super::ways::{Alarm, Ways};
use super::wire::Wire;
use crate::ledger::{ConnectionOutcome, ConnectionState, RejectedCode, RequestOutcome};
use crate::reactor::socket::{Readiness, Socket, Stream, Transport};
use crate::reactor::turn::earliest;

/// hyper's connection with what we share with it.
pub(super) struct Hot<T: Transport + 'static> {
    pub(super) ways: Ways<T>,
    pub(super) wire: Rc<RefCell<Wire<T>>>,
    pub(super) flow: Rc<Flow>,
    _counted: Counted,
    /// Whether the connection was answered before it became hot.
    pub(super) served: Served,
    /// Made when somebody is to be told of it.
    waker: Option<Waker>,
    /// Whether the wire's input is attached already: true for the first run only.
    attached: bool,
    /// When the last request was done, or the connection became hot.
    pub(super) idle_since: Instant,
    /// When the first byte of an incomplete head was seen; `None` when there is none.
    pub(super) head_since: Option<Instant>,
    /// When the kernel last took output, or there began to be some that it would not take.
    progress: Instant,
    /// How much of the output the kernel had taken at the last look.
    flushed: u64,
    /// Whether hyper was polled for the rest of a body that nobody wanted.
    asked_for_rest: bool,
    /// Whether output waits for the client.
    stalled: bool,
    /// Bytes that the client had not acknowledged when `progress` was last set while stalled.
    unacknowledged: usize,
}

/// Without hyper, which has a box of its own.
const _: () = assert!(cfg!(debug_assertions) || size_of::<Hot<Stream>>() <= 256);

/// A place in [`Site::hot`].
struct Counted(Rc<Site>);

impl Counted {
    fn new(site: &Rc<Site>) -> Counted {
        site.hot.set(site.hot.get() + 1);
        Counted(Rc::clone(site))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.hot.set(self.0.hot.get() - 1);
    }
}

/// What a run ended with.
pub(super) enum Ran {
    Wait(Option<Instant>),
    Again,
    /// Nothing is left to send; drop it.
    Closed(ConnectionOutcome),
    /// Close it, after its output.
    Linger(Manner, ConnectionOutcome),
    /// Answer what is no request, then close.
    Reject(RejectedCode, ConnectionOutcome),
    /// Drop hyper, keep the socket.
    Hibernate,
}

impl<T: Transport> Hot<T> {
    /// Makes hyper's side of a connection whose input holds a complete head and is attached.
    pub fn new(socket: Socket<T>, input: Input, served: Served, means: &Means<'_>) -> Hot<T> {
        let site = means.site;
        let flow = Flow::new(Rc::clone(site), means.peer);
        let wire = Rc::new(RefCell::new(Wire::new(socket, input, site.limits.head())));
        let now = site.now.get();
        Hot {
            ways: Ways::new(),
            wire,
            flow,
            _counted: Counted::new(site),
            served,
            waker: None,
            attached: true,
            idle_since: now,
            head_since: None,
            progress: now,
            flushed: 0,
            asked_for_rest: false,
            stalled: false,
            unacknowledged: 0,
        }
    }

    pub fn announce(&mut self, readiness: Readiness) {
        self.wire.borrow_mut().socket.announce(readiness);
    }

    pub fn is_full(&self) -> bool {
        self.wire.borrow().socket.is_full()
    }

    pub fn watch_by(&mut self, watch: impl FnOnce(&mut T) -> io::Result<()>) -> io::Result<()> {
        watch(self.wire.borrow_mut().socket.transport_mut())
    }

    /// Only an idle connection acts on it; for one at work it would look like a next request.
    pub fn recheck(&mut self) {
        if self.flow.is_idle() {
            self.wire.borrow_mut().socket.recheck();
        }
    }

    pub fn refuse(&mut self) {
        self.flow.judge(Verdict::ShuttingDown);
    }

    pub fn state(&self) -> ConnectionState {
        match self.flow.state() {
            ConnectionState::Idle if self.head_since.is_some() => ConnectionState::ReadingHead,
            state => state,
        }
    }

    /// Since when it is in its state.
    pub fn since(&self) -> Instant {
        self.flow.since().or(self.head_since).unwrap_or(self.idle_since)
    }

    /// What it waits for, and with which request.
    pub fn hold(&self) -> (Why, Option<RequestInfo>) {
        if let Some(request) = self.flow.at_hand() {
            return (Why::waits_for(self.waits_for()), Some(request));
        }
        // It hibernates before that, and waits on to the same end.
        let limits = &self.flow.site().limits;
        let why = if let Some(since) = self.head_since {
            Why::until(hold::INCOMPLETE_HEAD, "408", since + limits.head_timeout)
        } else {
            let end = self.idle_since + limits.keep_alive_timeout;
            Why::until(hold::NEXT_REQUEST, "keep-alive ends", end)
        };
        (why, None)
    }

    pub(super) fn waits_for(&self) -> &'static str {
        if self.stalled { hold::CLIENT_TO_TAKE } else { self.flow.waits_for() }
    }

    /// Does what can be done now.
    pub fn run(&mut self, means: &mut Means<'_>) -> Ran {
        {
            let mut wire = self.wire.borrow_mut();
            if std::mem::take(&mut self.attached) {
                wire.attach_output(means.loan);
            } else {
                wire.attach(means.loan);
            }
        }
        let site = &**means.site;
        let ran = self.advance(means);
        let ran = match ran {
            Ran::Wait(_) => self.wait(site),
            other => other,
        };
        self.wire.borrow_mut().detach(means.loan);
        ran
    }

    /// Serves what there is to serve. `Wait` stands for any wait; [`wait`](Hot::wait) says how
    /// long.
    fn advance(&mut self, means: &Means<'_>) -> Ran {
        let site = &**means.site;
        let now = site.now.get();
        let (is_broken, is_finished) = {
            let socket = &self.wire.borrow().socket;
            (socket.is_broken(), socket.is_read_closed())
        };
        if is_broken {
            return self.lost(ConnectionOutcome::Reset, RequestOutcome::Abandoned);
        }
        self.flow.client_finished.set(is_finished);
        if is_finished {
            self.flow.notify();
        }
        if let Some(ran) = self.overdue(now) {
            return ran;
        }
        // A request that is taken now has been seen with all that came behind it.
        let may_close = site.mode.get().announces() || self.flow.is_handling();
        if self.flow.is_idle() && self.flow.is_written() && self.expects_head() {
            let owes = self.stalled || !self.flow.is_settled();
            if owes && let Some(ran) = self.flush(now, Delivery::Ours) {
                return ran;
            }
            match self.take_short() {
                Ok(true) => {}
                Ok(false) => match self.look_ahead(now) {
                    Ahead::Head => {}
                    Ahead::Is(ran) => return ran,
                },
                Err(_) => return self.lost(ConnectionOutcome::Reset, RequestOutcome::Abandoned),
            }
            self.ways.suit_responses(&self.flow);
        }
        if may_close && self.look_behind().is_err() {
            return self.lost(ConnectionOutcome::Reset, RequestOutcome::Abandoned);
        }
        #[cfg(test)]
        if site.has_fault(super::site::Fault::HyperShutdown) && site.mode.get().announces() {
            self.ways.shut_down_by_hyper(&self.wire, &self.flow);
        }
        let polled = {
            let Hot { ways, wire, flow, waker, .. } = self;
            let mut alarm = Alarm { made: waker, key: means.key, remote: means.remote };
            catch_unwind(AssertUnwindSafe(|| ways.poll(wire, flow, &mut alarm)))
        };
        let delivery = match polled {
            Ok(Poll::Ready(Ok(()))) if self.is_the_kernels(site) => Delivery::Kernels,
            _ => Delivery::Ours,
        };
        if let Some(ran) = self.flush(now, delivery) {
            return ran;
        }
        match polled {
            Ok(Poll::Pending) => self.pending(now),
            Ok(Poll::Ready(Ok(()))) => self.ended(delivery),
            Ok(Poll::Ready(Err(error))) => self.failed(site, &error),
            Err(panic) => {
                log_panic(&self.flow, &*panic);
                drop_quietly(&self.flow, panic);
                self.lost(ConnectionOutcome::Cut, RequestOutcome::Cut)
            }
        }
    }

    /// hyper can go no further.
    fn pending(&mut self, now: Instant) -> Ran {
        let (rejected, yielded, is_quiet) = {
            let wire = self.wire.borrow();
            (wire.rejected, wire.yielded, wire.is_quiet())
        };
        if let Some(code) = rejected {
            return Ran::Reject(code, ConnectionOutcome::Rejected);
        }
        if yielded {
            return Ran::Again;
        }
        if !self.flow.is_idle() {
            self.head_since = None;
            self.flow.waits(self.waits_for());
            return Ran::Wait(None);
        }
        self.idle_since = now;
        self.head_since = None;
        if !self.flow.is_written() {
            return Ran::Wait(None);
        }
        if self.is_last() {
            return Ran::Linger(Manner::Sending, self.flow.close_outcome());
        }
        if !self.expects_head() {
            // hyper takes what is there of a body that was dropped at its next poll.
            let has_asked = std::mem::replace(&mut self.asked_for_rest, true);
            return if has_asked { Ran::Wait(None) } else { Ran::Again };
        }
        self.asked_for_rest = false;
        if is_quiet {
            return Ran::Wait(None);
        }
        match self.look_ahead(now) {
            Ahead::Head => Ran::Again,
            Ahead::Is(ran) => ran,
        }
    }

    /// Whether no request follows the last one: whatever comes now is none. hyper would find out at
    /// its next poll.
    fn is_last(&self) -> bool {
        self.flow.close_announced.get() || self.flow.has_unwanted_body()
    }

    /// Whether what the client sends next is a head: nothing of its last request is outstanding.
    pub(super) fn expects_head(&self) -> bool {
        matches!(self.flow.frame.get(), Frame::Head | Frame::Body(0) | Frame::Anything)
    }

    /// Sees what has come behind the request at hand, which hyper does not while a handler works.
    fn look_behind(&mut self) -> io::Result<()> {
        self.wire.borrow_mut().look_behind(&self.flow)
    }

    /// With no request at hand: takes an ordinary one, without a second look at where it ends.
    fn take_short(&mut self) -> io::Result<bool> {
        if self.is_last() || !self.wire.borrow_mut().is_fresh()? {
            return Ok(false);
        }
        Ok(self.ways.take(&self.wire, &self.flow))
    }

    /// With no request at hand: what comes next?
    fn look_ahead(&mut self, now: Instant) -> Ahead {
        if self.is_last() {
            return Ahead::Is(Ran::Linger(Manner::Sending, self.flow.close_outcome()));
        }
        let next = self.wire.borrow_mut().next_head(&self.flow);
        Ahead::Is(match next {
            Ok(Next::Complete(_)) => return Ahead::Head,
            Ok(Next::Nothing) => Ran::Wait(None),
            Ok(Next::Partial) => {
                self.head_since.get_or_insert(now);
                Ran::Wait(None)
            }
            Ok(Next::End) => Ran::Linger(Manner::Silent, ConnectionOutcome::ClientClosed),
            Ok(Next::Rejected(code)) => Ran::Reject(code, ConnectionOutcome::Rejected),
            Err(_) => self.lost(ConnectionOutcome::Reset, RequestOutcome::Abandoned),
        })
    }

    /// Writes what hyper wrote; what the kernel has taken is answered. `Some` when the client is
    /// gone.
    fn flush(&mut self, now: Instant, delivery: Delivery) -> Option<Ran> {
        let mut wire = self.wire.borrow_mut();
        let flushed = match delivery {
            Delivery::Ours | Delivery::OursYet => wire.flush(),
            Delivery::Kernels => wire.flush_last(),
        };
        let position = wire.flushed();
        // Large pieces went to the kernel within hyper's poll.
        let moved = position > std::mem::replace(&mut self.flushed, position);
        let is_stalled = !wire.output.is_empty() || wire.blocked;
        if is_stalled && (!self.stalled || moved) {
            self.unacknowledged = wire.socket.transport().unacknowledged().unwrap_or(0);
        }
        drop(wire);
        self.flow.settle(position);
        if flushed.is_err() {
            return Some(self.lost(ConnectionOutcome::Reset, RequestOutcome::Abandoned));
        }
        if moved || !self.stalled {
            self.progress = now;
        }
        if moved {
            // Idle is who has been sent everything.
            self.idle_since = now;
        }
        self.stalled = is_stalled;
        None
    }

    /// Acts on a deadline that has passed. `None`: there is none, or the request is to be answered
    /// by the server.
    fn overdue(&mut self, now: Instant) -> Option<Ran> {
        let limits = &self.flow.site().limits;
        let patience = limits.write_stall_timeout;
        if self.stalled && !self.is_taking(now) && now >= self.progress + patience {
            return Some(self.lost(ConnectionOutcome::TimedOut, RequestOutcome::Cut));
        }
        let (at, verdict) = self.flow.deadline()?;
        if now < at {
            return None;
        }
        if self.flow.is_handling() {
            self.flow.judge(verdict);
            return None;
        }
        // The response has begun; its handler waits for a body that does not come.
        Some(self.lost(ConnectionOutcome::TimedOut, RequestOutcome::Cut))
    }

    /// Whether a client that let the kernel accept no more has taken something after all: the
    /// kernel
    /// announces space only when a good part of the send buffer is free (`sk_stream_is_writeable`).
    fn is_taking(&mut self, now: Instant) -> bool {
        let left = self.wire.borrow().socket.transport().unacknowledged().unwrap_or(usize::MAX);
        let is_taking = left < self.unacknowledged;
        if is_taking {
            self.progress = now;
            self.unacknowledged = left;
        }
        is_taking
    }

    /// Until when to wait, or what to do when that is now.
    fn wait(&mut self, site: &Site) -> Ran {
        let now = site.now.get();
        let limits = &site.limits;
        // Looked at a few times, so that what the client took is not dated to the last moment.
        let stall = self.stalled.then(|| {
            let patience = limits.write_stall_timeout;
            (self.progress + patience).min(now + patience / STALL_LOOKS)
        });
        if !self.flow.is_idle() {
            let deadline = match self.flow.deadline() {
                // Judged already: it waits for the client to take what is before it.
                Some((at, _)) if at > now => Some(at),
                _ => None,
            };
            return Ran::Wait(earliest(stall, deadline));
        }
        if !self.flow.is_settled() || self.stalled {
            self.flow.client_waits();
            return Ran::Wait(stall);
        }
        // From then on the cold connection's deadlines rule.
        let mut at = match self.head_since {
            Some(since) => since + HIBERNATE_AFTER.min(limits.head_timeout),
            None => self.idle_since + HIBERNATE_AFTER.min(limits.keep_alive_timeout),
        };
        let is_draining =
            matches!(site.mode.get(), Mode::Draining { .. } | Mode::Cancelling | Mode::Refusing);
        if is_draining || site.hot.get() > HOT_MAX {
            at = now;
        }
        if now < at {
            return Ran::Wait(Some(at));
        }
        if matches!(self.flow.frame.get(), Frame::Body(1..) | Frame::Chunked) {
            // hyper never read the rest of a body that nobody wanted: it must not pass for a head.
            return Ran::Linger(Manner::Sending, self.flow.close_outcome());
        }
        Ran::Hibernate
    }
}

/// How often a stalled response is looked at within its limit.
const STALL_LOOKS: u32 = 4;

/// What an idle connection finds.
enum Ahead {
    /// A head for hyper.
    Head,
    Is(Ran),
}

//! `/connections`: what every connection is doing, since when, and what it waits for.
//!
//! Only a connection's worker may look at it, so the workers are asked by mail; control passes the
//! question on and never waits for the answers. Whoever asked waits on the admin listener, as a
//! request like others, and does without the workers that have not answered in time: of those
//! [`Watch`] tells the requests.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::control::{Control, ControlMail};
use super::worker::WorkerMail;
use crate::app::admin::Ask;
use crate::drain::Phase;
use crate::http::hold::{self, Hold, Why};
use crate::http::watch::{RequestInfo, Watch};
use crate::ledger::{ConnectionState, Counts};
use crate::logging::visible;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::sleep::{Sleep, sleep};
use crate::reactor::socket::Peer;

/// A question on its way. Mail holds it weakly: a worker that was stuck for long does not answer
/// those who have gone.
#[derive(Debug, Default)]
pub struct Inquiry {
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    /// `Some` once control has seen the question.
    basis: Option<Basis>,
    /// One per worker, once control has seen the question.
    workers: Vec<Answer>,
    /// Whom to wake when the last worker has answered.
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Answer {
    Awaited,
    /// The oldest of its connections, in any order.
    Given(Vec<(Peer, Hold)>),
    /// There is nobody to answer.
    Never,
}

/// What control knows when it passes the question on.
#[derive(Debug)]
pub struct Basis {
    pub at: Instant,
    pub phase: Phase,
    /// Of the budget; `None` without a shutdown.
    pub left: Option<Duration>,
    pub counts: Counts,
    pub other_work: u64,
    pub hooks: Vec<HookRow>,
    /// One per worker.
    pub watches: Vec<Arc<Watch>>,
}

/// Has the admin listener ask control.
pub fn asking(control: Mailbox<ControlMail>) -> Ask {
    Arc::new(move || {
        let inquiry = Arc::new(Inquiry::default());
        control.post(ControlMail::Inquire(Arc::downgrade(&inquiry)));
        Box::pin(Asking { inquiry, patience: sleep(PATIENCE) })
    })
}

impl Inquiry {
    /// Control passes the question on. `is_lost` says which workers will never answer.
    pub fn begin(&self, basis: Basis, is_lost: impl Fn(usize) -> bool) {
        let mut answers = self.lock();
        let answer = |index| if is_lost(index) { Answer::Never } else { Answer::Awaited };
        answers.workers = (0..basis.watches.len()).map(answer).collect();
        answers.basis = Some(basis);
        answers.wake_if_complete();
    }

    /// A worker's answer.
    pub fn answer(&self, worker: usize, holds: Vec<(Peer, Hold)>) {
        let mut answers = self.lock();
        if let Some(answer) = answers.workers.get_mut(worker) {
            *answer = Answer::Given(holds);
        }
        answers.wake_if_complete();
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Passes the question on to the workers. Those that are stuck are not waited for.
    pub(super) fn inquire(&mut self, inquiry: &Weak<Inquiry>, now: Instant) {
        let Some(asked) = inquiry.upgrade() else { return };
        let basis = Basis {
            at: now,
            phase: self.drain.phase(),
            left: self.drain.end().map(|end| end.saturating_duration_since(now)),
            counts: self.status.counts(),
            other_work: self.handle.other_work(),
            hooks: self
                .cleanup
                .running(now)
                .into_iter()
                .map(|(name, age)| HookRow { name: name.to_owned(), seconds: seconds(age) })
                .collect(),
            watches: self.workers.iter().map(|worker| Arc::clone(&worker.watch)).collect(),
        };
        asked.begin(basis, |index| self.workers[index].is_lost);
        for (index, worker) in self.workers.iter().enumerate() {
            let question = Question { inquiry: Weak::clone(inquiry), worker: index };
            match (&worker.mailbox, &self.public) {
                (Some(mailbox), _) => mailbox.post(WorkerMail::Question(question)),
                (None, Some(public)) => question.answer(|| public.holds(now)),
                (None, None) => {}
            }
        }
    }
}

/// A question in a worker's mail.
#[derive(Debug)]
pub struct Question {
    pub inquiry: Weak<Inquiry>,
    pub worker: usize,
}

impl Question {
    /// Answers, if there is still somebody to hear it.
    pub fn answer(&self, holds: impl FnOnce() -> Vec<(Peer, Hold)>) {
        if let Some(inquiry) = self.inquiry.upgrade() {
            inquiry.answer(self.worker, holds());
        }
    }
}

/// Waits for the answers, but not for long.
struct Asking {
    inquiry: Arc<Inquiry>,
    patience: Sleep,
}

impl Future for Asking {
    type Output = String;

    fn poll(mut self: Pin<&mut Asking>, cx: &mut Context<'_>) -> Poll<String> {
        let is_over = Pin::new(&mut self.patience).poll(cx).is_ready();
        let mut answers = self.inquiry.lock();
        if is_over || answers.is_complete() {
            return Poll::Ready(std::mem::take(&mut *answers).told());
        }
        answers.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Answers {
    fn is_complete(&self) -> bool {
        self.basis.is_some() && !self.workers.iter().any(|answer| matches!(answer, Answer::Awaited))
    }

    fn wake_if_complete(&mut self) {
        if self.is_complete()
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }

    /// As JSON, in which everything is visible.
    fn told(self) -> String {
        // Control takes its mail in the turn after the question, long before patience ends.
        let Some(basis) = self.basis else { return "{}\n".to_owned() };
        let mut unanswered = Vec::new();
        let mut rows: Vec<(usize, Peer, Hold)> = Vec::new();
        for ((worker, answer), watch) in self.workers.into_iter().enumerate().zip(&basis.watches) {
            let holds = match answer {
                Answer::Given(holds) => holds,
                Answer::Awaited | Answer::Never => {
                    unanswered.push(worker);
                    watched(watch, basis.at)
                }
            };
            rows.extend(holds.into_iter().map(|(peer, hold)| (worker, peer, hold)));
        }
        rows.sort_by_key(|(_, _, hold)| hold.since);
        rows.truncate(HOLDS_MAX);
        let open = basis.counts.open();
        let told = Told {
            phase: basis.phase.name(),
            seconds_left: basis.left.map(seconds),
            open,
            requests_in_flight: basis.counts.in_flight,
            states: ConnectionState::ALL
                .iter()
                .map(|state| (state.name(), basis.counts.in_state(*state).into()))
                .map(|(name, count): (&str, serde_json::Value)| (name.to_owned(), count))
                .collect(),
            other_work: basis.other_work,
            hooks_running: basis.hooks,
            more: open.saturating_sub(rows.len() as u64),
            unanswered_workers: unanswered,
            connections: rows
                .into_iter()
                .map(|(worker, peer, hold)| Row::new(worker, peer, hold, basis.at))
                .collect(),
        };
        let json = serde_json::to_string(&told).expect("plain data with text for names");
        visible(&json).into_owned() + "\n"
    }
}

/// What is known of a worker that does not answer.
fn watched(watch: &Watch, now: Instant) -> Vec<(Peer, Hold)> {
    let hold = |info: RequestInfo, what: &'static str| {
        let state = if matches!(what, hold::RESPONSE_BODY | hold::CLIENT_TO_TAKE) {
            ConnectionState::Streaming
        } else {
            ConnectionState::Handling
        };
        let since = info.begun.unwrap_or(now);
        (info.peer, Hold { state, since, why: Why::waits_for(what), request: Some(info) })
    };
    let running = watch.running().map(|info| hold(info, hold::RUNNING_HANDLER));
    let waiting = watch.waiting().into_iter().take(HOLDS_MAX);
    running
        .into_iter()
        .chain(waiting.map(|request| hold(request.info, request.waits_for)))
        .collect()
}

/// The answer.
#[derive(Serialize)]
struct Told {
    phase: &'static str,
    /// Of the budget; `null` without a shutdown.
    seconds_left: Option<f64>,
    open: u64,
    requests_in_flight: u64,
    states: serde_json::Map<String, serde_json::Value>,
    /// Guards that a program holds for work that is no request.
    other_work: u64,
    hooks_running: Vec<HookRow>,
    /// Connections that are open and not listed.
    more: u64,
    /// Workers whose idle connections are missing from the list.
    unanswered_workers: Vec<usize>,
    /// Oldest first.
    connections: Vec<Row>,
}

/// A clean-up hook that runs.
#[derive(Debug, Serialize)]
pub struct HookRow {
    name: String,
    seconds: f64,
}

/// One connection.
#[derive(Serialize)]
struct Row {
    worker: usize,
    peer: String,
    state: &'static str,
    since_seconds: f64,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestTold>,
}

#[derive(Serialize)]
struct RequestTold {
    method: String,
    path: String,
    route: String,
    age_seconds: f64,
}

impl Row {
    fn new(worker: usize, peer: Peer, hold: Hold, now: Instant) -> Row {
        let age = |since: Instant| seconds(now.saturating_duration_since(since));
        Row {
            worker,
            peer: peer.to_string(),
            state: hold.state.name(),
            since_seconds: age(hold.since),
            why: hold.why.at(now).to_string(),
            request: hold.request.map(|info| RequestTold {
                age_seconds: info.begun.map_or(0.0, age),
                method: info.method,
                path: info.path,
                route: info.route,
            }),
        }
    }
}

/// To the millisecond.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1000.0).round() / 1000.0
}

/// How long the workers are waited for.
const PATIENCE: Duration = Duration::from_millis(250);

/// Connections that are listed, and that each worker tells of.
pub const HOLDS_MAX: usize = 1000;

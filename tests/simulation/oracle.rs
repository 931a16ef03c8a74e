//! What must be true of a world that has ended, judged from outside: by what the kernels took and
//! the clients read, not by what the server thinks of itself. Its books are then held against it.
//!
//! # Which requests are owed an answer
//!
//! A request is owed an answer when its head was complete in the server's kernel before the server
//! closed its *intake* on that connection. That is the earlier of
//!
//! * the FIN (or RST) that the server sends: it may look into the kernel's buffer immediately
//!   before, and the client cannot tell whether a request crossed the FIN or was dropped; and
//! * the decision to announce the close in a response's head. RFC 9112, 9.6: the client then knows
//!   that what it sent behind that request was not processed, and the server must not process it.
//!   The server decides by what epoll had announced when the turn began, so a request counts that
//!   had arrived by then; one that arrives while the turn runs crosses the announcement.
//!
//! Requests on one connection are answered in order, so only the first without an answer needs an
//! excuse; those behind it have the same. The excuses are: the client left before the intake was
//! closed, or ended its own request early; the deadline came (the connection was cut); the process
//! was told to quit; its handler failed on purpose; a limit was passed that the client could pass;
//! or a response before it had to close the connection by its own nature.

use std::cell::Ref;

use super::app::{Handler, Plan, Upload};
use super::kernel::{Fin, Link, MILLISECOND, Micros, Moment, SECOND};
use super::reply::{Reader, Reply};
use super::world::{End, Stuck, Worker, World};
use crate::drain::{AtDeadline, Budget, Phase};
use crate::http::Limits;
use crate::http::limits::LINGER_SILENCE_MAX;
use crate::ledger::{Counts, RequestOutcome};

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub kind: Kind,
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The code's own assertions.
    Panic,
    /// Something was forgotten: nothing more happens.
    Hang,
    /// It never rests.
    Spin,
    /// The shutdown took longer than it may, or its phases came in the wrong order.
    Late,
    /// Something was open at the end.
    Open,
    /// The ledger and the world disagree.
    Books,
    /// Bytes that are no responses.
    Garbled,
    /// A response that nobody asked for, or not any more; or a request served twice.
    Unasked,
    /// A response to another request, or none that this one can have.
    Wrong,
    /// A response that ends in its middle, for no good reason.
    Truncated,
    /// An owed request without an answer, where the close was announced, or came without a word.
    LostAnnounced,
    LostSilently,
    /// A response that the kernel took and the client did not get.
    Undelivered,
    /// A connection that owed nothing was closed too early, or too late.
    Impatient,
    Overdue,
    /// A request without a response head when the time to refuse had come, and no 503.
    Unrefused,
    /// A connection was reset before it was accepted.
    ResetUnaccepted,
}

/// What is wrong with a world that has ended.
pub fn judge(world: &World) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    match world.stuck {
        Some(Stuck::Hang) => findings.add(Kind::Hang, "nothing is left that could happen"),
        Some(Stuck::Spin) => findings.add(Kind::Spin, "turn after turn after turn"),
        None => timing(world, &mut findings),
    }
    for id in 0..world.links.len() {
        let case = Exchange::of(world, id);
        case.judge(&mut findings);
    }
    for index in 0..world.workers.len() {
        listener(world, index, &mut findings);
        books(world, index, &mut findings);
    }
    findings.0
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, kind: Kind, what: impl Into<String>) {
        self.0.push(Finding { kind, what: what.into() });
    }
}

/// The phases, and the time they took.
fn timing(world: &World, findings: &mut Findings) {
    let is_in_order = |two: &[(Phase, Moment)]| {
        two[0].0 < two[1].0 || (two[0].0, two[1].0) == (Phase::LameDuck, Phase::Running)
    };
    if !world.phases.windows(2).all(is_in_order) {
        findings.add(Kind::Late, format!("phases out of order: {:?}", world.phases));
    }
    // Counted from the last beginning, when one was taken back.
    let undone = world.phases.iter().rposition(|(phase, _)| *phase == Phase::Running);
    let begun = world.phases.get(undone.map_or(0, |at| at + 1));
    let (Some((_, begun)), Some((_, end))) = (begun, &world.end) else { return };
    let policy = &world.settings.policy;
    let budget = Budget::carve(policy.timeout, policy.delay);
    let entered =
        |phase| world.phases.iter().find(|(other, _)| *other == phase).map(|row| row.1.at);
    let limits = [
        (policy.at_deadline == AtDeadline::Cut).then(|| begun.at + micros(policy.timeout)),
        entered(Phase::Cancelling).map(|at| at + micros(budget.cancelling + budget.cleaning_up)),
        entered(Phase::CleaningUp).map(|at| at + micros(budget.cleaning_up)),
    ];
    for limit in limits.into_iter().flatten() {
        if end.at > limit + TURN {
            findings.add(Kind::Late, format!("ended at {}, not by {limit}", end.at));
        }
    }
}

/// A link with all that is known of it.
struct Exchange<'a> {
    world: &'a World,
    worker: &'a Worker,
    link: Ref<'a, Link>,
    plans: Ref<'a, Vec<Plan>>,
    /// What the server's kernel took: complete responses, and where that ends.
    replies: Vec<Reply>,
    reader: Reader,
    fault: Option<String>,
}

impl<'a> Exchange<'a> {
    fn of(world: &'a World, id: usize) -> Exchange<'a> {
        let link = world.links[id].borrow();
        let (mut reader, mut replies) = (Reader::default(), Vec::new());
        let fault = reader.take(&link.sent, &mut replies).err();
        let plans = world.kernel.plans.borrow();
        Exchange { worker: &world.workers[link.worker], world, link, plans, replies, reader, fault }
    }

    fn plan(&self, index: usize) -> Option<&Plan> {
        self.link.plans.get(index).map(|id| &self.plans[*id])
    }

    fn limits(&self) -> &Limits {
        &self.world.settings.limits
    }

    /// Whether limits are such that clients and handlers run into them.
    fn has_short_limits(&self) -> bool {
        *self.limits() != Limits::default()
    }

    fn is_slow(&self) -> bool {
        self.link.slowest >= SECOND || !self.world.sessions[self.link.id].is_fast()
    }

    fn judge(&self, findings: &mut Findings) {
        let id = self.link.id;
        let faults = [&self.fault, &self.world.sessions[id].fault];
        for fault in faults.into_iter().flatten() {
            findings.add(Kind::Garbled, format!("link {id}: {fault}"));
        }
        for (index, reply) in self.replies.iter().enumerate() {
            self.judge_reply(index, reply, findings);
        }
        for plan in self.link.plans.iter().map(|id| &self.plans[*id]) {
            if plan.calls > 1 || (plan.calls > 0 && plan.head_arrived.is_none()) {
                let what = format!("link {id}: request {} was served as nobody asked", plan.id);
                findings.add(Kind::Unasked, what);
            }
        }
        self.judge_rest(findings);
        self.judge_refusal(findings);
        self.judge_delivery(findings);
        self.judge_patience(findings);
    }

    /// Whether a response is to no request: 408 to part of a head, or to none.
    fn is_rejection(&self, index: usize) -> bool {
        self.plan(index).is_none_or(|plan| plan.calls == 0)
    }

    fn judge_reply(&self, index: usize, reply: &Reply, findings: &mut Findings) {
        let id = self.link.id;
        if self.replies[..index].iter().any(|before| before.closes) {
            findings.add(Kind::Unasked, format!("link {id}: a response after the last one"));
        }
        let Some(plan) = self.plan(index).filter(|_| !self.is_rejection(index)) else {
            // Whether a request was there all the same is seen to below.
            if reply.status != 408 || !reply.closes {
                findings.add(Kind::Unasked, format!("link {id}: {} to nobody", reply.status));
            }
            return;
        };
        let is_legal = match (reply.status, plan.answer()) {
            (status, Some((planned, body))) if status == planned => reply.body == body,
            (503, _) => {
                let is_refusal = self.worker.refused.is_some() && !self.was_due(plan);
                is_refusal || self.has_short_limits()
            }
            (408, _) => plan.whole_arrived.is_none() || self.has_short_limits(),
            (400, _) => self.has_ended_early(plan),
            _ => false,
        };
        if !is_legal {
            let what = format!("link {id}: request {} was answered {}", plan.id, reply.status);
            findings.add(Kind::Wrong, what);
        }
    }

    /// Whether the client ended its stream within the request.
    fn has_ended_early(&self, plan: &Plan) -> bool {
        plan.whole_arrived.is_none() && self.link.up.fin >= Fin::Arrived
    }

    /// When the intake was closed, and whether with an announcement.
    fn intake(&self) -> (u64, bool) {
        let announced = self.replies.iter().chain(self.reader.current());
        let announced = announced.zip(&self.link.plans).find(|(reply, _)| reply.closes);
        let decided = announced.and_then(|(_, id)| self.plans[*id].decided).unwrap_or(u64::MAX);
        let finished = self.link.finished.map_or(u64::MAX, |moment| moment.serial);
        (decided.min(finished), decided < finished)
    }

    /// The first request without a complete answer.
    fn judge_rest(&self, findings: &mut Findings) {
        let answered = (0..self.replies.len()).filter(|index| !self.is_rejection(*index)).count();
        let Some(plan) = self.plan(answered) else { return };
        if self.link.accepted.is_none() {
            // The listener's business.
            return;
        }
        let (intake, is_announced) = self.intake();
        let is_owed = plan.head_arrived.is_some_and(|moment| moment.serial < intake);
        if !(is_owed || plan.calls > 0) || self.is_excused(answered, plan, intake) {
            return;
        }
        let kind = match is_announced {
            _ if !self.reader.is_between() => Kind::Truncated,
            true => Kind::LostAnnounced,
            false => Kind::LostSilently,
        };
        let what = format!(
            "link {}: request {} ({:?}) has no complete answer",
            self.link.id, plan.id, plan.handler
        );
        findings.add(kind, what);
    }

    /// See the module's essay.
    fn is_excused(&self, index: usize, plan: &Plan, intake: u64) -> bool {
        let link = &self.link;
        // One that was begun may still be on its way when its response has announced the close.
        let finished = link.finished.map_or(u64::MAX, |moment| moment.serial);
        let end = if plan.calls > 0 { finished } else { intake };
        let before = |moment: Option<Moment>| moment.is_some_and(|moment| moment.serial < end);
        let closed_by_nature = (0..index).any(|index| {
            let reply = &self.replies[index];
            reply.closes
                && match reply.status {
                    400 | 408 | 413 => true,
                    // Its body was not read any more.
                    503 => {
                        self.plan(index).is_some_and(|plan| !matches!(plan.upload, Upload::None))
                    }
                    _ => self.plan(index).is_some_and(Plan::closes),
                }
        });
        before(link.left)
            || self.has_ended_early(plan)
            || (self.is_cut() && !self.was_due(plan))
            || matches!(self.world.end, Some((End::Quit, _)))
            || self.world.stuck.is_some()
            || matches!(plan.handler, Handler::Failing { .. })
            || (self.is_stalled() && (plan.calls > 0 || !self.reader.is_between()))
            || closed_by_nature
    }

    /// Whether there was time for its answer before the deadline: nothing held it up.
    fn was_due(&self, plan: &Plan) -> bool {
        let deadline = [self.worker.refused, self.worker.cut].into_iter().flatten().next();
        let Some((ready, deadline)) = plan.ready().zip(deadline) else { return false };
        let is_smooth = self.link.is_smooth() && !self.is_slow() && !self.has_short_limits();
        plan.calls > 0 && is_smooth && ready + SECOND / 2 < deadline.at
    }

    /// Whether the shutdown's deadline found it open.
    fn is_cut(&self) -> bool {
        let finished = self.link.finished.map_or(u64::MAX, |moment| moment.serial);
        self.worker.cut.is_some_and(|cut| cut.serial < finished)
    }

    /// Whether its client may have run into a limit by taking nothing.
    fn is_stalled(&self) -> bool {
        self.has_short_limits() && self.is_slow()
    }

    /// A request that waits for its response head when the workers are told to refuse is answered
    /// 503, unless its client takes nothing or is gone.
    fn judge_refusal(&self, findings: &mut Findings) {
        let Some(refused) = self.worker.refused else { return };
        let answered = self.replies.len();
        let Some(plan) = self.plan(answered).filter(|_| self.reader.is_between()) else { return };
        let is_at_hand = plan.calls > 0
            && plan.decided.is_none()
            && plan.head_arrived.is_some_and(|head| head.serial < refused.serial);
        let is_gone = self.link.left.is_some() || self.link.is_reset || self.link.fin_by_finish;
        if is_at_hand && !is_gone && !self.is_slow() && self.world.end_is_later_than(refused) {
            findings.add(Kind::Unrefused, format!("request {} got no 503", plan.id));
        }
    }

    /// What the kernel took arrives, unless the client went, or the deadline came.
    fn judge_delivery(&self, findings: &mut Findings) {
        let session = &self.world.sessions[self.link.id];
        // Who goes on sending to a server that has waited for its last word long enough is reset,
        // and may not have read everything yet.
        let closed = self.link.closed.zip(self.link.finished);
        let was_patient = closed.is_some_and(|(closed, finished)| {
            closed.at >= finished.at + micros(LINGER_SILENCE_MAX)
        });
        let has_quit = self.world.end.is_some_and(|(end, _)| end == End::Quit);
        let is_fine = session.replies.len() >= self.replies.len()
            || !session.reads_all()
            || was_patient
            || self.link.left.is_some_and(|_| !self.link.client_reset)
            || self.worker.cut.is_some()
            || self.is_stalled()
            || has_quit
            || self.world.stuck.is_some()
            || self.link.is_reset;
        if !is_fine {
            let what = format!(
                "link {}: {} responses were sent, {} came",
                self.link.id,
                self.replies.len(),
                session.replies.len()
            );
            findings.add(Kind::Undelivered, what);
        }
    }

    /// A connection that owes nothing and says nothing is closed when its time is up.
    fn judge_patience(&self, findings: &mut Findings) {
        let link = &self.link;
        let (Some(accepted), Some(finished)) = (link.accepted, link.finished) else { return };
        let owes_nothing = match self.replies.len().checked_sub(1) {
            None => link.heard_by_finish == 0,
            Some(last) => self.plan(last).is_some_and(|plan| plan.end == link.heard_by_finish),
        };
        let is_over = self.world.end.is_none_or(|(_, end)| end.serial < finished.serial);
        let has_client =
            link.left.is_none_or(|left| left.serial > finished.serial) && !link.fin_by_finish;
        let closes = self.replies.iter().any(|reply| reply.closes);
        if !owes_nothing || is_over || !has_client || closes || link.is_reset || self.is_cut() {
            return;
        }
        let is_new = self.replies.is_empty();
        let since = if is_new { accepted.at } else { link.sent_last };
        let limits = self.limits();
        let own = if is_new { limits.first_byte_timeout } else { limits.keep_alive_timeout };
        let mut due = since + micros(own);
        let mut latest = GRAIN;
        if let Some((drained, grace)) = self.worker.drained
            && drained.serial < finished.serial
        {
            let grace = if is_new { grace.first_byte } else { grace.idle };
            due = due.min(since.max(drained.at) + micros(grace));
            if self.world.links.len() >= CROWD {
                latest += micros(grace) / 10;
            }
        }
        if let Some(cancelled) = self.worker.cancelled {
            due = due.min(since.max(cancelled.at));
        }
        let (id, at) = (link.id, finished.at);
        if at < due {
            findings.add(Kind::Impatient, format!("link {id}: closed at {at}, not after {due}"));
        }
        if at > due + latest {
            findings.add(Kind::Overdue, format!("link {id}: closed at {at}, not at {due}"));
        }
    }
}

/// No connection is reset in the accept queue, nor in its handshake when SYNs could be dropped.
fn listener(world: &World, index: usize, findings: &mut Findings) {
    let worker = &world.workers[index];
    let backlog = worker.backlog.borrow();
    let drained = worker.drained.map(|(moment, _)| moment.at);
    // Without time to settle, or descriptors to accept with, there is no way to take them.
    let hurried = [worker.cancelled, worker.cut].into_iter().flatten();
    let mut hurried = hurried.filter(|m| drained.is_none_or(|at| m.at < at + 100 * MILLISECOND));
    let has_swept_enough = drained.is_some_and(|at| backlog.closed >= at + SWEEP);
    let is_exhausted = backlog.closed < backlog.exhausted_until;
    if hurried.next().is_some() || has_swept_enough || is_exhausted {
        return;
    }
    for id in &worker.queue_resets {
        findings.add(Kind::ResetUnaccepted, format!("link {id}: reset in the accept queue"));
    }
    for id in worker.handshake_resets.iter().filter(|_| backlog.may_drop) {
        findings.add(Kind::ResetUnaccepted, format!("link {id}: reset in its handshake"));
    }
}

/// The ledger says what happened.
fn books(world: &World, index: usize, findings: &mut Findings) {
    let worker = &world.workers[index];
    let links = (0..world.links.len()).filter(|id| world.links[*id].borrow().worker == index);
    let links: Vec<Exchange> = links.map(|id| Exchange::of(world, id)).collect();
    let counts: &Counts = &worker.counts;
    let finished = |outcome| counts.finished_as(outcome);
    let mut expect = |what: &str, booked: u64, seen: u64| {
        if booked != seen {
            let what = format!("worker {index}: {what}: {booked} booked, {seen} seen");
            findings.add(Kind::Books, what);
        }
    };
    let accepted = links.iter().filter(|case| case.link.accepted.is_some()).count();
    expect("opened", counts.opened, accepted as u64);
    let called =
        |case: &Exchange| case.link.plans.iter().map(|id| case.plans[*id].calls).sum::<usize>();
    let called: usize = links.iter().map(called).sum();
    expect("begun", counts.begun, called as u64);
    let complete = |case: &Exchange| {
        (0..case.replies.len()).filter(|index| !case.is_rejection(*index)).count()
    };
    let complete: usize = links.iter().map(complete).sum();
    let with_answer = finished(RequestOutcome::Answered) + finished(RequestOutcome::Refused);
    expect("answered or refused", with_answer, complete as u64);
    let rejections = links.iter().map(|case| case.replies.len()).sum::<usize>() - complete;
    let rejected = counts.rejected.iter().sum::<u64>();
    if rejected < rejections as u64 {
        expect("rejected", rejected, rejections as u64);
    }
    let named = |outcome| worker.lost.iter().filter(|lost| lost.outcome == outcome).count() as u64;
    for outcome in [RequestOutcome::Refused, RequestOutcome::Cut] {
        expect(outcome.name(), finished(outcome), named(outcome));
    }
    if matches!(world.end, Some((End::Stopped, _))) {
        expect("in flight at the end", counts.in_flight, 0);
        if counts.open() > 0 {
            findings.add(Kind::Open, format!("worker {index}: {} open", counts.open()));
        }
    }
    for case in &links {
        outcomes(case, findings);
    }
}

/// Each request that was begun and not answered was cut or abandoned, as the case was.
fn outcomes(case: &Exchange, findings: &mut Findings) {
    let lost = |id: usize| {
        let is_it = |path: &str| path[1..].parse() == Ok(id);
        case.worker.lost.iter().find(|lost| is_it(&lost.info.path)).map(|lost| lost.outcome)
    };
    let link = &case.link;
    for (index, id) in link.plans.iter().enumerate().filter(|(_, id)| case.plans[**id].calls > 0) {
        let plan = &case.plans[*id];
        let reply = case.replies.get(index);
        let is_legal = match (reply, lost(*id)) {
            (Some(reply), None) => reply.status != 503 || case.has_short_limits(),
            (Some(reply), Some(outcome)) => {
                outcome == RequestOutcome::Refused
                    && reply.status >= 500
                    && case.worker.cancelled.is_some()
            }
            // Abandoned, or in flight when the process was told to quit.
            (None, None) => {
                link.left.is_some()
                    || case.has_ended_early(plan)
                    || matches!(case.world.end, Some((End::Quit, _)))
                    || case.world.stuck.is_some()
            }
            (None, Some(RequestOutcome::Cut)) => {
                let is_failing = matches!(plan.handler, Handler::Failing { .. });
                case.worker.cut.is_some() || is_failing || case.is_stalled()
            }
            (None, Some(_)) => false,
        };
        if !is_legal {
            let status = reply.map(|reply| reply.status);
            let what = format!("request {id}: status {status:?}, booked as {:?}", lost(*id));
            findings.add(Kind::Books, what);
        }
    }
}

fn micros(duration: std::time::Duration) -> Micros {
    u64::try_from(duration.as_micros()).expect("seconds")
}

/// A turn, and the millisecond that a sleep may last too long.
const TURN: Micros = 3 * MILLISECOND;

/// How long a listener is swept at most, for want of descriptors or because clients keep coming.
const SWEEP: Micros = 250 * MILLISECOND;

/// From so many connections on, closing them is spread over a tenth of their time.
const CROWD: usize = 64;

/// Deadlines of connections are kept to a tenth of a second, and looked at as often.
const GRAIN: Micros = 210 * MILLISECOND;

//! Clean-up hooks: what is to be done once HTTP is over, or at the very end.
//!
//! [`Cleanup`] is pure: it says which hooks to start and until when each may run, and is told how
//! they ended; the stages come one after the other, the hooks of a stage run side by side. Whoever
//! drives it runs each on a thread of its own ([`Start::run`]). A hook cannot be stopped from
//! outside: one that overruns its time is recorded and abandoned, its thread ends with the process.
//!
//! Invariants:
//! 1. Every hook is run at most once and has exactly one outcome.
//! 2. A stage begins when every hook of the one before has its outcome.
//! 3. The last hook has its outcome by the end that [`Cleanup::begin`] was given, whatever hooks
//!    do, and the hooks of stage `last` have a share of the time whatever those before took.

use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::said::{chain, panic_message};

/// One step of a shutdown's clean-up.
///
/// ```
/// use std::time::Duration;
/// use ebbtide::Hook;
///
/// let hook = Hook::http_drained("close the archive", |deadline| {
///     // Give up by `deadline`: nobody waits any longer.
///     let _ = deadline;
///     Ok(())
/// })
/// .limit(Duration::from_secs(2));
/// # let _ = hook;
/// ```
pub struct Hook {
    name: String,
    stage: HookStage,
    limit: Option<Duration>,
    work: Work,
}

type Work = Box<dyn FnOnce(Instant) -> Result<(), HookError> + Send>;

/// What a hook may fail with.
pub type HookError = Box<dyn Error + Send + Sync>;

/// When a hook runs. The hooks of a stage run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookStage {
    /// No connection is left and no request: what the handlers worked with can be closed.
    HttpDrained,
    /// Everything else is closed: flush what is told of it.
    Last,
}

impl HookStage {
    const ALL: [HookStage; 2] = [HookStage::HttpDrained, HookStage::Last];

    /// Its name in logs and the report.
    pub fn name(self) -> &'static str {
        match self {
            HookStage::HttpDrained => "http_drained",
            HookStage::Last => "last",
        }
    }
}

impl Hook {
    /// A hook of stage [`HookStage::HttpDrained`]. `work` runs on a thread of its own and is given
    /// the instant after which nobody waits for it.
    pub fn http_drained(
        name: impl Into<String>,
        work: impl FnOnce(Instant) -> Result<(), HookError> + Send + 'static,
    ) -> Hook {
        Hook::new(name.into(), HookStage::HttpDrained, Box::new(work))
    }

    /// As [`http_drained`](Hook::http_drained), in stage [`HookStage::Last`].
    pub fn last(
        name: impl Into<String>,
        work: impl FnOnce(Instant) -> Result<(), HookError> + Send + 'static,
    ) -> Hook {
        Hook::new(name.into(), HookStage::Last, Box::new(work))
    }

    fn new(name: String, stage: HookStage, work: Work) -> Hook {
        Hook { name, stage, limit: None, work }
    }

    /// How long it may take at most; without, as long as its stage has time.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Hook {
        self.limit = Some(limit);
        self
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hook({:?}, {}, limit {:?})", self.name, self.stage.name(), self.limit)
    }
}

/// How a hook ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// It did its work.
    Done,
    /// It returned an error: this one, with its causes.
    Failed(String),
    /// It panicked, and said so.
    Panicked(String),
    /// It did not end in its time.
    Overran,
    /// The process ended before its turn came.
    Skipped,
}

impl HookOutcome {
    /// Its name in logs and the report.
    pub fn name(&self) -> &'static str {
        match self {
            HookOutcome::Done => "done",
            HookOutcome::Failed(_) => "failed",
            HookOutcome::Panicked(_) => "panicked",
            HookOutcome::Overran => "overran",
            HookOutcome::Skipped => "skipped",
        }
    }

    /// What went wrong, when the hook said so.
    pub fn error(&self) -> Option<&str> {
        match self {
            HookOutcome::Failed(what) | HookOutcome::Panicked(what) => Some(what),
            HookOutcome::Done | HookOutcome::Overran | HookOutcome::Skipped => None,
        }
    }
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookReport {
    /// As given.
    pub name: String,
    /// When it ran.
    pub stage: HookStage,
    /// How it ended.
    pub outcome: HookOutcome,
    /// When it was started, since the clean-up began.
    pub start: Duration,
    /// How long it ran, or was waited for.
    pub took: Duration,
    /// How long it would have been waited for.
    pub limit: Duration,
}

/// The clean-up of one server.
#[derive(Debug, Default)]
pub struct Cleanup {
    /// Hooks of stages that have not begun.
    waiting: Vec<Hook>,
    running: Vec<Running>,
    reports: Vec<HookReport>,
    /// When it began and by when all is over; `Some` once it has begun.
    span: Option<(Instant, Instant)>,
    next_id: HookId,
}

/// Names a hook that runs.
pub type HookId = usize;

#[derive(Debug)]
struct Running {
    id: HookId,
    name: String,
    stage: HookStage,
    since: Instant,
    deadline: Instant,
}

/// A hook to be run now.
pub struct Start {
    /// What [`Cleanup::ended`] wants to hear.
    pub id: HookId,
    pub name: String,
    deadline: Instant,
    work: Work,
}

impl Start {
    /// Runs the hook. Blocks as long as it does; its panic is its outcome.
    pub fn run(self) -> HookOutcome {
        let (work, deadline) = (self.work, self.deadline);
        match catch_unwind(AssertUnwindSafe(|| work(deadline))) {
            Ok(Ok(())) => HookOutcome::Done,
            Ok(Err(error)) => HookOutcome::Failed(chain(&*error)),
            Err(panic) => HookOutcome::Panicked(panic_message(&*panic).to_owned()),
        }
    }
}

impl fmt::Debug for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Start").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cleanup {
    /// Begins with `hooks`, all to be over by `end`. Returns those to be run now.
    pub fn begin(&mut self, now: Instant, end: Instant, hooks: Vec<Hook>) -> Vec<Start> {
        self.waiting.extend(hooks);
        self.span = Some((now, end));
        self.advance(now)
    }

    /// A hook has ended by itself. Returns those to be run now; a hook that had been given up is
    /// not heard of again.
    pub fn ended(&mut self, now: Instant, id: HookId, outcome: HookOutcome) -> Vec<Start> {
        if let Some(at) = self.running.iter().position(|hook| hook.id == id) {
            let hook = self.running.swap_remove(at);
            self.record(&hook, outcome, now);
        }
        self.advance(now)
    }

    /// Gives up the hooks whose time is over. Returns those to be run now.
    pub fn expire(&mut self, now: Instant) -> Vec<Start> {
        let (over, running) =
            std::mem::take(&mut self.running).into_iter().partition(|hook| now >= hook.deadline);
        self.running = running;
        let over: Vec<Running> = over;
        for hook in over {
            self.record(&hook, HookOutcome::Overran, now);
        }
        self.advance(now)
    }

    /// When [`expire`](Cleanup::expire) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.running.iter().map(|hook| hook.deadline).min()
    }

    /// Whether it has begun and every hook has its outcome.
    pub fn is_over(&self) -> bool {
        self.span.is_some() && self.running.is_empty() && self.waiting.is_empty()
    }

    /// The hooks that have their outcome, in the order in which they came to it.
    pub fn reports(&self) -> &[HookReport] {
        &self.reports
    }

    /// Names of the hooks that run, with the time since they began.
    pub fn running(&self, now: Instant) -> Vec<(&str, Duration)> {
        let age = |hook: &Running| now.saturating_duration_since(hook.since);
        self.running.iter().map(|hook| (hook.name.as_str(), age(hook))).collect()
    }

    /// The process ends now: what runs has overrun, what waits is skipped, `others` as well.
    pub fn close(&mut self, now: Instant, others: Vec<Hook>) {
        self.waiting.extend(others);
        for hook in std::mem::take(&mut self.running) {
            self.record(&hook, HookOutcome::Overran, now);
        }
        for hook in std::mem::take(&mut self.waiting) {
            let (name, stage) = (hook.name, hook.stage);
            let (outcome, none) = (HookOutcome::Skipped, Duration::ZERO);
            let start = self.span.map_or(none, |(begun, _)| now.saturating_duration_since(begun));
            self.reports.push(HookReport { name, stage, outcome, start, took: none, limit: none });
        }
    }

    fn record(&mut self, hook: &Running, outcome: HookOutcome, now: Instant) {
        let begun = self.span.map_or(hook.since, |(begun, _)| begun);
        self.reports.push(HookReport {
            name: hook.name.clone(),
            stage: hook.stage,
            outcome,
            start: hook.since.saturating_duration_since(begun),
            took: now.saturating_duration_since(hook.since),
            limit: hook.deadline.saturating_duration_since(hook.since),
        });
    }

    /// Starts the next stage that has hooks, when none runs.
    fn advance(&mut self, now: Instant) -> Vec<Start> {
        let Some((_, end)) = self.span else { return Vec::new() };
        if !self.running.is_empty() {
            return Vec::new();
        }
        let Some(stage) =
            HookStage::ALL.into_iter().find(|stage| self.waiting.iter().any(|h| h.stage == *stage))
        else {
            return Vec::new();
        };
        let (hooks, later): (Vec<Hook>, Vec<Hook>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|hook| hook.stage == stage);
        let left = end.saturating_duration_since(now);
        let reserve = if later.is_empty() { Duration::ZERO } else { left / LAST_SHARE };
        self.waiting = later;
        let stage_end = now + left.saturating_sub(reserve);
        hooks.into_iter().map(|hook| self.start(hook, now, stage_end)).collect()
    }

    fn start(&mut self, hook: Hook, now: Instant, stage_end: Instant) -> Start {
        let own = hook.limit.and_then(|limit| now.checked_add(limit));
        let deadline = own.map_or(stage_end, |own| own.min(stage_end));
        let id = self.next_id;
        self.next_id += 1;
        let name = hook.name.clone();
        self.running.push(Running { id, name, stage: hook.stage, since: now, deadline });
        Start { id, name: hook.name, deadline, work: hook.work }
    }
}

/// The part of the time that is kept for the hooks of stage `last`: one in so many.
const LAST_SHARE: u32 = 5;

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "any instant will do as the origin")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn fine(name: &str) -> Hook {
        Hook::http_drained(name, |_| Ok(()))
    }

    fn names(starts: &[Start]) -> Vec<&str> {
        starts.iter().map(|start| start.name.as_str()).collect()
    }

    fn outcomes(cleanup: &Cleanup) -> Vec<(&str, &str)> {
        cleanup.reports().iter().map(|hook| (hook.name.as_str(), hook.outcome.name())).collect()
    }

    #[test]
    fn stages_follow_each_other_and_hooks_of_one_run_side_by_side() {
        let t = Instant::now();
        let mut cleanup = Cleanup::default();
        let hooks = vec![Hook::last("flush", |_| Ok(())), fine("a"), fine("b")];
        let mut starts = cleanup.begin(t, t + 1000 * MS, hooks);
        assert_eq!(names(&starts), ["a", "b"]);
        let (b, a) = (starts.pop().expect("two"), starts.pop().expect("two"));
        assert!(cleanup.ended(t + 5 * MS, b.id, b.run()).is_empty());
        let starts = cleanup.ended(t + 9 * MS, a.id, a.run());
        assert_eq!(names(&starts), ["flush"]);
        assert!(!cleanup.is_over());
        assert!(cleanup.ended(t + 10 * MS, starts[0].id, HookOutcome::Done).is_empty());
        assert!(cleanup.is_over());
        assert_eq!(outcomes(&cleanup), [("b", "done"), ("a", "done"), ("flush", "done")]);
        assert_eq!(cleanup.reports()[1].took, 9 * MS);
    }

    #[test]
    fn what_panics_fails_or_hangs_is_recorded_and_the_rest_goes_on() {
        let t = Instant::now();
        let mut cleanup = Cleanup::default();
        let hooks = vec![
            Hook::http_drained("panics", |_| panic!("ouch")),
            Hook::http_drained("fails", |_| Err("no room".into())),
            fine("hangs").limit(100 * MS),
            Hook::last("flush", |_| Ok(())),
        ];
        let starts = cleanup.begin(t, t + 1000 * MS, hooks);
        let hanging = starts[2].id;
        for start in starts.into_iter().take(2) {
            assert!(cleanup.ended(t, start.id, start.run()).is_empty());
        }
        assert_eq!(cleanup.deadline(), Some(t + 100 * MS));
        assert_eq!(names(&cleanup.expire(t + 100 * MS)), ["flush"]);
        // Too late: its outcome stands.
        assert!(cleanup.ended(t + 101 * MS, hanging, HookOutcome::Done).is_empty());
        assert_eq!(
            outcomes(&cleanup),
            [("panics", "panicked"), ("fails", "failed"), ("hangs", "overran")]
        );
        assert_eq!(cleanup.reports()[0].outcome.error(), Some("ouch"));
        cleanup.close(t + 200 * MS, vec![fine("late")]);
        assert_eq!(outcomes(&cleanup)[3..], [("flush", "overran"), ("late", "skipped")]);
    }

    #[test]
    fn the_last_stage_has_time_whatever_the_first_takes() {
        let t = Instant::now();
        let mut cleanup = Cleanup::default();
        let hooks = vec![fine("hangs"), Hook::last("flush", |_| Ok(()))];
        cleanup.begin(t, t + 1000 * MS, hooks);
        assert_eq!(cleanup.deadline(), Some(t + 800 * MS));
        assert_eq!(names(&cleanup.expire(t + 800 * MS)), ["flush"]);
        assert_eq!(cleanup.deadline(), Some(t + 1000 * MS));
    }

    #[test]
    fn nothing_to_do_is_over_at_once() {
        let t = Instant::now();
        let mut cleanup = Cleanup::default();
        assert!(!cleanup.is_over());
        assert!(cleanup.begin(t, t, Vec::new()).is_empty());
        assert!(cleanup.is_over());
    }

    proptest! {
        #[test]
        fn every_hook_has_one_outcome_by_the_end(
            hooks in proptest::collection::vec((any::<bool>(), 0u64..1500, 0u64..2000), 0..8),
            end in 0u64..1000,
        ) {
            let t = Instant::now();
            let at = |ms| t + Duration::from_millis(ms);
            let mut cleanup = Cleanup::default();
            let made = hooks.iter().enumerate().map(|(i, (is_last, limit, _))| {
                let hook = if *is_last {
                    Hook::last(i.to_string(), |_| Ok(()))
                } else {
                    fine(&i.to_string())
                };
                hook.limit(Duration::from_millis(*limit))
            });
            let mut starts = cleanup.begin(t, at(end), made.collect());
            // When each hook that runs ends by itself.
            let mut ends: Vec<(u64, HookId)> = Vec::new();
            for now in 0..=end {
                loop {
                    for start in starts.drain(..) {
                        let index: usize = start.name.parse().expect("a number");
                        ends.push((now + hooks[index].2, start.id));
                    }
                    if let Some(i) = ends.iter().position(|(at, _)| *at <= now) {
                        let (_, id) = ends.swap_remove(i);
                        starts = cleanup.ended(at(now), id, HookOutcome::Done);
                    } else if cleanup.deadline().is_some_and(|deadline| deadline <= at(now)) {
                        starts = cleanup.expire(at(now));
                    } else {
                        break;
                    }
                }
            }
            prop_assert!(cleanup.is_over());
            prop_assert_eq!(cleanup.reports().len(), hooks.len());
            for report in cleanup.reports() {
                // To the step of this loop.
                prop_assert!(report.took < report.limit + MS);
            }
        }
    }
}

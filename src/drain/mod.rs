//! The shutdown as a state machine. Pure: facts in, orders out, `now` is an argument.
//!
//! ```text
//! running ─► lame_duck ─► draining ─► cancelling ─► cleaning_up ─► stopped
//!    ▲           │           │  ▲ overtime: past T, without force  ▲
//!    └── undone ─┘           └── nothing left ─────────────────────┘
//! ```
//!
//! `table.rs` says what each event means in each stage, this file what that takes.
//!
//! Invariants:
//! 1. Phases only move to the right, but for a lame duck that is undone.
//! 2. Every deadline lies within the budget T, counted from the first signal, unless the policy
//!    says that the server may wait for ever; time that a phase does not need goes to the next.
//! 3. `stopped` is reached whatever the workers do: no order waits for an answer.
//!
//! The table, with the phases for stages:
//!
//! ```text
#![doc = include_str!("table.txt")]
//! ```

// A new phase, order or signal must break the build where it is not thought of.
#![deny(clippy::wildcard_enum_match_arm)]

mod budget;
mod table;

use std::time::{Duration, Instant};

pub use self::budget::{AtDeadline, Budget, InFlight, Policy};
use self::table::{Event, Stage, Step, step};

/// The phases, in the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving; no signal has come.
    Running,
    /// Not ready any more, still accepting: load balancers are to notice.
    LameDuck,
    /// Listeners are retired; requests in flight finish.
    Draining,
    /// The end is near: handlers are told, late requests are refused, the rest is cut.
    Cancelling,
    /// Connections are gone; clean-up steps run.
    CleaningUp,
    /// Nothing is left to do.
    Stopped,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Phase; 6] = [
        Phase::Running,
        Phase::LameDuck,
        Phase::Draining,
        Phase::Cancelling,
        Phase::CleaningUp,
        Phase::Stopped,
    ];

    /// Its name in logs, metrics and the report.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Running => "running",
            Phase::LameDuck => "lame_duck",
            Phase::Draining => "draining",
            Phase::Cancelling => "cancelling",
            Phase::CleaningUp => "cleaning_up",
            Phase::Stopped => "stopped",
        }
    }
}

/// The signals that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: begins a shutdown, or takes it one step up.
    Terminate,
    /// SIGINT: as SIGTERM, but somebody is waiting at a terminal.
    Interrupt,
    /// SIGHUP: begins a shutdown; during one it is only logged.
    HangUp,
    /// SIGQUIT: ends the process at once.
    Quit,
}

impl Signal {
    /// Its name, as `signal(7)` has it.
    pub fn name(self) -> &'static str {
        match self {
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
            Signal::HangUp => "SIGHUP",
            Signal::Quit => "SIGQUIT",
        }
    }

    /// The status of a process that this signal ended at once: 128 and its number (`signal(7)`).
    pub fn exit_status(self) -> u8 {
        128 + match self {
            Signal::HangUp => 1,
            Signal::Interrupt => 2,
            Signal::Quit => 3,
            Signal::Terminate => 15,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Signal(Signal),
    /// What stands is to be ended now.
    Force,
    /// The shutdown is to be taken back.
    Undo,
    /// A deadline may have passed.
    Expired,
    /// Every listener is retired, no connection is left and no other work.
    Quiet,
    /// Nothing is left to clean up.
    CleanedUp,
}

/// What is to be done. Orders are obeyed in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Not ready any more; responses announce the close.
    Announce,
    /// Ready again: the shutdown was taken back.
    Resume,
    /// Retire the listeners and treat each connection by its state.
    Drain { idle: Patience },
    /// Idle connections close; handlers are told.
    Cancel,
    /// Requests without a response head are answered 503.
    Refuse,
    /// What still stands is reset.
    Cut,
    /// Run the clean-up.
    CleanUp,
    /// Everything is over.
    Stop,
    /// End now, with this status.
    Quit(u8),
}

/// Whether a drain waits for clients that owe nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    Window,
    /// Somebody waits at a terminal.
    None,
}

/// Orders of one step: at most six.
pub type Orders = Vec<Order>;

/// The shutdown of one server.
#[derive(Debug)]
pub struct Drain {
    policy: Policy,
    budget: Budget,
    stage: Stage,
    /// When the first signal came; `Some` from then on, unless it is taken back.
    begun: Option<Instant>,
    /// The end of the current stage; `None` in a stage without one.
    deadline: Option<Instant>,
    /// The last signal that was acted upon.
    last_signal: Option<Instant>,
}

impl Drain {
    pub fn new(policy: Policy) -> Drain {
        let policy = policy.bounded();
        let budget = Budget::carve(policy.timeout, policy.delay);
        Drain {
            policy,
            budget,
            stage: Stage::Running,
            begun: None,
            deadline: None,
            last_signal: None,
        }
    }

    pub fn phase(&self) -> Phase {
        self.stage.phase()
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// When the shutdown began.
    pub fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// The end of the whole budget; `None` before the shutdown has begun.
    pub fn end(&self) -> Option<Instant> {
        self.begun.map(|begun| begun + self.policy.timeout)
    }

    /// The next instant at which [`Input::Expired`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the deadline of draining has passed and the policy waits on.
    pub fn is_overtime(&self) -> bool {
        self.stage == Stage::Overtime
    }

    /// Takes a fact in and says what to do.
    pub fn handle(&mut self, now: Instant, input: Input) -> Orders {
        let event = match input {
            Input::Expired if self.deadline.is_none_or(|at| now < at) => return Vec::new(),
            Input::Expired => Event::Expired,
            Input::Signal(Signal::Quit) => Event::Quit,
            Input::Signal(signal) if self.is_echo(now, signal) => return Vec::new(),
            Input::Signal(Signal::Terminate) => Event::Terminate,
            Input::Signal(Signal::Interrupt) => Event::Interrupt,
            Input::Signal(Signal::HangUp) => Event::HangUp,
            Input::Force => Event::Force,
            Input::Undo => Event::Undo,
            Input::Quiet => Event::Quiet,
            Input::CleanedUp => Event::CleanedUp,
        };
        let step = step(self.stage, event);
        if let (Input::Signal(signal), true) = (input, step != Step::Pass) {
            self.last_signal = Some(now);
            if step == Step::Quit {
                self.enter(Stage::Stopped, None);
                return vec![Order::Quit(signal.exit_status())];
            }
        }
        self.take(step, now)
    }

    /// Whether a signal comes so soon after the last one that both are one wish.
    fn is_echo(&self, now: Instant, signal: Signal) -> bool {
        signal != Signal::Quit && self.last_signal.is_some_and(|last| now < last + SIGNAL_ECHO)
    }

    fn take(&mut self, step: Step, now: Instant) -> Orders {
        match step {
            Step::Pass | Step::Quit => Vec::new(),
            Step::Begin => self.begin(now),
            Step::Hurry => {
                self.begun = Some(now);
                let mut orders = vec![Order::Announce];
                orders.extend(self.drain(now, Patience::None));
                orders
            }
            Step::Resume => {
                self.begun = None;
                self.last_signal = None;
                self.stage = Stage::Running;
                self.deadline = None;
                vec![Order::Resume]
            }
            Step::Drain => self.drain(now, Patience::Window),
            Step::DrainAndCancel => {
                self.enter(Stage::Asking, Some(now + self.budget.cancelling / 2));
                vec![Order::Drain { idle: Patience::None }, Order::Cancel]
            }
            Step::Cancel => self.cancel(now),
            Step::TimeIsUp => match self.policy.at_deadline {
                AtDeadline::Cut => self.cancel(now),
                AtDeadline::WaitOn => {
                    self.enter(Stage::Overtime, None);
                    Vec::new()
                }
            },
            Step::Refuse => {
                self.enter(Stage::Refusing, Some(now + self.budget.cancelling / 2));
                vec![Order::Refuse]
            }
            Step::Cut => self.cut(now),
            Step::CleanUp => self.clean_up(now, Stage::HooksLeft),
            Step::AwaitCut => {
                // Not quiet by now means cut: a worker that is stuck will never say more.
                let end = self.deadline.map(|at| at.min(now + CUT_SETTLE));
                self.enter(Stage::CutLeft, end);
                Vec::new()
            }
            Step::AwaitHooks => {
                self.enter(Stage::HooksLeft, self.deadline);
                Vec::new()
            }
            Step::Stop => {
                self.enter(Stage::Stopped, None);
                vec![Order::Stop]
            }
        }
    }

    fn begin(&mut self, now: Instant) -> Orders {
        self.begun = Some(now);
        let mut orders = vec![Order::Announce];
        if self.budget.lame_duck > Duration::ZERO {
            self.enter(Stage::LameDuck, Some(now + self.budget.lame_duck));
        } else {
            orders.extend(self.drain(now, Patience::Window));
        }
        orders
    }

    fn drain(&mut self, now: Instant, idle: Patience) -> Orders {
        if self.policy.in_flight == InFlight::Cancel {
            let mut orders = vec![Order::Drain { idle: Patience::None }];
            orders.extend(self.cancel(now));
            return orders;
        }
        let spare = self.budget.cancelling + self.budget.cleaning_up;
        let end = self.end().map(|end| end.checked_sub(spare).unwrap_or(now));
        self.enter(Stage::Draining, end);
        vec![Order::Drain { idle }]
    }

    fn cancel(&mut self, now: Instant) -> Orders {
        self.enter(Stage::Asking, Some(now + self.budget.cancelling / 2));
        vec![Order::Cancel]
    }

    /// What has not been ordered yet on the way to the cut is ordered with it.
    fn cut(&mut self, now: Instant) -> Orders {
        let mut orders = match self.stage.phase() {
            Phase::Running => vec![Order::Announce, Order::Drain { idle: Patience::None }],
            Phase::LameDuck => vec![Order::Drain { idle: Patience::None }],
            Phase::Draining | Phase::Cancelling | Phase::CleaningUp | Phase::Stopped => Vec::new(),
        };
        if self.stage.phase() < Phase::Cancelling {
            orders.push(Order::Cancel);
        }
        orders.push(Order::Cut);
        self.begun.get_or_insert(now);
        orders.extend(self.clean_up(now, Stage::CleaningUp));
        orders
    }

    fn clean_up(&mut self, now: Instant, stage: Stage) -> Orders {
        // Time saved earlier is not given to the clean-up: its limit is a promise of its own.
        let own = now + self.budget.cleaning_up;
        let end = match self.policy.at_deadline {
            AtDeadline::Cut => self.end().map_or(own, |end| end.min(own).max(now)),
            AtDeadline::WaitOn => own,
        };
        self.enter(stage, Some(end));
        vec![Order::CleanUp]
    }

    fn enter(&mut self, stage: Stage, deadline: Option<Instant>) {
        let before = self.phase();
        self.stage = stage;
        self.deadline = deadline;
        assert!(before <= self.phase(), "phases only move to the right");
    }
}

/// How long the workers have to confirm the cut when nothing else is waited for: many turns, even
/// on a machine that is busy with other things. Only one that is stuck needs all of it.
const CUT_SETTLE: Duration = Duration::from_millis(250);

/// Two signals within this time count as one.
const SIGNAL_ECHO: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn drain(policy: Policy) -> (Drain, Instant) {
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the origin")]
        (Drain::new(policy), Instant::now())
    }

    #[test]
    fn an_empty_server_stops_as_soon_as_it_is_quiet() {
        let (mut drain, t) = drain(Policy::default());
        let orders = drain.handle(t, Input::Signal(Signal::Terminate));
        assert_eq!(orders, [Order::Announce, Order::Drain { idle: Patience::Window }]);
        assert_eq!(drain.handle(t + MS, Input::Quiet), [Order::CleanUp]);
        assert_eq!(drain.handle(t + MS, Input::CleanedUp), [Order::Stop]);
        assert_eq!(drain.phase(), Phase::Stopped);
    }

    #[test]
    fn a_deaf_server_is_stopped_within_the_budget() {
        let (mut drain, t) = drain(Policy { timeout: 2000 * MS, ..Policy::default() });
        let mut orders = drain.handle(t, Input::Signal(Signal::Terminate));
        let mut now = t;
        while let Some(at) = drain.deadline() {
            now = at;
            orders.extend(drain.handle(at, Input::Expired));
        }
        assert_eq!(
            orders,
            [
                Order::Announce,
                Order::Drain { idle: Patience::Window },
                Order::Cancel,
                Order::Refuse,
                Order::Cut,
                Order::CleanUp,
                Order::Stop
            ]
        );
        assert_eq!(now, t + 2000 * MS);
    }

    #[test]
    fn signals_escalate_but_echoes_and_hang_ups_do_not() {
        let (mut drain, t) = drain(Policy::default());
        drain.handle(t, Input::Signal(Signal::HangUp));
        assert_eq!(drain.handle(t + 50 * MS, Input::Signal(Signal::Terminate)), []);
        assert_eq!(drain.handle(t + 150 * MS, Input::Signal(Signal::HangUp)), []);
        assert_eq!(drain.phase(), Phase::Draining);
        assert_eq!(drain.handle(t + 200 * MS, Input::Signal(Signal::Terminate)), [Order::Cancel]);
        assert_eq!(drain.handle(t + 250 * MS, Input::Signal(Signal::Terminate)), []);
        let orders = drain.handle(t + 400 * MS, Input::Signal(Signal::Interrupt));
        assert_eq!(orders, [Order::Quit(130)]);
        assert_eq!(drain.phase(), Phase::Stopped);
    }

    #[test]
    fn an_interrupt_skips_the_lame_duck_and_the_window() {
        let (mut drain, t) = drain(Policy { delay: 5000 * MS, ..Policy::default() });
        let orders = drain.handle(t, Input::Signal(Signal::Interrupt));
        assert_eq!(orders, [Order::Announce, Order::Drain { idle: Patience::None }]);
    }

    #[test]
    fn quit_ends_at_once_from_anywhere() {
        let (mut drain, t) = drain(Policy::default());
        assert_eq!(drain.handle(t, Input::Signal(Signal::Quit)), [Order::Quit(131)]);
    }

    #[test]
    fn without_waiting_what_has_arrived_is_begun_and_cancelled() {
        let (mut drain, t) = drain(Policy { in_flight: InFlight::Cancel, ..Policy::default() });
        let orders = drain.handle(t, Input::Signal(Signal::Terminate));
        assert_eq!(orders, [Order::Announce, Order::Drain { idle: Patience::None }, Order::Cancel]);
    }

    #[test]
    fn without_force_the_server_waits_on_past_its_budget() {
        let (mut drain, t) = drain(Policy { at_deadline: AtDeadline::WaitOn, ..Policy::default() });
        drain.handle(t, Input::Signal(Signal::Terminate));
        let at = drain.deadline().expect("draining has a deadline");
        assert_eq!(drain.handle(at, Input::Expired), []);
        assert_eq!(drain.stage, Stage::Overtime);
        assert_eq!(drain.deadline(), None);
        let late = t + 3_600_000 * MS;
        assert_eq!(drain.handle(late, Input::Quiet), [Order::CleanUp]);
        assert!(drain.deadline().is_some_and(|at| at > late));
    }

    #[test]
    fn the_way_back_is_open_as_long_as_the_listeners_are() {
        let (mut drain, t) = drain(Policy { delay: 5000 * MS, ..Policy::default() });
        assert_eq!(drain.handle(t, Input::Undo), []);
        drain.handle(t, Input::Signal(Signal::Terminate));
        assert_eq!(drain.phase(), Phase::LameDuck);
        assert_eq!(drain.handle(t + MS, Input::Undo), [Order::Resume]);
        assert_eq!((drain.phase(), drain.begun(), drain.deadline()), (Phase::Running, None, None));
        // A signal right after it is no echo of the one that was taken back.
        let orders = drain.handle(t + 2 * MS, Input::Signal(Signal::Interrupt));
        assert_eq!(orders, [Order::Announce, Order::Drain { idle: Patience::None }]);
        assert_eq!(drain.handle(t + 3 * MS, Input::Undo), []);
        assert_eq!(drain.phase(), Phase::Draining);
    }

    #[test]
    fn force_cuts_from_anywhere_and_still_cleans_up() {
        let (mut drain, t) = drain(Policy::default());
        let orders = drain.handle(t, Input::Force);
        assert_eq!(
            orders,
            [
                Order::Announce,
                Order::Drain { idle: Patience::None },
                Order::Cancel,
                Order::Cut,
                Order::CleanUp
            ]
        );
        assert_eq!(drain.handle(t, Input::CleanedUp), []);
        assert_eq!(drain.handle(t, Input::Quiet), [Order::Stop]);
    }

    #[test]
    fn hooks_are_waited_for_and_then_the_cut_for_a_moment() {
        let (mut drain, t) = drain(Policy::default());
        drain.handle(t, Input::Signal(Signal::Interrupt));
        assert_eq!(drain.handle(t, Input::Quiet), [Order::CleanUp]);
        assert_eq!(drain.deadline(), Some(t + 5000 * MS));
        assert_eq!(drain.handle(t + 4000 * MS, Input::CleanedUp), [Order::Stop]);

        let (mut drain, t) = self::drain(Policy::default());
        drain.handle(t, Input::Force);
        assert_eq!(drain.handle(t + MS, Input::CleanedUp), []);
        assert_eq!(drain.deadline(), Some(t + MS + CUT_SETTLE));
        assert_eq!(drain.handle(t + MS + CUT_SETTLE, Input::Expired), [Order::Stop]);
    }

    proptest! {
        #[test]
        fn any_run_of_events_ends_in_time_and_in_order(
            events in proptest::collection::vec((0u64..4000, 0usize..9), 0..40),
            delay in 0u64..600,
        ) {
            let timeout = 2000 * MS;
            let (mut drain, t) =
                drain(Policy { timeout, delay: Duration::from_millis(delay), ..Policy::default() });
            let mut now = t;
            let mut phase = drain.phase();
            for (gap, event) in events {
                let until = now + Duration::from_millis(gap);
                // The caller sleeps until the deadline at the latest.
                while let Some(at) = drain.deadline().filter(|at| *at <= until) {
                    now = at;
                    drain.handle(now, Input::Expired);
                }
                now = until;
                let input = match event {
                    0 => Input::Signal(Signal::Terminate),
                    1 => Input::Signal(Signal::Interrupt),
                    2 => Input::Signal(Signal::HangUp),
                    3 => Input::Signal(Signal::Quit),
                    4 => Input::Quiet,
                    5 => Input::CleanedUp,
                    6 => Input::Force,
                    7 => Input::Undo,
                    _ => Input::Expired,
                };
                drain.handle(now, input);
                let is_undone = phase == Phase::LameDuck && input == Input::Undo;
                prop_assert!(drain.phase() >= phase || is_undone);
                phase = drain.phase();
                if let Some(end) = drain.end() {
                    prop_assert!(drain.deadline().is_none_or(|at| at <= end));
                    prop_assert!(now < end || phase == Phase::Stopped);
                }
            }
        }
    }
}

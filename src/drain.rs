//! The shutdown as a state machine. Pure: facts in, orders out, `now` is an argument.
//!
//! ```text
//! running ─► lame_duck ─► draining ─► cancelling ─► cleaning_up ─► stopped
//!                            │  ▲ overtime: past T, without force  ▲
//!                            └── nothing left ─────────────────────┘
//! ```
//!
//! Invariants:
//! 1. Phases only move to the right.
//! 2. Every deadline lies within the budget T, counted from the first signal, unless the policy
//!    says that the server may wait for ever; time that a phase does not need goes to the next.
//! 3. `stopped` is reached whatever the workers do: no order waits for an answer.

// A new phase, order or signal must break the build where it is not thought of.
#![deny(clippy::wildcard_enum_match_arm)]

use std::time::{Duration, Instant};

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

/// What the operator wants of a shutdown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// T: from the first signal to the end of the process.
    pub timeout: Duration,
    /// How long to serve on, not ready, before draining. At most a third of `timeout`.
    pub delay: Duration,
    /// For a request on a connection that has not sent a byte.
    pub first_byte_grace: Duration,
    /// For one more request on an idle connection.
    pub idle_window: Duration,
    /// Whether requests in flight are given time.
    pub in_flight: InFlight,
    /// What happens when the time is up.
    pub at_deadline: AtDeadline,
}

/// See [`Policy::in_flight`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFlight {
    /// They have until the deadline.
    Wait,
    /// `shutdown_wait_for_connections = false`: begin what has arrived, then cancel at once.
    Cancel,
}

/// See [`Policy::at_deadline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtDeadline {
    /// What is left is ended, named and counted.
    Cut,
    /// `shutdown_force_after_timeout = false`: go on waiting for requests in flight.
    WaitOn,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            timeout: Duration::from_secs(30),
            delay: Duration::ZERO,
            first_byte_grace: Duration::from_secs(1),
            idle_window: Duration::from_secs(5),
            in_flight: InFlight::Wait,
            at_deadline: AtDeadline::Cut,
        }
    }
}

/// How long each phase may last. The parts add up to T.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    pub lame_duck: Duration,
    pub draining: Duration,
    pub cancelling: Duration,
    pub cleaning_up: Duration,
}

impl Budget {
    /// Carves the phases out of `timeout`. A delay of more than a third of it is cut down to that.
    pub fn carve(timeout: Duration, delay: Duration) -> Budget {
        let cancelling = CANCELLING_MAX.min(timeout / 5);
        let cleaning_up = CLEANING_UP_MAX.min(timeout / 5);
        let lame_duck = delay.min(timeout / 3);
        let draining = timeout.saturating_sub(cancelling + cleaning_up + lame_duck);
        Budget { lame_duck, draining, cancelling, cleaning_up }
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
    /// A deadline may have passed.
    Expired,
    /// Every listener is retired and no connection is left.
    Quiet,
    /// Nothing is left to clean up.
    CleanedUp,
}

/// What is to be done. Orders are obeyed in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Not ready any more; responses announce the close.
    Announce,
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

/// Where the shutdown is. Finer than [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Running,
    LameDuck,
    Draining,
    /// Past the deadline of draining, with a policy that waits on.
    Overtime,
    /// Cancelling, while handlers may still answer.
    Asking,
    /// Cancelling, after the 503s.
    Refusing,
    CleaningUp,
    Stopped,
}

/// Orders of one step: at most four.
pub type Orders = Vec<Order>;

/// The shutdown of one server.
#[derive(Debug)]
pub struct Drain {
    policy: Policy,
    budget: Budget,
    stage: Stage,
    /// When the first signal came; `Some` from then on.
    begun: Option<Instant>,
    /// The end of the current stage; `None` in a stage without one.
    deadline: Option<Instant>,
    /// The last signal that was acted upon.
    last_signal: Option<Instant>,
    /// Whether the clean-up is over, and whether the connections are.
    cleaned_up: bool,
    quiet: bool,
}

impl Drain {
    pub fn new(policy: Policy) -> Drain {
        let budget = Budget::carve(policy.timeout, policy.delay);
        Drain {
            policy,
            budget,
            stage: Stage::Running,
            begun: None,
            deadline: None,
            last_signal: None,
            cleaned_up: false,
            quiet: false,
        }
    }

    pub fn phase(&self) -> Phase {
        match self.stage {
            Stage::Running => Phase::Running,
            Stage::LameDuck => Phase::LameDuck,
            Stage::Draining | Stage::Overtime => Phase::Draining,
            Stage::Asking | Stage::Refusing => Phase::Cancelling,
            Stage::CleaningUp => Phase::CleaningUp,
            Stage::Stopped => Phase::Stopped,
        }
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
        match input {
            Input::Signal(signal) => self.signal(now, signal),
            Input::Expired => match self.deadline {
                Some(at) if now >= at => self.expired(now),
                Some(_) | None => Vec::new(),
            },
            Input::Quiet => self.became_quiet(now),
            Input::CleanedUp => {
                self.cleaned_up = true;
                if self.stage == Stage::CleaningUp {
                    // Not quiet by now means cut: a worker that is stuck will never say more.
                    self.deadline = self.deadline.map(|at| at.min(now + CUT_SETTLE));
                }
                self.maybe_stop()
            }
        }
    }

    fn signal(&mut self, now: Instant, signal: Signal) -> Orders {
        if signal == Signal::Quit {
            return self.quit(signal);
        }
        let is_echo = self.last_signal.is_some_and(|last| now < last + SIGNAL_ECHO);
        match self.stage {
            Stage::Running => {
                self.last_signal = Some(now);
                self.begin(now, signal)
            }
            // A closing terminal sends HUP and TERM together.
            _ if signal == Signal::HangUp || is_echo => Vec::new(),
            Stage::LameDuck => {
                self.last_signal = Some(now);
                let mut orders = vec![Order::Drain { idle: Patience::None }];
                orders.extend(self.cancel(now));
                orders
            }
            Stage::Draining | Stage::Overtime => {
                self.last_signal = Some(now);
                self.cancel(now)
            }
            Stage::Asking | Stage::Refusing | Stage::CleaningUp => self.quit(signal),
            Stage::Stopped => Vec::new(),
        }
    }

    fn begin(&mut self, now: Instant, signal: Signal) -> Orders {
        self.begun = Some(now);
        let is_urgent = signal == Signal::Interrupt;
        let mut orders = vec![Order::Announce];
        if self.budget.lame_duck > Duration::ZERO && !is_urgent {
            self.enter(Stage::LameDuck, Some(now + self.budget.lame_duck));
            return orders;
        }
        let idle = if is_urgent { Patience::None } else { Patience::Window };
        orders.extend(self.drain(now, idle));
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

    fn clean_up(&mut self, now: Instant) -> Orders {
        // Time saved earlier is not given to the clean-up: its limit is a promise of its own.
        let own = now + self.budget.cleaning_up;
        let end = match self.policy.at_deadline {
            AtDeadline::Cut => self.end().map_or(own, |end| end.min(own).max(now)),
            AtDeadline::WaitOn => own,
        };
        self.enter(Stage::CleaningUp, Some(end));
        vec![Order::CleanUp]
    }

    fn expired(&mut self, now: Instant) -> Orders {
        match self.stage {
            Stage::LameDuck => self.drain(now, Patience::Window),
            Stage::Draining => match self.policy.at_deadline {
                AtDeadline::Cut => self.cancel(now),
                AtDeadline::WaitOn => {
                    self.enter(Stage::Overtime, None);
                    Vec::new()
                }
            },
            Stage::Asking => {
                self.enter(Stage::Refusing, Some(now + self.budget.cancelling / 2));
                vec![Order::Refuse]
            }
            Stage::Refusing => {
                let mut orders = vec![Order::Cut];
                orders.extend(self.clean_up(now));
                orders
            }
            Stage::CleaningUp => {
                self.enter(Stage::Stopped, None);
                vec![Order::Stop]
            }
            Stage::Running | Stage::Overtime | Stage::Stopped => Vec::new(),
        }
    }

    fn became_quiet(&mut self, now: Instant) -> Orders {
        self.quiet = true;
        match self.stage {
            Stage::Draining | Stage::Overtime | Stage::Asking | Stage::Refusing => {
                self.clean_up(now)
            }
            Stage::CleaningUp => self.maybe_stop(),
            Stage::Running | Stage::LameDuck | Stage::Stopped => Vec::new(),
        }
    }

    fn maybe_stop(&mut self) -> Orders {
        if self.stage == Stage::CleaningUp && self.cleaned_up && self.quiet {
            self.enter(Stage::Stopped, None);
            return vec![Order::Stop];
        }
        Vec::new()
    }

    fn quit(&mut self, signal: Signal) -> Orders {
        if self.stage == Stage::Stopped {
            return Vec::new();
        }
        self.enter(Stage::Stopped, None);
        vec![Order::Quit(signal.exit_status())]
    }

    fn enter(&mut self, stage: Stage, deadline: Option<Instant>) {
        let before = self.phase();
        self.stage = stage;
        self.deadline = deadline;
        assert!(before <= self.phase(), "phases only move to the right");
    }
}

/// The most that cancelling may take of the budget.
const CANCELLING_MAX: Duration = Duration::from_secs(2);

/// The most that the clean-up may take of the budget.
const CLEANING_UP_MAX: Duration = Duration::from_secs(5);

/// How long the workers have to confirm the cut when nothing else is waited for.
const CUT_SETTLE: Duration = Duration::from_millis(50);

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
        assert!(drain.is_overtime());
        assert_eq!(drain.deadline(), None);
        let late = t + 3_600_000 * MS;
        assert_eq!(drain.handle(late, Input::Quiet), [Order::CleanUp]);
        assert!(drain.deadline().is_some_and(|at| at > late));
    }

    proptest! {
        #[test]
        fn the_parts_never_overrun_the_budget(timeout in 100u64..86_400_000, third in 0u64..=3000) {
            let timeout = Duration::from_millis(timeout);
            let delay = timeout * u32::try_from(third).expect("small") / 3000;
            let budget = Budget::carve(timeout, delay);
            let sum =
                budget.lame_duck + budget.draining + budget.cancelling + budget.cleaning_up;
            prop_assert_eq!(sum, timeout);
            prop_assert!(budget.cancelling > Duration::ZERO);
            prop_assert!(budget.cleaning_up > Duration::ZERO);
            prop_assert!(budget.draining > Duration::ZERO);
        }

        #[test]
        fn any_run_of_events_ends_in_time_and_in_order(
            events in proptest::collection::vec((0u64..4000, 0usize..7), 0..40),
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
                    _ => Input::Expired,
                };
                drain.handle(now, input);
                prop_assert!(drain.phase() >= phase);
                phase = drain.phase();
                if let Some(end) = drain.end() {
                    prop_assert!(drain.deadline().is_none_or(|at| at <= end));
                    prop_assert!(now < end || phase == Phase::Stopped);
                }
            }
        }
    }
}

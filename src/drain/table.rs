//! The table: what each event means in each stage. `table.txt` beside this file is its rendering,
//! which a test keeps up to date.

// A new stage or event must break the build where it is not thought of.
#![deny(clippy::wildcard_enum_match_arm)]

use super::Phase;

/// Where the shutdown is. Finer than [`Phase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Running,
    LameDuck,
    Draining,
    /// Draining past its deadline, with a policy that waits on.
    Overtime,
    /// Cancelling, while handlers may still answer.
    Asking,
    /// Cancelling, after the 503s.
    Refusing,
    /// What stood was cut: hooks run, and the workers are to confirm.
    CleaningUp,
    /// The workers have nothing left: hooks run.
    HooksLeft,
    /// The hooks are done: the workers have a moment to confirm the cut.
    CutLeft,
    Stopped,
}

/// What can happen, as the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Terminate,
    Interrupt,
    HangUp,
    Quit,
    Force,
    Undo,
    Expired,
    Quiet,
    CleanedUp,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Pass,
    /// Begin: the lame duck if there is a delay, else drain.
    Begin,
    /// Begin without lame duck and idle window.
    Hurry,
    /// Serve on as if nothing had happened.
    Resume,
    /// The delay is over: drain.
    Drain,
    /// One step up from the lame duck: drain without idle window, and cancel.
    DrainAndCancel,
    /// One step up, whatever time is left: cancel.
    Cancel,
    /// The time for draining is over: cancel, or wait on, as the policy says.
    TimeIsUp,
    /// Handlers had their time: 503.
    Refuse,
    /// End what stands and clean up, from wherever the shutdown is.
    Cut,
    /// Nothing is left: clean up.
    CleanUp,
    /// The hooks are done, but not every worker has confirmed the cut.
    AwaitCut,
    /// The workers are done, but not the hooks.
    AwaitHooks,
    /// Everything is over.
    Stop,
    /// End at once.
    Quit,
}

impl Stage {
    pub(super) fn phase(self) -> Phase {
        match self {
            Stage::Running => Phase::Running,
            Stage::LameDuck => Phase::LameDuck,
            Stage::Draining | Stage::Overtime => Phase::Draining,
            Stage::Asking | Stage::Refusing => Phase::Cancelling,
            Stage::CleaningUp | Stage::HooksLeft | Stage::CutLeft => Phase::CleaningUp,
            Stage::Stopped => Phase::Stopped,
        }
    }
}

/// Every stage × every event.
pub(super) fn step(stage: Stage, event: Event) -> Step {
    use Event::{CleanedUp, Expired, Force, HangUp, Interrupt, Quiet, Quit, Terminate, Undo};
    match stage {
        Stage::Running => match event {
            Terminate | HangUp => Step::Begin,
            Interrupt => Step::Hurry,
            Quit => Step::Quit,
            Force => Step::Cut,
            Undo | Expired | Quiet | CleanedUp => Step::Pass,
        },
        Stage::LameDuck => match event {
            Terminate | Interrupt => Step::DrainAndCancel,
            Quit => Step::Quit,
            Force => Step::Cut,
            Undo => Step::Resume,
            Expired => Step::Drain,
            // A closing terminal sends HUP and TERM together.
            HangUp | Quiet | CleanedUp => Step::Pass,
        },
        Stage::Draining | Stage::Overtime => match event {
            Terminate | Interrupt => Step::Cancel,
            Quit => Step::Quit,
            Force => Step::Cut,
            Expired => Step::TimeIsUp,
            Quiet => Step::CleanUp,
            // The listeners are closed: there is no way back.
            HangUp | Undo | CleanedUp => Step::Pass,
        },
        Stage::Asking => match event {
            Terminate | Interrupt | Quit => Step::Quit,
            Force => Step::Cut,
            Expired => Step::Refuse,
            Quiet => Step::CleanUp,
            HangUp | Undo | CleanedUp => Step::Pass,
        },
        Stage::Refusing => match event {
            Terminate | Interrupt | Quit => Step::Quit,
            Force | Expired => Step::Cut,
            Quiet => Step::CleanUp,
            HangUp | Undo | CleanedUp => Step::Pass,
        },
        Stage::CleaningUp => match event {
            Terminate | Interrupt | Quit => Step::Quit,
            Quiet => Step::AwaitHooks,
            CleanedUp => Step::AwaitCut,
            Expired => Step::Stop,
            HangUp | Undo | Force => Step::Pass,
        },
        Stage::HooksLeft => match event {
            Terminate | Interrupt | Quit => Step::Quit,
            CleanedUp | Expired => Step::Stop,
            HangUp | Undo | Force | Quiet => Step::Pass,
        },
        Stage::CutLeft => match event {
            Terminate | Interrupt | Quit => Step::Quit,
            Quiet | Expired => Step::Stop,
            HangUp | Undo | Force | CleanedUp => Step::Pass,
        },
        Stage::Stopped => match event {
            Terminate | Interrupt | HangUp | Quit | Force | Undo | Expired | Quiet | CleanedUp => {
                Step::Pass
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::drain::{AtDeadline, Drain, InFlight, Input, Policy, Signal};

    impl Stage {
        /// In the order in which they can come.
        const ALL: [Stage; 10] = [
            Stage::Running,
            Stage::LameDuck,
            Stage::Draining,
            Stage::Overtime,
            Stage::Asking,
            Stage::Refusing,
            Stage::CleaningUp,
            Stage::HooksLeft,
            Stage::CutLeft,
            Stage::Stopped,
        ];
    }

    impl Event {
        const ALL: [Event; 9] = [
            Event::Terminate,
            Event::Interrupt,
            Event::HangUp,
            Event::Quit,
            Event::Force,
            Event::Undo,
            Event::Expired,
            Event::Quiet,
            Event::CleanedUp,
        ];
    }

    /// A drain in a stage, however it came there; its deadline is `t`.
    fn drain_in(stage: Stage, t: Instant, policy: Policy) -> Drain {
        let begun = (stage != Stage::Running).then_some(t);
        let deadline = begun.filter(|_| stage != Stage::Stopped);
        Drain { stage, begun, deadline, ..Drain::new(policy) }
    }

    /// What an event does in a stage, as a line; `None` when that cannot happen.
    fn line(stage: Stage, event: Event, policy: &Policy) -> Option<String> {
        use std::fmt::Write;
        if stage == Stage::Overtime
            && (policy.at_deadline == AtDeadline::Cut || event == Event::Expired)
        {
            return None;
        }
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the origin")]
        let t = Instant::now();
        let input = match event {
            Event::Terminate => Input::Signal(Signal::Terminate),
            Event::Interrupt => Input::Signal(Signal::Interrupt),
            Event::HangUp => Input::Signal(Signal::HangUp),
            Event::Quit => Input::Signal(Signal::Quit),
            Event::Force => Input::Force,
            Event::Undo => Input::Undo,
            Event::Expired => Input::Expired,
            Event::Quiet => Input::Quiet,
            Event::CleanedUp => Input::CleanedUp,
        };
        let step = step(stage, event);
        let mut drain = drain_in(stage, t, policy.clone());
        let orders = drain.handle(t, input);
        let (event, step) = (format!("{event:?}"), format!("{step:?}"));
        let mut line = format!("  {event:9} {step:15}");
        if drain.stage != stage || !orders.is_empty() {
            let orders: Vec<String> = orders.iter().map(|order| format!("{order:?}")).collect();
            write!(line, " {:?}: {}", drain.stage, orders.join(", ")).expect("a string");
        }
        Some(line.trim_end_matches([' ', ':']).to_owned())
    }

    fn rendered() -> String {
        use std::fmt::Write;
        let usual = Policy { delay: Duration::from_secs(5), ..Policy::default() };
        let mut text = String::from(
            "What each event does in each stage, with the default policy and a delay of 5 s.\n\
             event       step            stage after it: orders\n",
        );
        for stage in Stage::ALL.into_iter().filter(|stage| *stage != Stage::Overtime) {
            writeln!(text, "\n{stage:?} ({})", stage.phase().name()).expect("a string");
            for event in Event::ALL {
                let line = line(stage, event, &usual).expect("it can happen");
                writeln!(text, "{line}").expect("a string");
            }
        }
        for (name, policy) in [
            ("wait_for_connections", Policy { in_flight: InFlight::Cancel, ..usual.clone() }),
            ("force_after_timeout", Policy { at_deadline: AtDeadline::WaitOn, ..usual.clone() }),
        ] {
            writeln!(text, "\n\nWhat is different with shutdown_{name} = false.")
                .expect("a string");
            for stage in Stage::ALL {
                let lines: Vec<String> = Event::ALL
                    .iter()
                    .filter_map(|event| {
                        let told = line(stage, *event, &policy)?;
                        (line(stage, *event, &usual).as_ref() != Some(&told)).then_some(told)
                    })
                    .collect();
                if !lines.is_empty() {
                    let phase = stage.phase().name();
                    writeln!(text, "\n{stage:?} ({phase})\n{}", lines.join("\n"))
                        .expect("a string");
                }
            }
        }
        text
    }

    /// `UPDATE=1 cargo test --lib drain` writes it anew.
    #[test]
    fn the_rendered_table_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/drain/table.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, rendered()).expect("the table can be written");
        }
        assert_eq!(include_str!("table.txt"), rendered(), "run it with UPDATE=1");
    }
}

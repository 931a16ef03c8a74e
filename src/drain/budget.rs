//! What the operator wants of a shutdown, and how its time is divided.

use std::time::Duration;

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
    /// `shutdown_force_after_timeout = false`: go on waiting for requests in flight. Means nothing
    /// with [`InFlight::Cancel`], which waits for none.
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

impl Policy {
    /// The same, with times that can be added to any instant: a year is as good as for ever.
    pub(super) fn bounded(self) -> Policy {
        Policy {
            timeout: self.timeout.min(LONGEST),
            delay: self.delay.min(LONGEST),
            first_byte_grace: self.first_byte_grace.min(LONGEST),
            idle_window: self.idle_window.min(LONGEST),
            ..self
        }
    }
}

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

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

/// The most that cancelling may take of the budget.
const CANCELLING_MAX: Duration = Duration::from_secs(2);

/// The most that the clean-up may take of the budget.
const CLEANING_UP_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
    }
}

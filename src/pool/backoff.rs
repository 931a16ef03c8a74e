//! How long to wait before the next attempt to connect. Pure: chance is an argument.

use std::time::Duration;

/// The waits between failed attempts: doubling from [`FIRST`] to [`LONGEST`], each between half of
/// that and all of it, so that threads (and processes) that failed together do not come back
/// together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt has failed: how long to wait for the next one. `chance` is any number, each as
    /// likely as the others.
    pub fn fail(&mut self, chance: u64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        let steps = u64::try_from(half.as_micros()).expect("no longer than LONGEST") + 1;
        half + Duration::from_micros(chance % steps)
    }

    /// An attempt has succeeded.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }
}

/// After the first failure.
const FIRST: Duration = Duration::from_millis(20);

/// However many have failed: a database that is back is to be in use again within 2 s, the
/// connecting included.
pub const LONGEST: Duration = Duration::from_millis(500);

/// So that the doubling cannot overflow.
const DOUBLINGS_MAX: u32 = 10;

const _: () = assert!(LONGEST.as_millis() <= 1000, "half of the time to recover is for connecting");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_wait_is_between_half_and_all_of_its_step(
            chances in prop::collection::vec(any::<u64>(), 1..40),
        ) {
            let mut backoff = Backoff::default();
            let mut step = FIRST;
            for chance in chances {
                let wait = backoff.fail(chance);
                prop_assert!(step / 2 <= wait && wait <= step, "{wait:?} of {step:?}");
                step = (step * 2).min(LONGEST);
            }
            backoff.succeed();
            prop_assert!(backoff.fail(0) == FIRST / 2);
        }
    }

    #[test]
    fn chance_reaches_both_ends() {
        let steps = u64::try_from((FIRST / 2).as_micros()).unwrap();
        assert_eq!(Backoff::default().fail(0), FIRST / 2);
        assert_eq!(Backoff::default().fail(steps), FIRST);
        assert_eq!(Backoff::default().fail(steps + 1), FIRST / 2);
    }
}

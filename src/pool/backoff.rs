//! How long to wait before the next attempt to connect. Pure: chance and the time are arguments.
//!
//! While a pool has no connection its threads take turns at the [`Gate`]: one attempt after the
//! other tells as much as one of each thread, and a server that has no room for them all, or is
//! just coming up, has other work than refusing them. While it has one, whoever gets none waits
//! longer and longer by itself.

use std::time::{Duration, Instant};

/// The waits between failed attempts: doubling from [`FIRST`] to a longest, each between half of
/// that and all of it, so that threads (and processes) that failed together do not come back
/// together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt has failed: how long to wait for the next one, `longest` at most. `chance` is any
    /// number, each as likely as the others.
    pub fn fail(&mut self, longest: Duration, chance: u64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX)).min(longest);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        let steps = u64::try_from(half.as_micros()).expect("some seconds") + 1;
        half + Duration::from_micros(chance % steps)
    }

    /// An attempt has succeeded.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }
}

/// Lets the threads of a pool without a connection attempt one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    backoff: Backoff,
    /// `None` until an attempt has failed.
    opens: Option<Instant>,
    /// Whose attempt is waited for; not beyond `opens`, for it may be stuck.
    scout: Option<u64>,
}

impl Gate {
    /// Lets a thread attempt, who is the only one until it has failed, or the longest wait is over.
    ///
    /// # Errors
    /// When it is closed: when to ask again.
    pub fn pass(&mut self, thread: u64, now: Instant) -> Result<(), Instant> {
        if let Some(opens) = self.opens
            && now < opens
        {
            return Err(opens);
        }
        (self.scout, self.opens) = (Some(thread), Some(now + LONGEST));
        Ok(())
    }

    /// The attempt of a thread has failed.
    pub fn fail(&mut self, thread: u64, now: Instant, chance: u64) {
        let is_open = self.opens.is_none_or(|opens| now >= opens);
        if is_open || self.scout == Some(thread) {
            self.scout = None;
            self.opens = Some(now + self.backoff.fail(LONGEST, chance));
        }
    }
}

/// After the first failure.
const FIRST: Duration = Duration::from_millis(20);

/// Of a pool without a connection, however many attempts have failed: a database that is back is to
/// be in use again within 2 s, the connecting included.
pub const LONGEST: Duration = Duration::from_millis(500);

/// Of a thread whose pool has other connections: the server has no room for more, most likely.
pub const LONGEST_BESIDE: Duration = Duration::from_secs(5);

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
                let wait = backoff.fail(LONGEST, chance);
                prop_assert!(step / 2 <= wait && wait <= step, "{wait:?} of {step:?}");
                step = (step * 2).min(LONGEST);
            }
            backoff.succeed();
            prop_assert!(backoff.fail(LONGEST, 0) == FIRST / 2);
        }
    }

    proptest! {
        /// Threads that are stuck for a while, fail, and ask again when they are told to.
        #[test]
        #[allow(clippy::disallowed_methods, reason = "any instant will do as the origin")]
        fn threads_without_a_connection_attempt_one_after_the_other_and_none_is_waited_for(
            durations in prop::collection::vec(0_u64..1500, 2..12),
            chance in any::<u64>(),
        ) {
            let origin = Instant::now();
            let at = |ms: u64| origin + Duration::from_millis(ms);
            let mut gate = Gate::default();
            let longest = durations.iter().max().copied().unwrap();
            // What each does next, and when: an attempt ends, or it asks.
            let mut next: Vec<(u64, bool)> = durations.iter().map(|ms| (*ms, true)).collect();
            let mut begun: Vec<u64> = Vec::new();
            for now in 0..10_000_u64 {
                for (thread, (when, attempts)) in next.iter_mut().enumerate() {
                    if *when != now {
                        continue;
                    }
                    let id = thread as u64;
                    if *attempts {
                        gate.fail(id, at(now), chance.wrapping_mul(now));
                    }
                    *attempts = gate.pass(id, at(now)).is_ok();
                    if *attempts {
                        begun.push(now);
                    }
                    *when = now + if *attempts { 1 + durations[thread] } else { 1 };
                }
            }
            for pair in begun.windows(2) {
                prop_assert!(pair[0] + 10 <= pair[1], "two at a time: {begun:?}");
                prop_assert!(pair[1] <= pair[0] + 501 + longest, "nobody tried: {begun:?}");
            }
            prop_assert!(begun.len() > 10);
            // As often as one thread alone would, which waits 0.25 s at least in the end.
            prop_assert!(begun.len() < 50, "{begun:?}");
        }
    }

    #[test]
    fn chance_reaches_both_ends() {
        let steps = u64::try_from((FIRST / 2).as_micros()).unwrap();
        assert_eq!(Backoff::default().fail(LONGEST, 0), FIRST / 2);
        assert_eq!(Backoff::default().fail(LONGEST, steps), FIRST);
        assert_eq!(Backoff::default().fail(LONGEST, steps + 1), FIRST / 2);
    }
}

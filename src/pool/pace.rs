//! How fast a connection answers when nothing holds it up. Pure.
//!
//! Believes a fast answer at once and slow ones by and by: on a busy machine many are slow because
//! there are many threads, and what follows from a pace makes them fewer.

use std::time::{Duration, Instant};

/// See the module's essay.
#[derive(Debug, Default)]
pub struct Pace {
    /// Nanoseconds from one answer to the next, of late; 0: not known yet.
    least: u64,
    /// When the last answer came, or the first statement after a pause was sent.
    since: Option<Instant>,
}

impl Pace {
    /// A statement is sent while no other is in flight.
    pub fn begins(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// So many answers have come, at least one.
    pub fn answered(&mut self, count: u64, now: Instant) {
        let Some(since) = self.since.replace(now) else { return };
        let taken = u64::try_from(now.saturating_duration_since(since).as_nanos());
        let each = (taken.unwrap_or(u64::MAX) / count).max(1);
        self.least = match self.least {
            least if least == 0 || each < least => each,
            least => least + (each - least) / MEMORY,
        };
    }

    /// How many answers are to be expected within `time`; at least one.
    pub fn within(&self, time: Duration) -> usize {
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        usize::try_from(time.checked_div(self.least).unwrap_or(1)).unwrap_or(usize::MAX).max(1)
    }
}

/// So many slow answers make up for a fast one.
const MEMORY: u64 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_micros(500);

    /// A pace after answers that took so long each.
    fn after(answers: impl IntoIterator<Item = Duration>) -> Pace {
        let (mut pace, mut now) = (Pace::default(), crate::reactor::turn::clock());
        for taken in answers {
            pace.begins(now);
            now += taken;
            pace.answered(1, now);
        }
        pace
    }

    #[test]
    fn one_answer_is_expected_of_a_connection_of_which_nothing_is_known() {
        assert_eq!(Pace::default().within(TIME), 1);
        assert_eq!(after([Duration::from_secs(1)]).within(TIME), 1);
    }

    #[test]
    fn a_fast_answer_is_believed_at_once_and_slow_ones_by_and_by() {
        let (fast, slow) = (Duration::from_micros(20), Duration::from_millis(5));
        assert_eq!(after([slow, slow, fast]).within(TIME), 25);
        assert!(after([fast, slow]).within(TIME) > 1, "one slow answer says little");
        let slow_ones = std::iter::repeat_n(slow, 10);
        assert_eq!(after([fast].into_iter().chain(slow_ones)).within(TIME), 1);
    }

    #[test]
    fn answers_that_come_together_share_the_time() {
        let (mut pace, now) = (Pace::default(), crate::reactor::turn::clock());
        pace.begins(now);
        pace.answered(10, now + Duration::from_micros(500));
        assert_eq!(pace.within(TIME), 10);
    }
}

//! When requests ended, from the signal nearest to them: every request of a run in one bucket.
//!
//! The buckets are fine near the signal and wide far from it, 1-2-5 in each decade, so that a run
//! of any length takes little room and what happens in the milliseconds that matter is told apart.

use std::time::Duration;

use crate::outcome::{End, Outcome};

/// The buckets lie between these, in milliseconds from the signal; the first one reaches back to
/// the beginning, the last one to the end. An end at an edge is in the bucket that begins there.
pub const EDGES_MS: [i64; 25] = [
    -5_000, -2_000, -1_000, -500, -200, -100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50,
    100, 200, 500, 1_000, 2_000, 5_000,
];

const BUCKETS: usize = EDGES_MS.len() + 1;

/// How many requests ended when, by their outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moments([[u64; BUCKETS]; Outcome::ALL.len()]);

impl Moments {
    /// One for each signal, in their order, of the requests that ended nearest to it. Without a
    /// signal there is nothing to be near to, and nothing is counted.
    pub fn of(ends: &[End], signals: &[Duration]) -> Vec<Moments> {
        let mut all = vec![Moments::default(); signals.len()];
        for end in ends {
            let next = signals.partition_point(|signal| *signal <= end.ended);
            let near = next.saturating_sub(1)..signals.len().min(next + 1);
            if let Some(at) = near.min_by_key(|at| signals[*at].abs_diff(end.ended)) {
                all[at].add(end, signals[at]);
            }
        }
        all
    }

    fn add(&mut self, end: &End, signal: Duration) {
        let is_past = |edge: &i64| {
            let distance = Duration::from_millis(edge.unsigned_abs());
            if *edge < 0 { end.ended + distance >= signal } else { end.ended >= signal + distance }
        };
        let bucket = EDGES_MS.partition_point(is_past);
        self.0[end.outcome as usize][bucket] += 1;
    }

    /// The counts of one outcome, a bucket each.
    pub fn counts(&self, outcome: Outcome) -> &[u64] {
        &self.0[outcome as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    fn end(outcome: Outcome, ended: u64) -> End {
        let at = Duration::from_micros(ended);
        End {
            id: 1,
            kind: Kind::Get,
            outcome,
            planned: at,
            sent: Some(at),
            ended: at,
            connected: Some(at),
            port: 1,
            nth: 0,
            reset_unheard: false,
            detail: "".into(),
        }
    }

    #[test]
    fn every_end_is_in_one_bucket_of_the_signal_nearest_to_it() {
        let signals = [10, 20].map(Duration::from_secs);
        let ends: Vec<End> = (0..4_000_u64).map(|n| end(Outcome::Ok, n * 10_007)).collect();
        let moments = Moments::of(&ends, &signals);
        let counts = |at: usize| moments[at].counts(Outcome::Ok).iter().sum::<u64>();
        assert_eq!(counts(0) + counts(1), 4_000);
        assert_eq!(counts(0), 1_499, "what ended within the first fifteen seconds");
        assert_eq!(Moments::of(&ends, &[]), []);
    }

    #[test]
    fn an_end_is_between_its_edges() {
        let signal = 10_000_000;
        for (ended, begins) in [
            (0, None),
            (signal - 5_000_000, Some(-5_000)),
            (signal - 1_001, Some(-2)),
            (signal - 1_000, Some(-1)),
            (signal - 1, Some(-1)),
            (signal, Some(0)),
            (signal + 999, Some(0)),
            (signal + 1_000, Some(1)),
            (signal + 19_999, Some(10)),
            (signal + 60_000_000, Some(5_000)),
        ] {
            let moments =
                Moments::of(&[end(Outcome::StaleEof, ended)], &[Duration::from_micros(signal)]);
            let counts = moments[0].counts(Outcome::StaleEof);
            let bucket = counts.iter().position(|count| *count == 1).unwrap();
            let edge = bucket.checked_sub(1).map(|at| EDGES_MS[at]);
            assert_eq!(edge, begins, "ended {ended} µs");
        }
    }
}

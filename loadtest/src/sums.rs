//! Several servers side by side, and what each of them lost under the same load.
//!
//! Where a request was lost is told from what its client saw (`Loss::of`), for each server by the
//! same rule. What met the gap of a listener that stands alone is a loss here, for all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::kind::{Kind, WRITE_PAUSE};
use crate::outcome::{End, Outcome, Tally};
use crate::restarts::Trip;
use crate::table::put;
use crate::target::Way;

/// Where a lost request was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The first on its connection: it was in the listener's queue, or just accepted.
    New,
    /// On a connection that had answered before and was idle when the request was sent.
    Kept,
    /// Behind another one, which was answered, of the same pipelined batch.
    Behind,
    /// In the middle of its response or of its own body, or never answered.
    Midway,
}

impl Loss {
    /// All of them; their positions are those in [`Sum::lost`].
    pub const ALL: [Loss; 4] = [Loss::New, Loss::Kept, Loss::Behind, Loss::Midway];

    /// Of a request that was lost. `answered` are the numbers of those that got an answer, or a
    /// part of one.
    fn of(end: &End, answered: &BTreeSet<u64>) -> Loss {
        let batch = end.kind.batch();
        let position = u64::from(end.nth % batch);
        // A slow uploader looks at its connection between two pauses only: what was there for the
        // first one was lost with the first piece.
        let was_sending = end.kind == Kind::SlowUploader
            && end.sent.is_some_and(|sent| end.ended.saturating_sub(sent) >= 2 * WRITE_PAUSE);
        match end.outcome {
            Outcome::Truncated | Outcome::Status | Outcome::Timeout => Loss::Midway,
            _ if was_sending => Loss::Midway,
            _ if answered.range(end.id - position..end.id).next().is_some() => Loss::Behind,
            _ if end.nth < batch => Loss::New,
            _ => Loss::Kept,
        }
    }
}

/// All restarts of one server in one way.
#[derive(Clone, Debug)]
pub struct Sum {
    /// The server's name.
    pub server: String,
    /// How it was replaced.
    pub way: Way,
    /// How often.
    pub restarts: usize,
    /// How its requests ended.
    pub tally: Tally,
    /// How many were lost, by where they were: see [`Loss::ALL`].
    pub lost: [u64; 4],
    /// The longest time from a signal to the end of the process.
    pub stop_max: Duration,
}

impl Sum {
    /// Nothing yet.
    pub fn new(server: &str, way: Way) -> Sum {
        Sum {
            server: server.to_owned(),
            way,
            restarts: 0,
            tally: Tally::default(),
            lost: [0; 4],
            stop_max: Duration::ZERO,
        }
    }

    /// Adds what another round has brought.
    pub fn add(&mut self, trip: &Trip) {
        self.restarts += trip.restarts.len();
        let has_answer =
            |end: &&End| end.outcome.is_answered() || end.outcome == Outcome::Truncated;
        let answered = trip.ends.iter().filter(has_answer).map(|end| end.id).collect();
        for end in &trip.ends {
            self.tally.add(end.outcome);
            if end.outcome.is_loss() {
                self.lost[Loss::of(end, &answered) as usize] += 1;
            }
        }
        for restart in &trip.restarts {
            let stop = restart.exited.map(|at| at.saturating_sub(restart.signalled));
            self.stop_max = self.stop_max.max(stop.unwrap_or_default());
        }
    }
}

/// A table in Markdown.
pub fn table(sums: &[Sum]) -> String {
    let mut text = String::from(
        "| way | server | restarts | answered | refused | lost | on a new connection | on a kept \
         one | behind an answer | midway | longest stop |\n|---|---|---|---|---|---|---|---|---|---\
         |---|\n",
    );
    for sum in sums {
        let [new, kept, behind, midway] = sum.lost;
        let Sum { server, restarts, .. } = sum;
        let (way, lost) = (sum.way.name(), sum.tally.losses());
        let (answered, refused) = (sum.tally.answered(), sum.tally.count(Outcome::Refused));
        let stop = sum.stop_max.as_secs_f64();
        put(
            &mut text,
            format_args!(
                "| `{way}` | {server} | {restarts} | {answered} | {refused} | {lost} | {new} | \
                 {kept} | {behind} | {midway} | {stop:.1} s |\n"
            ),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(kind: Kind, id: u64, nth: u32, outcome: Outcome) -> End {
        let at = Duration::from_secs(1);
        End {
            id,
            kind,
            outcome,
            planned: at,
            sent: Some(at),
            ended: at + Duration::from_millis(3),
            connected: Some(at),
            port: 1,
            nth,
            reset_unheard: false,
            detail: "".into(),
        }
    }

    #[test]
    fn a_loss_is_where_its_client_was() {
        let answered = BTreeSet::from([8, 40]);
        let of = |end: &End| Loss::of(end, &answered);
        let reset = Outcome::ResetBeforeResponse;
        assert_eq!(of(&end(Kind::Fresh, 1, 0, reset)), Loss::New);
        assert_eq!(of(&end(Kind::Get, 9, 7, Outcome::StaleEof)), Loss::Kept);
        assert_eq!(of(&end(Kind::Streaming, 9, 7, Outcome::Truncated)), Loss::Midway);
        assert_eq!(of(&end(Kind::Pipelined, 11, 3, Outcome::StaleEof)), Loss::Behind);
        assert_eq!(of(&end(Kind::Pipelined, 15, 3, reset)), Loss::New, "nothing was answered");
        assert_eq!(of(&end(Kind::Pipelined, 15, 7, reset)), Loss::Kept, "nothing was answered");
        let upload = end(Kind::SlowUploader, 2, 0, reset);
        assert_eq!(of(&upload), Loss::New, "its first piece");
        let upload = |ms: u64| End { ended: Duration::from_millis(1_000 + ms), ..upload.clone() };
        assert_eq!(of(&upload(52)), Loss::New, "seen when the second one is due");
        assert_eq!(of(&upload(200)), Loss::Midway);
    }
}

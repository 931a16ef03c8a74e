//! How a request ends: exactly one of eight ways, with all that is needed to judge it.

use std::borrow::Cow;
use std::time::Duration;

use crate::kind::Kind;

/// The end of one request, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// The expected response, whole.
    Ok,
    /// The same, and it announced the close: the client does not use the connection again.
    OkClose,
    /// The connect was refused or timed out: not a byte was sent.
    Refused,
    /// Connected, and reset before a byte of the response, or closed so on a connection that had
    /// not answered anything yet.
    ResetBeforeResponse,
    /// Part of the response, then the end of the connection.
    Truncated,
    /// A connection that had answered before was closed with the request on its way.
    StaleEof,
    /// Not the expected answer: another status, another body, or no HTTP at all.
    Status,
    /// Nothing of the above within the request's time.
    Timeout,
}

impl Outcome {
    /// All of them; their positions are those of [`Tally`].
    pub const ALL: [Outcome; 8] = [
        Outcome::Ok,
        Outcome::OkClose,
        Outcome::Refused,
        Outcome::ResetBeforeResponse,
        Outcome::Truncated,
        Outcome::StaleEof,
        Outcome::Status,
        Outcome::Timeout,
    ];

    /// Its name in tables and results.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::OkClose => "ok_close",
            Outcome::Refused => "refused",
            Outcome::ResetBeforeResponse => "reset_before_response",
            Outcome::Truncated => "truncated",
            Outcome::StaleEof => "stale_eof",
            Outcome::Status => "status",
            Outcome::Timeout => "timeout",
        }
    }

    /// Whether the client has its answer.
    pub fn is_answered(self) -> bool {
        matches!(self, Outcome::Ok | Outcome::OkClose)
    }

    /// Whether a request was lost: neither answered nor turned away before it was sent.
    pub fn is_loss(self) -> bool {
        !self.is_answered() && self != Outcome::Refused
    }
}

/// One request and its end. Times are since the run began.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Its number; the request said `X-Request-Id: lt-<number>`.
    pub id: u64,
    /// The client that sent it.
    pub kind: Kind,
    /// What became of it.
    pub outcome: Outcome,
    /// When the plan wanted it sent. Latency counts from here.
    pub planned: Duration,
    /// When its first byte was given to the kernel; `None` when none was.
    pub sent: Option<Duration>,
    /// When it ended.
    pub ended: Duration,
    /// When its connection was established; `None` when it was not.
    pub connected: Option<Duration>,
    /// The client's port of that connection.
    pub port: u16,
    /// How many requests were sent on the connection before it.
    pub nth: u32,
    /// Whether its connection was reset (`ECONNRESET`: no FIN had come) and not a byte had come on
    /// it, of an answer to this request or to any before.
    pub reset_unheard: bool,
    /// What exactly went wrong, in words; empty when nothing did.
    pub detail: Cow<'static, str>,
}

impl End {
    /// From when it should have been sent to its end.
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.planned)
    }
}

/// How many requests ended in each way, in the order of [`Outcome::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally([u64; 8]);

impl Tally {
    /// Counts what is there.
    pub fn of(ends: &[End]) -> Tally {
        let mut tally = Tally::default();
        for end in ends {
            tally.add(end.outcome);
        }
        tally
    }

    /// Counts one more.
    pub fn add(&mut self, outcome: Outcome) {
        self.0[outcome as usize] += 1;
    }

    /// How many ended so.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.0[outcome as usize]
    }

    /// How many there are.
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many were answered.
    pub fn answered(&self) -> u64 {
        self.count(Outcome::Ok) + self.count(Outcome::OkClose)
    }

    /// How many were lost.
    pub fn losses(&self) -> u64 {
        Outcome::ALL.into_iter().filter(|outcome| outcome.is_loss()).map(|o| self.count(o)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_those_of_the_list_and_three_ends_are_no_loss() {
        for (at, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, at);
        }
        let harmless: Vec<_> = Outcome::ALL.into_iter().filter(|o| !o.is_loss()).collect();
        assert_eq!(harmless, [Outcome::Ok, Outcome::OkClose, Outcome::Refused]);
    }
}

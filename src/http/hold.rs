//! What a connection is doing, since when, and what it waits for: for operators who want to know
//! what still holds a shutdown.
//!
//! [`Connection::since`](super::connection::Connection::since) is cheap and asked of every
//! connection; [`Connection::hold`](super::connection::Connection::hold) makes strings and is asked
//! of the oldest only.

use std::fmt;
use std::time::Instant;

use super::watch::RequestInfo;
use crate::ledger::ConnectionState;

/// One connection as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// As the ledger has it.
    pub state: ConnectionState,
    /// Since when it is in that state.
    pub since: Instant,
    /// What it waits for.
    pub why: Why,
    /// The request at hand, or the oldest one whose response is not all taken.
    pub request: Option<RequestInfo>,
}

/// What a connection waits for, and how long it will at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    what: &'static str,
    /// What happens when nothing comes, and when.
    ends: Option<(&'static str, Instant)>,
}

impl Why {
    /// A wait whose end is told elsewhere, or by nobody.
    pub fn waits_for(what: &'static str) -> Why {
        Why { what, ends: None }
    }

    /// A wait that ends at an instant, in words that go before "in 3.2 s".
    pub fn until(what: &'static str, end: &'static str, at: Instant) -> Why {
        Why { what, ends: Some((end, at)) }
    }

    /// In words, as of `now`.
    pub fn at(self, now: Instant) -> impl fmt::Display {
        Told { why: self, now }
    }
}

struct Told {
    why: Why,
    now: Instant,
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.why.what)?;
        if let Some((end, at)) = self.why.ends {
            let left = at.saturating_duration_since(self.now);
            write!(f, " ({end} in {:.1} s)", left.as_secs_f64())?;
        }
        Ok(())
    }
}

/// A handler that has not answered.
pub const HANDLER: &str = "its handler";

/// A handler that has not even returned.
pub const RUNNING_HANDLER: &str = "its handler, which holds the worker";

/// The rest of what the client said it would send.
pub const REQUEST_BODY: &str = "the request body";

/// A stream of the application.
pub const RESPONSE_BODY: &str = "the response body";

/// A client that does not read.
pub const CLIENT_TO_TAKE: &str = "the client to take the response";

pub(super) const CLIENT_TO_CLOSE: &str = "the client to close";
pub(super) const INCOMPLETE_HEAD: &str = "an incomplete head";
pub(super) const FIRST_REQUEST: &str = "a first request";
pub(super) const NEXT_REQUEST: &str = "a next request";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_with_an_end_says_how_long_it_is() {
        let at = crate::reactor::turn::clock();
        let why = Why::until(NEXT_REQUEST, "idle window ends", at + Duration::from_millis(3210));
        assert_eq!(why.at(at).to_string(), "a next request (idle window ends in 3.2 s)");
        let late = at + Duration::from_secs(60);
        assert_eq!(why.at(late).to_string(), "a next request (idle window ends in 0.0 s)");
        assert_eq!(Why::waits_for(HANDLER).at(at).to_string(), "its handler");
    }
}

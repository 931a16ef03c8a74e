//! What a client is told when its request's job has no result: one table.
//!
//! A client learns whether it was its request's fault and whether it may come again, never what a
//! database said: that is in the log.

use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};

use crate::http::limits::RETRY_AFTER as PAUSE;
use crate::http::message::{IntoResponse, Response};
use crate::pool::{DatabaseError, Rejection};

/// A row of the table.
struct Answer {
    /// The beginning of an SQLSTATE: a class (two characters), or the whole of one.
    state: &'static str,
    status: u16,
    again: Again,
    told: &'static str,
}

/// Whether the same request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// It was not done and may succeed later: `Retry-After`.
    Later,
    /// It would fail again, or may have been done.
    No,
}

use Again::{Later, No};

const fn answer(state: &'static str, status: u16, again: Again, told: &'static str) -> Answer {
    Answer { state, status, again, told }
}

/// The longest beginning that fits counts; what no row fits is 500. The states are those of
/// PostgreSQL's manual, appendix A; SQLite's errors are given the same.
#[rustfmt::skip]
const ANSWERS: &[Answer] = &[
    answer("08", 503, Later, "the database cannot be reached"),
    answer("22", 422, No, "a value is out of what the database takes"),
    answer("23", 409, No, "it conflicts with what is there"),
    answer("23502", 422, No, "a value is missing"),
    answer("23505", 409, No, "there is one already"),
    answer("23514", 422, No, "a value is out of what the database takes"),
    // A standby that has not been promoted yet.
    answer("25006", 503, Later, "the database takes no changes now"),
    // A row that a view would not show.
    answer("44", 422, No, "a value is out of what the database takes"),
    // Rolled back for another's sake: serialization failures and deadlocks.
    answer("40", 503, Later, "it conflicted with another request"),
    answer("53", 503, Later, "the database has no room for it now"),
    answer("54", 422, No, "it is more than the database takes at once"),
    answer("55", 503, Later, "the database is busy with what it concerns"),
    answer("57", 503, Later, "the database ended it"),
    // RAISE EXCEPTION of a function or a trigger: a rule of whoever made the tables.
    answer("P0001", 422, No, "the database does not allow it"),
];

/// What stands for a state that is in no row: a mistake in the program or in the database.
const FAULT: Answer = answer("", 500, No, "the database refused it");

fn answer_to(state: &str) -> &'static Answer {
    let fitting = ANSWERS.iter().filter(|answer| state.starts_with(answer.state));
    fitting.max_by_key(|answer| answer.state.len()).unwrap_or(&FAULT)
}

/// 503 for what the database could not do now, with `Retry-After` where it was not done; 504 when
/// it did not answer; what a statement was refused for, by the class of its SQLSTATE. The body is
/// `{"error": ...}`.
impl IntoResponse for DatabaseError {
    fn into_response(self) -> Response {
        let (status, again, told) = match &self {
            DatabaseError::Busy => (503, Later, "the database is busy"),
            DatabaseError::Unavailable => (503, Later, "the database cannot be reached"),
            DatabaseError::Closed => (503, Later, "the server is shutting down"),
            DatabaseError::Cancelled => (503, No, "it was cancelled and may have been done"),
            DatabaseError::Lost => {
                (503, No, "the database was lost meanwhile: it may have been done")
            }
            DatabaseError::Timeout => {
                (504, No, "the database did not answer: it may have been done")
            }
            DatabaseError::Panicked | DatabaseError::Mismatch(_) => (500, No, "the server failed"),
            DatabaseError::Rejected(Rejection { code, .. }) => {
                let answer = answer_to(code);
                (answer.status, answer.again, answer.told)
            }
        };
        let status = StatusCode::from_u16(status).expect("the table has statuses");
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            log::error!(event_type = "database_failed"; "a request failed: {self}");
        }
        let body = Response::json(&serde_json::json!({ "error": told })).with_status(status);
        match again {
            Later => body.with_header(RETRY_AFTER, HeaderValue::from_static(PAUSE)),
            No => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(code: &str) -> Response {
        let (message, constraint) = ("secret".to_owned(), None);
        DatabaseError::Rejected(Rejection { code: code.to_owned(), message, constraint })
            .into_response()
    }

    #[test]
    fn the_longest_beginning_counts() {
        for (code, status, retries) in [
            ("23505", 409, false),
            ("23503", 409, false),
            ("23514", 422, false),
            ("22P02", 422, false),
            ("40001", 503, true),
            ("40P01", 503, true),
            ("53300", 503, true),
            ("25006", 503, true),
            ("44000", 422, false),
            ("P0001", 422, false),
            ("P0002", 500, false),
            ("25001", 500, false),
            ("42601", 500, false),
            ("42501", 500, false),
            ("XX000", 500, false),
            ("", 500, false),
            ("2", 500, false),
        ] {
            let mut response = rejected(code);
            let has_retry = response.headers_mut().contains_key(RETRY_AFTER);
            assert_eq!((response.status().as_u16(), has_retry), (status, retries), "{code}");
        }
    }

    #[test]
    fn who_may_come_again_is_told_so_and_who_may_not_is_not() {
        for (error, status, retries) in [
            (DatabaseError::Busy, 503, true),
            (DatabaseError::Unavailable, 503, true),
            (DatabaseError::Closed, 503, true),
            (DatabaseError::Cancelled, 503, false),
            (DatabaseError::Lost, 503, false),
            (DatabaseError::Timeout, 504, false),
            (DatabaseError::Panicked, 500, false),
            (DatabaseError::Mismatch("secret".to_owned()), 500, false),
        ] {
            let mut response = error.clone().into_response();
            let has_retry = response.headers_mut().contains_key(RETRY_AFTER);
            assert_eq!((response.status().as_u16(), has_retry), (status, retries), "{error:?}");
        }
    }

    #[test]
    fn each_row_is_a_class_or_a_state_and_there_once() {
        for (at, row) in ANSWERS.iter().enumerate() {
            assert!([2, 5].contains(&row.state.len()), "{}", row.state);
            assert!(!ANSWERS[..at].iter().any(|other| other.state == row.state), "{}", row.state);
            assert_eq!(row.again == Later, row.status == 503, "{}", row.state);
        }
    }
}

//! The errors of the client library in our words.

use std::error::Error;
use std::io;

use tokio_postgres::error::SqlState;

use super::error::{DatabaseError, Rejection};

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> DatabaseError {
        let Some(refusal) = error.as_db_error() else {
            let is_io = error.source().is_some_and(<dyn Error>::is::<io::Error>);
            if error.is_closed() || is_io || error.to_string() == UNEXPECTED_MESSAGE {
                return DatabaseError::Lost;
            }
            // A parameter, a column or the number of rows is not what the handler thought.
            return DatabaseError::Mismatch(crate::said::chain(&error));
        };
        of_state(Rejection {
            code: refusal.code().code().to_owned(),
            message: refusal.message().to_owned(),
            constraint: refusal.constraint().map(str::to_owned),
        })
    }
}

/// What the server's refusal means for the job, by its SQLSTATE.
pub fn of_state(rejection: Rejection) -> DatabaseError {
    let code = &*rejection.code;
    // The statement's time was over: whoever cancelled it otherwise waits for it no longer.
    if code == SqlState::QUERY_CANCELED.code() {
        return DatabaseError::Timeout;
    }
    let is_unknown = code == SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN.code();
    if is_unknown
        || code.starts_with(CONNECTION_CLASS)
        || ENDING.iter().any(|ending| ending.code() == code)
    {
        return DatabaseError::Lost;
    }
    DatabaseError::Rejected(rejection)
}

/// What the library says when the server does not keep to the protocol.
const UNEXPECTED_MESSAGE: &str = "unexpected message from server";

/// Connection exceptions.
const CONNECTION_CLASS: &str = "08";

/// What a backend says before it ends.
const ENDING: [SqlState; 5] = [
    SqlState::ADMIN_SHUTDOWN,
    SqlState::CRASH_SHUTDOWN,
    SqlState::CANNOT_CONNECT_NOW,
    SqlState::DATABASE_DROPPED,
    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
];

//! Why a job has no result.

use std::fmt;

/// Why a job has no result. Says what became of the job, so that whoever gave it knows whether it
/// may be given again: after [`Lost`](DatabaseError::Lost), [`Timeout`](DatabaseError::Timeout) and
/// [`Cancelled`](DatabaseError::Cancelled) the database may have done it.
///
/// Its text is fit for a log. Of what it says only [`Rejected`](DatabaseError::Rejected) may be of
/// use to a client, and that is for the handler to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseError {
    /// Too many jobs wait, or this one has waited too long for a thread. It was not begun.
    Busy,
    /// No thread has a connection to the database. The job was not begun; the reason is in the log
    /// and in `/readyz?verbose`.
    Unavailable,
    /// The client was closed. The job was not begun.
    Closed,
    /// No answer came within the job's time. Its connection is given up.
    Timeout,
    /// The server is shutting down and has ended what still ran.
    Cancelled,
    /// The connection broke while the job was under way.
    Lost,
    /// The job panicked: a fault of the handler's closure.
    Panicked,
    /// The database refused the statement.
    Rejected(Rejection),
    /// A value does not fit its column, a row or a parameter: a fault of the handler.
    Mismatch(String),
}

/// What the database says of a statement that it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The SQLSTATE, five characters, its class the first two.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// The name of the constraint that was violated, when the database says so.
    pub constraint: Option<String>,
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DatabaseError::Busy => "too many jobs wait for the database",
            DatabaseError::Unavailable => "there is no connection to the database",
            DatabaseError::Closed => "the database client is closed",
            DatabaseError::Timeout => "the database did not answer in time",
            DatabaseError::Cancelled => "the job was cancelled by the shutdown",
            DatabaseError::Lost => "the connection to the database broke during the job",
            DatabaseError::Panicked => "the job panicked",
            DatabaseError::Rejected(Rejection { code, message, .. }) => {
                return write!(f, "the database refused the statement: {message} ({code})");
            }
            DatabaseError::Mismatch(what) => return f.write_str(what),
        })
    }
}

impl std::error::Error for DatabaseError {}

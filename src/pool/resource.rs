//! What the threads of a pool own: a connection to something that blocks.

use std::fmt;
use std::sync::Arc;

/// A connection, owned by one thread for its whole life.
pub trait Resource: Sized + 'static {
    /// How to connect.
    type Settings: Send + Sync + 'static;

    /// Connects; blocks. It is to end in a few seconds whatever the other side does.
    ///
    /// # Errors
    /// The reason in one line, without anything secret: operators read it.
    fn connect(settings: &Self::Settings) -> Result<Self, Reason>;

    /// Whether it may be used for the next job. Cheap: no round trip, except after a job that was
    /// cancelled.
    fn is_usable(&mut self, after: After) -> bool;

    /// What ends the job that runs on it, from another thread.
    fn canceller(&self) -> Arc<dyn Canceller>;

    /// Says good-bye and closes; blocks until that is sent.
    fn close(self);
}

/// What a connection was used for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nothing, for a while.
    Rest,
    /// A job that nobody cancelled.
    Job,
    /// A job that [`Canceller::cancel`] was called for; that call has returned.
    Cancelled,
}

/// Ends the job that runs on a connection.
pub trait Canceller: Send + Sync {
    /// Asks for it and may block: it is called on a thread of its own. The job's own thread takes
    /// no next job before this has returned.
    fn cancel(&self);
}

/// Why there is no connection, in one line that is fit for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(pub String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

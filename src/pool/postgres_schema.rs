//! Statements that have to be done before the first job: the tables that the program works with.
//!
//! They belong to the connection, not to the start: a server that is down then gets them when it is
//! up, and no job finds a connection before. They may be done more than once: by each of several
//! clients, and by those of a client's connections that come before the first is done. The
//! database's own lock has one do them at a time.

use std::borrow::Cow;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_postgres::{Client, Error};

use super::postgres_connect::driven;

/// The schema of one client. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Schema(Arc<Mutex<Option<String>>>);

impl Schema {
    pub fn new(text: Option<Cow<'static, str>>) -> Schema {
        // All of it is one batch; the lock ends with its transaction. Of each table that is there
        // already the server would say so, which the client logs.
        let batch = text.map(|text| {
            format!(
                "BEGIN; SET LOCAL client_min_messages TO warning; \
                 SELECT pg_advisory_xact_lock({LOCK}); {text}; COMMIT"
            )
        });
        Schema(Arc::new(Mutex::new(batch)))
    }

    /// Has a new connection do what is to be done, if nobody has. When it fails the session is left
    /// in its transaction: of no use.
    ///
    /// Nobody knows how long a server takes that has stopped answering, so nothing is locked
    /// meanwhile.
    pub fn prepare_blocking(&self, client: &mut postgres::Client) -> Result<(), Error> {
        let todo = self.0.blocking_lock().clone();
        if let Some(todo) = todo {
            client.batch_execute(&todo)?;
            *self.0.blocking_lock() = None;
        }
        Ok(())
    }

    /// As [`prepare_blocking`](Schema::prepare_blocking), on a connection that `driver` moves. The
    /// others wait meanwhile: whoever calls it gives it a limit, and drops it then.
    pub async fn prepare(
        &self,
        client: &Client,
        driver: impl Future<Output = Result<(), Error>> + Unpin,
    ) -> Result<(), Error> {
        let mut batch = self.0.lock().await;
        let Some(todo) = batch.as_deref() else { return Ok(()) };
        driven(client.batch_execute(todo), driver).await?;
        *batch = None;
        Ok(())
    }
}

/// The key of the advisory lock: "ebbtide" in ASCII.
const LOCK: i64 = 0x0065_6262_7469_6465;

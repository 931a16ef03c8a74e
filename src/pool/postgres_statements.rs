//! The statements that are prepared on one connection.

use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{FutureExt, TryStreamExt};
use tokio::sync::OnceCell;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row, Statement};

use super::error::DatabaseError;
use super::postgres_params::Params;

/// See the module's essay. Whoever is new to a statement prepares it, those who come meanwhile wait
/// for that.
#[derive(Default)]
pub struct Statements {
    known: Mutex<HashMap<String, Arc<OnceCell<Statement>>>>,
    /// A parameter has panicked. Half a message may be left where the next one is written.
    is_spoilt: AtomicBool,
}

impl Statements {
    /// Does a statement, which is prepared first when it is new to this connection.
    ///
    /// # Errors
    /// Those of the database, and `Panicked` when a parameter has: then the connection
    /// [`is_spoilt`](Statements::is_spoilt).
    pub async fn query(
        &self,
        client: &Client,
        text: Cow<'static, str>,
        params: &Params,
    ) -> Result<Vec<Row>, DatabaseError> {
        let done = AssertUnwindSafe(self.ask(client, text, params)).catch_unwind().await;
        done.unwrap_or_else(|_| {
            self.is_spoilt.store(true, Ordering::Relaxed);
            Err(DatabaseError::Panicked)
        })
    }

    /// Whether nothing may be written any more.
    pub fn is_spoilt(&self) -> bool {
        self.is_spoilt.load(Ordering::Relaxed)
    }

    async fn ask(
        &self,
        client: &Client,
        text: Cow<'static, str>,
        params: &Params,
    ) -> Result<Vec<Row>, DatabaseError> {
        let cell = self.cell(&text);
        let statement = if let Some(statement) = cell.get() {
            statement
        } else {
            if let Some(word) = word_of_session(&text) {
                return Err(DatabaseError::Mismatch(format!(
                    "{word} concerns a whole session, which a single statement has not got: \
                     use `transaction` or `run`"
                )));
            }
            cell.get_or_try_init(|| client.prepare(&text)).await?
        };
        let rows = match client.query_raw(statement, params.iter()).await {
            Ok(rows) => rows.try_collect().await,
            Err(error) => Err(error),
        };
        if let Err(error) = &rows
            && error.code().is_some_and(|code| STALE.contains(code))
        {
            // The next one prepares it anew: the tables have changed, or it was dropped.
            self.lock().remove(&*text);
        }
        Ok(rows?)
    }

    fn cell(&self, text: &str) -> Arc<OnceCell<Statement>> {
        let mut known = self.lock();
        if let Some(cell) = known.get(text) {
            return Arc::clone(cell);
        }
        if known.len() >= STATEMENTS_MAX {
            // Whoever makes up statements as they go gains nothing from keeping them.
            known.clear();
        }
        let cell = Arc::default();
        known.insert(text.to_owned(), Arc::clone(&cell));
        cell
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<OnceCell<Statement>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first word of a statement, when it is one that changes the session for all who share it.
fn word_of_session(text: &str) -> Option<&'static str> {
    let mut rest = text.trim_start();
    // Comments go before it.
    loop {
        let end = match rest.get(..2) {
            Some("--") => rest.find('\n').map(|at| at + 1),
            Some("/*") => rest.find("*/").map(|at| at + 2),
            _ => break,
        };
        rest = rest[end.unwrap_or(rest.len())..].trim_start();
    }
    let is_letter = |at: char| at.is_ascii_alphabetic();
    let end = rest.find(|at| !is_letter(at)).unwrap_or(rest.len());
    WORDS_OF_SESSIONS.into_iter().find(|word| word.eq_ignore_ascii_case(&rest[..end]))
}

/// They begin or end transactions, or leave something in the session that later ones find.
const WORDS_OF_SESSIONS: [&str; 15] = [
    "BEGIN",
    "START",
    "COMMIT",
    "END",
    "ROLLBACK",
    "ABORT",
    "SAVEPOINT",
    "RELEASE",
    "SET",
    "RESET",
    "DISCARD",
    "PREPARE",
    "DEALLOCATE",
    "LISTEN",
    "UNLISTEN",
];

/// Of statements that were prepared and cannot be executed any more: "cached plan must not change
/// result type", and a name that the server does not know.
const STALE: [SqlState; 2] =
    [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];

/// Statements kept prepared on a connection.
const STATEMENTS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_the_session_is_known_by_its_first_word() {
        for (text, word) in [
            ("BEGIN", Some("BEGIN")),
            ("  begin;", Some("BEGIN")),
            ("/* a */ -- b\n start transaction", Some("START")),
            ("set statement_timeout = 0", Some("SET")),
            ("SELECT 1", None),
            ("settle", None),
            ("-- COMMIT", None),
            ("/* never closed", None),
            ("", None),
            ("\u{e9}t\u{e9}", None),
            ("UPDATE t SET a = 1", None),
        ] {
            assert_eq!(word_of_session(text), word, "{text}");
        }
    }
}

//! The statements that are prepared on one connection.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OnceCell;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

use super::postgres_params::Params;

/// See the module's essay. Whoever is new to a statement prepares it, those who come meanwhile wait
/// for that.
#[derive(Default)]
pub struct Statements {
    known: Mutex<HashMap<String, Arc<OnceCell<Statement>>>>,
}

impl Statements {
    /// Does a statement, which is prepared first when it is new to this connection.
    pub async fn query(
        &self,
        client: &Client,
        text: Cow<'static, str>,
        params: &Params,
    ) -> Result<Vec<Row>, Error> {
        let cell = self.cell(&text);
        let statement = match cell.get() {
            Some(statement) => statement,
            None => cell.get_or_try_init(|| client.prepare(&text)).await?,
        };
        let params: Vec<&(dyn ToSql + Sync)> =
            params.0.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
        let rows = client.query(statement, &params).await;
        if let Err(error) = &rows
            && error.code().is_some_and(|code| STALE.contains(code))
        {
            // The next one prepares it anew: the tables have changed, or it was dropped.
            self.lock().remove(&*text);
        }
        rows
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

/// Of statements that were prepared and cannot be executed any more: "cached plan must not change
/// result type", and a name that the server does not know.
const STALE: [SqlState; 2] =
    [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];

/// Statements kept prepared on a connection.
const STATEMENTS_MAX: usize = 256;

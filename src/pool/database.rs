//! One database or the other, for programs that work with either.

use std::borrow::Cow;
use std::time::Duration;

use super::pooled::{DataClient, Pools};
#[cfg(feature = "postgres")]
use super::postgres::Postgres;
#[cfg(feature = "sqlite")]
use super::sqlite::Sqlite;
use super::ticket::Ticket;
use super::value::{Record, Value};

/// A client of a database of either kind. Clones are the same client.
#[derive(Clone, Debug)]
pub enum Database {
    /// A PostgreSQL server's.
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
    /// One in the process.
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlite),
}

impl Database {
    /// Does one statement, with `$1`, `$2` for what varies. It should be one of a few texts, each
    /// of which is prepared once per connection.
    pub fn records(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: Vec<Value>,
    ) -> Ticket<Vec<Record>> {
        match self {
            #[cfg(feature = "postgres")]
            Database::Postgres(postgres) => postgres.records(statement, params),
            #[cfg(feature = "sqlite")]
            Database::Sqlite(sqlite) => sqlite.records(statement, params),
        }
    }

    /// Holds a thread and its connection for a while, in the database where that can sleep.
    pub fn sleep(&self, span: Duration) -> Ticket<()> {
        match self {
            #[cfg(feature = "postgres")]
            Database::Postgres(postgres) => postgres.run_as("SELECT pg_sleep($1)", move |client| {
                client.execute("SELECT pg_sleep($1)", &[&span.as_secs_f64()]).map(|_| ())
            }),
            #[cfg(feature = "sqlite")]
            Database::Sqlite(sqlite) => sqlite.sleep(span),
        }
    }
}

impl DataClient for Database {
    fn pools(&self) -> Pools {
        match self {
            #[cfg(feature = "postgres")]
            Database::Postgres(postgres) => postgres.pools(),
            #[cfg(feature = "sqlite")]
            Database::Sqlite(sqlite) => sqlite.pools(),
        }
    }
}

//! One database or the other, for programs that work with either.

use std::borrow::Cow;
use std::convert::Infallible;
use std::time::Duration;

use super::pooled::{DataClient, Pools};
#[cfg(feature = "postgres")]
use super::postgres::Postgres;
#[cfg(feature = "sqlite")]
use super::sqlite::Sqlite;
use super::ticket::Ticket;
use super::value::{Record, Value};

/// A client of a database of either kind, made of the client of one. Clones are the same client.
#[derive(Clone, Debug)]
pub struct Database(Kind);

#[derive(Clone, Debug)]
enum Kind {
    #[cfg(feature = "postgres")]
    Postgres(Postgres),
    #[cfg(feature = "sqlite")]
    Sqlite(Sqlite),
    /// Without either feature there is none.
    #[allow(dead_code, reason = "nobody can")]
    Neither(Infallible),
}

#[cfg(feature = "postgres")]
impl From<Postgres> for Database {
    fn from(client: Postgres) -> Database {
        Database(Kind::Postgres(client))
    }
}

#[cfg(feature = "sqlite")]
impl From<Sqlite> for Database {
    fn from(client: Sqlite) -> Database {
        Database(Kind::Sqlite(client))
    }
}

impl Database {
    /// Does one statement, with `$1`, `$2` for what varies. It should be one of a few texts, each
    /// of which is prepared once per connection.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        allow(unused_variables, clippy::needless_pass_by_value, reason = "nobody can call it")
    )]
    pub fn records(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: Vec<Value>,
    ) -> Ticket<Vec<Record>> {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Kind::Postgres(postgres) => postgres.records(statement, params),
            #[cfg(feature = "sqlite")]
            Kind::Sqlite(sqlite) => sqlite.records(statement, params),
            Kind::Neither(never) => match *never {},
        }
    }

    /// As [`records`](Database::records), for a statement that only reads and is done in a moment:
    /// a row found by its key. See `Postgres::read`.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        allow(unused_variables, clippy::needless_pass_by_value, reason = "nobody can call it")
    )]
    pub fn read_records(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: Vec<Value>,
    ) -> Ticket<Vec<Record>> {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Kind::Postgres(postgres) => postgres.read_records(statement, params),
            #[cfg(feature = "sqlite")]
            Kind::Sqlite(sqlite) => sqlite.records(statement, params),
            Kind::Neither(never) => match *never {},
        }
    }

    /// Holds a thread and its connection for a while, in the database where that can sleep.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        allow(unused_variables, reason = "nobody can call it")
    )]
    pub fn sleep(&self, span: Duration) -> Ticket<()> {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Kind::Postgres(postgres) => postgres.run_as(SLEEP, move |client| {
                client.execute(SLEEP, &[&span.as_secs_f64()]).map(|_| ())
            }),
            #[cfg(feature = "sqlite")]
            Kind::Sqlite(sqlite) => sqlite.sleep(span),
            Kind::Neither(never) => match *never {},
        }
    }
}

impl DataClient for Database {
    fn pools(&self) -> Pools {
        match &self.0 {
            #[cfg(feature = "postgres")]
            Kind::Postgres(postgres) => postgres.pools(),
            #[cfg(feature = "sqlite")]
            Kind::Sqlite(sqlite) => sqlite.pools(),
            Kind::Neither(never) => match *never {},
        }
    }
}

#[cfg(feature = "postgres")]
const SLEEP: &str = "SELECT pg_sleep($1)";

//! PostgreSQL in two ways: single statements, pipelined on a few connections, and closures and
//! transactions, each alone on a connection of another set.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::PoolLimits;
use super::error::DatabaseError;
use super::pooled::{DataClient, Pooled, Pools};
use super::postgres_address::PostgresAddress;
use super::postgres_exclusive::Exclusive;
use super::postgres_params::{Params, records};
use super::postgres_pipeline::{Pipeline, Purpose};
use super::postgres_row::PostgresRow;
use super::threads::Pool;
use super::ticket::Ticket;
use super::value::{Record, Value};

/// How a client works with its server. `PostgresOptions::default()` is right for most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresOptions {
    /// Threads and connections for single statements, which they keep in flight together.
    pub pipelined: usize,
    /// Threads and connections for closures and transactions, one at a time each.
    pub exclusive: usize,
    /// Jobs that may wait for a thread, for each of the two sets.
    pub queue_length_max: usize,
    /// How long a job may wait for a thread.
    pub queue_timeout: Duration,
    /// From submitting to the failing of the ticket, whatever the server does.
    pub job_timeout: Duration,
    /// How long the server works on one statement.
    pub statement_timeout: Duration,
    /// Statements that are done once, in one transaction, before the first job: tables to be made
    /// where they are missing. Clients that start together do them one after the other.
    pub schema: Option<Cow<'static, str>>,
}

impl Default for PostgresOptions {
    fn default() -> PostgresOptions {
        PostgresOptions {
            pipelined: 4,
            exclusive: 8,
            queue_length_max: 1024,
            queue_timeout: Duration::from_secs(1),
            job_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(2),
            schema: None,
        }
    }
}

/// A client of one PostgreSQL database. Clones are the same client.
///
/// ```no_run
/// use ebbtide::{DatabaseError, Postgres, PostgresAddress, PostgresOptions, params};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let address = PostgresAddress::parse("postgres://me@localhost/shop")?;
/// let db = Postgres::start(&address, &PostgresOptions::default())?;
/// let rows = db.query("SELECT price FROM items WHERE id = $1", params![42_i64]).await?;
/// let prices: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
/// let sold = db
///     .transaction(|tx| {
///         tx.execute("UPDATE items SET stock = stock - 1 WHERE id = $1", &[&42_i64])?;
///         tx.execute("INSERT INTO sales (item) VALUES ($1)", &[&42_i64])
///     })
///     .await?;
/// # let _ = (prices, sold);
/// # Ok(())
/// # }
/// ```
///
/// Statements and closures run on threads of the client's own; the futures may be awaited anywhere.
/// A statement is never repeated: after [`DatabaseError::Lost`] it may have been done.
#[derive(Clone)]
pub struct Postgres {
    pipeline: Pipeline,
    exclusive: Pool<Exclusive>,
}

impl Postgres {
    /// Starts a client. Its threads connect by themselves and go on trying: a server that is down
    /// is no error, and jobs fail with [`DatabaseError::Unavailable`] until it is there.
    ///
    /// # Errors
    /// When threads cannot be started.
    ///
    /// # Panics
    /// When a number in `options` is 0.
    pub fn start(address: &PostgresAddress, options: &PostgresOptions) -> io::Result<Postgres> {
        let address = address.clone().completed(options.statement_timeout, options.schema.clone());
        let limits = |threads: usize| {
            assert!(threads > 0, "a pool has at least one thread");
            PoolLimits {
                threads,
                queue_length_max: options.queue_length_max,
                queue_timeout: options.queue_timeout,
                job_timeout: options.job_timeout,
            }
        };
        let pipeline = Pipeline::start(PIPELINED, address.clone(), limits(options.pipelined))?;
        let exclusive = Pool::start(EXCLUSIVE, address, limits(options.exclusive))?;
        Ok(Postgres { pipeline, exclusive })
    }

    /// Does one statement, with others in flight on the same connection. It is prepared once per
    /// connection, so its text should be one of a few, with `$1`, `$2` for what varies.
    ///
    /// It is not alone on its session: one that begins or ends a transaction, or changes a setting,
    /// is refused with [`DatabaseError::Mismatch`].
    pub fn query(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: impl Into<Params>,
    ) -> Ticket<Vec<PostgresRow>> {
        self.pipeline.submit(statement.into(), params.into(), Purpose::Any, Ok)
    }

    /// As [`query`](Postgres::query), for a statement that only reads and is done in a moment: a
    /// row found by its key.
    ///
    /// Those that are asked for at the same time may share a transaction, which saves the server a
    /// commit and a packet for each. Each sees what was committed before it began, as ever. When
    /// one of them fails the others, which are undone with it, are done again, each by itself. One
    /// that writes all the same is done once, but the rows that it locks stay locked until its
    /// neighbours are done.
    pub fn read(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: impl Into<Params>,
    ) -> Ticket<Vec<PostgresRow>> {
        self.pipeline.submit(statement.into(), params.into(), Purpose::Read, Ok)
    }

    /// As [`query`](Postgres::query), with rows in values that every database has.
    pub fn records(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: Vec<Value>,
    ) -> Ticket<Vec<Record>> {
        self.pipeline.submit(statement.into(), params.into(), Purpose::Any, records)
    }

    /// As [`read`](Postgres::read), with rows in values that every database has.
    pub fn read_records(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: Vec<Value>,
    ) -> Ticket<Vec<Record>> {
        self.pipeline.submit(statement.into(), params.into(), Purpose::Read, records)
    }

    /// Calls `work` with a connection of its own. It blocks a thread of the client's, not the
    /// caller's. It is named by its place in the program where operators see it.
    ///
    /// A transaction that it begins by itself it must end, unless it fails:
    /// [`transaction`](Postgres::transaction) does.
    #[track_caller]
    pub fn run<T, E, F>(&self, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut postgres::Client) -> Result<T, E> + Send + 'static,
    {
        self.run_as(Location::caller().to_string(), work)
    }

    /// As [`run`](Postgres::run); operators see it as `statement`.
    pub fn run_as<T, E, F>(&self, statement: impl Into<Cow<'static, str>>, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut postgres::Client) -> Result<T, E> + Send + 'static,
    {
        let work = |connection: &mut Exclusive| {
            let result = work(&mut connection.client).map_err(Into::into);
            if result.is_err() {
                connection.look_for_transaction();
            }
            result
        };
        self.exclusive.submit(statement.into(), work)
    }

    /// Calls `work` within a transaction, which is committed when it returns `Ok` and rolled back
    /// otherwise, a panic included.
    #[track_caller]
    pub fn transaction<T, E, F>(&self, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut postgres::Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        self.transaction_as(Location::caller().to_string(), work)
    }

    /// As [`transaction`](Postgres::transaction); operators see it as `statement`.
    pub fn transaction_as<T, E, F>(
        &self,
        statement: impl Into<Cow<'static, str>>,
        work: F,
    ) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut postgres::Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let work = |connection: &mut Exclusive| {
            let mut transaction = connection.client.transaction()?;
            let result = work(&mut transaction).map_err(Into::into)?;
            transaction.commit()?;
            Ok(result)
        };
        self.exclusive.submit(statement.into(), work)
    }
}

impl Postgres {
    /// Whether a statement and a closure would find a connection, now. Queues behind nothing.
    ///
    /// # Errors
    /// Why not, in one line for operators: it may name hosts and users, never a password.
    pub fn usable(&self) -> Result<(), String> {
        self.pools().usable()
    }

    /// Ends all that runs and waits, now and from now on, and does not wait for it.
    pub fn cancel(&self) {
        self.pipeline.cancel();
        self.exclusive.cancel();
    }

    /// Takes no more jobs, waits for those there are and closes every connection. What still runs
    /// shortly before `deadline` is cancelled. Blocks. A server that was given this client
    /// ([`Server::with_database`](crate::Server::with_database)) does so by itself.
    ///
    /// # Errors
    /// What could not be closed in time.
    pub fn close(&self, deadline: Instant) -> Result<(), String> {
        self.pools().close(deadline)
    }
}

impl DataClient for Postgres {
    fn pools(&self) -> Pools {
        Pools {
            name: NAME,
            pools: vec![Arc::new(self.pipeline.clone()), Arc::new(self.exclusive.clone())],
        }
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// What it is to the server around it.
const NAME: &str = "database";

/// The names of the two sets in metrics and logs.
const PIPELINED: &str = "postgres_pipelined";
const EXCLUSIVE: &str = "postgres_exclusive";

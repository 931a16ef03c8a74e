//! Data: threads that own a connection each, a bounded queue that feeds them, and tickets that any
//! executor can await.
//!
//! | file | what it is |
//! |---|---|
//! | `ticket` | where a job leaves its result, and the future of whoever waits |
//! | `queue` | the bounded queue; wakes the thread that slept the shortest |
//! | `backoff` | how long to wait before connecting again: pure |
//! | `slot`, `tally` | what a thread is doing, what a pool has done: for readers on other threads |
//! | `core`, `watch` | what every pool has, and the thread that keeps its promises of time |
//! | `threads`, `resource` | threads that own something that blocks, behind a trait of four methods |
//! | `postgres*`, `sqlite*`, `redis` | what they own |
//! | `postgres_line` | a connection for statements: `_conversation` over `_wire`, opened by `_connect` |
//! | `pace` | how fast a connection that pipelines goes |
//! | `pooled` | a pool as the server around it sees it |
//!
//! # Invariants
//!
//! 1. A job has one outcome, and is begun once: again only when the server has said that it has
//!    undone it (`postgres_conversation`). Nothing else is ever repeated: after `Lost`, `Timeout`
//!    and `Cancelled` the database may have done it.
//! 2. A ticket is settled on time whatever the database does: by its thread, or by the watcher,
//!    which waits for no connection.
//! 3. Nothing here blocks who submits, polls a ticket or drops one.
//! 4. A connection whose job was cancelled does no other job unless its resource says that the
//!    cancelling is over: a request to cancel names a connection, not a job.
//! 5. Once a pool is closed and its threads have ended, no ticket waits and no connection is open,
//!    but for those of servers that do not answer, which are given up.
//!
//! It is not tied to the reactor, and knows nothing of requests.

mod backoff;
mod clock;
mod core;
mod database;
mod error;
#[cfg(feature = "postgres")]
mod pace;
mod pooled;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_address;
#[cfg(feature = "postgres")]
mod postgres_connect;
#[cfg(feature = "postgres")]
mod postgres_conversation;
#[cfg(all(feature = "postgres", test))]
mod postgres_dialogues;
#[cfg(feature = "postgres")]
mod postgres_errors;
#[cfg(feature = "postgres")]
mod postgres_exclusive;
#[cfg(feature = "postgres")]
mod postgres_line;
#[cfg(feature = "postgres")]
mod postgres_messages;
#[cfg(feature = "postgres")]
mod postgres_params;
#[cfg(feature = "postgres")]
mod postgres_pipeline;
#[cfg(feature = "postgres")]
mod postgres_row;
#[cfg(feature = "postgres")]
mod postgres_schema;
#[cfg(feature = "postgres")]
mod postgres_statements;
#[cfg(feature = "postgres")]
mod postgres_tls;
#[cfg(feature = "postgres")]
mod postgres_types;
#[cfg(feature = "postgres")]
mod postgres_wire;
pub mod queue;
#[cfg(feature = "redis")]
mod redis;
mod resource;
mod slot;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
mod sqlite_waits;
mod tally;
mod threads;
pub mod ticket;
mod value;
mod watch;

pub use self::core::PoolLimits;
pub use self::database::Database;
pub use self::error::{DatabaseError, Rejection};
pub use self::pooled::{
    DataClient, Histogram, JobOutcome, Pooled, Pools, RunningJob, SECONDS_BUCKETS,
};
#[cfg(feature = "postgres")]
pub use self::postgres::{Postgres, PostgresOptions};
#[cfg(feature = "postgres")]
pub use self::postgres_address::{PostgresAddress, PostgresAddressError};
#[cfg(feature = "postgres")]
pub use self::postgres_params::Params;
#[cfg(feature = "postgres")]
pub use self::postgres_row::{ColumnIndex, PostgresColumn, PostgresRow};
#[cfg(feature = "redis")]
pub use self::redis::{Redis, RedisAddress, RedisAddressError, RedisOptions};
pub use self::resource::{After, Canceller, Reason, Resource};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{Sqlite, SqliteAddress, SqliteAddressError, SqliteOptions};
pub use self::threads::Pool;
pub use self::ticket::Ticket;
pub use self::value::{Record, Value};

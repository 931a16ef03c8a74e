//! Data: threads that own a connection each, a bounded queue that feeds them, and tickets that any
//! executor can await.

mod backoff;
mod clock;
mod core;
mod database;
mod error;
mod pooled;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "postgres")]
mod postgres_address;
#[cfg(feature = "postgres")]
mod postgres_errors;
#[cfg(feature = "postgres")]
mod postgres_exclusive;
#[cfg(feature = "postgres")]
mod postgres_params;
#[cfg(feature = "postgres")]
mod postgres_pipeline;
#[cfg(feature = "postgres")]
mod postgres_schema;
#[cfg(feature = "postgres")]
mod postgres_tls;
pub mod queue;
#[cfg(feature = "redis")]
mod redis;
mod resource;
mod slot;
#[cfg(feature = "sqlite")]
mod sqlite;
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
#[cfg(feature = "redis")]
pub use self::redis::{Redis, RedisAddress, RedisAddressError, RedisOptions};
pub use self::resource::{After, Canceller, Reason, Resource};
#[cfg(feature = "sqlite")]
pub use self::sqlite::{Sqlite, SqliteAddress, SqliteAddressError, SqliteOptions};
pub use self::threads::Pool;
pub use self::ticket::Ticket;
pub use self::value::{Record, Value};

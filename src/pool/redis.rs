//! Redis, thin: commands and pipelines on threads of a pool, each with a connection.
//!
//! Nothing is repeated and nothing is kept of an answer that came too late: a connection on which
//! an answer is owed is closed. A command on its way cannot be taken back from Redis; one whose
//! ticket was dropped is done, and its answer thrown away.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{
    Client, Cmd, Connection, ConnectionLike, ErrorKind, FromRedisValue, Pipeline, RedisError,
};

use super::clock;
use super::core::PoolLimits;
use super::error::{DatabaseError, Rejection};
use super::pooled::{DataClient, Pools};
use super::resource::{After, Canceller, Reason, Resource};
use super::threads::Pool;
use super::ticket::Ticket;

/// Where a Redis server is and how to get in: `redis://user:password@host:6379/0`, or
/// `redis+unix:///path`.
#[derive(Clone)]
pub struct RedisAddress(Client);

impl RedisAddress {
    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong with it, without repeating any of it.
    pub fn parse(text: &str) -> Result<RedisAddress, RedisAddressError> {
        Client::open(text).map(RedisAddress).map_err(|error| {
            // Its detail may repeat a part of what was given.
            RedisAddressError(format!(
                "expected redis://:PASSWORD@HOST:PORT/DATABASE: {}",
                kind(&error)
            ))
        })
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisAddress({})", self.0.get_connection_info().addr())
    }
}

/// Why an address is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisAddressError(String);

impl fmt::Display for RedisAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RedisAddressError {}

fn kind(error: &RedisError) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidClientConfig => "it is no such address, or wants what is not built in",
        _ => "it cannot be read",
    }
}

/// How a client works with its server. `RedisOptions::default()` is right for most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOptions {
    /// Threads and connections, at least 1.
    pub threads: usize,
    /// Jobs that may wait for a thread.
    pub queue_length_max: usize,
    /// How long a job may wait for a thread.
    pub queue_timeout: Duration,
    /// From submitting to the failing of the ticket, whatever the server does.
    pub job_timeout: Duration,
}

impl Default for RedisOptions {
    fn default() -> RedisOptions {
        RedisOptions {
            threads: 4,
            queue_length_max: 1024,
            queue_timeout: Duration::from_secs(1),
            job_timeout: Duration::from_secs(5),
        }
    }
}

/// A client of one Redis server. Clones are the same client. Commands are made with the crate
/// `redis`.
///
/// ```no_run
/// use ebbtide::{Redis, RedisAddress, RedisOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let address = RedisAddress::parse("redis://localhost:6379/0")?;
/// let redis = Redis::start(&address, &RedisOptions::default())?;
/// let mut hit = redis::cmd("INCR");
/// hit.arg("hits");
/// let hits: i64 = redis.command(hit).await?;
/// let mut both = redis::pipe();
/// both.cmd("SET").arg("k").arg("v").ignore().cmd("GET").arg("k");
/// let (value,): (String,) = redis.pipeline(both).await?;
/// # let _ = (hits, value);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis {
    pool: Pool<Link>,
}

impl Redis {
    /// Starts a client. Its threads connect by themselves and go on trying: a server that is down
    /// is no error, and jobs fail with [`DatabaseError::Unavailable`] until it is there.
    ///
    /// # Errors
    /// When threads cannot be started.
    ///
    /// # Panics
    /// When a number in `options` is 0.
    pub fn start(address: &RedisAddress, options: &RedisOptions) -> io::Result<Redis> {
        assert!(options.threads > 0, "a pool has at least one thread");
        let limits = PoolLimits {
            threads: options.threads,
            queue_length_max: options.queue_length_max,
            queue_timeout: options.queue_timeout,
            job_timeout: options.job_timeout,
        };
        let settings = Settings { client: address.0.clone(), patience: options.job_timeout };
        Ok(Redis { pool: Pool::start(NAME, settings, limits)? })
    }

    /// Sends one command. Operators see its name, not its arguments.
    pub fn command<T: FromRedisValue + Send + 'static>(&self, command: Cmd) -> Ticket<T> {
        let name = command.args_iter().next().map_or(String::new(), |name| match name {
            redis::Arg::Simple(name) => String::from_utf8_lossy(name).into_owned(),
            _ => String::new(),
        });
        self.pool.submit(name.into(), move |link| link.ask(|connection| command.query(connection)))
    }

    /// Sends several commands at once and takes their answers together.
    pub fn pipeline<T: FromRedisValue + Send + 'static>(&self, commands: Pipeline) -> Ticket<T> {
        let name = format!("pipeline of {}", commands.len());
        self.pool.submit(name.into(), move |link| link.ask(|connection| commands.query(connection)))
    }
}

impl DataClient for Redis {
    fn pools(&self) -> Pools {
        Pools { name: NAME, pools: vec![Arc::new(self.pool.clone())] }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

/// How the threads connect.
struct Settings {
    client: Client,
    /// How long an answer is waited for.
    patience: Duration,
}

/// A thread's connection.
struct Link {
    connection: Connection,
    patience: Duration,
    /// When it was known to work.
    proved: Instant,
    /// An answer is owed, or it broke.
    is_broken: bool,
}

impl Link {
    fn ask<T>(
        &mut self,
        ask: impl FnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, DatabaseError> {
        let result = ask(&mut self.connection).map_err(DatabaseError::from);
        match &result {
            Err(DatabaseError::Lost | DatabaseError::Timeout) => self.is_broken = true,
            _ => self.proved = clock::now(),
        }
        result
    }
}

impl Resource for Link {
    type Settings = Settings;

    fn connect(settings: &Settings) -> Result<Link, Reason> {
        let reason = |error: RedisError| Reason(error.to_string());
        // The name lookup, the connection and what is said first.
        let mut connection =
            settings.client.get_connection_with_timeout(CONNECT_MAX).map_err(reason)?;
        connection.set_write_timeout(Some(settings.patience)).map_err(reason)?;
        // One that wants a password and was given none says so at the first command only.
        answers(&mut connection).map_err(reason)?;
        connection.set_read_timeout(Some(settings.patience)).map_err(reason)?;
        let (patience, proved) = (settings.patience, clock::now());
        Ok(Link { connection, patience, proved, is_broken: false })
    }

    fn is_usable(&mut self, after: After) -> bool {
        if self.is_broken || !self.connection.is_open() {
            return false;
        }
        if after != After::Rest || clock::now() < self.proved + PROVED_FOR {
            return true;
        }
        // Whether a server is still there shows by its answer only.
        let proved = answers(&mut self.connection).is_ok()
            && self.connection.set_read_timeout(Some(self.patience)).is_ok();
        self.proved = clock::now();
        proved
    }

    fn canceller(&self) -> Arc<dyn Canceller> {
        Arc::new(Nothing)
    }

    fn close(self) {
        drop(self.connection);
    }
}

/// Whether the server would do a command, asked with one that does nothing. Leaves the time for an
/// answer changed.
fn answers(connection: &mut Connection) -> Result<(), RedisError> {
    connection.set_read_timeout(Some(PING_MAX))?;
    match redis::cmd("PING").query(connection) {
        // A user who may do other things, for which it is there.
        Err(error) if error.code() == Some("NOPERM") => Ok(()),
        answer => answer,
    }
}

/// Redis has no way to take a command back.
struct Nothing;

impl Canceller for Nothing {
    fn cancel(&self) {}
}

/// The codes are those that PostgreSQL has for the same (its manual, appendix A).
impl From<RedisError> for DatabaseError {
    fn from(error: RedisError) -> DatabaseError {
        if error.is_timeout() {
            return DatabaseError::Timeout;
        }
        if error.is_io_error() || error.is_connection_dropped() || error.is_unrecoverable_error() {
            return DatabaseError::Lost;
        }
        let Some(code) = error.code() else {
            return DatabaseError::Mismatch(error.to_string());
        };
        let code = match code {
            "READONLY" => "25006",
            "OOM" => "53200",
            "NOAUTH" | "WRONGPASS" | "NOPERM" => "42501",
            "BUSY" | "LOADING" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" => "57P03",
            "WRONGTYPE" => "42804",
            "EXECABORT" => "25P02",
            _ => "XX000",
        };
        let (code, message) = (code.to_owned(), error.to_string());
        DatabaseError::Rejected(Rejection { code, message, constraint: None })
    }
}

/// The name of the pool in metrics and logs.
const NAME: &str = "redis";

/// How long connecting may take.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// For so long a connection that has answered is believed to be there.
const PROVED_FOR: Duration = Duration::from_millis(900);

/// How long the answer to a question about nothing may take.
const PING_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in ["redis://localhost", "redis://:pw@[::1]:6380/3", "redis+unix:///run/redis"] {
            assert!(RedisAddress::parse(good).is_ok(), "{good}");
        }
        for bad in ["hunter2", "http://hunter2@host", "redis://:hunter2@host:x", "rediss://h"] {
            let error = RedisAddress::parse(bad).expect_err(bad).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let address = RedisAddress::parse("redis://:hunter2@host").expect("an address");
        assert!(!format!("{address:?}").contains("hunter2"));
    }
}

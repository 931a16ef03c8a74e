//! SQLite: a database in the process, in a file or in memory.
//!
//! Each thread has a connection of its own to the same database. Reads run side by side; writes
//! take turns at a lock of ours, because SQLite lets one connection write at a time and has the
//! others ask again after growing pauses. Another process with the same file is waited for as well,
//! for a few seconds. A file is in WAL mode and synced at every commit: what a
//! response has acknowledged survives a crash of the machine. Closing brings the log into the file.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rusqlite::ffi::ErrorCode;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, InterruptHandle, OpenFlags, Transaction, TransactionBehavior, ffi};

use super::core::PoolLimits;
use super::error::{DatabaseError, Rejection};
use super::pooled::{DataClient, Pools};
use super::resource::{After, Canceller, Reason, Resource};
use super::sqlite_waits::{Turns, Waits, be_patient};
use super::threads::Pool;
use super::ticket::Ticket;
use super::value::{Record, Value};
use crate::os;

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SqliteAddress {
    /// In this file, which is made when it is not there. Beside it are, while it is open, two more
    /// with the endings `-wal` and `-shm`.
    File(PathBuf),
    /// In memory: it ends with its client.
    Memory,
}

/// Why an address cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqliteAddressError;

impl fmt::Display for SqliteAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected sqlite:PATH, without parameters, or sqlite::memory:")
    }
}

impl std::error::Error for SqliteAddressError {}

impl SqliteAddress {
    /// Reads `sqlite:PATH`, `sqlite://PATH` or `sqlite::memory:`.
    ///
    /// # Errors
    /// [`SqliteAddressError`], for anything else and for parameters behind a `?`.
    pub fn parse(text: &str) -> Result<SqliteAddress, SqliteAddressError> {
        let rest = text.strip_prefix("sqlite:").ok_or(SqliteAddressError)?;
        match rest.strip_prefix("//").unwrap_or(rest) {
            "" => Err(SqliteAddressError),
            ":memory:" => Ok(SqliteAddress::Memory),
            path if path.contains(['?', '\0']) => Err(SqliteAddressError),
            path => Ok(SqliteAddress::File(PathBuf::from(path))),
        }
    }
}

impl fmt::Display for SqliteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SqliteAddress::File(path) => write!(f, "sqlite:{}", path.display()),
            SqliteAddress::Memory => f.write_str("sqlite::memory:"),
        }
    }
}

/// How a client works with its database. `SqliteOptions::default()` is right for most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqliteOptions {
    /// Threads and connections, at least 1. A database in memory has one, whatever this says.
    pub threads: usize,
    /// Jobs that may wait for a thread.
    pub queue_length_max: usize,
    /// How long a job may wait for a thread.
    pub queue_timeout: Duration,
    /// From submitting to the failing of the ticket.
    pub job_timeout: Duration,
    /// Statements that are done once, in one transaction, before the first job.
    pub schema: Option<Cow<'static, str>>,
}

impl Default for SqliteOptions {
    fn default() -> SqliteOptions {
        SqliteOptions {
            threads: 4,
            queue_length_max: 1024,
            queue_timeout: Duration::from_secs(1),
            job_timeout: Duration::from_secs(5),
            schema: None,
        }
    }
}

/// A client of one SQLite database. Clones are the same client.
///
/// ```no_run
/// use ebbtide::{DatabaseError, Sqlite, SqliteAddress, SqliteOptions};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let address = SqliteAddress::parse("sqlite:shop.db")?;
/// let db = Sqlite::start(&address, &SqliteOptions::default())?;
/// let rows = db.records("SELECT price FROM items WHERE id = $1", vec![42_i64.into()]).await?;
/// let count: i64 = db
///     .run(|connection| connection.query_row("SELECT count(*) FROM items", [], |row| row.get(0)))
///     .await?;
/// # let _ = (rows, count);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sqlite {
    pool: Pool<Embedded>,
    writing: Arc<Turns>,
}

impl Sqlite {
    /// Starts a client. Its threads open the database by themselves and go on trying; jobs fail
    /// with [`DatabaseError::Unavailable`] until they can.
    ///
    /// # Errors
    /// When threads cannot be started.
    ///
    /// # Panics
    /// When a number in `options` is 0.
    pub fn start(address: &SqliteAddress, options: &SqliteOptions) -> io::Result<Sqlite> {
        assert!(options.threads > 0, "a pool has at least one thread");
        let writing = Arc::new(Turns::default());
        let place = Place::of(address)?;
        // Connections to one database in memory lock each other out, readers too.
        let threads = if matches!(place, Place::Memory(..)) { 1 } else { options.threads };
        let settings = Settings {
            place,
            schema: options.schema.clone(),
            is_prepared: AtomicBool::new(false),
            writing: Arc::clone(&writing),
        };
        let limits = PoolLimits {
            threads,
            queue_length_max: options.queue_length_max,
            queue_timeout: options.queue_timeout,
            job_timeout: options.job_timeout,
        };
        Ok(Sqlite { pool: Pool::start(NAME, settings, limits)?, writing })
    }

    /// Whether there is a file, or one can be made: for those who would rather have no database
    /// than one that cannot be made. Makes the file. Does not wait for others who have it, nor ask
    /// whether what is in it can be used: that shows in `/readyz`.
    ///
    /// # Errors
    /// Why not, in one line.
    pub fn try_file(path: &Path) -> Result<(), Reason> {
        // An empty one is left of an attempt to make it.
        if std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
            return Ok(());
        }
        match open(path) {
            Err(error) if !is_busy(&error) => Err(reason(&error)),
            _ => Ok(()),
        }
    }

    /// Does one statement, with `$1`, `$2` for what varies. Each text is prepared once per
    /// connection.
    pub fn records(
        &self,
        statement: impl Into<Cow<'static, str>>,
        params: Vec<Value>,
    ) -> Ticket<Vec<Record>> {
        let statement = statement.into();
        let writing = Arc::clone(&self.writing);
        let text = statement.clone();
        self.pool.submit(statement, move |embedded| {
            embedded.waits.begin();
            embedded.records(&text, &params, &writing)
        })
    }

    /// Calls `work` with a connection. It blocks a thread of the client's, not the caller's. It is
    /// named by its place in the program where operators see it. A transaction that it leaves open
    /// is rolled back.
    #[track_caller]
    pub fn run<T, E, F>(&self, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    {
        self.run_as(Location::caller().to_string(), work)
    }

    /// As [`run`](Sqlite::run); operators see it as `statement`.
    pub fn run_as<T, E, F>(&self, statement: impl Into<Cow<'static, str>>, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    {
        let work = |embedded: &mut Embedded| {
            embedded.waits.begin();
            work(&mut embedded.connection).map_err(Into::into)
        };
        self.pool.submit(statement.into(), work)
    }

    /// Calls `work` within a transaction that may write, which is committed when it returns `Ok`
    /// and rolled back otherwise, a panic included.
    #[track_caller]
    pub fn transaction<T, E, F>(&self, work: F) -> Ticket<T>
    where
        T: Send + 'static,
        E: Into<DatabaseError>,
        F: FnOnce(&mut Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let writing = Arc::clone(&self.writing);
        let statement = Location::caller().to_string();
        self.pool.submit(statement.into(), move |embedded| {
            embedded.waits.begin();
            let _turn = writing.take(&embedded.waits)?;
            let behavior = TransactionBehavior::Immediate;
            let mut transaction = embedded.connection.transaction_with_behavior(behavior)?;
            let result = work(&mut transaction).map_err(Into::into)?;
            transaction.commit()?;
            Ok(result)
        })
    }

    /// Holds a thread and its connection for a while.
    pub(super) fn sleep(&self, span: Duration) -> Ticket<()> {
        self.pool.submit("sleep".into(), move |embedded| embedded.waits.sleep(span))
    }
}

impl DataClient for Sqlite {
    fn pools(&self) -> Pools {
        Pools { name: "database", pools: vec![Arc::new(self.pool.clone())] }
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

/// How the threads connect.
struct Settings {
    place: Place,
    schema: Option<Cow<'static, str>>,
    /// Whether the schema has been done. Only the holder of `writing` changes it.
    is_prepared: AtomicBool,
    writing: Arc<Turns>,
}

enum Place {
    File(PathBuf),
    /// The name that its connections find it by, and one that keeps it while a thread's is lost.
    Memory(String, #[allow(dead_code, reason = "it is there to be open")] Mutex<Connection>),
}

impl Place {
    fn of(address: &SqliteAddress) -> io::Result<Place> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        match address {
            SqliteAddress::File(path) => Ok(Place::File(path.clone())),
            SqliteAddress::Memory => {
                let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
                let name = format!("file:ebbtide-{serial}?mode=memory&cache=shared");
                let kept = Connection::open(&name).map_err(io::Error::other)?;
                Ok(Place::Memory(name, Mutex::new(kept)))
            }
        }
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        match self {
            Place::File(path) => open(path),
            Place::Memory(name, _) => Connection::open(name),
        }
    }
}

/// A connection to a file that can be written.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    // A path that begins with `file:` is a path.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_handler(Some(be_patient))?;
    // Writes the file's header, and so finds out whether it can be written and is a database. Of
    // several that do it to a new file at once SQLite refuses some without waiting.
    while let Err(error) =
        connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))
    {
        if !is_busy(&error) || !be_patient(0) {
            return Err(error);
        }
    }
    connection.pragma_update(None, "synchronous", "full")?;
    if connection.is_readonly("main")? {
        let error = ffi::Error::new(ffi::SQLITE_READONLY);
        return Err(rusqlite::Error::SqliteFailure(error, None));
    }
    Ok(connection)
}

fn reason(error: &rusqlite::Error) -> Reason {
    Reason(error.to_string())
}

/// Whether it has waited for another process in vain.
fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

/// A thread's connection.
struct Embedded {
    connection: Connection,
    waits: Arc<Waits>,
}

impl Resource for Embedded {
    type Settings = Settings;

    fn connect(settings: &Settings) -> Result<Embedded, Reason> {
        let waits = Waits::of_this_thread();
        let mut connection = settings.place.connect().map_err(|error| reason(&error))?;
        connection.pragma_update(None, "foreign_keys", "on").map_err(|error| reason(&error))?;
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        if let Some(schema) = &settings.schema {
            let turn = settings.writing.take(&waits);
            let _turn = turn.map_err(|error| Reason(error.to_string()))?;
            if !settings.is_prepared.load(Ordering::Acquire) {
                // Another process that starts at the same time waits at BEGIN IMMEDIATE.
                prepare(&mut connection, schema).map_err(|error| reason(&error))?;
                settings.is_prepared.store(true, Ordering::Release);
                // The tables' making took as much memory again as a small server has in all of its
                // heaps.
                os::trim_memory();
            }
        }
        Ok(Embedded { connection, waits })
    }

    fn is_usable(&mut self, after: After) -> bool {
        if after == After::Cancelled {
            self.waits.forget();
        }
        self.connection.is_autocommit() || self.connection.execute_batch("ROLLBACK").is_ok()
    }

    fn canceller(&self) -> Arc<dyn Canceller> {
        let interrupt = self.connection.get_interrupt_handle();
        Arc::new(Cancelling { interrupt, waits: Arc::clone(&self.waits) })
    }

    fn close(self) {
        // Fails while others read, who then do the same.
        let checkpoint =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        if let Err(error) = checkpoint.and_then(|()| self.connection.close().map_err(|(_, e)| e)) {
            log::debug!(event_type = "database_close"; "closing a connection: {error}");
        }
    }
}

fn prepare(connection: &mut Connection, schema: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(schema)?;
    transaction.commit()
}

impl Embedded {
    fn records(
        &self,
        text: &str,
        params: &[Value],
        writing: &Turns,
    ) -> Result<Vec<Record>, DatabaseError> {
        let mut statement = self.connection.prepare_cached(text)?;
        for (number, value) in (1..).zip(params) {
            // SQLite numbers them in the order of the text.
            let Some(index) = statement.parameter_index(&format!("${number}"))? else {
                let error = rusqlite::Error::InvalidParameterCount(params.len(), number - 1);
                return Err(error.into());
            };
            statement.raw_bind_parameter(index, value)?;
        }
        let _turn = if statement.readonly() { None } else { Some(writing.take(&self.waits)?) };
        let columns = statement.column_count();
        let mut rows = statement.raw_query();
        let mut records = Vec::new();
        while let Some(row) = rows.next()? {
            let record = (0..columns).map(|index| Ok(value(row.get_ref(index)?)));
            records.push(record.collect::<rusqlite::Result<Record>>()?);
        }
        Ok(records)
    }
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => Value::Int(number),
        ValueRef::Real(number) => Value::Float(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Value::Bytes(bytes.to_vec()),
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Bool(value) => ValueRef::Integer((*value).into()),
            Value::Int(number) => ValueRef::Integer(*number),
            Value::Float(number) => ValueRef::Real(*number),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// Ends a statement, and whatever it waits for.
struct Cancelling {
    interrupt: InterruptHandle,
    waits: Arc<Waits>,
}

impl Canceller for Cancelling {
    fn cancel(&self) {
        self.waits.cancel();
        self.interrupt.interrupt();
    }
}

/// The codes are those that PostgreSQL has for the same (its manual, appendix A).
impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> DatabaseError {
        let (failure, said) = match &error {
            rusqlite::Error::SqliteFailure(failure, said) => (failure, said.clone()),
            // Of a statement that cannot be prepared; it is shown with it.
            rusqlite::Error::SqlInputError { error: failure, msg, .. } => {
                (failure, Some(msg.clone()))
            }
            _ => return DatabaseError::Mismatch(error.to_string()),
        };
        let code = match (failure.code, failure.extended_code) {
            // It has waited for another process; nothing was done.
            (ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked, _) => return DatabaseError::Busy,
            (ErrorCode::OperationInterrupted, _) => return DatabaseError::Cancelled,
            (_, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY) => "23505",
            (_, ffi::SQLITE_CONSTRAINT_NOTNULL) => "23502",
            (_, ffi::SQLITE_CONSTRAINT_FOREIGNKEY) => "23503",
            (_, ffi::SQLITE_CONSTRAINT_CHECK) => "23514",
            (ErrorCode::ConstraintViolation, _) => "23000",
            (ErrorCode::TypeMismatch, _) => "42804",
            (ErrorCode::TooBig, _) => "54000",
            (ErrorCode::ReadOnly, _) => "25006",
            (ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied, _) => {
                "42501"
            }
            (ErrorCode::DiskFull, _) => "53100",
            (ErrorCode::OutOfMemory, _) => "53200",
            (ErrorCode::SystemIoFailure | ErrorCode::CannotOpen, _) => "58030",
            (ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase, _) => "XX001",
            (ErrorCode::Unknown, _) => "42601",
            _ => "XX000",
        };
        let message = said.unwrap_or_else(|| error.to_string());
        // "UNIQUE constraint failed: items.name"
        let constraint = message.split_once("constraint failed: ").map(|(_, name)| name.to_owned());
        DatabaseError::Rejected(Rejection { code: code.to_owned(), message, constraint })
    }
}

/// The name of the pool in metrics and logs.
const NAME: &str = "sqlite";

/// Statements that each connection keeps prepared.
const STATEMENTS_KEPT: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let file = |path: &str| Ok(SqliteAddress::File(path.into()));
        for (text, expected) in [
            ("sqlite::memory:", Ok(SqliteAddress::Memory)),
            ("sqlite:items.db", file("items.db")),
            ("sqlite:/var/lib/items.db", file("/var/lib/items.db")),
            ("sqlite://items.db", file("items.db")),
            ("sqlite:///var/lib/items.db", file("/var/lib/items.db")),
            ("sqlite:", Err(SqliteAddressError)),
            ("sqlite://", Err(SqliteAddressError)),
            ("sqlite:items.db?mode=ro", Err(SqliteAddressError)),
            ("items.db", Err(SqliteAddressError)),
        ] {
            assert_eq!(SqliteAddress::parse(text), expected, "{text}");
        }
    }
}

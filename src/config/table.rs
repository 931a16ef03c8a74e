//! The keys: one declaration from which all else follows.
//!
//! A row is `/// what it does`, `name: type = "default" in kind;`. Of it `keys!` makes the field of
//! [`Config`] with its documentation, the row of [`KEYS`] (command line, help, sample file,
//! Markdown table) and the reading and writing of the value. To add a key, add a row; a new kind
//! of values goes to `value.rs` or `place.rs`. The doc lines are shown to operators as they stand:
//! one or two sentences, units included.
//!
//! Defaults are written as an operator would write them and are read by the same code, so a default
//! outside its own range fails the first test that asks for one.

use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use super::layer::Layers;
use super::place::{Addresses, At, OptionalPath};
use super::secret::{OptionalSecret, Secret};
use super::source::{ConfigError, Sources};
use super::units::{GIB, KIB, TIB};
use super::value::{Choice, Count, Describe, Kind, OrWord, Size, Span, Switch};
use crate::server::Address;

/// A key as everything but its value's type knows it.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The heading it stands under.
    pub(super) section: &'static str,
    /// What it does, a line an item.
    pub(super) doc: &'static [&'static str],
    /// As an operator would write it, without quotes; empty for none.
    pub(super) default: &'static str,
    pub(super) kind: &'static dyn Describe,
}

impl Key {
    /// `SHUTDOWN_TIMEOUT` for `shutdown_timeout`.
    pub(super) fn variable(&self) -> String {
        self.name.to_ascii_uppercase()
    }

    /// `DATABASE_URL_FILE` for `database_url`, for secrets.
    pub(super) fn file_variable(&self) -> Option<String> {
        self.kind.is_secret().then(|| format!("{}_FILE", self.variable()))
    }

    /// `shutdown-timeout` for `shutdown_timeout`.
    pub(super) fn flag(&self) -> String {
        self.name.replace('_', "-")
    }

    /// What it does, as running text.
    pub(super) fn sentence(&self) -> String {
        self.doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
    }
}

macro_rules! keys {
    ($($section:ident {
        $($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:literal in $kind:expr;)+
    })+) => {
        /// The configuration in force: every field is in its key's range, and [`load`](super::load)
        /// has checked those that bound each other. None stands for `auto`, `off` and for a path
        /// that is not set.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Config {
            $($($(#[doc = $doc])+ pub $name: $type,)+)+
        }

        /// Every key in the order of the declaration.
        pub(super) static KEYS: &[Key] = &[$($(Key {
            name: stringify!($name),
            section: stringify!($section),
            doc: &[$($doc),+],
            default: $default,
            kind: &$kind,
        },)+)+];

        impl Config {
            /// Reads every key from the layers; contradictions are not looked for.
            pub(super) fn read(layers: &Layers) -> Result<(Self, Sources), ConfigError> {
                let mut sources = Sources::default();
                let config = Self {
                    $($($name: {
                        layers.read(stringify!($name), $default, &$kind, &mut sources)?
                    },)+)+
                };
                Ok((config, sources))
            }

            /// The value of every key as TOML, in the order of [`KEYS`].
            pub(super) fn written(&self) -> Vec<String> {
                vec![$($($kind.write(&self.$name)),+),+]
            }
        }
    };
}

impl Default for Config {
    fn default() -> Self {
        let read = Self::read(&Layers::default());
        read.expect("every default is in the range of its key: a test reads them all").0
    }
}

const PATIENCE: Span = Span { min: Duration::from_millis(100), max: DAY };
const GRACE: Span = Span { min: Duration::ZERO, max: DAY };
/// A third of the longest budget.
const LAME_DUCK: Span = Span { min: Duration::ZERO, max: Duration::from_secs(8 * 60 * 60) };
const BODY: Size = Size { min: 0, max: TIB };
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MILLION: usize = 1_000_000;

const LEVELS: Choice<LevelFilter> = Choice(&[
    ("off", LevelFilter::Off),
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
]);

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// [`LogFormat::Text`] when stderr is a terminal, [`LogFormat::Json`] otherwise.
    Auto,
    /// One JSON object a line.
    Json,
    /// For a reader at a terminal.
    Text,
}

/// What a client's FIN means for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientHalfClose {
    /// It is gone.
    Cancel,
    /// It waits.
    Serve,
}

const HALF_CLOSES: Choice<ClientHalfClose> =
    Choice(&[("cancel", ClientHalfClose::Cancel), ("serve", ClientHalfClose::Serve)]);

const FORMATS: Choice<LogFormat> =
    Choice(&[("auto", LogFormat::Auto), ("json", LogFormat::Json), ("text", LogFormat::Text)]);

keys! {
    Server {
        /// Where to serve: TCP addresses, unix sockets, and `systemd` for the sockets that
        /// `LISTEN_FDS` passes on. `PORT` in the environment changes the port alone of every TCP
        /// address here, unless the flag gives them.
        listen: Vec<Address> = "127.0.0.1:8080" in Addresses;

        /// Where health and metrics are shown to operators; `off` for nowhere.
        admin_listen: Option<Address> = "127.0.0.1:9464" in OrWord("off", At);

        /// Threads that serve clients. `auto` is one per core this process may use; 0 runs
        /// everything on the calling thread with one reactor.
        workers: Option<usize> = "auto" in OrWord("auto", Count { min: 0, max: 1024 });

        /// Let a successor of the same user bind the same port while this process drains.
        reuse_port: bool = "false" in Switch;

        /// Connections open at the same time, in all. `auto` is the smaller of 20000 and half of
        /// `RLIMIT_NOFILE`.
        max_connections: Option<usize> = "auto" in OrWord("auto", Count { min: 1, max: MILLION });

        /// Requests in flight per worker; beyond it the answer is 503 with Retry-After.
        max_in_flight: usize = "10000" in Count { min: 1, max: MILLION };

        /// Threads for work that is handed off the reactor because it blocks.
        blocking_threads: usize = "64" in Count { min: 1, max: 1024 };
    }
    Limits {
        /// Bytes of a request's head, request line included; beyond it 431.
        head_bytes_max: u64 = "32KiB" in Size { min: KIB, max: 256 * KIB };

        /// Header fields of a request; beyond it 431.
        header_fields_max: usize = "100" in Count { min: 1, max: 1000 };

        /// Bytes of the request line, at most `head_bytes_max`; beyond it 414.
        request_line_bytes_max: u64 = "8KiB" in Size { min: 256, max: 64 * KIB };

        /// Bytes of a request's body; beyond it 413.
        body_bytes_max: u64 = "1MiB" in BODY;

        /// Bytes of a body sent to the `/upload` of the lab routes; beyond it 413.
        upload_bytes_max: u64 = "1GiB" in BODY;

        /// From the opening of a connection to its first byte; beyond it 408.
        first_byte_timeout: Duration = "10s" in PATIENCE;

        /// From a head's first byte to its last; beyond it 408.
        head_timeout: Duration = "10s" in PATIENCE;

        /// Silence of a connection between two requests; beyond it the connection is closed.
        keep_alive_timeout: Duration = "75s" in PATIENCE;

        /// Silence within a request's body; beyond it 408.
        body_stall_timeout: Duration = "20s" in PATIENCE;

        /// Bytes per second of a request's body, on average, once its first 10 s are over; below
        /// it 408. 0 is no minimum.
        body_rate_min: u64 = "500" in Size { min: 0, max: GIB };

        /// Time in which the client takes no byte of a response; beyond it the connection is reset.
        write_stall_timeout: Duration = "30s" in PATIENCE;

        /// From a request's complete head to the head of its response; beyond it 503.
        request_timeout: Duration = "30s" in PATIENCE;

        /// What it means for a request that its client has finished sending: `cancel` that it is
        /// gone, most likely, and the request's token fires; `serve` that it waits for its answer.
        client_half_close: ClientHalfClose = "cancel" in HALF_CLOSES;
    }
    Shutdown {
        /// The whole budget, from the first signal to the exit of the process. An orchestrator
        /// should grant 5 s more before it kills.
        shutdown_timeout: Duration = "30s" in PATIENCE;

        /// Lame duck: how long `/readyz` already answers 503 while connections are still accepted.
        /// At most a third of `shutdown_timeout`.
        shutdown_delay: Duration = "0s" in LAME_DUCK;

        /// Wait for the first byte of a connection that has sent none when draining begins.
        shutdown_first_byte_grace: Duration = "1s" in GRACE;

        /// Wait for one more request of an idle connection when draining begins, so that its
        /// client learns of the closing from a response.
        shutdown_idle_window: Duration = "5s" in GRACE;

        /// Wait for the requests in flight. `false` begins what has been received, then cancels.
        shutdown_wait_for_connections: bool = "true" in Switch;

        /// End what is still in flight when the budget is used up. `false` goes on waiting for it.
        shutdown_force_after_timeout: bool = "true" in Switch;

        /// File that the report of the shutdown is written to, as JSON; nothing writes no file.
        shutdown_report_path: Option<PathBuf> = "" in OptionalPath;
    }
    Data {
        /// The database: `postgres://user:password@host/name`, `sqlite:PATH`, `sqlite::memory:`, or
        /// `off` for none. Without one it is the file `ebbtide.db` in the working directory.
        database_url: Option<Secret> = "" in OptionalSecret("an address of a database");

        /// Threads, each with a connection, that keep single statements in flight together.
        pool_pipelined: usize = "4" in Count { min: 1, max: 256 };

        /// Threads, each with a connection, for transactions and whatever else needs one to itself.
        pool_exclusive: usize = "8" in Count { min: 1, max: 1024 };

        /// Jobs that may wait for a thread of either kind; beyond it 503 with Retry-After.
        pool_queue: usize = "1024" in Count { min: 1, max: MILLION };

        /// How long a job may wait for a thread; beyond it 503 with Retry-After.
        pool_queue_timeout: Duration = "1s" in PATIENCE;

        /// From submitting a job to giving it up, whatever the database does. At least
        /// `statement_timeout`.
        pool_job_timeout: Duration = "5s" in PATIENCE;

        /// How long the database may work on one statement.
        statement_timeout: Duration = "2s" in PATIENCE;

        /// A Redis server: `redis://:password@host:6379/0`. Wants the feature `redis`.
        redis_url: Option<Secret> = "" in OptionalSecret("an address of a Redis server");

        /// Where panics and responses of 500 and above are reported: the DSN of a Sentry project.
        /// Wants the feature `sentry`.
        sentry_dsn: Option<Secret> = "" in OptionalSecret("a DSN");
    }
    Logs {
        /// The least severe level that is logged.
        log_level: LevelFilter = "info" in LEVELS;

        /// JSON, a line an event, or text; `auto` is text when stderr is a terminal.
        log_format: LogFormat = "auto" in FORMATS;

        /// Log every request.
        access_log: bool = "false" in Switch;
    }
    Application {
        /// Serve the lab: routes for trying out load, delays, uploads and failures.
        lab_routes: bool = "true" in Switch;

        /// Answer `/livez`, `/readyz` and `/healthz` on the public listeners too.
        health_on_public: bool = "true" in Switch;
    }
}

//! Log lines: one record, one line, and no caller ever waits for the terminal.
//!
//! ```text
//! record ─► line ─► channel, QUEUE_LINES long ─► thread `ebbtide-log` ─► sink (stderr)
//!  caller's thread │ full: dropped, counted      │ BATCH_BYTES at most per write
//! ```
//!
//! `env_logger` filters and formats on the caller's thread and hands the finished line to a pipe
//! whose "write" is a `try_send`. Whoever reads stderr may stop reading for ever: the channel
//! fills, lines are dropped and counted, the server goes on, and [`Logger::flush`] returns at its
//! deadline.
//!
//! A JSON line is an object: `timestamp` (RFC 3339, milliseconds, `Z`), `level`, `message`,
//! `event_type`, then the record's other key-values in their order, numbers as numbers. A record
//! without `event_type` is of type `log` and says its `target`. Text lines hold the same fields.
//!
//! Invariants
//!   1. A line is one line: control bytes, line separators and characters that turn or hide text
//!      are escaped, so nothing a client sends reaches a log (or the terminal that shows it) raw.
//!   2. No name occurs twice in a line. A later field of a taken name gets `field.` before it.
//!   3. Lines leave in the order in which the channel took them, so each thread's stay in order.
//!   4. Every line is written, or counted in [`Logger::dropped`] and reported: the next line that
//!      goes in has one of type `log_lines_dropped` before it, in the place of the missing ones.
//!   5. `Intake` does not panic: it runs under `env_logger`'s lock, which the panic hook takes too.

#![allow(
    clippy::disallowed_methods,
    reason = "lines are dated where they are written, and a flush waits outside of any turn"
)]

mod line;

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use env_logger::Target;
use log::kv::{ToValue, Value};
use log::{Level, LevelFilter, Log, Record, SetLoggerError};

pub use line::visible;
use line::{LINE_BYTES_USUAL, displayed, line};

/// What is logged, and in which shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Records above this level are not formatted at all.
    pub level: LevelFilter,
    /// The shape of a line.
    pub format: Format,
}

/// The shape of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line, for machines.
    Json,
    /// `2026-11-22T08:51:06.662Z INFO  message event_type=started key=value`, for people. Values
    /// with spaces, quotes, `=` or anything invisible are written as JSON strings.
    Text,
}

/// Installs the process's logger, writing to standard error. For the binary: a library leaves the
/// choice of logger to whoever uses it and takes [`with_sink`].
///
/// Code that still prints with `eprintln!` waits for whoever reads stderr; this logger does not.
///
/// # Errors
/// [`InitError::AlreadySet`] when the process has a logger, [`InitError::Thread`] when the writing
/// thread could not be started.
pub fn init(options: Options) -> Result<Logger, InitError> {
    let (log, logger) = with_sink(options, Box::new(io::stderr())).map_err(InitError::Thread)?;
    log::set_boxed_logger(log).map_err(InitError::AlreadySet)?;
    log::set_max_level(options.level);
    Ok(logger)
}

/// A logger that writes to `sink` and is not installed anywhere, with the handle that flushes it.
/// The sink may block for ever, be closed or fail; it is flushed after every batch. Its thread ends
/// once the logger is dropped and everything queued is written.
///
/// # Errors
/// When the writing thread could not be started.
pub fn with_sink(
    options: Options,
    sink: Box<dyn Write + Send>,
) -> io::Result<(Box<dyn Log>, Logger)> {
    let Options { level, format } = options;
    let shared = Arc::new(Shared::default());
    // Bounded by `Intake::has_room`: the places of a bounded channel are all made at once, 340 KiB.
    let (sender, receiver) = crossbeam_channel::unbounded();
    let outlet = Outlet::new(sink, format, Arc::clone(&shared));
    thread::Builder::new().name("ebbtide-log".into()).spawn(move || outlet.run(&receiver))?;

    let intake = Intake { lines: sender, shared: Arc::clone(&shared), format, unreported: 0 };
    let log = env_logger::Builder::new()
        .filter_level(level)
        .target(Target::Pipe(Box::new(intake)))
        // The line reaches env_logger's buffer only when complete: were it written piecemeal, a
        // `Display` that panics half-way would leave its beginning there for the next record.
        .format(move |buffer, record| {
            IS_RESERVED.set(record.target().starts_with(RESERVED_TARGET));
            buffer.write_all(&line(format, SystemTime::now(), record))
        })
        .build();
    Ok((Box::new(log), Logger { shared }))
}

/// Replaces the panic hook by one that logs a line of type `panic` (`thread`, `location`, and the
/// panic's message) and prints nothing: the default hook writes to stderr directly and would wait
/// for a reader that is gone. Without a logger installed, panics become silent.
pub fn install_panic_hook() {
    panic::set_hook(Box::new(|info: &PanicHookInfo<'_>| {
        let thread = thread::current();
        let location = info.location().map(displayed);
        log::error!(
            event_type = "panic",
            thread = thread.name().unwrap_or("unnamed"),
            location = location.as_deref();
            "{}", panic_message(info.payload())
        );
    }));
}

/// Marks `text` as JSON to be written as it is, not as a string: under a key that begins with
/// `json:` (which is not written), as in
///
/// ```
/// # let report = String::from(r#"{"exit_code":0}"#);
/// let report = ebbtide::logging::json(report);
/// log::info!(event_type = "shutdown_report", "json:report" = report; "Done");
/// // {"timestamp":…,"message":"Done","event_type":"shutdown_report","report":{"exit_code":0}}
/// ```
///
/// The key decides, because `log` erases the types of values; so what stands under such a key is
/// checked when the line is made. Text that is not JSON is written as a string; line breaks between
/// the tokens of a pretty-printed text become spaces. Other loggers print the text.
pub fn json(text: String) -> Json {
    Json(text)
}

/// JSON ready to be a field of a log line. Made by [`json`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Json(String);

impl ToValue for Json {
    fn to_value(&self) -> Value<'_> {
        Value::from(self.0.as_str())
    }
}

/// A handle to a running logger. Cloneable; dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Logger {
    shared: Arc<Shared>,
}

impl Logger {
    /// Waits until every line queued before this call has left (written, or given up on because the
    /// sink failed), at most until `deadline`.
    pub fn flush(&self, deadline: Instant) -> Flushed {
        let target = self.shared.accepted.load(Ordering::Acquire);
        let patience = deadline.saturating_duration_since(Instant::now());
        let settled = self.shared.settled.lock().unwrap_or_else(PoisonError::into_inner);
        let (settled, _) = self
            .shared
            .progress
            .wait_timeout_while(settled, patience, |settled| *settled < target)
            .unwrap_or_else(PoisonError::into_inner);
        if *settled < target { Flushed::TimedOut } else { Flushed::Complete }
    }

    /// The number of lines lost since the start, because the queue was full or the sink failed.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.dropped)
    }
}

/// How [`Logger::flush`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flushed {
    /// Nothing that was queued before the call is still waiting.
    Complete,
    /// The deadline came first.
    TimedOut,
}

/// Why [`init`] failed.
#[derive(Debug)]
pub enum InitError {
    /// The process already has a logger.
    AlreadySet(SetLoggerError),
    /// The system refused the thread that writes.
    Thread(io::Error),
}

impl fmt::Display for InitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadySet(_) => f.write_str("a logger is already installed in this process"),
            Self::Thread(_) => f.write_str("the thread that writes the log could not be started"),
        }
    }
}

impl std::error::Error for InitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::AlreadySet(error) => Some(error),
            Self::Thread(error) => Some(error),
        }
    }
}

/// What the callers' side, the writing thread and the handles know of each other.
#[derive(Debug, Default)]
struct Shared {
    /// Entries the channel has taken. Only [`Intake`] adds, in the channel's order.
    accepted: AtomicU64,
    /// Entries that left: written, or lost with a failed write. Only the writing thread adds; a
    /// flush is complete once this has reached what `accepted` was when it began.
    settled: Mutex<u64>,
    /// Notified whenever `settled` grows.
    progress: Condvar,
    /// Lines lost, at either end of the channel. Never reset.
    dropped: Arc<AtomicU64>,
    /// Bytes in the channel: what [`QUEUE_BYTES_MAX`] bounds.
    queued_bytes: AtomicUsize,
}

/// What travels: a line, or a notice about lines that do not.
struct Entry {
    bytes: Vec<u8>,
    /// Of a notice, the number of dropped lines it reports (never 0); 0 for a line.
    reports: u64,
}

impl Entry {
    fn notice(format: Format, count: u64) -> Self {
        let fields =
            [("event_type", Value::from("log_lines_dropped")), ("count", Value::from(count))];
        let mut record = Record::builder();
        record.level(Level::Warn).key_values(&fields);
        let bytes = line(
            format,
            SystemTime::now(),
            &record.args(format_args!("Log lines were dropped")).build(),
        );
        Self { bytes, reports: count }
    }
}

/// The callers' end of the channel, behind `env_logger`'s lock: one call at a time, each a line.
struct Intake {
    lines: Sender<Entry>,
    shared: Arc<Shared>,
    format: Format,
    /// Lines dropped since the last line that went in: what the next notice will say.
    unreported: u64,
}

impl Intake {
    /// The entry back when there is nobody to take it.
    fn offer(&mut self, entry: Entry) -> Result<(), Entry> {
        let length = entry.bytes.len();
        self.shared.queued_bytes.fetch_add(length, Ordering::Relaxed);
        match self.lines.try_send(entry) {
            Ok(()) => {
                self.shared.accepted.fetch_add(1, Ordering::Release);
                Ok(())
            }
            Err(error) => {
                self.shared.queued_bytes.fetch_sub(length, Ordering::Relaxed);
                Err(error.into_inner())
            }
        }
    }

    /// Whether a line may be offered. Asked before each: nothing else bounds the channel, and a
    /// line that is dropped is not copied.
    fn has_room(&self) -> bool {
        if IS_RESERVED.get() {
            return self.lines.len() < QUEUE_LINES + RESERVED_LINES;
        }
        self.lines.len() < QUEUE_LINES
            && self.shared.queued_bytes.load(Ordering::Relaxed) < QUEUE_BYTES_MAX
    }
}

impl Write for Intake {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.unreported > 0
            && self.has_room()
            && self.offer(Entry::notice(self.format, self.unreported)).is_ok()
        {
            self.unreported = 0;
        }
        if !self.has_room() || self.offer(Entry { bytes: line.to_vec(), reports: 0 }).is_err() {
            self.unreported += 1;
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writing thread's state.
struct Outlet {
    sink: Box<dyn Write + Send>,
    format: Format,
    shared: Arc<Shared>,
    /// The bytes of one write.
    batch: Vec<u8>,
    /// Where each entry of `batch` ends, and its `reports`.
    ends: Vec<(usize, u64)>,
    /// Lines lost with failed writes: what the notice at the head of the next batch will say.
    unreported: u64,
    /// A failed write left the sink in the middle of a line.
    torn: bool,
}

impl Outlet {
    fn new(sink: Box<dyn Write + Send>, format: Format, shared: Arc<Shared>) -> Self {
        let batch = Vec::with_capacity(BATCH_BYTES);
        Self { sink, format, shared, batch, ends: Vec::new(), unreported: 0, torn: false }
    }

    /// Writes until the logger is gone and the channel is empty.
    fn run(mut self, lines: &Receiver<Entry>) {
        let mut carried = None;
        while let Some(first) = carried.take().or_else(|| lines.recv().ok()) {
            let mut entries = 0;
            self.begin_batch();
            let mut next = Some(first);
            // A line longer than a batch is a batch of its own.
            while let Some(entry) = next.take() {
                if entries > 0 && self.batch.len() + entry.bytes.len() > BATCH_BYTES {
                    carried = Some(entry);
                    break;
                }
                self.shared.queued_bytes.fetch_sub(entry.bytes.len(), Ordering::Relaxed);
                self.push(&entry);
                entries += 1;
                next = lines.try_recv().ok();
            }
            self.write_batch();
            *self.shared.settled.lock().unwrap_or_else(PoisonError::into_inner) += entries;
            self.shared.progress.notify_all();
        }
    }

    fn begin_batch(&mut self) {
        self.batch.clear();
        self.batch.shrink_to(BATCH_BYTES);
        self.ends.clear();
        if self.torn {
            self.batch.push(b'\n');
        }
        if self.unreported > 0 {
            let notice = Entry::notice(self.format, mem::take(&mut self.unreported));
            self.push(&notice);
        }
    }

    fn push(&mut self, entry: &Entry) {
        self.batch.extend_from_slice(&entry.bytes);
        self.ends.push((self.batch.len(), entry.reports));
    }

    /// Writes the batch; what did not leave whole is lost, and said so by the next batch.
    fn write_batch(&mut self) {
        let mut written = self.write_some();
        if written > 0 {
            self.torn = self.batch[written - 1] != b'\n';
        }
        if self.sink.flush().is_err() {
            written = 0;
        }
        for &(_, reports) in self.ends.iter().filter(|(end, _)| *end > written) {
            self.unreported += reports.max(1);
            self.shared.dropped.fetch_add(u64::from(reports == 0), Ordering::Relaxed);
        }
    }

    /// How many bytes of the batch left before the sink failed. A sink that is merely full (a
    /// descriptor that somebody else made non-blocking) is asked again, up to a second in all.
    fn write_some(&mut self) -> usize {
        let mut written = 0;
        let mut refusals = 0;
        while written < self.batch.len() {
            match self.sink.write(&self.batch[written..]) {
                Ok(0) => break,
                Ok(count) => {
                    written = (written + count).min(self.batch.len());
                    refusals = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && refusals < REFUSALS_MAX =>
                {
                    refusals += 1;
                    thread::park_timeout(REFUSAL_WAIT);
                }
                Err(_) => break,
            }
        }
        written
    }
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic whose payload is not a string")
}

thread_local! {
    /// Whether the line that this thread is writing may use the reserved places. Set while it is
    /// formatted, read when it is offered: both happen within one call of the logger.
    static IS_RESERVED: Cell<bool> = const { Cell::new(false) };
}

/// Whose lines have places of their own in the queue: what control says of a start and a
/// shutdown is not to be lost among the access log's lines.
const RESERVED_TARGET: &str = "ebbtide::server";

/// Those places.
const RESERVED_LINES: usize = 256;

/// Lines that may wait for the sink: some seconds of a busy log, 2 MB of ordinary lines.
const QUEUE_LINES: usize = 8192;

/// A second bound, for lines that are not ordinary: once this much waits, nothing more is taken.
/// The last line in may go beyond it, so a line of any length can be logged.
const QUEUE_BYTES_MAX: usize = 4 << 20;

/// What one write carries at most, unless a single line is longer. Half of a pipe's 64 KiB
/// (pipe(7)), so a reader that keeps up never makes the writing thread wait.
const BATCH_BYTES: usize = 32 << 10;

/// How often, and how long each time, a sink that answers "would block" is waited for.
const REFUSALS_MAX: u32 = 100;
const REFUSAL_WAIT: Duration = Duration::from_millis(10);

// A full queue of usual lines must meet the bound on lines before the bound on bytes.
const _: () = assert!(QUEUE_LINES * LINE_BYTES_USUAL <= QUEUE_BYTES_MAX);
const _: () = assert!(BATCH_BYTES < QUEUE_BYTES_MAX);

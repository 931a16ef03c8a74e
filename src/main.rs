//! The `ebbtide` command: reads the configuration, serves, and turns the outcome into an exit
//! status.

// As in the library: tests may unwrap, and measure from outside. See .clippy.toml.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::unwrap_used))]

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

#[cfg(feature = "redis")]
use ebbtide::internal::app::hits;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
use ebbtide::internal::app::items;
use ebbtide::internal::app::{lab::Lab, sample};
use ebbtide::internal::config::{
    self, ClientHalfClose, Command, Config, Detail, EXIT_USAGE, HealthCheck, LoadError, LogFormat,
    Secret,
};
use ebbtide::internal::health_check::{self, Answer, Target};
use ebbtide::internal::report;
use ebbtide::internal::report::draw::{Style, draw};
use ebbtide::internal::report::read::Written;
use ebbtide::logging::{self, Logger};
#[cfg(feature = "sentry")]
use ebbtide::sentry::Sentry;
use ebbtide::{
    Address, AtDeadline, Database, HalfClose, HealthOn, Hook, InFlight, InheritedListeners, Limits,
    Options, Policy, Report, Server, StartError, Workers, inherited_listeners,
    raise_descriptor_limit, service_manager, setup_signal_handlers,
};
#[cfg(feature = "postgres")]
use ebbtide::{Postgres, PostgresAddress, PostgresOptions};
#[cfg(feature = "redis")]
use ebbtide::{Redis, RedisAddress, RedisOptions};
#[cfg(feature = "sqlite")]
use ebbtide::{Sqlite, SqliteAddress, SqliteOptions};

fn main() -> ExitCode {
    let cwd = std::env::current_dir().unwrap_or_default();
    let loaded = config::load(std::env::args_os(), &|name| std::env::var_os(name), &cwd);
    let invocation = match loaded {
        Ok(invocation) => invocation,
        Err(error) => {
            let status = error.exit_status();
            match error {
                LoadError::Answer(text) => print!("{text}"),
                LoadError::Usage(text) => eprint!("{text}"),
                LoadError::Config(error) => eprintln!("ebbtide: {error}"),
            }
            return ExitCode::from(status);
        }
    };
    if let Command::Serve | Command::CheckConfig = invocation.command
        && let Err(why) = check(&invocation.config)
    {
        eprintln!("ebbtide: {why}");
        return ExitCode::from(config::EXIT_CONFIG);
    }
    match invocation.command {
        Command::Serve => serve(&invocation.config),
        Command::CheckConfig => {
            println!("the configuration is valid");
            ExitCode::SUCCESS
        }
        Command::PrintConfig => {
            print!("{}", config::print_config(&invocation.config, &invocation.sources));
            ExitCode::SUCCESS
        }
        Command::Report(file) => draw_report(&file),
        Command::HealthCheck(check) => check_health(&check, &invocation.config),
    }
}

/// What only those can judge who use it.
fn check(config: &Config) -> Result<(), String> {
    let Some(dsn) = &config.sentry_dsn else { return Ok(()) };
    #[cfg(feature = "sentry")]
    return ebbtide::sentry::check_dsn(dsn.expose()).map_err(|why| format!("sentry_dsn: {why}"));
    #[cfg(not(feature = "sentry"))]
    Err(format!("sentry_dsn = {dsn}: this program was built without the feature `sentry`"))
}

fn draw_report(file: &Path) -> ExitCode {
    let mut stdout = io::stdout();
    let is_plain = !stdout.is_terminal() || std::env::var_os("NO_COLOR").is_some();
    let style = if is_plain { Style::Plain } else { Style::Colour };
    let drawn = read_report(file).map(|report| draw(&report, style));
    let text = match drawn {
        Ok(text) => text,
        Err(why) => {
            // The name may be anything, and so may what an error repeats of it.
            let line = format!("{}: {why}", file.display());
            eprintln!("ebbtide: {}", logging::visible(&line));
            return ExitCode::from(EXIT_UNREADABLE);
        }
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("ebbtide: cannot write: {error}");
            ExitCode::from(EXIT_UNREADABLE)
        }
        // A pager that was closed has seen enough.
        _ => ExitCode::SUCCESS,
    }
}

fn read_report(file: &Path) -> Result<Written, String> {
    let source: Box<dyn Read> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).map_err(|error| error.to_string())?)
    };
    let mut bytes = Vec::new();
    let read = source.take(REPORT_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > REPORT_BYTES_MAX {
        return Err(format!(
            "more than {} MiB; try its end, `tail -n 1000`",
            REPORT_BYTES_MAX >> 20
        ));
    }
    report::read::read(&bytes).map_err(|why| why.to_string())
}

fn check_health(check: &HealthCheck, config: &Config) -> ExitCode {
    let target = match target(check, config) {
        Ok(target) => target,
        Err(why) => {
            eprintln!("ebbtide: {why}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let verbose = |answer: &io::Result<Answer>| {
        if check.detail == Detail::Verbose {
            println!("{}", outcome(answer));
        }
    };
    if let Some(patience) = check.wait_shutdown {
        let mut last = String::new();
        let gone = health_check::wait_until_gone(&target, patience, |answer| {
            // Only what is new.
            if std::mem::replace(&mut last, outcome(answer)) != last {
                verbose(answer);
            }
        });
        let target = logging::visible(&target.to_string()).into_owned();
        return if let Some(gone) = gone {
            let next = if gone.is_succeeded { ", and another one answers there" } else { "" };
            println!("{target}: gone after {:.1} s{next}", gone.after.as_secs_f64());
            ExitCode::SUCCESS
        } else {
            eprintln!("ebbtide: {target}: not gone after {} s: {last}", patience.as_secs_f64());
            ExitCode::from(EXIT_UNHEALTHY)
        };
    }
    let answer = health_check::ask(&target, check.timeout);
    if answer.as_ref().is_ok_and(Answer::is_healthy) {
        verbose(&answer);
        return ExitCode::SUCCESS;
    }
    eprintln!("ebbtide: {}: {}", logging::visible(&target.to_string()), outcome(&answer));
    ExitCode::from(EXIT_UNHEALTHY)
}

/// Whom to ask.
fn target(check: &HealthCheck, config: &Config) -> Result<Target, String> {
    let target = match &check.url {
        Some(url) => url.parse().map_err(|why| format!("flag --url = {url:?}: {why}"))?,
        None => Target::of(config.admin_listen.as_ref(), &config.listen, health_on(config))
            .ok_or("the configuration names no address to ask for health: give --url")?,
    };
    let in_detail = check.detail == Detail::Verbose && check.wait_shutdown.is_none();
    Ok(if in_detail { target.in_detail() } else { target })
}

/// What asking led to. The other side may have written anything.
fn outcome(answer: &io::Result<Answer>) -> String {
    let text = match answer {
        Ok(answer) => answer.to_string(),
        Err(error) => error.to_string(),
    };
    logging::visible(text.trim_end()).into_owned()
}

fn serve(config: &Config) -> ExitCode {
    // Before anything opens a descriptor. What is wrong with them is told once there is a log.
    let inherits = config.listen.contains(&Address::Inherited);
    let inherited =
        if inherits { inherited_listeners() } else { Ok(InheritedListeners::default()) };
    let format = match config.log_format {
        LogFormat::Text => logging::Format::Text,
        LogFormat::Auto if io::stderr().is_terminal() => logging::Format::Text,
        LogFormat::Json | LogFormat::Auto => logging::Format::Json,
    };
    let logger = match logging::init(logging::Options { level: config.log_level, format }) {
        Ok(logger) => logger,
        Err(error) => {
            eprintln!("ebbtide: cannot log: {error}");
            return ExitCode::FAILURE;
        }
    };
    logging::install_panic_hook();
    if let Err(error) = raise_descriptor_limit() {
        log::warn!(event_type = "descriptor_limit"; "the limit of descriptors stays: {error}");
    }
    let (status, patience) = match start(config, inherited, &logger) {
        // Ended by a signal: at once.
        Ok(report) if report.is_ended_by_signal() => (report.exit_status(), Duration::ZERO),
        Ok(report) => (report.exit_status(), left_of(&report)),
        Err(error) => {
            log::error!(event_type = "start_failed"; "{error}");
            (EXIT_START, LOG_FLUSH_MAX)
        }
    };
    flush(&logger, patience.clamp(LOG_FLUSH_MIN, LOG_FLUSH_MAX));
    // The end of main ends the process, whatever a worker may be stuck in.
    ExitCode::from(status)
}

fn start(
    config: &Config,
    inherited: Result<InheritedListeners, StartError>,
    logger: &Logger,
) -> Result<Report, StartError> {
    let inherited = inherited?;
    let signals = setup_signal_handlers()
        .map_err(|source| StartError::System { what: "catch signals", source })?;
    let lab = if config.lab_routes {
        Lab::On { upload_bytes_max: config.upload_bytes_max }
    } else {
        Lab::Off
    };
    let mut options = options(config, logger);
    let tracker = error_tracker(config, &mut options)?;
    let database = database(config)?;
    let router = sample::router(lab, database.clone());
    #[cfg(feature = "redis")]
    let redis = redis(config)?;
    #[cfg(feature = "redis")]
    let router = match &redis {
        Some(redis) if config.lab_routes => hits::add(router, redis),
        _ => router,
    };
    let server = Server::bind_inheriting(options, inherited, router)?;
    let mut server = server.with_signals(signals);
    if let Some(flush) = tracker {
        server.shutdown_handle().on_cleanup(flush);
    }
    if let Some(database) = &database {
        server = server.with_database(database);
    }
    #[cfg(feature = "redis")]
    if let Some(redis) = &redis {
        server = server.with_database(redis);
    }
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return server.run();
    }
    let manager = service_manager()
        .map_err(|source| StartError::System { what: "start a thread", source })?;
    server.with_service_manager(manager).run()
}

/// The client of the database: the one that is named, or a file in the working directory.
fn database(config: &Config) -> Result<Option<Database>, StartError> {
    let failed = |source| StartError::System { what: "start the client of the database", source };
    match config.database_url.as_ref().map(Secret::expose) {
        Some("off") => Ok(None),
        None => default_database(config).map_err(failed),
        Some(url) => named_database(config, url).map(Some).map_err(failed),
    }
}

fn named_database(config: &Config, url: &str) -> io::Result<Database> {
    #[cfg(feature = "sqlite")]
    if let Ok(address) = SqliteAddress::parse(url) {
        return Sqlite::start(&address, &sqlite_options(config)).map(Database::from);
    }
    #[cfg(feature = "postgres")]
    if let Ok(address) = PostgresAddress::parse(url) {
        return Postgres::start(&address, &postgres_options(config)).map(Database::from);
    }
    // The configuration was checked.
    Err(io::Error::other(format!("no client for {url}, {} jobs", config.pool_queue)))
}

/// The file in the working directory. Nobody asked for it, so that it cannot be written is no
/// reason not to serve: a container's root may be read-only.
#[cfg(feature = "sqlite")]
fn default_database(config: &Config) -> io::Result<Option<Database>> {
    if let Err(why) = Sqlite::try_file(Path::new(DATABASE_FILE)) {
        log::warn!(
            event_type = "database_off";
            "there is no database: {DATABASE_FILE} in the working directory: {why}; \
             DATABASE_URL names another, or none: off"
        );
        return Ok(None);
    }
    let address = SqliteAddress::File(DATABASE_FILE.into());
    Sqlite::start(&address, &sqlite_options(config)).map(|client| Some(client.into()))
}

#[cfg(not(feature = "sqlite"))]
#[allow(clippy::unnecessary_wraps, reason = "as with the feature")]
fn default_database(_: &Config) -> io::Result<Option<Database>> {
    Ok(None)
}

#[cfg(feature = "postgres")]
fn postgres_options(config: &Config) -> PostgresOptions {
    PostgresOptions {
        pipelined: config.pool_pipelined,
        exclusive: config.pool_exclusive,
        queue_length_max: config.pool_queue,
        queue_timeout: config.pool_queue_timeout,
        job_timeout: config.pool_job_timeout,
        statement_timeout: config.statement_timeout,
        schema: Some(items::POSTGRES_SCHEMA.into()),
    }
}

#[cfg(feature = "sqlite")]
fn sqlite_options(config: &Config) -> SqliteOptions {
    SqliteOptions {
        queue_length_max: config.pool_queue,
        queue_timeout: config.pool_queue_timeout,
        job_timeout: config.pool_job_timeout,
        schema: Some(items::SQLITE_SCHEMA.into()),
        ..SqliteOptions::default()
    }
}

#[cfg(feature = "redis")]
fn redis(config: &Config) -> Result<Option<Redis>, StartError> {
    let Some(url) = &config.redis_url else { return Ok(None) };
    let address = RedisAddress::parse(url.expose()).expect("the configuration was checked");
    let options = RedisOptions {
        queue_length_max: config.pool_queue,
        queue_timeout: config.pool_queue_timeout,
        job_timeout: config.pool_job_timeout,
        ..RedisOptions::default()
    };
    let failed = |source| StartError::System { what: "start the client of Redis", source };
    Redis::start(&address, &options).map(Some).map_err(failed)
}

/// Has failures reported to Sentry, if asked for; returns the hook that waits for the last of them.
#[cfg(feature = "sentry")]
fn error_tracker(config: &Config, options: &mut Options) -> Result<Option<Hook>, StartError> {
    let Some(dsn) = &config.sentry_dsn else { return Ok(None) };
    let sentry = Sentry::start(dsn.expose()).map_err(|error| StartError::System {
        what: "report to Sentry",
        source: io::Error::other(error),
    })?;
    sentry.install_panic_hook();
    options.on_failure = Some(sentry.on_failure());
    Ok(Some(sentry.flush_hook()))
}

#[cfg(not(feature = "sentry"))]
#[allow(clippy::unnecessary_wraps, reason = "as with the feature")]
fn error_tracker(_: &Config, _: &mut Options) -> Result<Option<Hook>, StartError> {
    Ok(None)
}

/// What is left of the budget now that the report's file has been written, or given up.
fn left_of(report: &Report) -> Duration {
    #[allow(clippy::disallowed_methods, reason = "the main thread has left its reactor")]
    let now = SystemTime::now();
    let end = report.ended_at + report.budget_left;
    // A clock that was set meanwhile shifts it; the flush has limits of its own.
    end.duration_since(now).unwrap_or_default()
}

/// Waits for the log to be written, but not for a reader that does not read.
fn flush(logger: &Logger, patience: Duration) {
    #[allow(clippy::disallowed_methods, reason = "the main thread has left its reactor")]
    let now = Instant::now();
    // Complete or not, the process ends now; lines that are left are lost with it.
    let _flushed = logger.flush(now + patience);
}

fn options(config: &Config, logger: &Logger) -> Options {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Options {
        listen: config.listen.clone(),
        admin_listen: config.admin_listen.clone(),
        workers: config.workers.map_or(Workers::PerCore, Workers::Count),
        reuse_port: config.reuse_port,
        max_connections: config.max_connections,
        blocking_threads: config.blocking_threads,
        limits: Limits {
            head_bytes_max: size(config.head_bytes_max),
            header_fields_max: config.header_fields_max,
            request_line_bytes_max: size(config.request_line_bytes_max),
            body_bytes_max: config.body_bytes_max,
            first_byte_timeout: config.first_byte_timeout,
            head_timeout: config.head_timeout,
            keep_alive_timeout: config.keep_alive_timeout,
            body_stall_timeout: config.body_stall_timeout,
            body_rate_min: config.body_rate_min,
            write_stall_timeout: config.write_stall_timeout,
            request_timeout: config.request_timeout,
            in_flight_max: config.max_in_flight as u64,
        },
        client_half_close: match config.client_half_close {
            ClientHalfClose::Cancel => HalfClose::Cancel,
            ClientHalfClose::Serve => HalfClose::Serve,
        },
        shutdown: Policy {
            timeout: config.shutdown_timeout,
            delay: config.shutdown_delay,
            first_byte_grace: config.shutdown_first_byte_grace,
            idle_window: config.shutdown_idle_window,
            in_flight: if config.shutdown_wait_for_connections {
                InFlight::Wait
            } else {
                InFlight::Cancel
            },
            at_deadline: if config.shutdown_force_after_timeout {
                AtDeadline::Cut
            } else {
                AtDeadline::WaitOn
            },
        },
        report_path: config.shutdown_report_path.clone(),
        access_log: config.access_log,
        on_failure: None,
        health_on: health_on(config),
        log_lines_dropped: Some(logger.dropped()),
    }
}

fn health_on(config: &Config) -> HealthOn {
    if config.health_on_public { HealthOn::Public } else { HealthOn::AdminOnly }
}

/// The database when none is named.
#[cfg(feature = "sqlite")]
const DATABASE_FILE: &str = "ebbtide.db";

/// The exit status when the server could not start.
const EXIT_START: u8 = 1;

/// The exit status when a server is not well, or still there.
const EXIT_UNHEALTHY: u8 = 1;

/// The exit status when a report cannot be read.
const EXIT_UNREADABLE: u8 = 1;

/// A log may be long, but not endless.
const REPORT_BYTES_MAX: u64 = 256 << 20;

/// How long the exit waits for the log at most, and at least when the budget is used up: stderr may
/// be a pipe that nobody reads.
const LOG_FLUSH_MAX: Duration = Duration::from_secs(1);
const LOG_FLUSH_MIN: Duration = Duration::from_millis(20);

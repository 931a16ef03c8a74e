//! ebbtide: an HTTP server whose stopping is as exact as its serving.
//!
//! hyper's HTTP/1 state machine, and a short way past it for ordinary requests, on a hand-written
//! epoll reactor, one reactor per core, no async runtime. A server is a [`Router`] and [`Options`],
//! bound and run:
//!
//! ```no_run
//! use ebbtide::{
//!     Options, Report, Request, Response, Router, Server, StartError, get, setup_signal_handlers,
//! };
//!
//! async fn hello(request: Request) -> Response {
//!     Response::text(format!("Hello, {}!\n", request.param("name").unwrap_or("World")))
//! }
//!
//! fn main() -> Result<Report, StartError> {
//!     let signals = setup_signal_handlers()?;
//!     let router = Router::new().route("/", get(hello)).route("/{name}", get(hello));
//!     Server::bind(Options::default(), router)?.with_signals(signals).run()
//! }
//! ```
//!
//! # Map, in reading order
//!
//! | module | what it is |
//! |---|---|
//! | `drain` | the shutdown as a pure state machine: phases, budget, signals |
//! | `cleanup` | the clean-up hooks as a pure state machine: stages, limits, outcomes |
//! | `ledger` | what became of every connection and request: counters with two laws |
//! | `reactor` | one epoll, one thread, numbered turns: slots, deadlines, wakes, sockets; nothing of HTTP |
//! | `http` | the only place that names hyper: a connection's life from accept to lingering close |
//! | `pool` | threads that own connections, a bounded queue, tickets; PostgreSQL, SQLite, Redis |
//! | `app` | the router, health endpoints, and what `ebbtide serve` serves |
//! | `server` | workers, listeners and control put together |
//! | `report` | what is said of a shutdown at its end |
//! | `config`, `logging`, `metrics`, `signals` | the rim: one table of keys, JSON lines, one table of metrics, the signal pipe |
//! | `health_check` | the other end: what `ebbtide health-check` asks a server |
//! | `sentry` | panics and failed requests, reported to Sentry (a feature) |
//! | `said`, `awaited` | what errors and panics say, as text; what a handler waits for |
//! | `os` | the only unsafe code: a handful of system calls |
//!
//! # The life of a request
//!
//! A worker's listener accepts a socket into a slot (`server/entrance`, `server/endpoint`), or has
//! a worker take it that has fewer (`server/balance`); from a queue that all workers share control
//! accepts and deals them out (`server/dealer`). While it is
//! *cold* it costs its slot and the bytes of an incomplete head (`http/connection`). With a
//! complete head (`http/head`) it becomes *hot* (`http/hot`). An ordinary request, which is all
//! there and has nothing that hyper would act on, goes the short way (`http/ways`, `http/short`);
//! for any other hyper is built around the socket (`http/wire`), parses the head and calls our
//! service (`http/service`), which refuses what is no request. Either way it is counted
//! (`http/flow`), the application is called with its panics caught, and what is written is
//! collected and sent at the end of the run; when the kernel has the last byte of the response the
//! request is *answered*. After a moment of idleness hyper is dropped and the connection
//! *hibernates*. It ends in a lingering close (`http/linger`), in its client's, or, when that asked
//! for the close with its only request, in a close that leaves the delivery to the kernel
//! (`http/parting`).
//!
//! # The life of a shutdown
//!
//! A signal, or [`GracefulShutdown::shutdown`], reaches control (`server/control`), which feeds it
//! to `drain`. Its orders go to the workers as mail: announce the close, retire the listeners and
//! treat each connection by its state, cancel (a token tells the handlers), refuse, cut. Control
//! reads the workers' ledgers and never waits for a worker; what is left at the end of the budget
//! is cut, named and counted. What workers have left to the kernel is waited for as well
//! (`server/orphans`). Then the clean-up hooks run (`cleanup`), and [`Server::run`] returns
//! the [`Report`].
//!
//! # Invariants
//!
//! 1. `opened = closed + open` and `begun = answered + refused + cut + abandoned + in_flight`, in
//!    every ledger between any two turns of its worker.
//! 2. hyper is given complete heads only, and nothing behind the request it is working on: bytes of
//!    a next request are in our hands, and no announced close drops them.
//! 3. Only a connection's worker touches it. Other threads send mail or read counters.
//! 4. A turn reads the clock once for all that acts upon it. `drain`, `http/head`, `reactor/slots`
//!    and `reactor/timer` never read it.
//! 5. Every wait has an end: readiness that will be announced, a wake, or a deadline.
//! 6. The library installs no signal handler, no logger and no global, reads no environment and
//!    ends no process; two servers can live in one process. What does is a call of its own for the
//!    program to make: [`setup_signal_handlers`], [`logging::init`], [`inherited_listeners`],
//!    [`service_manager`], [`raise_descriptor_limit`].

// Of the code that serves only: tests may unwrap, and measure from outside. See .clippy.toml.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::unwrap_used))]

mod app;
mod awaited;
mod cleanup;
mod config;
mod drain;
mod health_check;
mod http;
mod ledger;
pub mod logging;
mod metrics;
mod os;
mod pool;
mod reactor;
mod report;
mod said;
#[cfg(feature = "sentry")]
pub mod sentry;
mod server;
mod signals;
mod wakes;

pub use ::bytes::Bytes;
pub use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
pub use app::{Handler, Methods, Router, any, delete, get, patch, post, put};
pub use cleanup::{Hook, HookError, HookOutcome, HookReport, HookStage};
pub use drain::{AtDeadline, InFlight, Phase, Policy, Signal};
pub use http::{
    Body, BodyError, ConnectionTracking, Failure, FailureCause, HalfClose, IntoResponse, Limits,
    OnFailure, Request, RequestBody, Response,
};
pub use ledger::{
    ConnectionOutcome, ConnectionState, Counts, Ledger, RejectedCode, RequestOutcome,
};
pub use os::raise_descriptor_limit;
pub use pool::Database;
#[cfg(feature = "postgres")]
pub use pool::{
    ColumnIndex, Params, Postgres, PostgresAddress, PostgresAddressError, PostgresColumn,
    PostgresOptions, PostgresRow,
};
pub use pool::{DataClient, DatabaseError, Record, Rejection, Ticket, Value};
#[cfg(feature = "redis")]
pub use pool::{Redis, RedisAddress, RedisAddressError, RedisOptions};
#[cfg(feature = "sqlite")]
pub use pool::{Sqlite, SqliteAddress, SqliteAddressError, SqliteOptions};
pub use reactor::blocking::{Blocking, BlockingError, blocking};
pub use reactor::cancel::{CancellationToken, Cancelled};
pub use reactor::sleep::{Sleep, sleep};
pub use report::{JobLine, LostLine, Report};
pub use server::{
    ActiveWork, Address, AddressError, GracefulShutdown, HealthOn, InheritedListeners, Options,
    Server, ServiceManager, Snapshot, StartError, Workers, inherited_listeners, service_manager,
};
pub use signals::{Signals, setup_signal_handlers};

/// The parameters of a statement: owned values that implement `ToSql`.
///
/// ```
/// let params = ebbtide::params![42_i64, "name".to_owned()];
/// # let _ = params;
/// ```
#[cfg(feature = "postgres")]
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        $crate::Params::default()$(.and($value))*
    };
}

#[cfg(test)]
#[path = "../tests/simulation/mod.rs"]
mod simulation;

/// Has the README's examples compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The parts, for the tests, the benches and the binary. No promise is made for them.
#[doc(hidden)]
pub mod internal {
    pub mod config {
        pub use crate::config::*;
    }
    pub mod metrics {
        pub use crate::metrics::*;
    }
    pub mod os {
        pub use crate::os::{drop_syns, steer_to_successor, unsteer};
    }
    pub mod reactor {
        pub use crate::reactor::{blocking, listener, mailbox, slots, socket, timer, turn};
    }
    pub mod health_check {
        pub use crate::health_check::*;
    }
    pub mod http {
        pub use crate::http::{buffers, connection, service, site, watch};
    }
    pub mod pool {
        pub use crate::pool::{
            After, Canceller, Pool, PoolLimits, Pooled, Reason, Resource, queue, ticket,
        };
    }
    pub mod server {
        pub use crate::server::entrance::Capacity;
        pub use crate::server::{endpoint, site};
    }
    pub mod app {
        #[cfg(feature = "redis")]
        pub use crate::app::hits;
        pub use crate::app::items;
        pub use crate::app::{lab, sample};
    }
    pub mod report {
        pub use crate::report::{draw, read};
    }
}

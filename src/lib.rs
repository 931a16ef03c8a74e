//! ebbtide: an HTTP server whose stopping is as exact as its serving.

mod app;
mod config;
mod drain;
mod http;
mod ledger;
pub mod logging;
mod metrics;
mod os;
mod reactor;
mod report;
mod server;
mod signals;

pub use app::{Handler, Methods, Router, any, delete, get, patch, post, put};
pub use drain::{AtDeadline, InFlight, Phase, Policy, Signal};
pub use http::{
    Body, BodyError, ConnectionTracking, IntoResponse, Limits, Request, RequestBody, Response,
};
pub use ledger::{ConnectionOutcome, ConnectionState, Counts, Ledger, RequestOutcome};
pub use reactor::blocking::{Blocking, BlockingError, blocking};
pub use reactor::sleep::{Sleep, sleep};
pub use report::Report;
pub use server::{
    Address, AddressError, GracefulShutdown, HealthOn, Options, Server, StartError, Workers,
};
pub use signals::{Signals, setup_signal_handlers};

/// The parts, for the tests, the benches and the binary. No promise is made for them.
#[doc(hidden)]
pub mod internal {
    pub mod config {
        pub use crate::config::*;
    }
    pub mod metrics {
        pub use crate::metrics::*;
    }
    pub mod reactor {
        pub use crate::reactor::{slots, timer};
    }
    pub mod app {
        pub use crate::app::{lab, sample};
    }
}

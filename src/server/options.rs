//! What a server is told when it is made.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::address::Address;
use crate::drain::Policy;
use crate::http::{HalfClose, Limits, OnFailure};

/// How to serve. `Options::default()` is a server on `127.0.0.1:8080` with every limit on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Public addresses.
    pub listen: Vec<Address>,
    /// The address of health and metrics; `None`: no admin listener.
    pub admin_listen: Option<Address>,
    /// How many threads serve clients.
    pub workers: Workers,
    /// Whether a successor of the same user may bind the same port while this server drains.
    pub reuse_port: bool,
    /// Open connections of the whole server; `None`: the smaller of 20,000 and half of
    /// `RLIMIT_NOFILE`. Never more than that limit less a reserve of 128.
    pub max_connections: Option<usize>,
    /// Threads for [`blocking`](crate::blocking).
    pub blocking_threads: usize,
    /// What a client may send, and how slowly.
    pub limits: Limits,
    /// What it means for a request that its client has finished sending.
    pub client_half_close: HalfClose,
    /// How a shutdown goes.
    pub shutdown: Policy,
    /// The file that gets the shutdown's report.
    pub report_path: Option<PathBuf>,
    /// Whether each request is logged.
    pub access_log: bool,
    /// Who is told of panics and of responses of 500 and above, on the public listeners.
    pub on_failure: Option<OnFailure>,
    /// Where the health endpoints answer.
    pub health_on: HealthOn,
    /// The logger's counter of lost lines, for the metrics.
    pub log_lines_dropped: Option<Arc<AtomicU64>>,
}

/// How many threads serve clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One per core that the process may use (`available_parallelism`: affinity and cgroup quota).
    PerCore,
    /// So many; 0: the calling thread serves, with one reactor for everything.
    Count(usize),
}

/// Where the health endpoints answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthOn {
    /// On the admin listener.
    AdminOnly,
    /// On the public listeners as well, unless the router has such paths of its own.
    Public,
}

impl Default for Options {
    fn default() -> Options {
        let local = |port| Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        Options {
            listen: vec![local(8080)],
            admin_listen: Some(local(9464)),
            workers: Workers::PerCore,
            reuse_port: false,
            max_connections: None,
            blocking_threads: 64,
            limits: Limits::default(),
            client_half_close: HalfClose::Cancel,
            shutdown: Policy::default(),
            report_path: None,
            access_log: false,
            on_failure: None,
            health_on: HealthOn::Public,
            log_lines_dropped: None,
        }
    }
}

impl Workers {
    pub(super) fn count(self) -> usize {
        match self {
            Workers::PerCore => std::thread::available_parallelism().map_or(1, usize::from),
            Workers::Count(count) => count,
        }
    }
}

impl Options {
    pub(super) fn connections_max(&self) -> usize {
        let descriptors = crate::os::descriptors_max();
        let most = descriptors.saturating_sub(DESCRIPTOR_RESERVE).max(1);
        match self.max_connections {
            Some(asked) if asked > most => {
                log::warn!(
                    event_type = "max_connections_lowered", asked = asked, max_connections = most;
                    "max_connections is lowered to {most}: RLIMIT_NOFILE is {descriptors}"
                );
                most
            }
            Some(asked) => asked,
            None => CONNECTIONS_DEFAULT.min(descriptors / 2).max(1),
        }
    }
}

/// The most connections a server takes unless told otherwise.
const CONNECTIONS_DEFAULT: usize = 20_000;

/// Descriptors kept for those who are turned away and for everything that is no client: listeners,
/// reactors, files, admin.
const DESCRIPTOR_RESERVE: usize = 128;

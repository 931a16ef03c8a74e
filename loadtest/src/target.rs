//! What a server has to say of itself to be put under load.
//!
//! One implementation is ours, [`crate::ebbtide`]. Another server needs a [`Target`]: how it is
//! started for a [`Seat`], how it is told to stop, which paths it serves, what its log tells, and
//! whether it writes a report.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use rustix::process::{Pid, Signal, kill_process};

use crate::books::Books;
use crate::kind::Routes;

/// A way to replace a server by its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// The successor listens on the same port before the old one is told to stop.
    ReusePort,
    /// Both accept from one listening socket, which the load generator holds.
    Inherited,
    /// The successor starts when the old one is gone. New connections are refused meanwhile.
    StopStart,
}

impl Way {
    /// All ways.
    pub const ALL: [Way; 3] = [Way::ReusePort, Way::Inherited, Way::StopStart];

    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Way::ReusePort => "reuse_port",
            Way::Inherited => "inherited",
            Way::StopStart => "stop_start",
        }
    }

    /// Whether connects may be refused meanwhile. Where somebody listens all the time, each refused
    /// connect is a failure.
    pub fn may_refuse(self) -> bool {
        self == Way::StopStart
    }

    /// The way of that name.
    pub fn named(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }
}

/// Where an instance of a server is to sit.
#[derive(Clone, Debug)]
pub struct Seat {
    /// How many came before it.
    pub number: u32,
    /// Where to listen. For [`Way::Inherited`] the socket is passed on as descriptor 3.
    pub address: SocketAddr,
    /// How it comes to its port.
    pub way: Way,
    /// Where its report may be written.
    pub report: PathBuf,
}

/// A command line and its environment, which holds nothing else but `PATH`.
#[derive(Clone, Debug)]
pub struct Launch {
    /// What to run.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<(&'static str, String)>,
}

/// What a line of a server's log says that matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It serves.
    Ready,
    /// A request has come to its end in the server.
    Request {
        /// The number in its `X-Request-Id`.
        id: Option<u64>,
        /// By its name in the server's ledger.
        outcome: String,
    },
    /// A connection from that port is closed.
    Closed {
        /// The client's.
        port: u16,
        /// By its name in the server's ledger.
        outcome: String,
    },
    /// So many lines are missing here.
    Missing(u64),
    /// Nothing of interest.
    Other,
}

/// A server that can be started, loaded, and told to stop.
pub trait Target: fmt::Debug + Send + Sync {
    /// Its name in results.
    fn name(&self) -> &str;

    /// Its paths.
    fn routes(&self) -> Routes;

    /// The ways in which it can be replaced.
    fn ways(&self) -> &[Way];

    /// How an instance is started.
    fn launch(&self, seat: &Seat) -> Launch;

    /// What a line that an instance wrote to stderr says. [`Note::Ready`] has to come.
    fn note(&self, line: &str) -> Note;

    /// Tells an instance to stop.
    ///
    /// # Errors
    /// When there is no such process any more.
    fn stop(&self, pid: Pid) -> io::Result<()> {
        Ok(kill_process(pid, Signal::TERM)?)
    }

    /// Whether it writes a report; otherwise it is judged by its clients alone.
    fn has_report(&self) -> bool;

    /// The ledger in a report.
    ///
    /// # Errors
    /// What is wrong with the report.
    fn books(&self, report: &str) -> Result<Books, String>;
}

/// Why a run could not be done or not be finished: it says nothing about losses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(pub String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Fault {
    /// Of a call to the system.
    pub(crate) fn of(what: &str) -> impl FnOnce(io::Error) -> Fault {
        move |error| Fault(format!("cannot {what}: {error}"))
    }
}

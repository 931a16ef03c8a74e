//! Other servers as targets, with the routes of ebbtide.
//!
//! They keep no ledger, so that their clients alone are the judges. A program starts each of them
//! and becomes it: `loadtest/peers/run` with a name that it knows, or anybody's own. It is given
//! where to listen, an address or `systemd` for the socket that `LISTEN_FDS` passes on, and
//! `--reuse-port` when a successor is to bind the same port. It says on stderr when it serves,
//! `{"event_type":"server_started"}` in a line, and is stopped by SIGTERM.

use std::path::{Path, PathBuf};

use crate::books::Books;
use crate::ebbtide::{self, Ebbtide};
use crate::kind::Routes;
use crate::root;
use crate::target::{Launch, Note, Seat, Target, Way};

/// See the module's essay.
#[derive(Clone, Debug)]
pub struct Peer {
    name: String,
    program: PathBuf,
    /// What the program is told before where to listen.
    first: Option<String>,
}

/// The servers that `loadtest/peers/run` knows.
pub const NAMES: [&str; 4] = ["axum", "hyper", "actix", "nginx"];

/// That script, from the repository's root.
const SCRIPT: &str = "loadtest/peers/run";

impl Peer {
    /// One of [`NAMES`], which `loadtest/peers/run` starts.
    pub fn known(name: &str) -> Peer {
        let program = root().join(SCRIPT);
        Peer { name: name.to_owned(), program, first: Some(name.to_owned()) }
    }

    /// Anybody's, named as its program is.
    pub fn own(program: &Path) -> Peer {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Peer { name, program: program.to_owned(), first: None }
    }
}

impl Target for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn routes(&self) -> Routes {
        ebbtide::ROUTES
    }

    fn ways(&self) -> &[Way] {
        // nginx has its own way to pass sockets on, from one generation of workers to the next.
        if self.first.as_deref() == Some("nginx") {
            &[Way::ReusePort, Way::StopStart]
        } else {
            &Way::ALL
        }
    }

    fn launch(&self, seat: &Seat) -> Launch {
        let listen = match seat.way {
            Way::Inherited => "systemd".to_owned(),
            Way::ReusePort | Way::StopStart => seat.address.to_string(),
        };
        let mut args: Vec<String> = self.first.iter().cloned().chain([listen]).collect();
        if seat.way == Way::ReusePort {
            args.push("--reuse-port".to_owned());
        }
        let directory = seat.report.with_file_name(format!("nginx-{}", seat.address.port()));
        let env = vec![
            ("PEERS_NGINX_DIR", directory.to_string_lossy().into_owned()),
            // What slow readers ask for.
            ("PEERS_NGINX_BYTES", "1048576".to_owned()),
        ];
        Launch { program: self.program.clone(), args, env }
    }

    fn note(&self, line: &str) -> Note {
        // The same line as ebbtide's; what else they say means nothing here.
        let note = Ebbtide { binary: PathBuf::new() }.note(line);
        if note == Note::Ready { note } else { Note::Other }
    }

    fn has_report(&self) -> bool {
        false
    }

    fn books(&self, _report: &str) -> Result<Books, String> {
        Err(format!("{} writes no report", self.name))
    }
}

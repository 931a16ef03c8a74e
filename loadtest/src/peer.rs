//! Other servers as targets: those of `loadtest/peers`, which have the routes of ebbtide.
//!
//! They keep no ledger, so that their clients alone are the judges. `loadtest/peers/run` starts
//! each of them, and says on stderr when it serves.

use std::path::PathBuf;

use crate::books::Books;
use crate::ebbtide::{self, Ebbtide};
use crate::kind::Routes;
use crate::target::{Launch, Note, Seat, Target, Way};

/// See the module's essay.
#[derive(Clone, Debug)]
pub struct Peer {
    /// One of [`NAMES`].
    pub name: String,
    /// The script that starts it.
    pub script: PathBuf,
}

/// The servers that the script knows.
pub const NAMES: [&str; 4] = ["axum", "hyper", "actix", "nginx"];

impl Target for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn routes(&self) -> Routes {
        ebbtide::ROUTES
    }

    fn ways(&self) -> &[Way] {
        // nginx has its own way to pass sockets on, from one generation of workers to the next.
        if self.name == "nginx" { &[Way::ReusePort, Way::StopStart] } else { &Way::ALL }
    }

    fn launch(&self, seat: &Seat) -> Launch {
        let listen = match seat.way {
            Way::Inherited => "systemd".to_owned(),
            Way::ReusePort | Way::StopStart => seat.address.to_string(),
        };
        let mut args = vec![self.name.clone(), listen];
        if seat.way == Way::ReusePort {
            args.push("--reuse-port".to_owned());
        }
        let directory = seat.report.with_file_name(format!("nginx-{}", seat.address.port()));
        let env = vec![
            ("PEERS_NGINX_DIR", directory.to_string_lossy().into_owned()),
            // What slow readers ask for.
            ("PEERS_NGINX_BYTES", "1048576".to_owned()),
        ];
        Launch { program: self.script.clone(), args, env }
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

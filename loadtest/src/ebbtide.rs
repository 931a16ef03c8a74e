//! ebbtide as a target: configured by its environment, watched by its log.
//!
//! Its access log (`access_log`) names every request with its id and outcome, its debug log every
//! closed connection with its client's port: with them each request and each connection belongs to
//! one instance for certain. Everything else is as by default.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, io};

use serde_json::Value;

use crate::books::Books;
use crate::kind::{Routes, id_in};
use crate::root;
use crate::target::{Fault, Launch, Note, Seat, Target, Way};

/// See the module's essay.
#[derive(Clone, Debug)]
pub struct Ebbtide {
    /// The program.
    pub binary: PathBuf,
}

impl Ebbtide {
    /// Its release, built by the cargo that runs us; without one, as it was built.
    ///
    /// # Errors
    /// When it does not build, or is not there.
    pub fn build() -> Result<PathBuf, Fault> {
        let build = ["build", "--release", "-p", "ebbtide"];
        if let Some(cargo) = env::var_os("CARGO") {
            let mut cargo = Command::new(cargo);
            cargo.args(build).current_dir(root()).stdin(Stdio::null());
            let status = cargo.status().map_err(Fault::of("run cargo"))?;
            if !status.success() {
                return Err(Fault("ebbtide does not build".to_owned()));
            }
        }
        let find = || -> io::Result<PathBuf> {
            let own = env::current_exe()?;
            let target = own.parent().and_then(Path::parent).unwrap_or(&own);
            target.join("release").join("ebbtide").canonicalize()
        };
        find().map_err(|_| Fault(format!("there is no server: run cargo {}", build.join(" "))))
    }
}

/// Those of `ebbtide serve`, which other servers are given as well.
pub(crate) const ROUTES: Routes = Routes {
    text: "/plaintext",
    text_body: "Hello, World!",
    echo: "/echo",
    bytes: "/bytes/",
    upload: "/upload",
    stream: "/stream/",
};

impl Target for Ebbtide {
    fn name(&self) -> &'static str {
        "ebbtide"
    }

    fn routes(&self) -> Routes {
        ROUTES
    }

    fn ways(&self) -> &[Way] {
        &Way::ALL
    }

    fn launch(&self, seat: &Seat) -> Launch {
        let listen = match seat.way {
            Way::Inherited => "systemd".to_owned(),
            Way::ReusePort | Way::StopStart => seat.address.to_string(),
        };
        let mut env = vec![
            ("LISTEN", listen),
            ("ADMIN_LISTEN", "off".to_owned()),
            ("SHUTDOWN_REPORT_PATH", seat.report.to_string_lossy().into_owned()),
            ("ACCESS_LOG", "true".to_owned()),
            ("LOG_LEVEL", "debug".to_owned()),
            ("LOG_FORMAT", "json".to_owned()),
        ];
        if seat.way == Way::ReusePort {
            env.push(("REUSE_PORT", "true".to_owned()));
        }
        Launch { program: self.binary.clone(), args: Vec::new(), env }
    }

    fn note(&self, line: &str) -> Note {
        let Ok(line) = serde_json::from_str::<Value>(line) else { return Note::Other };
        let outcome = || line["outcome"].as_str().unwrap_or_default().to_owned();
        match line["event_type"].as_str() {
            Some("server_started") => Note::Ready,
            Some("request") => Note::Request {
                id: line["request_id"].as_str().and_then(id_in),
                outcome: outcome(),
            },
            Some("connection_closed") => {
                Note::Closed { port: port_in(&line["peer"]), outcome: outcome() }
            }
            Some("log_lines_dropped") => Note::Missing(line["count"].as_u64().unwrap_or(1)),
            _ => Note::Other,
        }
    }

    fn has_report(&self) -> bool {
        true
    }

    fn books(&self, report: &str) -> Result<Books, String> {
        Books::read(report)
    }
}

fn port_in(peer: &Value) -> u16 {
    let port = peer.as_str().and_then(|peer| peer.rsplit_once(':'));
    port.and_then(|(_, port)| port.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_understood() {
        let target = Ebbtide { binary: "ebbtide".into() };
        let note = |line| target.note(line);
        assert_eq!(note(r#"{"event_type":"server_started"}"#), Note::Ready);
        assert_eq!(
            note(r#"{"event_type":"request","request_id":"lt-12","outcome":"answered"}"#),
            Note::Request { id: Some(12), outcome: "answered".to_owned() }
        );
        assert_eq!(
            note(r#"{"event_type":"connection_closed","peer":"127.0.0.1:4711","outcome":"reset"}"#),
            Note::Closed { port: 4711, outcome: "reset".to_owned() }
        );
        assert_eq!(note("thread panicked"), Note::Other);
    }
}

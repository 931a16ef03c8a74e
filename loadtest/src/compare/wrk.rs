//! wrk: as many requests as a server answers.

use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::compare::machine;
use crate::ebbtide::ROUTES;
use crate::root;

/// What wrk is to do.
#[derive(Clone, Copy, Debug)]
pub struct Wrk {
    /// Which requests.
    pub requests: Requests,
    /// Connections at a time.
    pub connections: u32,
    /// Threads.
    pub threads: u32,
    /// For so long.
    pub seconds: u32,
}

/// What kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// One at a time, on kept connections.
    Single,
    /// So many sent at once.
    Pipelined(u32),
    /// Each on a connection of its own, which it asks to close.
    Closing,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Done {
    /// Responses.
    pub requests: u64,
    /// Of them in a second.
    pub rate: f64,
    /// Connections, reads and writes that failed, answers that did not come, or that were no 200.
    pub errors: u64,
}

impl Wrk {
    /// Whether it is installed.
    pub fn is_there() -> bool {
        machine::find("wrk").is_some()
    }

    /// Runs it on these cores, and waits for its end.
    ///
    /// # Errors
    /// When it is not there, fails, or got no answer at all.
    pub fn run(&self, to: SocketAddr, cores: &[usize]) -> io::Result<Done> {
        let mut wrk = Command::new("wrk");
        let script = match self.requests {
            Requests::Pipelined(_) => "pipelined.lua",
            Requests::Single | Requests::Closing => "summary.lua",
        };
        wrk.arg("-s").arg(root().join("loadtest/wrk").join(script));
        wrk.arg(format!("-t{}", self.threads)).arg(format!("-c{}", self.connections));
        wrk.arg(format!("-d{}s", self.seconds));
        if self.requests == Requests::Closing {
            wrk.args(["-H", "Connection: close"]);
        }
        wrk.arg(format!("http://{to}{}", ROUTES.text));
        if let Requests::Pipelined(depth) = self.requests {
            wrk.arg("--").arg(depth.to_string());
        }
        wrk.stdin(Stdio::null());
        let output = machine::pinned(cores, || wrk.output())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("wrk failed: {}", said.trim())));
        }
        parse(&String::from_utf8_lossy(&output.stdout)).map_err(io::Error::other)
    }
}

/// What the last line of its output says (`loadtest/wrk/summary.lua`).
fn parse(output: &str) -> Result<Done, String> {
    let line = output.lines().last().unwrap_or_default();
    let unknown = || format!("wrk does not say what it found: {line:?}");
    let found: Value = serde_json::from_str(line).map_err(|_| unknown())?;
    let errors = found["errors"].as_object().ok_or_else(unknown)?;
    let errors = errors.values().map(|count| count.as_u64().ok_or_else(unknown));
    let done = Done {
        requests: found["requests"].as_u64().ok_or_else(unknown)?,
        rate: found["requests_per_second"].as_f64().ok_or_else(unknown)?,
        errors: errors.sum::<Result<u64, String>>()?,
    };
    if done.requests == 0 {
        return Err(format!("no request was answered, {} failed", done.errors));
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts() {
        let line = r#"{"requests":1200,"seconds":2.000,"requests_per_second":600.0,"bytes":1,
            "errors":{"connect":1,"read":2,"write":0,"timeout":3,"status":4},"latency_ms":{}}"#;
        let output = format!("Running 2s test\n  1 threads\n{}\n", line.replace('\n', ""));
        assert_eq!(parse(&output), Ok(Done { requests: 1200, rate: 600.0, errors: 10 }));
        assert!(parse(&output.replace("\"requests\":1200", "\"requests\":0")).is_err());
        assert!(parse("").is_err());
        assert!(parse("unable to connect to 127.0.0.1:1 Connection refused").is_err());
    }
}

//! Redis: one of the test's own. It keeps nothing when it ends.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};

use super::keeper::{Keeper, directory};
use super::{SOON, free_port, program, until};

/// A server that runs, unless a test has stopped it.
#[derive(Debug)]
pub struct Redis {
    keeper: Keeper,
    port: u16,
}

impl Redis {
    /// Starts one; `None` when Redis is missing.
    pub fn start() -> Option<Redis> {
        Redis::start_with(&[])
    }

    /// As [`start`](Redis::start), with more of its options (`["--requirepass", "secret"]`).
    pub fn start_with(options: &[&str]) -> Option<Redis> {
        let program = program("redis-server")?;
        let home = directory("redis");
        let port = free_port();
        let (port_text, place) = (port.to_string(), home.to_str().unwrap().to_owned());
        let own = ["--port", &port_text, "--bind", "127.0.0.1", "--dir", &place, "--save", ""];
        let line = [program.to_str().unwrap()].into_iter().chain(own);
        let keeper = Keeper::new(home, "KILL", line.chain(options.iter().copied()));
        let redis = Redis { keeper, port };
        redis.begin();
        Some(redis)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it again and waits until it answers.
    pub fn begin(&self) {
        self.keeper.start();
        until("Redis to answer", SOON, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()
        });
    }

    /// Kills it and waits for its end.
    pub fn kill(&self) {
        self.keeper.signal("KILL");
        self.keeper.wait();
    }

    /// Stops its process in its tracks: TCP stays alive and nothing is answered.
    pub fn freeze(&self) {
        self.keeper.signal("STOP");
    }

    pub fn thaw(&self) {
        self.keeper.signal("CONT");
    }

    /// Sends one command in a line and returns the first line of its answer.
    pub fn say(&self, command: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "{command}\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

//! A server that runs to be measured: started on its cores, watched by its first answer, and ended
//! with all of its processes.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::compare::answer::{self, Answer, Asks};
use crate::compare::contender::{Contender, Place};
use crate::compare::machine::{self, Cores};
use crate::listening;
use crate::target::Launch;

/// See the module's essay. Dropped, it is killed, and what descends from it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    /// Where it listens.
    pub address: SocketAddr,
    /// From the start of its process to its first whole answer.
    pub startup: Duration,
    /// That answer.
    pub answer: Answer,
}

/// How a server is to run.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// Which one.
    pub contender: Contender,
    /// Its program.
    pub program: &'a Path,
    /// On how many cores.
    pub workers: usize,
    /// Which ones.
    pub cores: &'a Cores,
    /// What its requests will ask for.
    pub asks: Asks,
    /// For its own files.
    pub directory: &'a Path,
}

impl Server {
    /// Starts it and waits for its first answer.
    ///
    /// # Errors
    /// When it cannot be started, ends, or does not answer as all do within 20 s.
    pub fn start(terms: &Terms<'_>) -> io::Result<Server> {
        let address = listening::free_address()?;
        let Terms { workers, asks, directory, .. } = *terms;
        let place = Place { address, workers, asks, directory };
        let launch = terms.contender.launch(terms.program, &place)?;
        let log = directory.join("log");
        let mut command = command(launch, &log)?;
        command.current_dir(directory);
        let begun = Instant::now();
        let child = machine::pinned(&terms.cores.server, || command.spawn())?;
        let answer = Answer { fields: 0, bytes: 0 };
        let mut server = Server { child, log, address, startup: Duration::ZERO, answer };
        server.answer = server.first(begun, asks)?;
        server.startup = begun.elapsed();
        Ok(server)
    }

    /// Asks until there is an answer: nobody listens at first.
    fn first(&mut self, begun: Instant, asks: Asks) -> io::Result<Answer> {
        let request = answer::request(self.address, asks);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.complaint(&format!("it ended with {status}")));
            }
            match TcpStream::connect(self.address) {
                Ok(mut stream) => match answer::exchange(&mut stream, &request) {
                    Ok(answer) if asks == Asks::Close => {
                        answer::expect_end(&mut stream)?;
                        return Ok(answer);
                    }
                    Ok(answer) => return Ok(answer),
                    Err(error) => return Err(self.complaint(&error.to_string())),
                },
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error),
            }
            if begun.elapsed() > START_MAX {
                let seconds = START_MAX.as_secs();
                return Err(self.complaint(&format!("it does not listen within {seconds} s")));
            }
            thread::park_timeout(ASK_AGAIN);
        }
    }

    /// What is wrong, with the end of what it said.
    fn complaint(&self, what: &str) -> io::Error {
        let said = fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(TAIL_BYTES)..]);
        let said = said.trim();
        let said = if said.is_empty() { String::new() } else { format!("; it said: {said}") };
        io::Error::other(format!("{what}{said}"))
    }

    /// Its processes.
    pub fn processes(&self) -> Vec<u32> {
        machine::tree(self.child.id())
    }

    /// The CPU time that they have had, in nanoseconds.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_ns(&self) -> io::Result<u64> {
        machine::cpu_ns(&self.processes()).map_err(|error| self.gone(&error))
    }

    /// Their memory in KiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory_kib(&self) -> io::Result<u64> {
        machine::memory_kib(&self.processes()).map_err(|error| self.gone(&error))
    }

    fn gone(&self, error: &io::Error) -> io::Error {
        self.complaint(&format!("it cannot be looked at: {error}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The first one first: a master would start others.
        for pid in self.processes() {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            // One that is gone is what is wanted.
            let _gone = pid.map(|pid| kill_process(pid, Signal::KILL));
        }
        let _status = self.child.wait();
    }
}

fn command(launch: Launch, log: &Path) -> io::Result<Command> {
    let log = File::create(log)?;
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(launch.env).stdout(log.try_clone()?).stderr(log);
    Ok(command)
}

/// Python takes a second.
const START_MAX: Duration = Duration::from_secs(20);

/// So exact is the time of a start.
const ASK_AGAIN: Duration = Duration::from_micros(200);

/// Of what a server said, for a complaint.
const TAIL_BYTES: usize = 600;

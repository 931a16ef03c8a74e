//! One process of a server: started, watched, told to stop, and never left behind.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process_group, waitid,
};

use crate::books::{Books, Journal};
use crate::listening;
use crate::target::{Fault, Launch, Note, Seat, Target, Way};

/// The one who starts instances.
#[derive(Clone, Debug)]
pub struct Starter {
    /// What to start.
    pub target: Arc<dyn Target>,
    /// Whose process it is to be; `None` for our own user's.
    pub user: Option<u32>,
    /// Its working directory.
    pub directory: PathBuf,
    /// The beginning of time.
    pub epoch: Instant,
    /// How long it may take to say that it serves.
    pub start_max: Duration,
    /// How long it may take to stop.
    pub stop_max: Duration,
}

/// A process that serves, or has served. Times are since the run began. Dropped, it is killed, and
/// with it whatever it has left of its process group: behind a wrapper that ended at its signal the
/// server itself may live on.
#[derive(Debug)]
pub struct Instance {
    child: Child,
    seat: Seat,
    log: Log,
    /// Its listening sockets, once it is to stop.
    listeners: BTreeSet<u64>,
    /// When it was started.
    pub started: Duration,
    /// When it was told to stop.
    pub signalled: Option<Duration>,
    /// When the last of its listeners was seen to be gone: at most about a millisecond late.
    pub closed: Option<Duration>,
    /// When it was seen to be gone, and its exit status: 128 and the signal's for one that was
    /// killed.
    pub exited: Option<(Duration, i32)>,
}

/// What an instance leaves behind.
#[derive(Debug, Default)]
pub struct Remains {
    /// Its ledger, if it keeps one.
    pub books: Option<Books>,
    /// What it has logged.
    pub journal: Journal,
    /// What is wrong with its report.
    pub complaint: Option<String>,
}

impl Starter {
    /// Starts an instance and waits until it says that it serves.
    ///
    /// # Errors
    /// When there is no such program, when it ends, and when nothing is said for too long.
    pub fn start(&self, seat: Seat, listener: Option<&TcpListener>) -> Result<Instance, Fault> {
        let launch = self.target.launch(&seat);
        let what = format!("start {}", launch.program.display());
        let mut command = command(launch, listener).map_err(Fault::of(&what))?;
        command.current_dir(&self.directory).stdout(Stdio::null()).stderr(Stdio::piped());
        command.process_group(0);
        if let Some(user) = self.user {
            // As root this gives up the supplementary groups, too.
            command.uid(user).gid(user);
        }
        let started = self.epoch.elapsed();
        let mut child = command.spawn().map_err(Fault::of(&what))?;
        let stderr = child.stderr.take();
        let instance = Instance {
            child,
            seat,
            log: Log::default(),
            listeners: BTreeSet::new(),
            started,
            signalled: None,
            closed: None,
            exited: None,
        };
        if let Some(stderr) = stderr {
            let (log, target) = (instance.log.clone(), Arc::clone(&self.target));
            let thread = thread::Builder::new().name("log".to_owned());
            let started = thread.spawn(move || log.fill(stderr, &*target));
            started.map_err(Fault::of("start a thread"))?;
        }
        match instance.log.wait_ready(self.start_max) {
            Ok(()) => Ok(instance),
            Err(complaint) => Err(Fault(format!("the server never started: {complaint}"))),
        }
    }

    /// Tells an instance to stop.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn stop(&self, instance: &mut Instance) -> Result<Duration, Fault> {
        if instance.seat.way != Way::Inherited {
            instance.listeners =
                instance.own_listeners().map_err(Fault::of("list listening sockets"))?;
        }
        let at = self.epoch.elapsed();
        instance.signalled = Some(at);
        let stopped = self.target.stop(instance.pid());
        stopped.map_err(Fault::of("tell the server to stop"))?;
        Ok(at)
    }

    /// Looks how far an instance is on its way out.
    ///
    /// # Errors
    /// When it is not gone in its time, or by itself, or has a log that nobody can read.
    pub fn look(&self, instance: &mut Instance) -> Result<(), Fault> {
        if instance.exited.is_some() {
            return Ok(());
        }
        instance.log.check()?;
        if !instance.listeners.is_empty() && instance.closed.is_none() {
            let open = listening::inodes(instance.seat.address.port());
            let open = open.map_err(Fault::of("list listening sockets"))?;
            if open.is_disjoint(&instance.listeners) {
                instance.closed = Some(self.epoch.elapsed());
            }
        }
        if let Some(status) = instance.exit_status().map_err(Fault::of("wait"))? {
            instance.exited = Some((self.epoch.elapsed(), status));
            if instance.signalled.is_none() {
                let tail = instance.log.tail();
                let what = format!("the server ended by itself, with status {status}: {tail}");
                return Err(Fault(what));
            }
        } else if let Some(at) = instance.signalled
            && self.epoch.elapsed() > at + self.stop_max
        {
            let seconds = self.stop_max.as_secs_f64();
            let tail = instance.log.tail();
            let what =
                format!("the server never stopped: it had {seconds} s; its last lines: {tail}");
            return Err(Fault(what));
        }
        Ok(())
    }

    /// What an instance that is gone has left.
    pub fn remains(&self, instance: &Instance) -> Remains {
        if !self.target.has_report() {
            // Nobody compares its log with anything.
            return Remains::default();
        }
        let journal = instance.log.whole(LOG_MAX);
        let report = fs::read_to_string(&instance.seat.report);
        let report = report.map_err(|error| format!("its report: {error}"));
        match report.and_then(|report| self.target.books(&report)) {
            Ok(books) => Remains { books: Some(books), journal, complaint: None },
            Err(complaint) => Remains { books: None, journal, complaint: Some(complaint) },
        }
    }
}

impl Instance {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Whether it was told to stop and did: then its ledger is complete.
    pub fn has_stopped(&self) -> bool {
        self.signalled.is_some() && self.exited.is_some()
    }

    /// Where it sits.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// The sockets that listen on its port and are its own: a successor may listen there, too.
    fn own_listeners(&self) -> io::Result<BTreeSet<u64>> {
        let on_port = listening::inodes(self.seat.address.port())?;
        let mut own = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.pid().as_raw_pid()))? {
            // One that was closed meanwhile is no listener of a server that serves.
            let Ok(link) = fs::read_link(entry?.path()) else { continue };
            let link = link.to_string_lossy();
            let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
            own.extend(inode.and_then(|inode| inode.parse().ok()).filter(|i| on_port.contains(i)));
        }
        Ok(own)
    }

    /// Once it has ended: its status, or 128 and the signal's number. It is not reaped before it is
    /// dropped, so that until then nobody else can have its number, which is that of its group.
    fn exit_status(&self) -> io::Result<Option<i32>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(self.pid()), options)?;
        let number = |status: WaitIdStatus| {
            let killed = status.terminating_signal().unwrap_or(0);
            status.exit_status().unwrap_or(128 + killed)
        };
        Ok(status.map(number))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Each fails when nobody is left to be killed: so much the better. The second is for one
        // that has moved to another group.
        let _group = kill_process_group(self.pid(), Signal::KILL);
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

/// With a listener on descriptor 3, as `sd_listen_fds(3)` has it, and the variables that say so. A
/// shell moves it there: what std can pass on safely is the standard input.
fn command(launch: Launch, listener: Option<&TcpListener>) -> io::Result<Command> {
    let mut command;
    if let Some(listener) = listener {
        command = Command::new("/bin/sh");
        command.args(["-c", PASS_ON]).arg(&launch.program);
        command.stdin(Stdio::from(OwnedFd::from(listener.try_clone()?)));
    } else {
        command = Command::new(&launch.program);
        command.stdin(Stdio::null());
    }
    command.args(&launch.args).env_clear();
    // ebbtide would make its file where it is started.
    command.env("DATABASE_URL", "off");
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.envs(launch.env);
    Ok(command)
}

const PASS_ON: &str = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";

/// What a process writes to stderr, understood by its target.
#[derive(Clone, Debug, Default)]
struct Log(Arc<(Mutex<Lines>, Condvar)>);

#[derive(Debug, Default)]
struct Lines {
    is_ready: bool,
    /// Whether a line came that has no end: what follows is not looked at.
    is_endless: bool,
    close: Close,
    journal: Journal,
    last: VecDeque<String>,
}

/// How far the other end of a log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Close {
    /// It is open.
    #[default]
    Awaited,
    /// It was waited for, and somebody held it open: it is not waited for again.
    GivenUp,
    /// It is closed.
    Seen,
}

impl Log {
    /// Reads to the end, whatever comes: a full pipe would hold the server.
    fn fill(&self, source: impl Read, target: &dyn Target) {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = source.by_ref().take(LINE_MAX).read_until(b'\n', &mut line);
            if read.is_err() || line.is_empty() {
                break;
            }
            if line.pop_if(|last| *last == b'\n').is_none() && line.len() as u64 == LINE_MAX {
                self.lock().is_endless = true;
                self.0.1.notify_all();
                // An error is an end as well.
                let _read = io::copy(&mut source, &mut io::sink());
                break;
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            let note = target.note(&line);
            let mut lines = self.lock();
            if note == Note::Ready {
                lines.is_ready = true;
                self.0.1.notify_all();
            }
            if note == Note::Other || note == Note::Ready {
                lines.last.push_back(line);
                if lines.last.len() > TAIL_LINES {
                    lines.last.pop_front();
                }
            }
            lines.journal.add(note);
        }
        self.lock().close = Close::Seen;
        self.0.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_ready(&self, patience: Duration) -> Result<(), String> {
        let is_waiting =
            |lines: &mut Lines| !lines.is_ready && lines.close != Close::Seen && !lines.is_endless;
        let waited = self.0.1.wait_timeout_while(self.lock(), patience, is_waiting);
        let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if lines.is_endless {
            return Err(endless());
        }
        if lines.is_ready {
            return Ok(());
        }
        let what =
            if lines.close == Close::Seen { "it ended" } else { "it does not say that it serves" };
        Err(format!("{what}; its last lines: {}", tail(&lines)))
    }

    /// Everything, once the process is gone. Only the first call waits, at most that long.
    fn whole(&self, patience: Duration) -> Journal {
        let is_awaited = |lines: &mut Lines| lines.close == Close::Awaited;
        let waited = self.0.1.wait_timeout_while(self.lock(), patience, is_awaited);
        let (mut lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if lines.close == Close::Awaited {
            lines.close = Close::GivenUp;
        }
        let mut journal = lines.journal.clone();
        if lines.close != Close::Seen || lines.is_endless {
            // Somebody else holds it, or it was not read to its end: what is not here is missing.
            journal.missing += 1;
        }
        journal
    }

    /// Whether it is one that nobody can read.
    fn check(&self) -> Result<(), Fault> {
        let is_endless = self.lock().is_endless;
        if is_endless {
            return Err(Fault(format!("the server cannot be followed: {}", endless())));
        }
        Ok(())
    }

    /// The last lines that mean nothing else, for a complaint.
    fn tail(&self) -> String {
        tail(&self.lock())
    }
}

fn tail(lines: &Lines) -> String {
    if lines.last.is_empty() {
        return "none".to_owned();
    }
    lines.last.iter().cloned().collect::<Vec<_>>().join("\n")
}

fn endless() -> String {
    format!("its log has a line without end, of {} KiB so far", LINE_MAX >> 10)
}

const TAIL_LINES: usize = 5;

/// Bytes of a line of a log, far more than any that is meant to be read.
const LINE_MAX: u64 = 1 << 20;

/// How long the log of a process that is gone may take to be read.
const LOG_MAX: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ebbtide::Ebbtide;

    fn filled(source: impl Read) -> Log {
        let log = Log::default();
        log.fill(source, &Ebbtide { binary: PathBuf::new() });
        log
    }

    #[test]
    fn lines_are_understood_and_the_last_ones_kept() {
        let many = "noise\n".repeat(10);
        let log = filled(format!("{many}{{\"event_type\":\"server_started\"}}\nend").as_bytes());
        assert_eq!(log.wait_ready(Duration::ZERO), Ok(()));
        assert_eq!(log.check(), Ok(()));
        assert_eq!(log.whole(Duration::ZERO).missing, 0);
        assert!(
            log.tail().starts_with("noise\n") && log.tail().ends_with("\nend"),
            "{}",
            log.tail()
        );
    }

    #[test]
    fn a_log_that_a_descendant_holds_open_is_waited_for_once() {
        let log = Log::default();
        log.lock().journal.add(Note::Missing(2));
        assert_eq!(log.whole(Duration::from_millis(1)).missing, 3, "the end is missing, too");
        let (told, heard) = std::sync::mpsc::channel();
        let again = log.clone();
        thread::spawn(move || told.send(again.whole(Duration::from_secs(3_600)).missing));
        assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(3));
        log.fill(&b""[..], &Ebbtide { binary: PathBuf::new() });
        assert_eq!(log.whole(Duration::ZERO).missing, 2, "it has come to its end after all");
    }

    #[test]
    fn a_line_without_end_is_read_and_not_kept() {
        let mut source = (&b"noise\n"[..]).chain(io::repeat(b'x').take(LINE_MAX * 5));
        let log = filled(source.by_ref());
        assert_eq!(
            io::copy(&mut source, &mut io::sink()).unwrap(),
            0,
            "the server would be held by a full pipe"
        );
        let complaint = "its log has a line without end, of 1024 KiB so far";
        assert_eq!(log.wait_ready(Duration::ZERO), Err(complaint.to_owned()));
        assert!(log.check().is_err());
        assert_eq!((log.whole(Duration::ZERO).missing, log.tail().as_str()), (1, "noise"));
    }
}

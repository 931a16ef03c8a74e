//! The machine as the kernel shows it: cores, and what a tree of processes has used of them and of
//! memory.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Who runs on which core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// The server's.
    pub server: Vec<usize>,
    /// The load's.
    pub load: Vec<usize>,
}

impl Cores {
    /// The first so many of those that we may run on for the server, the rest for the load. Where
    /// there is no rest, both share all.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn split(workers: usize) -> io::Result<Cores> {
        let all = Cores::all()?;
        if all.len() > workers {
            let (server, load) = all.split_at(workers);
            return Ok(Cores { server: server.to_vec(), load: load.to_vec() });
        }
        Ok(Cores { server: all.clone(), load: all })
    }

    /// Both on the first so many cores.
    ///
    /// # Errors
    /// As [`Cores::split`].
    pub fn shared(count: usize) -> io::Result<Cores> {
        let mut all = Cores::all()?;
        all.truncate(count);
        Ok(Cores { server: all.clone(), load: all })
    }

    fn all() -> io::Result<Vec<usize>> {
        let set = sched_getaffinity(None)?;
        Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
    }

    /// Whether the load has cores of its own.
    pub fn are_apart(&self) -> bool {
        self.load.iter().all(|core| !self.server.contains(core))
    }
}

/// Does something on these cores. What it starts, threads and processes, stays on them.
///
/// # Errors
/// When the kernel does not let us, and its own.
pub fn pinned<T: Send>(
    cores: &[usize],
    what: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    let work = || {
        sched_setaffinity(None, &set)?;
        what()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("pinned".to_owned());
        let ended = thread.spawn_scoped(scope, work)?.join();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A process and all that descend from it, itself first. Those that are gone are left out.
pub fn tree(root: u32) -> Vec<u32> {
    let mut pairs = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        pairs.extend(parent_in(&stat).map(|parent| (pid, parent)));
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let of = found[at];
        found.extend(pairs.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    found
}

/// The parent in a line of `/proc/PID/stat`, whose second field may hold anything in parentheses.
fn parent_in(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The CPU time that these processes have had, in nanoseconds, of all their threads: the first
/// number of `schedstat`, which the scheduler counts exactly. (`stat` counts ticks of 10 ms.)
///
/// # Errors
/// When the kernel does not count it, or when the first process is gone.
pub fn cpu_ns(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for (at, pid) in pids.iter().enumerate() {
        match of_process(*pid) {
            Ok(ns) => sum += ns,
            Err(error) if at == 0 => return Err(error),
            // A child may end at any time.
            Err(_) => {}
        }
    }
    Ok(sum)
}

fn of_process(pid: u32) -> io::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // As may a thread.
        let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        let first = text.split_whitespace().next().and_then(|ns| ns.parse::<u64>().ok());
        sum += first.ok_or_else(|| io::Error::other("schedstat has no number"))?;
    }
    Ok(sum)
}

/// The memory of these processes in KiB: pages that they share, each by its part (PSS).
///
/// # Errors
/// When the first process is gone, or the kernel does not say.
pub fn memory_kib(pids: &[u32]) -> io::Result<u64> {
    let mut sum = 0;
    for (at, pid) in pids.iter().enumerate() {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        match text {
            Ok(text) => sum += pss_in(&text).ok_or_else(|| io::Error::other("no Pss"))?,
            Err(error) if at == 0 => return Err(error),
            Err(_) => {}
        }
    }
    Ok(sum)
}

fn pss_in(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// What results are of: processor, cores and kernel.
pub fn description() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let count = Cores::all().map_or(0, |all| all.len());
    format!("{}, {count} cores, Linux {}", model.trim(), kernel.trim())
}

/// How busy the machine is with whatever else: the load average of the last minute.
pub fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Where a program is: in `PATH`, or where an ordinary user does not look.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    folders.map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn lines_of_proc_are_understood() {
        assert_eq!(parent_in("4711 (a) b (c)) S 17 4711 0"), Some(17));
        assert_eq!(parent_in(""), None);
        let rollup = "5581-7ffe ---p 0 00:00 0 [rollup]\nRss:  99 kB\nPss:      1234 kB\n\
                      Pss_Anon:  7 kB\n";
        assert_eq!(pss_in(rollup), Some(1234));
        assert_eq!(pss_in("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_tree_has_the_children_of_children_and_work_costs_cpu_time() {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "sh -c 'echo; read x'; :"]);
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // The inner shell has said so: it is there.
        io::Read::read(shell.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        assert_eq!(tree(shell.id()).len(), 2);
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(cpu_ns(&[shell.id()]).is_err());

        let own = [std::process::id()];
        let before = cpu_ns(&own).unwrap();
        let begun = std::time::Instant::now();
        while cpu_ns(&own).unwrap() < before + 20_000_000 {
            assert!(begun.elapsed().as_secs() < 60, "no time is counted");
        }
        assert!(memory_kib(&own).unwrap() > 100);
    }

    #[test]
    fn what_is_pinned_stays_on_its_core_and_the_rest_does_not() {
        let before = Cores::all().unwrap();
        let (one, cores) = (vec![before[0]], Cores::split(1).unwrap());
        assert_eq!(pinned(&one, Cores::all).unwrap(), one);
        assert_eq!(Cores::all().unwrap(), before);
        assert_eq!(cores.server, if before.len() == 1 { before.clone() } else { one });
        assert_eq!(cores.are_apart(), before.len() > 1);
        assert!(!Cores::shared(2).unwrap().are_apart());
    }
}

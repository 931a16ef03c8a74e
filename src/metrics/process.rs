//! The process's own numbers, as Linux tells them in `/proc/self` (proc(5)).
//!
//! The names are those every Prometheus client library uses. A number that the system does not tell
//! is missing, not 0. Reads files, so it belongs to the thread that answers scrapes.

use std::fs;

/// One reading.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    pub(super) stat: Option<Stat>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
}

impl Process {
    pub(super) fn read() -> Self {
        let stat = read("/proc/self/stat").as_deref().and_then(parse_stat);
        let resident_bytes = read("/proc/self/status").as_deref().and_then(parse_resident);
        let max_fds = read("/proc/self/limits").as_deref().and_then(parse_max_fds);
        Self { stat, resident_bytes, open_fds: open_fds(), max_fds }
    }
}

/// What `/proc/self/stat` tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Stat {
    pub(super) cpu_seconds: f64,
    pub(super) threads: u64,
    pub(super) virtual_bytes: u64,
    /// From the boot of the machine to the start of the process.
    started_seconds: f64,
}

/// When this process started, in seconds since 1970. It does not change, and `/proc/stat` is long
/// on big machines: to be asked once.
pub(super) fn start_time() -> Option<f64> {
    let started = read("/proc/self/stat").as_deref().and_then(parse_stat)?.started_seconds;
    let booted = read("/proc/stat").as_deref().and_then(parse_boot_time)?;
    Some(booted + started)
}

/// A file of `/proc`, whatever bytes a process name may have put there.
fn read(path: &str) -> Option<String> {
    fs::read(path).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Since Linux 6.2 the size of the directory is the number of descriptors (commit f1f1f2569901, as
/// Go's `prometheus/procfs` uses it). Before, the size is 0 and they are counted, less the one that
/// the counting opens.
fn open_fds() -> Option<u64> {
    let size = fs::metadata("/proc/self/fd").ok()?.len();
    if size > 0 {
        return Some(size);
    }
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    Some((count as u64).saturating_sub(1))
}

/// Fields are numbered as in `proc_pid_stat(5)`. The second is the process's name in parentheses;
/// it may itself hold spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let (user, system) = (field(14)?, field(15)?);
    Some(Stat {
        cpu_seconds: seconds(user + system),
        threads: field(20)?,
        started_seconds: seconds(field(22)?),
        virtual_bytes: field(23)?,
    })
}

/// Field 24 of `stat` has this too, but in pages, whose size only a system call tells.
fn parse_resident(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// The first of the two columns: the soft limit.
fn parse_max_fds(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        limit => limit.parse().ok(),
    }
}

fn parse_boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[expect(clippy::cast_precision_loss, reason = "2^53 ticks are three million years")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_SECOND
}

/// `USER_HZ`, the unit of times in `/proc`, which is not the kernel's own tick: 100 on every
/// architecture that Rust's standard library has Linux for
/// (`include/asm-generic/param.h`; `sysconf(_SC_CLK_TCK)` tells the same).
const TICKS_PER_SECOND: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_name_made_to_confuse() {
        let text = "7 (a) R 1 (b) c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 14597 \
                    3133440 382 18446744073709551615 0 0 0";
        let stat = parse_stat(text).expect("all fields are there");
        assert!((stat.cpu_seconds - 3.0).abs() < 1e-9);
        assert!((stat.started_seconds - 145.97).abs() < 1e-9);
        assert_eq!((stat.threads, stat.virtual_bytes), (3, 3_133_440));
        assert_eq!(parse_stat("7 (short) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn limits_and_status_are_read_by_their_names() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max core file size        0                    unlimited            bytes\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!(parse_max_fds(limits), Some(1024));
        assert_eq!(parse_max_fds("Max open files  unlimited  unlimited  files"), Some(u64::MAX));
        assert_eq!(parse_max_fds("Max core file size  0  0  bytes"), None);
        assert_eq!(parse_resident("VmHWM:\t    9 kB\nVmRSS:\t    2024 kB\n"), Some(2024 * 1024));
        assert_eq!(parse_resident("Name:\tcat\n"), None);
        assert_eq!(parse_boot_time("cpu 1 2\nbtime 1795357920\n"), Some(1_795_357_920.0));
    }
}

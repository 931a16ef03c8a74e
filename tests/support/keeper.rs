//! Keeps one server process, and ends it when the test process ends, even when that is killed.
//!
//! A keeper is a shell that starts the server as its child and obeys words on its stdin: `start`,
//! `wait`, or the name of a signal. It answers each with the word and a status. At the end of its
//! stdin, which comes with the end of the test process, it ends the server and removes the
//! directory. Since the server is the shell's child, no signal can reach another process that has
//! got its number meanwhile.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// A server's directory, and the shell that keeps it.
#[derive(Debug)]
pub struct Keeper {
    directory: PathBuf,
    shell: Child,
    /// One order at a time. `None` once it is to end.
    pipes: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

/// Its arguments are the signal that ends the server, the directory, and the server's command line.
const SCRIPT: &str = r#"
end=$1; dir=$2; shift 2; pid=
while read -r word; do
    case $word in
    start) "$@" </dev/null >>"$dir/log" 2>&1 & pid=$! ;;
    wait) wait "$pid"; pid= ;;
    *) kill -s "$word" "$pid" ;;
    esac
    echo "$word $?"
done
if [ -n "$pid" ]; then
    kill -s CONT "$pid"; kill -s "$end" "$pid"; wait "$pid"
fi
rm -rf "$dir"
"#;

/// An empty directory for a server named `name`, which that server's user may write to.
pub fn directory(name: &str) -> PathBuf {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    // Short: the path of a unix socket has 108 bytes.
    let path = std::env::temp_dir().join(format!("ebb-{name}-{}-{serial}", std::process::id()));
    // What an earlier process of the same number left behind.
    let _removed = std::fs::remove_dir_all(&path);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    path
}

/// The command as an ordinary user.
pub fn as_user(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if is_root() {
        // With a user id, the supplementary groups are dropped too.
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

impl Keeper {
    /// A keeper of the server with this command line, not started yet. `end` is the signal that
    /// ends it at once.
    pub fn new(
        directory: PathBuf,
        end: &str,
        line: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Keeper {
        let mut shell = as_user("sh")
            .args(["-c", SCRIPT, "keeper", end])
            .arg(&directory)
            .args(line)
            // Not to be ended by a Ctrl-C that ends the tests: the end of stdin does it in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pipes = (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
        Keeper { directory, shell, pipes: Mutex::new(Some(pipes)) }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts the server; it need not listen yet.
    pub fn start(&self) {
        assert_eq!(self.order("start"), 0, "the server can be started");
    }

    /// Sends the server a signal (`"QUIT"`).
    pub fn signal(&self, name: &str) {
        assert_eq!(self.order(name), 0, "the server can be sent {name}");
    }

    /// Waits for the server's end; returns its status.
    pub fn wait(&self) -> i32 {
        self.order("wait")
    }

    /// What the server wrote, for messages.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn order(&self, word: &str) -> i32 {
        let mut pipes = self.pipes.lock().unwrap();
        let (stdin, stdout) = pipes.as_mut().expect("it is not at its end");
        writeln!(stdin, "{word}").unwrap();
        let mut answer = String::new();
        stdout.read_line(&mut answer).unwrap();
        let (said, status) = answer.trim().split_once(' ').expect("an answer");
        assert_eq!(said, word);
        status.parse().unwrap()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.pipes.get_mut().map(Option::take));
        let _waited = self.shell.wait();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// The user and the group without rights; initdb wants one that has a name.
const NOBODY: u32 = 65534;

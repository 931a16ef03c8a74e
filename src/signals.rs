//! Signals as a source of events.
//!
//! `signal-hook-mio` writes each signal into a pipe that the control reactor reads: no code of ours
//! runs in signal context. Nothing is installed until [`setup_signal_handlers`] is called; the
//! library never does so by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, io};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::flag::register_conditional_default;
use signal_hook_mio::v1_0::Signals as Pipe;

/// The signals of this process, from now on.
pub struct Signals {
    pipe: Pipe,
    /// Set when nobody reads the pipe any more: then the signals do what they do by default.
    is_over: Arc<AtomicBool>,
    /// Whether the pipe may hold something.
    is_announced: bool,
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signals")
    }
}

/// One signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caught {
    Terminate,
    Interrupt,
    HangUp,
    Quit,
    /// SIGUSR1: a snapshot is wanted.
    User1,
}

/// Catches SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGUSR1 for this process.
///
/// Call it early: until then the kernel's default holds, which ends the process, or, for PID 1 of a
/// container, ignores the signal (`pid_namespaces(7)`). Once the server that was given them has
/// stopped, or they are dropped, the first four end the process as they do by default.
///
/// # Errors
/// When the pipe or a handler cannot be installed.
pub fn setup_signal_handlers() -> io::Result<Signals> {
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
        register_conditional_default(signal, Arc::clone(&is_over))?;
    }
    let pipe = Pipe::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1])?;
    // Some may have come before anyone watches the pipe.
    Ok(Signals { pipe, is_over, is_announced: true })
}

impl Signals {
    /// The pipe is readable: the next call of [`pending`](Signals::pending) looks into it.
    pub(crate) fn announce(&mut self) {
        self.is_announced = true;
    }

    /// What has come since the last call, in no particular order; the same signal counts once.
    /// Costs a system call only when the pipe was announced: where control serves as well, it is
    /// asked for each turn of a handful of requests.
    pub(crate) fn announced(&mut self) -> Vec<Caught> {
        if std::mem::take(&mut self.is_announced) { self.pending() } else { Vec::new() }
    }

    /// What has come since the last call, in no particular order; the same signal counts once.
    pub fn pending(&mut self) -> Vec<Caught> {
        self.pipe
            .pending()
            .filter_map(|number| match number {
                SIGTERM => Some(Caught::Terminate),
                SIGINT => Some(Caught::Interrupt),
                SIGHUP => Some(Caught::HangUp),
                SIGQUIT => Some(Caught::Quit),
                SIGUSR1 => Some(Caught::User1),
                _ => None,
            })
            .collect()
    }

    pub(crate) fn source(&mut self) -> &mut Pipe {
        &mut self.pipe
    }
}

//! How listeners came to be, and what follows from that: a group on one port, a file.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::listener::Farewell;

/// How a listener came to be, which decides how it leaves.
#[derive(Debug)]
pub enum Origin {
    /// A TCP socket that no other process has, on a port of its own.
    Alone,
    /// One of a group of TCP sockets on a port that a successor may bind as well.
    Shared(Arc<Group>),
    /// A unix socket that was bound to this file.
    File(SocketFile),
    /// Passed on by a process that keeps it.
    Inherited,
}

/// The sockets of one server on one port that it may share with others, as the kernel numbers them:
/// in the order in which they began to listen, so an older server's are below ours and a younger
/// one's above. When one is closed the last takes its number.
#[derive(Debug)]
pub struct Group {
    sockets: u32,
    steering: Mutex<Steering>,
}

#[derive(Debug)]
struct Steering {
    /// Whether our sockets have the lowest numbers. Connections are steered to a successor, never
    /// to an older server: its numbers are not known.
    is_eldest: bool,
    /// How many of our sockets are not about to be closed.
    staying: u32,
}

impl Group {
    /// A group of `sockets`, of which it is not known yet whether there are older ones.
    pub fn of(sockets: usize) -> Arc<Group> {
        let sockets = u32::try_from(sockets).unwrap_or(u32::MAX);
        let steering = Mutex::new(Steering { is_eldest: false, staying: sockets });
        Arc::new(Group { sockets, steering })
    }

    fn steering(&self) -> MutexGuard<'_, Steering> {
        self.steering.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lead(&self, socket: &mio::net::TcpListener) {
        // Once: a worker that hears of it late must not undo what another has done since.
        if !std::mem::replace(&mut self.steering().is_eldest, true) {
            // Fails when there is nothing to take back.
            let _nothing_there = crate::os::unsteer(socket);
        }
    }

    fn steer(&self, socket: &mio::net::TcpListener, steering: &Steering) -> Farewell {
        if !steering.is_eldest {
            return Farewell::EmptyQueue;
        }
        // With each socket that we close one of the successor's changes its number: those from
        // `sockets` on, as many as we still have, are the ones that are his until we are gone. At
        // least, if he has no fewer than we.
        match crate::os::steer_to_successor(socket, self.sockets, steering.staying.max(1)) {
            Ok(()) => Farewell::Steered,
            Err(error) => {
                log::warn!(
                    event_type = "steering_failed";
                    "cannot steer new connections to a successor: {error}"
                );
                Farewell::EmptyQueue
            }
        }
    }

    /// One of its sockets is on its way out.
    pub(super) fn retire(&self, socket: &mio::net::TcpListener) -> Farewell {
        self.steer(socket, &self.steering())
    }

    /// One of its sockets is about to be closed.
    pub(super) fn leave(&self, socket: &mio::net::TcpListener) {
        let mut steering = self.steering();
        steering.staying = steering.staying.saturating_sub(1);
        // If it failed, that was said when the way out began.
        let _said_before = self.steer(socket, &steering);
    }
}

/// The file of a unix socket, removed when it is dropped, and never another's: one that has taken
/// its place by then stays.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode. The kernel does not use an inode again while a socket is bound to it.
    /// `None` once it is removed.
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    /// The file at `path`, to which a socket has just been bound.
    ///
    /// # Errors
    /// Those of `lstat(2)`.
    pub fn bound(path: PathBuf) -> io::Result<SocketFile> {
        let identity = Some(identity(&path)?);
        Ok(SocketFile { path, identity })
    }

    /// Removes it, once: the next socket there may have the same inode.
    pub(super) fn remove(&mut self) {
        if let Some(ours) = self.identity.take()
            && identity(&self.path).is_ok_and(|there| there == ours)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            let path = self.path.display();
            log::warn!(event_type = "socket_not_removed", path:% = path; "cannot remove: {error}");
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

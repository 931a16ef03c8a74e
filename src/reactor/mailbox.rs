//! The only way into a reactor from another thread.
//!
//! A [`Remote`] is a reactor's bell and its list of woken keys; a [`Mailbox`] adds a queue of
//! messages of the owner's choice. Both push first and ring afterwards: the order that
//! `Doorbell` asks for.

use std::io;
use std::sync::Arc;
use std::task::{Wake, Waker};

use crossbeam_queue::SegQueue;

use super::doorbell::Doorbell;
use super::turn::Key;
use crate::wakes;

/// What other threads may do to a reactor: wake one of its tasks, or just wake it.
#[derive(Debug)]
pub struct Remote {
    bell: Doorbell,
    waker: mio::Waker,
    /// Keys woken by other threads and not yet taken by the reactor. May hold a key twice.
    woken: SegQueue<Key>,
}

impl Remote {
    pub(super) fn new(waker: mio::Waker) -> Remote {
        Remote { bell: Doorbell::new(), waker, woken: SegQueue::new() }
    }

    /// Has the task behind `key` run in the reactor's next turn.
    pub fn wake_task(&self, key: Key) {
        self.woken.push(key);
        self.ring();
    }

    /// As [`wake_task`](Remote::wake_task), at the end of the calling thread's batch.
    pub fn wake_task_late(self: &Arc<Self>, key: Key) {
        self.woken.push(key);
        wakes::late(Waker::from(Arc::clone(self)));
    }

    /// Makes the reactor take a turn soon. Call it after the reason for the turn is visible.
    pub fn ring(&self) {
        if self.bell.ring()
            && let Err(error) = self.waker.wake()
        {
            // An eventfd that exists takes a write of 8 bytes; mio itself handles a full counter.
            log::error!(event_type = "reactor_wake_failed"; "cannot wake a reactor: {error}");
        }
    }

    pub(super) fn bell(&self) -> &Doorbell {
        &self.bell
    }

    /// Takes one key that another thread woke. For the reactor's own thread.
    pub fn take_woken(&self) -> Option<Key> {
        self.woken.pop()
    }

    pub(super) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }
}

impl Wake for Remote {
    fn wake(self: Arc<Remote>) {
        self.ring();
    }
}

/// A queue of messages whose arrival wakes the reactor that reads it.
#[derive(Debug)]
pub struct Mailbox<M> {
    remote: Arc<Remote>,
    queue: Arc<SegQueue<M>>,
}

impl<M> Mailbox<M> {
    /// A mailbox whose messages wake the reactor behind `remote`.
    pub fn new(remote: Arc<Remote>) -> Mailbox<M> {
        Mailbox { remote, queue: Arc::new(SegQueue::new()) }
    }

    /// Posts a message. Never blocks; the queue grows as needed.
    pub fn post(&self, message: M) {
        self.queue.push(message);
        self.remote.ring();
    }

    /// Takes the oldest message. For the reactor's own thread.
    pub fn take(&self) -> Option<M> {
        self.queue.pop()
    }

    /// Whether no message waits. For the reactor's own thread.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl<M> Clone for Mailbox<M> {
    fn clone(&self) -> Mailbox<M> {
        Mailbox { remote: Arc::clone(&self.remote), queue: Arc::clone(&self.queue) }
    }
}

/// Builds the remote of the reactor that owns `registry`.
pub(super) fn remote(registry: &mio::Registry, token: mio::Token) -> io::Result<Arc<Remote>> {
    Ok(Arc::new(Remote::new(mio::Waker::new(registry, token)?)))
}

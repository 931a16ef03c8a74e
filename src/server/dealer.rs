//! Deals connections to the workers: those that come to a queue which all of them share.
//!
//! A unix socket has one queue, and so has an inherited socket. Workers that shared it would all be
//! woken by each connection, and which of them gets it would be decided by who is quickest, which
//! is who has least to do only now and then. So control accepts, and each worker in turn gets one
//! as mail.
//!
//! Invariants: a connection has its [`Seat`] from the moment it is accepted; it is in the books
//! from the moment its worker opens it. No connection comes after [`Command::DealingDone`], which
//! each worker waits for before it says that it is quiet.

use std::sync::Arc;
use std::time::Instant;

use super::endpoint::{Command, Source};
use super::entrance::{Capacity, Entrance, Seat};
use super::error::StartError;
use super::listener::Bound;
use super::worker::WorkerMail;
use crate::reactor::mailbox::Mailbox;
use crate::reactor::slots::Token;
use crate::reactor::socket::{Peer, Stream};
use crate::reactor::turn::{Key, Registrar};

/// See the module's essay.
#[derive(Debug)]
pub struct Dealer {
    entrance: Entrance,
    capacity: Arc<Capacity>,
    /// `None` in the place of a worker that is lost.
    workers: Vec<Option<Mailbox<WorkerMail>>>,
    /// Whose turn it is.
    next: usize,
    /// Whether the workers were told that nothing more comes.
    has_said_done: bool,
    /// Of the turn.
    now: Instant,
}

impl Dealer {
    /// Begins to listen. Last of all, when the workers are there.
    ///
    /// # Errors
    /// [`StartError::Listen`].
    pub fn listen(
        bound: Vec<Bound>,
        workers: impl IntoIterator<Item = Mailbox<WorkerMail>>,
        capacity: Arc<Capacity>,
        registrar: &Registrar,
        now: Instant,
    ) -> Result<Dealer, StartError> {
        let mut entrance = Entrance::default();
        for bound in bound {
            let token = Token::from_bits(entrance.len() as u64);
            entrance.add(bound.listen(registrar, Key::new(DEALER_SPACE, token))?);
        }
        let workers = workers.into_iter().map(Some).collect();
        Ok(Dealer { entrance, capacity, workers, next: 0, has_said_done: false, now })
    }

    /// Readiness came for `key`, which may be of another space.
    pub fn ready(&mut self, key: Key) {
        if key.space() == DEALER_SPACE {
            self.entrance.ready(key.token().index());
        }
    }

    pub fn is_busy(&self) -> bool {
        self.entrance.is_busy(self.now)
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.entrance.deadline()
    }

    pub fn work(&mut self, now: Instant) {
        self.now = now;
        let Dealer { entrance, capacity, workers, next, .. } = self;
        entrance.accept(now, capacity, |stream, peer, seat| {
            if !deal(workers, next, (stream, peer, seat)) {
                capacity.give_back();
            }
        });
        self.say_done();
    }

    /// Does its part of what control tells the workers.
    pub fn obey(&mut self, command: Command, now: Instant) {
        match command {
            Command::Drain(_) => self.entrance.retire(now),
            Command::Cancel => self.entrance.hurry(now),
            Command::Cut => self.entrance.cut(),
            Command::Announce
            | Command::Resume
            | Command::Refuse
            | Command::Lead
            | Command::DealingDone(_)
            | Command::Consolidate
            | Command::Leave => {}
        }
        self.say_done();
    }

    /// A worker's thread has ended by a fault of ours: the others get what it has not opened.
    pub fn lose(&mut self, worker: usize) {
        let Some(mailbox) = self.workers.get_mut(worker).and_then(Option::take) else { return };
        while let Some(mail) = mailbox.take() {
            if let WorkerMail::Connection(stream, peer, seat) = mail
                && !deal(&self.workers, &mut self.next, (stream, peer, seat))
            {
                self.capacity.give_back();
            }
        }
    }

    fn say_done(&mut self) {
        if self.entrance.is_closed() && !self.has_said_done {
            self.has_said_done = true;
            for mailbox in self.workers.iter().flatten() {
                mailbox.post(WorkerMail::Order(Command::DealingDone(Source::Control)));
            }
        }
    }
}

/// Gives a connection to the next worker that is not lost. Closes it, and says so, when all are.
fn deal(
    workers: &[Option<Mailbox<WorkerMail>>],
    next: &mut usize,
    (stream, peer, seat): (Stream, Peer, Seat),
) -> bool {
    let (before, from) = workers.split_at(*next);
    let mut in_turn = (*next..).zip(from).chain((0..).zip(before));
    let chosen = in_turn.find_map(|(index, mailbox)| Some((index, mailbox.as_ref()?)));
    let Some((index, mailbox)) = chosen else { return false };
    *next = (index + 1) % workers.len();
    mailbox.post(WorkerMail::Connection(stream, peer, seat));
    true
}

/// The key space of its listeners.
const DEALER_SPACE: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::turn::Reactor;

    /// A dealer without listeners, and what its workers would read.
    fn dealer(workers: usize) -> (Dealer, Vec<Mailbox<WorkerMail>>) {
        let reactor = Reactor::new().expect("a descriptor or two");
        let mailbox = |_| Mailbox::new(Arc::clone(reactor.remote()));
        let mailboxes: Vec<_> = (0..workers).map(mailbox).collect();
        let dealer = Dealer {
            entrance: Entrance::default(),
            capacity: Capacity::new(100),
            workers: mailboxes.iter().cloned().map(Some).collect(),
            next: 0,
            has_said_done: false,
            now: reactor.now(),
        };
        (dealer, mailboxes)
    }

    fn deal_one(dealer: &mut Dealer) -> bool {
        let (ours, _theirs) = Stream::pair().expect("two descriptors");
        let connection = (ours, Peer::LOCAL, Seat::Granted);
        deal(&dealer.workers, &mut dealer.next, connection)
    }

    /// How many connections each mailbox has, and whether its last mail says that it was all.
    fn taken(mailboxes: &[Mailbox<WorkerMail>]) -> Vec<(usize, bool)> {
        let take = |mailbox: &Mailbox<WorkerMail>| {
            let mail: Vec<WorkerMail> = std::iter::from_fn(|| mailbox.take()).collect();
            let is_connection = |mail: &&WorkerMail| matches!(mail, WorkerMail::Connection(..));
            let is_done = matches!(mail.last(), Some(WorkerMail::Order(Command::DealingDone(_))));
            (mail.iter().filter(is_connection).count(), is_done)
        };
        mailboxes.iter().map(take).collect()
    }

    #[test]
    fn each_gets_one_in_turn_and_hears_when_it_was_the_last() {
        let (mut dealer, mailboxes) = dealer(3);
        assert!((0..7).all(|_| deal_one(&mut dealer)));
        let now = dealer.now;
        dealer.obey(Command::Cut, now);
        dealer.obey(Command::Cut, now);
        assert_eq!(taken(&mailboxes), [(3, true), (2, true), (2, true)]);
    }

    #[test]
    fn what_a_lost_worker_has_not_opened_goes_to_the_others() {
        let (mut dealer, mailboxes) = dealer(3);
        assert!((0..6).all(|_| deal_one(&mut dealer)));
        dealer.lose(1);
        assert!((0..2).all(|_| deal_one(&mut dealer)));
        assert_eq!(taken(&mailboxes), [(4, false), (0, false), (4, false)]);
        dealer.lose(0);
        dealer.lose(2);
        assert!(!deal_one(&mut dealer), "nobody is left");
    }
}

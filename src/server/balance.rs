//! Evens out the connections of workers that listen side by side.
//!
//! The kernel deals connections to the sockets of a port by a hash: with few of them, or few
//! clients, one worker may get twice what another gets. So a worker that would have more than its
//! share gives a fresh connection, of which its epoll knows nothing yet, to the worker with the
//! fewest.
//!
//! Invariants: a connection counts for the worker it goes to from the moment that is decided, so
//! that a burst does not all go the same way; nothing is given away any more once a worker has said
//! [`Command::DealingDone`](super::endpoint::Command::DealingDone) to the others.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::entrance::Seat;
use crate::reactor::socket::Peer;

/// How many connections each worker has, those included that are on their way to it.
#[derive(Debug)]
pub struct Shares(Box<[AtomicUsize]>);

impl Shares {
    pub fn new(workers: usize) -> Arc<Shares> {
        Arc::new(Shares((0..workers).map(|_| AtomicUsize::new(0)).collect()))
    }

    pub fn workers(&self) -> usize {
        self.0.len()
    }

    /// A worker's thread has ended by a fault of ours: it is given nothing.
    pub fn lose(&self, worker: usize) {
        self.0[worker].store(LOST, Ordering::Relaxed);
    }

    fn add(&self, worker: usize) {
        self.0[worker].fetch_add(1, Ordering::Relaxed);
    }

    fn remove(&self, worker: usize) {
        self.0[worker].fetch_sub(1, Ordering::Relaxed);
    }

    fn place(&self, own: usize) -> usize {
        place(own, self.0.iter().map(|open| open.load(Ordering::Relaxed)))
    }
}

/// Far more than any worker has, and far from an overflow.
const LOST: usize = usize::MAX / 2;

/// Which worker takes a fresh connection that has come to worker `own`, by how many each has.
fn place(own: usize, open: impl Iterator<Item = usize> + Clone) -> usize {
    let with_it = open.clone().nth(own).unwrap_or(0) + 1;
    let Some((fewest, other)) = open.zip(0..).min() else { return own };
    let is_more = with_it > fewest.saturating_mul(SHARE_PERCENT_MAX) / 100;
    if is_more && with_it >= fewest.saturating_add(DIFFERENCE_MIN) { other } else { own }
}

/// A worker keeps what comes while it has at most so much of the smallest share.
const SHARE_PERCENT_MAX: usize = 130;

/// And while it has fewer than so many more: it costs a wake to give a connection away, and no
/// worker is crowded by these.
const DIFFERENCE_MIN: usize = 4;

/// An accepted connection that no epoll knows of yet.
pub type Fresh<S> = (S, Peer, Seat);

/// Hands a connection to the worker of that number.
pub type Give<S> = Box<dyn Fn(usize, Fresh<S>)>;

/// One worker's side of it.
pub struct Balance<S> {
    own: usize,
    shares: Arc<Shares>,
    /// `None` before the others are known, and once the drain has begun.
    give: Option<Give<S>>,
}

impl<S> Balance<S> {
    pub fn new(own: usize, shares: Arc<Shares>) -> Balance<S> {
        Balance { own, shares, give: None }
    }

    /// The others are there.
    pub fn begin(&mut self, give: Give<S>) {
        self.give = Some(give);
    }

    /// Nothing is given away any more.
    pub fn end(&mut self) {
        self.give = None;
    }

    /// Gives a fresh connection away, or back: then it counts as one of this worker's.
    pub fn keep(&self, fresh: Fresh<S>) -> Option<Fresh<S>> {
        let to = if self.give.is_some() { self.shares.place(self.own) } else { self.own };
        self.shares.add(to);
        match &self.give {
            Some(give) if to != self.own => {
                give(to, fresh);
                None
            }
            _ => Some(fresh),
        }
    }

    /// One came that nobody has counted.
    pub fn opened(&self) {
        self.shares.add(self.own);
    }

    /// One of this worker's is gone.
    pub fn closed(&self) {
        self.shares.remove(self.own);
    }
}

impl<S> fmt::Debug for Balance<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balance").field("shares", &self.shares).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(own: usize, open: &[usize]) -> usize {
        place(own, open.iter().copied())
    }

    #[test]
    fn an_even_share_is_kept_and_more_goes_to_who_has_the_fewest() {
        assert_eq!(placed(0, &[0, 0]), 0);
        assert_eq!(placed(1, &[3, 3]), 1);
        assert_eq!(placed(0, &[129, 100]), 0, "130 are 1.3 times 100");
        assert_eq!(placed(0, &[130, 100]), 1);
        assert_eq!(placed(1, &[100, 130, 99]), 2);
        assert_eq!(placed(0, &[2, 130, 100]), 0, "who has few keeps what comes");
    }

    #[test]
    fn small_differences_are_not_worth_a_wake() {
        assert_eq!(placed(0, &[2, 0]), 0);
        assert_eq!(placed(0, &[3, 0]), 1);
        assert_eq!(placed(0, &[12, 10]), 0);
    }

    #[test]
    fn a_lost_worker_gets_nothing() {
        assert_eq!(placed(0, &[500, LOST]), 0);
        assert_eq!(placed(0, &[500, LOST, 100]), 2);
    }

    #[test]
    fn however_the_kernel_deals_no_share_is_more_than_1_3_times_another() {
        for workers in 2..6 {
            for skew in 0..workers {
                let mut open = vec![0; workers];
                for nth in 0..1000 {
                    // Three of four come to the same worker.
                    let own = if nth % 4 == 0 { nth % workers } else { skew };
                    let to = placed(own, &open);
                    open[to] += 1;
                }
                let (least, most) = (open.iter().min(), open.iter().max());
                let (least, most) = (least.expect("workers"), most.expect("workers"));
                assert!(most * 100 <= least * 130, "{open:?}");
            }
        }
    }

    #[test]
    fn a_connection_counts_where_it_goes_from_the_moment_it_is_given() {
        let shares = Shares::new(2);
        let mut balance: Balance<()> = Balance::new(0, Arc::clone(&shares));
        let fresh = || ((), Peer::LOCAL, Seat::Granted);
        let kept = |balance: &Balance<()>, of: usize| {
            (0..of).filter(|_| balance.keep(fresh()).is_some()).count()
        };
        assert_eq!(kept(&balance, 40), 40, "nobody else is known yet");
        balance.begin(Box::new(|to, _| assert_eq!(to, 1)));
        assert_eq!(kept(&balance, 32), 0);
        assert_eq!(kept(&balance, 1), 1, "41 are 1.3 times 32, less a fraction");
        balance.end();
        assert_eq!(kept(&balance, 40), 40, "the drain has begun");
        for _ in 0..81 {
            balance.closed();
        }
        balance.opened();
        assert_eq!(shares.0[0].load(Ordering::Relaxed), 1);
        assert_eq!(shares.0[1].load(Ordering::Relaxed), 32);
    }
}

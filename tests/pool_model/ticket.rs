//! A ticket against the few words that say what it is.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ebbtide::DatabaseError;
use ebbtide::internal::pool::ticket::{Cell, Desk, Entry, Facts, Stage};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::Count;

#[derive(Clone, Copy, Debug)]
enum TicketStep {
    Take,
    Settle(u8),
    Fail,
    Poll,
    Drop,
}

fn ticket_step() -> impl Strategy<Value = TicketStep> {
    prop_oneof![
        Just(TicketStep::Take),
        any::<u8>().prop_map(TicketStep::Settle),
        Just(TicketStep::Fail),
        Just(TicketStep::Poll),
        Just(TicketStep::Drop),
    ]
}

#[derive(Default)]
struct Told(Mutex<Vec<Stage>>);

impl Desk for Told {
    fn abandoned(&self, was: Stage, _: &Facts) {
        self.0.lock().unwrap().push(was);
    }
}

fn ticket_agrees(steps: &[TicketStep]) {
    let (told, waker) = (Arc::new(Told::default()), Arc::new(Count::default()));
    let now = Instant::now();
    let cell: Arc<Cell<u8>> = Cell::new(Cow::Borrowed("job"), now, now);
    let mut ticket = Some(cell.ticket(Arc::clone(&told) as Arc<dyn Desk>));
    let mut stage = Stage::Queued;
    let mut result: Option<Result<u8, DatabaseError>> = None;
    let (mut waits, mut woken, mut abandoned) = (false, 0, Vec::new());
    for step in steps {
        match *step {
            TicketStep::Take => {
                assert_eq!(cell.take(3), stage == Stage::Queued);
                if stage == Stage::Queued {
                    stage = Stage::Running;
                }
            }
            TicketStep::Settle(_) | TicketStep::Fail => {
                let given = match *step {
                    TicketStep::Settle(value) => Ok(value),
                    _ => Err(DatabaseError::Timeout),
                };
                let is_first = matches!(stage, Stage::Queued | Stage::Running);
                assert_eq!(cell.settle(given.clone()), is_first, "the first result stays");
                if is_first {
                    stage = Stage::Done;
                    result = Some(given);
                    woken += usize::from(std::mem::take(&mut waits));
                }
            }
            TicketStep::Poll => {
                let Some(open) = &mut ticket else { continue };
                let waker = Waker::from(Arc::clone(&waker));
                let polled = Pin::new(open).poll(&mut Context::from_waker(&waker));
                if let Some(expected) = result.take() {
                    assert_eq!(polled, Poll::Ready(expected));
                    // It is ready once.
                    ticket = None;
                } else {
                    assert_eq!(polled, Poll::Pending);
                    waits = true;
                }
            }
            TicketStep::Drop => {
                if ticket.take().is_some() && stage != Stage::Done {
                    abandoned.push(stage);
                    stage = Stage::Abandoned;
                    waits = false;
                }
            }
        }
        assert_eq!(cell.stage(), stage);
        assert_eq!(waker.get(), woken, "who waits is woken once, by the result");
        assert_eq!(*told.0.lock().unwrap(), abandoned);
    }
}

proptest! {
    #[test]
    fn a_ticket_has_one_result_and_one_end(steps in vec(ticket_step(), 1..12)) {
        ticket_agrees(&steps);
    }
}

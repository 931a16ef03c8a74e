//! Handlers that block their worker, which they must not do, with what they wait for.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use ebbtide::{Request, Router, Sqlite, SqliteAddress, SqliteOptions, get};

use super::support::{SLACK, Served, now, options};

/// Blocks the worker, which a handler must not do, with what executors do for programs that are not
/// asynchronous.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Unpark>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        match polled {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn a_handler_that_blocks_on_its_database_holds_up_nobody_but_its_worker() {
    let address = SqliteAddress::parse("sqlite::memory:").unwrap();
    let database = Sqlite::start(&address, &SqliteOptions::default()).unwrap();
    let asking = database.clone();
    let ask = move |_: Request| {
        let rows = block_on(asking.records("SELECT 6 * 7", vec![])).unwrap();
        format!("{:?}", rows[0].first())
    };
    let served = Served::with(options(), Router::new().route("/ask", get(ask)));
    let began = now();
    assert_eq!(served.client().get("/ask").status, 200);
    assert!(now() - began < SLACK, "the job began while its handler blocked");
    served.stop();
}

/// The wake of the job's thread is held until the handler is done, which waits for the job.
#[test]
fn a_handler_that_blocks_on_its_database_by_way_of_a_thread_hears_in_time_that_it_can_not() {
    let address = SqliteAddress::parse("sqlite::memory:").unwrap();
    let database = Sqlite::start(&address, &SqliteOptions::default()).unwrap();
    let asking = database.clone();
    let ask = move |_: Request| {
        let ticket = asking.records("SELECT 6 * 7", vec![]);
        let waiting = thread::spawn(move || ticket.wait());
        format!("{:?}", waiting.join().unwrap().err())
    };
    let served = Served::with(options(), Router::new().route("/ask", get(ask)));
    let began = now();
    served.client().get("/ask").expect(200, "Some(Busy)");
    assert!(now() - began < 2 * SqliteOptions::default().queue_timeout + SLACK);
    served.stop();
}

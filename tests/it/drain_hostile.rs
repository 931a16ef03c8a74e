//! The drain and clients that mean no good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ebbtide::{Options, Phase, Policy, Workers};

use super::client::{Client, request};
use super::support::{Gate, SLACK, Served, app, ms, now, options, pace, spawn, wait_until};

#[test]
fn a_client_that_goes_on_sending_after_our_fin_holds_nobody_up() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send(request("/wait"));
    gate.until_arrived(1);
    served.begin_shutdown();
    served.until_phase(Phase::Draining);
    gate.open();
    assert!(client.read_response().announces_close());
    client.expect_end();
    let began = now();
    let handle = served.handle.clone();
    // Half a request now and then, for as long as the server takes it.
    while handle.finished_within(ms(100)).is_none() {
        let _refused_in_the_end = client.try_send(&request("/hello")[..10]);
        assert!(now() - began < ms(2000) + SLACK, "2 s for its FIN are enough");
    }
    let report = served.report();
    assert_eq!((report.exit_status, report.counts.begun), (0, 1));
    assert!(report.counts.late_bytes > 100, "{report:?}");
}

/// Keeps connecting until told to stop, and counts what it sees.
struct Reopening {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Reopening {
    /// Opens connections in a loop: silent ones, ones with half a head, ones that are reset.
    fn start(served: &Served) -> Reopening {
        let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (told, count, address) = (Arc::clone(&stop), Arc::clone(&opened), served.address());
        let thread = spawn("reopening", move || {
            let mut open = std::collections::VecDeque::new();
            while !told.load(Ordering::Relaxed) {
                let Ok(mut client) = Client::try_connect(address) else {
                    pace(ms(1));
                    continue;
                };
                let count = count.fetch_add(1, Ordering::Relaxed);
                if count % 3 == 1 {
                    // The server may have gone in between.
                    let _late = client.try_send("GET /hello HTTP/1.1\r\nHo");
                }
                open.push_back(client);
                if open.len() > 50 {
                    let oldest = open.pop_front().expect("many");
                    if count % 2 == 0 {
                        oldest.reset();
                    }
                }
            }
        });
        Reopening { stop, opened, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no panic");
        self.opened.load(Ordering::Relaxed)
    }
}

#[test]
fn clients_that_mean_no_good_hold_nobody_up() {
    for workers in [2, 0] {
        let gate = Gate::default();
        let shutdown = Policy { timeout: ms(3000), idle_window: ms(300), ..Policy::default() };
        let workers = Workers::Count(workers);
        let served = Served::with(Options { shutdown, workers, ..options() }, app(&gate));
        // Never finishes its head; never reads; reads nothing of an endless row of requests.
        let mut unfinished: Vec<Client> = (0..10).map(|_| served.client()).collect();
        for client in &mut unfinished {
            client.send("GET /hello HTTP/1.1\r\nX-Slow: ");
        }
        let mut deaf: Vec<Client> =
            (0..5).map(|_| Client::with_small_window(served.address())).collect();
        for client in &mut deaf {
            client.send(request("/bytes/20000000"));
        }
        let mut waiting: Vec<Client> = (0..20).map(|_| served.client()).collect();
        for client in &mut waiting {
            client.send(request("/wait"));
        }
        gate.until_arrived(20);
        let reopening = Reopening::start(&served);
        wait_until("they are many", || reopening.opened.load(Ordering::Relaxed) > 200);
        let began = now();
        served.begin_shutdown();
        for client in &mut unfinished {
            // One more byte now and then is not progress.
            client.send("a");
        }
        gate.open();
        for client in &mut waiting {
            assert!(client.read_response().expect(200, "waited").announces_close());
        }
        let answered = now() - began;
        assert!(answered < ms(300) + SLACK, "others were answered only after {answered:?}");
        drop(waiting);
        let report = served.report();
        let took = now() - began;
        assert!(took < ms(3000) + SLACK, "it took {took:?}");
        reopening.stop();
        // What nobody reads is cut, what never was a request is none.
        assert_eq!((report.exit_status, report.cut, report.refused), (3, 5, 0), "{report:?}");
        drop((unfinished, deaf));
    }
}

#[test]
fn a_storm_of_connections_does_not_hold_a_shutdown_that_has_nothing_else() {
    let policy = Policy {
        timeout: ms(20_000),
        first_byte_grace: ms(100),
        idle_window: ms(100),
        ..Policy::default()
    };
    let limits = ebbtide::Limits { head_timeout: ms(500), ..ebbtide::Limits::default() };
    let served =
        Served::with(Options { shutdown: policy, limits, ..options() }, app(&Gate::default()));
    let reopening = Reopening::start(&served);
    wait_until("they are many", || reopening.opened.load(Ordering::Relaxed) > 200);
    let began = now();
    served.begin_shutdown();
    let report = served.report();
    let took = now() - began;
    // The sweep of the queue, a head's time, and its lingering close.
    assert!(took < ms(250 + 500 + 2000) + SLACK, "it took {took:?}");
    assert_eq!(report.exit_status, 0);
    reopening.stop();
}

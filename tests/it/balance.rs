//! Workers that listen side by side have about as many connections each, however the kernel deals.

use ebbtide::{ConnectionOutcome, Options, Workers};

use super::client::Client;
use super::support::{Gate, Served, app, options, wait_until};

/// How many connections each worker has open, as the admin listener tells.
fn shares(admin: &mut Client) -> Vec<u64> {
    let text = String::from_utf8(admin.get("/readyz?verbose").body).unwrap();
    let workers = text.lines().filter_map(|line| line.strip_prefix("[+] worker "));
    workers.map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect()
}

fn two_workers() -> Served {
    let options = Options { workers: Workers::Count(2), ..options() };
    Served::with(options, app(&Gate::default()))
}

/// Each is served, so that its worker has it in its books.
fn crowd(served: &Served, count: usize) -> Vec<Client> {
    let connect = |_| {
        let mut client = served.client();
        assert_eq!(client.get("/hello").status, 200);
        client
    };
    (0..count).map(connect).collect()
}

#[test]
fn no_worker_has_more_than_1_3_times_the_connections_of_another() {
    let served = two_workers();
    let mut admin = served.admin_client();
    // By its hash alone the kernel deals 40 connections worse than that in one of three rounds.
    for round in 0..30 {
        let clients = crowd(&served, 40);
        let shares = shares(&mut admin);
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        assert!(most * 100 <= least * 130, "round {round}: {shares:?}");
        drop(clients);
        wait_until("all are closed", || served.counts().open() == 0);
    }
    served.stop();
}

#[test]
fn connections_given_to_another_worker_are_drained_and_accounted_for() {
    for _ in 0..10 {
        let served = two_workers();
        let mut clients = crowd(&served, 40);
        served.begin_shutdown();
        for client in &mut clients {
            // Idle when the drain began: one more request is answered.
            assert_eq!(client.get("/hello").status, 200);
        }
        drop(clients);
        let report = served.report();
        assert_eq!(report.exit_status(), 0, "{report:?}");
        let closed = report.counts.closed_as(ConnectionOutcome::ClosedAfterResponse);
        assert_eq!((report.counts.open(), closed), (0, 40), "{report:?}");
    }
}

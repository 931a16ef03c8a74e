//! Servers that stall, drip and flood: the load generator outlives them and names what it saw.

mod bad;

use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use bad::Peer;
use loadtest::client::Event;
use loadtest::ebbtide::Ebbtide;
use loadtest::kind::Kind;
use loadtest::load::{Load, Running};
use loadtest::outcome::{End, Outcome, Tally};
use loadtest::schedule::Plan;
use loadtest::target::Target;

const PATIENCE: Duration = Duration::from_secs(1);

fn load(to: SocketAddr, kind: Kind, rate: f64) -> Running {
    let routes = Ebbtide { binary: "unused".into() }.routes();
    let plan = Plan::only(kind, rate, 5);
    Load { to, routes, plan, threads: 2, patience: PATIENCE }.start(Instant::now()).unwrap()
}

fn serve(serve: fn(&mut Peer)) -> SocketAddr {
    bad::start(TcpListener::bind("127.0.0.1:0").unwrap(), serve)
}

/// The next end of a request, and the garbage before it.
fn next(running: &Running) -> (End, Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut garbage = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match running.events().recv_timeout(left).expect("requests come to an end") {
            Event::Ended(end) => return (end, garbage),
            Event::Garbage(what) => garbage.push(what),
            Event::Failed(what) => panic!("{what}"),
            Event::Connected { .. } => {}
        }
    }
}

/// Ends the load and counts what it still tells; it does so in little more than its patience.
fn finish(running: Running) -> Tally {
    let begun = Instant::now();
    let mut tally = Tally::default();
    for event in running.finish() {
        if let Event::Ended(end) = event {
            tally.add(end.outcome);
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    tally
}

/// Lets a moment go by: these servers are slow.
fn pause(milliseconds: u64) {
    std::thread::park_timeout(Duration::from_millis(milliseconds));
}

fn drip(peer: &mut Peer, text: &str, milliseconds: u64) {
    for byte in text.bytes() {
        peer.send([byte]);
        pause(milliseconds);
    }
}

#[test]
fn a_stall_in_the_middle_of_an_answer_is_a_timeout_that_says_how_far_it_came() {
    let running = load(
        serve(|peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello");
            peer.request();
        }),
        Kind::Get,
        20.0,
    );
    let (end, _) = next(&running);
    assert_eq!((end.outcome, &*end.detail), (Outcome::Timeout, "with 5 bytes of its body"));
    finish(running);
}

#[test]
fn a_server_that_never_reads_an_upload_is_a_timeout() {
    let running = load(serve(|_| pause(600_000)), Kind::SlowUploader, 5.0);
    let (end, _) = next(&running);
    let expected = (Outcome::Timeout, "without a byte of the response");
    assert_eq!((end.outcome, &*end.detail), expected);
    finish(running);
}

#[test]
fn a_stalled_server_that_goes_away_under_thousands_of_waiting_requests_is_survived() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let waker = listener.try_clone().unwrap();
    let (go, gone) = channel::<()>();
    let stalled = std::thread::spawn(move || {
        waker.set_nonblocking(true).unwrap();
        let mut held = Vec::new();
        while gone.try_recv().is_err() {
            match waker.accept() {
                Ok(accepted) => held.push(accepted),
                Err(_) => pause(1),
            }
        }
    });
    let running = load(to, Kind::Get, 20_000.0);
    // Nobody was answered for as long as patience lasts: twenty thousand wait.
    assert_eq!(next(&running).0.outcome, Outcome::Timeout);
    go.send(()).unwrap();
    drop(listener);
    stalled.join().unwrap();
    while next(&running).0.outcome != Outcome::Refused {}
    assert!(finish(running).count(Outcome::Refused) > 0);
}

#[test]
fn an_answer_byte_by_byte_is_an_answer_when_it_is_whole_in_time() {
    let running = load(
        serve(|peer| {
            peer.request();
            drip(peer, "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, World!", 2);
        }),
        Kind::Fresh,
        10.0,
    );
    let (end, _) = next(&running);
    assert_eq!(end.outcome, Outcome::Ok, "{end:?}");
    assert!(end.latency() >= Duration::from_millis(100), "{:?}", end.latency());
    finish(running);
}

#[test]
fn an_answer_that_drips_longer_than_patience_lasts_is_a_timeout() {
    let running = load(
        serve(|peer| {
            peer.request();
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            drip(peer, &"x".repeat(1_000), 20);
        }),
        Kind::Streaming,
        5.0,
    );
    let (end, _) = next(&running);
    assert_eq!(end.outcome, Outcome::Timeout);
    let is_told = end.detail.starts_with("with ") && end.detail.ends_with(" bytes of its body");
    assert!(is_told, "{}", end.detail);
    finish(running);
}

#[test]
fn a_flood_is_garbage_before_it_fills_the_memory() {
    type Case = (fn(&mut Peer), &'static str);
    let floods: [Case; 3] = [
        (|peer| flood(peer, "HTTP/1.1 200 OK\r\n\r\n", "x"), "a response without end"),
        (|peer| flood(peer, "HTTP/1.1 200 OK\r\n", "X-Y: z\r\n"), "no head"),
        (|peer| flood(peer, "HTTP/1.1 200 OK\r\nX: ", "x"), "a head without end"),
    ];
    for (flood, expected) in floods {
        let running = load(serve(flood), Kind::Get, 5.0);
        let (end, garbage) = next(&running);
        assert_eq!(end.outcome, Outcome::Status, "{end:?}");
        assert!(garbage[0].contains(expected), "{garbage:?}");
        finish(running);
    }
}

#[test]
fn others_have_their_turn_beside_a_flood_of_interim_answers() {
    let running = load(
        serve(|peer| {
            while let Some(asked) = peer.request() {
                if asked.path.ends_with("/1") {
                    flood(peer, "", "HTTP/1.1 102 Processing\r\n\r\n");
                }
                peer.answer(&asked, "");
            }
        }),
        Kind::Pipelined,
        20.0,
    );
    let mut tally = Tally::default();
    while tally.count(Outcome::Ok) < 20 || tally.count(Outcome::Timeout) == 0 {
        tally.add(next(&running).0.outcome);
    }
    finish(running);
}

/// Sends `piece` behind `begin` until the client has gone.
fn flood(peer: &mut Peer, begin: &str, piece: &str) {
    peer.request();
    peer.send(begin);
    let many = piece.repeat(64 * 1024 / piece.len());
    while peer.is_heard(&many) {}
}

//! The judge is judged: servers of a few lines that misbehave, each in one way, and what the load
//! generator says of them.

mod bad;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use bad::Peer;
use loadtest::client::Event;
use loadtest::ebbtide::Ebbtide;
use loadtest::kind::Kind;
use loadtest::load::Load;
use loadtest::outcome::{End, Outcome, Tally};
use loadtest::schedule::Plan;
use loadtest::target::Target;

/// What clients told of a server.
struct Told {
    ends: Vec<End>,
    garbage: Vec<String>,
}

impl Told {
    fn outcomes(&self) -> BTreeSet<Outcome> {
        self.ends.iter().map(|end| end.outcome).collect()
    }

    fn count(&self, outcome: Outcome) -> u64 {
        Tally::of(&self.ends).count(outcome)
    }

    /// The first request that ended so.
    fn first(&self, outcome: Outcome) -> &End {
        let found = self.ends.iter().find(|end| end.outcome == outcome);
        found.unwrap_or_else(|| panic!("no {}: {:?}", outcome.name(), self.ends))
    }
}

/// Loads a server with one kind of client until so many requests have ended.
fn load(kind: Kind, serve: fn(&mut Peer)) -> Told {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    load_at(bad::start(listener, serve), kind)
}

fn load_at(to: SocketAddr, kind: Kind) -> Told {
    let routes = Ebbtide { binary: "unused".into() }.routes();
    let patience = if kind.is_slow() { PATIENCE_SLOW } else { PATIENCE };
    let (rate, count) = if kind.is_slow() { (8.0, 6) } else { (50.0, 24) };
    let load = Load { to, routes, plan: Plan::only(kind, rate, 11), threads: 2, patience };
    let running = load.start(Instant::now()).unwrap();
    let mut told = Told { ends: Vec::new(), garbage: Vec::new() };
    let deadline = Instant::now() + Duration::from_secs(20);
    while told.ends.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        told.note(running.events().recv_timeout(left).expect("requests come to an end"));
    }
    for event in running.finish() {
        told.note(event);
    }
    told
}

impl Told {
    fn note(&mut self, event: Event) {
        match event {
            Event::Ended(end) => self.ends.push(end),
            Event::Garbage(what) => self.garbage.push(what),
            Event::Failed(what) => panic!("{what}"),
            Event::Connected { .. } => {}
        }
    }
}

/// Longer than a busy machine keeps a thread waiting.
const PATIENCE: Duration = Duration::from_secs(3);
const PATIENCE_SLOW: Duration = Duration::from_secs(10);

#[test]
fn a_good_server_loses_nothing_whatever_the_client() {
    for kind in Kind::ALL {
        let told = load(kind, bad::well);
        assert_eq!(
            told.outcomes(),
            BTreeSet::from([Outcome::Ok]),
            "{}: {:?}",
            kind.name(),
            told.ends
        );
        assert!(told.garbage.is_empty(), "{:?}", told.garbage);
    }
}

#[test]
fn nobody_there_is_refused_and_no_loss() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let told = load_at(address, Kind::Get);
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Refused]));
    assert_eq!(Tally::of(&told.ends).losses(), 0);
    assert!(told.ends.iter().all(|end| end.sent.is_none()));
}

#[test]
fn a_reset_before_the_response_is_named() {
    let told = load(Kind::Get, |peer| {
        peer.request();
        peer.reset();
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::ResetBeforeResponse]));
    let first = told.first(Outcome::ResetBeforeResponse);
    assert!(first.detail.starts_with("reset"), "{}", first.detail);
    assert!(first.sent.is_some() && first.connected.is_some() && first.nth == 0);
    assert!(told.ends.iter().all(|end| end.reset_unheard), "{:?}", told.ends);
}

#[test]
fn a_silent_close_of_a_first_request_is_named() {
    let told = load(Kind::Fresh, |peer| {
        peer.request();
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::ResetBeforeResponse]));
    assert_eq!(told.ends[0].detail, "closed without an answer");
    assert!(told.ends.iter().all(|end| !end.reset_unheard), "{:?}", told.ends);
}

#[test]
fn an_early_fin_with_a_request_in_flight_is_a_stale_eof() {
    for kind in [Kind::Get, Kind::Post, Kind::Paused] {
        let told = load(kind, |peer| {
            let asked = peer.request().unwrap();
            peer.answer(&asked, "");
            // The next one is read, and not answered.
            peer.request();
        });
        let expected = BTreeSet::from([Outcome::Ok, Outcome::StaleEof]);
        assert_eq!(told.outcomes(), expected, "{:?}", told.ends);
        assert_eq!(told.first(Outcome::StaleEof).nth, 1);
    }
}

#[test]
fn a_reset_of_a_kept_connection_with_a_request_in_flight_is_named() {
    let told = load(Kind::Get, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
        peer.request();
        peer.reset();
    });
    let expected = BTreeSet::from([Outcome::Ok, Outcome::ResetBeforeResponse]);
    assert_eq!(told.outcomes(), expected, "{:?}", told.ends);
    assert!(told.ends.iter().all(|end| !end.reset_unheard), "{:?}", told.ends);
}

#[test]
fn a_reset_behind_a_part_of_what_was_pipelined_or_an_interim_response_is_not_unheard() {
    let told = load(Kind::Pipelined, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
        peer.reset_when_read();
    });
    assert!(told.ends.iter().any(|end| end.outcome.is_loss()), "{:?}", told.ends);
    assert!(told.ends.iter().all(|end| !end.reset_unheard), "{:?}", told.ends);

    let told = load(Kind::Get, |peer| {
        peer.request();
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        peer.reset_when_read();
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::ResetBeforeResponse]));
    assert!(told.ends.iter().all(|end| !end.reset_unheard), "{:?}", told.ends);
}

#[test]
fn a_close_between_two_requests_loses_nothing() {
    let told = load(Kind::Get, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Ok]), "{:?}", told.ends);
}

#[test]
fn an_announced_close_is_kept_to() {
    let told = load(Kind::Get, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "Connection: close\r\n");
        assert!(peer.request().is_none(), "a request on a connection that was to be closed");
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::OkClose]));
    assert!(told.ends.iter().all(|end| end.nth == 0));
}

#[test]
fn a_body_shorter_than_its_length_is_truncated() {
    let told = load(Kind::Get, |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, Wor");
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Truncated]));
    assert_eq!(told.ends[0].detail, "closed after 10 bytes of its body");
}

#[test]
fn a_stream_without_its_last_chunk_is_truncated() {
    let told = load(Kind::Streaming, |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nchunk 0\n\r\n");
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Truncated]));
}

#[test]
fn a_reset_in_the_middle_of_a_large_response_is_truncated() {
    let told = load(Kind::SlowReader, |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n");
        peer.send(vec![0; 60_000]);
        peer.reset();
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Truncated]), "{:?}", told.ends);
}

#[test]
fn a_lost_pipelined_answer_is_the_one_that_is_lost() {
    for fields in [(|peer| three_of_four(peer, "")) as fn(&mut Peer), |peer| {
        three_of_four(peer, "Connection: close\r\n");
    }] {
        let told = load(Kind::Pipelined, fields);
        let lost = told.count(Outcome::StaleEof);
        assert_eq!(lost * 4, told.ends.len() as u64, "{:?}", told.ends);
        assert_eq!(Tally::of(&told.ends).answered(), lost * 3);
        assert!(told.ends.iter().all(|end| (end.nth == 3) == end.outcome.is_loss()));
    }
}

/// Answers three requests, the third with these fields, and closes.
fn three_of_four(peer: &mut Peer, last: &str) {
    for fields in ["", "", last] {
        let asked = peer.request().unwrap();
        peer.answer(&asked, fields);
    }
    peer.request();
}

#[test]
fn an_answer_left_out_is_no_answer_to_the_next() {
    let told = load(Kind::Pipelined, |peer| {
        peer.request();
        bad::well(peer);
    });
    assert!(told.count(Outcome::Status) > 0, "{:?}", told.ends);
    let detail = &told.first(Outcome::Status).detail;
    assert!(detail.starts_with("another body, of "), "{detail}");
}

#[test]
fn another_status_and_another_body_are_no_answers() {
    let told = load(Kind::Get, |peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
        }
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Status]));
    assert_eq!(told.ends[0].detail, "status 503");
    assert!(told.garbage.is_empty(), "{:?}", told.garbage);

    let told = load(Kind::Get, |peer| {
        while peer.request().is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, Wurld!");
        }
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Status]));
    assert_eq!(told.ends[0].detail, "another body, of 13 bytes");
}

#[test]
fn the_answer_to_somebody_else_is_noticed_by_its_id() {
    let told = load(Kind::Get, |peer| {
        while let Some(asked) = peer.request() {
            peer.answer(&asked, "X-Request-Id: lt-424242\r\n");
        }
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Status]));
    assert_eq!(told.ends[0].detail, "the answer to lt-424242");
}

#[test]
fn garbage_is_called_so() {
    let told = load(Kind::Get, |peer| {
        peer.request();
        peer.send("220 mail.example ESMTP\r\n\r\n");
        peer.request();
    });
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Status]));
    assert!(told.garbage[0].starts_with("no HTTP: no head"), "{:?}", told.garbage);
}

#[test]
fn an_answer_that_nobody_asked_for_is_called_so() {
    let told = load(Kind::Get, |peer| {
        while let Some(asked) = peer.request() {
            peer.answer(&asked, "");
            peer.answer(&asked, "");
        }
    });
    assert!(told.garbage[0].starts_with("an answer that nobody asked for"), "{:?}", told.garbage);
}

#[test]
fn a_408_on_an_idle_connection_is_an_ordinary_close_however_it_comes() {
    type Case = fn(&mut Peer);
    let cases: [Case; 4] = [
        |peer| answer_and(peer, TIMED_OUT, 0),
        |peer| answer_and(peer, TIMED_OUT, 5),
        // In pieces: within its head, and within its body.
        |peer| {
            answer_and(peer, &TIMED_OUT[..20], 5);
            std::thread::park_timeout(Duration::from_millis(5));
            peer.send(&TIMED_OUT[20..]);
        },
        |peer| answer_and(peer, &TIMED_OUT[..TIMED_OUT.len() - 2], 0),
    ];
    for (case, serve) in cases.into_iter().enumerate() {
        for kind in [Kind::Get, Kind::Paused, Kind::Fresh] {
            let told = load(kind, serve);
            assert!(told.garbage.is_empty(), "{case}, {}: {:?}", kind.name(), told.garbage);
            assert!(told.count(Outcome::Ok) > 0, "{case}, {}: {:?}", kind.name(), told.ends);
        }
    }
}

#[test]
fn an_unasked_408_that_keeps_the_connection_and_an_unasked_part_of_an_answer_are_garbage() {
    for serve in [
        (|peer| answer_and(peer, "HTTP/1.1 408 Late\r\nContent-Length: 0\r\n\r\n", 0))
            as fn(&mut Peer),
        |peer| answer_and(peer, "HTTP/1.1 100 Continue\r\n\r\n", 0),
        |peer| answer_and(peer, "HTTP/1.1 200 O", 0),
        |peer| answer_and(peer, "What?\r\n\r\n", 0),
    ] {
        let told = load(Kind::Get, serve);
        let is_told = told.garbage.iter().any(|what| what.contains("that nobody asked for"));
        assert!(is_told, "{:?}", told.garbage);
    }
}

const TIMED_OUT: &str = "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\
                         Content-Length: 4\r\n\r\nlate";

/// Answers one request and says more after so many milliseconds, in one piece with it after none.
fn answer_and(peer: &mut Peer, more: &str, milliseconds: u64) {
    let Some(asked) = peer.request() else { return };
    if milliseconds == 0 {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, World!";
        peer.send([answer, more].concat());
    } else {
        peer.answer(&asked, "");
        std::thread::park_timeout(Duration::from_millis(milliseconds));
        peer.send(more);
    }
}

#[test]
fn no_answer_in_time_is_a_timeout() {
    let told = load(Kind::Get, |peer| while peer.request().is_some() {});
    assert_eq!(told.outcomes(), BTreeSet::from([Outcome::Timeout]));
    let end = told.first(Outcome::Timeout);
    assert!(end.latency() >= PATIENCE, "{:?}", end.latency());
    assert_eq!(end.detail, "without a byte of the response");
}

#[test]
fn a_slow_server_gets_no_fewer_requests_and_its_latency_counts_from_the_plan() {
    // One connection at a time is served, and each request takes 100 ms: far below the 50 a second
    // that are planned.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let told = load(Kind::Fresh, |peer| {
        let _turn = ONE.lock().unwrap();
        if let Some(asked) = peer.request() {
            std::thread::park_timeout(Duration::from_millis(100));
            peer.answer(&asked, "");
        }
    });
    let planned: Vec<Duration> = told.ends.iter().map(|end| end.planned).collect();
    let last = *planned.iter().max().unwrap();
    let expected = last.as_millis() / 40;
    assert!(told.ends.len() as u128 >= expected, "{} in {last:?}", planned.len());
    let longest = told.ends.iter().map(End::latency).max().unwrap();
    assert!(longest >= Duration::from_millis(300), "{longest:?}");
}

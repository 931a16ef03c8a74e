//! Several requests ahead of their responses, and the same bytes cut into packets anyhow.

use ebbtide::{ConnectionState, Limits, Policy, Request, RequestOutcome, get};

use super::client::{Answer, Client, chunked_upload, request, upload};
use super::support::{Gate, Served, app, ms, pattern, wait_until};

#[test]
fn requests_of_one_segment_are_answered_in_order() {
    let numbered = get(|request: Request| request.param("n").unwrap_or_default().to_owned());
    let served = Served::start(app(&Gate::default()).route("/n/{n}", numbered));
    for count in [3, 16, 17, 40, 500] {
        let mut client = served.client();
        let all: String = (0..count).map(|n| request(&format!("/n/{n}"))).collect();
        client.send(all);
        for n in 0..count {
            client.read_response().expect(200, &n.to_string());
        }
        client.get("/hello").expect(200, "hello");
    }
}

#[test]
fn a_slow_first_handler_keeps_the_order() {
    let gate = Gate::default();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.send([request("/wait"), request("/hello"), request("/bytes/3")].concat());
    gate.until_arrived(1);
    assert_eq!(served.counts().begun, 1, "one request at a time");
    gate.open();
    client.read_response().expect(200, "waited");
    client.read_response().expect(200, "hello");
    assert_eq!(client.read_response().body, pattern(3));
}

#[test]
fn large_responses_of_pipelined_requests_do_not_mix() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    let sizes = [100_000, 5, 300_000, 0, 70_000, 65_536, 1];
    client.send(sizes.map(|size| request(&format!("/bytes/{size}"))).concat());
    for size in sizes {
        assert_eq!(client.read_response().body, pattern(size));
    }
}

#[test]
fn a_connection_that_sent_a_large_response_goes_on_with_any() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    for size in [3, 300_000, 4, 0, 16_384, 5, 1_000_000] {
        let answer = client.get(&format!("/bytes/{size}"));
        assert_eq!(answer.body, pattern(size));
        client.send(upload("/echo", "and a body"));
        client.read_response().expect(200, "and a body");
    }
    let large = request("/bytes/70000").into_bytes();
    client.send([large, upload("/echo", "behind"), request("/hello").into_bytes()].concat());
    assert_eq!(client.read_response().body, pattern(70_000));
    client.read_response().expect(200, "behind");
    client.read_response().expect(200, "hello");
}

#[test]
fn uploads_of_one_segment_keep_their_bodies_apart() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    // The second body looks like a request.
    let bodies = ["one".to_owned(), request("/hello"), String::new(), "x".repeat(5000)];
    let mut all = Vec::new();
    for body in &bodies {
        all.extend(upload("/echo", body));
        all.extend(chunked_upload("/echo", &[b"a", body.as_bytes(), b"z"]));
    }
    client.send(all);
    for body in &bodies {
        client.read_response().expect(200, body);
        client.read_response().expect(200, &format!("a{body}z"));
    }
    client.get("/hello").expect(200, "hello");
}

#[test]
fn uploads_cut_at_odd_places_are_put_together() {
    let served = Served::start(app(&Gate::default()));
    let one = pattern(3000);
    let chunks: Vec<&[u8]> = one.chunks(777).collect();
    let all = [
        upload("/echo", &one),
        chunked_upload("/echo", &chunks),
        request("/hello").into_bytes(),
        upload("/echo", "last"),
    ]
    .concat();
    for size in [1, 2, 3, 7, 61, 499, 1000, 1448, 4096] {
        let mut client = served.client();
        for piece in all.chunks(size) {
            client.send(piece);
        }
        assert_eq!(client.read_response().body, one, "pieces of {size}");
        assert_eq!(client.read_response().body, one, "pieces of {size}");
        client.read_response().expect(200, "hello");
        client.read_response().expect(200, "last");
    }
}

/// What the server has made of a first part, so that the second is sent only when the first was
/// read: parts that arrive together would be no cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Nothing,
    PartOfAHead,
    PartOfABody,
    /// So many whole requests, and nothing else.
    Responses(usize),
    /// One whole request and part of the next head.
    ResponseAndPartOfAHead,
}

#[test]
fn two_requests_cut_at_any_place_are_answered_alike() {
    let first = upload("/echo", "hello world");
    every_cut_is_answered_alike(&first, first.len() - "hello world".len());
}

#[test]
fn a_chunked_upload_and_a_request_cut_at_any_place_are_answered_alike() {
    let first = chunked_upload("/echo", &[b"hello", b" world"]);
    let head = first.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    every_cut_is_answered_alike(&first, head);
}

/// `first` has the body "hello world" and a head of `head` bytes.
fn every_cut_is_answered_alike(first: &[u8], head: usize) {
    let served = Served::start(app(&Gate::default()));
    let all = [first, request("/hello").as_bytes()].concat();
    let whole = two_answers(&served, &all, all.len(), After::Responses(2));
    whole[0].expect(200, "hello world");
    whole[1].expect(200, "hello");
    for cut in 0..all.len() {
        let after = match cut {
            0 => After::Nothing,
            _ if cut < head => After::PartOfAHead,
            _ if cut < first.len() => After::PartOfABody,
            _ if cut == first.len() => After::Responses(1),
            _ => After::ResponseAndPartOfAHead,
        };
        let answers = two_answers(&served, &all, cut, after);
        for (answer, expected) in answers.iter().zip(&whole) {
            assert_eq!(answer.status, expected.status, "cut at {cut}");
            assert_eq!(answer.body, expected.body, "cut at {cut}");
            assert_eq!(answer.timeless_headers(), expected.timeless_headers(), "cut at {cut}");
        }
    }
}

fn two_answers(served: &Served, all: &[u8], cut: usize, after: After) -> [Answer; 2] {
    let opened = served.counts().open();
    let mut client = served.client();
    client.send(&all[..cut]);
    let mut answers = Vec::new();
    match after {
        After::Nothing => served.until("it is accepted", |c| c.open() == opened + 1),
        After::PartOfAHead => served.until_in_state(ConnectionState::ReadingHead, 1),
        After::PartOfABody => served.until_in_state(ConnectionState::Handling, 1),
        After::Responses(count) => {
            answers.extend((0..count).map(|_| client.read_response()));
        }
        After::ResponseAndPartOfAHead => {
            answers.push(client.read_response());
            served.until_in_state(ConnectionState::ReadingHead, 1);
        }
    }
    client.send(&all[cut..]);
    while answers.len() < 2 {
        answers.push(client.read_response());
    }
    close_and_forget(served, client);
    answers.try_into().expect("two answers")
}

/// Ends a connection and waits until the server knows.
fn close_and_forget(served: &Served, client: Client) {
    drop(client);
    wait_until("the connection is gone", || served.counts().open() == 0);
}

#[test]
fn many_connections_pipeline_side_by_side() {
    let served = Served::start(app(&Gate::default()));
    let mut clients: Vec<Client> = (0..50).map(|_| served.client()).collect();
    let batch: Vec<u8> =
        (0..20)
            .flat_map(|n| {
                if n % 3 == 0 { upload("/echo", "body") } else { request("/hello").into_bytes() }
            })
            .collect();
    for client in &mut clients {
        client.send(&batch);
    }
    for client in &mut clients {
        for n in 0..20 {
            client.read_response().expect(200, if n % 3 == 0 { "body" } else { "hello" });
        }
    }
    drop(clients);
    let report = served.stop();
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 1000);
    assert_eq!(report.counts.opened, 50);
}

#[test]
fn what_is_pipelined_behind_a_request_that_is_too_slow_is_answered() {
    let gate = Gate::default();
    let limits = Limits { request_timeout: ms(200), ..Limits::default() };
    let served = Served::limited(limits, app(&gate));
    let mut client = served.client();
    client.send([request("/wait"), request("/hello").repeat(2)].concat());
    assert_eq!(client.read_response().status, 503);
    client.read_response().expect(200, "hello");
    client.read_response().expect(200, "hello");
    served.until_finished(RequestOutcome::Answered, 3);
    gate.open();
}

#[test]
fn what_is_pipelined_behind_a_refused_request_has_its_outcome() {
    let gate = Gate::default();
    let policy = Policy { timeout: ms(2000), ..Policy::default() };
    let served = Served::ending(policy, app(&gate));
    let mut client = served.client();
    client.send([request("/wait"), request("/hello"), request("/wait")].concat());
    gate.until_arrived(1);
    served.begin_shutdown();
    assert_eq!(client.read_response().status, 503);
    client.read_response().expect(200, "hello");
    let last = client.read_response();
    assert_eq!(last.status, 503);
    assert!(last.announces_close(), "{last:?}");
    client.expect_end();
    let report = served.report();
    gate.open();
    assert_eq!((report.refused, report.cut), (2, 0));
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 1);
}

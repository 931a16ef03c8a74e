//! A connection that has been idle for a moment gives its buffers back, and nobody notices.

use ebbtide::{ConnectionState, Limits, RequestOutcome};

use super::client::{Client, chunked_upload, request, upload};
use super::support::{Gate, Served, app, assert_took, ms, now};

#[test]
fn a_hibernating_connection_still_answers() {
    let gate = Gate::default();
    gate.open();
    let served = Served::start(app(&gate));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    for _ in 0..2 {
        served.until_in_state(ConnectionState::Hibernating, 1);
        client.send([&upload("/echo", "body")[..], request("/stream").as_bytes()].concat());
        client.read_response().expect(200, "body");
        client.read_response().expect(200, super::support::STREAMED);
    }
    drop(client);
    let report = served.stop();
    assert_eq!(report.counts.opened, 1);
    assert_eq!(report.counts.finished_as(RequestOutcome::Answered), 5);
}

#[test]
fn many_hibernating_connections_still_answer() {
    let served = Served::start(app(&Gate::default()));
    let mut clients: Vec<Client> = (0..200).map(|_| served.client()).collect();
    for client in &mut clients {
        client.get("/hello").expect(200, "hello");
    }
    served.until_in_state(ConnectionState::Hibernating, 200);
    for client in &mut clients {
        client.send(request("/hello"));
    }
    for client in &mut clients {
        client.read_response().expect(200, "hello");
    }
}

#[test]
fn a_head_begun_before_and_ended_after_the_moment_is_answered() {
    let served = Served::start(app(&Gate::default()));
    for cut in [1, 10, request("/hello").len() - 1] {
        let mut client = served.client();
        client.get("/hello").expect(200, "hello");
        client.send(&request("/hello")[..cut]);
        served.until_in_state(ConnectionState::ReadingHead, 1);
        client.expect_silence(ms(1500));
        served.until_in_state(ConnectionState::ReadingHead, 1);
        client.send(&request("/hello")[cut..]);
        client.read_response().expect(200, "hello");
        drop(client);
        served.until("it is gone", |counts| counts.open() == 0);
    }
}

#[test]
fn a_head_that_begins_in_hibernation_is_answered() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 1);
    for byte in request("/hello").bytes() {
        client.send([byte]);
    }
    client.read_response().expect(200, "hello");
    served.until_in_state(ConnectionState::Idle, 1);
}

/// What hyper has read behind a chunked body must survive its being taken apart: this fails when a
/// new hyper calls something else idle, or keeps such bytes to itself.
#[test]
fn part_of_a_head_behind_a_chunked_upload_survives_the_moment() {
    let served = Served::start(app(&Gate::default()));
    let next = request("/hello");
    let half = next.len() / 2;
    let mut client = served.client();
    client.send([&chunked_upload("/echo", &[b"bo", b"dy"])[..], &next.as_bytes()[..half]].concat());
    client.read_response().expect(200, "body");
    served.until_in_state(ConnectionState::ReadingHead, 1);
    client.expect_silence(ms(1500));
    served.until_in_state(ConnectionState::ReadingHead, 1);
    client.send(&next[half..]);
    client.read_response().expect(200, "hello");
    client.get("/hello").expect(200, "hello");
}

#[test]
fn any_part_of_a_head_behind_a_chunked_upload_is_kept() {
    let served = Served::start(app(&Gate::default()));
    let upload = chunked_upload("/echo", &[b"bo", b"dy"]);
    let next = request("/hello");
    for cut in 0..=next.len() {
        let mut client = served.client();
        client.send([&upload[..], &next.as_bytes()[..cut]].concat());
        client.read_response().expect(200, "body");
        if (1..next.len()).contains(&cut) {
            served.until_in_state(ConnectionState::ReadingHead, 1);
        }
        client.send(&next[cut..]);
        client.read_response().expect(200, "hello");
        drop(client);
        served.until("it is gone", |counts| counts.open() == 0);
    }
}

#[test]
fn whole_requests_behind_a_chunked_upload_are_answered() {
    let served = Served::start(app(&Gate::default()));
    let chunked = chunked_upload("/echo", &[b"bo", b"dy"]);
    let by_length = upload("/echo", "by length");
    let mut client = served.client();
    client.send(
        [&chunked[..], request("/hello").as_bytes(), &chunked, &chunked, &by_length, b"GET /he"]
            .concat(),
    );
    for expected in ["body", "hello", "body", "body", "by length"] {
        client.read_response().expect(200, expected);
    }
    client.send(&request("/hello")["GET /he".len()..]);
    client.read_response().expect(200, "hello");
}

#[test]
fn the_keep_alive_time_goes_on_in_hibernation() {
    let limits = Limits { keep_alive_timeout: ms(1700), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    let began = now();
    client.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 1);
    client.expect_end();
    assert_took(began, ms(1700));
}

#[test]
fn the_head_deadline_goes_on_in_hibernation() {
    let limits = Limits { head_timeout: ms(1700), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    let began = now();
    client.send("GET /hello HTTP/1.1\r\n");
    assert_eq!(client.read_response().status, 408);
    assert_took(began, ms(1700));
}

#[test]
fn a_head_that_begins_in_hibernation_has_the_whole_head_deadline() {
    let limits =
        Limits { head_timeout: ms(800), keep_alive_timeout: ms(1500), ..Limits::default() };
    let served = Served::limited(limits, app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 1);
    let began = now();
    client.send("GET /hello HTTP/1.1\r\n");
    assert_eq!(client.read_response().status, 408);
    assert_took(began, ms(800));
}

#[test]
fn a_hibernating_client_may_leave_as_it_likes() {
    let served = Served::start(app(&Gate::default()));
    let mut clients: Vec<Client> = (0..3).map(|_| served.client()).collect();
    for client in &mut clients {
        client.get("/hello").expect(200, "hello");
    }
    served.until_in_state(ConnectionState::Hibernating, 3);
    let mut half_closed = clients.pop().expect("three");
    clients.pop().expect("two").reset();
    drop(clients);
    half_closed.half_close();
    half_closed.expect_end();
    served.until("all are gone", |counts| counts.open() == 0);
}

#[test]
fn a_request_and_the_end_of_sending_in_one_segment_reach_a_hibernating_connection() {
    let served = Served::start(app(&Gate::default()));
    let mut client = served.client();
    client.get("/hello").expect(200, "hello");
    served.until_in_state(ConnectionState::Hibernating, 1);
    client.send(request("/hello"));
    client.half_close();
    client.read_response().expect(200, "hello");
    client.expect_end();
}

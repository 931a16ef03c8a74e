//! The idle clients of `drain` against servers that misbehave: what they tell is judged as strictly
//! as what the load tells.

mod bad;

use std::net::TcpListener;
use std::time::{Duration, Instant};

use bad::Peer;
use loadtest::client::Event;
use loadtest::ebbtide::Ebbtide;
use loadtest::idle::{Habit, Story, World, start};
use loadtest::outcome::{End, Outcome};
use loadtest::target::Target;

/// What a client tells of a server that gets its signal at once.
fn story(habit: Habit, serve: fn(&mut Peer)) -> Story {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World {
        to: bad::start(listener, serve),
        routes: Ebbtide { binary: "unused".into() }.routes(),
        epoch: Instant::now(),
        signal: Duration::ZERO,
    };
    start(world, habit, 40).unwrap().join().unwrap().unwrap()
}

fn ends(story: &Story) -> Vec<&End> {
    let events = story.events.iter();
    events
        .filter_map(|event| if let Event::Ended(end) = event { Some(end) } else { None })
        .collect()
}

/// What the last request came to, and the words for it.
fn last(habit: Habit, serve: fn(&mut Peer)) -> (Outcome, String) {
    let story = story(habit, serve);
    let end = ends(&story).pop().unwrap().clone();
    (end.outcome, end.detail.into_owned())
}

#[test]
fn good_answers_are_ok_and_the_announced_close_is_told_apart() {
    let story = story(Habit::OneMore, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
        let asked = peer.request().unwrap();
        peer.answer(&asked, "Connection: close\r\n");
    });
    let outcomes: Vec<Outcome> = ends(&story).iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok, Outcome::OkClose]);
    assert_eq!(story.got, "an answer that announced the close");
    assert_eq!(story.ended.unwrap().1, "FIN");
}

#[test]
fn another_status_or_body_or_the_answer_to_another_is_not_ok() {
    let (outcome, detail) = last(Habit::Idle, |peer| {
        peer.request();
        peer.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    });
    assert_eq!((outcome, detail.as_str()), (Outcome::Status, "an idle client: status 503"));
    let (outcome, detail) = last(Habit::HalfHead, |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
    });
    assert_eq!(outcome, Outcome::Status);
    assert_eq!(detail, "an idle client: another body, of 3 bytes");
    let (outcome, detail) = last(Habit::Idle, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "X-Request-Id: lt-7\r\n");
    });
    assert_eq!(outcome, Outcome::Status);
    assert_eq!(detail, "an idle client: the answer to lt-7");
}

#[test]
fn a_part_of_an_answer_is_truncated_however_it_ends() {
    let (outcome, detail) = last(Habit::Idle, |peer| {
        peer.request();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello");
    });
    assert_eq!(outcome, Outcome::Truncated);
    assert_eq!(detail, "an idle client: FIN after 5 bytes of its body");
    let (outcome, _) = last(Habit::OneMore, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
        peer.request();
        peer.send("HTTP/1.1 2");
    });
    assert_eq!(outcome, Outcome::Truncated);
}

#[test]
fn an_end_without_an_answer_has_the_name_that_the_load_gives_it() {
    let (outcome, _) = last(Habit::Idle, |peer| {
        peer.request();
    });
    assert_eq!(outcome, Outcome::ResetBeforeResponse);
    let (outcome, detail) = last(Habit::Idle, |peer| {
        peer.request();
        peer.reset();
    });
    assert_eq!((outcome, detail.as_str()), (Outcome::ResetBeforeResponse, "an idle client: reset"));
    let (outcome, _) = last(Habit::OneMore, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
        peer.request();
    });
    assert_eq!(outcome, Outcome::StaleEof);
    // Half a request was sent, and is lost with its connection.
    let (outcome, _) = last(Habit::HalfHead, |_| {});
    assert_eq!(outcome, Outcome::ResetBeforeResponse);
}

#[test]
fn a_close_before_the_next_request_loses_nothing() {
    let story = story(Habit::OneMore, |peer| {
        let asked = peer.request().unwrap();
        peer.answer(&asked, "");
    });
    let outcomes: Vec<Outcome> = ends(&story).iter().map(|end| end.outcome).collect();
    assert_eq!(outcomes, [Outcome::Ok]);
    assert_eq!(story.ended.unwrap().1, "FIN");
}

#[test]
fn garbage_is_called_so() {
    let story = story(Habit::Idle, |peer| {
        peer.request();
        peer.send("220 mail.example ESMTP\r\n\r\n");
        peer.request();
    });
    assert_eq!(ends(&story)[0].outcome, Outcome::Status);
    let is_garbage = |event: &Event| matches!(event, Event::Garbage(_));
    assert!(story.events.iter().any(is_garbage), "{:?}", story.events);
}

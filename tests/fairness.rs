//! Nobody on a worker waits for those who take all they can get: in each of its turns every
//! connection that is ready gets its share, and no more than that. Counted in turns and bytes, over
//! sockets that are memory.

#[path = "../benches/rig/mod.rs"]
mod rig;

use ebbtide::{Body, Bytes, IntoResponse, Request, Response, StatusCode, get, post};
use rig::{Client, HELLO, Rig, get_request, router};

/// What a connection may move in a turn, and what the last step of it may move beyond.
const SHARE: u64 = 256 * 1024 + STEP;
const STEP: u64 = 64 * 1024;

/// A rig with a download that never ends, a client that pipelines without end, and an upload.
struct Hogs {
    rig: Rig,
    download: Client,
    flood: Client,
    upload: Client,
}

impl Hogs {
    fn new() -> Hogs {
        let router = router()
            .route("/download", get(|_: Request| download()))
            .route("/upload", post(swallow).body_bytes_max(u64::MAX));
        let mut rig = Rig::new(router);
        let [download, flood, upload] = [(); 3].map(|()| rig.connect());
        rig.turn();
        rig.send(download, &get_request("/download"));
        let flooding: Vec<u8> = get_request("/plain").repeat(1000);
        rig.send_endlessly(flood, flooding.leak());
        let head = "POST /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n";
        rig.send(upload, head.as_bytes());
        rig.send_endlessly(upload, vec![b'x'; 64 * 1024].leak());
        for _ in 0..10 {
            rig.turn();
        }
        let mut hogs = Hogs { rig, download, flood, upload };
        hogs.take_moved();
        hogs
    }

    /// Bytes that each of the three has moved since this was last asked, both ways.
    fn take_moved(&mut self) -> [u64; 3] {
        [self.download, self.flood, self.upload].map(|client| self.rig.moved(client))
    }
}

/// Always has more, at once.
fn download() -> Response {
    let chunk = Bytes::from(vec![b'd'; 64 * 1024]);
    let next = move |()| {
        let chunk = chunk.clone();
        async move { Some((chunk, ())) }
    };
    Body::unfold((), next).into_response()
}

async fn swallow(mut request: Request) -> StatusCode {
    while let Some(chunk) = request.body_mut().chunk().await {
        if chunk.is_err() {
            return StatusCode::BAD_REQUEST;
        }
    }
    StatusCode::OK
}

#[test]
fn each_turn_moves_no_more_than_a_share_for_each_connection() {
    let mut hogs = Hogs::new();
    let mut all = [0; 3];
    for turn in 0..200 {
        hogs.rig.turn();
        let moved = hogs.take_moved();
        for (sum, moved) in all.iter_mut().zip(moved) {
            assert!(moved <= SHARE, "turn {turn}: {moved} bytes for one of {moved:?}");
            *sum += moved;
        }
        assert!(hogs.rig.is_busy(), "they always have more");
    }
    // They are what they are meant to be: each moved something in every turn, and the flood as
    // many requests as hyper answers in one go.
    for (sum, least) in all.into_iter().zip([200 * 1024, 16 * 100, 32 * 1024]) {
        assert!(sum >= 200 * least, "{all:?}");
    }
}

#[test]
fn ordinary_clients_are_answered_in_the_turn_after_they_have_asked() {
    let mut hogs = Hogs::new();
    let ordinary: Vec<Client> = (0..50).map(|_| hogs.rig.connect()).collect();
    hogs.rig.turn();
    hogs.take_moved();
    for turn in 0..200 {
        // All of them, a few, one: whoever asked before the turn has the answer after it.
        let asking = ordinary.iter().skip(turn % 7).step_by(1 + turn % 13);
        let asking: Vec<Client> = asking.copied().collect();
        let path = if turn % 2 == 0 { "/plain" } else { "/later" };
        for client in &asking {
            hogs.rig.send(*client, &get_request(path));
        }
        hogs.rig.turn();
        for client in asking {
            let length = hogs.rig.received(client);
            assert!(length > HELLO.len() as u64, "turn {turn}: {client:?} still waits");
        }
        for moved in hogs.take_moved() {
            assert!(moved <= SHARE, "turn {turn}: {moved} bytes");
        }
    }
}

#[test]
fn new_connections_are_let_in_and_answered_beside_those_who_take_all() {
    let mut hogs = Hogs::new();
    for _ in 0..100 {
        let client = hogs.rig.connect();
        hogs.rig.send(client, &get_request("/plain"));
        // One turn to be accepted, one to be heard.
        hogs.rig.turn();
        hogs.rig.turn();
        assert!(hogs.rig.received(client) > 0, "{client:?} still waits");
    }
}

#[test]
fn who_has_sent_a_request_when_accepted_is_answered_in_that_turn() {
    let mut rig = Rig::new(router());
    let last = "GET /plain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let [early, late, leaving] = [(); 3].map(|()| rig.connect());
    rig.send(early, &get_request("/plain"));
    rig.send(leaving, last.as_bytes());
    rig.turn();
    assert!(rig.received(early) > HELLO.len() as u64);
    assert!(rig.received(leaving) > HELLO.len() as u64);
    // The one that is gone already is none that epoll has to know.
    assert_eq!(rig.watched(), 2);
    rig.send(late, &get_request("/plain"));
    rig.send(early, &get_request("/plain"));
    rig.turn();
    assert!(rig.received(early) > HELLO.len() as u64);
    assert!(rig.received(late) > HELLO.len() as u64);
}

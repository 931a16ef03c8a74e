//! The verdict on a request never depends on how its bytes were cut into packets.

use std::hash::{BuildHasher, Hasher, RandomState};

use ebbtide::{ConnectionOutcome, Limits, Router};

use super::bad_input::{MALFORMED, everything};
use super::client::{Rest, request, upload};
use super::support::Served;

/// A small generator, so that a failure can be repeated from the seed it prints.
struct Seeded(u64);

/// A generator with the seed from the environment's `SEED`, or a fresh one.
fn seeded() -> (u64, Seeded) {
    let asked = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    // The standard library's hasher is seeded from the system's randomness.
    let seed = asked.unwrap_or_else(|| RandomState::new().build_hasher().finish()) | 1;
    (seed, Seeded(seed))
}

impl Seeded {
    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("less than a usize")
    }

    /// Up to six places to cut `length` bytes, in order.
    fn cuts(&mut self, length: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = (0..=self.below(6)).map(|_| self.below(length)).collect();
        cuts.sort_unstable();
        cuts
    }
}

/// Small limits, so that every byte of a head at them can be a packet of its own.
fn small() -> Limits {
    Limits {
        head_bytes_max: 400,
        request_line_bytes_max: 100,
        header_fields_max: 8,
        body_bytes_max: 50,
        ..Limits::default()
    }
}

/// Requests with more than one thing to say about them.
fn doubtful() -> Vec<(String, Vec<u8>)> {
    let field = |name: &str, size: usize| format!("{name}: {}\r\n", "v".repeat(size));
    let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n").into_bytes();
    let many = |count: usize| (0..count).map(|n| field(&format!("A{n}"), 1)).collect::<String>();
    let line = |size: usize| format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(size));
    let mut all = vec![
        ("good".to_owned(), head("")),
        ("good upload".to_owned(), upload("/", "body")),
        ("good after empty lines".to_owned(), [b"\r\n\r\n", &head("")[..]].concat()),
        ("bare line feeds".to_owned(), b"GET / HTTP/1.1\nHost: x\nA: b\n\n".to_vec()),
        ("seven fields".to_owned(), head(&many(7))),
        ("eight fields".to_owned(), head(&many(8))),
        ("too many, the last malformed".to_owned(), head(&(many(8) + "bad\r\n"))),
        ("malformed, then too many".to_owned(), head(&("bad\r\n".to_owned() + &many(9)))),
        ("no host and too many".to_owned(), many_without_host(9)),
        ("large and malformed at the end".to_owned(), head(&(field("A", 400) + "bad\r\n"))),
        ("malformed, then large".to_owned(), head(&("bad\r\n".to_owned() + &field("A", 400)))),
        ("large with NUL at the end".to_owned(), head(&format!("A: {}\0\r\n", "v".repeat(380)))),
        ("line feeds without an end".to_owned(), vec![b'\n'; 500]),
        ("two hosts".to_owned(), head("Host: y\r\n")),
        ("a body over the limit".to_owned(), upload("/", "b".repeat(51))),
        ("a long line of nonsense".to_owned(), vec![b'a'; 500]),
        ("a long line of control bytes".to_owned(), vec![1; 500]),
        ("a long line with a bad version".to_owned(), long_line_with_bad_version()),
    ];
    for size in 80..90 {
        all.push((format!("a target of {size}"), line(size).into_bytes()));
    }
    for size in 355..368 {
        all.push((format!("a field of {size}"), head(&field("A", size))));
    }
    all
}

fn many_without_host(count: usize) -> Vec<u8> {
    let fields: Vec<String> = (0..count).map(|n| format!("A{n}: b\r\n")).collect();
    format!("GET / HTTP/1.1\r\n{}\r\n", fields.concat()).into_bytes()
}

fn long_line_with_bad_version() -> Vec<u8> {
    format!("GET /{} HTTQ/1.1\r\nHost: x\r\n\r\n", "a".repeat(200)).into_bytes()
}

/// The status that these bytes are answered, sent in pieces that end at `cuts`.
fn verdict(served: &Served, bytes: &[u8], cuts: &[usize]) -> Result<u16, Rest> {
    let mut client = served.client();
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        if client.try_send(&bytes[from..cut]).is_err() {
            // Judged already, and closed.
            break;
        }
        from = cut;
    }
    client.try_read_response().map(|answer| answer.status)
}

/// As [`verdict`], with the server given time to read each byte by itself.
fn verdict_of_bytes_read_one_by_one(served: &Served, bytes: &[u8]) -> u16 {
    let mut client = served.client();
    let mut other = served.client();
    for byte in bytes {
        if client.try_send([*byte]).is_err() {
            break;
        }
        // An answer on another connection shows that the worker has had its turn.
        other.get("/").expect(200, "root");
    }
    client.try_read_response().expect("an answer").status
}

fn all_inputs() -> Vec<(String, Vec<u8>)> {
    let malformed = MALFORMED.map(|(what, bytes)| (what.to_owned(), bytes.to_vec()));
    doubtful().into_iter().chain(malformed).collect()
}

#[test]
fn the_verdict_does_not_depend_on_the_cuts() {
    let (seed, mut random) = seeded();
    let served = Served::limited(small(), everything());
    for (what, bytes) in all_inputs() {
        let whole = verdict(&served, &bytes, &[]).expect("an answer");
        let every: Vec<usize> = (0..bytes.len()).collect();
        let one_by_one = verdict(&served, &bytes, &every).expect("an answer");
        assert_eq!(one_by_one, whole, "{what}, byte by byte");
        for _ in 0..10 {
            let cuts = random.cuts(bytes.len());
            let cut = verdict(&served, &bytes, &cuts).expect("an answer");
            assert_eq!(cut, whole, "{what}, cut at {cuts:?}, seed {seed}");
        }
    }
}

#[test]
fn the_verdict_does_not_depend_on_each_byte_being_seen_alone() {
    let served = Served::limited(small(), everything());
    for (what, bytes) in all_inputs().into_iter().filter(|(_, bytes)| bytes.len() < 150) {
        let whole = verdict(&served, &bytes, &[]).expect("an answer");
        let alone = verdict_of_bytes_read_one_by_one(&served, &bytes);
        assert_eq!(alone, whole, "{what}");
    }
}

#[test]
fn the_verdict_is_what_the_limits_say() {
    let served = Served::limited(small(), everything());
    let expected = [
        ("good", 200),
        ("good upload", 200),
        ("good after empty lines", 200),
        ("seven fields", 200),
        ("eight fields", 431),
        ("two hosts", 400),
        ("a long line of control bytes", 400),
        ("a body over the limit", 413),
    ];
    let inputs = doubtful();
    for (what, status) in expected {
        let (_, bytes) = inputs.iter().find(|(name, _)| name == what).expect("a known input");
        assert_eq!(verdict(&served, bytes, &[]).expect("an answer"), status, "{what}");
    }
}

#[test]
fn the_verdict_on_a_second_request_does_not_depend_on_the_cuts_either() {
    let (seed, mut random) = seeded();
    let served = Served::limited(small(), everything());
    let first = request("/");
    for (what, bytes) in all_inputs() {
        let whole = verdict(&served, &bytes, &[]).expect("an answer");
        let both = [first.as_bytes(), &bytes[..]].concat();
        for _ in 0..5 {
            let mut client = served.client();
            let cuts = random.cuts(both.len());
            let mut from = 0;
            for &cut in cuts.iter().chain([&both.len()]) {
                let _judged_already = client.try_send(&both[from..cut]);
                from = cut;
            }
            client.read_response().expect(200, "root");
            let second = client.read_response().status;
            assert_eq!(second, whole, "{what}, cut at {cuts:?}, seed {seed}");
        }
    }
}

#[test]
fn noise_is_never_answered_with_anything_but_an_error_and_never_hangs() {
    let (seed, mut random) = seeded();
    let served = Served::start(Router::new());
    for n in 0..300 {
        let bytes = noise(&mut random);
        let mut client = served.client();
        let _judged_already = client.try_send(&bytes);
        // The server may have closed already.
        let _closed_already = client.try_half_close();
        let rest = client.read_to_end();
        let told = String::from_utf8_lossy(&rest.bytes);
        let is_fine = told.is_empty() || told.starts_with("HTTP/1.1 4");
        assert!(is_fine, "seed {seed}, {n}: {} was answered {told}", bytes.escape_ascii());
    }
    assert_eq!(served.client().get("/").status, 404);
    let counts = served.stop().counts;
    assert_eq!(counts.closed_as(ConnectionOutcome::Cut), 0, "seed {seed}: {counts:?}");
}

/// Bytes at random, or pieces of requests in a random order.
fn noise(random: &mut Seeded) -> Vec<u8> {
    const PIECES: [&[u8]; 16] = [
        b"GET ",
        b"POST ",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b"Host: x",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Connection: Upgrade",
        b"5\r\nhello\r\n",
        b"\0",
        b"\xff",
    ];
    let count = 1 + random.below(30);
    if random.below(2) == 0 {
        (0..count).map(|_| random.next().to_le_bytes()[0]).collect()
    } else {
        let pieces: Vec<&[u8]> = (0..count).map(|_| PIECES[random.below(PIECES.len())]).collect();
        pieces.concat()
    }
}

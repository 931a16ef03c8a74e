//! Draws a real shutdown: what its connections were doing, from the signal to the end, as SVG.
//!
//! ```text
//! cargo run --release --example timeline > timeline.svg
//! ```
//!
//! A server and 120 clients of all kinds run in this process for about ten seconds. The picture is
//! made of what the handle says every 25 ms; nothing in it is computed beforehand.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ebbtide::{
    Address, Body, ConnectionState, GracefulShutdown, Hook, IntoResponse, Options, Phase, Policy,
    Report, Request, Response, Router, Server, StartError, Workers, get, sleep,
};

fn main() -> Result<(), StartError> {
    let router = Router::new()
        .route("/", get(|_: Request| "tide tables\n"))
        .route("/sleep/{ms}", get(wait))
        .route("/stream/{ms}", get(stream));
    let options = Options {
        listen: vec![Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))],
        admin_listen: None,
        workers: Workers::Count(2),
        shutdown: Policy {
            timeout: Duration::from_secs(9),
            delay: Duration::from_millis(800),
            idle_window: Duration::from_secs(3),
            ..Policy::default()
        },
        ..Options::default()
    };
    let server = Server::bind(options, router)?;
    let Address::Tcp(address) = server.addresses()[0] else { unreachable!("bound above") };
    let handle = server.shutdown_handle();
    let pause = |ms| {
        move |_deadline| {
            thread::park_timeout(Duration::from_millis(ms));
            Ok(())
        }
    };
    handle.on_cleanup(Hook::http_drained("database", pause(600)));
    handle.on_cleanup(Hook::last("flush", pause(250)));
    let serving = thread::spawn(move || server.run());
    handle.wait_until_listening();
    for (kind, count) in KINDS {
        for number in 0..count {
            thread::spawn(move || client(address, kind, number));
        }
    }

    let samples = watch(&handle);
    let report = serving.join().expect("run does not panic")?;
    println!("{}", draw(&samples, &report));
    Ok(())
}

/// What a client does, and how many do.
const KINDS: [(Kind, u64); 9] = [
    (Kind::Silent, 30),
    (Kind::OneMore, 24),
    (Kind::Slow, 24),
    (Kind::Streaming, 12),
    (Kind::HalfHead, 8),
    (Kind::NoByte, 8),
    (Kind::Stuck, 6),
    (Kind::StuckStream, 4),
    (Kind::Unfinished, 4),
];

#[derive(Clone, Copy)]
enum Kind {
    /// Was answered once and keeps its connection.
    Silent,
    /// As before, and sends one more request in the idle window.
    OneMore,
    /// Its handler takes a while.
    Slow,
    /// Its response takes a while.
    Streaming,
    /// Sends the rest of its head during the shutdown.
    HalfHead,
    /// Has only connected.
    NoByte,
    /// Its handler never ends.
    Stuck,
    /// Its response never ends.
    StuckStream,
    /// Never sends the rest of its head.
    Unfinished,
}

fn client(address: SocketAddr, kind: Kind, number: u64) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: tide\r\n\r\n");
    // When, after the beginning of the picture, the client does its last thing.
    let later = Duration::from_millis(1_600 + number * 110);
    let (first, second) = match kind {
        Kind::Silent => (get("/"), None),
        Kind::OneMore => (get("/"), Some(get("/"))),
        Kind::Slow => (get(&format!("/sleep/{}", 1_300 + number * 150)), None),
        Kind::Streaming => (get(&format!("/stream/{}", 1_500 + number * 300)), None),
        Kind::HalfHead => ("GET / HTTP/1.1\r\nHo".to_owned(), Some("st: tide\r\n\r\n".to_owned())),
        Kind::NoByte => (String::new(), None),
        Kind::Stuck => (get("/sleep/600000"), None),
        Kind::StuckStream => (get("/stream/600000"), None),
        Kind::Unfinished => ("GET / HTTP/1.1\r\nHo".to_owned(), None),
    };
    let _sent = stream.write_all(first.as_bytes());
    if let Some(second) = second {
        thread::park_timeout(later);
        let _sent = stream.write_all(second.as_bytes());
    }
    // Reads until the server closes.
    let _rest = stream.read_to_end(&mut Vec::new());
}

async fn wait(request: Request) -> Response {
    sleep(Duration::from_millis(milliseconds(&request))).await;
    Response::text("done\n")
}

async fn stream(request: Request) -> Response {
    let end = milliseconds(&request) / 100;
    let body = Body::unfold(0, move |n| async move {
        sleep(Duration::from_millis(100)).await;
        (n < end).then(|| ("tick\n".into(), n + 1))
    });
    body.into_response()
}

fn milliseconds(request: &Request) -> u64 {
    request.param("ms").and_then(|ms| ms.parse().ok()).unwrap_or(0)
}

struct Sample {
    /// Since the first one.
    at: Duration,
    phase: Phase,
    states: [u64; 7],
}

/// Samples the server until it has stopped, and begins its shutdown on the way.
fn watch(handle: &GracefulShutdown) -> Vec<Sample> {
    let begun = Instant::now();
    let mut samples = Vec::new();
    loop {
        let at = begun.elapsed();
        let snapshot = handle.snapshot();
        samples.push(Sample { at, phase: snapshot.phase, states: snapshot.counts.states });
        if handle.finished_within(SAMPLE_INTERVAL).is_some() {
            return samples;
        }
        if at >= SIGNAL_AT {
            handle.shutdown();
        }
    }
}

const SAMPLE_INTERVAL: Duration = Duration::from_millis(25);

/// Long enough for idle connections to hibernate.
const SIGNAL_AT: Duration = Duration::from_millis(1_300);

/// States from the bottom of the picture to its top, with their colours.
const LAYERS: [(ConnectionState, &str); 7] = [
    (ConnectionState::Handling, "#2f81f7"),
    (ConnectionState::Streaming, "#1b9e8f"),
    (ConnectionState::ReadingHead, "#d29922"),
    (ConnectionState::New, "#bc8cff"),
    (ConnectionState::Idle, "#57ab5a"),
    (ConnectionState::Hibernating, "#46604d"),
    (ConnectionState::Lingering, "#8b949e"),
];

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 976.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 400.0;

fn draw(samples: &[Sample], report: &Report) -> String {
    let end = samples.last().map_or(Duration::ZERO, |sample| sample.at).as_secs_f64();
    let most = samples.iter().map(|sample| sample.states.iter().sum::<u64>()).max().unwrap_or(1);
    #[allow(clippy::cast_precision_loss, reason = "a few hundred connections")]
    let y = |count: u64| BOTTOM - count as f64 / most as f64 * (BOTTOM - TOP);
    let x = |at: Duration| LEFT + at.as_secs_f64() / end * (RIGHT - LEFT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 486\" role=\"img\">\n\
         <title>Connections of a server by what they are doing, during its shutdown</title>\n\
         <style>text {{ font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: #e6edf3 }} \
         .dim {{ fill: #9fb3c0; font-size: 12px }}</style>\n\
         <rect width=\"{WIDTH}\" height=\"486\" rx=\"12\" fill=\"#10212b\"/>\n\
         <text x=\"{LEFT}\" y=\"30\">A shutdown of {most} connections: {report}</text>\n"
    );
    phases(&mut svg, samples, &x);
    let mut below = vec![0; samples.len()];
    for (state, colour) in LAYERS {
        let mut points = String::new();
        for (sample, below) in samples.iter().zip(&below).rev() {
            put(&mut points, format_args!("{:.1},{:.1} ", x(sample.at), y(*below)));
        }
        let mut upper = String::new();
        for (sample, below) in samples.iter().zip(&mut below) {
            *below += sample.states[state as usize];
            put(&mut upper, format_args!("{:.1},{:.1} ", x(sample.at), y(*below)));
        }
        put(&mut svg, format_args!("<polygon fill=\"{colour}\" points=\"{upper}{points}\"/>\n"));
    }
    for second in (0u32..).take_while(|second| f64::from(*second) <= end) {
        let at = x(Duration::from_secs(second.into()));
        put(
            &mut svg,
            format_args!(
                "<text class=\"dim\" x=\"{at:.1}\" y=\"418\" \
                 text-anchor=\"middle\">{second} s</text>\n"
            ),
        );
    }
    for (count, at) in [(most, TOP), (most / 2, y(most / 2)), (0, BOTTOM)] {
        let at = at + 4.0;
        put(
            &mut svg,
            format_args!(
                "<text class=\"dim\" x=\"40\" y=\"{at:.1}\" text-anchor=\"end\">{count}</text>\n"
            ),
        );
    }
    for (index, (state, colour)) in LAYERS.iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "below ten")]
        let at = LEFT + index as f64 * 132.0;
        put(
            &mut svg,
            format_args!(
                "<rect x=\"{at}\" y=\"440\" width=\"14\" height=\"14\" fill=\"{colour}\"/>\
                 <text x=\"{}\" y=\"452\">{}</text>\n",
                at + 20.0,
                state.name()
            ),
        );
    }
    svg.push_str("</svg>");
    svg
}

/// A band for each phase, over the whole height.
fn phases(svg: &mut String, samples: &[Sample], x: &impl Fn(Duration) -> f64) {
    let mut from = 0;
    for (index, sample) in samples.iter().enumerate() {
        let is_last = index + 1 == samples.len();
        if sample.phase == samples[from].phase && !is_last {
            continue;
        }
        let (start, end) = (x(samples[from].at), x(sample.at));
        let name = samples[from].phase.name();
        let took = sample.at.saturating_sub(samples[from].at).as_secs_f64();
        let shade =
            if (samples[from].phase as usize).is_multiple_of(2) { "#16303d" } else { "#1b3a49" };
        put(
            svg,
            format_args!(
                "<rect x=\"{start:.1}\" y=\"44\" width=\"{:.1}\" height=\"{:.1}\" \
                 fill=\"{shade}\"/>\n",
                end - start,
                BOTTOM - 44.0
            ),
        );
        if end - start > 60.0 {
            put(
                svg,
                format_args!(
                    "<text x=\"{:.1}\" y=\"64\">{name}</text>\
                     <text class=\"dim\" x=\"{:.1}\" y=\"81\">{took:.2} s</text>\n",
                    start + 6.0,
                    start + 6.0
                ),
            );
        }
        from = index;
    }
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a String takes all");
}

//! Clients that nobody here wrote: curl, wrk, Python's `http.client`; and pipelining, which few do.

use std::fmt::Write;
use std::process::Command;

use crate::support::client::End;
use crate::support::server::{Launch, Server, file_in};
use crate::support::tools::{Wrk, raise_descriptors, run, stdout, tool};
use crate::support::{alone, beside_others, say};

const MEBIBYTE: usize = 1 << 20;

/// Bytes without a pattern that a framing mistake could hide in.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// curl as a user has it: silent, without the user's own settings, bounded.
fn curl(mut curl: Command, args: &[&str]) -> Command {
    curl.args(["-q", "-sS", "--max-time", "20"]).args(args);
    curl
}

#[test]
fn curl_keeps_its_connection() {
    let _turn = beside_others();
    let Some(tool) = tool("curl") else { return };
    let server = Launch::new().start();
    let (plain, json) = (server.url("/plaintext"), server.url("/json"));
    let mut command = curl(tool, &["-w", "\n%{http_code} %{num_connects}\n", &plain, &json]);
    assert_eq!(
        stdout(&mut command),
        "Hello, World!\n200 1\n{\"message\":\"Hello, World!\"}\n200 0\n"
    );
    let report = server.stop();
    assert_eq!(report["requests"]["finished"]["answered"], 2);
    assert_eq!(report["connections"]["opened"], 1);
}

#[test]
fn curl_is_answered_a_head_without_a_body() {
    let _turn = beside_others();
    let Some(tool) = tool("curl") else { return };
    let server = Launch::new().start();
    // Were a body sent after the head, it would be taken for the second response.
    let url = server.url("/plaintext");
    let said =
        stdout(&mut curl(tool, &["-I", "-w", "%{size_download} %{num_connects}\n", &url, &url]));
    let said = said.to_ascii_lowercase();
    assert_eq!(said.matches("http/1.1 200 ok\r\n").count(), 2, "{said}");
    assert_eq!(said.matches("content-length: 13\r\n").count(), 2, "{said}");
    assert!(said.contains("\n0 1\n") && said.contains("\n0 0\n"), "{said}");
    server.stop();
}

#[test]
fn curl_uploads_with_a_length_in_chunks_and_after_asking() {
    let _turn = beside_others();
    if tool("curl").is_none() {
        return;
    }
    let server = Launch::new().start();
    let file = file_in("curl-uploads", "body");
    std::fs::write(&file, noise(MEBIBYTE)).unwrap();
    let body = format!("@{file}");
    let framings: [(&str, &[&str]); 4] = [
        ("with a length", &["-H", "Expect:"]),
        ("in chunks", &["-H", "Expect:", "-H", "Transfer-Encoding: chunked"]),
        ("after asking", &["-H", "Expect: 100-continue"]),
        (
            "in chunks after asking",
            &["-H", "Expect: 100-continue", "-H", "Transfer-Encoding: chunked"],
        ),
    ];
    for (how, headers) in framings {
        // The wait for the 100 is longer than curl's patience: without one, this fails.
        let fixed = ["--expect100-timeout", "60", "-X", "POST", "--data-binary", &body];
        let args: Vec<&str> = fixed.iter().chain(headers).copied().collect();

        let mut upload = curl(Command::new("curl"), &args);
        let said = stdout(upload.args(["-w", " %{http_code}", &server.url("/upload")]));
        assert_eq!(said, format!("{{\"bytes\":{MEBIBYTE}}} 200"), "{how}");

        let mut echo = curl(Command::new("curl"), &args);
        let echoed = run(echo.arg(server.url("/echo")));
        assert!(echoed.status.success(), "{how}: {echoed:?}");
        assert!(echoed.stdout == noise(MEBIBYTE), "{how}: the echo differs from the original");
    }
    let report = server.stop();
    assert_eq!(report["requests"]["finished"]["answered"], 8);
}

#[test]
fn curl_sees_the_100_before_it_sends() {
    let _turn = beside_others();
    let Some(tool) = tool("curl") else { return };
    let server = Launch::new().start();
    let url = server.url("/echo");
    let args =
        ["-v", "-H", "Expect: 100-continue", "--expect100-timeout", "60", "-d", "ten bytes."];
    let output = run(curl(tool, &args).arg(&url));
    let trace = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"ten bytes.", "{trace}");
    assert_eq!(trace.matches("< HTTP/1.1 100 Continue").count(), 1, "{trace}");
    assert_eq!(trace.matches("< HTTP/1.1 200 OK").count(), 1, "{trace}");
    server.stop();
}

#[test]
fn curl_reads_the_413_while_it_still_sends() {
    let _turn = beside_others();
    if tool("curl").is_none() {
        return;
    }
    let server = Launch::new().start();
    let file = file_in("curl-413", "body");
    std::fs::write(&file, vec![b'x'; 32 * MEBIBYTE]).unwrap();
    let body = format!("@{file}");
    for framing in ["X-Framed-By: length", "Transfer-Encoding: chunked"] {
        let args = ["-H", "Expect:", "-H", framing, "--data-binary", &body, "-o", "/dev/null"];
        let mut command = curl(Command::new("curl"), &args);
        let said = stdout(command.args(["-w", "%{http_code}", &server.url("/echo")]));
        assert_eq!(said, "413", "{framing}");
    }
    server.stop();
}

fn wrk(server: &Server, connections: usize) -> Option<Wrk> {
    let mut wrk = tool("wrk")?;
    let connections = format!("-c{connections}");
    let args = ["-t2", &connections, "-d2s", "--timeout", "10s", &server.url("/plaintext")];
    Some(Wrk::read(&stdout(wrk.args(args))))
}

#[test]
fn wrk_with_64_connections_meets_no_error() {
    let _turn = alone();
    let server = Launch::new().start();
    let Some(said) = wrk(&server, 64) else { return };
    say(&format!("wrk -c64: {} requests in 2 s", said.requests));
    assert_eq!(said, Wrk { requests: said.requests, ..Wrk::default() });
    server.stop();
}

#[test]
fn wrk_with_1000_connections_meets_no_error() {
    let _turn = alone();
    assert!(raise_descriptors() >= 2048, "this test needs 2048 descriptors");
    let server = Launch::new().start();
    let Some(said) = wrk(&server, 1000) else { return };
    say(&format!("wrk -c1000: {} requests in 2 s", said.requests));
    assert_eq!(said, Wrk { requests: said.requests, ..Wrk::default() });
    let report = server.stop();
    assert!(report["connections"]["opened"].as_u64().unwrap() >= 1000, "{report:#}");
}

const PYTHON_LOOP: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=20)
connection.connect()
socket = connection.sock
for i in range(250):
    connection.request("GET", "/plaintext")
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, b"Hello, World!"), i
    body = bytes([i]) * (i * 37)
    # Every other body goes in chunks.
    chunks = (body[at:at + 1000] for at in range(0, len(body), 1000))
    headers = {"Content-Type": "application/x-test"}
    connection.request("POST", "/echo", body if i % 2 else chunks, headers)
    response = connection.getresponse()
    assert (response.status, response.read()) == (200, body), i
    assert response.getheader("content-type") == "application/x-test", i
    assert connection.sock is socket, f"another connection before request {i}"
print("done")
"#;

#[test]
fn python_makes_500_requests_on_one_connection() {
    let _turn = beside_others();
    let Some(mut python) = tool("python3") else { return };
    let server = Launch::new().start();
    let said = stdout(python.args(["-c", PYTHON_LOOP, &server.port.to_string()]));
    assert_eq!(said, "done\n");
    let report = server.stop();
    assert_eq!(report["requests"]["finished"]["answered"], 500);
    assert_eq!(report["connections"]["opened"], 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let _turn = beside_others();
    let server = Launch::new().start();
    let mut batch = String::new();
    for n in 0..100 {
        write!(batch, "GET /bytes/{n} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        write!(batch, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{n:03}").unwrap();
    }
    // At once, and in pieces that end anywhere.
    for piece in [batch.len(), 1000, 7] {
        let mut client = server.connect();
        for bytes in batch.as_bytes().chunks(piece) {
            client.send(bytes);
        }
        for n in 0..100 {
            let response = client.response();
            assert_eq!((response.status, response.body.len()), (200, n), "piece {piece}");
            let response = client.response();
            assert_eq!((response.status, response.text()), (200, format!("{n:03}")));
        }
    }
    // The last one asks for the end: what follows it is not answered.
    let mut client = server.connect();
    let last = "GET /plaintext HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.send(format!("GET /json HTTP/1.1\r\nHost: x\r\n\r\n{last}{last}"));
    assert_eq!(client.response().status, 200);
    assert!(client.response().announces_close());
    assert_eq!(client.end(), End::Closed);
    server.stop();
}

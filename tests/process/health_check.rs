//! `ebbtide health-check`, asked of real servers: healthy, leaving, gone, and none at all.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Instant;

use crate::support::server::{Ended, Launch, Log, Server, file_in};
use crate::support::{SLACK, SOON, beside_others};

/// The command with these arguments.
fn check(args: &[&str]) -> Launch {
    Launch::bare().args(&["health-check"]).args(args)
}

/// Asks at this URL, and says how it went.
fn ask(url: &str, args: &[&str]) -> Ended {
    check(&["--url", url]).args(args).finish()
}

fn readiness(server: &Server) -> String {
    format!("http://127.0.0.1:{}/readyz", server.admin)
}

#[test]
fn a_server_that_is_well_is_status_0_and_says_more_when_asked_for_it() {
    let _turn = beside_others();
    let server = Launch::new().env("WORKERS", "1").start();
    let url = readiness(&server);
    let quiet = ask(&url, &[]);
    assert_eq!((quiet.status, &*quiet.stdout, &*quiet.stderr), (0, "", ""));
    let verbose = ask(&url, &["--verbose"]);
    let (start, rest) = verbose.stdout.split_once("[+] up ").expect("how long it has been there");
    let (up, rest) = rest.split_once(" s; ").expect("seconds");
    assert!((0.0..60.0).contains(&up.parse::<f64>().unwrap()), "{verbose:?}");
    assert_eq!(
        (verbose.status, start, &*verbose.stderr),
        (0, "200 ready; [+] phase running; ", "")
    );
    let said = "[+] connections 0 open; [+] requests 0 in flight; \
                [+] worker 0 0 open of 0 connections\n";
    assert_eq!(rest, said);
    // The public listener, by a name and without a path.
    assert_eq!(ask(&format!("http://localhost:{}", server.port), &[]).status, 0);
    // A bad configuration is no reason not to ask whom the flag names.
    let ended = check(&["--url", &url]).env("SHUTDOWN_TIMEOUT", "soon").finish();
    assert_eq!(ended.status, 0, "{ended:?}");
    server.stop();
}

#[test]
fn the_configuration_says_whom_to_ask_as_in_a_container() {
    let _turn = beside_others();
    let server = Launch::new().listen("0.0.0.0:0").start();
    let listen = format!("0.0.0.0:{}", server.port);
    let admin = format!("0.0.0.0:{}", server.admin);
    let ask = |listen: &str, admin: &str| {
        check(&[]).env("LISTEN", listen).env("ADMIN_LISTEN", admin).finish()
    };
    assert_eq!(ask("127.0.0.1:1", &admin).status, 0);
    assert_eq!(ask(&listen, "off").status, 0);
    // The port that a platform sets is that of the public listener.
    let moved = check(&[]).env("PORT", server.port).env("ADMIN_LISTEN", "off").finish();
    assert_eq!(moved.status, 0, "{moved:?}");
    let nowhere = ask("systemd", "off");
    assert_eq!(nowhere.status, 2, "{nowhere:?}");
    assert!(nowhere.stderr.contains("give --url"), "{nowhere:?}");
    assert_eq!(ask("nowhere", &admin).status, 78);
    server.stop();
}

#[test]
fn a_unix_socket_is_asked_too() {
    let _turn = beside_others();
    let address = format!("unix:{}", file_in("health-check-unix", "socket"));
    let server = Launch::new().env("ADMIN_LISTEN", &address).start();
    let well = ask(&address, &["--verbose"]);
    assert_eq!(well.status, 0, "{well:?}");
    assert_eq!(check(&[]).env("ADMIN_LISTEN", &address).finish().status, 0);
    server.stop();
    let gone = ask(&address, &["--wait-shutdown"]);
    assert_eq!(gone.status, 0, "{gone:?}");
    assert!(gone.stdout.contains(": gone after 0.0 s"), "{gone:?}");
    assert_eq!(ask(&address, &[]).status, 1);
}

#[test]
fn who_answers_badly_late_or_not_at_all_is_status_1_and_one_line() {
    let _turn = beside_others();
    let bind = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://127.0.0.1:{}/readyz", listener.local_addr().unwrap().port());
        (listener, url)
    };
    let assert_unhealthy = |url: &str, args: &[&str], why: &str| {
        let ended = ask(url, args);
        assert_eq!((ended.status, &*ended.stdout), (1, ""), "{ended:?}");
        assert_eq!(ended.stderr.matches('\n').count(), 1, "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("ebbtide: {url}: ")), "{ended:?}");
        assert!(ended.stderr.contains(why), "{why}: {ended:?}");
    };
    for (response, why) in [
        (
            "HTTP/1.1 500 Internal Server Error\r\n\r\nno\u{1b}[31m\nmore\n",
            "500 no\\u001b[31m; more",
        ),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "302"),
        ("SSH-2.0-OpenSSH\r\n\r\n", "no HTTP response"),
        ("", "closed unanswered"),
    ] {
        let (listener, url) = bind();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            assert!(request[..count].starts_with(b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1:"));
            stream.write_all(response.as_bytes()).unwrap();
        });
        assert_unhealthy(&url, &[], why);
        answering.join().unwrap();
    }
    // The kernel accepts, nobody answers.
    let (listener, url) = bind();
    let asked = Instant::now();
    assert_unhealthy(&url, &["--timeout", "300ms"], "no answer within 0.3 s");
    assert!(asked.elapsed() < SLACK + SLACK, "{:?}", asked.elapsed());
    assert_unhealthy(
        &url,
        &["--wait-shutdown", "300ms"],
        "not gone after 0.3 s: no answer within ",
    );
    drop(listener);
    assert_unhealthy(&url, &[], "refused");
}

#[test]
fn flags_that_make_no_sense_are_status_2() {
    let _turn = beside_others();
    for args in [
        ["--url", "https://localhost/"],
        ["--url", "127.0.0.1:9464"],
        ["--timeout", "0"],
        ["--wait-shutdown", "soon"],
        ["--wait", "5"],
    ] {
        let ended = check(&args).finish();
        assert_eq!((ended.status, &*ended.stdout), (2, ""), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(args[1]) || ended.stderr.contains(args[0]), "{ended:?}");
    }
}

#[test]
fn waiting_for_a_shutdown_ends_with_the_server_and_says_how_long_it_took() {
    let _turn = beside_others();
    let mut server = Launch::new().env("SHUTDOWN_TIMEOUT", 9).start();
    let url = readiness(&server);
    let mut client = server.connect();
    client.ask("/sleep/1500");
    server.wait_in_flight(1);
    let mut command = check(&["--url", &url, "--wait-shutdown", "20", "--verbose"]).command();
    let mut waiting = command.stdout(Stdio::piped()).spawn().unwrap();
    let said = Log::follow(waiting.stdout.take().unwrap());
    said.wait_line("readiness", |line| line == "200 ready");
    let asked = server.signal("TERM");
    said.wait_line("the leaving", |line| line.starts_with("503 not ready: "));
    assert_eq!(ask(&url, &[]).status, 1);
    assert_eq!(client.response().status, 200);
    let exit = server.exit(SOON);
    let status = waiting.wait().unwrap();
    assert!(status.success(), "{status}");
    let last = said.all().pop().unwrap();
    let took = last.split("gone after ").nth(1).and_then(|rest| rest.strip_suffix(" s"));
    let took: f64 = took.unwrap_or_else(|| panic!("{last:?}")).parse().unwrap();
    // Since before the signal, and in tenths.
    assert!(took + 0.1 >= exit.at.duration_since(asked).as_secs_f64() - 0.2, "{last}");
    assert_eq!(exit.status, 0);
}

/// A new server in the same place as soon as the old one is gone, as after `systemctl restart`:
/// nobody is ever refused, so that the new one's age has to tell.
#[test]
fn waiting_for_a_shutdown_ends_when_another_server_has_taken_the_place() {
    let _turn = beside_others();
    let server = Launch::new().env("ADMIN_LISTEN", "off").env("REUSE_PORT", true).start();
    let url = format!("http://127.0.0.1:{}", server.port);
    let mut command = check(&["--url", &url, "--wait-shutdown", "20", "--verbose"]).command();
    let mut waiting = command.stdout(Stdio::piped()).spawn().unwrap();
    let said = Log::follow(waiting.stdout.take().unwrap());
    said.wait_line("readiness", |line| line == "200 ready");
    // It is told from the first only by its age, and that is not younger than the question here.
    let again = ask(&url, &["--wait-shutdown", "300ms"]);
    assert_eq!((again.status, &*again.stdout), (1, ""), "{again:?}");
    assert!(again.stderr.contains(": not gone after 0.3 s: 200 ready\n"), "{again:?}");
    let address = format!("127.0.0.1:{}", server.port);
    let next = Launch::new().env("ADMIN_LISTEN", "off").env("REUSE_PORT", true).listen(address);
    let next = next.start();
    server.stop();
    assert!(waiting.wait().unwrap().success());
    let last = said.all().pop().unwrap();
    assert!(last.contains(": gone after "), "{last}");
    assert!(last.ends_with(" s, and another one answers there"), "{last}");
    next.stop();
}

#[test]
fn waiting_for_a_shutdown_in_vain_says_what_came_last() {
    let _turn = beside_others();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    // Until the end of the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _request = stream.unwrap().read(&mut [0; 4096]);
        }
    });
    let ended = ask(&url, &["--wait-shutdown", "500ms"]);
    assert_eq!((ended.status, &*ended.stdout), (1, ""), "{ended:?}");
    let why = ": not gone after 0.5 s: the connection was closed unanswered\n";
    assert!(ended.stderr.ends_with(why), "{ended:?}");
}

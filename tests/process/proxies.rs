//! Behind a real nginx and a real haproxy with the configuration in `deploy`, as
//! `loadtest/proxies/run` starts them: replacing the servers costs their clients no error, not even
//! of a POST, which a proxy does not send twice.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::scripts::{script, summary};
use crate::support::client::Client;
use crate::support::server::{Launch, Log, Server, file_in};
use crate::support::tools::{Beside, tool};
use crate::support::{SOON, alone, say, until};

/// A proxy in front of servers. It is killed when it is dropped.
struct Proxy {
    child: Child,
    port: u16,
}

impl Proxy {
    /// `None` when it is not installed.
    fn start(name: &str, behind: &[u16]) -> Option<Proxy> {
        tool(name)?;
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(script("proxies/run"));
        command.args([name, &format!("127.0.0.1:{port}")]);
        command.args(behind.iter().map(|port| format!("127.0.0.1:{port}")));
        command.env("PROXY_DIR", file_in(&format!("proxy-{name}"), "files"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut proxy = Proxy { child: command.spawn().unwrap(), port };
        let log = Log::follow(proxy.child.stderr.take().unwrap());
        log.wait_line("server_started", |line| line.contains("server_started"));
        Some(proxy)
    }

    /// Waits until it sends requests to all servers again.
    fn wait_all_up(&self) {
        until("the proxy to use all servers", SOON, || {
            (Client::connect(self.port).get("/all-up").status == 200).then_some(())
        });
    }

    /// Waits until so many more requests have gone through it one after the other.
    fn wait_answers(&self, count: usize) {
        let mut client = Client::connect(self.port);
        for _ in 0..count {
            assert_eq!(client.get("/plaintext").status, 200);
        }
    }

    /// Starts wrk with POSTs for so long.
    fn load(&self, seconds: u32) -> Option<Beside> {
        let mut wrk = tool("wrk")?;
        let duration = format!("-d{seconds}s");
        wrk.args(["-t1", "-c16", &duration, "--timeout", "10s", "-s"]).arg(script("wrk/post.lua"));
        Some(Beside::start(wrk.arg(format!("http://127.0.0.1:{}/echo", self.port))))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // SIGTERM, so that nginx takes its workers with it.
        let term = Command::new("kill").arg(self.child.id().to_string()).status();
        if !term.is_ok_and(|status| status.success()) {
            let _killed = self.child.kill();
        }
        let _waited = self.child.wait();
    }
}

/// Has clients send POSTs through a proxy while `replace` does what it does, and holds what they
/// met against what was promised: nothing but answers.
fn assert_nothing_lost(name: &str, proxy: &Proxy, replace: impl FnOnce() -> Vec<Server>) {
    // A replacement behind haproxy takes its delay, and the time that haproxy takes to see it.
    let seconds = u32::try_from(replacements()).unwrap() * 5;
    let Some(load) = proxy.load(seconds) else { return };
    let servers = replace();
    let said = summary(&load.finish());
    say(&format!("{} servers replaced behind {name}: {said}", replacements()));
    for kind in ["connect", "read", "write", "timeout", "status"] {
        assert_eq!(said["errors"][kind], 0, "{name}: {said}");
    }
    for server in servers {
        server.stop();
    }
}

/// So many servers are replaced under load.
fn replacements() -> usize {
    if std::env::var_os("EBBTIDE_LONG").is_some_and(|value| value == "1") { 20 } else { 2 }
}

/// Ends a server that was at work and saw no request come too late.
fn stop(old: Server) {
    let report = old.stop();
    assert_eq!(report["late_bytes"], 0, "{report:#}");
    assert!(report["requests"]["begun"].as_u64().unwrap() > 0, "{report:#}");
}

/// nginx looks at no server's health, so the port itself stays: each server is succeeded on it.
#[test]
fn nginx_loses_nothing_under_load_while_the_server_behind_it_is_replaced() {
    let _turn = alone();
    let start = |port: u16| {
        Launch::new().env("REUSE_PORT", true).listen(format!("127.0.0.1:{port}")).start()
    };
    let mut server = start(0);
    let port = server.port;
    let Some(proxy) = Proxy::start("nginx", &[port]) else { return };
    assert_nothing_lost("nginx", &proxy, || {
        for _ in 0..replacements() {
            proxy.wait_answers(200);
            let successor = start(port);
            stop(std::mem::replace(&mut server, successor));
        }
        vec![server]
    });
}

/// haproxy asks for `/readyz`: each server has left its books before it closes its port.
#[test]
fn haproxy_loses_nothing_under_load_while_the_servers_behind_it_are_replaced() {
    let _turn = alone();
    let start = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        Launch::new().env("SHUTDOWN_DELAY", "2s").listen(address).start()
    };
    let mut servers = vec![start(0), start(0)];
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let Some(proxy) = Proxy::start("haproxy", &ports) else { return };
    proxy.wait_all_up();
    assert_nothing_lost("haproxy", &proxy, || {
        for port in ports.into_iter().cycle().take(replacements()) {
            stop(servers.remove(0));
            servers.push(start(port));
            proxy.wait_all_up();
        }
        servers
    });
}

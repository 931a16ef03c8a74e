//! Behind a real nginx and a real haproxy, as `loadtest/proxies` sets them up: replacing the servers
//! costs their clients no error, not even of a POST, which a proxy does not send twice.

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

/// Replaces each of two servers behind a proxy while clients send POSTs through it.
fn replace_both(name: &str, delay: &str) {
    let start = |address: &str| {
        Launch::new().env("SHUTDOWN_DELAY", delay).listen(address.to_owned()).start()
    };
    let mut servers: Vec<Server> = (0..2).map(|_| start("127.0.0.1:0")).collect();
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let Some(proxy) = Proxy::start(name, &ports) else { return };
    proxy.wait_all_up();
    let Some(load) = proxy.load(10) else { return };
    for _ in 0..2 {
        let old = servers.remove(0);
        let port = old.port;
        let report = old.stop();
        assert_eq!(report["late_bytes"], 0, "{report:#}");
        assert!(report["requests"]["begun"].as_u64().unwrap() > 0, "{report:#}");
        servers.push(start(&format!("127.0.0.1:{port}")));
        proxy.wait_all_up();
    }
    let said = summary(&load.finish());
    say(&format!("two servers replaced behind {name}: {said}"));
    for kind in ["connect", "read", "write", "timeout", "status"] {
        assert_eq!(said["errors"][kind], 0, "{name}: {said}");
    }
    for server in servers {
        server.stop();
    }
}

#[test]
fn nginx_loses_nothing_under_load_while_the_servers_behind_it_are_replaced() {
    let _turn = alone();
    replace_both("nginx", "0");
}

#[test]
fn haproxy_loses_nothing_under_load_while_the_servers_behind_it_are_replaced() {
    let _turn = alone();
    replace_both("haproxy", "2s");
}

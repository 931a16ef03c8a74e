//! A TCP proxy in front of a server, for links that break: bytes swallowed, connections cut.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Passes bytes between its port and another until told otherwise. Its listener and its threads end
/// with it.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: u16,
    mode: AtomicU8,
    /// Bytes that were swallowed, of both directions.
    swallowed: AtomicUsize,
    /// Both ends of every connection that was accepted.
    ends: Mutex<Vec<TcpStream>>,
}

/// What it does with bytes.
const PASS: u8 = 0;
/// It reads and forgets: each side's TCP is acknowledged and nothing arrives, as behind a router
/// that has lost its tables.
const SWALLOW: u8 = 1;
/// It is over.
const OVER: u8 = 2;

impl Proxy {
    /// A proxy in front of `target` on 127.0.0.1.
    pub fn before(target: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target,
            mode: AtomicU8::new(PASS),
            swallowed: AtomicUsize::new(0),
            ends: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || theirs.accept(&listener));
        Proxy { port, shared }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on nothing arrives anywhere, on connections that are there and on new ones, which
    /// are still accepted.
    pub fn swallow(&self) {
        self.shared.mode.store(SWALLOW, Ordering::SeqCst);
    }

    /// From now on bytes pass again. What was swallowed stays lost.
    pub fn pass(&self) {
        self.shared.mode.store(PASS, Ordering::SeqCst);
    }

    /// How many bytes were swallowed.
    pub fn swallowed(&self) -> usize {
        self.shared.swallowed.load(Ordering::SeqCst)
    }

    /// Ends every connection that is there, wherever its bytes are.
    pub fn cut(&self) {
        for end in self.shared.ends.lock().unwrap().drain(..) {
            // Fails when it is closed already.
            let _shut = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.mode.store(OVER, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _woken = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn accept(self: Arc<Shared>, listener: &TcpListener) {
        for client in listener.incoming() {
            if self.mode.load(Ordering::SeqCst) == OVER {
                return;
            }
            let Ok(client) = client else { continue };
            // Of a target that is down, the client learns by a close.
            let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.target)) else {
                continue;
            };
            for end in [&client, &server] {
                end.set_nodelay(true).unwrap();
                self.ends.lock().unwrap().push(end.try_clone().unwrap());
            }
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let shared = Arc::clone(&self);
                std::thread::spawn(move || shared.carry(from, to));
            }
        }
    }

    /// One direction, to its end.
    fn carry(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(count) = from.read(&mut buffer) {
            let swallows = self.mode.load(Ordering::SeqCst) == SWALLOW;
            if swallows {
                self.swallowed.fetch_add(count, Ordering::SeqCst);
            } else if count == 0 || to.write_all(&buffer[..count]).is_err() {
                break;
            }
            if count == 0 {
                // Not even the end arrives.
                return;
            }
        }
        let _shut = to.shutdown(Shutdown::Write);
    }
}

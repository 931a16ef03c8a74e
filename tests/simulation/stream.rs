//! A connection's socket, as the server has it.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::rc::Rc;

use super::kernel::{Event, Fin, Kernel, Link, Way};
use crate::reactor::socket::Transport;

/// The server's descriptor of a link.
pub struct Stream {
    pub link: Rc<RefCell<Link>>,
    pub kernel: Rc<Kernel>,
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut link = self.link.borrow_mut();
        if link.up.queue.is_empty() {
            return if link.is_reset && !std::mem::replace(&mut link.error_told, true) {
                Err(io::ErrorKind::ConnectionReset.into())
            } else if link.is_reset || link.up.fin >= Fin::Arrived {
                Ok(0)
            } else {
                Err(io::ErrorKind::WouldBlock.into())
            };
        }
        let count = buf.len().min(link.up.queue.len());
        for (to, from) in buf.iter_mut().zip(link.up.queue.drain(..count)) {
            *to = from;
        }
        self.kernel.tell(|| format!("link {}: the server reads {count} bytes", link.id));
        let delay = link.latency;
        self.kernel.after(delay, Event::PumpUp(link.id));
        Ok(count)
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut link = self.link.borrow_mut();
        if link.is_reset || link.is_aborted || link.down.fin != Fin::No {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = buf.len().min(link.send_buffer.saturating_sub(link.used()));
        link.wants_space |= count < buf.len();
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.kernel.tell(|| {
            let start = buf[..count.min(40)].escape_ascii();
            format!("link {}: the server writes {count} bytes: {start}", link.id)
        });
        link.sent.extend_from_slice(&buf[..count]);
        link.sent_last = self.kernel.now.get();
        link.down.unsent.extend(&buf[..count]);
        link.pump(&self.kernel, Way::Down);
        Ok(count)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut written = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            match self.write(buf) {
                Ok(count) if count < buf.len() => return Ok(written + count),
                Ok(count) => written += count,
                Err(_) if written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Stream {
    fn shutdown_write(&self) -> io::Result<()> {
        let mut link = self.link.borrow_mut();
        if link.is_reset || link.is_aborted {
            return Err(io::ErrorKind::NotConnected.into());
        }
        link.finish(&self.kernel);
        Ok(())
    }

    fn unacknowledged(&self) -> Option<usize> {
        let link = self.link.borrow();
        let fin = !matches!(link.down.fin, Fin::No | Fin::Acknowledged);
        Some(link.used() + usize::from(fin))
    }

    fn reset_on_close(&self) {
        self.link.borrow_mut().resets_on_close = true;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.link.borrow_mut().close(&self.kernel);
    }
}

//! What was read ahead of whoever parses it, and what was written ahead of the kernel.
//!
//! Buffers are on loan: the worker's one input and one output buffer are attached for the time of a
//! run, and what is left in them afterwards (part of a head, pipelined requests, output that the
//! kernel would not take) moves to buffers of the connection's own, of exactly that size. So a
//! connection with nothing half-done owns no buffer.

use std::io;

use super::head::{Head, HeadLimits, examine, is_closed};
use super::limits::OUT_BYTES_MAX;
use crate::ledger::RejectedCode;
use crate::reactor::socket::{Received, Socket, Transport};

/// The buffers of a worker, lent to one connection at a time.
#[derive(Debug)]
pub struct Loan {
    /// All of its length is usable; what it holds is meaningless.
    input: Vec<u8>,
    /// Empty.
    output: Vec<u8>,
}

impl Loan {
    /// Buffers that fit heads of `head_bytes_max`.
    pub fn new(head_bytes_max: usize) -> Loan {
        let size = INPUT_BYTES_MIN.max(head_bytes_max + INPUT_BYTES_MIN / 2);
        let mut input = vec![0; size.max(MAPPED_BYTES_MIN)];
        input.truncate(size);
        Loan { input, output: Vec::with_capacity(OUT_BYTES_MAX) }
    }

    /// Space to read into when nothing has to be kept.
    pub fn scratch(&mut self) -> &mut [u8] {
        &mut self.input
    }
}

/// Bytes read and not yet handed to hyper: `buffer[start..end]`.
#[derive(Debug, Default)]
pub struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// How many of the bytes are known to be an incomplete head; saves looking at them twice.
    examined: usize,
}

/// What stands at the beginning of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing yet.
    Nothing,
    /// Some of a head.
    Partial,
    /// A head of this many bytes.
    Complete(usize),
    /// The client has finished sending, and what is left is no complete head.
    End,
    /// Bytes that are no head we take, and the answer to them.
    Rejected(RejectedCode),
}

impl Input {
    /// What was received and not yet handed on.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether nothing is at hand.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Goes on with `bytes`.
    pub fn owning(bytes: Vec<u8>) -> Input {
        Input { start: 0, end: bytes.len(), buffer: bytes, examined: 0 }
    }

    /// The bytes of a detached input.
    pub fn into_bytes(self) -> Vec<u8> {
        self.buffer
    }

    /// Takes the worker's buffer, with the bytes at hand at its front.
    pub fn attach(&mut self, loan: &mut Loan) {
        let held = self.end - self.start;
        if held > 0 {
            loan.input[..held].copy_from_slice(&self.buffer[self.start..self.end]);
            self.buffer = Vec::new();
        }
        std::mem::swap(&mut self.buffer, &mut loan.input);
        (self.start, self.end) = (0, held);
    }

    /// Gives the worker's buffer back and keeps a copy of the bytes at hand.
    pub fn detach(&mut self, loan: &mut Loan) {
        std::mem::swap(&mut self.buffer, &mut loan.input);
        if !self.is_empty() {
            self.buffer = loan.input[self.start..self.end].to_vec();
        }
        (self.start, self.end) = (0, self.buffer.len());
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        self.examined = 0;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once behind the bytes at hand. Attached inputs only.
    #[inline]
    pub(super) fn fill<T: Transport>(&mut self, socket: &mut Socket<T>) -> io::Result<Received> {
        if self.end == self.buffer.len() {
            if self.start == 0 {
                return Ok(Received::Nothing);
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let received = socket.receive(&mut self.buffer[self.end..])?;
        if let Received::Bytes(count) = received {
            self.end += count;
        }
        Ok(received)
    }

    /// Looks for a complete head, reading as long as that may help.
    ///
    /// # Errors
    /// Those of the socket.
    #[inline]
    pub fn next_head<T: Transport>(
        &mut self,
        socket: &mut Socket<T>,
        limits: &HeadLimits,
    ) -> io::Result<Next> {
        if self.is_empty() && !socket.is_readable() {
            return Ok(Next::Nothing);
        }
        self.find_head(socket, limits)
    }

    /// Whether there are bytes that nobody has looked at, reading when there are none.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) fn is_fresh<T: Transport>(&mut self, socket: &mut Socket<T>) -> io::Result<bool> {
        if self.is_empty() && socket.is_readable() {
            self.fill(socket)?;
        }
        Ok(!self.is_empty() && self.examined == 0)
    }

    /// As [`next_head`](Input::next_head), for whoever does not want to know where a head ends:
    /// `None` when one is there, or more than one may be, which most are [at a glance](is_closed).
    ///
    /// # Errors
    /// Those of the socket.
    pub fn glimpse_head<T: Transport>(
        &mut self,
        socket: &mut Socket<T>,
        limits: &HeadLimits,
    ) -> io::Result<Option<Next>> {
        if self.is_empty() {
            match self.fill(socket)? {
                Received::Bytes(_) => {}
                Received::Nothing => return Ok(Some(Next::Nothing)),
                Received::End => return Ok(Some(Next::End)),
            }
        }
        if self.examined == 0 && is_closed(self.bytes()) {
            return Ok(None);
        }
        let next = self.find_head(socket, limits)?;
        Ok(Some(next).filter(|next| !matches!(next, Next::Complete(_))))
    }

    fn find_head<T: Transport>(
        &mut self,
        socket: &mut Socket<T>,
        limits: &HeadLimits,
    ) -> io::Result<Next> {
        loop {
            let held = self.end - self.start;
            if held > self.examined {
                match examine(self.bytes(), limits) {
                    Head::Complete(size) => return Ok(Next::Complete(size)),
                    Head::Rejected(code) => return Ok(Next::Rejected(code)),
                    Head::Partial => self.examined = held,
                }
            }
            match self.fill(socket)? {
                Received::Bytes(_) => {}
                Received::Nothing if held == 0 => return Ok(Next::Nothing),
                Received::Nothing => return Ok(Next::Partial),
                Received::End => return Ok(Next::End),
            }
        }
    }
}

/// Bytes on their way to the kernel: `buffer[start..]`.
#[derive(Debug, Default)]
pub struct Output {
    buffer: Vec<u8>,
    start: usize,
    /// Whether `buffer` is the worker's.
    is_lent: bool,
}

impl Output {
    /// All of `buffer`, to be sent.
    pub fn holding(buffer: Vec<u8>) -> Output {
        Output { buffer, start: 0, is_lent: false }
    }

    /// Takes the worker's buffer, unless something waits in one of its own.
    pub(super) fn attach(&mut self, loan: &mut Loan) {
        self.is_lent = self.is_empty();
        if self.is_lent {
            std::mem::swap(&mut self.buffer, &mut loan.output);
            self.start = 0;
        }
    }

    /// Gives the worker's buffer back and keeps a copy of what could not be written.
    pub(super) fn detach(&mut self, loan: &mut Loan) {
        if self.is_lent {
            std::mem::swap(&mut self.buffer, &mut loan.output);
            if loan.output.len() > self.start {
                self.buffer = loan.output[self.start..].to_vec();
            }
            loan.output.clear();
            self.start = 0;
            self.is_lent = false;
        } else if self.is_empty() {
            *self = Output::default();
        } else {
            // More may be added before all of it is gone.
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }

    /// Where more is added, at the end.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Whether the kernel has taken everything.
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// What the kernel has not taken yet.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    /// The kernel has taken `count` more.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    /// Writes until everything is written or the send buffer is full. Returns the bytes written.
    ///
    /// # Errors
    /// Those of the socket.
    #[inline]
    pub fn flush<T: Transport>(&mut self, socket: &mut Socket<T>) -> io::Result<usize> {
        self.flush_by(|bytes| socket.send(bytes))
    }

    /// As [`flush`](Output::flush), when FIN follows at once.
    ///
    /// # Errors
    /// As those.
    #[inline]
    pub fn flush_last<T: Transport>(&mut self, socket: &mut Socket<T>) -> io::Result<usize> {
        self.flush_by(|bytes| socket.send_last(bytes))
    }

    #[inline]
    fn flush_by(
        &mut self,
        mut send: impl FnMut(&[u8]) -> io::Result<Option<usize>>,
    ) -> io::Result<usize> {
        let mut written = 0;
        while !self.is_empty() {
            let Some(count) = send(&self.buffer[self.start..])? else {
                break;
            };
            self.consume(count);
            written += count;
        }
        Ok(written)
    }
}

/// The least size of a worker's input buffer. hyper is handed at most this much at once.
const INPUT_BYTES_MIN: usize = 64 * 1024;

/// What glibc's malloc asks the kernel for on its own (`M_MMAP_THRESHOLD`): its zeroes cost nothing
/// before they are used. Of a smaller block of a worker's heap each page is written at once.
const MAPPED_BYTES_MIN: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::reactor::socket::Readiness;

    /// A kernel that takes a little each time.
    struct Slow;

    impl Read for Slow {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len().min(20_000))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Transport for Slow {
        fn shutdown_write(&self) -> io::Result<()> {
            Ok(())
        }

        fn unacknowledged(&self) -> Option<usize> {
            None
        }

        fn reset_on_close(&self) {}
    }

    #[test]
    fn output_that_is_never_all_gone_does_not_grow() {
        let (mut loan, mut socket) = (Loan::new(1024), Socket::new(Slow));
        let mut output = Output::default();
        for _ in 0..1000 {
            socket.announce(Readiness::WRITABLE);
            output.attach(&mut loan);
            output.flush(&mut socket).unwrap();
            while output.bytes().len() + 4000 <= OUT_BYTES_MAX {
                output.buffer().extend_from_slice(&[b'x'; 4000]);
            }
            output.flush(&mut socket).unwrap();
            output.detach(&mut loan);
        }
        assert!(output.buffer.len() <= OUT_BYTES_MAX, "{} bytes are kept", output.buffer.len());
    }
}

//! A socket with its buffers, as hyper reads from it and writes to it.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

use super::buffers::{Input, Loan, Next, Output};
use super::chunked::Chunked;
use super::flow::{Flow, Splice};
use super::frame::{Ahead, Frame, HYPER_READ_BYTES};
use super::head::HeadLimits;
use super::limits::{DIRECT_BYTES_MIN, OUT_BYTES_MAX, TURN_BYTES_MAX};
use super::message::Response;
use super::short;
use crate::ledger::RejectedCode;
use crate::reactor::socket::{Received, Socket, Transport};

/// The socket of a connection that hyper works on.
#[derive(Debug)]
pub struct Wire<T> {
    pub(super) socket: Socket<T>,
    pub(super) input: Input,
    pub(super) output: Output,
    limits: HeadLimits,
    /// Bytes that hyper has written; those the kernel has accepted. `written - flushed` are in
    /// `output`.
    written: u64,
    flushed: u64,
    /// Bytes that may still move in this turn.
    budget: usize,
    /// Where in a chunked body hyper is; at its beginning when there is none.
    chunked: Chunked,
    /// Whether the budget stopped something: the connection must run again.
    pub(super) yielded: bool,
    /// Whether hyper has something to write that neither we nor the kernel would take.
    pub(super) blocked: bool,
    /// What the next head turned out to be, when hyper asked for one that must not be served.
    pub(super) rejected: Option<RejectedCode>,
}

impl<T: Transport> Wire<T> {
    /// A wire on which hyper has written nothing yet.
    pub fn new(socket: Socket<T>, input: Input, limits: HeadLimits) -> Wire<T> {
        Wire {
            socket,
            input,
            output: Output::default(),
            limits,
            written: 0,
            flushed: 0,
            budget: 0,
            chunked: Chunked::new(),
            yielded: false,
            blocked: false,
            rejected: None,
        }
    }

    /// Before a poll: borrows the worker's buffers and gets the turn's budget.
    pub fn attach(&mut self, loan: &mut Loan) {
        self.input.attach(loan);
        self.attach_output(loan);
    }

    /// As [`attach`](Wire::attach), when the input is attached already.
    pub fn attach_output(&mut self, loan: &mut Loan) {
        self.output.attach(loan);
        self.budget = TURN_BYTES_MAX;
        self.yielded = false;
        self.blocked = false;
    }

    /// After a poll: gives the buffers back.
    pub fn detach(&mut self, loan: &mut Loan) {
        self.input.detach(loan);
        self.output.detach(loan);
    }

    /// Writes what hyper wrote.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn flush(&mut self) -> io::Result<()> {
        let flushed = self.output.flush(&mut self.socket)?;
        self.flushed += flushed as u64;
        Ok(())
    }

    /// As [`flush`](Wire::flush), when FIN follows at once.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn flush_last(&mut self) -> io::Result<()> {
        let flushed = self.output.flush_last(&mut self.socket)?;
        self.flushed += flushed as u64;
        Ok(())
    }

    /// How much of hyper's output the kernel has accepted.
    pub fn flushed(&self) -> u64 {
        self.flushed
    }

    /// Whether nothing of a next request has come, as far as is known.
    pub fn is_quiet(&self) -> bool {
        self.input.is_empty() && !self.socket.is_readable()
    }

    /// Finds the next head and decides to hand it to hyper.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn next_head(&mut self, flow: &Flow) -> io::Result<Next> {
        let next = self.input.next_head(&mut self.socket, &self.limits)?;
        if let Next::Complete(size) = next {
            flow.frame.set(Frame::HeadRest(size));
        }
        Ok(next)
    }

    /// Looks once more for bytes behind the request at hand, when epoll has announced some: hyper
    /// reads nothing while a handler works, and announcing the close would lose a next request.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn look_behind(&mut self, flow: &Flow) -> io::Result<()> {
        let rest = match flow.frame.get() {
            Frame::Body(rest) => rest,
            Frame::Head | Frame::HeadDone | Frame::StandIn => 0,
            // There is surplus in any case, or hyper is about to read.
            Frame::Chunked | Frame::Anything | Frame::HeadRest(_) => return Ok(()),
        };
        // A long body that nobody has read yet is nothing to look behind.
        if self.input.bytes().len() as u64 <= rest && rest <= HYPER_READ_BYTES {
            self.input.fill(&mut self.socket)?;
        }
        flow.ahead.set(self.ahead());
        Ok(())
    }

    /// As [`Input::is_fresh`].
    ///
    /// # Errors
    /// Those of the socket.
    pub fn is_fresh(&mut self) -> io::Result<bool> {
        self.input.is_fresh(&mut self.socket)
    }

    /// Passes a request of `size` bytes, which hyper is not given.
    pub fn pass(&mut self, size: usize, flow: &Flow) {
        self.input.consume(size);
        self.budget = self.budget.saturating_sub(size);
        flow.frame.set(Frame::Head);
        flow.ahead.set(self.ahead());
    }

    /// Whether nothing more may move in this turn.
    pub fn is_spent(&self) -> bool {
        self.budget == 0
    }

    /// Where the output ends.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Writes a response as hyper would, or says that it is hyper's to write.
    pub fn write_short(&mut self, response: &Response, flow: &Flow) -> bool {
        let site = flow.site();
        let room = OUT_BYTES_MAX.saturating_sub(self.output.bytes().len());
        let lines = site.lines.of(flow.splice.get());
        let output = self.output.buffer();
        let before = output.len();
        let end = site.lines.date.end(site.now.get());
        if !short::write(response, flow.asks_to_close.get(), lines, &end, (output, room)) {
            return false;
        }
        flow.splice.set(Splice::default());
        let count = output.len() - before;
        self.written += count as u64;
        self.budget = self.budget.saturating_sub(count);
        flow.sent(response.body().whole().map_or(0, <[u8]>::len));
        true
    }

    fn ahead(&self) -> Ahead {
        Ahead {
            held: self.input.bytes().len() as u64,
            readable: self.socket.is_readable() && !self.socket.is_read_closed(),
        }
    }

    /// Hands at most `limit` bytes to hyper. Zero means the end of stream.
    fn hand_over(
        &mut self,
        mut cursor: ReadBufCursor<'_>,
        frame: Frame,
        limit: u64,
    ) -> Poll<io::Result<usize>> {
        if self.budget == 0 {
            self.yielded = true;
            return Poll::Pending;
        }
        if self.input.is_empty() {
            match self.input.fill(&mut self.socket)? {
                Received::Bytes(_) => {}
                Received::Nothing => return Poll::Pending,
                Received::End => return Poll::Ready(Ok(0)),
            }
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut count = self.input.bytes().len().min(cursor.remaining()).min(limit);
        if frame == Frame::Chunked {
            count = self.chunked.take(&self.input.bytes()[..count]);
        }
        cursor.put_slice(&self.input.bytes()[..count]);
        self.input.consume(count);
        self.budget = self.budget.saturating_sub(count);
        Poll::Ready(Ok(count))
    }

    fn read_for(&mut self, flow: &Flow, mut cursor: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if flow.frame.get() == Frame::StandIn {
            cursor.put_slice(short::stand_in(flow.asks_to_close.get()));
            flow.frame.set(Frame::HeadDone);
            return Poll::Ready(Ok(()));
        }
        if matches!(flow.frame.get(), Frame::Body(0)) {
            flow.frame.set(Frame::Head);
        }
        if flow.frame.get() == Frame::Head {
            if !flow.is_written() {
                // So that a response's head is always the first thing that hyper writes, and all of
                // a response is in our hands when the next one fails.
                return Poll::Pending;
            }
            match self.next_head(flow)? {
                Next::Complete(_) => {}
                Next::Nothing | Next::Partial => return Poll::Pending,
                Next::End => return Poll::Ready(Ok(())),
                Next::Rejected(code) => {
                    self.rejected = Some(code);
                    return Poll::Pending;
                }
            }
        }
        let limit = match flow.frame.get() {
            Frame::HeadRest(rest) => rest as u64,
            Frame::Body(rest) => rest,
            Frame::Head | Frame::HeadDone | Frame::StandIn | Frame::Chunked | Frame::Anything => {
                u64::MAX
            }
        };
        let Poll::Ready(count) = self.hand_over(cursor, flow.frame.get(), limit)? else {
            return Poll::Pending;
        };
        match flow.frame.get() {
            Frame::HeadRest(rest) if rest == count => {
                flow.frame.set(Frame::HeadDone);
                self.chunked = Chunked::new();
            }
            Frame::HeadRest(rest) => flow.frame.set(Frame::HeadRest(rest - count)),
            Frame::Body(rest) => flow.frame.set(Frame::Body(rest - count as u64)),
            // hyper sees the end of a head elsewhere than we do. It gets what there is, as it
            // comes.
            Frame::HeadDone => flow.frame.set(Frame::Anything),
            Frame::Chunked if self.chunked.is_done() => flow.frame.set(Frame::Head),
            Frame::Chunked if self.chunked.is_broken() => flow.frame.set(Frame::Anything),
            Frame::Head | Frame::StandIn | Frame::Chunked | Frame::Anything => {}
        }
        if flow.site().mode.get().announces() {
            // This request may be answered before hyper's poll ends.
            self.look_behind(flow)?;
        }
        flow.ahead.set(self.ahead());
        Poll::Ready(Ok(()))
    }

    fn write(&mut self, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.budget == 0 {
            self.yielded = true;
            return Poll::Pending;
        }
        if buf.len() < DIRECT_BYTES_MIN && self.output.bytes().len() + buf.len() <= OUT_BYTES_MAX {
            self.output.buffer().extend_from_slice(buf);
            self.written += buf.len() as u64;
            self.budget = self.budget.saturating_sub(buf.len());
            return Poll::Ready(Ok(buf.len()));
        }
        self.send(buf)
    }

    /// Hands `buf` to the kernel as it is, behind what waits.
    fn send(&mut self, buf: &[u8]) -> Poll<io::Result<usize>> {
        let held = self.output.bytes().len();
        let sent = if held == 0 {
            self.socket.send(buf)?
        } else {
            self.socket.send_both([self.output.bytes(), buf])?
        };
        let sent = sent.unwrap_or(0);
        self.flushed += sent as u64;
        self.output.consume(sent.min(held));
        let Some(count) = sent.checked_sub(held).filter(|count| *count > 0) else {
            self.blocked = true;
            return Poll::Pending;
        };
        self.written += count as u64;
        self.budget = self.budget.saturating_sub(count);
        Poll::Ready(Ok(count))
    }

    /// As `write`, for output that begins with a response's head: puts lines behind its status
    /// line. Carried through hyper's header map they would take a tenth of a small request's time.
    fn write_head(&mut self, buf: &[u8], lines: &[u8]) -> Poll<io::Result<usize>> {
        let Some(at) = status_line_end(buf) else { return self.write(buf) };
        if self.budget == 0 {
            self.yielded = true;
            return Poll::Pending;
        }
        // All of a small response; of a large one a piece that surely holds the status line.
        let taken = buf.len().min(at.max(DIRECT_BYTES_MIN));
        if self.output.bytes().len() + taken > OUT_BYTES_MAX {
            self.flush()?;
            if !self.output.is_empty() {
                self.blocked = true;
                return Poll::Pending;
            }
        }
        for part in [&buf[..at], lines, &buf[at..taken]] {
            self.output.buffer().extend_from_slice(part);
        }
        self.written += (taken + lines.len()) as u64;
        self.budget = self.budget.saturating_sub(taken);
        Poll::Ready(Ok(taken)) // hyper comes again with the rest
    }
}

/// The wire as hyper sees it.
pub(super) struct Io<T> {
    pub(super) wire: Rc<RefCell<Wire<T>>>,
    pub(super) flow: Rc<Flow>,
    pub(super) pieces: Pieces,
}

/// What hyper does with the pieces of a response. Its queue of them costs a small response 500
/// instructions (it fills 64 slices for each write), its one buffer costs a large one a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pieces {
    /// It copies them into one buffer.
    Copied,
    /// It hands them over as they are.
    Queued,
}

impl<T: Transport> Read for Io<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // No waker is kept: readiness makes the connection run, and running polls hyper.
        self.wire.borrow_mut().read_for(&self.flow, cursor)
    }
}

impl<T: Transport> Write for Io<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.wire.borrow_mut();
        let splice = self.flow.splice.get();
        if splice == Splice::default() {
            return wire.write(buf);
        }
        // What hyper found to be the end outranks what was meant to go on.
        let closes = memchr::memmem::find(buf, b"\r\nconnection: close\r\n").is_some();
        let splice = Splice { advertises: splice.advertises && !closes, ..splice };
        let written = wire.write_head(buf, self.flow.site().lines.of(splice));
        if written.is_ready() {
            self.flow.splice.set(Splice::default());
        }
        written
    }

    /// hyper asks once, when it is made. A vectored write goes through
    /// [`poll_write`](Self::poll_write) piece by piece: that collects small ones.
    fn is_write_vectored(&self) -> bool {
        self.pieces == Pieces::Queued
    }

    /// hyper flushes when its own buffer is empty: everything finished is in our hands.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.mark(self.wire.borrow().written);
        Poll::Ready(Ok(()))
    }

    /// The connection closes itself: after the output, and lingering.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Where the lines of a response's head begin, behind the interim responses before it (RFC 9110,
/// 15.2). `None` when `output` does not begin with a head.
fn status_line_end(output: &[u8]) -> Option<usize> {
    const USUAL: &[u8] = b"HTTP/1.1 200 OK\r\n";
    if output.starts_with(USUAL) {
        return Some(USUAL.len());
    }
    let mut at = 0;
    while output[at..].starts_with(b"HTTP/1.1 1") {
        at += memchr::memmem::find(&output[at..], b"\r\n\r\n")? + 4;
    }
    let head = &output[at..];
    let end = memchr::memchr(b'\n', head).filter(|_| head.starts_with(b"HTTP/1."))?;
    Some(at + end + 1)
}

//! The bytes of one connection: messages in, a buffer out. Also how the client library, which opens
//! the connection, is lent its stream and gives it back.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Goes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

/// A stream of any kind.
pub struct Stream(Box<dyn Duplex>);

impl Stream {
    pub fn new(inner: impl Duplex + 'static) -> Stream {
        Stream(Box::new(inner))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// See the module's essay.
pub struct Wire {
    stream: Stream,
    input: Vec<u8>,
    /// What was read and not taken.
    unread: Range<usize>,
    /// What was sent may be kept back by the stream: an encrypted one has a buffer of its own.
    is_unflushed: bool,
}

/// A message: its kind, and where its body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    body: Range<usize>,
}

impl Wire {
    pub fn new(stream: Stream) -> Wire {
        Wire { stream, input: vec![0; INPUT_BYTES], unread: 0..0, is_unflushed: false }
    }

    /// Reads once what is there.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.make_room();
        let mut into = ReadBuf::new(&mut self.input[self.unread.end..]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut into))?;
        let count = into.filled().len();
        if count == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.unread.end += count;
        Poll::Ready(Ok(()))
    }

    fn make_room(&mut self) {
        if self.unread.is_empty() {
            self.unread = 0..0;
            if self.input.len() > INPUT_BYTES {
                // A message was larger than most.
                self.input = vec![0; INPUT_BYTES];
            }
        } else if self.unread.end == self.input.len() {
            if self.unread.start > 0 {
                self.input.copy_within(self.unread.clone(), 0);
                self.unread = 0..self.unread.len();
            } else {
                self.input.resize(self.input.len() * 2, 0);
            }
        }
    }

    /// The next message, if it is there.
    ///
    /// # Errors
    /// When its length is none.
    pub fn next_message(&mut self) -> io::Result<Option<Message>> {
        let unread = &self.input[self.unread.clone()];
        let Some((&[kind, ref length @ ..], rest)) = unread.split_first_chunk::<HEAD_BYTES>()
        else {
            return Ok(None);
        };
        // It counts itself.
        let length = u32::from_be_bytes(*length).checked_sub(4).and_then(|length| {
            usize::try_from(length).ok().filter(|length| *length <= MESSAGE_BYTES_MAX)
        });
        let Some(length) = length else { return Err(io::ErrorKind::InvalidData.into()) };
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.unread.start + HEAD_BYTES;
        self.unread.start = start + length;
        Ok(Some(Message { kind, body: start..start + length }))
    }

    /// The body of a message that was just taken.
    pub fn body(&self, message: &Message) -> &[u8] {
        &self.input[message.body.clone()]
    }

    /// Sends all of it, or what there is room for.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, out: &mut BytesMut) -> Poll<io::Result<()>> {
        while !out.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, out))?;
            self.is_unflushed = true;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            out.advance(count);
        }
        // The front of it is free again.
        out.clear();
        if out.capacity() > OUTPUT_BYTES_KEPT {
            *out = BytesMut::new();
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Says that nothing more is sent.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Wire {
    /// Ready when the other side sends nothing more. What it sends until then is thrown away.
    ///
    /// # Errors
    /// When the connection broke before.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut into = ReadBuf::new(&mut self.input);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut into))?;
            if into.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// A stream that is lent: clones are the same.
pub struct Lent<S>(Arc<Mutex<Owned<S>>>);

struct Owned<S> {
    stream: S,
    /// The last bytes that were read.
    last: [u8; READY.len()],
}

impl<S> Clone for Lent<S> {
    fn clone(&self) -> Lent<S> {
        Lent(Arc::clone(&self.0))
    }
}

impl<S: Duplex + 'static> Lent<S> {
    pub fn new(stream: S) -> Lent<S> {
        Lent(Arc::new(Mutex::new(Owned { stream, last: [0; READY.len()] })))
    }

    /// The stream, once nobody else has it: `None` while somebody has, and when the last that was
    /// read of it was anything but the server's word that it is ready. The borrower may then have
    /// kept the begin of another message.
    pub fn take_back(self) -> Option<Stream> {
        let owned = Arc::into_inner(self.0)?;
        let Owned { stream, last } = owned.into_inner().unwrap_or_else(PoisonError::into_inner);
        (last == *READY).then(|| Stream::new(stream))
    }
}

impl<S> Lent<S> {
    /// Does something with it. Poisoning is passed over: the stream is whole, or over.
    pub fn with<R>(&self, work: impl FnOnce(&mut S) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).stream)
    }
}

impl<S: Duplex> AsyncRead for Lent<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut owned = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = into.filled().len();
        ready!(Pin::new(&mut owned.stream).poll_read(cx, into))?;
        for byte in &into.filled()[before..] {
            owned.last.rotate_left(1);
            owned.last[READY.len() - 1] = *byte;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Duplex> AsyncWrite for Lent<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| Pin::new(stream).poll_shutdown(cx))
    }
}

/// A `ReadyForQuery` outside of a transaction.
const READY: &[u8; 6] = b"Z\0\0\0\x05I";

/// The kind and the length of a message.
const HEAD_BYTES: usize = 5;

/// What is read at once: some hundred small rows.
const INPUT_BYTES: usize = 16 * 1024;

/// What is kept to write into, of a buffer that was larger.
const OUTPUT_BYTES_KEPT: usize = 64 * 1024;

/// The server sends no larger one (`MaxAllocSize`).
const MESSAGE_BYTES_MAX: usize = 1 << 30;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use super::*;

    /// Gives pieces, one a read, and takes so many bytes a write.
    struct Pieces(VecDeque<Vec<u8>>, usize, Arc<Mutex<Vec<u8>>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let Some(mut piece) = self.0.pop_front() else { return Poll::Pending };
            let rest = piece.split_off(piece.len().min(into.remaining()));
            into.put_slice(&piece);
            if !rest.is_empty() {
                self.0.push_front(rest);
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.1);
            self.2.lock().unwrap().extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], body].concat()
    }

    fn wire(bytes: &[u8], piece: usize) -> Wire {
        let pieces = bytes.chunks(piece).map(<[u8]>::to_vec).collect();
        Wire::new(Stream::new(Pieces(pieces, 1, Arc::default())))
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let large = vec![7; 5 * INPUT_BYTES];
        let bytes = [
            message(b'D', b"ab"),
            message(b'Z', b"I"),
            message(b'D', &large),
            message(b'n', b""),
            message(b'D', &large[..INPUT_BYTES]),
        ]
        .concat();
        let mut cx = Context::from_waker(Waker::noop());
        for piece in [1, 3, 100, INPUT_BYTES, bytes.len()] {
            let (mut wire, mut found) = (wire(&bytes, piece), Vec::new());
            while wire.poll_receive(&mut cx).is_ready() {
                while let Some(message) = wire.next_message().unwrap() {
                    found.push((message.kind, wire.body(&message).len()));
                }
            }
            let expected = [(b'D', 2), (b'Z', 1), (b'D', 5 * INPUT_BYTES), (b'n', 0)];
            assert_eq!(found[..4], expected, "in pieces of {piece}");
            assert_eq!(found[4..], [(b'D', INPUT_BYTES)]);
            wire.make_room();
            assert_eq!(wire.input.len(), INPUT_BYTES, "a large message leaves no large buffer");
        }
    }

    #[test]
    fn a_length_that_is_none_is_an_error() {
        let mut cx = Context::from_waker(Waker::noop());
        for length in [0_u32, 3, u32::MAX] {
            let mut wire = wire(&[b"D", &length.to_be_bytes()[..]].concat(), 9);
            assert!(matches!(wire.poll_receive(&mut cx), Poll::Ready(Ok(()))));
            assert!(wire.next_message().is_err(), "{length}");
        }
        let mut ended = wire(b"", 1);
        ended.stream = Stream::new(tokio::io::empty());
        assert!(matches!(ended.poll_receive(&mut cx), Poll::Ready(Err(_))));
    }

    #[test]
    fn all_is_sent_bit_by_bit() {
        let sent = Arc::default();
        let mut wire = Wire::new(Stream::new(Pieces(VecDeque::new(), 2, Arc::clone(&sent))));
        let mut out = BytesMut::from(&b"a query"[..]);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(wire.poll_send(&mut cx, &mut out), Poll::Ready(Ok(()))));
        assert!(out.is_empty());
        assert_eq!(*sent.lock().unwrap(), b"a query");
    }

    #[test]
    fn what_a_stream_keeps_back_is_flushed_until_it_is_gone() {
        /// Takes all at once, and lets go of it when it is flushed for the third time.
        struct Keeps(u32);

        impl AsyncRead for Keeps {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Pending
            }
        }

        impl AsyncWrite for Keeps {
            fn poll_write(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                Poll::Ready(Ok(bytes.len()))
            }

            fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.0 += 1;
                if self.0 < 3 { Poll::Pending } else { Poll::Ready(Ok(())) }
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }

        let mut wire = Wire::new(Stream::new(Keeps(0)));
        let mut out = BytesMut::from(&vec![1; 2 * OUTPUT_BYTES_KEPT][..]);
        let mut cx = Context::from_waker(Waker::noop());
        for is_flushed in [false, false, true, true] {
            assert_eq!(wire.poll_send(&mut cx, &mut out).is_ready(), is_flushed);
        }
        assert!(out.capacity() <= OUTPUT_BYTES_KEPT, "a large statement leaves no large buffer");
    }

    #[test]
    fn a_stream_comes_back_only_at_the_end_of_an_answer() {
        let read = |bytes: &[u8]| {
            let lent = Lent::new(Pieces([bytes.to_vec()].into(), 1, Arc::default()));
            let mut borrower = Wire::new(Stream::new(lent.clone()));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(borrower.poll_receive(&mut cx).is_ready());
            (lent, borrower)
        };
        let whole = [message(b'S', b"a\0b\0"), message(b'Z', b"I")].concat();
        let (lent, borrower) = read(&whole);
        assert!(lent.clone().take_back().is_none(), "it is still lent");
        drop(borrower);
        assert!(lent.take_back().is_some());
        for more in [&b"N"[..], b"N\0\0\0\x08ab", b"Z\0\0\0\x05T"] {
            let (lent, borrower) = read(&[&whole, more].concat());
            drop(borrower);
            assert!(lent.take_back().is_none(), "{more:?}");
        }
    }
}

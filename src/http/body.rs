//! Bodies, in and out, whole and streamed.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::flow::Flow;
use super::frame::BodyOwner;
use super::limits::OUT_BYTES_MAX;
use super::message::{IntoResponse, Response};
use super::spare;
use super::verdict::Verdict;
use crate::said::panic_message;

/// Any error of a streamed body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A response body.
#[derive(Default)]
pub struct Body(Kind);

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    /// Never empty bytes.
    Full(Bytes),
    Stream(AnyStream),
    /// A piece that the stream made, larger than hyper is handed at once: what is left of it.
    Rest(Box<(Bytes, AnyStream)>),
}

type AnyStream = Pin<Box<dyn HttpBody<Data = Bytes, Error = BoxError>>>;

impl Body {
    /// No bytes; `content-length: 0` where a length is due.
    pub fn empty() -> Body {
        Body(Kind::Empty)
    }

    /// Drops what is left of it.
    pub(super) fn clear(&mut self) {
        if !matches!(self.0, Kind::Empty) {
            self.0 = Kind::Empty;
        }
    }

    /// Whether all of it is there.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.0, Kind::Empty | Kind::Full(_))
    }

    /// All of it, when it is there.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        match &self.0 {
            Kind::Empty => Some(&[]),
            Kind::Full(bytes) => Some(bytes),
            Kind::Stream(_) | Kind::Rest(_) => None,
        }
    }

    /// Streams any [`http_body::Body`]. Its length is announced when its size hint is exact, else
    /// the response is chunked. When it fails, the connection is ended so that the client sees a
    /// truncated response and never a seemingly complete one.
    pub fn new<B>(body: B) -> Body
    where
        B: HttpBody<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        Body(Kind::Stream(Box::pin(Boxed(Box::pin(body)))))
    }

    /// Streams chunks made one after the other: `next` gets the state and returns the next chunk
    /// and the new state, or `None` at the end. The next chunk is asked for when the client can
    /// take it.
    ///
    /// ```
    /// # use ebbtide::Body;
    /// // Ten lines, one per second.
    /// let body = Body::unfold(0, |n| async move {
    ///     ebbtide::sleep(std::time::Duration::from_secs(1)).await;
    ///     (n < 10).then(|| (format!("{n}\n").into(), n + 1))
    /// });
    /// ```
    pub fn unfold<S, F, N>(state: S, mut next: N) -> Body
    where
        S: 'static,
        F: Future<Output = Option<(Bytes, S)>> + 'static,
        N: FnMut(S) -> F + 'static,
    {
        Body::try_unfold(state, move |state| {
            let making = next(state);
            async move { Ok::<_, std::convert::Infallible>(making.await) }
        })
    }

    /// As [`unfold`](Body::unfold), for chunks that may fail to be made. Then the connection is
    /// ended so that the client sees a truncated response.
    pub fn try_unfold<S, F, N, E>(state: S, next: N) -> Body
    where
        S: 'static,
        F: Future<Output = Result<Option<(Bytes, S)>, E>> + 'static,
        N: FnMut(S) -> F + 'static,
        E: Into<BoxError> + 'static,
    {
        Body(Kind::Stream(Box::pin(Unfold { next, state: UnfoldState::Ready(Some(state)) })))
    }
}

impl Body {
    /// The first piece of `frame`, which the stream made; the rest is kept for the next polls.
    fn cut(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if frame.data_ref().is_none_or(|data| data.len() <= PIECE_BYTES_MAX) {
            return frame;
        }
        match (frame.into_data(), std::mem::take(&mut self.0)) {
            (Ok(mut data), Kind::Stream(stream)) => {
                let piece = data.split_to(PIECE_BYTES_MAX);
                self.0 = Kind::Rest(Box::new((data, stream)));
                Frame::data(piece)
            }
            _ => unreachable!("a stream made a piece of data"),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Empty => f.write_str("Body::empty()"),
            Kind::Full(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Kind::Stream(_) | Kind::Rest(_) => f.write_str("Body(stream)"),
        }
    }
}

impl<T: Into<Bytes>> From<T> for Body {
    fn from(bytes: T) -> Body {
        let bytes = bytes.into();
        Body(if bytes.is_empty() { Kind::Empty } else { Kind::Full(bytes) })
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Body>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Full(bytes) if bytes.len() > PIECE_BYTES_MAX => {
                Poll::Ready(Some(Ok(Frame::data(bytes.split_to(PIECE_BYTES_MAX)))))
            }
            Kind::Full(_) => {
                let Kind::Full(bytes) = std::mem::take(&mut self.0) else { unreachable!() };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Stream(stream) => {
                // A stream that panics fails like any other: this response is lost, no more.
                let polled = catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll_frame(cx)));
                let frame = ready!(polled.unwrap_or_else(|panic| {
                    let what = format!("the body panicked: {}", panic_message(&*panic));
                    Poll::Ready(Some(Err(what.into())))
                }));
                Poll::Ready(frame.map(|frame| frame.map(|frame| self.cut(frame))))
            }
            Kind::Rest(left) => {
                let piece = left.0.split_to(PIECE_BYTES_MAX.min(left.0.len()));
                if left.0.is_empty()
                    && let Kind::Rest(left) = std::mem::take(&mut self.0)
                {
                    self.0 = Kind::Stream(left.1);
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Full(_) | Kind::Rest(_) => false,
            Kind::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Stream(stream) => stream.size_hint(),
            // Nobody asks in the middle of a stream; whoever does learns that there is more.
            Kind::Rest(left) => {
                let mut hint = SizeHint::new();
                hint.set_lower(left.0.len() as u64);
                hint
            }
        }
    }
}

/// What hyper is handed at once: it copies a response's pieces into one buffer, which keeps the
/// size of the largest for as long as the connection is hot.
const PIECE_BYTES_MAX: usize = OUT_BYTES_MAX;

/// The body of a response in hyper's hands: the response itself, whose head is gone ahead.
pub(super) struct OutBody {
    /// `None` when the body has failed: that exchange is not over, it is lost.
    response: Option<Response>,
    flow: Rc<Flow>,
}

impl OutBody {
    /// Without the response, which [comes](OutBody::carry) when its head has been taken.
    pub(super) fn new(flow: Rc<Flow>) -> OutBody {
        OutBody { response: None, flow }
    }

    pub(super) fn carry(&mut self, response: Response) {
        self.response = Some(response);
    }
}

impl HttpBody for OutBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut OutBody>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(response) = &mut self.response else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(response.body_mut()).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.flow.sent(frame.data_ref().map_or(0, Bytes::len)),
            Some(Err(_)) => self.response = None,
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.response.as_ref().is_none_or(|response| response.body().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.response.as_ref().map_or_else(SizeHint::default, |it| it.body().size_hint())
    }
}

/// hyper drops a body at its end, also one that reports its end without being polled, and one that
/// is not to be sent (RFC 9110, 6.4.1: after HEAD, and with 204 and 304).
impl Drop for OutBody {
    fn drop(&mut self) {
        if self.response.is_some() {
            self.flow.over();
        }
    }
}

/// Brings a foreign body's error to ours.
struct Boxed<B>(Pin<Box<B>>);

impl<B> HttpBody for Boxed<B>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.as_mut().poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

struct Unfold<S, F, N> {
    next: N,
    state: UnfoldState<S, F>,
}

enum UnfoldState<S, F> {
    /// `None` once the stream has ended.
    Ready(Option<S>),
    Making(Pin<Box<F>>),
}

impl<S, F, N> Unpin for Unfold<S, F, N> {}

impl<S, F, N, E> HttpBody for Unfold<S, F, N>
where
    F: Future<Output = Result<Option<(Bytes, S)>, E>>,
    N: FnMut(S) -> F,
    E: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            match &mut self.state {
                UnfoldState::Ready(state) => {
                    let Some(state) = state.take() else { return Poll::Ready(None) };
                    let making = (self.next)(state);
                    self.state = UnfoldState::Making(Box::pin(making));
                }
                UnfoldState::Making(making) => {
                    let made = ready!(making.as_mut().poll(cx));
                    let (state, frame) = match made {
                        Ok(Some((chunk, state))) => (Some(state), Some(Ok(Frame::data(chunk)))),
                        Ok(None) => (None, None),
                        Err(error) => (None, Some(Err(error.into()))),
                    };
                    self.state = UnfoldState::Ready(state);
                    return Poll::Ready(frame);
                }
            }
        }
    }
}

/// Where a request body comes from.
enum Source {
    /// It was there with the head of the request that is the flow's with this number, and the
    /// handler has yet to get it.
    Whole(Bytes, u64),
    Hyper(Incoming),
    /// There is none, or no more.
    Nowhere,
}

/// A request body. Limited in size, rate and patience by the listener's limits and its route.
pub struct RequestBody {
    source: Source,
    flow: Rc<Flow>,
    /// Bytes that may still come before it is too large.
    allowed: u64,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming, flow: Rc<Flow>, bytes_max: u64) -> RequestBody {
        if !incoming.is_end_stream() {
            flow.body.set(BodyOwner::Application);
        }
        RequestBody { source: Source::Hyper(incoming), flow, allowed: bytes_max }
    }

    /// One that came the short way.
    pub(super) fn whole(bytes: &[u8], flow: Rc<Flow>) -> RequestBody {
        let source = if bytes.is_empty() {
            Source::Nowhere
        } else {
            Source::Whole(spare::share(bytes), flow.serial.get())
        };
        let allowed = flow.site().limits.body_bytes_max;
        RequestBody { source, flow, allowed }
    }

    pub(super) fn flow(&self) -> &Rc<Flow> {
        &self.flow
    }

    /// Replaces the limit. For routes, before the body is read.
    pub(crate) fn limit(&mut self, bytes_max: u64) {
        self.allowed = bytes_max;
    }

    /// Whether the client declared more than is allowed.
    pub(crate) fn is_declared_too_large(&self) -> bool {
        self.size_hint().lower() > self.allowed
    }

    /// The next chunk, or `None` at the end.
    ///
    /// # Errors
    /// [`BodyError::TooLarge`] when it grows past its limit: whatever the handler then answers, the
    /// client gets 413. [`BodyError::Broken`] when the client ends it early or sends what is no
    /// body.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            let frame = poll_fn(|cx| Pin::new(&mut *self).poll_frame(cx)).await?;
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => return Some(Ok(data)),
                // Trailers: nobody asked for them.
                Ok(Err(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// As [`chunk`](RequestBody::chunk).
    pub async fn bytes(&mut self) -> Result<Bytes, BodyError> {
        let Some(first) = self.chunk().await.transpose()? else { return Ok(Bytes::new()) };
        let Some(second) = self.chunk().await.transpose()? else { return Ok(first) };
        let mut all = BytesMut::from(&first[..]);
        all.extend_from_slice(&second);
        while let Some(chunk) = self.chunk().await.transpose()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut RequestBody>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // One that was kept after the answer has no say in what became of the next request.
        let is_current = match self.source {
            Source::Whole(_, serial) => serial == self.flow.serial.get(),
            Source::Hyper(_) | Source::Nowhere => true,
        };
        if self.is_declared_too_large() {
            if is_current {
                self.flow.judge(Verdict::BodyTooLarge);
            }
            return Poll::Ready(Some(Err(BodyError::TooLarge)));
        }
        let incoming = match &mut self.source {
            Source::Hyper(incoming) => incoming,
            Source::Nowhere => return Poll::Ready(None),
            Source::Whole(bytes, _) => {
                let bytes = std::mem::take(bytes);
                self.source = Source::Nowhere;
                if is_current {
                    self.flow.body_received(bytes.len() as u64);
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
        };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Pending => {
                self.flow.body_awaited();
                Poll::Pending
            }
            Poll::Ready(None) => {
                self.flow.body.set(BodyOwner::Nobody);
                self.flow.body_finished();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.flow.body_finished();
                Poll::Ready(Some(Err(BodyError::Broken(error.into()))))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.flow.body_received(bytes);
                if bytes > self.allowed {
                    self.allowed = 0;
                    self.flow.judge(Verdict::BodyTooLarge);
                    return Poll::Ready(Some(Err(BodyError::TooLarge)));
                }
                self.allowed -= bytes;
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole(..) => false,
            Source::Hyper(incoming) => incoming.is_end_stream(),
            Source::Nowhere => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Source::Hyper(incoming) => incoming.size_hint(),
            Source::Nowhere => SizeHint::with_exact(0),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !matches!(self.source, Source::Hyper(_)) {
            return;
        }
        match self.flow.body.get() {
            // There was none, or it was read to its end and the flow knows.
            BodyOwner::Nobody => return,
            BodyOwner::Application if !self.is_end_stream() => {
                self.flow.body.set(BodyOwner::Dropped);
            }
            BodyOwner::Application | BodyOwner::Dropped => {}
        }
        self.flow.body_finished();
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.size_hint();
        f.debug_struct("RequestBody").field("size", &size).finish_non_exhaustive()
    }
}

/// Why a request body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// It is larger than its route allows.
    TooLarge,
    /// The client's fault: it ended early, or was no valid body.
    Broken(BoxError),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyError::TooLarge => "the request body is too large",
            BodyError::Broken(_) => "the request body is broken",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            BodyError::TooLarge => None,
            BodyError::Broken(error) => Some(error.as_ref()),
        }
    }
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        match self {
            BodyError::TooLarge => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
            BodyError::Broken(_) => StatusCode::BAD_REQUEST.into_response(),
        }
    }
}

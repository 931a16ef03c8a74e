//! Requests and responses, as handlers see them.

use std::cell::Cell;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};

use super::body::{Body, RequestBody};
use super::flow::Flow;
use super::limits::RETRY_AFTER;
use crate::reactor::blocking::BlockingError;
use crate::reactor::cancel::CancellationToken;

/// A request: its head, its body, and what the server knows of it. Belongs to the worker's thread.
pub struct Request {
    /// In a box, for it is moved from hand to hand. `Some` until it is dropped or taken apart.
    slot: Option<RequestSlot>,
}

/// The place of a request, which its connection keeps for the next one.
pub(super) type RequestSlot = Box<Option<Inner>>;

pub(super) struct Inner {
    head: Head,
    body: RequestBody,
    /// `Some` once a router has matched it.
    route: Option<Rc<Route>>,
    params: Params,
    flow: Rc<Flow>,
}

/// What a router knows of one of its routes.
pub struct Route {
    /// The path with its parameters in braces.
    pub template: String,
    /// The parameters' names, in order.
    pub names: Vec<String>,
    pub state: Option<Arc<dyn std::any::Any + Send + Sync>>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.template)
    }
}

/// Where the parameters' values lie in the path: start and length, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Params {
    ranges: [(u16, u16); PARAMS_MAX],
}

/// Parameters that one route may have.
pub const PARAMS_MAX: usize = 4;

impl Params {
    /// Remembers where `value`, a part of `path`, lies. Paths are shorter than 64 KiB: hyper
    /// answers longer ones 414 itself.
    pub fn set(&mut self, index: usize, path: &str, value: &str) {
        let start = value.as_ptr() as usize - path.as_ptr() as usize;
        let (Ok(start), Ok(length)) = (u16::try_from(start), u16::try_from(value.len())) else {
            return;
        };
        self.ranges[index] = (start, length);
    }
}

impl Request {
    pub(super) fn new(head: http::request::Parts, body: RequestBody, flow: Rc<Flow>) -> Request {
        let mut slot = flow.request_slot.take().unwrap_or_default();
        *slot =
            Some(Inner { head: Head(head), body, route: None, params: Params::default(), flow });
        Request { slot: Some(slot) }
    }

    fn inner(&self) -> &Inner {
        self.slot.as_deref().and_then(Option::as_ref).expect(WHOLE)
    }

    fn inner_mut(&mut self) -> &mut Inner {
        self.slot.as_deref_mut().and_then(Option::as_mut).expect(WHOLE)
    }

    pub(crate) fn set_route(&mut self, route: Rc<Route>, params: Params) {
        let inner = self.inner_mut();
        let site = inner.flow.site();
        let (method, path) = (&inner.head.method, inner.head.uri.path());
        site.watch.call(site.now.get(), method, path, inner.flow.peer(), &route.template);
        inner.flow.set_route(Rc::clone(&route));
        inner.route = Some(route);
        inner.params = params;
    }

    /// The method, as sent.
    pub fn method(&self) -> &Method {
        &self.inner().head.method
    }

    /// The target: for most requests path and query, without scheme and host.
    pub fn uri(&self) -> &Uri {
        &self.inner().head.uri
    }

    /// The path without the query, as sent.
    pub fn path(&self) -> &str {
        self.inner().head.uri.path()
    }

    /// What follows the first `?`, as sent.
    pub fn query(&self) -> Option<&str> {
        self.inner().head.uri.query()
    }

    /// HTTP/1.0 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.inner().head.version
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.inner().head.headers
    }

    /// A header's value, when it is there and is text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.inner().head.headers.get(name)?.to_str().ok()
    }

    /// The value of a parameter of the matched route, as sent (not percent-decoded).
    pub fn param(&self, name: &str) -> Option<&str> {
        let at = self.inner().route.as_ref()?.names.iter().position(|known| known == name)?;
        let (start, length) = self.inner().params.ranges[at];
        self.path().get(usize::from(start)..usize::from(start) + usize::from(length))
    }

    /// The state given to [`Router::with_state`](crate::Router::with_state).
    ///
    /// # Panics
    /// When the router has no state of this type: a mistake in the program.
    pub fn state<T: Send + Sync + 'static>(&self) -> &T {
        let state = self.inner().route.as_ref().and_then(|route| route.state.as_deref());
        state
            .and_then(|state| state.downcast_ref())
            .unwrap_or_else(|| panic!("the router has no state of type {}", type_name::<T>()))
    }

    /// The client's address; `None` on a unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.inner().flow.peer().address()
    }

    /// The clock, as of the worker's turn.
    pub(crate) fn now(&self) -> Instant {
        self.inner().flow.site().now.get()
    }

    /// The request's id: the client's `X-Request-Id` when it is well-formed (1 to 128 characters of
    /// `A-Z a-z 0-9 . _ -`), else one made here. Asking for it also sends it back in the response.
    pub fn id(&self) -> Rc<str> {
        self.inner().flow.request_id()
    }

    /// Fires when the shutdown asks handlers to come to an end: requests that have no response by
    /// half of the phase `cancelling` are answered 503, what stands at its end is cut.
    pub fn shutdown(&self) -> CancellationToken {
        self.inner().flow.site().shutdown.clone()
    }

    /// Fires when nobody waits for the response any more: the client has reset the connection or
    /// (unless [`HalfClose::Serve`](crate::HalfClose::Serve)) finished sending, or the shutdown
    /// asks handlers to come to an end. A handler may still answer, unless the connection is gone.
    ///
    /// ```
    /// use ebbtide::{IntoResponse, Request, Response};
    ///
    /// async fn report(request: Request) -> Response {
    ///     match request.cancelled().run_until_cancelled(compute()).await {
    ///         Some(text) => Response::text(text),
    ///         None => Response::busy(),
    ///     }
    /// }
    /// # async fn compute() -> String { String::new() }
    /// ```
    pub fn cancelled(&self) -> CancellationToken {
        self.inner().flow.token()
    }

    /// The body, to be read piece by piece.
    pub fn body_mut(&mut self) -> &mut RequestBody {
        &mut self.inner_mut().body
    }

    /// The whole body.
    ///
    /// # Errors
    /// See [`RequestBody::chunk`].
    pub async fn bytes(&mut self) -> Result<Bytes, super::body::BodyError> {
        self.inner_mut().body.bytes().await
    }

    /// Takes the request apart.
    pub fn into_parts(mut self) -> (http::request::Parts, RequestBody) {
        let Some(Inner { mut head, body, .. }) = self.slot.take().and_then(|slot| *slot) else {
            unreachable!("{WHOLE}")
        };
        let (nothing, ()) = http::Request::new(()).into_parts();
        (std::mem::replace(&mut head.0, nothing), body)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // Not there when it was taken apart.
        if let Some(mut slot) = self.slot.take()
            && let Some(inner) = slot.as_ref()
        {
            let flow = Rc::clone(&inner.flow);
            *slot = None;
            flow.request_slot.set(Some(slot));
        }
    }
}

const WHOLE: &str = "a request that its handler has is whole";

/// A request's head. Its header map goes to the next response that is made on the thread, so that
/// neither costs an allocation: hyper takes the response's map for the request after it.
struct Head(http::request::Parts);

impl Deref for Head {
    type Target = http::request::Parts;

    fn deref(&self) -> &http::request::Parts {
        &self.0
    }
}

impl Drop for Head {
    fn drop(&mut self) {
        let mut headers = std::mem::take(&mut self.0.headers);
        if (1..=SPARE_FIELDS_MAX).contains(&headers.capacity()) {
            headers.clear();
            // At the thread's end there is no place for it any more.
            SPARE.try_with(|spare| spare.set(Some(headers))).unwrap_or_default();
        }
    }
}

/// A header map without fields, if there is one with room for some.
fn spare_headers() -> HeaderMap {
    SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default()
}

thread_local! {
    /// Empty, and no larger than [`SPARE_FIELDS_MAX`].
    static SPARE: Cell<Option<HeaderMap>> = const { Cell::new(None) };
}

/// A map that grew larger (112 bytes a field) is not kept.
const SPARE_FIELDS_MAX: usize = 32;

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.inner().head.method)
            .field("uri", &self.inner().head.uri)
            .field("headers", &self.inner().head.headers)
            .finish_non_exhaustive()
    }
}

fn type_name<T>() -> &'static str {
    std::any::type_name::<T>()
}

/// A response.
#[derive(Debug)]
pub struct Response {
    http: http::Response<Body>,
    media: Media,
}

/// The `Content-Type` of a response that has none in its header map. The two most frequent ones go
/// to the wire as they are: through hyper's header map they would take a twentieth of a small
/// request's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Media {
    /// What the header map says, if anything.
    #[default]
    Mapped,
    Text,
    Json,
}

impl Media {
    /// The header's line.
    pub(super) fn line(self) -> &'static [u8] {
        match self {
            Media::Mapped => b"",
            Media::Text => b"content-type: text/plain; charset=utf-8\r\n",
            Media::Json => b"content-type: application/json\r\n",
        }
    }

    fn value(self) -> Option<HeaderValue> {
        match self {
            Media::Mapped => None,
            Media::Text => Some(TEXT),
            Media::Json => Some(JSON),
        }
    }
}

/// 200 without a body.
impl Default for Response {
    fn default() -> Response {
        Response::with_body(Body::empty())
    }
}

impl Response {
    fn with_body(body: Body) -> Response {
        let mut http = http::Response::new(body);
        *http.headers_mut() = spare_headers();
        Response { http, media: Media::Mapped }
    }

    fn with_media(mut self, media: Media) -> Response {
        self.media = media;
        self
    }

    /// 200 with `text/plain`.
    pub fn text(text: impl Into<Bytes>) -> Response {
        Response::with_body(Body::from(text.into())).with_media(Media::Text)
    }

    /// 200 with `application/json`.
    ///
    /// A value that JSON cannot express (a map with keys that are no text) is answered 500 and
    /// logged.
    pub fn json(value: &impl serde::Serialize) -> Response {
        match serde_json::to_vec(value) {
            Ok(bytes) => Response::with_body(Body::from(bytes)).with_media(Media::Json),
            Err(error) => {
                log::error!(event_type = "json_failed"; "cannot express a response: {error}");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }

    /// 200 with bytes of the given content type.
    pub fn typed(content_type: HeaderValue, bytes: Bytes) -> Response {
        Response::with_body(Body::from(bytes)).with_header(CONTENT_TYPE, content_type)
    }

    /// 503 with `Retry-After`: the server is busy, not broken.
    pub fn busy() -> Response {
        StatusCode::SERVICE_UNAVAILABLE
            .into_response()
            .with_header(http::header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER))
    }

    /// Sets the status.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Response {
        *self.http.status_mut() = status;
        self
    }

    /// Sets a header, in the place of any of that name.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Response {
        self.headers_mut().insert(name, value);
        self
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.http.status()
    }

    /// All headers, to be changed.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        let headers = self.http.headers_mut();
        if let Some(value) = std::mem::take(&mut self.media).value() {
            headers.insert(CONTENT_TYPE, value);
        }
        headers
    }

    /// The headers but for that of its [`Media`], to be changed.
    pub(super) fn other_headers_mut(&mut self) -> &mut HeaderMap {
        self.http.headers_mut()
    }

    /// As hyper wants it, and the header that is missing in it.
    pub(super) fn into_parts(self) -> (http::Response<Body>, Media) {
        (self.http, self.media)
    }
}

impl From<http::Response<Body>> for Response {
    fn from(response: http::Response<Body>) -> Response {
        Response { http: response, media: Media::Mapped }
    }
}

/// What a handler may return.
pub trait IntoResponse {
    /// The response it stands for.
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for http::Response<Body> {
    fn into_response(self) -> Response {
        Response::from(self)
    }
}

impl IntoResponse for Body {
    fn into_response(self) -> Response {
        Response::with_body(self)
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

/// The status with an empty body for 204 and 304 and for success, else with its reason as text.
impl IntoResponse for StatusCode {
    fn into_response(self) -> Response {
        let body = if self.is_client_error() || self.is_server_error() {
            Response::text(self.canonical_reason().unwrap_or("Error"))
        } else {
            Response::default()
        };
        body.with_status(self)
    }
}

impl<T: IntoResponse> IntoResponse for (StatusCode, T) {
    fn into_response(self) -> Response {
        self.1.into_response().with_status(self.0)
    }
}

impl<T: IntoResponse, E: IntoResponse> IntoResponse for Result<T, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(value) => value.into_response(),
            Err(error) => error.into_response(),
        }
    }
}

impl IntoResponse for BlockingError {
    fn into_response(self) -> Response {
        match self {
            BlockingError::Busy => Response::busy(),
            BlockingError::Panicked => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// `text/plain` in UTF-8.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// `application/json`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

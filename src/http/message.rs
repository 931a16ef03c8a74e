//! Requests and responses, as handlers see them.

use std::fmt;
use std::net::SocketAddr;
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
    slot: Option<Box<RequestSlot>>,
}

/// The place of a request, which its connection keeps for the next one. In two parts, so that
/// filling it takes no copy of its own.
#[derive(Default)]
pub(super) struct RequestSlot {
    head: Option<http::request::Parts>,
    rest: Option<Rest>,
}

/// What there is besides the head.
struct Rest {
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
        slot.head = Some(head);
        slot.rest = Some(Rest { body, route: None, params: Params::default(), flow });
        Request { slot: Some(slot) }
    }

    fn head(&self) -> &http::request::Parts {
        self.slot.as_ref().and_then(|slot| slot.head.as_ref()).expect(WHOLE)
    }

    fn rest(&self) -> &Rest {
        self.slot.as_ref().and_then(|slot| slot.rest.as_ref()).expect(WHOLE)
    }

    fn rest_mut(&mut self) -> &mut Rest {
        self.slot.as_mut().and_then(|slot| slot.rest.as_mut()).expect(WHOLE)
    }

    pub(crate) fn set_route(&mut self, route: Rc<Route>, params: Params) {
        let (head, rest) = (self.head(), self.rest());
        let site = rest.flow.site();
        let peer = rest.flow.peer();
        site.watch.call(site.now.get(), &head.method, head.uri.path(), peer, &route.template);
        rest.flow.set_route(Rc::clone(&route));
        let rest = self.rest_mut();
        rest.route = Some(route);
        rest.params = params;
    }

    /// The method, as sent.
    pub fn method(&self) -> &Method {
        &self.head().method
    }

    /// The target: for most requests path and query, without scheme and host.
    pub fn uri(&self) -> &Uri {
        &self.head().uri
    }

    /// The path without the query, as sent.
    pub fn path(&self) -> &str {
        self.head().uri.path()
    }

    /// What follows the first `?`, as sent.
    pub fn query(&self) -> Option<&str> {
        self.head().uri.query()
    }

    /// HTTP/1.0 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.head().version
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head().headers
    }

    /// A header's value, when it is there and is text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.head().headers.get(name)?.to_str().ok()
    }

    /// The value of a parameter of the matched route, as sent (not percent-decoded).
    pub fn param(&self, name: &str) -> Option<&str> {
        let at = self.rest().route.as_ref()?.names.iter().position(|known| known == name)?;
        let (start, length) = self.rest().params.ranges[at];
        self.path().get(usize::from(start)..usize::from(start) + usize::from(length))
    }

    /// The state given to [`Router::with_state`](crate::Router::with_state).
    ///
    /// # Panics
    /// When the router has no state of this type: a mistake in the program.
    pub fn state<T: Send + Sync + 'static>(&self) -> &T {
        let state = self.rest().route.as_ref().and_then(|route| route.state.as_deref());
        state
            .and_then(|state| state.downcast_ref())
            .unwrap_or_else(|| panic!("the router has no state of type {}", type_name::<T>()))
    }

    /// The client's address; `None` on a unix socket.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.rest().flow.peer().address()
    }

    /// The clock, as of the worker's turn.
    pub(crate) fn now(&self) -> Instant {
        self.rest().flow.site().now.get()
    }

    /// The request's id: the client's `X-Request-Id` when it is well-formed (1 to 128 characters of
    /// `A-Z a-z 0-9 . _ -`), else one made here. Asking for it also sends it back in the response.
    pub fn id(&self) -> Rc<str> {
        self.rest().flow.request_id()
    }

    /// Fires when the shutdown asks handlers to come to an end: requests that have no response by
    /// half of the phase `cancelling` are answered 503, what stands at its end is cut.
    pub fn shutdown(&self) -> CancellationToken {
        self.rest().flow.site().shutdown.clone()
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
        self.rest().flow.token()
    }

    /// The body, to be read piece by piece.
    pub fn body_mut(&mut self) -> &mut RequestBody {
        &mut self.rest_mut().body
    }

    /// The whole body.
    ///
    /// # Errors
    /// See [`RequestBody::chunk`].
    pub async fn bytes(&mut self) -> Result<Bytes, super::body::BodyError> {
        self.rest_mut().body.bytes().await
    }

    /// Takes the request apart.
    pub fn into_parts(mut self) -> (http::request::Parts, RequestBody) {
        match self.slot.take().map(|slot| *slot) {
            Some(RequestSlot { head: Some(head), rest: Some(rest) }) => (head, rest.body),
            _ => unreachable!("{WHOLE}"),
        }
    }
}

/// Its header map goes to the next response that is made on the thread, so that neither costs an
/// allocation: hyper takes the response's map for the request after it.
impl Drop for Request {
    fn drop(&mut self) {
        // Not there when it was taken apart.
        let Some(mut slot) = self.slot.take() else { return };
        if let Some(head) = &mut slot.head {
            spare_headers::keep(&mut head.headers);
        }
        slot.head = None;
        if let Some(rest) = &slot.rest {
            let flow = Rc::clone(&rest.flow);
            slot.rest = None;
            flow.request_slot.set(Some(slot));
        }
    }
}

const WHOLE: &str = "a request that its handler has is whole";

/// The header map of a request that is over, for the next response that is made on the thread.
mod spare_headers {
    use std::cell::RefCell;

    use http::HeaderMap;

    thread_local! {
        /// Empty, and no larger than [`FIELDS_MAX`].
        static SPARE: RefCell<HeaderMap> = RefCell::default();
    }

    /// A map that grew larger (112 bytes a field) is not kept.
    const FIELDS_MAX: usize = 32;

    /// Keeps `headers`.
    pub fn keep(headers: &mut HeaderMap) {
        if (1..=FIELDS_MAX).contains(&headers.capacity()) {
            headers.clear();
            exchange(headers);
        }
    }

    /// Puts the spare map in the place of `headers`, which has no room.
    pub fn take(headers: &mut HeaderMap) {
        if headers.capacity() == 0 {
            exchange(headers);
        }
    }

    fn exchange(headers: &mut HeaderMap) {
        // At the thread's end there is no place for it any more.
        SPARE
            .try_with(|spare| std::mem::swap(&mut *spare.borrow_mut(), headers))
            .unwrap_or_default();
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.head().method)
            .field("uri", &self.head().uri)
            .field("headers", &self.head().headers)
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
    pub(super) const ALL: [Media; 3] = [Media::Mapped, Media::Text, Media::Json];

    /// The header's line.
    pub(super) fn line(self) -> String {
        match self.value() {
            None => String::new(),
            Some(value) => format!("content-type: {}\r\n", value.to_str().unwrap_or_default()),
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
        Response { http: http::Response::new(body), media: Media::Mapped }
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
        spare_headers::take(headers);
        if let Some(value) = std::mem::take(&mut self.media).value() {
            headers.insert(CONTENT_TYPE, value);
        }
        headers
    }

    /// The headers but for that of its [`Media`], to be changed.
    pub(super) fn other_headers_mut(&mut self) -> &mut HeaderMap {
        self.http.headers_mut()
    }

    pub(super) fn media(&self) -> Media {
        self.media
    }

    /// Gives it a header map with room, for hyper takes it for the next request.
    pub(super) fn lend_headers(&mut self) {
        spare_headers::take(self.http.headers_mut());
    }

    /// As hyper wants it, without the header of its [`Media`].
    pub(super) fn into_http(self) -> http::Response<Body> {
        self.http
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

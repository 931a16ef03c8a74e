//! Requests and responses, as handlers see them.

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName};
use http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use hyper::body::Incoming;

use super::body::{Body, OutBody, RequestBody};
use super::flow::Flow;
use super::limits::RETRY_AFTER;
use super::request_head::RequestHead;
use super::short::Short;
use super::spare;
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
    head: RequestHead,
    rest: Option<Rest>,
}

/// What there is besides the head.
struct Rest {
    body: RequestBody,
    /// `Some` once a router has matched it.
    route: Option<Rc<Route>>,
    params: Params,
}

impl RequestSlot {
    /// Bytes that it has room for.
    pub(super) fn room(&self) -> usize {
        self.head.room()
    }
}

impl Rest {
    fn new(body: RequestBody) -> Rest {
        Rest { body, route: None, params: Params::default() }
    }
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
    pub(super) fn new(
        request: http::Request<Incoming>,
        flow: &Rc<Flow>,
        body_bytes_max: u64,
    ) -> Request {
        let mut slot = flow.request_slot.take().unwrap_or_default();
        let (head, incoming) = request.into_parts();
        slot.head.set_parsed(head);
        slot.rest = Some(Rest::new(RequestBody::new(incoming, Rc::clone(flow), body_bytes_max)));
        Request { slot: Some(slot) }
    }

    /// One that came the short way.
    pub(super) fn short(request: &Short<'_>, flow: &Rc<Flow>) -> Request {
        let mut slot = flow.request_slot.take().unwrap_or_default();
        slot.head.set_sent(request);
        slot.rest = Some(Rest::new(RequestBody::whole(request.body, Rc::clone(flow))));
        Request { slot: Some(slot) }
    }

    fn head(&self) -> &RequestHead {
        &self.slot.as_ref().expect(WHOLE).head
    }

    fn parts(&self) -> &http::request::Parts {
        self.head().parts()
    }

    fn flow(&self) -> &Rc<Flow> {
        self.rest().body.flow()
    }

    fn rest(&self) -> &Rest {
        self.slot.as_ref().and_then(|slot| slot.rest.as_ref()).expect(WHOLE)
    }

    fn rest_mut(&mut self) -> &mut Rest {
        self.slot.as_mut().and_then(|slot| slot.rest.as_mut()).expect(WHOLE)
    }

    /// It is going to a handler of `route`.
    pub(crate) fn set_route(&mut self, route: &Rc<Route>, params: Params) {
        let rest = self.rest_mut();
        rest.body.flow().set_route(route);
        rest.route = Some(Rc::clone(route));
        rest.params = params;
    }

    /// The method, as sent.
    pub fn method(&self) -> &Method {
        self.head().method()
    }

    /// The target: for most requests path and query, without scheme and host.
    pub fn uri(&self) -> &Uri {
        &self.parts().uri
    }

    /// The path without the query, as sent.
    pub fn path(&self) -> &str {
        self.head().path()
    }

    /// What follows the first `?`, as sent.
    pub fn query(&self) -> Option<&str> {
        self.head().query()
    }

    /// HTTP/1.0 or HTTP/1.1.
    pub fn version(&self) -> Version {
        self.parts().version
    }

    /// All headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts().headers
    }

    /// A header's value, when it is there and is text (visible ASCII, spaces and tabs); the first
    /// one, when there are several.
    pub fn header(&self, name: impl AsRef<str>) -> Option<&str> {
        self.head().text_of(name.as_ref())
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
        self.flow().peer().address()
    }

    /// The clock, as of the worker's turn.
    pub(crate) fn now(&self) -> Instant {
        self.flow().site().now.get()
    }

    /// The request's id: the client's `X-Request-Id` when it is well-formed (1 to 128 characters of
    /// `A-Z a-z 0-9 . _ -`), else one made here. Asking for it also sends it back in the response.
    pub fn id(&self) -> Rc<str> {
        self.flow().request_id()
    }

    /// Fires when the shutdown asks handlers to come to an end: requests that have no response by
    /// half of the phase `cancelling` are answered 503, what stands at its end is cut.
    pub fn shutdown(&self) -> CancellationToken {
        self.flow().site().shutdown.clone()
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
        self.flow().token()
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
            Some(RequestSlot { head, rest: Some(rest) }) => (head.into_parts(), rest.body),
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
        slot.head.clear();
        if let Some(rest) = &slot.rest {
            let flow = Rc::clone(rest.body.flow());
            slot.rest = None;
            flow.request_slot.set(Some(slot));
        }
    }
}

const WRITTEN: &str = "a response has its sheet until it is dropped";
const WHOLE: &str = "a request that its handler has is whole";

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("method", self.method())
            .field("uri", self.uri())
            .field("headers", self.headers())
            .finish_non_exhaustive()
    }
}

fn type_name<T>() -> &'static str {
    std::any::type_name::<T>()
}

/// A response.
pub struct Response {
    /// In a box, for it is moved from hand to hand. `Some` until it is dropped.
    sheet: Option<Box<Sheet>>,
}

/// What a response says. Kept for the next one when it is over.
#[derive(Debug, Default)]
pub(super) struct Sheet {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub extensions: Extensions,
    pub media: Media,
    pub body: Body,
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
        Response { sheet: Some(spare::take_sheet()) }
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        if let Some(sheet) = self.sheet.take() {
            spare::keep_sheet(sheet);
        }
    }
}

impl Response {
    fn with_body(body: Body) -> Response {
        let mut response = Response::default();
        response.sheet_mut().body = body;
        response
    }

    fn with_media(mut self, media: Media) -> Response {
        self.sheet_mut().media = media;
        self
    }

    pub(super) fn sheet(&self) -> &Sheet {
        self.sheet.as_ref().expect(WRITTEN)
    }

    fn sheet_mut(&mut self) -> &mut Sheet {
        self.sheet.as_mut().expect(WRITTEN)
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
        self.sheet_mut().status = status;
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
        self.sheet().status
    }

    /// All headers, to be changed.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        let sheet = self.sheet_mut();
        spare::take_headers(&mut sheet.headers);
        if let Some(value) = std::mem::take(&mut sheet.media).value() {
            sheet.headers.insert(CONTENT_TYPE, value);
        }
        &mut sheet.headers
    }

    /// The headers but for that of its [`Media`], to be changed.
    pub(super) fn other_headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.sheet_mut().headers
    }

    pub(super) fn media(&self) -> Media {
        self.sheet().media
    }

    pub(super) fn body(&self) -> &Body {
        &self.sheet().body
    }

    pub(super) fn body_mut(&mut self) -> &mut Body {
        &mut self.sheet_mut().body
    }

    /// As hyper wants it, without the header of its [`Media`]. When its body is dropped, `flow`
    /// hears that the exchange is over.
    pub(super) fn into_http(mut self, flow: Rc<Flow>) -> http::Response<OutBody> {
        let mut sheet = self.sheet.take().expect(WRITTEN);
        // Without a body first, so that nothing that is there already is moved or dropped.
        let mut response = http::Response::new(OutBody::new(flow));
        *response.status_mut() = sheet.status;
        *response.version_mut() = sheet.version;
        if sheet.headers.capacity() > 0 {
            std::mem::swap(response.headers_mut(), &mut sheet.headers);
        }
        // hyper takes the map for the next request: it should have room.
        spare::take_headers(response.headers_mut());
        if !sheet.extensions.is_empty() {
            std::mem::swap(response.extensions_mut(), &mut sheet.extensions);
        }
        response.body_mut().carry(Response { sheet: Some(sheet) });
        response
    }
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sheet { status, headers, media, body, .. } = self.sheet();
        f.debug_struct("Response")
            .field("status", status)
            .field("headers", headers)
            .field("media", media)
            .field("body", body)
            .finish_non_exhaustive()
    }
}

impl From<http::Response<Body>> for Response {
    fn from(response: http::Response<Body>) -> Response {
        let (head, body) = response.into_parts();
        let mut response = Response::with_body(body);
        let sheet = response.sheet_mut();
        sheet.status = head.status;
        sheet.version = head.version;
        sheet.headers = head.headers;
        sheet.extensions = head.extensions;
        response
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

//! What requests that are over leave to the next ones on the thread, so that a small one costs no
//! allocation: a header map, the sheet of a response, and the places that a connection has for a
//! request.

use std::cell::{Cell, RefCell};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, Version};

use super::exchange::Exchanges;
use super::message::{Media, RequestSlot, Sheet};

thread_local! {
    /// Where bytes are shared.
    static SHARED: RefCell<BytesMut> = RefCell::default();
    /// Empty, and no larger than [`FIELDS_MAX`].
    static HEADERS: RefCell<HeaderMap> = RefCell::default();
    /// As good as new.
    static SHEET: Cell<Option<Box<Sheet>>> = const { Cell::new(None) };
    /// No larger than [`PLACE_BYTES_MAX`], and empty.
    static PLACES: Cell<Option<Places>> = const { Cell::new(None) };
}

/// What a connection keeps from one request to the next.
#[derive(Default)]
pub(super) struct Places {
    pub request: Option<Box<RequestSlot>>,
    pub exchanges: Exchanges,
}

/// Places that took more room are not kept.
const PLACE_BYTES_MAX: usize = 1024;

/// A map that grew larger (112 bytes a field) is not kept.
const FIELDS_MAX: usize = 32;

/// Keeps the header map of a request for the next response that is made: hyper takes the
/// response's map for the request after it.
pub fn keep_headers(mut headers: HeaderMap) {
    if (1..=FIELDS_MAX).contains(&headers.capacity()) {
        headers.clear();
        exchange(&mut headers);
    }
    if headers.capacity() == 0 {
        #[allow(
            clippy::mem_forget,
            reason = "it owns nothing, and to find that out takes a while"
        )]
        std::mem::forget(headers);
    }
}

/// Puts the spare map in the place of `headers`, if that has no room.
pub fn take_headers(headers: &mut HeaderMap) {
    if headers.capacity() == 0 {
        exchange(headers);
    }
}

fn exchange(headers: &mut HeaderMap) {
    // At the thread's end there is no place for it any more.
    HEADERS.try_with(|spare| std::mem::swap(&mut *spare.borrow_mut(), headers)).unwrap_or_default();
}

/// A copy of `bytes` that can be shared. It costs no allocation when what was shared before is
/// dropped.
pub fn share(bytes: &[u8]) -> Bytes {
    if bytes.len() > SHARED_BYTES {
        return Bytes::copy_from_slice(bytes);
    }
    // At the thread's end there is no place for it any more.
    let shared = SHARED.try_with(|room| {
        let mut room = room.borrow_mut();
        if room.capacity() < bytes.len() {
            room.reserve(SHARED_BYTES);
        }
        room.extend_from_slice(bytes);
        room.split().freeze()
    });
    shared.unwrap_or_else(|_| Bytes::copy_from_slice(bytes))
}

/// Room for some heads or small bodies at once.
const SHARED_BYTES: usize = 2048;

/// A sheet that says nothing yet.
pub fn take_sheet() -> Box<Sheet> {
    SHEET.try_with(Cell::take).ok().flatten().unwrap_or_default()
}

/// Keeps a sheet, without what it says.
pub fn keep_sheet(mut sheet: Box<Sheet>) {
    // Unless it is gone to hyper.
    if sheet.headers.capacity() > 0 {
        keep_headers(std::mem::take(&mut sheet.headers));
    }
    sheet.status = StatusCode::OK;
    sheet.version = Version::HTTP_11;
    if !sheet.extensions.is_empty() {
        sheet.extensions.clear();
    }
    sheet.media = Media::Mapped;
    sheet.body.clear();
    // At the thread's end there is no place for it any more.
    SHEET.try_with(|spare| spare.set(Some(sheet))).unwrap_or_default();
}

/// Places for a connection's first request.
pub(super) fn take_places() -> Places {
    PLACES.try_with(Cell::take).ok().flatten().unwrap_or_default()
}

/// Keeps the places of a connection that is gone.
pub(super) fn keep_places(mut places: Places) {
    let Places { request: Some(request), exchanges } = &mut places else { return };
    if request.room() <= PLACE_BYTES_MAX && exchanges.vacate(PLACE_BYTES_MAX) {
        // At the thread's end there is no place for it any more.
        PLACES.try_with(|spare| spare.set(Some(places))).unwrap_or_default();
    }
}

//! What a request costs in allocations, once its connection has been served before: none for a
//! plain function, one for an `async` one (its future, boxed).
//!
//! Counted on the thread that serves, over sockets that are memory. A test that fails says where
//! the allocations came from.

// Counting allocations is standing between the program and its allocator, which only an `unsafe
// impl` can.
#![allow(unsafe_code, reason = "see above; the server itself has no part in it")]

#[path = "../benches/rig/mod.rs"]
mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::time::Duration;

use rig::{Client, Rig, get_request, post_request, router};

/// The system's allocator, with a book.
struct Counting;

thread_local! {
    /// Allocations of this thread while it is counting.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static MODE: Cell<Mode> = const { Cell::new(Mode::Off) };
    static PLACES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Off,
    Counting,
    /// As `Counting`, and notes the place of each.
    Tracing,
}

fn count(size: usize) {
    let mode = MODE.get();
    if mode == Mode::Off {
        return;
    }
    COUNT.set(COUNT.get() + 1);
    if mode == Mode::Tracing {
        // What taking the trace allocates does not count.
        MODE.set(Mode::Off);
        let trace = Backtrace::force_capture().to_string();
        PLACES.with_borrow_mut(|places| places.push(format!("{size} bytes\n{}", ours(&trace))));
        MODE.set(mode);
    }
}

/// The frames of a backtrace that are in the server or in hyper and its kin.
fn ours(trace: &str) -> String {
    let mut text = String::new();
    let mut lines = trace.lines().peekable();
    while let Some(frame) = lines.next() {
        let at = lines.next_if(|line| line.trim_start().starts_with("at "));
        let is_ours = ["ebbtide::", "hyper::", "http::", "bytes::"];
        if is_ours.iter().any(|name| frame.contains(name)) && !frame.contains("rig::") {
            let at = at.map_or("", |at| at.trim());
            writeln!(text, "    {} {at}", frame.trim()).expect("strings take everything");
        }
    }
    text
}

// SAFETY: every call is handed on to the system's allocator as it came; counting touches
// thread-locals that are initialised by constants, so that it does not allocate by itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`; the block came from there.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations of `act` on this thread.
fn allocations(mode: Mode, act: impl FnOnce()) -> usize {
    COUNT.set(0);
    MODE.set(mode);
    act();
    MODE.set(Mode::Off);
    COUNT.get()
}

/// A client with a connection that has been served before, in a rig that has grown to its size.
fn warmed_up(bytes: &[u8]) -> (Rig, Client) {
    let mut rig = Rig::new(router());
    let client = rig.connect();
    for _ in 0..WARM_UP {
        rig.pass(Duration::from_millis(30));
        rig.send(client, bytes);
        rig.settle();
        assert!(rig.received(client) > 0, "it was answered");
    }
    (rig, client)
}

/// Requests, each in its turn, cost `most` allocations each.
#[track_caller]
fn assert_allocations(bytes: &[u8], requests: usize, most: usize) {
    let (mut rig, client) = warmed_up(bytes);
    let serve = |rig: &mut Rig, times: usize| {
        for _ in 0..times {
            // Deadlines move on, and now and then the metrics are flushed.
            rig.pass(Duration::from_millis(1));
            rig.send(client, bytes);
            rig.settle();
        }
    };
    let answered = rig.counts().finished[0];
    let count = allocations(Mode::Counting, || serve(&mut rig, TIMES));
    let answered = rig.counts().finished[0] - answered;
    assert_eq!(answered, (TIMES * requests) as u64, "requests that were answered");
    if count != TIMES * requests * most {
        let traced = allocations(Mode::Tracing, || serve(&mut rig, 1));
        let places = PLACES.take().join("\n");
        panic!(
            "{count} allocations for {answered} requests, which may have {most} each; \
             one more turn had {traced}:\n{places}"
        );
    }
}

#[test]
fn a_plain_function_is_answered_without_any_allocation() {
    assert_allocations(&get_request("/plain"), 1, 0);
}

#[test]
fn an_async_function_is_answered_with_one_allocation() {
    assert_allocations(&get_request("/later"), 1, 1);
}

#[test]
fn pipelined_requests_are_answered_without_any_allocation() {
    assert_allocations(&get_request("/plain").repeat(16), 16, 0);
}

#[test]
fn the_allocator_of_this_test_does_count() {
    let count = allocations(Mode::Counting, || {
        drop(std::hint::black_box(vec![0u8; 100]));
    });
    assert_eq!(count, 1);
    let (mut rig, client) = warmed_up(&post_request("/echo", "hello"));
    let count = allocations(Mode::Counting, || {
        rig.send(client, &post_request("/echo", "hello"));
        rig.settle();
    });
    assert!(count > 1, "a body that is collected and sent back takes more than its future");
}

/// Turns, and seconds of the rig, in which all reaches its size: deadlines have been due by then.
const WARM_UP: usize = 100;

/// Turns that are counted.
const TIMES: usize = 1000;

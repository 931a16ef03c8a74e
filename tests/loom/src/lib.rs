//! The doorbell of `ebbtide`'s reactor, compiled against loom's atomics instead of std's.
//!
//! The file is the very one the server is built from; it takes its atomics from `super::sync`, and
//! here that is loom's, with one addition: a thread of a model can be made to go without fences.
//! `tests/doorbell.rs` uses it to prove that each fence is needed.

#[path = "../../../src/reactor/doorbell.rs"]
pub mod doorbell;

/// Whether a thread's fences are there or have been taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fences {
    Kept,
    Omitted,
}

/// Rules every fence the calling thread comes to from here on. Only inside a loom model.
pub fn set_fences(fences: Fences) {
    FENCES.with(|here| here.set(fences));
}

loom::thread_local! {
    static FENCES: std::cell::Cell<Fences> = std::cell::Cell::new(Fences::Kept);
}

mod sync {
    pub(super) use loom::sync::atomic::Ordering;

    /// loom's atomic, with swaps for stores.
    ///
    /// loom 0.7 gives a plain store no place in the modification order against a read-modify-write
    /// of another thread (tokio-rs/loom#254), and so goes through executions that no machine has: a
    /// `ring` that reads what an earlier `ring` left, though the reactor has long written over it.
    /// A relaxed swap has the place of the store, and loom knows it. The price: the fence of `doze`
    /// acquires from the ringer whose value the swap read, which after a store it would not. The
    /// argument for the doorbell makes no use of that, and the models without a fence fail all the
    /// same.
    #[derive(Debug)]
    pub(super) struct AtomicU32(loom::sync::atomic::AtomicU32);

    impl AtomicU32 {
        pub(super) fn new(value: u32) -> Self {
            Self(loom::sync::atomic::AtomicU32::new(value))
        }

        pub(super) fn load(&self, order: Ordering) -> u32 {
            self.0.load(order)
        }

        pub(super) fn store(&self, value: u32, order: Ordering) {
            self.0.swap(value, order);
        }

        pub(super) fn swap(&self, value: u32, order: Ordering) -> u32 {
            self.0.swap(value, order)
        }
    }

    pub(super) fn fence(order: Ordering) {
        if super::FENCES.with(std::cell::Cell::get) == super::Fences::Kept {
            loom::sync::atomic::fence(order);
        }
    }
}

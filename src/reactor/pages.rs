//! Paged storage: an array that grows without moving what it holds.
//!
//! A `Vec` of connections doubles: at the moment it grows, the old and the new block are both
//! there and every live element is copied, inside one turn. Under a memory limit that moment is
//! where the process dies, and under load it is a stall. Here growth is one more page of
//! [`PAGE`] elements; only the list of pages is ever copied, 24 bytes a page.
//!
//! Invariants:
//! - every page but the last is full, so an index splits into page and offset by its bits;
//! - a page is allocated whole and never grows, so an element never moves;
//! - nothing is ever taken away. The storage stays at its high-water mark, and so whatever an
//!   element remembers about its past (the generation of a slot) is never forgotten.

use std::ops::{Index, IndexMut};

/// An array of `T` by `u32` index that grows by pages and never shrinks.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    pages: Vec<Vec<T>>,
}

impl<T> Pages<T> {
    /// An empty array. Nothing is allocated before the first [`push`](Self::push).
    pub(crate) fn new() -> Self {
        Self { pages: Vec::new() }
    }

    /// The number of elements; also the index the next one will get.
    pub(crate) fn len(&self) -> u32 {
        let Some(last) = self.pages.last() else { return 0 };
        let len = (self.pages.len() - 1) * PAGE + last.len();
        u32::try_from(len).expect("push keeps the length within u32")
    }

    /// Puts `value` at the end and answers its index.
    ///
    /// # Panics
    ///
    /// When `u32::MAX` elements are there: that index is left free for "none".
    pub(crate) fn push(&mut self, value: T) -> u32 {
        let index = self.len();
        assert!(index < u32::MAX, "more elements than u32 can index");
        if index as usize == self.pages.len() * PAGE {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let page = self.pages.last_mut().expect("a page was added if there was no room");
        debug_assert!(page.len() < PAGE, "only the last page has room, and it has some");
        page.push(value);
        index
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        let (page, offset) = place(index);
        self.pages.get(page)?.get(offset)
    }

    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let (page, offset) = place(index);
        self.pages.get_mut(page)?.get_mut(offset)
    }

    /// Every element with its index, in index order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(self.pages.iter().flatten())
    }

    /// As [`iter`](Self::iter), to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0..).zip(self.pages.iter_mut().flatten())
    }
}

impl<T> Index<u32> for Pages<T> {
    type Output = T;

    fn index(&self, index: u32) -> &T {
        let (page, offset) = place(index);
        &self.pages[page][offset]
    }
}

impl<T> IndexMut<u32> for Pages<T> {
    fn index_mut(&mut self, index: u32) -> &mut T {
        let (page, offset) = place(index);
        &mut self.pages[page][offset]
    }
}

/// Which page holds `index`, and where in it.
fn place(index: u32) -> (usize, usize) {
    (index as usize / PAGE, index as usize % PAGE)
}

/// Elements a page. Even a page of the smallest elements is above the size from which malloc maps
/// memory of its own (128 KiB): what is not touched is not resident, and pages that live for ever
/// do not keep the freed buffers of a burst between them from going back to the system.
const PAGE: usize = 16 * 1024;
const _: () = assert!(PAGE.is_power_of_two(), "finding a page must be a shift, not a division");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_leaves_every_element_where_it_was() {
        let mut pages = Pages::new();
        assert_eq!((pages.len(), pages.get(0)), (0, None));
        let full = u32::try_from(3 * PAGE).unwrap();
        let mut homes = Vec::new();
        for number in 0..full {
            assert_eq!(pages.push(number), number);
            homes.push(&raw const pages[number]);
        }
        assert_eq!(pages.len(), full);
        assert_eq!(pages.get(full), None);
        for (index, &value) in pages.iter() {
            assert_eq!((index, homes[index as usize]), (value, &raw const pages[index]));
        }
    }
}

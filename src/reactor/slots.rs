//! A slab whose keys know when they are out of date.
//!
//! A connection lives at an index; epoll, the mailbox and the timer speak of it by [`Token`]. The
//! index is used again as soon as the connection is gone, while an event of the same epoll batch,
//! a wake from a pool thread or an old deadline may still carry the old token. Without a check it
//! would reach the new tenant: a hang-up meant for the old connection would close the new one. So
//! each slot counts its tenants, a token carries the count it was given, and *every* look-up
//! compares the two. There is no way in by a bare index but [`Slots::token_at`], which answers a
//! token that is alive now.
//!
//! Invariants:
//! - a slot's generation changes when, and only when, its tenant leaves;
//! - a slot is on the free list exactly when it has no tenant, and the list is last in, first out,
//!   so that a server which was once full and is now quiet touches few pages;
//! - slots are never given back (see `pages`): a generation that could start again at 0 would
//!   make old tokens valid.
//!
//! The generation has 24 bits and wraps. A token held while its slot is let 2^24 times would match
//! again. At ten thousand connections a second through one single slot that is half an hour, while
//! tokens are held for a turn (epoll) or for as long as a request runs.

use super::pages::Pages;

/// Names one tenant of one slot: index and generation. Meaningless to any other `Slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    /// Always below [`GENERATIONS`].
    generation: u32,
}

impl Token {
    /// The token as an integer: the index in the lower 32 bits, the generation in the next 24.
    /// The upper 8 bits are zero and free for the caller, who may tell kinds of token apart there.
    pub fn to_bits(self) -> u64 {
        u64::from(self.index) | u64::from(self.generation) << u32::BITS
    }

    /// The token that [`to_bits`](Self::to_bits) made. The upper 8 bits are ignored.
    #[expect(clippy::cast_possible_truncation, reason = "the halves are cut out on purpose")]
    pub fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> u32::BITS) as u32 & (GENERATIONS - 1) }
    }

    /// The index alone, for tables that run in parallel to the slots. It does not say who lives
    /// there now.
    pub fn index(self) -> u32 {
        self.index
    }
}

/// Values by [`Token`]. A token whose tenant is gone is answered `None` everywhere.
#[derive(Debug)]
pub struct Slots<T> {
    pages: Pages<Slot<T>>,
    /// The free slot to be let next, or [`NONE`]. The others follow by `next_free`.
    free: u32,
    /// The number of slots that have a tenant.
    len: u32,
}

impl<T> Slots<T> {
    /// No slots. The first [`insert`](Self::insert) allocates.
    pub fn new() -> Self {
        Self { pages: Pages::new(), free: NONE, len: 0 }
    }

    /// The number of live values.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no value is live.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes `value` in, at the slot that was freed last or at a new one.
    ///
    /// # Panics
    ///
    /// When 2^32 - 1 values are live.
    pub fn insert(&mut self, value: T) -> Token {
        self.len += 1;
        if self.free == NONE {
            let slot = Slot { value: Some(value), generation: 0, next_free: NONE };
            return Token { index: self.pages.push(slot), generation: 0 };
        }
        let index = self.free;
        let slot = &mut self.pages[index];
        assert!(slot.value.is_none(), "the free list led to a slot with a tenant");
        self.free = slot.next_free;
        slot.next_free = NONE;
        slot.value = Some(value);
        Token { index, generation: slot.generation }
    }

    /// The value `token` names, if it is still there.
    pub fn get(&self, token: Token) -> Option<&T> {
        let slot = self.pages.get(token.index)?;
        if slot.generation == token.generation { slot.value.as_ref() } else { None }
    }

    /// As [`get`](Self::get), to change.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.pages.get_mut(token.index)?;
        if slot.generation == token.generation { slot.value.as_mut() } else { None }
    }

    /// Takes the value out; `token` and all its copies are stale from here on.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.pages.get_mut(token.index)?;
        if slot.generation != token.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) % GENERATIONS;
        slot.next_free = self.free;
        self.free = token.index;
        self.len -= 1;
        Some(value)
    }

    /// The token of the value that lives at `index` now.
    pub fn token_at(&self, index: u32) -> Option<Token> {
        self.pages.get(index)?.token(index)
    }

    /// The tokens of all live values, in index order. Looks at every slot ever used.
    pub fn tokens(&self) -> impl Iterator<Item = Token> {
        self.pages.iter().filter_map(|(index, slot)| slot.token(index))
    }

    /// All live values with their tokens, in index order. Looks at every slot ever used.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &T)> {
        self.pages.iter().filter_map(|(index, slot)| slot.token(index).zip(slot.value.as_ref()))
    }

    /// As [`iter`](Self::iter), to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Token, &mut T)> {
        self.pages.iter_mut().filter_map(|(index, slot)| slot.token(index).zip(slot.value.as_mut()))
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Slot<T> {
    /// `Some` exactly while there is a tenant.
    value: Option<T>,
    /// That of the tenant, or of the next one when there is none. Below [`GENERATIONS`].
    generation: u32,
    /// While there is no tenant: the free slot below this one on the list, or [`NONE`].
    next_free: u32,
}

impl<T> Slot<T> {
    /// The token of the tenant, if there is one; `index` is where this slot is.
    fn token(&self, index: u32) -> Option<Token> {
        self.value.is_some().then_some(Token { index, generation: self.generation })
    }
}

/// After this many tenants a slot's generation starts again at 0.
const GENERATIONS: u32 = 1 << 24;
const _: () = assert!(GENERATIONS.is_power_of_two(), "from_bits takes a generation by mask");

/// No slot: the end of the free list. `Pages` never gives this index out.
const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_costs_eight_bytes_more_than_its_value() {
        assert_eq!(size_of::<Option<Box<u64>>>(), size_of::<Box<u64>>(), "a box has a niche");
        assert_eq!(size_of::<Slot<Box<u64>>>(), size_of::<Box<u64>>() + 8);
        assert_eq!(size_of::<Slot<u64>>(), size_of::<Option<u64>>() + 8);
    }

    #[test]
    fn a_stale_token_does_not_reach_the_next_tenant() {
        let mut slots = Slots::new();
        let old = slots.insert("old");
        assert_eq!(slots.remove(old), Some("old"));
        let new = slots.insert("new");
        assert_eq!(new.index(), old.index(), "the slot freed last is let first");
        assert_eq!(slots.get(old), None);
        assert_eq!(slots.get_mut(old), None);
        assert_eq!(slots.remove(old), None);
        assert_eq!(slots.get(new), Some(&"new"));
        assert_eq!(slots.token_at(old.index()), Some(new));
    }

    #[test]
    fn the_upper_eight_bits_of_a_packed_token_belong_to_the_caller() {
        let token = Token { index: u32::MAX - 1, generation: GENERATIONS - 1 };
        assert_eq!(token.to_bits() >> 56, 0);
        assert_eq!(Token::from_bits(token.to_bits() | 0xA5 << 56), token);
    }

    #[test]
    fn a_generation_wraps_within_its_bits() {
        let mut slots = Slots::new();
        let first = slots.insert(());
        slots.pages[first.index].generation = GENERATIONS - 1;
        let last = slots.token_at(first.index).unwrap();
        slots.remove(last);
        assert_eq!(slots.insert(()), first, "the whole cycle is through");
        assert_eq!(slots.get(last), None);
    }
}

//! Where chance comes from: a small generator of which a seed says everything.

/// `SplitMix64` (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
pub struct Rng(u64);

impl Rng {
    /// `salt` tells the generators of one seed apart, so that what one of them is asked does not
    /// change what another one says.
    pub fn new(seed: u64, salt: u64) -> Rng {
        let mut rng = Rng(seed ^ salt.wrapping_mul(0xD134_2543_DE82_EF95));
        rng.next();
        rng
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }

    pub fn size(&mut self, low: usize, high: usize) -> usize {
        let size = self.between(low as u64, high as u64);
        usize::try_from(size).expect("between two sizes")
    }

    /// Often small, seldom large: each power of two up to `high` is as likely as the others.
    pub fn skewed(&mut self, high: usize) -> usize {
        let bits = u64::from(usize::BITS - high.leading_zeros());
        let most = (1usize << self.between(0, bits)) - 1;
        self.size(0, most.min(high))
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.size(0, from.len() - 1)]
    }
}

//! Whether a new connection is worth a look before anything of it is announced.
//!
//! One whose request came with it is answered at once, and if it closes then, epoll never hears of
//! it. But a look that finds nothing is a system call for nothing, and which of the two is usual
//! depends on the clients and on the load: behind a queue the requests have come, an idle worker
//! accepts faster than a client can send. So the worker goes by what it found last.

/// What the looks into new connections found lately.
#[derive(Debug)]
pub struct Hunch {
    /// From 0 to [`SCORE_MAX`]: up with each look that found something, down with each in vain.
    score: u8,
    /// Connections that were not looked into since the last that was.
    passed: u8,
}

/// When a new connection is read for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// In this turn, whether something has come or not.
    Now,
    /// When it is announced that something has.
    Announced,
}

/// What a look brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Bytes of a request, or an end.
    Something,
    Nothing,
}

impl Hunch {
    /// Expects that clients have sent their requests.
    pub fn new() -> Hunch {
        Hunch { score: SCORE_MAX, passed: 0 }
    }

    /// When to look into the next connection.
    pub fn look(&mut self) -> Look {
        if self.score > SCORE_MAX / 2 || self.passed >= PASSED_MAX {
            self.passed = 0;
            Look::Now
        } else {
            self.passed += 1;
            Look::Announced
        }
    }

    /// Takes note of what a look brought.
    pub fn note(&mut self, found: Found) {
        self.score = match found {
            Found::Something => (self.score + 1).min(SCORE_MAX),
            Found::Nothing => self.score.saturating_sub(1),
        };
    }
}

/// A few looks turn it over, and none by itself.
const SCORE_MAX: u8 = 8;

/// After so many that were not looked into the next one is, to see whether things have changed.
const PASSED_MAX: u8 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(hunch: &mut Hunch, connections: usize, found: Found) -> usize {
        let mut looks = 0;
        for _ in 0..connections {
            if hunch.look() == Look::Now {
                looks += 1;
                hunch.note(found);
            }
        }
        looks
    }

    #[test]
    fn it_looks_into_all_as_long_as_that_brings_something() {
        let mut hunch = Hunch::new();
        assert_eq!(looks(&mut hunch, 1000, Found::Something), 1000);
    }

    #[test]
    fn in_vain_it_looks_into_one_of_sixteen() {
        let mut hunch = Hunch::new();
        assert_eq!(looks(&mut hunch, 4, Found::Nothing), 4, "that taught it");
        assert_eq!(looks(&mut hunch, 1600, Found::Nothing), 100);
    }

    #[test]
    fn one_of_another_kind_changes_nothing_and_a_change_is_found_out() {
        let mut hunch = Hunch::new();
        hunch.note(Found::Nothing);
        assert_eq!(hunch.look(), Look::Now);
        assert_eq!(looks(&mut hunch, 1600, Found::Nothing), 102);
        hunch.note(Found::Something);
        assert_eq!(hunch.look(), Look::Announced);
        let before = looks(&mut hunch, 16 * usize::from(SCORE_MAX), Found::Something);
        assert!(before > 8, "{before}");
        assert_eq!(looks(&mut hunch, 1000, Found::Something), 1000);
    }
}

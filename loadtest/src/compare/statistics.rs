//! What is said of numbers that were measured several times. Pure.
//!
//! The median and the quartiles, for one round that another process disturbed must not decide. Of
//! two servers the ratio within the same round is looked at: what slows a round slows both, and
//! cancels.

use std::collections::BTreeMap;

/// Half of the values are at most the median, a quarter at most `low`, and a quarter at least
/// `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The lower quartile.
    pub low: f64,
    /// The middle.
    pub median: f64,
    /// The upper quartile.
    pub high: f64,
    /// How many values there are.
    pub count: usize,
}

impl Spread {
    /// Of these values, in any order; `None` of none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |part| quantile(&sorted, part);
        Some(Spread { low: at(0.25)?, median: at(0.5)?, high: at(0.75)?, count: sorted.len() })
    }
}

/// The value below which that part lies, from 0 to 1, interpolated between two neighbours.
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[allow(clippy::cast_precision_loss, reason = "fewer than 2^53 values")]
    let place = part.clamp(0.0, 1.0) * last as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to last")]
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    // Some may be infinite: no number is between two of those, nor a part of the way to one.
    if below == above || sorted[below].is_infinite() {
        return Some(sorted[below]);
    }
    Some(sorted[below] + (sorted[above] - sorted[below]) * place.fract())
}

/// Ours over theirs for each round that has both.
pub fn paired(ours: &BTreeMap<u32, f64>, theirs: &BTreeMap<u32, f64>) -> Vec<f64> {
    let of = |(round, ours): (&u32, &f64)| {
        let theirs = theirs.get(round).filter(|theirs| **theirs > 0.0)?;
        Some(ours / theirs)
    };
    // Two infinite ones have no ratio.
    ours.iter().filter_map(of).filter(|ratio| !ratio.is_nan()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_same_in_any_order_and_one_outlier_does_not_move_its_middle() {
        let spread = Spread::of([5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        assert_eq!(spread, Spread { low: 2.0, median: 3.0, high: 4.0, count: 5 });
        assert_eq!(Spread::of([1.0, 2.0, 3.0, 4.0, 900.0]), Some(spread));
        let even = Spread::of([1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((even.low, even.median, even.high), (1.75, 2.5, 3.25));
        let one = Spread::of([7.0]).unwrap();
        assert_eq!(one, Spread { low: 7.0, median: 7.0, high: 7.0, count: 1 });
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_quantile_outside_is_the_first_or_the_last() {
        assert_eq!(quantile(&[1.0, 2.0], -1.0), Some(1.0));
        assert_eq!(quantile(&[1.0, 2.0], 7.0), Some(2.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn what_takes_for_ever_in_most_rounds_does_so_in_the_middle() {
        let for_ever = f64::INFINITY;
        assert_eq!(
            Spread::of([for_ever, 3.0, 2.0, 1.0, 2.0]).map(|spread| spread.median),
            Some(2.0)
        );
        let spread = Spread::of([for_ever, 1.0, for_ever, for_ever]).unwrap();
        assert!(spread.median.is_infinite() && spread.high.is_infinite());
        let (both, one) = (BTreeMap::from([(1, for_ever)]), BTreeMap::from([(1, 2.0)]));
        assert_eq!(paired(&one, &both), [0.0]);
        assert_eq!(paired(&both, &both), [0.0; 0]);
    }

    #[test]
    fn only_rounds_that_have_both_are_paired_and_none_is_divided_by_nothing() {
        let ours = BTreeMap::from([(1, 6.0), (2, 12.0), (3, 5.0), (4, 1.0)]);
        let theirs = BTreeMap::from([(1, 12.0), (2, 24.0), (4, 0.0), (5, 9.0)]);
        assert_eq!(paired(&ours, &theirs), [0.5, 0.5], "a slow second round is one for both");
    }
}

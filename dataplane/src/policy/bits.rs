//! Sparse sets of rule numbers: a two-level bitmap that stores only words with a bit set.

/// A set of rule numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct RuleBits {
    /// One entry per 64 words: which of them are stored, and where the first stored one lies in `words`.
    summary: Vec<Summary>,
    words: Vec<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Summary {
    present: u64,
    first: u32,
}

impl RuleBits {
    /// The empty set.
    pub(super) const EMPTY: Self = Self { summary: Vec::new(), words: Vec::new() };

    /// Builds a set from rule numbers in ascending order.
    pub(super) fn from_sorted(rules: &[u32]) -> Self {
        let mut bits = Self::default();
        let mut last = None;
        for &rule in rules {
            let word = rule / 64;
            let group = (word / 64) as usize;
            while bits.summary.len() <= group {
                let first = u32::try_from(bits.words.len()).expect("rule numbers are u32, so words are fewer");
                bits.summary.push(Summary { present: 0, first });
            }
            if last != Some(word) {
                bits.summary[group].present |= 1 << (word % 64);
                bits.words.push(0);
                last = Some(word);
            }
            if let Some(stored) = bits.words.last_mut() {
                *stored |= 1 << (rule % 64);
            }
        }
        bits
    }

    #[inline]
    fn present(&self, group: usize) -> u64 {
        self.summary.get(group).map_or(0, |summary| summary.present)
    }

    #[inline]
    fn word(&self, group: usize, slot: u32) -> u64 {
        let Some(summary) = self.summary.get(group) else { return 0 };
        if summary.present & 1 << slot == 0 {
            return 0;
        }
        let below = (summary.present & ((1 << slot) - 1)).count_ones();
        self.words.get((summary.first + below) as usize).copied().unwrap_or(0)
    }

    /// Whether a rule is in the set.
    pub(super) fn contains(&self, rule: u32) -> bool {
        self.word((rule / 4096) as usize, (rule / 64) % 64) & 1 << (rule % 64) != 0
    }

    /// The number of 64-word groups.
    pub(super) fn groups(&self) -> usize {
        self.summary.len()
    }
}

/// A union of sets: the rules that match everything, those of one class of prefixes, and those of one class of labels.
#[derive(Clone, Copy)]
pub(super) struct Union<'a>(pub(super) &'a RuleBits, pub(super) &'a RuleBits, pub(super) &'a RuleBits);

impl Union<'_> {
    #[inline]
    fn present(&self, group: usize) -> u64 {
        self.0.present(group) | self.1.present(group) | self.2.present(group)
    }

    #[inline]
    fn word(&self, group: usize, slot: u32) -> u64 {
        self.0.word(group, slot) | self.1.word(group, slot) | self.2.word(group, slot)
    }

    #[inline]
    fn groups(&self) -> usize {
        self.0.groups().max(self.1.groups()).max(self.2.groups())
    }
}

/// The lowest rule in all three sets that is not below `from`.
#[inline]
pub(super) fn lowest_common(sets: &[Union<'_>; 3], from: u32) -> Option<u32> {
    let groups = sets.iter().map(Union::groups).min().unwrap_or(0);
    let first = ((from / 4096) as usize, (from / 64) % 64);
    for group in first.0..groups {
        let mut candidates = sets.iter().fold(u64::MAX, |all, set| all & set.present(group));
        if group == first.0 {
            candidates &= u64::MAX << first.1;
        }
        while candidates != 0 {
            let slot = candidates.trailing_zeros();
            candidates &= candidates - 1;
            let mut common = sets.iter().fold(u64::MAX, |all, set| all & set.word(group, slot));
            if (group, slot) == first {
                common &= u64::MAX << (from % 64);
            }
            if common != 0 {
                return Some(group as u32 * 4096 + slot * 64 + common.trailing_zeros());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn lowest_common_equals_set_intersection(
            sets in proptest::collection::vec(proptest::collection::btree_set(0u32..10_000, 0..400), 9),
            from in 0u32..10_000,
        ) {
            let bits: Vec<_> =
                sets.iter().map(|s| RuleBits::from_sorted(&s.iter().copied().collect::<Vec<_>>())).collect();
            let unions: Vec<BTreeSet<u32>> = sets.chunks(3).map(|three| &(&three[0] | &three[1]) | &three[2]).collect();
            let sets = [
                Union(&bits[0], &bits[1], &bits[2]),
                Union(&bits[3], &bits[4], &bits[5]),
                Union(&bits[6], &bits[7], &bits[8]),
            ];
            for from in [0, from] {
                let expected = unions[0].range(from..).copied().find(|r| unions[1].contains(r) && unions[2].contains(r));
                prop_assert_eq!(lowest_common(&sets, from), expected);
            }
            for rule in [from, 0, 9999] {
                prop_assert_eq!(bits[0].contains(rule), unions[0].contains(&rule) && bits[0].word((rule / 4096) as usize, (rule / 64) % 64) >> (rule % 64) & 1 == 1);
            }
        }
    }
}

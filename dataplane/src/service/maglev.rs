//! Maglev: a table that spreads hashes over backends evenly, moves few when one comes or goes, and is the same on every
//! host that knows the same backends (Eisenbud et al., NSDI 2016, section 3.4).

use siphasher::sip::SipHasher13;
use std::hash::Hasher as _;

/// Places in a table: a prime well over 100 times the number of backends that are usual.
const SIZE: usize = 65_537;
/// The same on every host: the tables are no secret.
const SEED: [u8; 16] = *b"overlay maglev 1";

/// The backend of every hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Maglev(Box<[u16]>);

/// The walk of one backend through the table.
struct Walk {
    backend: u16,
    weight: u32,
    credit: u32,
    offset: u64,
    skip: u64,
    step: u64,
}

impl Walk {
    /// The next place that this backend prefers.
    fn next(&mut self) -> usize {
        let place = (self.offset + self.step * self.skip) % SIZE as u64;
        self.step += 1;
        place as usize
    }
}

impl Maglev {
    /// Builds the table of backends with their names and weights; those of weight 0 get no place. `None` when none is left.
    ///
    /// The order in which they are given does not matter.
    pub(crate) fn build<'a>(backends: impl Iterator<Item = (&'a str, u16)>) -> Option<Self> {
        let mut named: Vec<(usize, &str, u16)> =
            backends.enumerate().map(|(at, (name, weight))| (at, name, weight)).filter(|it| it.2 > 0).collect();
        named.sort_by(|a, b| a.1.cmp(b.1));
        let heaviest = named.iter().map(|it| u32::from(it.2)).max()?;
        let mut walks: Vec<Walk> = named
            .iter()
            .filter_map(|(at, name, weight)| {
                let backend = u16::try_from(*at).ok().filter(|at| *at != u16::MAX)?;
                let (offset, skip) = (hash(name, 0) % SIZE as u64, hash(name, 1) % (SIZE as u64 - 1) + 1);
                Some(Walk { backend, weight: (*weight).into(), credit: 0, offset, skip, step: 0 })
            })
            .collect();
        let mut table = vec![u16::MAX; SIZE].into_boxed_slice();
        let mut filled = 0;
        while filled < SIZE {
            for walk in &mut walks {
                // A turn is worth a weight; a place costs as much as the heaviest has.
                walk.credit += walk.weight;
                if walk.credit < heaviest {
                    continue;
                }
                walk.credit -= heaviest;
                let mut place = walk.next();
                while table[place] != u16::MAX {
                    place = walk.next();
                }
                table[place] = walk.backend;
                filled += 1;
                if filled == SIZE {
                    break;
                }
            }
        }
        Some(Self(table))
    }

    /// The backend of a hash, by its place in the order given to [`Maglev::build`].
    #[inline]
    pub(crate) fn pick(&self, hash: u64) -> usize {
        self.0[(hash % SIZE as u64) as usize].into()
    }
}

/// A hash that is the same on every host.
pub(crate) fn hash_words(words: &[u64]) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&SEED);
    words.iter().for_each(|word| hasher.write_u64(*word));
    hasher.finish()
}

fn hash(name: &str, kind: u8) -> u64 {
    let mut hasher = SipHasher13::new_with_key(&SEED);
    hasher.write(&[kind]);
    hasher.write(name.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|at| format!("web-{at}")).collect()
    }

    fn table(names: &[String]) -> Maglev {
        Maglev::build(names.iter().map(|name| (name.as_str(), 1))).expect("backends")
    }

    /// Who owns each place, by name.
    fn owners<'a>(table: &Maglev, names: &'a [String]) -> Vec<&'a str> {
        (0..SIZE as u64).map(|hash| names[table.pick(hash)].as_str()).collect()
    }

    #[test]
    fn shares_are_even_and_the_order_does_not_matter() {
        for count in [1, 2, 3, 10, 50, 200] {
            let forward = names(count);
            let mut shares = vec![0usize; count];
            let built = table(&forward);
            (0..SIZE as u64).for_each(|hash| shares[built.pick(hash)] += 1);
            let most = *shares.iter().max().unwrap() as f64;
            assert!(most / (SIZE as f64 / count as f64) <= 1.01, "{count}: {shares:?}");
            let backward: Vec<String> = forward.iter().rev().cloned().collect();
            assert_eq!(owners(&built, &forward), owners(&table(&backward), &backward));
        }
    }

    #[test]
    fn one_that_leaves_moves_few_of_the_others() {
        for (count, limit) in [(10, 0.008), (50, 0.010), (200, 0.015)] {
            let all = names(count);
            let before = table(&all);
            for gone in [0, count / 2, count - 1] {
                let mut rest = all.clone();
                rest.remove(gone);
                let after = table(&rest);
                let (old, new) = (owners(&before, &all), owners(&after, &rest));
                let moved = old.iter().zip(&new).filter(|(old, new)| **old != all[gone] && old != new).count();
                assert!(moved as f64 / SIZE as f64 <= limit, "{count} without {gone}: {moved}");
            }
        }
    }

    #[test]
    fn shares_follow_weights() {
        let weights = [("a", 1), ("b", 2), ("c", 5), ("d", 0), ("e", 256)];
        let built = Maglev::build(weights.into_iter()).expect("backends");
        let mut shares = [0f64; 5];
        (0..SIZE as u64).for_each(|hash| shares[built.pick(hash)] += 1.0);
        for (share, (name, weight)) in shares.iter().zip(weights) {
            let wanted = SIZE as f64 * f64::from(weight) / 264.0;
            assert!((share - wanted).abs() <= wanted * 0.02 + 2.0, "{name}: {share} and not {wanted}");
        }
        assert_eq!(Maglev::build([("a", 0)].into_iter()), None);
    }
}

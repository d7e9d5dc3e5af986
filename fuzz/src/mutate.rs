//! Seeded mutation of corpus inputs.
//!
//! Input `n` of a target depends on the seed, the target's name, `n` and the committed corpus alone, never on earlier
//! inputs, so that any one of them can be made again without the rest.

use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// Longest input made.
pub const MAX_LEN: usize = 4096;

/// Values at which length fields, counters and flags change meaning.
const INTERESTING: [u32; 20] =
    [0, 1, 2, 4, 7, 8, 15, 16, 20, 40, 63, 64, 127, 128, 255, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff];

/// Makes inputs out of a corpus.
#[derive(Debug, Clone)]
pub struct Mutator<'a> {
    corpus: &'a [Vec<u8>],
    seed: u64,
    target: &'a str,
}

impl<'a> Mutator<'a> {
    /// A mutator for one target. An empty corpus starts from random bytes.
    #[must_use]
    pub fn new(corpus: &'a [Vec<u8>], seed: u64, target: &'a str) -> Self {
        Self { corpus, seed, target }
    }

    /// Makes input `number`.
    #[must_use]
    pub fn input(&self, number: u64) -> Vec<u8> {
        let mut rng = self.rng(number);
        // One in sixteen is random from start to end; the rest start from the corpus.
        let mut bytes = match pick(&mut rng, self.corpus) {
            Some(seed) if !one_in(&mut rng, 16) => seed.clone(),
            _ => random(&mut rng, 200),
        };
        for _ in 0..=below(&mut rng, 6) {
            self.mutate(&mut rng, &mut bytes);
        }
        bytes.truncate(MAX_LEN);
        bytes
    }

    fn rng(&self, number: u64) -> ChaCha20Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..16].copy_from_slice(&number.to_le_bytes());
        for (place, byte) in key[16..].iter_mut().zip(self.target.bytes()) {
            *place = byte;
        }
        ChaCha20Rng::from_seed(key)
    }

    fn mutate(&self, rng: &mut ChaCha20Rng, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            *bytes = random(rng, 64);
            return;
        }
        let at = position(rng, bytes.len());
        match below(rng, 10) {
            0 => bytes[at] ^= 1 << below(rng, 8),
            1 => bytes[at] = rng.next_u32() as u8,
            2 => bytes[at] = bytes[at].wrapping_add(below(rng, 17) as u8).wrapping_sub(8),
            3 => overwrite(bytes, at, &interesting(rng)),
            4 => bytes.truncate(at),
            5 => {
                let end = (at + 1 + below(rng, 32)).min(bytes.len());
                bytes.drain(at..end);
            }
            6 => {
                let end = (at + 1 + below(rng, 32)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            7 => {
                let extra = random(rng, 32);
                bytes.splice(at..at, extra);
            }
            8 => {
                if let Some(other) = pick(rng, self.corpus).filter(|other| !other.is_empty()) {
                    let from = below(rng, other.len());
                    bytes.truncate(at);
                    bytes.extend(&other[from..]);
                }
            }
            _ => {
                if let Some(other) = pick(rng, self.corpus).filter(|other| !other.is_empty()) {
                    let from = below(rng, other.len());
                    let end = (from + 1 + below(rng, 16)).min(other.len());
                    overwrite(bytes, at, &other[from..end]);
                }
            }
        }
    }
}

/// A place in the input; half of them in its first 64 bytes, where headers are.
fn position(rng: &mut ChaCha20Rng, len: usize) -> usize {
    let range = if one_in(rng, 2) { len.min(64) } else { len };
    below(rng, range)
}

/// An interesting value in one, two or four bytes, in either byte order.
fn interesting(rng: &mut ChaCha20Rng) -> Vec<u8> {
    let value = INTERESTING[below(rng, INTERESTING.len())];
    match below(rng, 5) {
        0 => vec![value as u8],
        1 => (value as u16).to_be_bytes().to_vec(),
        2 => (value as u16).to_le_bytes().to_vec(),
        3 => value.to_be_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

fn overwrite(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (place, byte) in bytes[at..].iter_mut().zip(new) {
        *place = *byte;
    }
}

fn random(rng: &mut ChaCha20Rng, max_len: usize) -> Vec<u8> {
    let mut bytes = vec![0; below(rng, max_len + 1)];
    rng.fill_bytes(&mut bytes);
    bytes
}

fn pick<'a>(rng: &mut ChaCha20Rng, corpus: &'a [Vec<u8>]) -> Option<&'a Vec<u8>> {
    if corpus.is_empty() { None } else { corpus.get(below(rng, corpus.len())) }
}

fn one_in(rng: &mut ChaCha20Rng, count: usize) -> bool {
    below(rng, count) == 0
}

/// A number below `limit`, which is not zero. The bias of the remainder does not matter here.
fn below(rng: &mut ChaCha20Rng, limit: usize) -> usize {
    (rng.next_u32() as usize) % limit.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_and_number_make_the_same_input() {
        let corpus = [b"first".to_vec(), b"second".to_vec()];
        let make = |seed, target, number| Mutator::new(&corpus, seed, target).input(number);
        assert_eq!(make(1, "a", 7), make(1, "a", 7));
        let different = [make(2, "a", 7), make(1, "b", 7), make(1, "a", 8)];
        assert!(different.iter().any(|input| *input != make(1, "a", 7)));
    }

    #[test]
    fn inputs_stay_within_the_longest_length() {
        let corpus = [vec![0; MAX_LEN]];
        let mutator = Mutator::new(&corpus, 1, "a");
        assert!((0..500).all(|number| mutator.input(number).len() <= MAX_LEN));
    }
}

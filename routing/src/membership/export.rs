//! The exported authority: one file, sealed with a passphrase (Argon2id, XChaCha20-Poly1305).

use std::collections::BTreeMap;

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use overlay_wire::gossip::codec::Reader;
use zeroize::Zeroizing;

use super::issuer::{Issuer, IssuerError, Pending};
use super::state::{State, StateError};

/// What deriving the key of an export costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
}

impl KdfCost {
    /// The second recommended choice of RFC 9106: 64 MiB, three passes.
    pub const RECOMMENDED: Self = Self { memory_kib: 65_536, passes: 3 };
}

/// Why an authority is not exported or imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// The issuer has nothing to give.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The passphrase is shorter than eight bytes.
    #[error("the passphrase is too short: at least 8 bytes are needed")]
    Passphrase,
    /// The file is no export.
    #[error("the file is not an exported authority")]
    Malformed,
    /// The file is of a newer format.
    #[error("the file is of format {0}, which is not known")]
    Format(u8),
    /// The file asks for more memory or time than is reasonable, or the machine cannot give it.
    #[error("the key of the file cannot be derived at the cost it names")]
    Cost,
    /// The passphrase is wrong, or the file was changed.
    #[error("the passphrase is wrong, or the file is damaged")]
    Sealed,
}

const MAGIC: &[u8; 4] = b"OVCA";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 4 + 1 + 4 + 4 + 16 + 24;
/// The shortest passphrase.
const MIN_PASSPHRASE: usize = 8;
/// The most memory an import is willing to spend: 1 GiB.
const MAX_MEMORY_KIB: u32 = 1 << 20;
/// The most passes an import is willing to make.
const MAX_PASSES: u32 = 64;

impl Issuer {
    /// Puts the authority's key, a new slot and half of the remaining slice into a file sealed with a passphrase.
    ///
    /// `random` must come from the operating system's generator. The file counts only once the pending change is stored
    /// and committed, because what it gives away must have left this slice before.
    ///
    /// # Errors
    /// When there is nothing left to split, or the passphrase or cost is not usable.
    pub fn export(&self, passphrase: &[u8], cost: KdfCost, random: &[u8; 40]) -> Result<Pending<Vec<u8>>, ExportError> {
        if passphrase.len() < MIN_PASSPHRASE {
            return Err(ExportError::Passphrase);
        }
        let mut next = self.next(0);
        let (slot, end) = next.slots;
        let middle = u16::from(slot) + (end - u16::from(slot)) / 2;
        let given = u8::try_from(middle).ok().filter(|given| *given != slot).ok_or(IssuerError::NothingToSplit)?;
        let lens = (next.config.subnet_v4, next.config.subnet_v6);
        let slice = next.slice.split(lens);
        if slice.is_empty() {
            return Err(IssuerError::NothingToSplit.into());
        }
        next.slots.1 = middle;
        next.exports = next.exports.saturating_add(1);
        let exported = State {
            generation: 1,
            slots: (given, end),
            next_serial: 1,
            slice,
            tokens: BTreeMap::new(),
            issued: BTreeMap::new(),
            given: BTreeMap::new(),
            freeing: Vec::new(),
            // The importer repeats in its own records what is revoked, so that it is known even if this host is lost.
            exports: 0,
            ..(*next).clone()
        };
        let mut file = MAGIC.to_vec();
        file.push(FORMAT);
        file.extend_from_slice(&cost.memory_kib.to_be_bytes());
        file.extend_from_slice(&cost.passes.to_be_bytes());
        file.extend_from_slice(random);
        let (salt, nonce) = random.split_at(16);
        let key = derive(passphrase, salt, cost)?;
        let cipher = XChaCha20Poly1305::new((&*key).into());
        let payload = Payload { msg: &exported.encode(), aad: &file };
        let sealed = cipher.encrypt(XNonce::from_slice(nonce), payload).map_err(|_| ExportError::Sealed)?;
        file.extend_from_slice(&sealed);
        Ok(Pending::new(next, file))
    }

    /// Makes an issuer of an exported file. Store [`Self::state_bytes`] before using it, and import each file once.
    ///
    /// # Errors
    /// When the passphrase is wrong or the file is damaged.
    pub fn import(file: &[u8], passphrase: &[u8]) -> Result<Self, ExportError> {
        let (header, sealed) = file.split_at_checked(HEADER_BYTES).ok_or(ExportError::Malformed)?;
        let mut reader = Reader::new(header);
        let malformed = |_| ExportError::Malformed;
        if reader.array::<4>("magic").map_err(malformed)? != *MAGIC {
            return Err(ExportError::Malformed);
        }
        let format = reader.u8("format").map_err(malformed)?;
        if format != FORMAT {
            return Err(ExportError::Format(format));
        }
        let memory_kib = reader.u32("memory").map_err(malformed)?;
        let passes = reader.u32("passes").map_err(malformed)?;
        let salt: [u8; 16] = reader.array("salt").map_err(malformed)?;
        let nonce: [u8; 24] = reader.array("nonce").map_err(malformed)?;
        let key = derive(passphrase, &salt, KdfCost { memory_kib, passes })?;
        let cipher = XChaCha20Poly1305::new((&*key).into());
        let payload = Payload { msg: sealed, aad: header };
        let state = cipher.decrypt(XNonce::from_slice(&nonce), payload).map_err(|_| ExportError::Sealed)?;
        let state = Zeroizing::new(state);
        Self::restore(&state).map_err(|error| match error {
            StateError::Newer(format) => ExportError::Format(format),
            StateError::Damaged => ExportError::Malformed,
        })
    }
}

fn derive(passphrase: &[u8], salt: &[u8], cost: KdfCost) -> Result<Zeroizing<[u8; 32]>, ExportError> {
    if cost.memory_kib > MAX_MEMORY_KIB || cost.passes > MAX_PASSES {
        return Err(ExportError::Cost);
    }
    let params = Params::new(cost.memory_kib, cost.passes, 1, Some(32)).map_err(|_| ExportError::Cost)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase, salt, &mut *key)
        .map_err(|_| ExportError::Cost)?;
    Ok(key)
}

//! The exported authority: one file, sealed with a passphrase (Argon2id, XChaCha20-Poly1305).

use super::issuer::IssuerError;

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

//! The issuer's stored state: format, generation, content, checksum.

/// Why a stored state is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It is cut short or changed.
    #[error("the issuer's state is damaged")]
    Damaged,
    /// It was written by newer software.
    #[error("the issuer's state is of format {0}, which is not known; it was written by newer software")]
    Newer(u8),
}

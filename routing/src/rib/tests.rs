//! The conflict rule, forged claims, and explanations.

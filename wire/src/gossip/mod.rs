//! Gossip messages and signed records.

//! Gossip state machine, record store, ownership, and route tables.

//! Keys of the join exchange.

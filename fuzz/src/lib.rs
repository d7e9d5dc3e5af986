//! Fuzz bodies for every parser and state machine.

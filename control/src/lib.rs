//! The control socket protocol and a blocking client.

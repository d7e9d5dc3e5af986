//! What happens to one packet or one super-packet.

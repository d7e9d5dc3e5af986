//! Membership by certificate in the daemon: what is kept on disk, founding and joining a cluster, and the issuer, which
//! makes every change durable before anyone hears of it.

mod found;
mod issuer;
mod join;
mod keeper;
mod kept;
mod name;
mod store;

pub(crate) use found::found;
pub(crate) use issuer::{IssuerRequest, IssuerTask, IssuerView, Work};
pub(crate) use join::join;
pub(crate) use keeper::keep;
pub(crate) use kept::{Bytes, Kept};
pub(crate) use name::{host_name, identity_or_new};
pub(crate) use store::Store;

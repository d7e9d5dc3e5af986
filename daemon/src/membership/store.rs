//! The state files of a membership: `membership`, what a member keeps, and `issuer`, the ledger of an issuer with the
//! authority's secret key.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use overlay_config::MembershipLayer;
use overlay_routing::membership::Issuer;
use parking_lot::Mutex;

use super::kept::Kept;
use crate::state::{Loaded, Slots, StateDir, StateError};

/// The version of the member's file.
const MEMBERSHIP_VERSION: u16 = 1;
/// The version of the issuer's file; its content has a version of its own.
const ISSUER_VERSION: u16 = 1;
const MEMBERSHIP: &str = "membership";
const ISSUER: &str = "issuer";

#[derive(Debug)]
struct Inner {
    directory: Arc<StateDir>,
    membership: Mutex<(Slots, Option<Kept>)>,
    issuer: Mutex<Slots>,
    /// What was found damaged and put right at the start.
    damage: Vec<String>,
    /// Whether the membership was given up: what still runs writes nothing any more.
    is_closed: AtomicBool,
}

/// The state files, shared by all that change them. Writing blocks until it is on disk.
#[derive(Debug, Clone)]
pub(crate) struct Store(Arc<Inner>);

impl Store {
    /// Opens both files.
    ///
    /// # Errors
    /// When one is damaged beyond repair, newer, foreign or unreadable.
    pub(crate) fn open(directory: &Arc<StateDir>) -> Result<Self, StateError> {
        let (membership, loaded) = Slots::open(directory, MEMBERSHIP, MEMBERSHIP_VERSION)?;
        let mut damage: Vec<String> = loaded.iter().filter_map(|loaded| loaded.damage.clone()).collect();
        let kept = loaded.map(|loaded| decode(directory, &loaded)).transpose()?;
        let (issuer, loaded) = Slots::open(directory, ISSUER, ISSUER_VERSION)?;
        damage.extend(loaded.and_then(|loaded| loaded.damage));
        Ok(Self(Arc::new(Inner {
            directory: Arc::clone(directory),
            membership: Mutex::new((membership, kept)),
            issuer: Mutex::new(issuer),
            damage,
            is_closed: AtomicBool::new(false),
        })))
    }

    /// The state directory.
    pub(crate) fn directory(&self) -> &Arc<StateDir> {
        &self.0.directory
    }

    /// The configuration layer of the membership in a state directory; nothing is written.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn peek_layer(directory: &Arc<StateDir>) -> Result<Option<MembershipLayer>, StateError> {
        let Some(loaded) = Slots::peek(directory, MEMBERSHIP, MEMBERSHIP_VERSION)? else { return Ok(None) };
        Ok(decode(directory, &loaded)?.layer(directory.path().join(MEMBERSHIP).display().to_string()))
    }

    /// What is kept of the membership.
    pub(crate) fn kept(&self) -> Option<Kept> {
        self.0.membership.lock().1.clone()
    }

    /// Whether a revision of the cluster's policy would outlive a restart.
    pub(crate) fn has_policy(&self, revision: u64, hash: &[u8; 32]) -> bool {
        let membership = self.0.membership.lock();
        let newest = membership.1.as_ref().and_then(|kept| kept.cluster_policy.newest.as_ref());
        newest.is_some_and(|newest| (newest.revision, &newest.hash) == (revision, hash))
    }

    /// The configuration layer of the membership.
    pub(crate) fn layer(&self) -> Option<MembershipLayer> {
        self.layer_of(self.0.membership.lock().1.as_ref()?)
    }

    /// The configuration layer that this would be.
    pub(crate) fn layer_of(&self, kept: &Kept) -> Option<MembershipLayer> {
        kept.layer(self.0.directory.path().join(MEMBERSHIP).display().to_string())
    }

    /// What was found damaged and put right at the start.
    pub(crate) fn damage(&self) -> &[String] {
        &self.0.damage
    }

    /// The issuer of this host, from its file.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold an issuer.
    pub(crate) fn issuer(&self) -> Result<Option<Issuer>, StateError> {
        let loaded = Slots::peek(&self.0.directory, ISSUER, ISSUER_VERSION)?;
        let Some(loaded) = loaded else { return Ok(None) };
        Issuer::restore(&loaded.payload).map(Some).map_err(|error| match error {
            overlay_routing::membership::StateError::Newer(version) => {
                StateError::Newer { path: self.0.directory.path().join(ISSUER), version: version.into(), known: 1 }
            }
            overlay_routing::membership::StateError::Damaged => StateError::Damaged {
                path: self.0.directory.path().join(ISSUER),
                why: "its checksum fits and its content does not".to_owned(),
            },
        })
    }

    /// Makes the issuer's state durable.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn save_issuer(&self, state: &[u8]) -> Result<(), StateError> {
        let mut issuer = self.0.issuer.lock();
        if self.is_closed() {
            return Ok(());
        }
        issuer.store(state)
    }

    /// Makes what is kept durable, if it differs.
    ///
    /// # Errors
    /// When it cannot be written; what was kept before stays.
    pub(crate) fn save(&self, kept: Kept) -> Result<(), StateError> {
        let mut membership = self.0.membership.lock();
        if self.is_closed() || membership.1.as_ref() == Some(&kept) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&kept).expect("plain values serialise");
        membership.0.store(&bytes)?;
        membership.1 = Some(kept);
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed.load(Ordering::Acquire)
    }

    /// Lets a new membership be written after one was given up.
    pub(crate) fn reopen(&self) {
        self.0.is_closed.store(false, Ordering::Release);
    }

    /// Forgets the membership and the issuer; nothing is written before [`Self::reopen`].
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn erase(&self) -> Result<(), StateError> {
        let mut membership = self.0.membership.lock();
        let mut issuer = self.0.issuer.lock();
        self.0.is_closed.store(true, Ordering::Release);
        membership.0.erase()?;
        membership.1 = None;
        issuer.erase()
    }
}

fn decode(directory: &StateDir, loaded: &Loaded) -> Result<Kept, StateError> {
    let damaged = |why: String| StateError::Damaged { path: directory.path().join(MEMBERSHIP), why };
    let kept: Kept = serde_json::from_slice(&loaded.payload).map_err(|error| damaged(error.to_string()))?;
    if kept.certificate().is_none() {
        return Err(damaged("its certificate is none".to_owned()));
    }
    Ok(kept)
}

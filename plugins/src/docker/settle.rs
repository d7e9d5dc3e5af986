//! What the daemon has still to be told, and what dockerd, the daemon and the plugin have to agree on again.
//!
//! dockerd ignores errors of what gives something back and forgets the thing, so all of it is written down first and told to the
//! daemon when that answers. A full look compares both ways: what the daemon has for Docker and the plugin does not know is
//! taken away, what the plugin remembers and dockerd has no more is given back.

use std::net::IpAddr;
use std::time::Duration;

use overlay_control::ControlError;
use overlay_control::api::AddressHold;
use overlay_wire::gossip::networks::DEFAULT_NETWORK;

use super::dockerd::PATIENCE;
use super::driver::{Deadline, Driver, OWNER, endpoint_name};
use super::ipam::owner;
use super::ports;
use super::refusal::Refusal;
use super::state::{Given, Pool, now_unix};
use crate::daemon::Daemon;

/// How often something pending is tried again.
const PENDING: Duration = Duration::from_secs(1);
/// How many of these turns lie between two full looks.
const FULL_LOOK: u32 = 30;
/// How many turns lie between two attempts to ask dockerd.
const DOCKERD_LOOK: u32 = 3;
/// What is younger may be in the middle of a call, in seconds.
const YOUNG_S: u64 = 30;
/// dockerd makes the network of a pool at once; after this long it has forgotten the pool, in seconds.
const FORGOTTEN_S: u64 = 120;

impl Driver {
    /// Tells the daemon what is pending and compares, for ever.
    pub(super) fn keep_settled(&self) {
        let (mut turn, mut asked) = (0, false);
        loop {
            if self.state.lock().is_pending() {
                self.settle_quietly();
            }
            if turn % FULL_LOOK == 0 {
                if let Err(error) = self.compare_with_daemon() {
                    eprintln!("not compared with the daemon: {error}");
                }
                asked = false;
            }
            // After its start dockerd takes a while to answer.
            if !asked && turn % DOCKERD_LOOK == 0 {
                asked = self.compare_with_dockerd();
            }
            turn = turn.wrapping_add(1);
            std::thread::sleep(PENDING);
        }
    }

    /// One attempt at everything pending.
    pub(super) fn settle_quietly(&self) {
        if let Err(error) = self.settle(Deadline::of_an_attempt()) {
            eprintln!("the daemon is told later: {error}");
        }
    }

    fn settle(&self, deadline: Deadline) -> Result<(), Refusal> {
        let Some(_alone) = self.settle_alone(deadline) else { return Ok(()) };
        let (unpublishing, deleted, pools, networks): (Vec<String>, Vec<String>, Vec<String>, Vec<String>) = {
            let state = self.state.lock();
            let unpublishing = state.endpoints.iter().filter(|(_, endpoint)| endpoint.unpublishing);
            let deleted = state.endpoints.iter().filter(|(_, endpoint)| endpoint.deleted).map(|(id, _)| id.clone());
            let pools = state.pools.iter().filter(|(_, pool)| pool.released || !pool.releasing.is_empty());
            let networks = state.networks.iter().filter(|(_, network)| network.deleted);
            (
                unpublishing.map(|(id, _)| id.clone()).collect(),
                deleted.collect(),
                pools.map(|(id, _)| id.clone()).collect(),
                networks.map(|(id, _)| id.clone()).collect(),
            )
        };
        if unpublishing.is_empty() && deleted.is_empty() && pools.is_empty() && networks.is_empty() {
            return Ok(());
        }
        let mut daemon = self.daemon(deadline)?;
        for id in unpublishing {
            daemon.unpublish(&ports::owner(&id))?;
            self.state.lock().endpoints.change(&id, |endpoint| endpoint.unpublishing = false)?;
        }
        // Links first: an address is free when nobody has it.
        for id in deleted {
            daemon.remove(&endpoint_name(&id))?;
            self.state.lock().endpoints.remove(&id)?;
        }
        pools.iter().try_for_each(|pool| self.release_of_pool(&mut daemon, pool))?;
        networks.iter().try_for_each(|network| self.leave_cluster(&mut daemon, network))
    }

    /// Gives the addresses of one pool back that dockerd gave back.
    pub(super) fn settle_pool(&self, pool: &str, deadline: Deadline) -> Result<(), Refusal> {
        let Some(_alone) = self.settle_alone(deadline) else { return Ok(()) };
        let mut daemon = self.daemon(deadline)?;
        self.release_of_pool(&mut daemon, pool)
    }

    fn release_of_pool(&self, daemon: &mut Daemon, pool: &str) -> Result<(), Refusal> {
        let releasing = self.state.lock().pools.get(pool).map(|pool| pool.releasing.clone()).unwrap_or_default();
        for address in releasing {
            daemon.release(&owner(pool), address)?;
            self.state.lock().pools.change(pool, |pool| {
                pool.releasing.remove(&address);
            })?;
        }
        let mut state = self.state.lock();
        if state.pools.get(pool).is_some_and(|pool| pool.released && pool.releasing.is_empty()) {
            state.pools.remove(pool)?;
        }
        Ok(())
    }

    /// Makes daemon and plugin agree.
    fn compare_with_daemon(&self) -> Result<(), Refusal> {
        if self.state.lock().is_pending() {
            // Half of what would be found is on its way.
            return Ok(());
        }
        let mut daemon = match self.daemon(Deadline::of_a_call()) {
            Err(ControlError::NotRunning { .. }) => return Ok(()),
            other => other?,
        };
        // Read before the plugin's state is: what is made meanwhile is known by then.
        let endpoints = daemon.endpoints()?;
        for stale in endpoints.iter().filter(|one| one.owner.as_ref().is_some_and(|owner| owner.starts_with(OWNER))) {
            let id = stale.name.strip_prefix(&endpoint_name("")).unwrap_or_default();
            if self.state.lock().endpoints.get(id).is_none() {
                eprintln!("endpoint {} is of no container that dockerd told of; removed", stale.name);
                daemon.remove(&stale.name)?;
            }
        }
        let held = daemon.addresses()?.held;
        for one in held.iter().filter(|one| one.owner.starts_with(OWNER) && one.age_s >= YOUNG_S) {
            let pool = one.owner.strip_prefix(OWNER).unwrap_or_default();
            let state = self.state.lock();
            let is_known = state
                .pools
                .get(pool)
                .is_some_and(|pool| pool.addresses.contains_key(&one.address) || pool.releasing.contains(&one.address));
            drop(state);
            if !is_known {
                eprintln!("{} is held for nothing that dockerd has; released", one.address);
                daemon.release(&one.owner, one.address)?;
            }
        }
        self.hold_again(&mut daemon, |pool, address| {
            held.iter().any(|one| one.address == address && one.owner == owner(pool))
        })?;
        self.give_back_unused()
    }

    /// Addresses that dockerd has and the daemon lost: nobody else may get them.
    fn hold_again(&self, daemon: &mut Daemon, is_held: impl Fn(&str, IpAddr) -> bool) -> Result<(), Refusal> {
        let missing: Vec<(String, AddressHold)> = {
            let state = self.state.lock();
            let all = state.pools.iter().flat_map(|(id, pool)| pool.addresses.iter().map(move |one| (id, pool, one)));
            all.filter(|(id, _, (address, given))| is_old(given) && !is_held(id, **address))
                .map(|(id, pool, (address, given))| {
                    let of = pool.network.as_ref().filter(|_| !given.fixed).and_then(|id| state.network(id));
                    let network = of.map(|network| network.cluster.name().unwrap_or(DEFAULT_NETWORK).to_owned());
                    let (within, part) = (pool.prefix, pool.named.then_some(pool.prefix));
                    let hold = AddressHold { owner: owner(id), within, address: Some(*address), network, part };
                    (id.clone(), hold)
                })
                .collect()
        };
        for (pool, hold) in missing {
            if let Err(error) = daemon.hold(hold.clone()) {
                eprintln!("address {:?} of pool {pool} cannot be held again: {error}", hold.address);
            }
        }
        Ok(())
    }

    /// Pools asked for whose network never came, and addresses whose container never came: the call that followed was lost.
    fn give_back_unused(&self) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        let is_forgotten = |pool: &Pool| {
            pool.network.is_none() && !pool.released && now_unix().saturating_sub(pool.since) >= FORGOTTEN_S
        };
        let forgotten: Vec<String> =
            state.pools.iter().filter(|(_, pool)| is_forgotten(pool)).map(|(id, _)| id.clone()).collect();
        for id in forgotten {
            eprintln!("pool {id} was asked for and never used; released");
            state.pools.change(&id, Pool::release_all)?;
        }
        let all = state.pools.iter().flat_map(|(id, pool)| pool.addresses.iter().map(move |one| (id, pool, one)));
        let unused: Vec<(String, IpAddr)> = all
            .filter(|(_, pool, (address, given))| {
                pool.network.is_some() && !given.fixed && is_old(given) && state.endpoint_of(**address).is_none()
            })
            .map(|(id, _, (address, _))| (id.clone(), *address))
            .collect();
        for (pool, address) in unused {
            eprintln!("{address} was given and never used; released");
            state.pools.change(&pool, |pool| {
                pool.addresses.remove(&address);
                pool.releasing.insert(address);
            })?;
        }
        Ok(())
    }

    /// Forgets networks and endpoints that dockerd removed while nobody could tell the plugin; whether dockerd answered.
    fn compare_with_dockerd(&self) -> bool {
        let networks: Vec<String> = {
            let state = self.state.lock();
            state.networks.iter().filter(|(_, network)| !network.deleted).map(|(id, _)| id.clone()).collect()
        };
        for network in networks {
            // Read first: an endpoint made after the answer is not in it.
            let endpoints: Vec<String> = {
                let state = self.state.lock();
                let old = state.endpoints.iter().filter(|(_, one)| {
                    one.network == network && !one.deleted && now_unix().saturating_sub(one.since) >= YOUNG_S
                });
                old.map(|(id, _)| id.clone()).collect()
            };
            let result = match self.dockerd.network(&network, PATIENCE) {
                // dockerd is not there, or starts and has not told anything yet.
                Err(_) => return false,
                Ok(None) => {
                    eprintln!("network {network} is not dockerd's any more; forgotten");
                    self.forget_network(&network)
                }
                Ok(Some(known)) => {
                    let mut state = self.state.lock();
                    let mut gone = endpoints.iter().filter(|id| !known.endpoints.contains_key(*id));
                    gone.try_for_each(|id| {
                        eprintln!("endpoint {id} is not dockerd's any more; forgotten");
                        state.endpoints.change(id, |endpoint| endpoint.deleted = true)
                    })
                    .and_then(|()| state.name_renamed(&known))
                    .map_err(Refusal::from)
                }
            };
            if let Err(error) = result {
                eprintln!("{error}");
            }
        }
        self.look_for_names();
        true
    }
}

fn is_old(given: &Given) -> bool {
    now_unix().saturating_sub(given.since) >= YOUNG_S
}

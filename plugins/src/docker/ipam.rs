//! The IPAM driver: pools are parts of this host's prefixes, addresses are held by the daemon.
//!
//! Pools that dockerd does not name are the host's whole prefix and shared: the daemon gives no address twice. Pools named with
//! `--subnet` belong to one network each.

use std::net::IpAddr;

use overlay_control::api::AddressHold;
use overlay_wire::Prefix;
use serde_json::{Value, json};

use super::driver::{Deadline, Driver, OWNER};
use super::message::{AddressRequest, PoolRequest};
use super::refusal::Refusal;
use super::state::{Given, Pool, State, now_unix};

/// Pools that may be asked for and not used yet: dockerd asks again and again when a pool does not please it.
const UNUSED_POOLS: usize = 8;

/// The owner of the addresses of a pool.
pub(super) fn owner(pool: &str) -> String {
    format!("{OWNER}{pool}")
}

/// How an address is written to dockerd: alone, because the others of the pool are not on the link.
fn alone(address: IpAddr) -> String {
    Prefix::host(address).to_string()
}

impl Driver {
    pub(super) fn request_pool(&self, request: &PoolRequest, deadline: Deadline) -> Result<Value, Refusal> {
        let cluster = super::cluster::of_options(&request.options)?;
        let book = self.daemon(deadline)?.addresses()?;
        let own: Vec<Prefix> = book.own.into_iter().filter(|prefix| prefix.is_ipv4() != request.v6).collect();
        let family = if request.v6 { "IPv6" } else { "IPv4" };
        let first = own.first().ok_or_else(|| {
            Refusal::new(format!("overlayd: this host has no {family} prefix; give it one, or leave out the family"))
        })?;
        let named = parse(&request.pool, "subnet")?;
        let prefix = named.unwrap_or(*first);
        if !own.iter().any(|own| own.covers(&prefix)) {
            let list = own.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(Refusal::new(format!(
                "overlayd: subnet {prefix} is not of this host: its containers have addresses of {list}; leave out \
                 --subnet, or name a part of that"
            )));
        }
        let range = parse(&request.sub_pool, "range")?;
        if let Some(range) = range.filter(|range| !prefix.covers(range)) {
            return Err(Refusal::new(format!("overlayd: range {range} is not a part of subnet {prefix}")));
        }
        let mut state = self.state.lock();
        refuse_overlap(&state, named)?;
        let idle = |pool: &&Pool| !pool.named && !pool.released && pool.addresses.is_empty() && pool.network.is_none();
        if named.is_none() && state.pools.iter().filter(|(_, pool)| idle(pool)).count() >= UNUSED_POOLS {
            return Err(Refusal::new(format!(
                "overlayd: dockerd does not use {prefix}: a route in the host's main table or a name server in \
                 /etc/resolv.conf lies in it; remove it, or name the pool with --subnet {prefix}"
            )));
        }
        let id = new_id(&state, request.v6);
        state.pools.put(
            &id,
            Pool {
                prefix,
                range,
                named: named.is_some(),
                since: now_unix(),
                cluster,
                network: None,
                addresses: Default::default(),
                releasing: Default::default(),
                released: false,
            },
        )?;
        Ok(json!({ "PoolID": id, "Pool": prefix.to_string(), "Data": {} }))
    }

    pub(super) fn request_address(&self, request: &AddressRequest, deadline: Deadline) -> Result<Value, Refusal> {
        let wanted = match request.address.as_str() {
            "" => None,
            text => {
                Some(text.parse::<IpAddr>().map_err(|_| Refusal::unreadable(format_args!("{text:?} is no address")))?)
            }
        };
        let (hold, network, waits) = {
            let mut state = self.state.lock();
            let unknown =
                || Refusal::new("overlayd: this pool is not known; remove the Docker network and make it again");
            let pool = state.pools.get(&request.pool).filter(|pool| !pool.released).ok_or_else(unknown)?;
            let within = if wanted.is_some() { pool.prefix } else { pool.range.unwrap_or(pool.prefix) };
            let (given, waits) = match wanted {
                Some(wanted) => (pool.addresses.get(&wanted).cloned(), pool.releasing.contains(&wanted)),
                None => (None, false),
            };
            if let (Some(wanted), Some(given)) = (wanted, given) {
                // A call that dockerd repeats because it got no answer; nobody uses the address.
                if !given.fixed && state.endpoint_of(wanted).is_none() {
                    let again = |pool: &mut Pool| {
                        pool.addresses.insert(wanted, Given { since: now_unix(), fixed: false });
                    };
                    state.pools.change(&request.pool, again)?;
                    return Ok(json!({ "Address": alone(wanted), "Data": {} }));
                }
            }
            let part = pool.named.then_some(pool.prefix);
            let hold = AddressHold { owner: owner(&request.pool), within, address: wanted, network: None, part };
            (hold, pool.network.clone(), waits)
        };
        if waits {
            // dockerd gave it back while the daemon was away, and wants it again.
            self.settle_pool(&request.pool, deadline)?;
        }
        // What is asked for before there is a network is the network's own, and this host's.
        let held = match network {
            None => self.daemon(deadline)?.hold(hold)?.address,
            Some(network) => self.hold_for_container(&network, hold, deadline)?,
        };
        let given = Given { since: now_unix(), fixed: false };
        let written = self.state.lock().pools.change(&request.pool, |pool| {
            pool.addresses.insert(held, given);
        });
        if let Err(error) = written {
            // The daemon has it, nobody knows: given back now, or by the next look at both.
            let _ = self.daemon(deadline).and_then(|mut daemon| daemon.release(&owner(&request.pool), held));
            return Err(error.into());
        }
        Ok(json!({ "Address": alone(held), "Data": {} }))
    }

    pub(super) fn release_address(&self, request: &AddressRequest) -> Result<Value, Refusal> {
        let text = request.address.split('/').next().unwrap_or_default();
        if let Ok(address) = text.parse::<IpAddr>() {
            self.state.lock().pools.change(&request.pool, |pool| {
                if pool.addresses.remove(&address).is_some() {
                    pool.releasing.insert(address);
                }
            })?;
        }
        self.settle_soon(&request.pool);
        Ok(json!({}))
    }

    pub(super) fn release_pool(&self, request: &AddressRequest) -> Result<Value, Refusal> {
        self.state.lock().pools.change(&request.pool, Pool::release_all)?;
        self.settle_soon(&request.pool);
        Ok(json!({}))
    }

    /// One attempt; what fails is done later.
    fn settle_soon(&self, pool: &str) {
        if let Err(error) = self.settle_pool(pool, Deadline::of_an_attempt()) {
            eprintln!("addresses of pool {pool} are given back later: {error}");
        }
    }
}

pub(super) fn parse(text: &str, what: &str) -> Result<Option<Prefix>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error| Refusal::new(format!("overlayd: {what} {text:?} is no prefix: {error}")))
}

fn refuse_overlap(state: &State, named: Option<Prefix>) -> Result<(), Refusal> {
    let Some(named) = named else { return Ok(()) };
    let overlaps = |pool: &Pool| pool.prefix.covers(&named) || named.covers(&pool.prefix);
    let other = state.pools.iter().find(|(_, pool)| pool.named && !pool.released && overlaps(pool));
    match other {
        None => Ok(()),
        Some((_, pool)) => {
            let who = pool.network.as_ref().map_or_else(
                || "another network".to_owned(),
                |id| format!("Docker network {}", id.chars().take(12).collect::<String>()),
            );
            Err(Refusal::new(format!("overlayd: subnet {named} overlaps {} of {who}", pool.prefix)))
        }
    }
}

/// An id that no pool has or had: the time in it goes on.
fn new_id(state: &State, v6: bool) -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let family = if v6 { 6 } else { 4 };
    let mut number = since.as_nanos();
    loop {
        let id = format!("p{family}-{number:x}");
        if state.pools.get(&id).is_none() {
            return id;
        }
        number += 1;
    }
}

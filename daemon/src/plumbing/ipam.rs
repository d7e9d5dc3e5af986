//! Container addresses out of the own prefixes: which address an endpoint of a network gets, and which block of the own
//! prefixes a network gets when it needs one.
//!
//! Pure: leases, blocks and reservations are the arguments. A network other than the default one has blocks, carved from
//! the upper end of a prefix; what is in no block is the default network's, from the lower end. A released address is not
//! given again before its cooldown has passed, so that packets for the old holder do not reach the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use overlay_control::api::IpamUsage;
use overlay_wire::Prefix;
use overlay_wire::gossip::networks::{DEFAULT_NETWORK, MAX_NETWORK_BLOCKS};

use super::PlumbingError;

/// Addresses at the start of every prefix that containers never get: network, host, service, spare.
pub const RESERVED: u128 = 4;

/// Why an address is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// An endpoint has it.
    Endpoint(String),
    /// An endpoint had it, and it rests for so many more seconds.
    Resting(String, u64),
    /// It was reserved by hand.
    Reserved,
    /// It is held for a plugin.
    Held(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(name) => write!(f, "endpoint {name} has it"),
            Self::Resting(name, seconds) => {
                write!(f, "endpoint {name} had it until a moment ago; it rests {seconds} s")
            }
            Self::Held(owner) => write!(f, "{owner} has it"),
            Self::Reserved => f.write_str("it is reserved (`overlayctl ipam release` frees it)"),
        }
    }
}

/// Everything an answer follows from.
#[derive(Debug, Clone, Default)]
pub struct Space {
    /// The host's own prefixes.
    pub own: Vec<Prefix>,
    /// Who has which address.
    pub taken: BTreeMap<IpAddr, Holder>,
    /// The blocks of every network.
    pub blocks: Vec<(String, Prefix)>,
    /// Taken addresses that do not stand in the way of a block around them: their holder is who wants the block.
    pub aside: BTreeSet<IpAddr>,
}

/// What is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// The addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Blocks that the network gets for them.
    pub carved: Vec<Prefix>,
}

impl Space {
    /// Picks one address for each family that the host and the network have. `pool` confines the blocks of a network; one
    /// of a single family confines it to that family.
    ///
    /// # Errors
    /// When there is no own prefix, or every address of a family is taken.
    pub fn allocate(&self, network: &str, pool: &[Prefix]) -> Result<Grant, PlumbingError> {
        let mut grant = Grant::default();
        for ipv4 in [true, false] {
            let prefixes: Vec<&Prefix> = self.own.iter().filter(|p| p.is_ipv4() == ipv4).collect();
            let Some(last) = prefixes.last() else { continue };
            if !pool.is_empty() && !prefixes.iter().any(|own| pool.iter().any(|part| part.overlaps(own))) {
                continue;
            }
            if network == DEFAULT_NETWORK {
                let free = prefixes.iter().find_map(|prefix| self.lowest_free(prefix, &self.all_blocks()));
                grant.addresses.push(free.ok_or_else(|| self.exhausted(network, **last))?);
                continue;
            }
            let in_block = self.blocks_of(network).filter(|block| block.is_ipv4() == ipv4);
            if let Some(address) = in_block.into_iter().find_map(|block| self.lowest_free(&block, &[])) {
                grant.addresses.push(address);
                continue;
            }
            let block = self.carve(network, pool, ipv4);
            let found = block.and_then(|block| Some((block, self.lowest_free(&block, &[])?)));
            let (block, address) = found.ok_or_else(|| self.exhausted(network, **last))?;
            grant.carved.push(block);
            grant.addresses.push(address);
        }
        match grant.addresses.is_empty() {
            false => Ok(grant),
            true if self.own.is_empty() => Err(PlumbingError::NoOwnPrefix),
            true => Err(PlumbingError::OutsidePool { network: network.to_owned(), pool: pool.to_vec() }),
        }
    }

    /// Checks addresses that a caller asks for; a network without the block they lie in gets it, where it is free.
    ///
    /// # Errors
    /// When one is outside the own prefixes, reserved, taken or another network's, or two are of one family.
    pub fn claim(&self, network: &str, pool: &[Prefix], wanted: &[IpAddr]) -> Result<Grant, PlumbingError> {
        let mut grant = Grant::default();
        for (position, address) in wanted.iter().enumerate() {
            let refuse = |why: String| PlumbingError::AddressRefused { address: *address, why };
            let prefix = self
                .own
                .iter()
                .find(|p| p.contains(*address))
                .ok_or(PlumbingError::AddressElsewhere { address: *address, owner: None })?;
            let reserved = (0..RESERVED).any(|index| prefix.nth(index) == Some(*address));
            if reserved || Some(*address) == broadcast(prefix) {
                return Err(refuse(format!("the first {RESERVED} addresses and the last are for the host itself")));
            }
            if let Some(holder) = self.taken.get(address) {
                return Err(refuse(holder.to_string()));
            }
            if wanted[..position].iter().any(|other| other.is_ipv4() == address.is_ipv4()) {
                return Err(refuse("only one address per family is given".to_owned()));
            }
            match self.blocks.iter().find(|(_, block)| block.contains(*address)) {
                Some((owner, _)) if owner == network => {}
                Some((owner, block)) => return Err(refuse(format!("{block} is network {owner}'s here"))),
                None if network == DEFAULT_NETWORK => {}
                None => {
                    let around = self.candidates(prefix, pool).find(|block| block.contains(*address));
                    let block = around.filter(|block| self.is_free(prefix, block)).ok_or_else(|| {
                        refuse(format!("it is in the part of network {DEFAULT_NETWORK}, or outside the network's pool"))
                    })?;
                    grant.carved.push(block);
                }
            }
        }
        self.check_count(network, grant.carved.len())?;
        grant.addresses = wanted.to_vec();
        Ok(grant)
    }

    /// The lowest free address of a part of an own prefix, outside of all blocks.
    ///
    /// # Errors
    /// When the part is not of this host, or every address of it is taken.
    pub fn allocate_within(&self, within: &Prefix) -> Result<IpAddr, PlumbingError> {
        if !self.own.iter().any(|own| own.covers(within)) {
            return Err(PlumbingError::NotOwnPrefix(*within));
        }
        self.lowest_free(within, &self.all_blocks()).ok_or_else(|| self.exhausted(DEFAULT_NETWORK, *within))
    }

    /// The lowest free address of a network that lies in `within`; where its blocks have none there, a block more is cut.
    ///
    /// # Errors
    /// When `within` is not of this host, or every address of it is taken or another network's.
    pub fn allocate_part(&self, network: &str, pool: &[Prefix], within: &Prefix) -> Result<Grant, PlumbingError> {
        let own = self.own.iter().find(|own| own.covers(within)).ok_or(PlumbingError::NotOwnPrefix(*within))?;
        let inside = |block: &Prefix| {
            let part = if block.covers(within) { *within } else { *block };
            block.overlaps(within).then(|| self.lowest_free(&part, &[])).flatten()
        };
        if let Some(address) = self.blocks_of(network).find_map(|block| inside(&block)) {
            return Ok(Grant { addresses: vec![address], carved: Vec::new() });
        }
        self.check_count(network, 1)?;
        let mut free = self.candidates(own, pool).filter(|block| block.overlaps(within) && self.is_free(own, block));
        let found = free.find_map(|block| Some((block, inside(&block)?)));
        let (block, address) = found.ok_or_else(|| {
            let mut counts = Counts::default();
            self.taken.iter().filter(|(one, _)| within.contains(**one)).for_each(|(_, holder)| counts.add(holder));
            PlumbingError::PrefixExhausted { network: network.to_owned(), prefix: *within, counts }
        })?;
        Ok(Grant { addresses: vec![address], carved: vec![block] })
    }

    /// A block for a network that needs one: the uppermost that is free.
    #[must_use]
    pub fn carve(&self, network: &str, pool: &[Prefix], ipv4: bool) -> Option<Prefix> {
        self.check_count(network, 1).ok()?;
        let own = self.own.iter().filter(|prefix| prefix.is_ipv4() == ipv4);
        own.into_iter().find_map(|prefix| self.candidates(prefix, pool).find(|block| self.is_free(prefix, block)))
    }

    /// The network whose block an address lies in.
    #[must_use]
    pub fn network_of(&self, address: IpAddr) -> &str {
        let block = self.blocks.iter().find(|(_, block)| block.contains(address));
        block.map_or(DEFAULT_NETWORK, |(network, _)| network)
    }

    /// How full each own prefix and each block is; of a prefix without its blocks.
    #[must_use]
    pub fn usage(&self) -> Vec<IpamUsage> {
        let mut usage = Vec::new();
        for own in &self.own {
            let inside: Vec<&(String, Prefix)> = self.blocks.iter().filter(|(_, block)| own.covers(block)).collect();
            let in_blocks = inside.iter().fold(0u128, |sum, (_, block)| sum.saturating_add(size(block)));
            let kept = RESERVED + u128::from(own.is_ipv4());
            // The last address is for nobody, whoever has the block around it.
            let last = broadcast(own).filter(|last| inside.iter().any(|(_, block)| block.contains(*last)));
            let kept_here = kept - u128::from(last.is_some());
            usage.push(self.usage_of(DEFAULT_NETWORK, *own, size(own).saturating_sub(in_blocks), kept_here));
            for (network, block) in inside {
                let kept = u128::from(last.is_some_and(|last| block.contains(last)));
                usage.push(self.usage_of(network, *block, size(block), kept));
            }
        }
        usage
    }

    fn usage_of(&self, network: &str, prefix: Prefix, size: u128, kept: u128) -> IpamUsage {
        let mut counts = Counts::default();
        let held = self.taken.iter().filter(|(address, _)| prefix.contains(**address));
        held.filter(|(address, _)| self.network_of(**address) == network).for_each(|(_, holder)| counts.add(holder));
        let Counts { used, resting, reserved } = counts;
        let free = size.saturating_sub(kept).saturating_sub(u128::from(used + resting + reserved));
        let free = u64::try_from(free).unwrap_or(u64::MAX);
        IpamUsage { network: network.to_owned(), prefix, used, resting, reserved, free }
    }

    fn check_count(&self, network: &str, more: usize) -> Result<(), PlumbingError> {
        if self.blocks_of(network).count() + more <= MAX_NETWORK_BLOCKS {
            return Ok(());
        }
        Err(PlumbingError::TooManyNetworks(format!("network {network} has {MAX_NETWORK_BLOCKS} blocks here already")))
    }

    fn blocks_of<'a>(&'a self, network: &'a str) -> impl Iterator<Item = Prefix> + 'a {
        self.blocks.iter().filter(move |(name, _)| name == network).map(|(_, block)| *block)
    }

    fn all_blocks(&self) -> Vec<Prefix> {
        self.blocks.iter().map(|(_, block)| *block).collect()
    }

    /// The blocks that a prefix can be cut into inside a pool, the uppermost first.
    fn candidates<'a>(&'a self, prefix: &'a Prefix, pool: &'a [Prefix]) -> impl Iterator<Item = Prefix> + 'a {
        let whole = std::slice::from_ref(prefix);
        let parts = if pool.is_empty() { whole } else { pool };
        let len = block_len(prefix);
        parts.iter().filter(|part| part.overlaps(prefix)).flat_map(move |part| {
            // The part of the pool that is this host's, in blocks of the usual size or one smaller block.
            let inside = if part.len() > prefix.len() { part } else { prefix };
            let len = len.max(inside.len());
            let count = 1u128 << (len - inside.len()).min(16);
            let step = u32::from(bits(prefix) - len);
            (0..count).rev().filter_map(move |index| Prefix::new(inside.nth(index << step)?, len).ok())
        })
    }

    /// Whether nothing of a block is used: no other block, no reserved place, no address with a holder.
    fn is_free(&self, prefix: &Prefix, block: &Prefix) -> bool {
        let last = block.nth((1u128 << (bits(block) - block.len()).min(127)) - 1).unwrap_or(block.addr());
        !self.blocks.iter().any(|(_, other)| other.overlaps(block))
            && !(0..RESERVED).any(|index| prefix.nth(index).is_some_and(|address| block.contains(address)))
            && self.taken.range(block.addr()..=last).all(|(address, _)| self.aside.contains(address))
    }

    fn lowest_free(&self, prefix: &Prefix, holes: &[Prefix]) -> Option<IpAddr> {
        let around = self.own.iter().find(|own| own.covers(prefix))?;
        let last = broadcast(around);
        let is_reserved = |address: &IpAddr| (0..RESERVED).any(|index| around.nth(index) == Some(*address));
        let mut index = 0u128;
        loop {
            let address = prefix.nth(index)?;
            if let Some(hole) = holes.iter().find(|hole| hole.contains(address)) {
                // On behind it at once: a block of IPv6 is too large to walk.
                index = (index | hole_mask(hole)).checked_add(1)?;
                continue;
            }
            if !is_reserved(&address) && Some(address) != last && !self.taken.contains_key(&address) {
                return Some(address);
            }
            index = index.checked_add(1)?;
        }
    }

    fn exhausted(&self, network: &str, prefix: Prefix) -> PlumbingError {
        let is_ours = |address: &IpAddr| {
            let block = self.blocks.iter().find(|(_, block)| block.contains(*address));
            address.is_ipv4() == prefix.is_ipv4() && block.map_or(DEFAULT_NETWORK, |(name, _)| name) == network
        };
        let mut counts = Counts::default();
        self.taken.iter().filter(|(address, _)| is_ours(address)).for_each(|(_, holder)| counts.add(holder));
        PlumbingError::PrefixExhausted { network: network.to_owned(), prefix, counts }
    }
}

/// How many addresses are held, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// By endpoints.
    pub used: u64,
    /// By their cooldown.
    pub resting: u64,
    /// By hand.
    pub reserved: u64,
}

impl Counts {
    /// Counts one.
    pub fn add(&mut self, holder: &Holder) {
        match holder {
            Holder::Endpoint(_) | Holder::Held(_) => self.used += 1,
            Holder::Resting(..) => self.resting += 1,
            Holder::Reserved => self.reserved += 1,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in use, {} resting after use, {} reserved", self.used, self.resting, self.reserved)
    }
}

/// The length of the blocks of a prefix: an eighth of an IPv4 prefix, of 256 addresses at most; a /80 of a /64.
fn block_len(prefix: &Prefix) -> u8 {
    let (more, least) = if prefix.is_ipv4() { (3, 24) } else { (16, 0) };
    (prefix.len() + more).max(least).min(bits(prefix)).min(prefix.len() + 16)
}

fn bits(prefix: &Prefix) -> u8 {
    if prefix.is_ipv4() { 32 } else { 128 }
}

/// How many addresses a prefix has.
fn size(prefix: &Prefix) -> u128 {
    1u128.checked_shl(u32::from(bits(prefix) - prefix.len())).unwrap_or(u128::MAX)
}

/// The bits of an index that count inside a prefix.
fn hole_mask(hole: &Prefix) -> u128 {
    u128::MAX.checked_shr(128 - u32::from(bits(hole) - hole.len())).unwrap_or(0)
}

fn broadcast(prefix: &Prefix) -> Option<IpAddr> {
    let host_bits = 32u8.checked_sub(prefix.len()).filter(|_| prefix.is_ipv4())?;
    prefix.nth((1u128 << host_bits) - 1)
}

#[cfg(test)]
mod tests;

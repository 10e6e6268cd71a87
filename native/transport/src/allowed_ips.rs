//! Finds the peer that an inner address belongs to: longest prefix, both families (whitepaper
//! section 2).
//!
//! There is one map per prefix length in use, tried from the longest. Most tables hold one or two
//! lengths, so a look-up takes one or two hashes, for 10,000 prefixes as for one. Readers take no
//! lock.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use crate::contract::{Address, Network};
use crate::locks::lock;
use crate::snapshot::{Mix, SnapshotMap};

/// The prefixes of one length.
struct Level<K, T> {
    /// Bits after the prefix. Prefixes are stored shifted right by them.
    host_bits: u32,
    owners: SnapshotMap<K, T>,
}

impl<K: Prefix, T: Clone> Level<K, T> {
    fn key(&self, address: K) -> K {
        address.shift(self.host_bits)
    }
}

/// An address as an integer.
trait Prefix: Copy + Eq + Hash {
    fn shift(self, bits: u32) -> Self;
}

impl Prefix for u32 {
    fn shift(self, bits: u32) -> Self {
        self.checked_shr(bits).unwrap_or(0)
    }
}

impl Prefix for u128 {
    fn shift(self, bits: u32) -> Self {
        self.checked_shr(bits).unwrap_or(0)
    }
}

/// The prefixes of one address family, longest first.
struct Family<K, T>(ArcSwap<Vec<Arc<Level<K, T>>>>);

impl<K: Prefix, T: Clone + Eq> Family<K, T> {
    fn find<R>(&self, address: K, mut found: impl FnMut(&T) -> R) -> Option<R> {
        self.0.load().iter().find_map(|level| level.owners.with(&level.key(address), &mut found))
    }

    fn insert(&self, address: K, host_bits: u32, owner: T) {
        let levels = self.0.load_full();
        let place = levels.binary_search_by_key(&host_bits, |level| level.host_bits);
        let level = match place {
            Ok(at) => Arc::clone(&levels[at]),
            Err(at) => {
                let made = Arc::new(Level { host_bits, owners: SnapshotMap::default() });
                let mut changed = Vec::clone(&levels);
                changed.insert(at, Arc::clone(&made));
                self.0.store(Arc::new(changed));
                made
            }
        };
        level.owners.insert(level.key(address), owner);
    }

    fn discard(&self, address: K, host_bits: u32, owner: &T) {
        let levels = self.0.load_full();
        let Some(at) = levels.iter().position(|level| level.host_bits == host_bits) else { return };
        let level = &levels[at];
        level.owners.remove_if(&level.key(address), |one| one == owner);
        if level.owners.is_empty() {
            let mut changed = Vec::clone(&levels);
            changed.remove(at);
            self.0.store(Arc::new(changed));
        }
    }
}

/// Networks to their owners.
pub struct AllowedIps<T> {
    v4: Family<u32, T>,
    v6: Family<u128, T>,
    /// The networks that were set for an owner. One of them may belong to another owner by now, so
    /// removing checks that. The lock is held while something changes.
    owned: Mutex<HashMap<T, Box<[Network]>, Mix>>,
}

impl<T: Clone + Eq + Hash> Default for AllowedIps<T> {
    fn default() -> Self {
        Self { v4: Family(ArcSwap::default()), v6: Family(ArcSwap::default()), owned: Mutex::new(HashMap::default()) }
    }
}

impl<T: Clone + Eq + Hash> AllowedIps<T> {
    /// Make `networks` those of `owner`. Its other networks are removed, and each of these is taken
    /// from its previous owner.
    pub fn set(&self, owner: &T, networks: &[Network]) {
        let mut owned = lock(&self.owned);
        if let Some(before) = owned.remove(owner) {
            self.discard(owner, before.iter().filter(|network| !networks.contains(network)));
        }
        for network in networks {
            let prefix = u32::from(network.prefix);
            match network.address {
                Address::V4(address) => self.v4.insert(address, 32 - prefix, owner.clone()),
                Address::V6(address) => self.v6.insert(address, 128 - prefix, owner.clone()),
            }
        }
        if !networks.is_empty() {
            owned.insert(owner.clone(), networks.into());
        }
    }

    /// Remove all networks of `owner`.
    pub fn remove(&self, owner: &T) {
        let mut owned = lock(&self.owned);
        if let Some(before) = owned.remove(owner) {
            self.discard(owner, before.iter());
        }
    }

    fn discard<'a>(&self, owner: &T, networks: impl Iterator<Item = &'a Network>) {
        for network in networks {
            let prefix = u32::from(network.prefix);
            match network.address {
                Address::V4(address) => self.v4.discard(address, 32 - prefix, owner),
                Address::V6(address) => self.v6.discard(address, 128 - prefix, owner),
            }
        }
    }

    /// Return the owner of an address.
    pub fn find(&self, address: Address) -> Option<T> {
        match address {
            Address::V4(address) => self.v4.find(address, T::clone),
            Address::V6(address) => self.v6.find(address, T::clone),
        }
    }

    /// Return whether `owner` has an address. This look-up doesn't touch the owner's reference
    /// count.
    pub fn is_owned_by(&self, address: Address, owner: &T) -> bool {
        let same = |one: &T| one == owner;
        match address {
            Address::V4(address) => self.v4.find(address, same),
            Address::V6(address) => self.v6.find(address, same),
        }
        .unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn v4(text: &str) -> Address {
        Address::V4(text.parse::<std::net::Ipv4Addr>().unwrap().into())
    }

    fn v6(text: &str) -> Address {
        Address::V6(text.parse::<std::net::Ipv6Addr>().unwrap().into())
    }

    fn networks(names: &[&str]) -> Vec<Network> {
        let parse = |name: &&str| {
            let (address, prefix) = name.split_once('/').unwrap();
            let address = if address.contains(':') { v6(address) } else { v4(address) };
            Network { address, prefix: prefix.parse().unwrap() }
        };
        names.iter().map(parse).collect()
    }

    #[test]
    fn the_longest_prefix_wins_in_both_families() {
        let table = AllowedIps::default();
        table.set(&1, &networks(&["0.0.0.0/0", "::/0", "10.0.0.0/8"]));
        table.set(&2, &networks(&["10.9.0.0/16", "fd00::/16"]));
        table.set(&3, &networks(&["10.9.1.1/32", "fd00::1/128"]));
        let owners = ["9.9.9.9", "10.1.1.1", "10.9.9.9", "10.9.1.1"].map(|name| table.find(v4(name)));
        assert_eq!(owners, [Some(1), Some(1), Some(2), Some(3)]);
        let owners = ["2001:db8::1", "fd00::2", "fd00::1"].map(|name| table.find(v6(name)));
        assert_eq!(owners, [Some(1), Some(2), Some(3)]);
    }

    #[test]
    fn a_network_moves_and_its_first_owner_cannot_take_it_along() {
        let table = AllowedIps::default();
        table.set(&1, &networks(&["10.0.0.0/24", "10.0.1.0/24"]));
        table.set(&2, &networks(&["10.0.0.0/24"]));
        assert_eq!(table.find(v4("10.0.0.5")), Some(2));
        table.remove(&1);
        assert_eq!((table.find(v4("10.0.0.5")), table.find(v4("10.0.1.5"))), (Some(2), None));
        assert!(table.is_owned_by(v4("10.0.0.5"), &2) && !table.is_owned_by(v4("10.0.0.5"), &1));
        table.set(&2, &[]);
        assert_eq!(table.find(v4("10.0.0.5")), None);
        assert!(table.v4.0.load().is_empty());
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes long, and shows Miri nothing")]
    fn each_of_10000_prefixes_is_found_and_how_long_that_takes_is_told() {
        let table = AllowedIps::default();
        for peer in 0..5_000_u32 {
            let (four, six) = (Address::V4(0x0a00_0000 + peer), Address::V6(0xfd << 120 | u128::from(peer)));
            table.set(&peer, &[Network { address: four, prefix: 32 }, Network { address: six, prefix: 128 }]);
        }
        let start = Instant::now();
        let rounds = 200;
        for _ in 0..rounds {
            for peer in 0..5_000_u32 {
                let scattered = peer * 2_741 % 5_000;
                assert!(table.is_owned_by(Address::V4(0x0a00_0000 + scattered), &scattered));
            }
        }
        let each = start.elapsed().as_nanos() / (rounds * 5_000);
        println!("allowed-IPs: {each} ns per look-up among 10,000 prefixes");
    }
}

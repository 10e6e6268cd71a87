//! The MAC addresses of learnt ranges: a table of bounded size, in which only answers are noted.

use std::collections::HashMap;

use transport::contract::{Address, Seconds};
use transport::ethernet::MacAddress;

/// The most addresses.
pub const MOST: usize = 4096;
/// The most addresses that were asked for and didn't answer. More aren't asked for meanwhile.
pub const MOST_ASKED: usize = 1024;
/// After this an address is asked for again, and used meanwhile.
pub const FRESH: Seconds = 60.0;
/// After this an address is used no more.
pub const LIFE: Seconds = 180.0;
/// No address is asked for twice within this.
pub const PAUSE: Seconds = 1.0;
/// An address that hasn't answered by then may be forgotten.
pub const PATIENCE: Seconds = 3.0;

struct Entry {
    /// The MAC address, and when it was confirmed last.
    mac: Option<(MacAddress, Seconds)>,
    asked: Seconds,
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where to send it. None: it is dropped.
    pub mac: Option<MacAddress>,
    /// Whether to ask for the address.
    pub ask: bool,
}

/// The table.
#[derive(Default)]
pub struct Table {
    entries: HashMap<Address, Entry>,
    /// Entries without a MAC address.
    unanswered: usize,
    /// When forgetting was tried last: it looks at every entry.
    swept: Seconds,
}

impl Table {
    /// Return the way to an address of a learnt range.
    pub fn find(&mut self, address: Address, now: Seconds) -> Way {
        if let Some(entry) = self.entries.get_mut(&address) {
            let known = entry.mac.filter(|(_, at)| now - at < LIFE);
            self.unanswered += usize::from(entry.mac.is_some() && known.is_none());
            entry.mac = known;
            let fresh = known.is_some_and(|(_, at)| now - at < FRESH);
            let ask = !fresh && now - entry.asked >= PAUSE;
            if ask {
                entry.asked = now;
            }
            return Way { mac: known.map(|(mac, _)| mac), ask };
        }
        let ask = self.has_room(now);
        if ask {
            self.entries.insert(address, Entry { mac: None, asked: now });
            self.unanswered += 1;
        }
        Way { mac: None, ask }
    }

    /// Note what an address says of itself, if it was asked for. `overrides`: whether another address
    /// than the known one counts.
    pub fn learn(&mut self, address: Address, mac: MacAddress, overrides: bool, now: Seconds) {
        if let Some(entry) = self.entries.get_mut(&address)
            && (overrides || entry.mac.is_none_or(|(known, at)| known == mac || now - at >= LIFE))
        {
            self.unanswered -= usize::from(entry.mac.is_none());
            entry.mac = Some((mac, now));
        }
    }

    fn has_room(&mut self, now: Seconds) -> bool {
        let has = |table: &Self| table.entries.len() < MOST && table.unanswered < MOST_ASKED;
        if has(self) {
            return true;
        }
        if now - self.swept < PAUSE {
            return false;
        }
        self.swept = now;
        self.entries.retain(|_, entry| match entry.mac {
            Some((_, at)) => now - at < LIFE,
            None => now - entry.asked < PATIENCE,
        });
        self.unanswered = self.entries.values().filter(|entry| entry.mac.is_none()).count();
        has(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddress = [2, 0, 0, 0, 0, 9];
    const OTHER: MacAddress = [2, 0, 0, 0, 0, 8];
    const ASKED: Way = Way { mac: None, ask: true };
    const UNKNOWN: Way = Way { mac: None, ask: false };

    fn four(number: usize) -> Address {
        Address::V4(number as u32)
    }

    #[test]
    fn an_address_is_asked_for_once_a_second_and_again_when_it_gets_old() {
        let mut table = Table::default();
        assert_eq!(table.find(four(1), 10.0), ASKED);
        assert_eq!(table.find(four(1), 10.9), UNKNOWN);
        assert_eq!(table.find(four(1), 11.0), ASKED);
        table.learn(four(1), MAC, false, 12.0);
        assert_eq!(table.find(four(1), 12.0 + FRESH - 0.1), Way { mac: Some(MAC), ask: false });
        assert_eq!(table.find(four(1), 12.0 + FRESH), Way { mac: Some(MAC), ask: true });
        assert_eq!(table.find(four(1), 12.1 + FRESH), Way { mac: Some(MAC), ask: false });
        assert_eq!(table.find(four(1), 12.0 + LIFE), ASKED);
    }

    #[test]
    fn only_what_was_asked_for_is_noted_and_the_known_counts_more_unless_overridden() {
        let mut table = Table::default();
        table.learn(four(1), MAC, true, 0.0);
        assert!(table.entries.is_empty());
        table.find(four(1), 0.0);
        table.learn(four(1), MAC, false, 0.0);
        table.learn(four(1), OTHER, false, 1.0);
        assert_eq!(table.find(four(1), 1.0).mac, Some(MAC));
        table.learn(four(1), OTHER, true, 1.0);
        assert_eq!(table.find(four(1), 1.0).mac, Some(OTHER));
        table.learn(four(1), MAC, false, 1.0 + LIFE);
        assert_eq!(table.find(four(1), 1.0 + LIFE).mac, Some(MAC));
    }

    #[test]
    fn all_the_room_can_be_filled_at_once_by_those_who_answer() {
        let mut table = Table::default();
        for number in 0..MOST {
            assert_eq!(table.find(four(number), 10.0), ASKED, "{number}");
            table.learn(four(number), MAC, false, 10.0);
        }
        assert_eq!(table.find(four(MOST), 10.0), UNKNOWN);
        assert_eq!((table.entries.len(), table.unanswered), (MOST, 0));
        // Once they are too old, each counts as one that doesn't answer.
        for number in 0..MOST {
            table.find(four(number), 10.0 + LIFE);
        }
        assert_eq!(table.unanswered, MOST);
        assert_eq!(table.find(four(MOST), 10.0 + LIFE), UNKNOWN);
        assert_eq!(table.find(four(MOST), 10.0 + LIFE + PATIENCE), ASKED);
        assert_eq!((table.entries.len(), table.unanswered), (1, 1));
    }

    #[test]
    fn a_flood_of_unknown_addresses_takes_bounded_room_and_forgets_no_known_one() {
        let mut table = Table::default();
        let mut now = 10.0;
        for number in 0..MOST + 500 {
            now += 1e-4;
            if table.find(four(number), now).ask {
                table.learn(four(number), MAC, false, now);
            }
            if number % MOST_ASKED == 0 {
                now += PAUSE;
            }
        }
        assert!(table.entries.len() <= MOST);
        assert_eq!(table.find(four(0), now).mac, Some(MAC));
        let mut flooded = Table::default();
        let asked = (0..1 << 20).filter(|number| flooded.find(four(*number), 10.0).ask).count();
        assert_eq!((asked, flooded.entries.len()), (MOST_ASKED, MOST_ASKED));
        assert_eq!(flooded.find(four(1 << 20), 10.0 + PATIENCE), ASKED);
        assert_eq!(flooded.entries.len(), 1);
    }
}

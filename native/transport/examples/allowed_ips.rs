//! Measures a look-up in allowed-IPs: among 1, 100 and 10,000 prefixes, of one length and of four.
//!
//! `cargo run --release -p transport --example allowed_ips` prints a JSON object per line.
//! `bench/scale.py` reads them.

use std::fs;
use std::hint::black_box;

use transport::allowed_ips::AllowedIps;
use transport::contract::{Address, Network};

const LOOK_UPS: u32 = 2_000_000;
const ROUNDS: usize = 5;

/// Return the network of a peer, `prefix` long, in `first.0.0.0/8`.
fn v4(first: u32, peer: u32, prefix: u8) -> Network {
    Network { address: Address::V4((first << 24) + (peer << (32 - prefix))), prefix }
}

/// Return the address of a peer in fd00::/64.
fn v6(peer: u32) -> Network {
    Network { address: Address::V6((0xfd << 120) + u128::from(peer)), prefix: 128 }
}

/// Return nanoseconds per look-up for each round. No cache can predict the order of the peers.
fn time(networks: &[Network]) -> Vec<f64> {
    let table = AllowedIps::default();
    for (peer, network) in networks.iter().enumerate() {
        table.set(&peer, &[*network]);
    }
    let order = scattered(networks.len());
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let began = processor_time();
        for &peer in &order {
            assert!(table.is_owned_by(black_box(networks[peer].address), black_box(&peer)));
        }
        rounds.push((processor_time() - began) as f64 / f64::from(LOOK_UPS));
    }
    rounds
}

/// Return the nanoseconds of processor time of this thread. Other programs don't count.
fn processor_time() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with CONFIG_SCHED_INFO");
    text.split(' ').next().and_then(|first| first.parse().ok()).expect("its first field is a number")
}

/// Return numbers below `count` from a linear congruential generator.
fn scattered(count: usize) -> Vec<usize> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % count
    };
    (0..LOOK_UPS).map(|_| next()).collect()
}

fn report(name: &str, networks: &[Network]) {
    println!(r#"{{"name": "{name}", "prefixes": {}, "ns": {:?}}}"#, networks.len(), time(networks));
}

fn main() {
    for count in [1, 100, 10_000] {
        report("IPv4, one length", &(0..count).map(|peer| v4(10, peer, 32)).collect::<Vec<_>>());
        report("IPv6, one length", &(0..count).map(v6).collect::<Vec<_>>());
    }
    // The look-up tries longer lengths than an address's own first, and misses.
    let lengths = [(10, 32), (20, 28), (30, 24), (40, 20)];
    let of = |(first, prefix)| (0..2_500).map(move |peer| v4(first, peer, prefix));
    report("IPv4, four lengths", &lengths.into_iter().flat_map(of).collect::<Vec<_>>());
}

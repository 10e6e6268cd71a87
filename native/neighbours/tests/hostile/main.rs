//! What a hostile other side may send, under random input for some seconds. `make fuzz` drives the same
//! functions by coverage.
//!
//! RUSTGUARD_FUZZ_SECONDS sets the duration of each (2 s), RUSTGUARD_FUZZ_SEED the seed.

use std::time::{Duration, Instant};

mod bodies;
#[path = "../../../transport/tests/support/dice.rs"]
mod dice;

use dice::Dice;
use neighbours::{arp, ndp};

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Call `body` with damaged copies of `seeds`, for some seconds.
fn drive(body: fn(&[u8]), seeds: &[Vec<u8>]) {
    let seed = variable("RUSTGUARD_FUZZ_SEED").unwrap_or(20_261_126);
    let until = Instant::now() + Duration::from_secs(variable("RUSTGUARD_FUZZ_SECONDS").unwrap_or(2));
    let mut dice = Dice(seed);
    let mut inputs = 0_u64;
    while Instant::now() < until {
        let mut bytes = seeds[dice.below(seeds.len())].clone();
        for _ in 0..dice.below(4) {
            let at = dice.below(bytes.len());
            bytes[at] = dice.next() as u8;
        }
        if dice.below(4) == 0 {
            bytes.truncate(dice.below(bytes.len()));
        }
        body(&bytes);
        inputs += 1;
    }
    println!("{inputs} inputs, seed {seed}");
}

fn packets() -> Vec<Vec<u8>> {
    let (source, target) = (0xfe80 << 112 | 9, 0xfd08 << 112 | 2);
    let mac = Some([2, 0, 0, 0, 0, 9]);
    let ask =
        ndp::Message { kind: ndp::Kind::Solicitation, source, destination: ndp::solicited_node(target), target, mac };
    let kind = ndp::Kind::Advertisement { solicited: false, overrides: true };
    let tell = ndp::Message { kind, source, destination: ndp::ALL_NODES, target, mac };
    let mut four = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17];
    four.resize(46, 10);
    vec![ask.packet().to_vec(), tell.packet().to_vec(), four]
}

#[test]
fn any_frame_may_come() {
    let operation = arp::Operation::Request;
    let asked = arp::Message { operation, sender_mac: [2, 0, 0, 0, 0, 9], sender: 1, target_mac: [0; 6], target: 2 };
    let head = |kind: [u8; 2]| [&[0xff; 6][..], &[2, 0, 0, 0, 0, 9], &kind].concat();
    let mut frames = vec![[head([8, 6]), asked.bytes().to_vec()].concat()];
    for packet in packets() {
        frames.push([head(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] }), packet].concat());
    }
    drive(bodies::frame, &frames);
}

#[test]
fn any_packet_may_be_sent() {
    drive(bodies::packet, &packets());
}

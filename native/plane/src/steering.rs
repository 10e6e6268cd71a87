//! Which socket of a port gets a datagram. Data messages go to the sockets of the queues,
//! everything else to those of the gate, which come after them.
//!
//! The kernel decides. So a flood of handshakes doesn't fill the buffer that data waits in, and
//! doesn't wake a thread that moves data. Nor does a flood of one kind fill the buffer of another.
//!
//! The program is in BPF's first instruction set (Linux, Documentation/networking/filter.rst),
//! which needs no privileges.

use std::io;
use std::mem::size_of;

use libc::{
    BPF_A, BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_H, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_LEN, BPF_MISC,
    BPF_MOD, BPF_MUL, BPF_RET, BPF_RSH, BPF_TAX, BPF_W, BPF_X, sock_filter, sock_fprog,
};

use transport::wire::{DATA_MAGIC, FOREIGN_MAGIC, INITIATION, INITIATION_SIZE, MAC_SIZE};

use crate::descriptor::check;
use crate::udp::Udp;

/// linux/asm-generic/socket.h
const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;
/// Spreads numbers that differ in few bits (Knuth's multiplicative hash). The high half of the
/// product counts.
const SPREAD: u32 = 0x9e37_79b1;

/// The sockets of the gate, one for each kind of datagram: first messages whose sender proves
/// nothing, enrollment, and the rest. The rest are answers to us, senders with a cookie, and
/// strangers.
pub const GATE_LANES: usize = 3;
const UNPROVEN: u32 = 0;
const FOREIGN: u32 = 1;
const REST: u32 = 2;

/// Sort what comes to the port of `socket`. It is the first of `queues` sockets there, followed by
/// GATE_LANES sockets of the gate, in the order of their binding.
pub fn steer(socket: &Udp, queues: usize) -> io::Result<()> {
    let mut code = program(socket.v6, queues as u32);
    let program = sock_fprog { len: code.len() as u16, filter: code.as_mut_ptr() };
    let size = size_of::<sock_fprog>() as libc::socklen_t;
    let option = SO_ATTACH_REUSEPORT_CBPF;
    // SAFETY: the kernel reads `size` bytes of `program`, and its `len` instructions, during the
    // call only.
    check(unsafe { libc::setsockopt(socket.fd(), libc::SOL_SOCKET, option, (&raw const program).cast(), size) })
        .map(drop)
}

/// Return the program. Its result is the number of a socket. A datagram of less than four bytes
/// ends it at the first load, which counts as 0.
fn program(v6: bool, queues: u32) -> Vec<sock_filter> {
    // The datagram's first four bytes decide.
    let mut code = vec![instruction(BPF_LD | BPF_W | BPF_ABS, 0)];
    code.extend(unless(BPF_JEQ, u32::from_be_bytes(DATA_MAGIC), &to_a_queue(v6, queues)));
    code.extend(unless(BPF_JEQ, u32::from_be_bytes([INITIATION, 0, 0, 0]), &by_proof(queues)));
    code.push(instruction(BPF_ALU | BPF_AND | BPF_K, 0xffff_ff00));
    let [r, g, e] = *FOREIGN_MAGIC;
    code.extend(unless(BPF_JEQ, u32::from_be_bytes([r, g, e, 0]), &[result(queues + FOREIGN)]));
    code.push(result(queues + REST));
    code
}

/// Sort first messages. A sender without a cookie leaves MAC2 zero (whitepaper section 5.4.4).
fn by_proof(queues: u32) -> Vec<sock_filter> {
    let mut code = vec![instruction(BPF_LD | BPF_W | BPF_LEN, 0)];
    // Too short to have a MAC2.
    code.push(jump(BPF_JGE, INITIATION_SIZE as u32, 1, 0));
    code.push(result(queues + REST));
    for word in (INITIATION_SIZE - MAC_SIZE..INITIATION_SIZE).step_by(4) {
        code.push(instruction(BPF_LD | BPF_W | BPF_ABS, word as u32));
        code.push(jump(BPF_JEQ, 0, 1, 0));
        code.push(result(queues + REST));
    }
    code.push(result(queues + UNPROVEN));
    code
}

/// Sort data messages.
fn to_a_queue(v6: bool, queues: u32) -> Vec<sock_filter> {
    if queues == 1 {
        return vec![result(0)];
    }
    let mut code = Vec::new();
    // All datagrams of one source go to one queue. IP options move the port field, but what is
    // there instead is as constant per flow.
    let (address, port) = if v6 { (8..24, 40) } else { (12..16, 20) };
    code.push(instruction(BPF_LD | BPF_H | BPF_ABS, in_header(port)));
    for word in address.step_by(4) {
        code.push(instruction(BPF_MISC | BPF_TAX, 0));
        code.push(instruction(BPF_LD | BPF_W | BPF_ABS, in_header(word)));
        code.push(instruction(BPF_ALU | BPF_ADD | BPF_X, 0));
    }
    code.extend([
        instruction(BPF_ALU | BPF_MUL | BPF_K, SPREAD),
        instruction(BPF_ALU | BPF_RSH | BPF_K, 16),
        instruction(BPF_ALU | BPF_MOD | BPF_K, queues),
        instruction(BPF_RET | BPF_A, 0),
    ]);
    code
}

/// If the accumulator compares so with `number`, do `then`, which ends the program. Otherwise go
/// on.
fn unless(condition: u32, number: u32, then: &[sock_filter]) -> Vec<sock_filter> {
    [&[jump(condition, number, 0, then.len() as u8)], then].concat()
}

/// Compare the accumulator with `number`, and skip `when` instructions if the condition holds,
/// `otherwise` instructions if not.
fn jump(condition: u32, number: u32, when: u8, otherwise: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | condition | BPF_K) as u16, jt: when, jf: otherwise, k: number }
}

/// Return the instruction that ends the program with this result.
fn result(place: u32) -> sock_filter {
    instruction(BPF_RET | BPF_K, place)
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Return the offset of byte `at` of the IP header.
fn in_header(at: i32) -> u32 {
    (libc::SKF_NET_OFF + at) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::wait;
    use crate::offloads::Offloads;
    use crate::udp_side::{Patience, Receiver};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd as _;

    /// Make sockets of one port on `host`: those of `queues`, then those of the gate.
    fn sockets(host: &str, queues: usize) -> (Vec<Udp>, std::net::SocketAddr) {
        let bound = UdpSocket::bind((host, 0)).unwrap();
        let mut made = vec![Udp::adopt(bound.as_raw_fd(), Offloads::ALL).unwrap().0];
        for _ in 1..queues + GATE_LANES {
            made.push(made[0].twin().unwrap());
        }
        steer(&made[0], queues).unwrap();
        (made, bound.local_addr().unwrap())
    }

    /// Send a datagram. Return the place of the socket that got it.
    fn taken_by(sockets: &[Udp], from: &UdpSocket, to: std::net::SocketAddr, datagram: &[u8]) -> usize {
        from.send_to(datagram, to).unwrap();
        let mut receiver = Receiver::default();
        for _ in 0..1000 {
            for (place, socket) in sockets.iter().enumerate() {
                wait([(socket.fd(), libc::POLLIN)], 1).unwrap();
                if socket.receive(&mut receiver).is_ok() {
                    return place;
                }
            }
        }
        panic!("nobody got it");
    }

    #[test]
    fn data_goes_to_the_queues_and_all_else_to_a_lane_of_its_own() {
        for host in ["127.0.0.1", "::1"] {
            for queues in [1, 2, 3] {
                let (sockets, to) = sockets(host, queues);
                let mut used = vec![0; queues];
                for _ in 0..48 {
                    let from = UdpSocket::bind((host, 0)).unwrap();
                    let place = taken_by(&sockets, &from, to, &[&DATA_MAGIC[..], &[7; 28]].concat());
                    assert_eq!(taken_by(&sockets, &from, to, &[&DATA_MAGIC[..], &[9; 100]].concat()), place);
                    used[place] += 1;
                }
                assert!(used.iter().all(|count| *count > 0), "{used:?}");
                let from = UdpSocket::bind((host, 0)).unwrap();
                let lane = |datagram: &[u8]| taken_by(&sockets, &from, to, datagram) - queues;
                let mut first = [0; INITIATION_SIZE];
                first[0] = INITIATION;
                assert_eq!(lane(&first), UNPROVEN as usize);
                for proof in [132, 147] {
                    let mut proven = first;
                    proven[proof] = 1;
                    assert_eq!(lane(&proven), REST as usize);
                }
                assert_eq!(lane(b"RGE2 and more"), FOREIGN as usize);
                for other in [&first[..147], &[2; 92], &[4, 0, 0, 1, 5], b"RGF2"] {
                    assert_eq!(lane(other), REST as usize);
                }
                assert!(taken_by(&sockets, &from, to, &[1]) < queues);
            }
        }
    }

    #[test]
    fn what_only_sends_receives_nothing() {
        for host in ["127.0.0.1", "::1"] {
            let (mut sockets, to) = sockets(host, 2);
            let receiving = sockets.len();
            for _ in 0..5 {
                sockets.push(sockets[0].sender().unwrap());
            }
            for round in 0..2 {
                for _ in 0..24 {
                    let from = UdpSocket::bind((host, 0)).unwrap();
                    for datagram in [&[&DATA_MAGIC[..], &[7; 28]].concat()[..], &[INITIATION; 148], b"RGE2", &[9; 9]]
                    {
                        assert!(taken_by(&sockets, &from, to, datagram) < receiving, "round {round}");
                    }
                    sockets[receiving]
                        .send(&[1; 30], 30, from.local_addr().unwrap().into(), 0, Patience::None)
                        .unwrap();
                    assert_eq!(from.recv_from(&mut [0; 64]).unwrap().1, to);
                }
                // The kernel puts the last one in its place.
                sockets.remove(receiving + 1);
            }
        }
    }

    #[test]
    fn the_way_out_is_open_from_each_of_them() {
        let (sockets, _) = sockets("127.0.0.1", 1);
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in &sockets {
            socket.send(&[1; 30], 10, other.local_addr().unwrap().into(), 0, Patience::None).unwrap();
            assert_eq!(other.recv_from(&mut [0; 64]).unwrap().1, socket.local_address().unwrap());
        }
    }
}

//! The program that an interface runs on each frame: our datagrams go to our sockets, everything
//! else to the kernel.
//!
//! It is made of BPF's instructions, so no compiler for BPF is needed. The kernel's verifier checks
//! it at each start. Two maps belong to it: our addresses, and a socket for each queue of the
//! interface.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::xdp::assembler::{
    Assembler, BYTE, DOUBLE, EQUAL, GREATER, HALF, Instruction, LESS_OR_EQUAL, Label, NOT_EQUAL, R0, R1, R2, R3, R4,
    R5, R6, R10, WORD,
};
use crate::xdp::bpf;

// linux/bpf.h
const XDP_PASS: i32 = 2;
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_REDIRECT_MAP: i32 = 51;
/// Addresses beyond this many are served by the ordinary sockets.
const MOST_ADDRESSES: u32 = 1024;

/// What makes a frame ours.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Our port, if we serve IPv4.
    pub port_v4: Option<u16>,
    /// Our port, if we serve IPv6.
    pub port_v6: Option<u16>,
    /// Bytes of the longest frame. The kernel has merged whatever is longer.
    pub longest: u16,
}

/// The program and its maps. They exist as long as they are held.
pub struct Program {
    program: OwnedFd,
    addresses: OwnedFd,
    sockets: OwnedFd,
}

/// A program that runs on an interface. It stops when its descriptor is closed, even if the process
/// is killed.
pub struct Attached {
    _link: OwnedFd,
    /// Whether the driver runs it. Otherwise the kernel does, after it has made its own packet of
    /// the frame.
    pub native: bool,
}

impl Program {
    /// Load the program for an interface with `queues` queues.
    pub fn load(wanted: &Wanted, queues: u32) -> io::Result<Self> {
        let addresses = bpf::create_map(bpf::MAP_TYPE_HASH, 16, 4, MOST_ADDRESSES)?;
        let sockets = bpf::create_map(bpf::MAP_TYPE_XSKMAP, 4, 4, queues)?;
        let code = assemble(wanted, addresses.as_raw_fd(), sockets.as_raw_fd());
        let program = bpf::load(&code)?;
        Ok(Self { program, addresses, sockets })
    }

    /// Have an interface run the program: in its driver, or after it if the driver can't.
    pub fn attach(&self, interface: u32) -> io::Result<Attached> {
        self.attach_as(interface, bpf::FLAG_NATIVE).or_else(|error| match error.raw_os_error() {
            // Another program is there, or we have no right to do this.
            Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::EACCES | libc::ENODEV) => Err(error),
            _ => self.attach_as(interface, bpf::FLAG_GENERIC),
        })
    }

    fn attach_as(&self, interface: u32, flags: u32) -> io::Result<Attached> {
        let link = bpf::attach(&self.program, interface, flags)?;
        Ok(Attached { _link: link, native: flags == bpf::FLAG_NATIVE })
    }

    /// Give the datagrams of a queue to an AF_XDP socket.
    pub fn set_socket(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        bpf::update(&self.sockets, &queue.to_ne_bytes(), &socket.to_ne_bytes())
    }

    /// Take what is sent to this address of ours.
    pub fn add_address(&self, address: IpAddr) -> io::Result<()> {
        bpf::update(&self.addresses, &key(address), &[1, 0, 0, 0])
    }

    /// Leave what is sent to this address to the kernel.
    pub fn remove_address(&self, address: IpAddr) {
        bpf::delete(&self.addresses, &key(address));
    }
}

/// Return an address as the map has it, with IPv4 mapped into IPv6.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Return what a load of a 16-bit field of a packet yields for `number`.
fn field(number: u16) -> i32 {
    i32::from(number.to_be())
}

/// The same for a port. A port that we don't have equals no field.
fn port_field(port: Option<u16>) -> i32 {
    port.map_or(0x1_0000, field)
}

// Registers: R2 points to the beginning of the frame, R3 to its end, R6 to the context. R4 and R5
// hold what is compared. The 16 bytes of the stack below R10 hold the key to look up.

fn assemble(wanted: &Wanted, addresses: RawFd, sockets: RawFd) -> Vec<Instruction> {
    let mut a = Assembler::default();
    examine_frame(&mut a, wanted.longest);
    examine_ipv4(&mut a, wanted.port_v4);
    examine_ipv6(&mut a, wanted.port_v6);
    redirect(&mut a, addresses, sockets);
    a.finish()
}

/// Pass merged frames, short frames, and those of other protocols. IPv6 continues at `V6`, IPv4 at
/// the next instruction.
fn examine_frame(a: &mut Assembler, longest: u16) {
    use Label::{Pass, V6};
    // Of struct xdp_md.
    const DATA: i16 = 0;
    const DATA_END: i16 = 4;
    a.copy(R6, R1);
    a.load(WORD, R2, R1, DATA);
    a.load(WORD, R3, R1, DATA_END);
    // Frames longer than the interface's are merged ones. The ordinary sockets can tell their
    // datagrams apart.
    a.copy(R4, R2);
    a.add(R4, i32::from(longest) + 1);
    a.jump_if_register(LESS_OR_EQUAL, R4, R3, Pass);
    // At least Ethernet, IPv4 and UDP.
    a.copy(R4, R2);
    a.add(R4, 42);
    a.jump_if_register(GREATER, R4, R3, Pass);
    a.load(HALF, R5, R2, 12);
    a.jump_if(EQUAL, R5, field(0x86dd), V6);
    a.jump_if(NOT_EQUAL, R5, field(0x0800), Pass);
}

/// Pass what isn't ours over IPv4. For the rest, put the key on the stack: `::ffff:a.b.c.d`.
fn examine_ipv4(a: &mut Assembler, port: Option<u16>) {
    use Label::{LookUp, Pass};
    // IPv4 without options, UDP, no fragment, our port.
    a.load(BYTE, R5, R2, 14);
    a.jump_if(NOT_EQUAL, R5, 0x45, Pass);
    a.load(BYTE, R5, R2, 23);
    a.jump_if(NOT_EQUAL, R5, 17, Pass);
    a.load(HALF, R5, R2, 20);
    a.mask(R5, field(0x3fff));
    a.jump_if(NOT_EQUAL, R5, 0, Pass);
    a.load(HALF, R5, R2, 36);
    a.jump_if(NOT_EQUAL, R5, port_field(port), Pass);
    // The key.
    a.set(R5, 0);
    a.store(DOUBLE, -16, R5);
    a.set(R5, 0xffff_u32.to_be() as i32);
    a.store(WORD, -8, R5);
    a.load(WORD, R5, R2, 30);
    a.store(WORD, -4, R5);
    a.jump(LookUp);
}

/// Pass what isn't ours over IPv6. For the rest, put the key on the stack.
fn examine_ipv6(a: &mut Assembler, port: Option<u16>) {
    use Label::{Pass, V6};
    // IPv6, directly followed by UDP, our port.
    a.here(V6);
    a.copy(R4, R2);
    a.add(R4, 62);
    a.jump_if_register(GREATER, R4, R3, Pass);
    a.load(BYTE, R5, R2, 14);
    a.mask(R5, 0xf0);
    a.jump_if(NOT_EQUAL, R5, 0x60, Pass);
    a.load(BYTE, R5, R2, 20);
    a.jump_if(NOT_EQUAL, R5, 17, Pass);
    a.load(HALF, R5, R2, 56);
    a.jump_if(NOT_EQUAL, R5, port_field(port), Pass);
    for word in 0..4 {
        a.load(WORD, R5, R2, 38 + 4 * word);
        a.store(WORD, -16 + 4 * word, R5);
    }
}

/// Give a datagram for one of our addresses to the socket of its queue, or to the kernel if the
/// queue has none.
fn redirect(a: &mut Assembler, addresses: RawFd, sockets: RawFd) {
    use Label::{LookUp, Pass};
    /// Of struct xdp_md.
    const QUEUE: i16 = 16;
    // Look up the address, then the queue's socket.
    a.here(LookUp);
    a.map(R1, addresses);
    a.copy(R2, R10);
    a.add(R2, -16);
    a.call(HELPER_MAP_LOOKUP);
    a.jump_if(EQUAL, R0, 0, Pass);
    a.map(R1, sockets);
    a.load(WORD, R2, R6, QUEUE);
    a.set(R3, XDP_PASS);
    a.call(HELPER_REDIRECT_MAP);
    a.exit();
    a.here(Pass);
    a.set(R0, XDP_PASS);
    a.exit();
}

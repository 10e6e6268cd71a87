//! The program that an interface runs on each frame it takes: our datagrams go to our sockets, all else to the
//! kernel.
//!
//! It is written in BPF's instructions (Linux, Documentation/bpf/standardization/instruction-set.rst), so nobody needs
//! a compiler for BPF. The kernel's verifier checks it at each start. Two maps belong to it: our addresses, and a
//! socket for each queue of the interface.

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::descriptor::own;

// linux/bpf.h
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_XSKMAP: u32 = 17;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const FLAG_GENERIC: u32 = 1 << 1;
const FLAG_NATIVE: u32 = 1 << 2;
const XDP_PASS: i32 = 2;
const PSEUDO_MAP_FD: u8 = 1;
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_REDIRECT_MAP: i32 = 51;
/// Addresses of ours beyond these are served by the ordinary sockets.
const MOST_ADDRESSES: u32 = 1024;

/// What a frame has to be to be ours.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Our port, if we serve IPv4.
    pub port_v4: Option<u16>,
    /// Our port, if we serve IPv6.
    pub port_v6: Option<u16>,
    /// Bytes of the longest frame. What is longer was put together of several by the kernel.
    pub longest: u16,
}

/// The program and its maps, as long as they are held.
pub struct Program {
    program: OwnedFd,
    addresses: OwnedFd,
    sockets: OwnedFd,
}

/// A program at work on an interface. It ends with its descriptor, so however the process ends.
pub struct Attached {
    _link: OwnedFd,
    /// Run by the driver, or else by the kernel after it has made its own packet of the frame.
    pub native: bool,
}

impl Program {
    /// Load it for an interface of `queues` queues.
    pub fn load(wanted: &Wanted, queues: u32) -> io::Result<Self> {
        let addresses = create_map(MAP_TYPE_HASH, 16, 4, MOST_ADDRESSES)?;
        let sockets = create_map(MAP_TYPE_XSKMAP, 4, 4, queues)?;
        let code = assemble(wanted, addresses.as_raw_fd(), sockets.as_raw_fd());
        let program = load(&code)?;
        Ok(Self { program, addresses, sockets })
    }

    /// Have an interface run it: in its driver, or where that can't, behind it.
    pub fn attach(&self, interface: u32) -> io::Result<Attached> {
        self.attach_as(interface, FLAG_NATIVE).or_else(|error| match error.raw_os_error() {
            // Somebody else's program is there, or we may not.
            Some(libc::EBUSY | libc::EEXIST | libc::EPERM | libc::EACCES | libc::ENODEV) => Err(error),
            _ => self.attach_as(interface, FLAG_GENERIC),
        })
    }

    fn attach_as(&self, interface: u32, flags: u32) -> io::Result<Attached> {
        #[repr(C)]
        struct Attribute {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
        }
        let program = self.program.as_raw_fd() as u32;
        let mut attribute = Attribute { program, target: interface, attach_type: ATTACH_TYPE_XDP, flags };
        // SAFETY: BPF_LINK_CREATE reads an attribute of this layout, which holds no pointer.
        let link = own(unsafe { bpf(LINK_CREATE, &mut attribute) })?;
        Ok(Attached { _link: link, native: flags == FLAG_NATIVE })
    }

    /// Give the datagrams of a queue to an AF_XDP socket.
    pub fn set_socket(&self, queue: u32, socket: RawFd) -> io::Result<()> {
        update(&self.sockets, &queue.to_ne_bytes(), &socket.to_ne_bytes())
    }

    /// Take what is for this address of ours.
    pub fn add_address(&self, address: IpAddr) -> io::Result<()> {
        update(&self.addresses, &key(address), &[1, 0, 0, 0])
    }

    /// Leave what is for this address to the kernel.
    pub fn remove_address(&self, address: IpAddr) {
        let key = key(address);
        let mut attribute = Element { map: fd_of(&self.addresses), key: pointer(&key), value: 0, flags: 0 };
        // That it isn't there is no error. SAFETY: the key has the 16 bytes that the map's keys have.
        unsafe { bpf(MAP_DELETE_ELEM, &mut attribute) };
    }
}

/// An address as the map has it: IPv4 mapped into IPv6.
fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// One instruction.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in one half, source in the other.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R6: u8 = 6;
/// The end of the stack.
const R10: u8 = 10;

// Sizes of loads and stores.
const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;
const DOUBLE: u8 = 0x18;

// Jumps.
const EQUAL: u8 = 0x10;
const LESS_OR_EQUAL: u8 = 0xb0;
const GREATER: u8 = 0x20;
const NOT_EQUAL: u8 = 0x50;

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    let registers =
        if cfg!(target_endian = "little") { destination | source << 4 } else { destination << 4 | source };
    Instruction { code, registers, offset, immediate }
}

/// Where a jump goes; the distance is filled in when all is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    V6,
    LookUp,
    Pass,
}

#[derive(Default)]
struct Assembler {
    code: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    labels: Vec<(Label, usize)>,
}

impl Assembler {
    fn put(&mut self, code: u8, destination: u8, source: u8, offset: i16, immediate: i32) {
        self.code.push(instruction(code, destination, source, offset, immediate));
    }

    /// `to = from`
    fn copy(&mut self, to: u8, from: u8) {
        self.put(0xbf, to, from, 0, 0);
    }

    /// `register = number`
    fn set(&mut self, register: u8, number: i32) {
        self.put(0xb7, register, 0, 0, number);
    }

    /// `register += number`
    fn add(&mut self, register: u8, number: i32) {
        self.put(0x07, register, 0, 0, number);
    }

    /// `register &= number`
    fn mask(&mut self, register: u8, number: i32) {
        self.put(0x57, register, 0, 0, number);
    }

    /// `to = *(size *)(from + offset)`
    fn load(&mut self, size: u8, to: u8, from: u8, offset: i16) {
        self.put(0x61 | size, to, from, offset, 0);
    }

    /// `*(size *)(R10 + offset) = from`
    fn store(&mut self, size: u8, offset: i16, from: u8) {
        self.put(0x63 | size, R10, from, offset, 0);
    }

    /// `register = map`
    fn map(&mut self, register: u8, map: RawFd) {
        self.put(0x18, register, PSEUDO_MAP_FD, 0, map);
        self.put(0, 0, 0, 0, 0);
    }

    /// `if register ? number goto label`
    fn jump_if(&mut self, condition: u8, register: u8, number: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x05 | condition, register, 0, 0, number);
    }

    /// `if register ? other goto label`
    fn jump_if_register(&mut self, condition: u8, register: u8, other: u8, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x0d | condition, register, other, 0, 0);
    }

    fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.put(0x05, 0, 0, 0, 0);
    }

    fn call(&mut self, helper: i32) {
        self.put(0x85, 0, 0, 0, helper);
    }

    fn exit(&mut self) {
        self.put(0x95, 0, 0, 0, 0);
    }

    fn here(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let found = self.labels.iter().find(|(one, _)| *one == label);
            let (_, target) = found.expect("each label is placed");
            self.code[at].offset = (target - at - 1) as i16;
        }
        self.code
    }
}

/// A 16-bit field of a packet as a load of it gives it.
fn field(number: u16) -> i32 {
    i32::from(number.to_be())
}

/// The same for a port; what we don't have equals no field.
fn port_field(port: Option<u16>) -> i32 {
    port.map_or(0x1_0000, field)
}

fn assemble(wanted: &Wanted, addresses: RawFd, sockets: RawFd) -> Vec<Instruction> {
    use Label::{LookUp, Pass, V6};
    // Of struct xdp_md.
    const DATA: i16 = 0;
    const DATA_END: i16 = 4;
    const QUEUE: i16 = 16;
    let mut a = Assembler::default();
    a.copy(R6, R1);
    a.load(WORD, R2, R1, DATA);
    a.load(WORD, R3, R1, DATA_END);
    // Longer than the interface's frames: merged ones, which the ordinary sockets can tell apart.
    a.copy(R4, R2);
    a.add(R4, i32::from(wanted.longest) + 1);
    a.jump_if_register(LESS_OR_EQUAL, R4, R3, Pass);
    // At least Ethernet, IPv4 and UDP.
    a.copy(R4, R2);
    a.add(R4, 42);
    a.jump_if_register(GREATER, R4, R3, Pass);
    a.load(HALF, R5, R2, 12);
    a.jump_if(EQUAL, R5, field(0x86dd), V6);
    a.jump_if(NOT_EQUAL, R5, field(0x0800), Pass);
    // IPv4 without options; UDP; no fragment; our port.
    a.load(BYTE, R5, R2, 14);
    a.jump_if(NOT_EQUAL, R5, 0x45, Pass);
    a.load(BYTE, R5, R2, 23);
    a.jump_if(NOT_EQUAL, R5, 17, Pass);
    a.load(HALF, R5, R2, 20);
    a.mask(R5, field(0x3fff));
    a.jump_if(NOT_EQUAL, R5, 0, Pass);
    a.load(HALF, R5, R2, 36);
    a.jump_if(NOT_EQUAL, R5, port_field(wanted.port_v4), Pass);
    // The key, on the stack: ::ffff:a.b.c.d.
    a.set(R5, 0);
    a.store(DOUBLE, -16, R5);
    a.set(R5, 0xffff_u32.to_be() as i32);
    a.store(WORD, -8, R5);
    a.load(WORD, R5, R2, 30);
    a.store(WORD, -4, R5);
    a.jump(LookUp);
    // IPv6; UDP at once; our port.
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
    a.jump_if(NOT_EQUAL, R5, port_field(wanted.port_v6), Pass);
    for word in 0..4 {
        a.load(WORD, R5, R2, 38 + 4 * word);
        a.store(WORD, -16 + 4 * word, R5);
    }
    // One of our addresses: to the queue's socket; if there is none, to the kernel.
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
    a.finish()
}

/// Call bpf(2).
///
/// # Safety
/// `attribute` has the layout that the command reads, and the pointers in it are valid for that.
unsafe fn bpf<T>(command: libc::c_int, attribute: &mut T) -> libc::c_int {
    // SAFETY: the pointer and the size are those of `attribute`; the rest is the caller's promise.
    unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) as libc::c_int }
}

fn pointer<T>(to: &T) -> u64 {
    std::ptr::from_ref(to) as u64
}

fn fd_of(map: &OwnedFd) -> u32 {
    map.as_raw_fd() as u32
}

fn create_map(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attribute {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
    }
    let mut attribute = Attribute { kind, key, value, entries, flags: 0 };
    // SAFETY: BPF_MAP_CREATE reads an attribute of this layout, which holds no pointer.
    own(unsafe { bpf(MAP_CREATE, &mut attribute) })
}

/// What the commands on a map's elements read.
#[repr(C)]
struct Element {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Set an element; `key` is as long as the map's keys are, each value has 4 bytes.
fn update<const KEY: usize>(map: &OwnedFd, key: &[u8; KEY], value: &[u8; 4]) -> io::Result<()> {
    let mut attribute = Element { map: fd_of(map), key: pointer(key), value: pointer(value), flags: 0 };
    // SAFETY: key and value have the sizes that `create_map` was given, and outlive the call, which only reads them.
    crate::descriptor::check(unsafe { bpf(MAP_UPDATE_ELEM, &mut attribute) }).map(drop)
}

fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attribute {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    let mut attribute = Attribute {
        kind: PROG_TYPE_XDP,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"rustguard\0\0\0\0\0\0\0",
        interface: 0,
        attach_type: ATTACH_TYPE_XDP,
    };
    // SAFETY: BPF_PROG_LOAD reads `count` instructions of 8 bytes and a string that ends in zero; both outlive the
    // call.
    own(unsafe { bpf(PROG_LOAD, &mut attribute) })
}

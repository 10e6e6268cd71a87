//! The system call bpf(2): maps, programs, and their links to interfaces.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::descriptor::{check, own};
use crate::xdp::assembler::Instruction;

// linux/bpf.h
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
pub const MAP_TYPE_HASH: u32 = 1;
pub const MAP_TYPE_XSKMAP: u32 = 17;
pub const FLAG_GENERIC: u32 = 1 << 1;
pub const FLAG_NATIVE: u32 = 1 << 2;

/// Call bpf(2).
///
/// # Safety
/// `attribute` must have the layout that the command reads, and the pointers in it must be valid
/// for that.
unsafe fn bpf<T>(command: libc::c_int, attribute: &mut T) -> libc::c_int {
    // SAFETY: the pointer and the size are those of `attribute`. The caller promises the rest.
    unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) as libc::c_int }
}

fn pointer<T>(to: &T) -> u64 {
    std::ptr::from_ref(to) as u64
}

fn fd_of(map: &OwnedFd) -> u32 {
    map.as_raw_fd() as u32
}

/// Create a map; `key` and `value` are sizes in bytes.
pub fn create_map(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct MapAttributes {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
    }
    let mut attribute = MapAttributes { kind, key, value, entries, flags: 0 };
    // SAFETY: BPF_MAP_CREATE reads an attribute of this layout, which holds no pointer.
    own(unsafe { bpf(MAP_CREATE, &mut attribute) })
}

/// The argument of the commands on a map's elements.
#[repr(C)]
struct Element {
    map: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Set an element. `key` is as long as the map's keys; each value has 4 bytes.
pub fn update<const KEY: usize>(map: &OwnedFd, key: &[u8; KEY], value: &[u8; 4]) -> io::Result<()> {
    let mut attribute = Element { map: fd_of(map), key: pointer(key), value: pointer(value), flags: 0 };
    // SAFETY: key and value have the sizes that `create_map` was given. They outlive the call,
    // which only reads them.
    check(unsafe { bpf(MAP_UPDATE_ELEM, &mut attribute) }).map(drop)
}

/// Delete an element. It is no error if there is none.
pub fn delete(map: &OwnedFd, key: &[u8; 16]) {
    let mut attribute = Element { map: fd_of(map), key: pointer(key), value: 0, flags: 0 };
    // SAFETY: the key has the 16 bytes that the map's keys have.
    unsafe { bpf(MAP_DELETE_ELEM, &mut attribute) };
}

/// Load a program for XDP.
pub fn load(code: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ProgramAttributes {
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
    let mut attribute = ProgramAttributes {
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
    // SAFETY: BPF_PROG_LOAD reads `count` instructions of 8 bytes and a string that ends in zero.
    // Both outlive the call.
    own(unsafe { bpf(PROG_LOAD, &mut attribute) })
}

/// Attach a program to an interface.
pub fn attach(program: &OwnedFd, interface: u32, flags: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct LinkAttributes {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
    }
    let program = fd_of(program);
    let mut attribute = LinkAttributes { program, target: interface, attach_type: ATTACH_TYPE_XDP, flags };
    // SAFETY: BPF_LINK_CREATE reads an attribute of this layout, which holds no pointer.
    own(unsafe { bpf(LINK_CREATE, &mut attribute) })
}

//! A tunnel that does nothing but wait, read and write.

use std::io::{Error, ErrorKind, Result};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::thread;

use crate::system::{check, pin, sleep};

const MOST: usize = 65_536;

/// The two descriptors that a tunnel joins.
#[derive(Clone, Copy)]
struct Ends {
    tun: RawFd,
    udp: RawFd,
}

/// Carry packets until killed.
///
/// `layout`: `two` threads, one for each way, as the native plane; `answer`: the same, and the one
/// that has written to the interface sends the host's answer; `one` thread for both ways; `spin`:
/// one that never sleeps.
pub fn run(name: &str, layout: &str, port: u16, remote: &str, core: Option<usize>) -> Result<()> {
    if let Some(core) = core {
        pin(core)?;
    }
    let tun = open(name)?;
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.connect(remote)?;
    socket.set_nonblocking(true)?;
    let ends = Ends { tun, udp: socket.as_raw_fd() };
    match layout {
        "two" => both(ends, false),
        "answer" => both(ends, true),
        "one" => one(ends, || sleep([ends.tun, ends.udp])),
        "spin" => one(ends, || Ok(())),
        _ => Err(Error::from(ErrorKind::InvalidInput)),
    }
}

fn both(ends: Ends, answers: bool) -> Result<()> {
    let Ends { tun, udp } = ends;
    let out = thread::spawn(move || {
        loop {
            move_all(tun, udp)?;
            sleep([tun, -1])?;
        }
    });
    let inward = thread::spawn(move || {
        loop {
            while move_one(udp, tun)? {
                if answers {
                    move_all(tun, udp)?;
                }
            }
            sleep([udp, -1])?;
        }
    });
    let done: Result<Result<()>> = inward.join().map_err(|_| Error::other("a thread panicked"));
    done??;
    out.join().map_err(|_| Error::other("a thread panicked"))?
}

fn one(ends: Ends, wait: impl Fn() -> Result<()>) -> Result<()> {
    let Ends { tun, udp } = ends;
    loop {
        while move_one(udp, tun)? || move_one(tun, udp)? {}
        wait()?;
    }
}

fn move_all(from: RawFd, to: RawFd) -> Result<()> {
    while move_one(from, to)? {}
    Ok(())
}

/// Move a packet. Return false if there is none.
fn move_one(from: RawFd, to: RawFd) -> Result<bool> {
    let mut packet = [0_u8; MOST];
    // SAFETY: the pointer and the length are those of `packet`.
    let size = match check(unsafe { libc::read(from, packet.as_mut_ptr().cast(), MOST) }) {
        Ok(size) => size,
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
        // The other end isn't there yet.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(true),
        Err(error) => return Err(error),
    };
    // SAFETY: the pointer and the length are those of `packet`. What can't be sent is lost.
    unsafe { libc::write(to, packet.as_ptr().cast(), size) };
    Ok(true)
}

/// Make an interface.
fn open(name: &str) -> Result<RawFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the path ends in a zero byte.
    let tun = check(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) } as isize)? as RawFd;
    // SAFETY: an ifreq is plain bytes, and all zeros is one of its values.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    check(unsafe { libc::ioctl(tun, libc::TUNSETIFF, &raw mut request) } as isize)?;
    Ok(tun)
}

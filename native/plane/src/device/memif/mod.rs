//! memif: packets of another program, such as VPP, over shared memory.
//!
//! The crate `memif` has the protocol. Here are what a queue of the device does ([`rings`]), the
//! thread that makes connections and ends them ([`control`]), and what lies between a frame of the
//! other side and a packet of ours ([`framing`]). [`bell`] has how the sides wake each other.
//!
//! The control channel is here, not in Python: descriptors and mappings have to be taken over and
//! given up in step with the threads that move packets. Python decides which channel it is.
//!
//! While nobody is connected, what the plane opens is dropped and counted. Sessions stay.

mod answers;
mod bell;
mod control;
mod framing;
mod rings;

use std::ffi::CString;
use std::io::{self, IoSlice};
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use memif::handshake::Settings;
use memif::message::Mode;
use neighbours::link::Link;
use transport::contract::{Address, Network};
use transport::vnet::VNET_SIZE;

use self::control::Control;
pub use self::control::State;
use self::framing::Framing;
use self::rings::Rings;
use super::{Device, Queues};

/// What a memif is, see [`Device::kind`].
const KIND: &str = "memif";
/// The exponent of 2 of a ring's size, if we are the client and the server takes as much.
const LOG2: u8 = 11;
/// Bytes of our buffers. A longer packet takes several. One cache line more than a power of 2: the
/// beginnings of all buffers would lie in few sets of a processor's cache otherwise.
const BUFFER: u32 = 2048 + 64;

/// Which memif to use.
pub struct Options<'a> {
    /// The path of the control channel.
    pub socket: CString,
    /// The listening socket of a server, which doesn't block. None for a client.
    pub listener: Option<OwnedFd>,
    /// The number of the interface on that socket.
    pub id: u32,
    /// Up to 23 bytes, or empty.
    pub secret: &'a [u8],
    /// Rings per direction, at least 1.
    pub queues: u16,
    /// Our side of the link if the other side wants Ethernet frames. None for plain IP packets.
    pub ethernet: Option<neighbours::link::Settings>,
    /// This interface's name for the other side.
    pub interface: &'a str,
}

/// A memif, before and after it is connected.
pub struct Memif {
    rings: Arc<Rings>,
    control: Arc<Control>,
    queues: u16,
    interface: String,
}

impl Memif {
    /// Begin to listen, or to connect. It isn't an error if nobody is at the other side yet.
    pub fn open(options: Options<'_>) -> io::Result<Self> {
        let settings = Settings {
            id: options.id,
            mode: if options.ethernet.is_some() { Mode::Ethernet } else { Mode::Ip },
            secret: options.secret.to_vec(),
            program: b"RustGuard".to_vec(),
            interface: options.interface.as_bytes().to_vec(),
            queues: options.queues.max(1),
            log2: LOG2,
            buffer: BUFFER,
        };
        let framing =
            options.ethernet.map_or(Framing::Ip, |settings| Framing::Ethernet(Box::new(Link::new(&settings))));
        let queues = settings.queues;
        let rings = Arc::new(Rings::new(usize::from(queues), framing)?);
        let control = Arc::new(Control::start(&options.socket, options.listener, settings, &rings)?);
        Ok(Self { rings, control, queues, interface: options.interface.to_owned() })
    }

    /// Return the queues, for a plane. The connection ends when the last of them and this are dropped.
    pub fn device(&self) -> Queues {
        let queue = |number| {
            let (rings, control) = (Arc::clone(&self.rings), Arc::clone(&self.control));
            Arc::new(MemifQueue { rings, number: usize::from(number), _control: control }) as Arc<dyn Device>
        };
        Queues { name: self.interface.clone(), queues: (0..self.queues).map(queue).collect(), lacks: Vec::new() }
    }

    /// Return what became of the connection.
    pub fn state(&self) -> State {
        self.control.state()
    }

    /// Return the descriptor that is readable while [`Self::take_answered`] has something.
    pub fn answered_fd(&self) -> RawFd {
        self.rings.answered.fd()
    }

    /// Return the addresses that were answered for since the last call.
    pub fn take_answered(&self) -> Vec<Address> {
        self.rings.answered.take()
    }

    /// Answer for these ranges from now on, if this is Ethernet.
    pub fn answer_for(&self, answered: &[Network]) {
        self.rings.framing.answer_for(answered);
    }

    /// End the connection. Done when this returns.
    pub fn close(&self) {
        self.control.stop();
    }
}

/// One queue of a memif.
struct MemifQueue {
    rings: Arc<Rings>,
    number: usize,
    /// Ends the connection with the last queue.
    _control: Arc<Control>,
}

impl Device for MemifQueue {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn fd(&self) -> RawFd {
        self.rings.fd(self.number)
    }

    fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        let (header, packet) = frame.split_at_mut(VNET_SIZE);
        header.fill(0);
        self.rings.read(self.number, packet).map(|size| VNET_SIZE + size)
    }

    fn write(&self, frame: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut frame = frame;
        IoSlice::advance_slices(&mut frame, VNET_SIZE);
        self.rings.write(self.number, frame)
    }

    fn flush(&self) {
        self.rings.flush(self.number);
    }

    fn fall_asleep(&self) -> bool {
        self.rings.fall_asleep(self.number)
    }

    fn set_mtu(&self, mtu: usize) {
        self.rings.mtu.store(mtu, Ordering::Relaxed);
    }

    fn drops(&self) -> Vec<(String, u64)> {
        let read = self.rings.drops.iter().map(|(name, count)| (*name, count.load(Ordering::Relaxed)));
        read.filter(|(_, count)| *count > 0).map(|(name, count)| (format!("{KIND}_{name}"), count)).collect()
    }
}

//! Which message follows which on the control channel, for both roles. No sockets.
//!
//! | server | client |
//! |---|---|
//! | HELLO | |
//! | | INIT |
//! | ACK | |
//! | | ADD_REGION, for each region |
//! | ACK | |
//! | | ADD_RING, for each ring |
//! | ACK | |
//! | | CONNECT |
//! | CONNECTED | |
//!
//! Each side sends one message and waits for the other's. After CONNECTED, packets flow, and the only
//! message left is DISCONNECT.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use crate::layout::{Layout, MAX_LOG2_RING_SIZE};
use crate::memory::{MOST, Memory, Refused};
use crate::message::{AddRing, Hello, Init, Message, Mode, VERSION};
use crate::ring::{Receiver, Role, Sender};
use crate::slots::RegionSlots;

/// The greatest exponent of a ring's size that a server takes, as in DPDK.
const SERVER_LOG2: u8 = 14;
/// The most regions that a server takes.
const REGIONS: u16 = 16;

/// What an interface is. Both sides need the same `id`, `mode` and `secret`.
#[derive(Clone)]
pub struct Settings {
    /// Its number on the socket.
    pub id: u32,
    /// What its packets are.
    pub mode: Mode,
    /// Up to 23 bytes, or empty.
    pub secret: Vec<u8>,
    /// What the other side is told of this program.
    pub program: Vec<u8>,
    /// This interface's name for the other side.
    pub interface: Vec<u8>,
    /// Rings per direction, at least 1.
    pub queues: u16,
    /// The size of a client's rings, as the exponent of 2.
    pub log2: u8,
    /// Bytes of a client's buffers, a multiple of 64.
    pub buffer: u32,
}

/// Why there is no connection, or none any more.
#[derive(Debug)]
pub enum Failure {
    /// The other side ended it, for this reason.
    Ended(Vec<u8>),
    /// The other side did what the protocol doesn't permit, or isn't what we want.
    Refused(String),
    /// The system refused what a connection needs.
    System(io::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(reason) => write!(out, "the other side ended it: {}", reason.escape_ascii()),
            Self::Refused(why) => out.write_str(why),
            Self::System(error) => write!(out, "{error}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused.to_string())
    }
}

/// A ring that we send on.
pub struct Outlet {
    /// The ring.
    pub ring: Sender<RegionSlots>,
    /// What wakes the other side.
    pub bell: OwnedFd,
}

/// A ring that we receive from.
pub struct Inlet {
    /// The ring.
    pub ring: Receiver<RegionSlots>,
    /// What wakes us.
    pub bell: OwnedFd,
}

/// A connection over which packets flow.
pub struct Link {
    /// The rings that we send on, at least one.
    pub outlets: Vec<Outlet>,
    /// The rings that we receive from, at least one.
    pub inlets: Vec<Inlet>,
    /// What the other side says of its program.
    pub program: Vec<u8>,
    /// What the other side calls its interface.
    pub interface: Vec<u8>,
}

/// A message to send, with the descriptor that goes with it.
pub type Outgoing = (Message, Option<Arc<OwnedFd>>);

/// What to do after a message.
#[derive(Default)]
pub struct Step {
    /// What to send.
    pub reply: Option<Outgoing>,
    /// The connection, if it is complete once that is sent.
    pub link: Option<Link>,
}

impl Step {
    fn reply(message: Message) -> Self {
        Self { reply: Some((message, None)), link: None }
    }
}

/// A ring as the two sides agreed on it.
struct Agreed {
    place: AddRing,
    bell: OwnedFd,
}

/// The client's half of the conversation.
pub struct Client {
    settings: Settings,
    program: Vec<u8>,
    /// The messages that are left, the next one last. None before HELLO.
    script: Option<Vec<Outgoing>>,
    made: Option<(Layout, Arc<[Memory]>, Vec<Agreed>)>,
}

impl Client {
    /// Begin after the channel is connected.
    pub fn new(settings: Settings) -> Self {
        Self { settings, program: Vec::new(), script: None, made: None }
    }

    /// Take a message.
    pub fn handle(&mut self, message: Message, descriptor: Option<OwnedFd>) -> Result<Step, Failure> {
        drop(descriptor);
        match (message, &mut self.script) {
            (Message::Hello(hello), None) => {
                let mut script = self.prepare(hello)?;
                let reply = script.pop();
                self.script = Some(script);
                Ok(Step { reply, link: None })
            }
            (Message::Ack, Some(script)) if !script.is_empty() => Ok(Step { reply: script.pop(), link: None }),
            (Message::Connected(interface), Some(script)) if script.is_empty() => self.connect(interface),
            (Message::Disconnect { reason, .. }, _) => Err(Failure::Ended(reason)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Make the memory, and write down what to send.
    fn prepare(&mut self, hello: Hello) -> Result<Vec<Outgoing>, Failure> {
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            return Err(Failure::Refused("the server doesn't speak version 2.0 of the protocol".into()));
        }
        let settings = &self.settings;
        let count = |most: u16| settings.queues.min(most.saturating_add(1));
        let layout = Layout {
            c2s: count(hello.max_c2s_ring),
            s2c: count(hello.max_s2c_ring),
            log2: settings.log2.min(hello.max_log2_ring_size).min(MAX_LOG2_RING_SIZE),
            buffer: settings.buffer,
        };
        let (memory, file) = Memory::make(layout.size())?;
        let regions: Arc<[Memory]> = [memory].into();
        let init = Init {
            version: VERSION,
            id: settings.id,
            mode: settings.mode,
            secret: settings.secret.clone(),
            name: settings.program.clone(),
        };
        let size = layout.size() as u64;
        let mut script =
            vec![(Message::Init(init), None), (Message::AddRegion { index: 0, size }, Some(Arc::new(file)))];
        let mut rings = Vec::new();
        let all = (0..layout.c2s).map(|index| (true, index)).chain((0..layout.s2c).map(|index| (false, index)));
        for (c2s, index) in all {
            let offset = layout.ring(c2s, index);
            slots(&regions, 0, offset, layout.log2)?.clear();
            let bell = bell()?;
            let place = AddRing {
                c2s,
                index,
                region: 0,
                offset: u32::try_from(offset).map_err(|_| too_large())?,
                log2_ring_size: layout.log2,
                private_header: 0,
            };
            script.push((Message::AddRing(place), Some(Arc::new(bell.try_clone()?))));
            rings.push(Agreed { place, bell });
        }
        u32::try_from(size).map_err(|_| too_large())?;
        script.push((Message::Connect(settings.interface.clone()), None));
        script.reverse();
        self.program = hello.name;
        self.made = Some((layout, regions, rings));
        Ok(script)
    }

    fn connect(&mut self, interface: Vec<u8>) -> Result<Step, Failure> {
        let Some((layout, regions, rings)) = self.made.take() else { return Err(unexpected(&Message::Ack)) };
        let mut link =
            Link { outlets: vec![], inlets: vec![], program: std::mem::take(&mut self.program), interface };
        for Agreed { place, bell } in rings {
            let offset = layout.buffers(place.c2s, place.index) as u32;
            let role = Role::Client { region: 0, offset, buffer: layout.buffer };
            add(&mut link, place.c2s, slots(&regions, 0, place.offset as usize, layout.log2)?, role, bell);
        }
        Ok(Step { reply: None, link: Some(link) })
    }
}

/// The server's half of the conversation.
pub struct Server {
    settings: Settings,
    program: Option<Vec<u8>>,
    regions: Vec<Memory>,
    rings: Vec<Agreed>,
    connected: bool,
}

impl Server {
    /// Begin after a client has connected the channel. The first message to send is [`Self::hello`].
    pub fn new(settings: Settings) -> Self {
        Self { settings, program: None, regions: Vec::new(), rings: Vec::new(), connected: false }
    }

    /// Return the message that opens the conversation.
    pub fn hello(&self) -> Message {
        let most = self.settings.queues - 1;
        Message::Hello(Hello {
            name: self.settings.program.clone(),
            min_version: VERSION,
            max_version: VERSION,
            max_region: REGIONS - 1,
            max_s2c_ring: most,
            max_c2s_ring: most,
            max_log2_ring_size: SERVER_LOG2,
        })
    }

    /// Take a message.
    pub fn handle(&mut self, message: Message, descriptor: Option<OwnedFd>) -> Result<Step, Failure> {
        match message {
            Message::Disconnect { reason, .. } => Err(Failure::Ended(reason)),
            Message::Init(init) if self.program.is_none() => {
                self.check(&init)?;
                self.program = Some(init.name);
                Ok(Step::reply(Message::Ack))
            }
            other if self.program.is_none() || self.connected => Err(unexpected(&other)),
            Message::AddRegion { index, size } => {
                let descriptor = descriptor.ok_or_else(|| refused("a region without a descriptor"))?;
                if usize::from(index) != self.regions.len() || index >= REGIONS {
                    return Err(refused("a region with another index than the next"));
                }
                self.regions.push(Memory::map(descriptor.as_fd(), size)?);
                // What is read of a hole becomes memory of ours.
                if self.regions.iter().map(|region| region.size() as u64).sum::<u64>() > MOST {
                    return Err(refused("regions of more than 4 GiB together"));
                }
                Ok(Step::reply(Message::Ack))
            }
            Message::AddRing(place) => {
                let bell = descriptor.ok_or_else(|| refused("a ring without a descriptor"))?;
                self.add_ring(place, bell)?;
                Ok(Step::reply(Message::Ack))
            }
            Message::Connect(interface) => self.connect(interface),
            other => Err(unexpected(&other)),
        }
    }

    fn check(&self, init: &Init) -> Result<(), Failure> {
        let settings = &self.settings;
        if init.version != VERSION {
            return Err(refused("the client doesn't speak version 2.0 of the protocol"));
        }
        if init.id != settings.id {
            return Err(Failure::Refused(format!(
                "the client asks for id {}, and we have id {}",
                init.id, settings.id
            )));
        }
        if init.mode != settings.mode {
            return Err(Failure::Refused(format!(
                "the client wants mode {:?}, and we {:?}",
                init.mode, settings.mode
            )));
        }
        if !same(&init.secret, &settings.secret) {
            return Err(refused("the client has another secret"));
        }
        Ok(())
    }

    fn add_ring(&mut self, place: AddRing, bell: OwnedFd) -> Result<(), Failure> {
        let before = self.rings.iter().filter(|ring| ring.place.c2s == place.c2s).count();
        if usize::from(place.index) != before || place.index >= self.settings.queues {
            return Err(refused("a ring with another index than the next"));
        }
        if place.log2_ring_size > SERVER_LOG2 || place.private_header != 0 {
            return Err(refused("a ring that is too large, or has private headers"));
        }
        check_bell(bell.as_fd())?;
        self.rings.push(Agreed { place, bell });
        Ok(())
    }

    fn connect(&mut self, interface: Vec<u8>) -> Result<Step, Failure> {
        let regions: Arc<[Memory]> = std::mem::take(&mut self.regions).into();
        let program = self.program.clone().unwrap_or_default();
        let mut link = Link { outlets: vec![], inlets: vec![], program, interface };
        for Agreed { place, bell } in self.rings.drain(..) {
            let slots = slots(&regions, place.region, place.offset as usize, place.log2_ring_size)?;
            if !slots.has_cookie() {
                return Err(refused("a ring without the cookie"));
            }
            add(&mut link, !place.c2s, slots, Role::Server, bell);
        }
        if link.outlets.is_empty() || link.inlets.is_empty() {
            return Err(refused("a client without a ring for each direction"));
        }
        self.connected = true;
        let reply = Some((Message::Connected(self.settings.interface.clone()), None));
        Ok(Step { reply, link: Some(link) })
    }
}

/// Add a ring to a connection.
fn add(link: &mut Link, outward: bool, slots: RegionSlots, role: Role, bell: OwnedFd) {
    if outward {
        link.outlets.push(Outlet { ring: Sender::new(slots, role), bell });
    } else {
        link.inlets.push(Inlet { ring: Receiver::new(slots, role), bell });
    }
}

fn slots(regions: &Arc<[Memory]>, region: u16, offset: usize, log2: u8) -> Result<RegionSlots, Failure> {
    RegionSlots::new(regions, region, offset, log2).ok_or_else(|| refused("a ring that lies in no region"))
}

fn refused(why: &str) -> Failure {
    Failure::Refused(why.to_owned())
}

fn too_large() -> Failure {
    refused("the rings and buffers need more than 4 GiB")
}

fn unexpected(message: &Message) -> Failure {
    let name = match message {
        Message::Ack => "ACK",
        Message::Hello(_) => "HELLO",
        Message::Init(_) => "INIT",
        Message::AddRegion { .. } => "ADD_REGION",
        Message::AddRing(_) => "ADD_RING",
        Message::Connect(_) => "CONNECT",
        Message::Connected(_) => "CONNECTED",
        Message::Disconnect { .. } => "DISCONNECT",
    };
    Failure::Refused(format!("{name} came out of turn"))
}

/// Compare secrets in a time that depends on their lengths only.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

/// Make an eventfd.
fn bell() -> io::Result<OwnedFd> {
    // SAFETY: the call touches no memory of ours.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned `fd` to this call, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Refuse a descriptor that can't be an eventfd, such as a file or a pipe, and have calls on it not
/// wait.
fn check_bell(fd: BorrowedFd<'_>) -> Result<(), Failure> {
    // SAFETY: a stat is plain data, and all zeros is one of its values. fstat writes one, and the
    // other calls take their arguments by value.
    let (result, kind) = unsafe {
        let mut file: libc::stat = std::mem::zeroed();
        let result = libc::fstat(fd.as_raw_fd(), &raw mut file);
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
        (result, file.st_mode & libc::S_IFMT)
    };
    // What has no file, like an eventfd, has no type of file.
    if result < 0 || kind != 0 {
        return Err(refused("a ring whose descriptor is no eventfd"));
    }
    Ok(())
}

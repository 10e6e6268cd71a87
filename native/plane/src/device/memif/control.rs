//! The thread of the control channel: it makes connections, one after the other, and ends them.
//!
//! A client tries to connect four times a second. A server takes the next client when the one before is gone.
//! Others wait in the socket's queue meanwhile.

use std::ffi::CStr;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use memif::handshake::{Client, Failure, Link, Server, Settings, Step};
use memif::message::Message;
use memif::socket::{Received, receive, send};

use super::rings::{Rings, lock};
use crate::descriptor::{EventFd, block_signals, check, own, wait};

/// Milliseconds between two connections, and between two tries of a client.
const PAUSE: libc::c_int = 250;
/// How long a conversation may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of the connection.
#[derive(Clone, Debug)]
pub struct State {
    /// What the other side is called, its program and its interface, while it is connected.
    pub peer: Option<(Vec<u8>, Vec<u8>)>,
    /// Connections so far.
    pub connections: u64,
    /// Why there is none, if that is known.
    pub why: Option<String>,
    /// Since when there is a connection, or none.
    pub since: Instant,
}

/// The thread, and how to end it.
pub struct Control {
    stop: Arc<EventFd>,
    thread: Mutex<Option<JoinHandle<()>>>,
    state: Arc<Mutex<State>>,
    /// The process that has the thread.
    process: u32,
}

impl Control {
    /// Start the thread. A server has a listening socket, which doesn't block.
    pub fn start(path: &CStr, listener: Option<OwnedFd>, settings: Settings, rings: &Arc<Rings>) -> io::Result<Self> {
        let address = address(path)?;
        let state = State { peer: None, connections: 0, why: None, since: Instant::now() };
        let (stop, state) = (Arc::new(EventFd::new()?), Arc::new(Mutex::new(state)));
        let work = Work {
            address,
            listener,
            settings,
            rings: Arc::clone(rings),
            stop: Arc::clone(&stop),
            state: Arc::clone(&state),
        };
        let thread = Builder::new().name("rg-memif".into()).spawn(move || work.run())?;
        Ok(Self { stop, thread: Mutex::new(Some(thread)), state, process: process::id() })
    }

    /// Return what became of the connection.
    pub fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// End the connection and the thread. Done when this returns. Does nothing in a forked child, which
    /// doesn't have the thread.
    pub fn stop(&self) {
        if process::id() != self.process {
            return;
        }
        self.stop.set();
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the call touches no memory of ours.
    own(unsafe { libc::socket(libc::AF_UNIX, kind, 0) })
}

fn address(path: &CStr) -> io::Result<libc::sockaddr_un> {
    // SAFETY: a sockaddr_un is plain bytes, and all zeros is one of its values.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.to_bytes();
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (place, byte) in address.sun_path.iter_mut().zip(bytes) {
        *place = *byte as libc::c_char;
    }
    Ok(address)
}

fn connect(address: &libc::sockaddr_un) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    // SAFETY: the call reads one address.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const *address).cast(), size_of_val(address) as u32) })?;
    Ok(socket)
}

/// Our half of a conversation.
enum Talk {
    Client(Client),
    Server(Server),
}

impl Talk {
    fn handle(&mut self, message: Message, descriptor: Option<OwnedFd>) -> Result<Step, Failure> {
        match self {
            Self::Client(client) => client.handle(message, descriptor),
            Self::Server(server) => server.handle(message, descriptor),
        }
    }
}

/// What the thread has.
struct Work {
    address: libc::sockaddr_un,
    listener: Option<OwnedFd>,
    settings: Settings,
    rings: Arc<Rings>,
    stop: Arc<EventFd>,
    state: Arc<Mutex<State>>,
}

/// Why a connection ended or was none, for people. None if it is time to stop.
type End = Option<String>;

impl Work {
    fn run(&self) {
        block_signals();
        loop {
            let end = self.channel().map_or_else(|end| end, |channel| self.use_channel(&channel));
            let Some(why) = end else { return };
            {
                let mut state = lock(&self.state);
                if state.peer.take().is_some() {
                    state.since = Instant::now();
                }
                state.why = Some(why);
            }
            if self.stops_within(PAUSE) {
                return;
            }
        }
    }

    /// Use a channel until its end. The other side is told the reason.
    fn use_channel(&self, channel: &OwnedFd) -> End {
        let end = self.serve(channel);
        let reason = end.clone().unwrap_or_else(|| "RustGuard ends".into()).into_bytes();
        // It may be gone.
        let _ = send(channel.as_fd(), &Message::Disconnect { code: 0, reason }, None);
        end
    }

    fn stops_within(&self, milliseconds: libc::c_int) -> bool {
        wait([(self.stop.fd(), libc::POLLIN)], milliseconds).map_or(true, |ready| ready != 0)
    }

    /// Return the next connected channel.
    fn channel(&self) -> Result<OwnedFd, End> {
        let Some(socket) = &self.listener else {
            return connect(&self.address).map_err(|error| Some(format!("{error}")));
        };
        let ready = wait([(self.stop.fd(), libc::POLLIN), (socket.as_raw_fd(), libc::POLLIN)], -1);
        if ready.map_err(|error| Some(error.to_string()))? & 1 != 0 {
            return Err(None);
        }
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no address is asked for.
        let accepted =
            unsafe { libc::accept4(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
        own(accepted).map_err(|error| Some(error.to_string()))
    }

    /// Hold a conversation, and then the connection until its end.
    fn serve(&self, channel: &OwnedFd) -> End {
        let link = match self.converse(channel) {
            Ok(link) => link,
            Err(end) => return end,
        };
        {
            let mut state = lock(&self.state);
            state.peer = Some((link.program.clone(), link.interface.clone()));
            state.connections += 1;
            state.why = None;
            state.since = Instant::now();
        }
        let end = match self.rings.put_in(link) {
            Ok(()) => self.hold(channel),
            Err(error) => Some(error.to_string()),
        };
        self.rings.take_out();
        end
    }

    /// Take the next message. It has to come before `until`, if that is given.
    fn next(&self, channel: &OwnedFd, until: Option<Instant>) -> Result<(Message, Option<OwnedFd>), End> {
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()).as_millis() as i32 + 1);
            let polled = [self.stop.fd(), channel.as_raw_fd(), self.rings.alarm.fd()].map(|fd| (fd, libc::POLLIN));
            let ready = wait(polled, left.unwrap_or(-1)).map_err(|error| Some(error.to_string()))?;
            if ready & 1 != 0 {
                return Err(None);
            }
            if ready & 4 != 0 && self.rings.is_corrupt() {
                return Err(Some("the other side wrote what can't be into a ring".into()));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Err(Some("the other side doesn't answer".into()));
            }
            match receive(channel.as_fd()) {
                Ok(Received::Message(message, descriptor)) => return Ok((message, descriptor)),
                Ok(Received::Malformed(why)) => return Err(Some(format!("the other side sent {why}"))),
                Ok(Received::Descriptors) => return Err(Some("the other side sent several descriptors".into())),
                Ok(Received::Closed) => return Err(Some("the other side is gone".into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(Some(error.to_string())),
            }
        }
    }

    fn converse(&self, channel: &OwnedFd) -> Result<Link, End> {
        let until = Some(Instant::now() + PATIENCE);
        let tell = |message: &Message, descriptor: Option<&OwnedFd>| {
            let sent = send(channel.as_fd(), message, descriptor.map(AsFd::as_fd));
            sent.map_err(|error| Some(error.to_string()))
        };
        let mut talk = if self.listener.is_some() {
            let server = Server::new(self.settings.clone());
            tell(&server.hello(), None)?;
            Talk::Server(server)
        } else {
            Talk::Client(Client::new(self.settings.clone()))
        };
        loop {
            let (message, descriptor) = self.next(channel, until)?;
            let step = talk.handle(message, descriptor).map_err(|failure| Some(failure.to_string()))?;
            if let Some((message, descriptor)) = step.reply {
                tell(&message, descriptor.as_deref())?;
            }
            if let Some(link) = step.link {
                return Ok(link);
            }
        }
    }

    /// Wait for the end of a connection.
    fn hold(&self, channel: &OwnedFd) -> End {
        match self.next(channel, None) {
            Ok((Message::Disconnect { reason, .. }, _)) => Some(Failure::Ended(reason).to_string()),
            Ok(_) => Some("the other side sent something but DISCONNECT".into()),
            Err(end) => end,
        }
    }
}

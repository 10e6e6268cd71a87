//! The class `Generator`: packets at a pace into a channel, a memif or an interface, and a count of
//! what comes out.

use std::io::{self, IoSlice};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use generator::{
    CpuTime, HEADERS, Inlet, MOST_AT_ONCE, Order, Outlet, PacketSocket, Received, Sent, Sink, Source, UdpSocket,
    pairs,
};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use transport::vnet::VNET_SIZE;

use super::channel::PyChannel;
use super::memif::PyMemif;
use crate::descriptor::{is_nothing, own, wait};
use crate::device::channel::Channel;
use crate::device::lane::Closed;
use crate::device::{Device, is_full};

/// Milliseconds to wait for room, after which the generator looks again.
const MOMENT: libc::c_int = 5;

impl From<Closed> for io::Error {
    fn from(Closed: Closed) -> Self {
        Self::from_raw_os_error(libc::EPIPE)
    }
}

/// The user's end of a channel.
struct End(Arc<Channel>);

impl Inlet for End {
    fn put(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        Ok(self.0.write_batch(packets)?)
    }

    fn wait(&mut self) -> io::Result<()> {
        wait([(self.0.room_fd(), libc::POLLIN)], MOMENT).map(drop)
    }
}

impl Outlet for End {
    fn take(&mut self, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<usize> {
        let Some(mut batch) = self.0.read_batch(MOST_AT_ONCE)? else { return Ok(0) };
        let count = batch.len();
        while let Some(packet) = batch.next() {
            each(packet.get(HEADERS..));
        }
        Ok(count)
    }

    fn wait(&mut self, most: Duration) -> io::Result<()> {
        if self.0.fall_asleep() {
            wait([(self.0.fd(), libc::POLLIN)], most.as_millis() as libc::c_int)?;
        }
        Ok(())
    }
}

/// How long the generator waits for room in a ring, which nobody announces.
const ROOM: Duration = Duration::from_micros(50);

/// The other end of the engine's memif. It has the ring's locks and copies of the engine's own end.
struct FarEnd {
    queue: Arc<dyn Device>,
    /// Room for what is taken together, and how many bytes each frame has.
    frames: Vec<([u8; VNET_SIZE + generator::MOST_SIZE], usize)>,
}

impl FarEnd {
    fn new(queue: Arc<dyn Device>) -> Self {
        Self { queue, frames: vec![([0; VNET_SIZE + generator::MOST_SIZE], 0); MOST_AT_ONCE] }
    }
}

impl Inlet for FarEnd {
    fn put(&mut self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        let mut count = 0;
        for packet in packets {
            match self.queue.write(&mut [&[0; VNET_SIZE], packet].map(IoSlice::new)) {
                Ok(()) => count += 1,
                Err(error) if is_full(&error) => break,
                Err(error) => return Err(error),
            }
        }
        self.queue.flush();
        Ok(count)
    }

    fn wait(&mut self) -> io::Result<()> {
        std::thread::sleep(ROOM);
        Ok(())
    }
}

impl Outlet for FarEnd {
    fn take(&mut self, each: &mut dyn FnMut(Option<&[u8]>)) -> io::Result<usize> {
        let mut count = 0;
        for (frame, size) in &mut self.frames {
            match self.queue.read(frame) {
                Ok(read) => (*size, count) = (read, count + 1),
                Err(error) if is_nothing(&error) => break,
                Err(error) => return Err(error),
            }
        }
        for (frame, size) in &self.frames[..count] {
            each(frame[..*size].get(VNET_SIZE + HEADERS..));
        }
        Ok(count)
    }

    fn wait(&mut self, most: Duration) -> io::Result<()> {
        if self.queue.fall_asleep() {
            wait([(self.queue.fd(), libc::POLLIN)], most.as_millis() as libc::c_int)?;
        }
        Ok(())
    }
}

/// A copy of a descriptor that Python keeps.
fn copy(fd: RawFd) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: the call touches no memory of ours; a descriptor that isn't open gives an error.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })
}

type AnySource = Source<Box<dyn Inlet>>;
type AnyOutlet = Box<dyn Outlet>;

/// What takes packets: idle, or counting a trial.
enum Receiving {
    Idle(AnyOutlet),
    Busy(Sink<AnyOutlet>),
}

#[pyclass(name = "Generator", module = "rustguard_py._native", frozen)]
pub struct PyGenerator {
    source: Mutex<AnySource>,
    /// None while a trial ends, and for good after a fault.
    receiving: Mutex<Option<Receiving>>,
}

#[pymethods]
impl PyGenerator {
    #[new]
    #[pyo3(signature = (source, target, *, channel = None, memif = None, packet_socket = -1, udp_socket = -1))]
    fn new(
        source: &str,
        target: &str,
        channel: Option<&PyChannel>,
        memif: Option<&PyMemif>,
        packet_socket: RawFd,
        udp_socket: RawFd,
    ) -> PyResult<Self> {
        let address = |text: &str| {
            let parsed = text.parse::<Ipv4Addr>();
            parsed.map(|address| address.octets()).map_err(|_| PyValueError::new_err("not an IPv4 address"))
        };
        let (inlet, outlet): (Box<dyn Inlet>, AnyOutlet) = match (channel, memif) {
            (Some(channel), _) => (Box::new(End(channel.channel())), Box::new(End(channel.channel()))),
            (None, Some(memif)) => {
                let queues = memif.queues()?.queues;
                let queue = queues.first().ok_or_else(|| PyValueError::new_err("a memif without a queue"))?;
                (Box::new(FarEnd::new(Arc::clone(queue))), Box::new(FarEnd::new(Arc::clone(queue))))
            }
            (None, None) => {
                (Box::new(PacketSocket::new(copy(packet_socket)?)), Box::new(UdpSocket::new(copy(udp_socket)?)))
            }
        };
        Ok(Self {
            source: Mutex::new(Source::new(inlet, address(source)?, address(target)?)),
            receiving: Mutex::new(Some(Receiving::Idle(outlet))),
        })
    }

    /// Send the packets of a trial, and return what was sent.
    #[pyo3(signature = (*, trial, sizes, flows, rate, seconds))]
    fn send<'py>(
        &self,
        py: Python<'py>,
        trial: u32,
        sizes: Vec<usize>,
        flows: usize,
        rate: Option<f64>,
        seconds: f64,
    ) -> PyResult<Bound<'py, PyDict>> {
        let fits = |size: &usize| (generator::LEAST_SIZE..=generator::MOST_SIZE).contains(size);
        let rate_is_right = rate.is_none_or(|rate| rate.is_finite() && rate > 0.0);
        if sizes.is_empty() || !sizes.iter().all(fits) || flows == 0 || flows > generator::MOST_FLOWS {
            return Err(PyValueError::new_err("no such sizes or number of flows"));
        }
        if !rate_is_right || !(0.0..=3600.0).contains(&seconds) {
            return Err(PyValueError::new_err("no such rate or time"));
        }
        let order = Order { trial, sizes, flows, rate, seconds };
        let sent = py.detach(|| self.source.lock().unwrap_or_else(PoisonError::into_inner).send(&order))?;
        sent_document(py, &sent)
    }

    /// Begin to count what arrives.
    #[pyo3(signature = (*, trial, flows))]
    fn receive(&self, trial: u32, flows: usize) -> PyResult<()> {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        match receiving.take() {
            Some(Receiving::Idle(outlet)) => {
                *receiving = Some(Receiving::Busy(Sink::start(outlet, trial, flows)?));
                Ok(())
            }
            other => {
                *receiving = other;
                Err(PyRuntimeError::new_err("a trial is being counted"))
            }
        }
    }

    /// Wait until `sent` packets have arrived or nothing more does. Return what did.
    #[pyo3(signature = (*, sent))]
    fn report<'py>(&self, py: Python<'py>, sent: u64) -> PyResult<Bound<'py, PyDict>> {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        let sink = match receiving.take() {
            Some(Receiving::Busy(sink)) => sink,
            other => {
                *receiving = other;
                return Err(PyRuntimeError::new_err("no trial is being counted"));
            }
        };
        let (outlet, received) = py.detach(|| sink.finish(sent))?;
        *receiving = Some(Receiving::Idle(outlet));
        received_document(py, &received)
    }
}

fn sent_document<'py>(py: Python<'py>, sent: &Sent) -> PyResult<Bound<'py, PyDict>> {
    let document = PyDict::new(py);
    document.set_item("offered", sent.offered)?;
    document.set_item("sent", sent.sent)?;
    document.set_item("bytes", sent.bytes)?;
    document.set_item("nanoseconds", sent.nanoseconds)?;
    document.set_item("lateness", pairs(&sent.lateness))?;
    document.set_item("generator", cpu(py, sent.cpu)?)?;
    Ok(document)
}

fn received_document<'py>(py: Python<'py>, received: &Received) -> PyResult<Bound<'py, PyDict>> {
    let document = PyDict::new(py);
    document.set_item("received", received.received)?;
    document.set_item("expected", received.expected)?;
    document.set_item("duplicates", received.duplicates)?;
    document.set_item("reordered", received.reordered)?;
    document.set_item("extent", received.extent)?;
    document.set_item("stale", received.stale)?;
    document.set_item("invalid", received.invalid)?;
    document.set_item("bytes", received.bytes)?;
    document.set_item("nanoseconds", received.last - received.first)?;
    document.set_item("latency", pairs(&received.latency))?;
    document.set_item("sink", cpu(py, received.cpu)?)?;
    Ok(document)
}

fn cpu(py: Python<'_>, time: CpuTime) -> PyResult<Bound<'_, PyDict>> {
    let document = PyDict::new(py);
    document.set_item("user", time.user)?;
    document.set_item("system", time.system)?;
    Ok(document)
}

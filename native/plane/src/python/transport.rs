//! The class `Transport`: the rules alone, for tests that compare them with Python's.

use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use transport::Transport;
use transport::coalesce::{Merge, next_run};
use transport::contract::{Endpoint, Outbox, Transmit};
use transport::inbound::{Inbound, Message};
use transport::outbound::Outbound;
use transport::sink::Sink;

use super::convert;

/// Collects messages instead of sending them.
#[derive(Default)]
struct Collected(Vec<Transmit>);

impl Sink for Collected {
    fn send(&mut self, message: &[u8], segment: usize, endpoint: Endpoint, tos: u8) -> bool {
        let one = |datagram: &[u8]| Transmit { endpoint, datagram: datagram.to_vec(), tos };
        self.0.extend(message.chunks(segment).map(one));
        true
    }
}

/// Where a datagram goes, the datagram, and its TOS or traffic class.
type PyTransmit<'py> = (Bound<'py, PyAny>, Bound<'py, PyBytes>, u8);

/// The rules alone, with the methods of `planes.transport.Transport`. An exception in one of its
/// callables is a panic.
#[pyclass(name = "Transport", module = "rustguard_py._native", frozen)]
pub struct PyTransport {
    rules: Transport,
    emit: Py<PyAny>,
    transmits: Mutex<Vec<Transmit>>,
    answers: Mutex<Vec<Vec<u8>>>,
}

impl PyTransport {
    /// Call `act`. Report its events at once, and keep its datagrams.
    fn act<R>(&self, py: Python<'_>, act: impl FnOnce(&Transport, &mut Outbox) -> R) -> PyResult<R> {
        let mut out = Outbox::default();
        let result = act(&self.rules, &mut out);
        self.keep(py, out)?;
        Ok(result)
    }

    fn keep(&self, py: Python<'_>, out: Outbox) -> PyResult<()> {
        for event in &out.events {
            self.emit.call1(py, (convert::event(py, event)?,))?;
        }
        self.transmits.lock().expect("used by one thread").extend(out.transmits);
        self.answers.lock().expect("used by one thread").extend(out.answers);
        Ok(())
    }
}

#[pymethods]
impl PyTransport {
    #[new]
    #[pyo3(signature = (public_key, *, emit, random, mtu, backlog))]
    fn new(
        public_key: &Bound<'_, PyAny>,
        emit: Py<PyAny>,
        random: Py<PyAny>,
        mtu: usize,
        backlog: Py<PyAny>,
    ) -> PyResult<Self> {
        let draw = move |bytes: &mut [u8]| {
            Python::attach(|py| {
                let drawn = random.call1(py, (bytes.len(),)).expect("random returns bytes");
                bytes.copy_from_slice(drawn.extract(py).expect("random returns bytes"));
            });
        };
        let waiting = move || {
            Python::attach(|py| backlog.call0(py).and_then(|n| n.extract(py)).expect("backlog returns a number"))
        };
        let rules = Transport::new(&*convert::key(public_key)?, mtu, Box::new(draw), Box::new(waiting));
        Ok(Self { rules, emit, transmits: Mutex::default(), answers: Mutex::default() })
    }

    fn set_peer(
        &self,
        peer: u64,
        endpoint: Option<Bound<'_, PyAny>>,
        allowed_ips: &Bound<'_, PyAny>,
        persistent_keepalive: u32,
        now: f64,
    ) -> PyResult<()> {
        let endpoint = endpoint.map(|given| convert::endpoint(&given)).transpose()?;
        let networks = convert::networks(allowed_ips)?;
        self.act(allowed_ips.py(), |rules, out| {
            rules.set_peer(peer, endpoint, &networks, persistent_keepalive, now, out);
        })
    }

    fn set_endpoint(&self, peer: u64, endpoint: &Bound<'_, PyAny>) -> PyResult<()> {
        self.rules.set_endpoint(peer, convert::endpoint(endpoint)?);
        Ok(())
    }

    fn set_mtu(&self, mtu: usize) {
        self.rules.set_mtu(mtu);
    }

    fn set_up(&self, py: Python<'_>, up: bool, now: f64) -> PyResult<()> {
        self.act(py, |rules, out| rules.set_up(up, now, out))
    }

    fn set_public_key(&self, public_key: &Bound<'_, PyAny>) -> PyResult<()> {
        self.rules.set_public_key(&*convert::key(public_key)?);
        Ok(())
    }

    fn set_segmenting(&self, peer: u64, on: bool) {
        self.rules.set_segmenting(peer, on);
    }

    fn flows<'py>(&self, py: Python<'py>, peer: u64) -> PyResult<Vec<Bound<'py, PyAny>>> {
        convert::flows(py, &self.rules.flows(peer))
    }

    fn remove_peer(&self, peer: u64) {
        self.rules.remove_peer(peer);
    }

    fn reserve_index(&self, peer: u64) -> u32 {
        self.rules.reserve_index(peer)
    }

    fn install_keypair(&self, peer: u64, keypair: &Bound<'_, PyAny>, now: f64) -> PyResult<()> {
        let made = convert::keypair(keypair)?;
        self.act(keypair.py(), |rules, out| rules.install_keypair(peer, &made, now, out))
    }

    fn erase_keypairs(&self, peer: u64) {
        self.rules.erase_keypairs(peer);
    }

    fn drop_held(&self, peer: u64) {
        self.rules.drop_held(peer);
    }

    fn set_pairing(&self, gate: Option<Bound<'_, PyAny>>, now: f64) -> PyResult<()> {
        self.rules.set_pairing(gate.map(|given| convert::pairing_gate(&given)).transpose()?, now);
        Ok(())
    }

    fn send(&self, py: Python<'_>, endpoint: &Bound<'_, PyAny>, datagram: Vec<u8>, now: f64) -> PyResult<()> {
        let endpoint = convert::endpoint(endpoint)?;
        self.act(py, |rules, out| rules.send(endpoint, datagram, now, out))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::stats(py, self.rules.stats(), self.rules.drops.read(), Vec::new(), Vec::new())
    }

    fn handle_packet(&self, py: Python<'_>, packet: &[u8], now: f64) -> PyResult<()> {
        self.act(py, |rules, out| rules.handle_packet(packet, now, out))
    }

    #[pyo3(signature = (datagram, source, now, tos = 0))]
    fn handle_datagram<'py>(
        &self,
        py: Python<'py>,
        mut datagram: Vec<u8>,
        source: &Bound<'py, PyAny>,
        now: f64,
        tos: u8,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let source = convert::endpoint(source)?;
        let found = self.act(py, |rules, out| rules.handle_datagram(&mut datagram, source, tos, now, out))?;
        Ok(found.map(|range| PyBytes::new(py, &datagram[range])))
    }

    fn handle_timeout(&self, py: Python<'_>, now: f64) -> PyResult<()> {
        self.act(py, |rules, out| rules.handle_timeout(now, out))
    }

    fn poll_timeout(&self) -> Option<f64> {
        self.rules.poll_timeout()
    }

    fn poll_transmit<'py>(&self, py: Python<'py>) -> PyResult<Vec<PyTransmit<'py>>> {
        let taken = std::mem::take(&mut *self.transmits.lock().expect("used by one thread"));
        let give =
            |one: Transmit| Ok((convert::from_endpoint(py, one.endpoint)?, PyBytes::new(py, &one.datagram), one.tos));
        taken.into_iter().map(give).collect()
    }

    fn poll_answers<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let taken = std::mem::take(&mut *self.answers.lock().expect("used by one thread"));
        taken.iter().map(|answer| PyBytes::new(py, answer)).collect()
    }

    /// Take frames that wait in the device at once, each a virtio_net_hdr and a packet or
    /// superpacket.
    fn handle_frames(&self, py: Python<'_>, frames: Vec<Vec<u8>>, now: f64) -> PyResult<()> {
        let (mut outbound, mut wire) = (Outbound::default(), Collected::default());
        let mut out = Outbox::default();
        for mut frame in frames {
            outbound.frame(&self.rules, &mut frame, now, &mut out, &mut wire);
        }
        outbound.flush(&self.rules, now, &mut out, &mut wire);
        out.transmits.append(&mut wire.0);
        self.keep(py, out)
    }

    /// Take messages that wait at the socket at once. Return the frames to write to the device.
    ///
    /// Each message stands for datagrams of one size, source and TOS; the last one may be shorter.
    fn handle_messages<'py>(
        &self,
        py: Python<'py>,
        messages: Vec<(Vec<u8>, usize, Bound<'py, PyAny>, u8)>,
        now: f64,
    ) -> PyResult<Vec<Bound<'py, PyBytes>>> {
        let mut inbound = Inbound::default();
        let (mut buffer, mut given) = (Vec::new(), Vec::new());
        for (bytes, segment, source, tos) in &messages {
            let source = convert::endpoint(source)?;
            given.push(Message { at: buffer.len(), size: bytes.len(), segment: *segment, source, tos: *tos });
            buffer.extend_from_slice(bytes);
        }
        self.act(py, |rules, out| {
            for message in given {
                inbound.message(rules, &mut buffer, message, now, out);
            }
        })?;
        let mut rest = inbound.packets();
        let mut frames = Vec::new();
        while !rest.is_empty() {
            let run = next_run(&buffer, rest, Merge::ALL);
            let (mine, others) = rest.split_at(run.count);
            let mut frame = run.head().to_vec();
            for one in mine {
                frame.extend_from_slice(&buffer[one.at + run.skip..one.at + one.size]);
            }
            frames.push(PyBytes::new(py, &frame));
            rest = others;
        }
        Ok(frames)
    }
}

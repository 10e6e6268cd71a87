//! The class `Plane`.

use std::os::fd::RawFd;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::channel::PyChannel;
use super::convert;
use super::memif::PyMemif;
use crate::descriptor::now;
use crate::device::tun::{self, TunError};
use crate::plane::{Plane, Settings};

/// Return an error as `OSError(errno, why, what)`. The Python wrapper makes a message for users of
/// it.
fn os_error(refused: TunError) -> PyErr {
    let why = refused.error.to_string();
    PyOSError::new_err((refused.error.raw_os_error().unwrap_or(libc::EIO), why, refused.what))
}

#[pyclass(name = "Plane", module = "rustguard_py._native", frozen)]
pub struct PyPlane(Plane);

#[pymethods]
impl PyPlane {
    #[new]
    #[expect(clippy::too_many_arguments, reason = "they are Python's keyword arguments")]
    #[pyo3(signature = (public_key, *, interface, sockets, mtu, queues, uring, xdp, offloads, tun, channel, memif=None))]
    fn new(
        py: Python<'_>,
        public_key: &Bound<'_, PyAny>,
        interface: &str,
        sockets: Vec<RawFd>,
        mtu: usize,
        queues: usize,
        uring: bool,
        xdp: Option<&str>,
        offloads: &Bound<'_, PyAny>,
        tun: Vec<RawFd>,
        channel: Option<&PyChannel>,
        memif: Option<&PyMemif>,
    ) -> PyResult<Self> {
        let public_key = *convert::key(public_key)?;
        let queues = queues.max(1);
        let offloads = convert::offloads(offloads)?;
        let made = match (channel, memif, &*tun) {
            (Some(channel), ..) => channel.queues(interface)?,
            (None, Some(memif), _) => memif.queues()?,
            (None, None, []) => tun::make(interface, queues, offloads).map_err(os_error)?,
            (None, None, queues) => tun::adopt(queues, offloads).map_err(os_error)?,
        };
        let what = made.name.clone();
        let settings = Settings { public_key, sockets: &sockets, mtu, uring, xdp, offloads };
        let made = py.detach(|| Plane::new(&settings, made));
        made.map(Self).map_err(|error| os_error(TunError { what, error }))
    }

    #[getter]
    fn interface(&self) -> &str {
        &self.0.name
    }

    fn set_peer(
        &self,
        peer: u64,
        endpoint: Option<Bound<'_, PyAny>>,
        allowed_ips: &Bound<'_, PyAny>,
        persistent_keepalive: u32,
    ) -> PyResult<()> {
        let endpoint = endpoint.map(|given| convert::endpoint(&given)).transpose()?;
        let networks = convert::networks(allowed_ips)?;
        allowed_ips.py().detach(|| self.0.set_peer(peer, endpoint, &networks, persistent_keepalive));
        Ok(())
    }

    fn set_endpoint(&self, peer: u64, endpoint: &Bound<'_, PyAny>) -> PyResult<()> {
        let given = convert::endpoint(endpoint)?;
        endpoint.py().detach(|| self.0.transport().set_endpoint(peer, given));
        Ok(())
    }

    fn set_fwmark(&self, mark: u32) -> PyResult<()> {
        Ok(self.0.set_fwmark(mark)?)
    }

    fn set_mtu(&self, mtu: usize) {
        self.0.set_mtu(mtu);
    }

    fn set_public_key(&self, public_key: &Bound<'_, PyAny>) -> PyResult<()> {
        let key = convert::key(public_key)?;
        public_key.py().detach(|| self.0.transport().set_public_key(&key));
        Ok(())
    }

    fn set_pairing(&self, py: Python<'_>, gate: Option<Bound<'_, PyAny>>) -> PyResult<()> {
        let gate = gate.map(|given| convert::pairing_gate(&given)).transpose()?;
        py.detach(|| self.0.transport().set_pairing(gate, now()));
        Ok(())
    }

    fn rebind(&self, py: Python<'_>, sockets: Vec<RawFd>) -> PyResult<()> {
        Ok(py.detach(|| self.0.rebind(&sockets))?)
    }

    fn is_running(&self) -> bool {
        self.0.is_running()
    }

    fn reattach(&self, py: Python<'_>, sockets: Vec<RawFd>, mark: u32) -> PyResult<()> {
        py.detach(|| self.0.reattach(&sockets, mark)).map_err(os_error)
    }

    fn set_segmenting(&self, py: Python<'_>, peer: u64, on: bool) {
        py.detach(|| self.0.transport().set_segmenting(peer, on));
    }

    fn flows<'py>(&self, py: Python<'py>, peer: u64) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let flows = py.detach(|| self.0.transport().flows(peer));
        convert::flows(py, &flows)
    }

    fn remove_peer(&self, py: Python<'_>, peer: u64) {
        py.detach(|| self.0.transport().remove_peer(peer));
    }

    fn reserve_index(&self, peer: u64) -> u32 {
        self.0.transport().reserve_index(peer)
    }

    fn install_keypair(&self, peer: u64, keypair: &Bound<'_, PyAny>) -> PyResult<()> {
        let made = convert::keypair(keypair)?;
        keypair.py().detach(|| self.0.install_keypair(peer, &made));
        Ok(())
    }

    fn erase_keypairs(&self, py: Python<'_>, peer: u64) {
        py.detach(|| self.0.transport().erase_keypairs(peer));
    }

    fn drop_held(&self, py: Python<'_>, peer: u64) {
        py.detach(|| self.0.transport().drop_held(peer));
    }

    fn send(&self, endpoint: &Bound<'_, PyAny>, datagram: Vec<u8>) -> PyResult<()> {
        let given = convert::endpoint(endpoint)?;
        endpoint.py().detach(|| self.0.send(given, datagram));
        Ok(())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let transport = self.0.transport();
        let (peers, drops) = py.detach(|| (transport.stats(), self.0.drops()));
        convert::stats(py, peers, drops, self.0.notes(), self.0.workers())
    }

    fn fileno(&self) -> RawFd {
        self.0.fileno()
    }

    fn poll_events<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        self.0.poll_events().iter().map(|event| convert::event(py, event)).collect()
    }

    fn roll_call(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.0.roll_call())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

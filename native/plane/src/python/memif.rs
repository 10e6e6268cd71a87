//! The class `Memif`: packets of another program, over shared memory, in place of an interface.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use transport::contract::Address;

use super::convert::networks;
use crate::device::Queues;
use crate::device::memif::{Memif, Options};
use crate::device::metered::Meters;

/// Return an error as `OSError(errno, why, what)`.
fn os_error(error: &std::io::Error, what: &str) -> PyErr {
    PyOSError::new_err((error.raw_os_error().unwrap_or(libc::EIO), error.to_string(), what.to_owned()))
}

/// A model.ethernet.EthernetOptions, whose MAC address is given.
struct Ethernet(neighbours::link::Settings);

impl<'py> FromPyObject<'_, 'py> for Ethernet {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self(neighbours::link::Settings {
            mac: object.getattr("mac")?.extract()?,
            gateway: object.getattr("gateway")?.extract()?,
            answered: networks(&object.getattr("answered")?)?,
            learnt: networks(&object.getattr("learnt")?)?,
        }))
    }
}

#[pyclass(name = "Memif", module = "rustguard_py._native", frozen)]
pub struct PyMemif {
    memif: Memif,
    meters: Option<Arc<Meters>>,
    used: AtomicBool,
}

impl PyMemif {
    /// Return the queues, for the one plane that uses it.
    pub fn queues(&self) -> PyResult<Queues> {
        if self.used.swap(true, Ordering::Relaxed) {
            return Err(PyValueError::new_err("a plane uses this memif already"));
        }
        let mut device = self.memif.device();
        if let Some(meters) = &self.meters {
            device.queues = meters.of(device.queues);
        }
        Ok(device)
    }
}

#[pymethods]
impl PyMemif {
    #[new]
    #[pyo3(signature = (socket, *, listener, number, secret, queues, ethernet, interface, metered = false))]
    #[expect(clippy::too_many_arguments, reason = "they are Python's keyword arguments")]
    fn new(
        socket: &str,
        listener: Option<RawFd>,
        number: u32,
        secret: Vec<u8>,
        queues: u16,
        ethernet: Option<Ethernet>,
        interface: &str,
        metered: bool,
    ) -> PyResult<Self> {
        let copy = |listener: RawFd| {
            // SAFETY: the caller has the descriptor open during this call.
            unsafe { BorrowedFd::borrow_raw(listener) }.try_clone_to_owned()
        };
        let listener = listener.map(copy).transpose().map_err(|error| os_error(&error, socket))?;
        let path = CString::new(socket).map_err(|_| PyValueError::new_err("a path has no zero bytes"))?;
        let ethernet = ethernet.map(|given| given.0);
        let options = Options { socket: path, listener, id: number, secret: &secret, queues, ethernet, interface };
        let memif = Memif::open(options).map_err(|error| os_error(&error, socket))?;
        Ok(Self { memif, meters: metered.then(Arc::default), used: AtomicBool::new(false) })
    }

    /// Return the other side's program and interface (None while there is none), how many connections
    /// there were, why there is none now, if that is known, and for how many seconds that is so.
    fn state(&self) -> (Option<(String, String)>, u64, Option<String>, f64) {
        let state = self.memif.state();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (
            state.peer.map(|(program, interface)| (text(program), text(interface))),
            state.connections,
            state.why,
            state.since.elapsed().as_secs_f64(),
        )
    }

    /// Return what the plane's reads and writes cost so far, in nanoseconds, if they are metered.
    fn costs(&self) -> Option<(f64, f64)> {
        self.meters.as_ref().map(|meters| meters.nanoseconds())
    }

    /// Return the descriptor that is readable while `take_answered` has something.
    #[getter]
    fn answered_fd(&self) -> i32 {
        self.memif.answered_fd()
    }

    /// Return the addresses that were answered for since the last call, 4 or 16 bytes each.
    fn take_answered<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let bytes = |address| match address {
            Address::V4(address) => PyBytes::new(py, &address.to_be_bytes()),
            Address::V6(address) => PyBytes::new(py, &address.to_be_bytes()),
        };
        self.memif.take_answered().into_iter().map(bytes).collect()
    }

    /// Answer for these ranges from now on, if this is Ethernet.
    fn answer_for(&self, ranges: &Bound<'_, PyAny>) -> PyResult<()> {
        self.memif.answer_for(&networks(ranges)?);
        Ok(())
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.memif.close());
    }
}

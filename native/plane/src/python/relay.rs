//! The class `Relay`: what moves the bytes of the proxy's connections (the crate `relay`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use ::relay::{End, Ended, Relay, Settings, Statistics};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

/// The relay, as `proxy.relay.Relay` describes it.
#[pyclass(name = "Relay", module = "rustguard_py._native", frozen)]
pub struct PyRelay(Relay);

/// Return an error with its number, which PyO3 leaves out.
fn os_error(error: io::Error) -> PyErr {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    PyOSError::new_err((number, error.to_string().replace(&format!(" (os error {number})"), "")))
}

/// Take ownership of a descriptor that Python gave up.
fn own(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err("a descriptor isn't negative"));
    }
    // SAFETY: the caller detached the descriptor from its object, so nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[pymethods]
impl PyRelay {
    #[new]
    #[pyo3(signature = (*, threads, connections, pipes, idle))]
    fn new(threads: usize, connections: usize, pipes: usize, idle: Option<f64>) -> PyResult<Self> {
        let idle = idle.map(Duration::try_from_secs_f64).transpose();
        let idle = idle.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Relay::new(&Settings { threads, connections, pipes, idle }).map(Self).map_err(os_error)
    }

    fn add(&self, py: Python<'_>, outside: RawFd, inside: RawFd, early: &[u8]) -> PyResult<u64> {
        let (outside, inside) = (own(outside), own(inside));
        let (outside, inside) = (outside?, inside?);
        py.detach(|| self.0.add(outside, inside, early)).map_err(os_error)
    }

    /// Return the statistics by the names of `proxy.relay.RelayStatistics`.
    fn statistics(&self) -> [(&'static str, u64); 8] {
        let Statistics { active, added, refused, resets, idle, forth, back, copied } = self.0.statistics();
        [
            ("active", active),
            ("added", added),
            ("refused", refused),
            ("resets", resets),
            ("idle", idle),
            ("bytes_in", forth),
            ("bytes_out", back),
            ("bytes_copied", copied),
        ]
    }

    fn fileno(&self) -> RawFd {
        self.0.fd()
    }

    /// Return number, end, bytes into the tunnel and bytes out of it of each ended connection.
    fn ended(&self) -> Vec<(u64, &'static str, u64, u64)> {
        let word = |end| match end {
            End::Finished => "finished",
            End::Reset => "reset",
            End::Idle => "idle",
        };
        self.0
            .ended()
            .into_iter()
            .map(|Ended { number, end, forth, back }| (number, word(end), forth, back))
            .collect()
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.0.close());
    }
}

//! The module `rustguard_py._native`: the plane, and the rules and the queue of events alone for
//! tests that compare them with Python's.

mod channel;
mod convert;
mod event_queue;
mod memif;
mod plane;
mod transport;

use pyo3::prelude::*;

use self::channel::PyChannel;
use self::event_queue::PyEventQueue;
use self::memif::PyMemif;
use self::plane::PyPlane;
use self::transport::PyTransport;
use crate::{ristretto, seccomp, uring};

/// Return why the plane can't use io_uring here, or None if it can.
#[pyfunction]
fn uring_refusal() -> Option<String> {
    uring::refusal()
}

/// Return what seals and opens packets here.
#[pyfunction]
fn aead() -> &'static str {
    ::transport::aead::description()
}

/// Refuse system calls that no daemon makes, to this thread and all that it starts. Return how many.
#[pyfunction]
#[pyo3(signature = (*, uring, xdp))]
fn refuse_system_calls(uring: bool, xdp: bool) -> PyResult<usize> {
    Ok(seccomp::refuse(uring, xdp)?)
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(aead, module)?)?;
    module.add_class::<PyChannel>()?;
    module.add_class::<PyMemif>()?;
    module.add_class::<PyEventQueue>()?;
    module.add_class::<PyPlane>()?;
    module.add_class::<PyTransport>()?;
    module.add_function(wrap_pyfunction!(refuse_system_calls, module)?)?;
    module.add_function(wrap_pyfunction!(ristretto::ristretto_from_hash, module)?)?;
    module.add_function(wrap_pyfunction!(ristretto::ristretto_multiply, module)?)?;
    module.add_function(wrap_pyfunction!(uring_refusal, module)?)
}

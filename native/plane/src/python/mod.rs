//! The module `rustguard_py._native`: the plane, the relay of the proxy, and the rules and the queue
//! of events alone for tests that compare them with Python's.

mod channel;
mod convert;
mod event_queue;
mod generator;
mod memif;
mod plane;
mod relay;
mod transport;

use std::os::fd::{BorrowedFd, RawFd};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use self::channel::PyChannel;
use self::event_queue::PyEventQueue;
use self::generator::PyGenerator;
use self::memif::PyMemif;
use self::plane::PyPlane;
use self::relay::PyRelay;
use self::transport::PyTransport;
use crate::{ristretto, seccomp, uring, writing};

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
#[pyo3(signature = (*, uring, xdp, modes))]
fn refuse_system_calls(uring: bool, xdp: bool, modes: bool) -> PyResult<usize> {
    Ok(seccomp::refuse(uring, xdp, modes)?)
}

/// Return the version of Landlock in this kernel, 0 if it has none.
#[pyfunction]
fn landlock_version() -> i32 {
    writing::version()
}

/// Refuse writing elsewhere than to the places with these descriptors, to this thread and all that
/// it starts. Return the version of Landlock that was used, 0 if there is none.
#[pyfunction]
#[pyo3(signature = (*, directories, files, devices))]
fn restrict_writing(directories: Vec<RawFd>, files: Vec<RawFd>, devices: Vec<RawFd>) -> PyResult<i32> {
    if directories.iter().chain(&files).chain(&devices).any(|&each| each < 0) {
        return Err(PyValueError::new_err("a descriptor is negative"));
    }
    // SAFETY: the caller holds them open during the call, and -1 is none of them.
    let borrow = |all: &[RawFd]| all.iter().map(|&each| unsafe { BorrowedFd::borrow_raw(each) }).collect();
    let places =
        writing::Places { directories: borrow(&directories), files: borrow(&files), devices: borrow(&devices) };
    Ok(writing::restrict(&places)?)
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(aead, module)?)?;
    module.add_class::<PyChannel>()?;
    module.add_class::<PyMemif>()?;
    module.add_class::<PyEventQueue>()?;
    module.add_class::<PyGenerator>()?;
    module.add_class::<PyPlane>()?;
    module.add_class::<PyRelay>()?;
    module.add_class::<PyTransport>()?;
    module.add_function(wrap_pyfunction!(landlock_version, module)?)?;
    module.add_function(wrap_pyfunction!(refuse_system_calls, module)?)?;
    module.add_function(wrap_pyfunction!(restrict_writing, module)?)?;
    module.add_function(wrap_pyfunction!(ristretto::ristretto_from_hash, module)?)?;
    module.add_function(wrap_pyfunction!(ristretto::ristretto_multiply, module)?)?;
    module.add_function(wrap_pyfunction!(uring_refusal, module)?)
}

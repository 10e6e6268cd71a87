//! The class `Channel`: packets in memory in place of an interface.

use std::ffi::c_int;
use std::os::fd::RawFd;
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBrokenPipeError, PyBufferError, PyOSError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyMemoryView, PySlice};
use transport::vnet::MAX_PACKET;

use crate::descriptor::{now, wait};
use crate::device::Queues;
use crate::device::batch::{BUFFER, Batch};
use crate::device::channel::Channel;
use crate::device::lane::{Closed, Limits};
use crate::device::metered::Meters;

/// A batch of more bytes than this is copied without the interpreter's lock. To give it up and take
/// it again costs as much as copying some kilobytes.
const MUCH: usize = 16 << 10;
/// A batch of no more bytes than this is copied for Python. Its views would keep a whole buffer, which
/// is much more.
const LITTLE: usize = BUFFER / 8;

impl From<Closed> for PyErr {
    fn from(Closed: Closed) -> Self {
        PyBrokenPipeError::new_err((libc::EPIPE, "The channel is closed"))
    }
}

/// A batch's bytes, for memoryviews of its packets. They keep this object, and with it the batch.
#[pyclass(name = "_Batch", module = "rustguard_py._native", frozen)]
struct PyBatch(Batch);

#[pymethods]
impl PyBatch {
    /// Lend the bytes, read-only.
    ///
    /// # Safety
    /// The interpreter calls this with a place for a Py_buffer.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let bytes = slf.get().0.bytes();
        let (start, size) = (bytes.as_ptr().cast_mut().cast(), bytes.len() as ffi::Py_ssize_t);
        // SAFETY: `view` is valid. The bytes stay in place and unchanged as long as the object, which
        // the filled view refers to. The view is read-only.
        let result = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), start, size, 1, flags) };
        if result == 0 { Ok(()) } else { Err(PyErr::take(slf.py()).unwrap_or_else(|| PyBufferError::new_err(""))) }
    }
}

/// A packet that Python lends us.
enum Lent<'py> {
    /// Its bytes never change.
    Bytes(Bound<'py, PyBytes>),
    /// Its bytes stay in place, but Python code may change them.
    Buffer(PyBuffer<u8>),
}

impl<'py> Lent<'py> {
    fn of(object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let lent = match object.cast::<PyBytes>() {
            Ok(bytes) => Self::Bytes(bytes.clone()),
            Err(_) => Self::Buffer(PyBuffer::get(object)?),
        };
        if lent.is_contiguous() { Ok(lent) } else { Err(PyBufferError::new_err("A packet's bytes lie apart")) }
    }

    fn is_contiguous(&self) -> bool {
        matches!(self, Self::Bytes(_)) || matches!(self, Self::Buffer(buffer) if buffer.is_c_contiguous())
    }

    /// Return the bytes.
    ///
    /// # Safety
    /// No Python code may run while they are used, unless this is `Bytes`.
    unsafe fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.as_bytes(),
            // SAFETY: the buffer is contiguous and lent until it is dropped. The caller promises that
            // nothing changes it.
            Self::Buffer(buffer) => buffer.as_slice_ptr().map_or(&[], |bytes| unsafe { bytes.as_ref() }),
        }
    }
}

#[pyclass(name = "Channel", module = "rustguard_py._native", frozen)]
pub struct PyChannel(Arc<Channel>, Option<Arc<Meters>>);

impl PyChannel {
    /// Return the queues of the device, for a plane. `name` is what messages call it.
    pub fn queues(&self, name: &str) -> PyResult<Queues> {
        let queues = self.0.devices().ok_or_else(|| PyValueError::new_err("The channel has a plane already."))?;
        let queues = match &self.1 {
            Some(meters) => meters.of(queues),
            None => queues,
        };
        Ok(Queues { name: name.to_owned(), queues, lacks: Vec::new() })
    }

    /// Return the channel, for users in Rust.
    pub fn channel(&self) -> Arc<Channel> {
        Arc::clone(&self.0)
    }
}

#[pymethods]
impl PyChannel {
    #[new]
    #[pyo3(signature = (*, queues = 1, capacity = 1024, memory = 4 << 20, metered = false))]
    fn new(queues: usize, capacity: usize, memory: usize, metered: bool) -> PyResult<Self> {
        let made = Channel::new(queues.max(1), Limits { packets: capacity, bytes: memory });
        // With its number, so that Python knows a limit of the system.
        made.map(|channel| Self(channel, metered.then(Arc::default)))
            .map_err(|error| PyOSError::new_err((error.raw_os_error().unwrap_or(libc::EIO), error.to_string())))
    }

    /// Return what the plane's reads and writes cost so far, in nanoseconds, if they are metered.
    fn costs(&self) -> Option<(f64, f64)> {
        self.1.as_ref().map(|meters| meters.nanoseconds())
    }

    #[pyo3(signature = (most = 64))]
    fn read_batch<'py>(&self, py: Python<'py>, most: usize) -> PyResult<Bound<'py, PyList>> {
        let Some(batch) = self.0.read_batch(most.max(1))? else { return Ok(PyList::empty(py)) };
        let places: Vec<_> = batch.places().collect();
        let whole = if batch.bytes().len() <= LITTLE {
            PyMemoryView::from(PyBytes::new(py, batch.bytes()).as_any())?
        } else {
            PyMemoryView::from(Bound::new(py, PyBatch(batch))?.as_any())?
        };
        let packets = PyList::empty(py);
        for place in places {
            packets.append(whole.get_item(PySlice::new(py, place.start as isize, place.end as isize, 1))?)?;
        }
        Ok(packets)
    }

    fn write_batch(&self, packets: &Bound<'_, PyAny>) -> PyResult<usize> {
        let lent: Vec<_> = packets.try_iter()?.map(|packet| Lent::of(&packet?)).collect::<PyResult<_>>()?;
        // SAFETY: if there are others than `Bytes`, the interpreter's lock is held until the last use
        // of the slices, so no Python code runs.
        let slices: Vec<&[u8]> = lent.iter().map(|packet| unsafe { packet.bytes() }).collect();
        if slices.iter().any(|packet| packet.len() > MAX_PACKET) {
            return Err(PyValueError::new_err("A packet has at most 65535 bytes."));
        }
        let write = || self.0.write_batch(slices.iter().copied());
        let fixed = lent.iter().all(|packet| matches!(packet, Lent::Bytes(_)));
        let taken = if fixed && slices.iter().map(|packet| packet.len()).sum::<usize>() > MUCH {
            packets.py().detach(write)
        } else {
            write()
        };
        Ok(taken?)
    }

    /// Wait without the interpreter's lock. A signal's handler runs, and may raise.
    fn wait(&self, py: Python<'_>, seconds: f64) -> PyResult<bool> {
        let until = now() + seconds.max(0.0);
        while self.0.fall_asleep() {
            let left = until - now();
            if left <= 0.0 {
                return Ok(false);
            }
            let rounded_up = (left * 1000.0).ceil().min(f64::from(libc::c_int::MAX)) as libc::c_int;
            py.detach(|| wait([(self.0.fd(), libc::POLLIN)], rounded_up))?;
            py.check_signals()?;
        }
        Ok(true)
    }

    /// From now on the descriptor is kept up to date, which costs system calls.
    fn fileno(&self) -> RawFd {
        self.0.follow();
        self.0.fd()
    }

    fn writable_fileno(&self) -> RawFd {
        self.0.room_fd()
    }

    fn close(&self) {
        self.0.close();
    }

    #[getter]
    fn closed(&self) -> bool {
        self.0.is_closed()
    }
}

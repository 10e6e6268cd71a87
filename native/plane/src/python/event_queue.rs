//! The class `EventQueue`: the queue of events alone, for tests that compare it with Python's.

use std::sync::Mutex;

use pyo3::prelude::*;
use transport::event_queue::EventQueue;

use super::convert;

/// The queue alone, with the methods of `planes.event_queue.EventQueue`.
#[pyclass(name = "EventQueue", module = "rustguard_py._native", frozen)]
pub struct PyEventQueue(Mutex<EventQueue>);

#[pymethods]
impl PyEventQueue {
    #[new]
    fn new() -> Self {
        Self(Mutex::default())
    }

    /// Queue an event. Return why it is dropped, or None.
    fn put(&self, event: &Bound<'_, PyAny>) -> PyResult<Option<&'static str>> {
        let event = convert::to_event(event)?;
        Ok(self.0.lock().expect("used by one thread").put(event).err().map(|reason| reason.word()))
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let taken = self.0.lock().expect("used by one thread").take();
        taken.iter().map(|event| convert::event(py, event)).collect()
    }

    fn handshakes(&self) -> usize {
        self.0.lock().expect("used by one thread").handshakes()
    }
}

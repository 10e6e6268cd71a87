//! The atomic operations of the rings. `native/model` replaces this module by loom's.

pub use std::sync::atomic::{AtomicU16, Ordering, fence};

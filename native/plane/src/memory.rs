//! What happens when there is no memory left: a sentence and the end. Rust itself would abort, with
//! a backtrace and a core file.

use std::alloc::{GlobalAlloc, Layout, System};

/// As `rustguard_py/cli/failures.py` says it.
const TEXT: &[u8] = b"rustguard: There isn't enough memory.\n  Free some, or raise the limit: `ulimit -v`, \
    MemoryMax= in a systemd unit, or --memory of a container.\n";
/// The exit code of errors that have none of their own.
const FAILED: i32 = 1;

/// The system's allocator, whose refusal ends the process.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the rules of the system's allocator.
        given(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        given(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// Return memory, or end the process if there is none.
fn given(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        end();
    }
    memory
}

#[cold]
fn end() -> ! {
    // SAFETY: neither call allocates. An allocator may not unwind, so nothing is left but to end.
    unsafe {
        libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len());
        libc::_exit(FAILED)
    }
}

//! Processor time and cycles of short runs.

use std::arch::x86_64::_rdtsc;
use std::hint::black_box;

/// Additions in a chain.
const CHAIN: u64 = 4_000;
/// Chains whose lengths differ by more had an interruption or another frequency between them.
const STEADY: f64 = 0.02;

/// What one run of something took.
#[derive(Clone, Copy)]
pub struct Taken {
    /// Nanoseconds of the thread's processor time.
    pub nanoseconds: f64,
    /// Cycles. None if the run was disturbed.
    pub cycles: Option<f64>,
}

fn processor_time() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes to `time`, which is of the type it expects.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { _rdtsc() }
}

/// Return how many ticks a cycle takes. Each addition needs the result of the one before.
fn ticks_per_cycle() -> f64 {
    let once = || {
        let start = ticks();
        let mut sum = black_box(1_u64);
        for _ in 0..CHAIN / 8 {
            // SAFETY: it adds to one register.
            unsafe {
                std::arch::asm!(
                    "add {0}, 1", "add {0}, 1", "add {0}, 1", "add {0}, 1",
                    "add {0}, 1", "add {0}, 1", "add {0}, 1", "add {0}, 1",
                    inout(reg) sum, options(nomem, nostack)
                );
            }
        }
        black_box(sum);
        (ticks() - start) as f64 / CHAIN as f64
    };
    (0..3).map(|_| once()).fold(f64::MAX, f64::min)
}

/// Do something `count` times, and return what one time took.
pub fn take(count: usize, mut run: impl FnMut()) -> Taken {
    run();
    let before = ticks_per_cycle();
    let (time, start) = (processor_time(), ticks());
    (0..count).for_each(|_| run());
    let (ticks, time) = (ticks() - start, processor_time() - time);
    let after = ticks_per_cycle();
    let steady = (after / before - 1.0).abs() < STEADY;
    Taken {
        nanoseconds: time as f64 / count as f64,
        cycles: steady.then(|| ticks as f64 / (before + after) * 2.0 / count as f64),
    }
}

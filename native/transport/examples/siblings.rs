//! Measures on each core whether its other hardware thread, the core's sibling, is busy.
//!
//! `cargo run --release -p transport --example siblings -- 10` prints a line per core every 10 ms: the
//! time in seconds of CLOCK_MONOTONIC, the core, operations per cycle, and the clock in GHz.
//! `bench/siblings.py` reads them. It ends with the program that started it.
//!
//! Siblings share a core's execution units. A loop that needs all of them gets about half while the
//! sibling computes. A chain of multiplications that wait for each other needs one unit, once in
//! three cycles, so its speed tells the clock. A virtual machine needn't be told that its cores have
//! siblings: the host may give those to other machines.

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("siblings: written for x86-64 only.");
    std::process::exit(1);
}

#[cfg(target_arch = "x86_64")]
fn main() {
    let pause = std::env::args().nth(1).map_or(10, |word| word.parse().expect("a whole number of milliseconds"));
    x86::watch(std::time::Duration::from_millis(pause));
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::io::{self, Write};
    use std::os::unix::process::parent_id;
    use std::thread;
    use std::time::{Duration, Instant};

    /// Turns of each loop in a sample. An interrupt makes one of them longer.
    const TURNS: usize = 5;
    /// Rounds of a turn: about 10 µs of independent operations, 5 µs of multiplications.
    const INDEPENDENT_ROUNDS: u32 = 4_000;
    const CHAIN_ROUNDS: u32 = 700;
    /// Of a round.
    const INDEPENDENT_OPERATIONS: u32 = 32;
    const CHAIN_CYCLES: u32 = 24;

    /// Print samples of all cores, one each `pause`, until the starting program has ended.
    pub fn watch(pause: Duration) {
        let parent = parent_id();
        let threads: Vec<_> =
            cores().into_iter().map(|core| thread::spawn(move || watch_core(core, pause, parent))).collect();
        for each in threads {
            each.join().expect("a thread that panics has printed why");
        }
    }

    fn watch_core(core: usize, pause: Duration, parent: u32) {
        stay_on(core);
        while parent_id() == parent {
            let (operations, gigahertz) = sample();
            if writeln!(io::stdout(), "{:.4} {core} {operations:.3} {gigahertz:.3}", now()).is_err() {
                return;
            }
            thread::sleep(pause);
        }
    }

    /// Return the cores that this process may use.
    fn cores() -> Vec<usize> {
        // SAFETY: a zeroed set is an empty set, and the call writes no more than the set's size.
        let set = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
            set
        };
        // SAFETY: no number is beyond the set.
        (0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
    }

    /// Keep this thread on a core, before all others there if the kernel allows that.
    fn stay_on(core: usize) {
        // SAFETY: a zeroed set is an empty set, and the calls read nothing but it.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(core, &mut set);
            let done = libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
            assert_eq!(done, 0, "core {core}: {}", io::Error::last_os_error());
            libc::setpriority(libc::PRIO_PROCESS, 0, -20);
        }
    }

    fn now() -> f64 {
        // SAFETY: an all-zero timespec is valid, and the call writes to it alone.
        let time = unsafe {
            let mut time: libc::timespec = std::mem::zeroed();
            libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time);
            time
        };
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    }

    /// Return independent operations per cycle, and the clock in GHz.
    fn sample() -> (f64, f64) {
        let (mut independent, mut chain) = ([0.0; TURNS], [0.0; TURNS]);
        // The first use after a pause finds cold caches.
        independent_operations(INDEPENDENT_ROUNDS / 10);
        for turn in 0..TURNS {
            independent[turn] = seconds(|| independent_operations(INDEPENDENT_ROUNDS));
            chain[turn] = seconds(|| multiplications(CHAIN_ROUNDS));
        }
        // The chain can't take less than its cycles, so the fastest turn tells the clock. The independent operations
        // may be slow in some turns because the sibling works meanwhile, so the middle turn counts.
        let hertz = f64::from(CHAIN_ROUNDS * CHAIN_CYCLES) / sorted(chain)[0];
        let rate = f64::from(INDEPENDENT_ROUNDS * INDEPENDENT_OPERATIONS) / sorted(independent)[TURNS / 2];
        (rate / hertz, hertz / 1e9)
    }

    fn seconds(work: impl FnOnce()) -> f64 {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    }

    fn sorted(mut values: [f64; TURNS]) -> [f64; TURNS] {
        values.sort_by(f64::total_cmp);
        values
    }

    /// Do 32 operations a round, of which eight at a time don't depend on each other.
    fn independent_operations(rounds: u32) {
        // SAFETY: it changes nothing but the registers that are named.
        unsafe {
            asm!(
                "2:",
                ".rept 4",
                "xor {a}, {k}", "xor {b}, {k}", "xor {c}, {k}", "xor {d}, {k}",
                "xor {e}, {k}", "xor {f}, {k}", "xor {g}, {k}", "xor {h}, {k}",
                ".endr",
                "dec {n:e}",
                "jnz 2b",
                a = inout(reg) 1_u64 => _, b = inout(reg) 2_u64 => _, c = inout(reg) 3_u64 => _,
                d = inout(reg) 4_u64 => _, e = inout(reg) 5_u64 => _, f = inout(reg) 6_u64 => _,
                g = inout(reg) 7_u64 => _, h = inout(reg) 8_u64 => _, k = in(reg) 9_u64,
                n = inout(reg) rounds => _,
                options(nomem, nostack),
            );
        }
    }

    /// Do eight multiplications a round, each of the one before. One takes three cycles on x86-64.
    fn multiplications(rounds: u32) {
        // SAFETY: it changes nothing but the registers that are named.
        unsafe {
            asm!(
                "2:",
                ".rept 8", "imul {a}, {a}", ".endr",
                "dec {n:e}",
                "jnz 2b",
                a = inout(reg) 3_u64 => _,
                n = inout(reg) rounds => _,
                options(nomem, nostack),
            );
        }
    }
}

//! The threads: two a queue, each running to completion on a batch, one at the gate, and one that waits for timers.
//!
//! - Out: drain the device into a message a peer, seal, send.
//! - In: take the messages that wait, open, merge, write to the device.
//! - Gate: the same for what is no data message, on sockets of its own (`crate::steering`) and after all who move data.
//! - Timers: sleep until the next deadline of any peer.
//!
//! Before a thread sleeps it looks again for a while, where that pays ([`crate::spin`]).

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use transport::contract::{Event, Outbox};

use crate::descriptor::{TimerFd, now, wait};
use crate::io::Io;
use crate::udp_side::Patience;
use crate::{syscalls, uring};

/// How much later than others the thread at the gate is served, where not all can be (nice(2)).
const GATE_NICE: libc::c_int = 5;

/// Start the threads. Where one can't be started, those before it end again.
pub fn start(io: &Arc<Io>) -> io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let mut spawn = |name: String, task: Task| {
        let shared = Arc::clone(io);
        let thread = Builder::new().name(name).spawn(move || run(&shared, &task));
        threads.push(thread.inspect_err(|_| io.stop())?);
        Ok::<(), io::Error>(())
    };
    for queue in 0..io.queues.len() {
        let (outward, inward): (Direction, Direction) =
            if io.uring { (uring::out, uring::inward) } else { (syscalls::out, syscalls::inward) };
        spawn(format!("rg-out-{queue}"), Box::new(move |io| outward(io, queue)))?;
        spawn(format!("rg-in-{queue}"), Box::new(move |io| inward(io, queue)))?;
    }
    if !io.gate.is_empty() {
        spawn("rg-gate".into(), Box::new(gate))?;
    }
    spawn("rg-timers".into(), Box::new(timers))?;
    if io.xdp.is_some() {
        spawn("rg-routes".into(), Box::new(routes))?;
    }
    Ok(threads)
}

/// One direction of a queue.
type Direction = fn(&Io, usize) -> io::Result<()>;
/// What a thread does until it is time to stop.
type Task = Box<dyn Fn(&Io) -> io::Result<()> + Send>;

/// Run a thread's body. Whatever ends it early, a panic too, is told to Python and ends the others.
fn run(io: &Io, task: &Task) {
    block_signals();
    let why = match catch_unwind(AssertUnwindSafe(|| task(io))) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(panic) => Some(format!("a thread panicked: {}", panic_text(&*panic))),
    };
    if let Some(why) = why {
        io.put(Event::Fault { message: why, fatal: true });
    }
    io.stop();
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Signals are for Python's main thread.
fn block_signals() {
    // SAFETY: a sigset_t is plain bytes; sigfillset gives it a value before it is read, and no old one is written.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
    }
}

/// Be served after the others, and interrupt none of them to begin. Who may not change that stays as it is.
fn step_back() {
    // SAFETY: a sched_param is plain bytes, and all zeros is one of its values; the kernel reads it during the call.
    // Zero means the thread that calls.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters);
        libc::setpriority(libc::PRIO_PROCESS, 0, GATE_NICE);
    }
}

/// The thread at the gate.
fn gate(io: &Io) -> io::Result<()> {
    step_back();
    syscalls::gate(io)
}

/// Follow the kernel's routes and neighbours, as long as the interface of AF_XDP is there.
fn routes(io: &Io) -> io::Result<()> {
    let Some(xdp) = &io.xdp else { return Ok(()) };
    if !xdp.follow(io.stop.fd())? {
        io.note(&xdp.describe_end());
        wait([(io.stop.fd(), libc::POLLIN)], -1)?;
    }
    Ok(())
}

/// Do what is due, when it is.
fn timers(io: &Io) -> io::Result<()> {
    let timer = TimerFd::new()?;
    let mut outbox = Outbox::default();
    while io.goes_on() {
        let next = io.transport.poll_timeout().unwrap_or(f64::INFINITY);
        io.alarm.fall_asleep(next);
        // Who set an earlier deadline before it could see the line above is seen here.
        if io.transport.poll_timeout().unwrap_or(f64::INFINITY) == next {
            timer.set(next)?;
            wait([timer.fd(), io.alarm.fd(), io.stop.fd()].map(|fd| (fd, libc::POLLIN)), -1)?;
        }
        io.alarm.wake_up();
        io.transport.handle_timeout(now(), &mut outbox);
        io.dispatch(&mut outbox, 0, Patience::Some);
    }
    Ok(())
}

//! The threads: two per queue, one at the gate, one for timers. Each works on a batch until it is
//! done.
//!
//! - Out: drain the device into a message per peer, seal, send.
//! - In: take the messages that wait, open, merge, write to the device.
//! - Gate: the same for everything but data messages, on its own sockets (`crate::steering`), with
//!   a lower priority than the threads that move data.
//! - Timers: sleep until the next deadline of any peer.
//!
//! Before a thread sleeps it looks for work again for a while, if that pays ([`crate::spin`]).

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use transport::contract::{Event, Outbox};

use crate::descriptor::{TimerFd, block_signals, now, wait};
use crate::io::Io;
use crate::sources::Sources;
use crate::udp_side::Patience;
use crate::{syscalls, uring};

/// The nice(2) value of the thread at the gate: the threads that move data are served first.
const GATE_NICE: libc::c_int = 5;

/// Milliseconds between two looks at what changed in the system's network.
const NEWS_PAUSE: libc::c_int = 10;

/// Start the threads. If one can't be started, those that run end again.
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

/// Run a thread's task. If it ends early, also by a panic, report that to Python and end the other
/// threads.
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

/// Have this thread served after the others, without interrupting them. Without the right to do so
/// nothing changes.
fn step_back() {
    // SAFETY: a sched_param is plain bytes, and all zeros is one of its values. The kernel reads it
    // during the call. Zero means the calling thread.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters);
        libc::setpriority(libc::PRIO_PROCESS, 0, GATE_NICE);
    }
}

/// Run the gate with a low priority.
fn gate(io: &Io) -> io::Result<()> {
    step_back();
    syscalls::gate(io)
}

/// Follow the kernel's routes and neighbours while the interface of AF_XDP exists.
fn routes(io: &Io) -> io::Result<()> {
    let Some(xdp) = &io.xdp else { return Ok(()) };
    if !xdp.follow(io.stop.fd())? {
        io.note(&xdp.describe_end());
        wait([(io.stop.fd(), libc::POLLIN)], -1)?;
    }
    Ok(())
}

/// Do what is due at each deadline. Notice other routes, and whether the interface is up.
fn timers(io: &Io) -> io::Result<()> {
    let timer = TimerFd::new()?;
    let mut outbox = Outbox::default();
    let news = io.sources.as_ref().map_or(-1, Sources::fd);
    // News come in crowds: after each look there is a pause.
    let mut pausing = false;
    let device = &io.queues[0].device;
    while io.goes_on() {
        io.roll.timers.answer();
        io.transport.set_up(device.is_up(), now(), &mut outbox);
        io.dispatch(&mut outbox, 0, Patience::Some);
        let next = io.transport.poll_timeout().unwrap_or(f64::INFINITY);
        io.alarm.fall_asleep(next);
        // A thread that set an earlier deadline before it could see the sleep noted above is
        // noticed here.
        if io.transport.poll_timeout().unwrap_or(f64::INFINITY) == next {
            timer.set(next)?;
            let heard = [timer.fd(), io.alarm.fd(), io.stop.fd(), if pausing { -1 } else { news }];
            let [timer, alarm, stop, news] = heard.map(|fd| (fd, libc::POLLIN));
            let up = if io.transport.is_down() { device.up_fd() } else { (-1, 0) };
            let ready = wait(
                [timer, alarm, stop, news, up, (io.roll.timers.fd(), libc::POLLIN)],
                if pausing { NEWS_PAUSE } else { -1 },
            )?;
            pausing = ready & 1 << 3 != 0;
            if let (true, Some(sources)) = (pausing, &io.sources) {
                sources.renew();
            }
        }
        io.alarm.wake_up();
        io.transport.handle_timeout(now(), &mut outbox);
        io.dispatch(&mut outbox, 0, Patience::Some);
    }
    Ok(())
}

//! Writing to the device: which packets are merged, and what happens when the kernel refuses them.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

use transport::coalesce::{Inner, Merge, Run, next_run};
use transport::vnet::MAX_SEGMENTS;

use crate::descriptor::error_word;
use crate::device::{Device, is_full};
use crate::io::Io;
use crate::offloads::refuses;

impl Io {
    /// Write packets to a device, merged where possible.
    pub fn deliver(&self, device: &dyn Device, buffer: &[u8], packets: &[Inner]) {
        let mut rest = packets;
        while !rest.is_empty() {
            let run = self.next_run(buffer, rest);
            let (mine, others) = rest.split_at(run.count);
            let mut frame = [IoSlice::new(run.head()); MAX_SEGMENTS + 1];
            for (piece, one) in frame[1..].iter_mut().zip(mine) {
                *piece = IoSlice::new(&buffer[one.at + run.skip..one.at + one.size]);
            }
            if let Err(error) = device.write(&mut frame[..=run.count]) {
                self.refused_write(device, buffer, mine, &run, &error);
            }
            rest = others;
        }
        if !packets.is_empty() {
            device.flush();
        }
    }

    /// Return what to write next from `packets`: several as one superpacket, unless the kernel has
    /// refused such a one before.
    pub fn next_run(&self, buffer: &[u8], packets: &[Inner]) -> Run {
        next_run(buffer, packets, self.merging.now())
    }

    /// Handle a run of packets that the device refused: write the packets of a superpacket one by
    /// one.
    pub fn refused_write(&self, device: &dyn Device, buffer: &[u8], packets: &[Inner], run: &Run, error: &io::Error) {
        if packets.len() == 1 || !refuses(error) {
            self.count_refused(device, packets.len(), error);
            return;
        }
        let mut any = false;
        for packet in packets {
            let single = next_run(buffer, std::slice::from_ref(packet), Merge::NONE);
            let mut frame = [single.head(), packet.of(buffer)].map(IoSlice::new);
            match device.write(&mut frame) {
                Ok(()) => any = true,
                Err(error) => self.count_refused(device, 1, &error),
            }
        }
        // If all were refused, the reason isn't that they were merged.
        if any {
            self.merge_less(run);
        }
    }

    /// Count packets that the device refused: it is full or down, or doesn't want such a packet. The
    /// plane goes on.
    fn count_refused(&self, device: &dyn Device, packets: usize, error: &io::Error) {
        if is_full(error) {
            // May be so for each packet of a flood, and the counters by name have a lock.
            self.counters.full.fetch_add(packets as u64, Ordering::Relaxed);
        } else {
            self.transport.drops.count_other(format!("{}_{}", device.kind(), error_word(error)));
        }
    }

    /// Handle an error of a read: if the device can't hand over superpackets, go on without them.
    /// Return false if that isn't the reason.
    pub fn refused_read(&self, device: &dyn Device, error: &io::Error) -> bool {
        let other = refuses(error) && device.end_offloads();
        if other {
            self.note(&format!(
                "The kernel refused to hand over a packet ({error}): it gives no superpackets any more."
            ));
        }
        other
    }

    /// Merge no more packets of the kind that the kernel has refused.
    fn merge_less(&self, run: &Run) {
        if run.short_tail && self.merging.now().short_tail {
            self.merging.end_short_tails();
            self.note("The kernel refused a superpacket with a shorter last packet: such a packet goes by itself.");
        } else {
            self.merging.end();
            self.note("The kernel refused a superpacket: packets go to the interface one by one.");
        }
    }
}

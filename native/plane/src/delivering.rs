//! Writing to the device: which packets are merged, and what happens when the kernel refuses them.

use std::io;
use std::iter::once;

use transport::coalesce::{Inner, Merge, Run, next_run};

use crate::descriptor::error_word;
use crate::io::Io;
use crate::offloads::refuses;
use crate::tun::Tun;

impl Io {
    /// Return what to write next from `packets`: several as one superpacket, unless the kernel has
    /// refused such a one before.
    pub fn next_run(&self, buffer: &[u8], packets: &[Inner]) -> Run {
        next_run(buffer, packets, self.merging.now())
    }

    /// Handle a run of packets that the device refused: write the packets of a superpacket one by
    /// one.
    pub fn refused_write(&self, tun: &Tun, buffer: &[u8], packets: &[Inner], run: &Run, error: &io::Error) {
        if packets.len() == 1 || !refuses(error) {
            // The interface is down, or doesn't want such a packet. The plane goes on.
            self.transport.drops.count_other(format!("interface_{}", error_word(error)));
            return;
        }
        let mut any = false;
        for packet in packets {
            let single = next_run(buffer, std::slice::from_ref(packet), Merge::NONE);
            match tun.write(single.head(), once(packet.of(buffer))) {
                Ok(()) => any = true,
                Err(error) => self.transport.drops.count_other(format!("interface_{}", error_word(&error))),
            }
        }
        // If all were refused, the reason isn't that they were merged.
        if any {
            self.merge_less(run);
        }
    }

    /// Handle an error of a read: if the device can't hand over superpackets, go on without them.
    /// Return false if that isn't the reason.
    pub fn refused_read(&self, tun: &Tun, error: &io::Error) -> bool {
        let other = refuses(error) && tun.end_offloads();
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

//! What is due at a time: keepalives, handshakes with peers that don't answer, and moves to report.

use super::Transport;
use crate::contract::{NEVER, Outbox, Reason, Seconds};

impl Transport {
    /// Do what is due at `now`.
    pub fn handle_timeout(&self, now: Seconds, out: &mut Outbox) {
        let mut due = Vec::new();
        while let Some((at, peer)) = self.deadlines.pop(now) {
            if self.deadlines.is_due(at, &peer, &mut peer.state().liveness, now) {
                due.push(peer);
            }
        }
        for peer in due {
            let mut state = peer.state();
            if state.removed {
                continue;
            }
            if state.liveness.keepalive_at <= now {
                state.liveness.keepalive_ran_out(now);
                let again = state.liveness.keepalive_at;
                self.send_keepalive(&peer, &mut state, now, out);
                state.liveness.keepalive_at = again;
            }
            if state.liveness.no_answer_at <= now {
                state.liveness.no_answer_at = NEVER;
                state.forget_local();
                self.want(&peer, &mut state, Reason::NoAnswer, now, out);
            }
            if state.liveness.persistent_at <= now {
                self.persistent_keepalive(&peer, &mut state, now, out);
            }
            if state.liveness.report_at <= now {
                Self::report_move(&peer, &mut state, now, out);
            }
            self.deadlines.schedule(&peer, &mut state.liveness);
        }
    }

    /// Return when to call [`Self::handle_timeout`] at the latest.
    pub fn poll_timeout(&self) -> Option<Seconds> {
        self.deadlines.next()
    }
}

"""WireGuard's limits and timers (whitepaper section 6.1), in seconds and messages, with the paper's names."""

from __future__ import annotations

# Whitepaper section 6.1, in seconds and messages, with the paper's names.
REKEY_AFTER_MESSAGES = 2**60


REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1


REKEY_AFTER_TIME = 120.0


REJECT_AFTER_TIME = 180.0


REKEY_ATTEMPT_TIME = 90.0


REKEY_TIMEOUT = 5.0


KEEPALIVE_TIMEOUT = 10.0


# A datagram received by the initiator this close to REJECT_AFTER_TIME starts a new handshake (section 6.2).
REKEY_AFTER_TIME_RECEIVING = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT

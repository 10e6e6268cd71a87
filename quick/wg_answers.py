"""wg(8) on a tunnel that `up` made: what hooks ask and set with `wg show %i`, `wg set %i` and `wg syncconf %i`."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

from rustguard_py.daemon.uapi.apply import Settings, apply, peers_of
from rustguard_py.daemon.uapi.protocol import DeviceChange, DeviceState, UapiError
from rustguard_py.daemon.uapi.socket import show
from rustguard_py.quick.running import Life, Running
from rustguard_py.tunnel import Tunnel

log = logging.getLogger(__name__)


class WgAnswers:
    """The answers for one tunnel.

    Everything can be changed but the mark of a tunnel with a default route, on which its rules depend. The file stays
    as it is. A second `up` changes only what differs in the file, so it leaves these changes alone.

    Args:
        life: The life of the tunnel.
        running: The tunnel.
        tunnel: The tunnel itself, which is not the kernel's.
    """

    def __init__(self, life: Life, running: Running, tunnel: Tunnel) -> None:
        self._life = life
        self._running = running
        self._tunnel = tunnel

    def show(self) -> DeviceState:
        """Return the state that wg(8) shows."""
        return show(self._tunnel, self._settings())

    def change(self, change: DeviceChange) -> None:
        """Apply a change, all of it or nothing. `apply` documents more errors.

        Raises:
            UapiError: EPERM: the rules of the default route need the mark. EBUSY: the file is being applied.
        """
        running, before = self._running, self._settings()
        # The hooks of the end may use wg(8) too.
        if self._life.changing.locked() and self._life.ending is None:
            raise UapiError(errno.EBUSY, "the changed file is just being applied")
        change = change.without_omissions()
        if change.fwmark not in (None, before.fwmark) and running.scheme.priorities:
            raise UapiError(
                errno.EPERM, f"the mark stays {before.fwmark}, because the rules of the default route are made for it"
            )
        after = apply(self._tunnel, before, change)
        running.plain.settings_changed(after, {each.public_key for each in change.peers if each.endpoint is not None})
        running.scheme = replace(running.scheme, mark=after.fwmark)
        if after.port != before.port:
            running.port = after.port
            running.plain.send_keepalives()
        log.info("%s was changed with wg(8)", running.interface)
        if answered := running.answer_on_link():
            log.info("%s", answered)

    def _settings(self) -> Settings:
        running = self._running
        return Settings(running.plain.private_key, running.port, running.scheme.mark, peers_of(self._tunnel))


class KilledAnswers:
    """The answers for a tunnel that was killed, while its PreDown and PostDown run.

    Args:
        mark: The mark that it had, 0 for none.
    """

    def __init__(self, mark: int) -> None:
        self._mark = mark

    def show(self) -> DeviceState:
        """Return what is known of it: the mark, for the rules of a kill switch."""
        return DeviceState(None, 0, self._mark)

    def change(self, _change: DeviceChange, /) -> None:
        """Refuse a change.

        Raises:
            UapiError: ENODEV: the tunnel is gone.
        """
        raise UapiError(errno.ENODEV, "The tunnel was killed.")

"""A running server's door for version 1: who knows that token gets an address, saved before it is told."""

from __future__ import annotations

import logging
import os
import secrets
import time
from base64 import b32encode
from collections.abc import Callable
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING

from rustguard_py.enroll import report, v1
from rustguard_py.enroll.registry import Admitted
from rustguard_py.errors import UsageError
from rustguard_py.noise import NO_PRESHARED_KEY
from rustguard_py.planes.contract import Endpoint
from rustguard_py.state.files import Files, read_private, sync_directory, unusable, write_fresh
from rustguard_py.state.records import PeerRecord

if TYPE_CHECKING:
    from rustguard_py.enroll.server import Server

log = logging.getLogger(__name__)

TOKEN_FILE = "v1-token"  # noqa: S105 - a file's name
# 80 bits even where each character is one of base32's.
_LEAST_CHARACTERS = 16
_LEAST_DIFFERENT = 8
# 120 bits.
_GENERATED_BYTES = 15


def kept_token(directory: Path) -> str:
    """Give the token in `v1-token` of the state directory; the first time, one is made.

    Raises:
        UsageError: Somebody wrote one there that a recorder would find.
        StateError: The file can't be read or written.
    """
    files, path = Files(), directory / TOKEN_FILE
    try:
        content = read_private(files, path)
        if content is None:
            content = b32encode(secrets.token_bytes(_GENERATED_BYTES)).lower() + b"\n"
            files.close(write_fresh(files, path, content))
            sync_directory(files, directory)
    except OSError as error:
        raise unusable("used", path, error) from error
    return check_token(content.decode(errors="replace").strip())


def check_token(token: str) -> str:
    """Give it back if it is long enough.

    Raises:
        UsageError: Who records one version-1 pairing could find it by trying.
    """
    if len(token) < _LEAST_CHARACTERS or len(set(token)) < _LEAST_DIFFERENT:
        raise UsageError(
            "The token for version 1 is too easily found: who records one pairing can try all that are like it.",
            f"Leave it out (or remove {TOKEN_FILE} from the state directory): one of 120 bits is then made and kept.",
        )
    return token


class V1Door:
    """Lets in who knows the token, while the window is open.

    Args:
        server: Whose peers they become.
        token: Of 80 bits at least.
        send: Sends a datagram to where it should go.
    """

    def __init__(self, server: Server, token: str, send: Callable[[Endpoint, bytes], None]) -> None:
        self._server = server
        self._send = send
        self._protocol = v1.Server(token, server.window, os.urandom)
        self._admitting: set[bytes] = set()

    async def handle(self, datagram: bytes, source: Endpoint, at: float) -> None:
        """Take a datagram that begins with `v1.REQUEST`."""
        public_key = self._protocol.handle(datagram, source, at)
        # What comes again while it is being saved is answered when it comes once more.
        if public_key is None or public_key in self._admitting:
            return
        self._admitting.add(public_key)
        try:
            record = await self._admit(public_key, source)
        except Exception:
            log.exception("internal error: a version-1 join could not be answered")
            return
        finally:
            self._admitting.discard(public_key)
        if record is not None and record.address4 is not None:
            address = IPv4Interface((record.address4, self._server.state.pool4.prefixlen))
            self._send(source, self._protocol.response(self._server.public_key, address))

    async def _admit(self, public_key: bytes, source: Endpoint) -> PeerRecord | None:
        server = self._server
        known = server.state.peers.get(public_key)
        if known is not None:
            # Who has a preshared key came by version 2; an old request must not take it away.
            return known if known.preshared_key == NO_PRESHARED_KEY else None
        # No endpoint: the source isn't proven. The client begins the handshake, and that is proof.
        admitted = server.registry.admit(public_key, "", NO_PRESHARED_KEY, "", time.time())
        where = report.endpoint_text(source)
        if not isinstance(admitted, Admitted):
            log.warning("a version-1 join from %s was refused: %s", where, admitted)
            return None
        if not await server.saver.durable(admitted.undo):
            return None
        server.put_in(admitted.record, with_endpoint=False)
        log.info("%s joined from %s as %s, by version 1", admitted.record.name, where, admitted.record.address4)
        return admitted.record

"""States to back up and to restore: a server, a client, and a machine that has both."""

from __future__ import annotations

from hashlib import sha256
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from rustguard_py.state import restore
from rustguard_py.state.backup import Backup, Places
from rustguard_py.state.client_records import ClientState, NetworkRecord
from rustguard_py.state.document import Document
from rustguard_py.state.durable_files import Files
from rustguard_py.state.journal import TimestampJournal
from rustguard_py.state.records import PeerRecord, ServerState

DEFAULTS = "# only comments\n\n  # here\n"


def a_server(peers: int) -> ServerState:
    own = sha256(b"server").digest()
    state = ServerState(own, own[::-1], IPv4Network("10.9.0.0/24"), None, 51820, 1420)
    for number in range(peers):
        key = sha256(b"%d" % number).digest()
        address = IPv4Address("10.9.0.2") + number
        state.peers[key] = PeerRecord(f"peer {number}", key, key[::-1], address, None, 1.5e9, None)
    return state


def a_client(host: str = "home.example") -> ClientState:
    key = sha256(host.encode()).digest()
    address = IPv4Interface("10.9.0.7/24")
    gateway = IPv4Address("10.9.0.1")
    network = NetworkRecord(host, 51820, key, key[::-1], "laptop", address, None, (), 1420, 25, gateway, None, 1.5e9)
    return ClientState(sha256(b"client").digest(), (network,))


def save(directory: Path, state: ServerState | ClientState, files: Files | None = None) -> None:
    document = Document.open(directory, files)
    document.load()
    document.save(state.to_json())
    document.close()


def stamp(directory: Path, key: bytes, number: int) -> None:
    journal = TimestampJournal.open(directory)
    journal.record(key, number.to_bytes(12))
    journal.close()


def loaded(directory: Path) -> dict[str, object] | None:
    document = Document.open(directory)
    try:
        return document.load()
    finally:
        document.close()


def places(above: Path) -> Places:
    for name in ("state", "etc", "default"):
        (above / name).mkdir(parents=True, exist_ok=True)
    return Places(above / "state", above / "etc", above / "default")


def tree(above: Path) -> dict[str, bytes]:
    """Return the content of all files but the locks, by their paths."""
    return {
        str(path.relative_to(above)): path.read_bytes()
        for path in above.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def a_machine(above: Path) -> Places:
    """A machine with a server, a client, a tunnel, a service's token, and variables of services."""
    found = places(above)
    save(found.state / "server", a_server(1))
    save(found.state / "server", a_server(2))
    stamp(found.state / "server", b"k" * 32, 5)
    (found.state / "server/audit.jsonl").write_text('{"event":"joined"}\n{"event":"half')
    (found.state / "server/audit.jsonl.1").write_text('{"event":"older"}\n')
    save(found.state / "client", a_client())
    (found.state / "client.log").write_text("a log\n")
    (found.state / "tunnels/wg0").mkdir(parents=True, mode=0o700)
    stamp(found.state / "tunnels/wg0", b"t" * 32, 9)
    (found.state / "tunnels/wg0/undo.json").write_text("{}")
    for path in [*found.state.rglob("audit.*"), *found.state.rglob("undo.json")]:
        path.chmod(0o600)
    assert found.settings is not None
    assert found.defaults is not None
    (found.settings / "rustguard-serve.token").write_text("maple-comet\n")
    (found.settings / "rustguard-serve.token").chmod(0o600)
    (found.settings / "home.conf").write_text("[Interface]\n")
    (found.settings / "home.conf").chmod(0o644)
    (found.defaults / "rustguard").write_text("RUSTGUARD_LOG=debug\n")
    (found.defaults / "grub").write_text("not ours\n")
    return found


def again(taken: Backup) -> Backup:
    return Backup.decode(taken.encode())


def do(taken: Backup, where: Places, *, overwrite: bool = False, files: Files | None = None) -> None:
    restore.carry_out(restore.plan(taken, where, overwrite=overwrite), files)

"""Giving up privileges, each time in a process of its own: nothing brings them back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rustguard_py.engine import has_native
from rustguard_py.sandbox import writing
from support import refusing
from support.other_user import NOBODY

START = """
import ctypes, json, os, sys, threading
from pathlib import Path
from rustguard_py.sandbox import capabilities
from rustguard_py.sandbox.capabilities import Capability
from rustguard_py.sandbox.privileges import Needs, give_up

def task():
    lines = dict(line.split(":\\t", 1) for line in Path("/proc/thread-self/status").read_text().splitlines())
    sets = {name: int(lines[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    return {**sets, "NoNewPrivs": int(lines["NoNewPrivs"])}

def later():
    found = []
    thread = threading.Thread(target=lambda: found.append(task()))
    thread.start()
    thread.join()
    return found[0]

def say(report, **more):
    print(json.dumps({"applied": report.applied, "refused": report.refused, **more}))
"""
ADMIN = 1 << 12


def child(script: str, *, under: Sequence[str] = ()) -> dict[str, Any]:
    argv = [*under, sys.executable, "-P", "-c", START + script]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_is_given_up_is_gone_also_for_threads_and_programs_that_start_later(tmp_path: Path) -> None:
    found = child(
        f"file = Path({str(tmp_path / 'file')!r})\n"
        "file.touch()\n"
        "before = task()\n"
        "report = give_up(Needs({Capability.NET_ADMIN}))\n"
        "refused = []\n"
        "for name, attempt in {\n"
        "    'chown': lambda: os.chown(file, 65534, 65534),\n"
        "    'setuid': lambda: os.setuid(65534),\n"
        "    'chroot': lambda: os.chroot('/tmp'),\n"
        "    'nice': lambda: os.nice(-5),\n"
        "}.items():\n"
        "    try:\n"
        "        attempt()\n"
        "    except PermissionError:\n"
        "        refused.append(name)\n"
        "program = os.popen('cat /proc/self/status').read()\n"
        "say(report, before=before, now=task(), later=later(), program=program, tried=refused)\n"
    )
    kept = found["before"]["CapPrm"] & ADMIN
    lasting = found["before"]["CapBnd"] & ADMIN if found["before"]["CapPrm"] >> 8 & 1 else found["now"]["CapBnd"]
    for task in (found["now"], found["later"]):
        assert (task["CapPrm"], task["CapEff"], task["NoNewPrivs"]) == (kept, kept, 1)
        assert task["CapBnd"] == lasting
        assert (task["CapInh"] | task["CapAmb"]) & ~ADMIN == 0
    assert f"CapPrm:\t{kept:016x}" in found["program"]
    assert set(found["tried"]) == {"chown", "setuid", "chroot", "nice"}
    assert found["applied"] == ["capabilities: CAP_NET_ADMIN" if kept else "capabilities: none", "no new privileges"]


def test_a_thread_that_began_earlier_is_reported() -> None:
    found = child(
        "hold = threading.Event()\n"
        "thread = threading.Thread(target=hold.wait)\n"
        "thread.start()\n"
        "report = give_up(Needs(set()))\n"
        "hold.set()\n"
        "say(report)\n"
    )
    assert "Threads that began earlier keep their capabilities: 1." in found["refused"]


@pytest.mark.needs_second_uid
def test_cap_dac_override_stays_only_where_a_place_can_not_be_used_without_it(tmp_path: Path) -> None:
    ours, theirs, mixed = tmp_path / "ours", tmp_path / "theirs", tmp_path / "mixed"
    for place in (ours, theirs, mixed):
        place.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    (mixed / "state.json").touch(0o600)
    os.chown(mixed / "state.json", NOBODY, NOBODY)
    for place, kept in ((ours, False), (theirs, True), (mixed, True)):
        found = child(
            f"place = Path({str(place)!r})\n"
            "report = give_up(Needs({Capability.NET_ADMIN}, [place]))\n"
            "(place / 'made').write_text('x')\n"
            "for each in place.iterdir():\n"
            "    each.read_text()\n"
            "say(report, now=task())\n"
        )
        assert (found["now"]["CapPrm"] >> 1 & 1) == kept, place
        assert ("CAP_DAC_OVERRIDE" in found["applied"][0]) == kept


@pytest.mark.needs_second_uid
def test_a_bounding_set_that_can_not_be_changed_is_reported_and_the_rest_is_given_up() -> None:
    found = child(
        "everything, _, _ = capabilities._read()\n"
        "without = everything & ~(1 << 8)\n"
        "capabilities._write(without, without, 0)\n"
        "report = give_up(Needs({Capability.NET_ADMIN}))\n"
        "say(report, now=task())\n"
    )
    assert found["refused"] == ["The bounding set of capabilities stays as it is: Operation not permitted."]
    assert found["now"]["CapPrm"] == ADMIN
    assert found["now"]["NoNewPrivs"] == 1


REFUSE = """
import errno, platform, socket, subprocess
from rustguard_py.sandbox.system_calls import refuse
libc = ctypes.CDLL(None, use_errno=True)
# The numbers are the same on every processor, but for those that are asked by name.
X86 = platform.machine() == "x86_64"
NUMBERS = {
    "ptrace": 101 if X86 else 117, "mount": 165 if X86 else 40, "bpf": 321 if X86 else 280,
    "init_module": 175 if X86 else 105, "unshare": 272 if X86 else 97, "setns": 308 if X86 else 268,
    "pivot_root": 155 if X86 else 41, "kexec_load": 246 if X86 else 104, "keyctl": 250 if X86 else 219,
    "open_by_handle_at": 304 if X86 else 265, "io_uring_setup": 425, "perf_event_open": 298 if X86 else 241,
    "clone3": 435, "userfaultfd": 323 if X86 else 282, "capset": 126 if X86 else 91,
}
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *map(ctypes.c_long, arguments))
    return errno.errorcode.get(ctypes.get_errno(), "") if result < 0 else "done"
"""


@pytest.mark.skipif(not has_native(), reason="the filter is in the native engine, which isn't built here")
@pytest.mark.parametrize("option", ["", "uring", "xdp"])
def test_dangerous_system_calls_are_refused_and_the_rest_goes_on(option: str) -> None:
    found = child(
        f"{REFUSE}\n"
        "capabilities.gain_nothing()\n"
        f"report = refuse(uring={option == 'uring'}, xdp={option == 'xdp'})\n"
        "tried = {name: call(number, 0, 0, 0, 0, 0) for name, number in NUMBERS.items()}\n"
        # CLONE_NEWUSER with SIGCHLD.
        "tried['clone'] = call(56 if X86 else 220, 0x10000011, 0, 0, 0, 0)\n"
        "if X86:\n"
        "    tried['x32'] = call(0x40000000 | 39)\n"
        "for name in ('AF_PACKET', 'AF_VSOCK', 'AF_ALG'):\n"
        "    try:\n"
        "        socket.socket(getattr(socket, name), socket.SOCK_DGRAM).close()\n"
        "    except OSError as error:\n"
        "        tried[name] = errno.errorcode[error.errno]\n"
        "try:\n"
        "    subprocess.run(['true'])\n"
        "except PermissionError:\n"
        "    tried['exec'] = 'EPERM'\n"
        "for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):\n"
        "    socket.socket(family, socket.SOCK_DGRAM).close()\n"
        "socket.getaddrinfo('localhost', 1)\n"
        "say(report, tried=tried, seccomp=Path('/proc/self/status').read_text(), later=later())\n"
    )
    tried = found["tried"]
    assert tried.pop("clone3") == "ENOSYS"
    # What the option needs answers as it does without a filter, to arguments that are wrong.
    allowed = {"uring": "io_uring_setup", "xdp": "bpf"}.get(option)
    if allowed is not None:
        assert tried.pop(allowed) != ""
    assert {name: how for name, how in tried.items() if how != "EPERM"} == {}
    assert len(tried) >= 19 - (allowed is not None)
    assert "Seccomp:\t2" in found["seccomp"]
    assert found["applied"][0].endswith(" system calls refused")
    assert found["refused"] == []


def test_without_the_native_engine_it_is_reported_that_no_call_is_refused() -> None:
    found = child(
        "sys.modules['rustguard_py._native'] = None\n"
        "from rustguard_py.sandbox.system_calls import refuse\n"
        "say(refuse(uring=False, xdp=False))\n"
    )
    assert found["applied"] == []
    assert found["refused"] == [
        "No system call is refused: this installation has no native engine, which brings the filter."
    ]


@pytest.mark.skipif(not has_native(), reason="the filter is in the native engine, which isn't built here")
def test_a_filter_that_the_kernel_refuses_is_reported() -> None:
    """As where a container's own filter refuses seccomp(2): here, for want of no_new_privs and CAP_SYS_ADMIN."""
    found = child(
        "from rustguard_py.sandbox.system_calls import refuse\n"
        "capabilities.keep_only(set())\n"
        "say(refuse(uring=False, xdp=False))\n"
    )
    assert found["refused"] == ["No system call is refused: Permission denied."]


@pytest.mark.skipif(not has_native(), reason="the filter is in the native engine, which isn't built here")
def test_the_filter_is_set_below_that_of_a_unit_which_permits_no_seccomp() -> None:
    found = child(
        f"{REFUSE}\n"
        "report = refuse(uring=False, xdp=False)\n"
        "say(report, tried=[call(NUMBERS['mount'], 0, 0, 0, 0, 0), call(NUMBERS['clone3'], 0, 0)])\n",
        under=[sys.executable, refusing.__file__, "seccomp"],
    )
    assert found["refused"] == []
    assert found["tried"] == ["EPERM", "ENOSYS"]


LIMIT = """
import socket, errno
from rustguard_py.sandbox.writing import Places, limit

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
"""
needs_landlock = pytest.mark.skipif(writing.why_not() is not None, reason=f"{writing.why_not()}")


@needs_landlock
def test_files_are_written_in_permitted_places_alone_also_by_threads_that_start_later(tmp_path: Path) -> None:
    for name in ("ours", "theirs", "settings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    found = child(
        f"{LIMIT}\n"
        f"root = Path({str(tmp_path)!r})\n"
        "capabilities.gain_nothing()\n"
        "before = open(root / 'theirs/file', 'a')\n"
        "report = limit(Places([root / 'ours'], [root / 'settings', root / 'missing'], [Path('/dev/null')]))\n"
        "def try_all():\n"
        "    return {name: outcome(attempt) for name, attempt in {\n"
        "        'ours': lambda: (root / 'ours/new').write_text('y'),\n"
        "        'ours again': lambda: (root / 'ours/new').rename(root / 'ours/file'),\n"
        "        'settings': lambda: (root / 'settings/file').write_text('y'),\n"
        "        'device': lambda: os.close(os.open('/dev/null', os.O_WRONLY)),\n"
        "        'opened before': lambda: os.write(before.fileno(), b'y'),\n"
        "        'read': (root / 'theirs/file').read_text,\n"
        "        'settings more': lambda: (root / 'settings/new').touch(),\n"
        "        'settings less': (root / 'settings/file').unlink,\n"
        "        'directory': (root / 'ours/directory').mkdir,\n"
        "        'socket': lambda: socket.socket(socket.AF_UNIX).bind(str(root / 'ours/socket')),\n"
        "        'theirs': lambda: (root / 'theirs/file').write_text('y'),\n"
        "        'theirs more': lambda: (root / 'theirs/new').touch(),\n"
        "        'theirs less': (root / 'theirs/file').unlink,\n"
        "        'in between': (root / 'between').touch,\n"
        "    }.items()}\n"
        "results = [try_all()]\n"
        "thread = threading.Thread(target=lambda: results.append(try_all()))\n"
        "thread.start()\n"
        "thread.join()\n"
        "say(report, results=results)\n"
    )
    assert found["applied"] == ["writing only to its own files"]
    # Before Linux 6.12.
    assert not found["refused"] or found["refused"][0].startswith("This kernel is too old to refuse: ")
    permitted = {"ours", "ours again", "settings", "device", "opened before", "read"}
    assert len(found["results"]) == 2
    for result in found["results"]:
        assert {name for name, how in result.items() if how == "done"} == permitted
        assert {how for name, how in result.items() if name not in permitted} == {"EACCES"}
    assert (tmp_path / "theirs/file").read_text() == "xyy"


@needs_landlock
def test_modes_and_owners_stay_where_writing_is_limited(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    found = child(
        f"{LIMIT}\n"
        f"file = {str(tmp_path / 'file')!r}\n"
        "from rustguard_py.sandbox.system_calls import refuse\n"
        "capabilities.gain_nothing()\n"
        "report = refuse(uring=False, xdp=False, modes=True)\n"
        "opened = os.open(file, os.O_RDWR)\n"
        "say(report, tried=[outcome(each) for each in (\n"
        "    lambda: os.chmod(file, 0o4777),\n"
        "    lambda: os.chmod(file, 0o4777, follow_symlinks=True),\n"
        "    lambda: os.fchmod(opened, 0o4777),\n"
        "    lambda: os.chown(file, os.getuid(), -1),\n"
        "    lambda: os.lchown(file, os.getuid(), -1),\n"
        "    lambda: os.fchown(opened, os.getuid(), -1),\n"
        "    lambda: os.setxattr(file, 'user.x', b'y'),\n"
        "    lambda: os.setxattr(opened, 'user.x', b'y'),\n"
        "    lambda: os.removexattr(file, 'user.x'),\n"
        ")])\n"
    )
    assert found["tried"] == ["EPERM"] * 9
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


def test_without_the_native_engine_it_is_reported_that_writing_is_not_limited() -> None:
    found = child(
        "sys.modules['rustguard_py._native'] = None\n"
        "from rustguard_py.sandbox import writing\n"
        "say(writing.not_limited(writing.why_not()))\n"
    )
    assert found["refused"] == [
        "Writing to other files isn't refused: this installation has no native engine, which brings the rules."
    ]


@pytest.mark.skipif(not has_native(), reason="the rules are in the native engine, which isn't built here")
def test_a_kernel_without_landlock_is_reported() -> None:
    """As before Linux 5.13: here a filter refuses the system calls."""
    found = child(
        "from rustguard_py.sandbox import writing\nsay(writing.not_limited(str(writing.why_not())))\n",
        under=[sys.executable, refusing.__file__, "landlock"],
    )
    assert found["refused"] == [
        "Writing to other files isn't refused: there is no Landlock here; it came with Linux 5.13, may be switched "
        "off, and containers may refuse it."
    ]


@needs_landlock
def test_rules_that_the_kernel_refuses_are_reported() -> None:
    """For want of no_new_privs, where it can't be set."""
    found = child(
        f"{LIMIT}\nsay(limit(Places([Path('/tmp')])))\n",
        under=[sys.executable, refusing.__file__, "landlock_restrict_self"],
    )
    assert found["applied"] == []
    assert found["refused"][0].startswith("Writing to other files isn't refused: ")


@pytest.mark.parametrize(
    ("version", "later"),
    [
        (1, "cutting off files elsewhere (Linux 6.2), settings of other devices (Linux 6.10), signals to other "),
        (4, "settings of other devices (Linux 6.10), signals to other processes (Linux 6.12)."),
        (6, None),
    ],
)
def test_what_an_older_kernel_does_not_refuse_is_reported(version: int, later: str | None) -> None:
    found = child(
        "from types import SimpleNamespace\n"
        f"native = SimpleNamespace(restrict_writing=lambda **_: {version})\n"
        "sys.modules['rustguard_py._native'] = native\n"
        "from rustguard_py.sandbox.writing import Places, limit\n"
        "say(limit(Places()))\n"
    )
    assert found["applied"] == ["writing only to its own files"]
    assert [each.partition("refuse: ")[2][: len(later or "")] for each in found["refused"]] == (
        [] if later is None else [later]
    )

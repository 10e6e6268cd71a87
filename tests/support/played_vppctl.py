"""`vppctl`, played by a script: it keeps what it is told in a file, and refuses what is there already."""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python} -SE
import json, pathlib, sys
here = pathlib.Path({folder!r})
words = sys.argv[1:]
line = " ".join(words)
with (here / "said").open("a") as said:
    said.write(line + "\\n")
if (here / "down").exists():
    sys.exit("clib_socket_init: connect (fd 3, '/run/vpp/cli.sock'): Connection refused")
kept = here / "kept.json"
state = json.loads(kept.read_text()) if kept.exists() else []
refused = here / "refused"
if refused.exists() and line.startswith(refused.read_text()):
    print("create: a problem of the tests")
elif line == "show memif":
    print("sockets\\n  id  listener    filename\\n  0   no          /run/vpp/memif.sock")
    for each in state:
        if each[:3] == ["create", "memif", "socket"]:
            print(f"  {{each[4]:3}} no          {{each[6]}}")
    print()
    for each in state:
        if each[:3] == ["create", "interface", "memif"]:
            print(f"interface memif{{each[6]}}/{{each[4]}}\\n  socket-id {{each[6]}} id {{each[4]}}")
elif line == "show interface loop42":
    print("              Name               Idx    State\\nloop42                            1      up")
elif words[:2] == ["show", "interface"]:
    print("show interface: unknown input `" + words[2])
else:
    opposite = {{"delete": "create", "del": "add"}}
    gone = [opposite.get(word, word) for word in words]
    if words[:2] == ["delete", "interface"]:
        found = [each for each in state if each[:3] == gone[:3] and f"memif{{each[6]}}/{{each[4]}}" == words[3]]
    elif words[:3] == ["delete", "memif", "socket"]:
        found = [each for each in state if each[:5] == gone]
    elif words[:4] == ["set", "ip", "neighbor", "del"]:
        found = [each for each in state if each[:6] == words[:3] + words[4:]]
    elif words[2] == "del":
        found = [each for each in state if each == gone]
    else:
        found = None
    if found is None:
        if words in state:
            print("there already")
        elif words[1:2] != ["interface"] or words[0] == "create":
            state.append(words)
    elif found:
        state.remove(found[0])
    else:
        print("no such entry")
    kept.write_text(json.dumps(state))
"""


class PlayedVppctl:
    """A `vppctl` in a folder.

    Attributes:
        program: Its path.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.program = folder / "vppctl"
        self.program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
        self.program.chmod(0o755)

    @property
    def said(self) -> list[str]:
        """All commands so far that change something."""
        said = self._folder / "said"
        return (
            [line for line in said.read_text().splitlines() if not line.startswith("show")] if said.exists() else []
        )

    @property
    def is_clean(self) -> bool:
        """Whether nothing is set up."""
        kept = self._folder / "kept.json"
        return not kept.exists() or kept.read_text() == "[]"

    def refuse(self, start: str) -> None:
        """Refuse commands that begin so."""
        (self._folder / "refused").write_text(start)

    def stop(self) -> None:
        """Reach no VPP any more."""
        (self._folder / "down").touch()

    def start(self) -> None:
        """Reach a VPP that has nothing set up."""
        (self._folder / "down").unlink(missing_ok=True)
        (self._folder / "kept.json").unlink(missing_ok=True)

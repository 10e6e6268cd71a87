"""Build the wheels, the Debian packages and the source distribution into dist/.

    .venv/bin/python package/build.py [amd64] [arm64]

It needs the extras `dist` and `packages`, and rustup for the other processor's standard library. zig links against
the symbols of glibc 2.28, so what is built runs with that and each newer one, whatever this machine has.
"""

from __future__ import annotations

import email.utils
import gzip
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".venv/packages"
DIST = ROOT / "dist"
GLIBC = "2.28"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# The Pythons of Debian 12 and 13 and of Ubuntu 24.04 to 26.04. cffi alone isn't built for all of them at once.
PYTHONS = ("311", "312", "313", "314")
# numpy is for the portable engine alone, and the native extension has ristretto255.
LEFT_OUT = ("numpy", "rbcl")
MAINTAINER = "RustGuard maintainers <maintainers@rustguard.example>"


def run(*words: str | Path, **variables: str) -> str:
    """Run a command in the project's folder and return what it printed; the build ends where it fails."""
    done = subprocess.run(  # noqa: S603
        words, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\nThis failed: {' '.join(map(str, words))}")
    return done.stdout


def tool(name: str) -> str:
    """Return the path of a command that the extra `packages` brought."""
    return str(Path(sys.executable).with_name(name))


def version() -> str:
    """Return the version of the program."""
    found = re.search(r'__version__ = "(.*)"', (ROOT / "rustguard_py/__init__.py").read_text())
    assert found  # noqa: S101
    return found[1]


def native(machine: str) -> Path:
    """Build the native extension for a processor and return its file."""
    target = f"{machine}-unknown-linux-gnu"
    if not shutil.which("rustup"):
        sys.exit("The packages need rustup, for the standard library of each processor. See https://rustup.rs")
    if target not in run("rustup", "target", "list", "--installed").split():
        run("rustup", "target", "add", target)
    print(f"Building the native engine for {machine}", file=sys.stderr)
    run(
        *(tool("cargo-zigbuild"), "zigbuild", "-q", "--release", "--locked", "--manifest-path=native/Cargo.toml"),
        *("-p", "plane", "--target", f"{target}.{GLIBC}", "--target-dir", WORK / "target"),
        # abi3 needs no Python at build time, and an extension isn't linked to one.
        PYO3_NO_PYTHON="1",
        PYO3_BUILD_EXTENSION_MODULE="1",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    return WORK / "target" / target / "release/lib_native.so"


def setuptools_folders() -> dict[str, str]:
    """Return the variables with which setuptools leaves the checkout as it is, after files of earlier builds went."""
    shutil.rmtree(WORK / "build", ignore_errors=True)
    (WORK / "build").mkdir(parents=True)
    settings = WORK / "build.cfg"
    settings.write_text(f"[build]\nbuild_base = {WORK}/build\n[egg_info]\negg_base = {WORK}/build\n")
    return {"DIST_EXTRA_CONFIG": str(settings)}


def wheel(machine: str, extension: Path) -> Path:
    """Build the wheel for a processor and return its file."""
    platform = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", DIST, "."),
        RUSTGUARD_NATIVE=str(extension),
        RUSTGUARD_PLATFORM=platform,
        **setuptools_folders(),
    )
    return next(DIST.glob(f"rustguard_py-{version()}-*-{platform}.whl"))


def libraries() -> list[importlib.metadata.Distribution]:
    """Return the libraries that the package holds: what the program needs, and what those need in turn."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [
        Requirement(line) for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    ]
    while wanted:
        requirement = wanted.pop()
        name = requirement.name.lower()
        # A marker keeps out extras, other systems and older Pythons.
        if (
            name in found
            or name in LEFT_OUT
            or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        ):
            continue
        found[name] = importlib.metadata.distribution(name)
        wanted += map(Requirement, found[name].requires or ())
    return sorted(found.values(), key=lambda one: one.name.lower())


def site(machine: str, own: Path, folder: Path) -> None:
    """Fill a folder with the program and its libraries, as they lie under /usr/lib/rustguard."""
    wheels = WORK / f"wheels-{machine}"
    shutil.rmtree(wheels, ignore_errors=True)
    platforms = [f"--platform={tag}_{machine}" for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014")]
    pins = [f"{one.name}=={one.version}" for one in libraries()]
    for python in PYTHONS:
        run(
            *(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", wheels),
            *("--implementation=cp", f"--python-version={python}", *platforms, "--platform=any"),
            *(f"--abi=cp{python}", "--abi=abi3", "--abi=none", *pins),
        )
    # Not pip, which installs for one Python: the files of all four lie in one folder.
    for file in (*sorted(wheels.glob("*.whl")), own):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
    for unused in ("*.dist-info/RECORD", "**/tests", "*.data"):
        for path in folder.glob(unused):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    # Debian's packages have no symbols that only a debugger reads. rustc brings an objcopy for every processor.
    sysroot = run("rustc", "--print", "sysroot").strip()
    objcopy = next(Path(sysroot).glob("lib/rustlib/*/bin/rust-objcopy"))
    for library in folder.rglob("*.so"):
        run(objcopy, "--strip-all", library, LD_LIBRARY_PATH=f"{sysroot}/lib")


def share(folder: Path) -> None:
    """Fill a folder with man pages, completions and documents, as they lie under /usr/share."""
    command = tool("rustguard")
    texts = {
        "bash-completion/completions/rustguard": run(command, "completion", "bash"),
        "zsh/vendor-completions/_rustguard": run(command, "completion", "zsh"),
        "fish/vendor_completions.d/rustguard.fish": run(command, "completion", "fish"),
        "doc/rustguard/copyright": copyright_file(),
        "lintian/overrides/rustguard": (ROOT / "package/debian/lintian-overrides").read_text(),
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    pages = {
        "man/man8/rustguard.8.gz": run(command, "man"),
        "man/man8/rustguard-wg.8.gz": run(command, "man", "rustguard-wg"),
        "doc/rustguard/changelog.gz": changelog(),
    }
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def changelog() -> str:
    """Return the dated versions of CHANGELOG.md as deb-changelog(5)."""
    entries = []
    for section in (ROOT / "CHANGELOG.md").read_text().split("\n## [")[1:]:
        title, _, body = section.partition("\n")
        number, _, day = title.partition("] - ")
        if not day:
            continue
        bullets = re.sub(
            r"(?m)^- ", "  * ", re.sub(r"(?m)^  (?=\S)", "    ", re.sub(r"(?m)^(?![- \n]).*\n?", "", body))
        )
        moment = datetime.strptime(day.strip(), "%Y-%m-%d").replace(tzinfo=UTC)
        lines = re.sub(r"\n{2,}", "\n", bullets).strip("\n")
        entries.append(
            f"rustguard ({number}) stable; urgency=medium\n\n{lines}\n\n"
            f" -- {MAINTAINER}  {email.utils.format_datetime(moment)}\n"
        )
    return "\n".join(entries)


def copyright_file() -> str:
    """Return Debian's copyright file: our licence in full, and where each library's lies."""
    own = (ROOT / "LICENSE").read_text()
    lines = [
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
        "Upstream-Name: rustguard-py",
        "",
        "Files: *",
        next(
            line.replace("Copyright (c)", "Copyright:") for line in own.splitlines() if line.startswith("Copyright")
        ),
        "License: MIT",
        *(f" {line}" if line.strip() else " ." for line in own.splitlines()),
        "Comment: Each library's licence is in its folder NAME-VERSION.dist-info in /usr/lib/rustguard:",
        *(f" {one.name} {one.version}: {_licence(one)}" for one in libraries()),
    ]
    return "\n".join(lines) + "\n"


def _licence(one: importlib.metadata.Distribution) -> str:
    for field in ("License-Expression", "License"):
        if named := one.metadata.get_all(field):
            return str(named[0]).splitlines()[0]
    return "see there"


def debian(architecture: str, stage: Path) -> Path:
    """Build the Debian package of an architecture from what `stage` holds, and return its file."""
    shutil.copytree(ROOT / "package/units", stage / "units")
    shutil.copytree(ROOT / "package/openrc", stage / "share/doc/rustguard/examples/openrc")
    # Modes and times are part of the package: they don't come from whoever builds it.
    for path in stage.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
        os.utime(path, (int(os.environ["SOURCE_DATE_EPOCH"]),) * 2)
    run(
        *(tool("nfpm"), "package", "--config=package/nfpm.yaml", "--packager=deb", f"--target={DIST}"),
        ARCH=architecture,
        VERSION=version(),
        STAGE=str(stage),
        MAINTAINER=MAINTAINER,
    )
    return next(DIST.glob(f"rustguard_{version()}*_{architecture}.deb"))


def main(architectures: Iterable[str]) -> None:
    """Build everything for these architectures, and print the files."""
    # The time of every file in every package, so that two builds of one commit are equal.
    os.environ.setdefault("SOURCE_DATE_EPOCH", run("git", "log", "-1", "--format=%ct").strip())
    DIST.mkdir(exist_ok=True)
    for architecture in architectures:
        machine = MACHINES[architecture]
        stage = WORK / architecture
        shutil.rmtree(stage, ignore_errors=True)
        own = wheel(machine, native(machine))
        print(own.relative_to(ROOT))
        site(machine, own, stage / "site")
        share(stage / "share")
        print(debian(architecture, stage).relative_to(ROOT))
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", **setuptools_folders())
    print(next(DIST.glob(f"rustguard_py-{version()}.tar.gz")).relative_to(ROOT))


if __name__ == "__main__":
    asked = sys.argv[1:] or list(MACHINES)
    if not set(asked) <= set(MACHINES):
        sys.exit(f"usage: package/build.py [{'] ['.join(MACHINES)}]")
    main(asked)

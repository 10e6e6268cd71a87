"""Tags a wheel with the systems it runs on, with the native plane and without; pyproject.toml can't do that."""

import os
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class ManylinuxWheel(bdist_wheel):
    """A wheel whose tag names the glibc that it was linked to, because it needs no newer symbol (PEP 600)."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags for Python, ABI and platform; `linux` becomes `manylinux` where the C library is glibc.

        Without cargo there is no native plane in the wheel, and so it runs on every platform.
        """
        packed = Path(self.bdist_dir)
        if packed.is_dir() and not any(packed.glob("rustguard_py/_native*.so")):
            self.root_is_pure = True
            return "py3", "none", "any"
        python, abi, platform = super().get_tag()
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        if library == "glibc" and platform.startswith("linux_"):
            platform = f"manylinux_{version.replace('.', '_')}_{platform.removeprefix('linux_')}"
        return python, abi, platform


setup(cmdclass={"bdist_wheel": ManylinuxWheel})

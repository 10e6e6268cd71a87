"""Tags a wheel with the systems it runs on, and takes a native plane built elsewhere; pyproject.toml can't do that.

package/build.py sets two variables: RUSTGUARD_NATIVE names an extension for another processor or an older glibc, and
RUSTGUARD_PLATFORM is the tag of the wheel with it.
"""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools_rust import build_rust


class TakeOrBuild(build_rust):
    """Takes the native extension that RUSTGUARD_NATIVE names; else it builds one."""

    def run(self) -> None:
        """Put the extension into the package's folder of this build."""
        extension = os.environ.get("RUSTGUARD_NATIVE")
        if extension is None:
            super().run()
            return
        library = Path(self.get_finalized_command("build_ext").build_lib, "rustguard_py")
        library.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(extension, library / "_native.abi3.so")


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
        if wanted := os.environ.get("RUSTGUARD_PLATFORM"):
            return python, abi, wanted
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        if library == "glibc" and platform.startswith("linux_"):
            platform = f"manylinux_{version.replace('.', '_')}_{platform.removeprefix('linux_')}"
        return python, abi, platform


setup(cmdclass={"bdist_wheel": ManylinuxWheel, "build_rust": TakeOrBuild})

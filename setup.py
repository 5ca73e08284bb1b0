"""Installs pyseg: what pyseg/_build.py can build here, and the sources for a later build."""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# pyseg/_build.py without pyseg, which needs torch.
spec = importlib.util.spec_from_file_location("_build", ROOT / "pyseg" / "_build.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


class BuildPython(build_py):
    """Adds the C++ sources (headers for C++ users, all for a build at import) and CMake's files."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in ("csrc", "cmake"):
                target = Path(self.build_lib, "pyseg", name)
                shutil.rmtree(target, ignore_errors=True)  # of an earlier build
                shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("*.py", "__*"))


class BuildLibraries(build_ext):
    """Builds the libraries into the checkout for an editable install, else into the wheel.

    torch's BuildExtension does it in a process of its own, which sees torch although pip hides it;
    what it cannot build is left out, and has its reason on the output.
    """

    def run(self):
        in_place = self.editable_mode or self.inplace
        folder = ROOT / "pyseg" if in_place else Path(self.build_lib, "pyseg").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            builder.report(folder)
        except builder.BuildError as error:
            sys.exit(f"pyseg: {error}")

    def get_outputs(self):
        return []

    def get_output_mapping(self):
        return {}


class Wheel(bdist_wheel):
    """Tags a wheel without compiled code as what it is: it runs anywhere, and builds at import."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = not self.distribution.ext_modules


try:
    builder.check_strict(builder.why_not(builder.CUDA))
    buildable = not all(map(builder.why_not, builder.LIBRARIES))
except builder.BuildError as error:
    sys.exit(f"pyseg: {error}")
setup(
    # The record reader is bound to the Python version, and with it the wheel's tag.
    ext_modules=[Extension("pyseg._records", sources=[])] if buildable else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildLibraries, "bdist_wheel": Wheel},
)

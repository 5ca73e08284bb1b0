"""Installs pyseg: the libraries that pyseg/_build.py can build, and sources for later builds."""

import importlib.util
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# pyseg/_build.py without the package pyseg, which needs torch.
spec = importlib.util.spec_from_file_location("_build", ROOT / "pyseg" / "_build.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


class BuildPython(build_py):
    """Adds the C++ sources (headers for users, all for builds at import) and CMake's files."""

    def run(self):
        super().run()
        if not self.editable_mode:
            left_out = shutil.ignore_patterns("*.py", "__*", "resources")
            for name in ("csrc", "cmake"):
                target = Path(self.build_lib, "pyseg", name)
                shutil.rmtree(target, ignore_errors=True)  # from an earlier build
                shutil.copytree(ROOT / name, target, ignore=left_out)


class BuildLibraries(build_ext):
    """Builds the libraries into the checkout for an editable install, else into the wheel.

    torch's BuildExtension runs in its own process, which sees torch although pip hides it. If a
    library cannot be built, it is left out, and the reason is printed.
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
    """Tags a wheel: with libraries, for every Python from 3.10 on; without, as pure Python.

    The latter runs anywhere, and builds at import.
    """

    def finalize_options(self):
        compiled = bool(self.distribution.ext_modules)
        self.py_limited_api = "cp310" if compiled else False
        super().finalize_options()
        self.root_is_pure = not compiled


try:
    builder.check_strict(builder.why_not(builder.CUDA))
    buildable = not all(map(builder.why_not, builder.LIBRARIES))
except builder.BuildError as error:
    sys.exit(f"pyseg: {error}")
setup(
    # The record reader, and so the wheel's tag, is of CPython's limited API.
    ext_modules=[Extension("pyseg._records", sources=[])] if buildable else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildLibraries, "bdist_wheel": Wheel},
)

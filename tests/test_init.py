from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pyseg

PACKAGE = Path(pyseg.__file__).parent
FILES = [*PACKAGE.glob("[a-z]*.py"), *(path.parent for path in PACKAGE.glob("[a-z]*/__init__.py"))]
PUBLIC = sorted(path.stem for path in FILES)


def test_public_modules_are_attributes(python):
    """In another process, which has imported none of them by name."""
    code = (
        f"import pyseg\nfor name in {PUBLIC}: print(getattr(pyseg, name).__name__)\n"
        "for name in dir(pyseg): getattr(pyseg, name)\n"
    )
    done = python("-c", code)
    assert done.stdout.split() == [f"pyseg.{name}" for name in PUBLIC]
    assert {"labels", "metrics", "train"} < set(PUBLIC) <= set(dir(pyseg))


def test_public_modules_are_known_to_type_checkers():
    tree = ast.parse(Path(pyseg.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {a.asname for node in imports if node.module == "pyseg" for a in node.names}
    assert {name for name in names if name and not name.startswith("_")} == set(PUBLIC)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'pyseg' has no attribute 'nothing'"):
        pyseg.nothing  # noqa: B018


IMPORTS = """
import importlib, sys, torch
before = set(sys.modules)
heavy = {"numba", "jsonargparse", "matplotlib", "tqdm", "scipy", "sklearn", "torch._dynamo"}
for name, later in {"pyseg": {"pyseg.data", "pyseg.nn"}, "pyseg.data": (), "pyseg.nn": ()}.items():
    importlib.import_module(name)
    print(name, sorted(heavy.union(later) & (set(sys.modules) - before)))
"""


def test_import_loads_nothing_that_only_some_need(python):
    done = python("-c", IMPORTS)
    assert done.stdout == "pyseg []\npyseg.data []\npyseg.nn []\n", done.stderr


def test_paths_for_cpp_users():
    assert Path(pyseg.include_path(), "pyseg", "vlad.h").is_file()
    assert Path(pyseg.cmake_prefix_path, "pysegConfig.cmake").is_file()


def test_operators_and_layers_need_torch_and_numpy_alone(python):
    """So `pip install --no-deps` is enough beside torch for a project that wants an operator."""
    code = """
import sys
import torch

class Missing:
    names = {"jsonargparse", "numba", "safetensors", "tqdm"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in Missing.names]:
    del sys.modules[name]  # torch uses some where they are there
sys.meta_path.insert(0, Missing())
import pyseg.nn
import pyseg.ops
ones = torch.ones(1, 3, 2, 4), torch.ones(1, 3, 2, 5), torch.ones(1, 3, 2)
print(tuple(pyseg.ops.vlad_aggregate(*ones, torch.zeros(4, 5)).shape))
print(tuple(pyseg.nn.NeXtVLAD(8, clusters=4, groups=2)(torch.ones(2, 3, 8)).shape))
"""
    done = python("-c", code)
    assert done.stdout == "(1, 4, 5)\n(2, 32)\n", done.stderr

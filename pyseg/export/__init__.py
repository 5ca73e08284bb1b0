"""Models that need no pyseg: ``python -m pyseg.export --run <folder> --format onnx``.

The model of a run becomes one file. It takes frames as records store them, and the number of frames
of each video or segment, and gives the probabilities that ``python -m pyseg.predict`` computes:

* ``pt2``: a program of `torch.export`, which `torch.export.load` reads with torch alone;
* ``aoti``: the same program compiled by AOTInductor, for C++ (``examples/cpp``) and for Python;
* ``onnx``: an ONNX graph of standard operators, for ONNX Runtime and the servers that embed it.

Each holds the names of the classes and the features (``features.json``), and serves batches of any
size with any number of frames. The command compares the file with the model before it puts it in
its place.
"""

from pyseg.export.cli import export, main
from pyseg.export.config import ExportConfig

__all__ = ["ExportConfig", "export", "main"]

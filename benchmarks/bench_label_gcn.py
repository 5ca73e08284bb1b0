"""Speed of a GCN head, against forming the classifiers W by the formula.

    pytest benchmarks/bench_label_gcn.py [--benchmark-json FILE]

3,862 labels, 80 hidden vectors of 1,024 features, 300 features per node, 1,024 between the two
convolutions. The correlation is that of ``data/yt8m/labelsets.csv.gz`` below the folder
PYSEG_SHARED (default ``../shared``) at the paper's threshold of 0.5; without that file, a random
one of the same size. `step` is forward and backward, `predict` is inference; `sparse` graphs are
not trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from measure import DEVICE
from torch import Tensor
from torch.nn import functional

from pyseg.data import read_label_table
from pyseg.labels import CooccurrenceCounter, LabelCorrelation
from pyseg.nn import LabelGCN, LogisticHead

BATCH, CLASSES, FEATURES = 80, 3862, 1024
REAL = Path(os.environ.get("PYSEG_SHARED", "../shared")) / "data" / "yt8m" / "labelsets.csv.gz"


@pytest.fixture(scope="module")
def correlation() -> LabelCorrelation:
    counter = CooccurrenceCounter(CLASSES)
    if REAL.is_file():
        for block in read_label_table(REAL):
            counter.update(block.offsets, block.labels)
        return LabelCorrelation.from_counts(counter.finish(), 0.5)
    random = np.random.default_rng(0)
    rows = np.sort(random.integers(0, CLASSES, 8417))
    keys = np.unique(rows * CLASSES + (rows + random.integers(1, CLASSES, 8417)) % CLASSES)
    sizes = np.bincount(keys // CLASSES, minlength=CLASSES)
    return LabelCorrelation(
        torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)))),
        torch.from_numpy(keys % CLASSES),
        torch.rand(len(keys)) * 0.5 + 0.5,
    )


def as_written(head: LabelGCN, graph: Tensor, x: Tensor) -> Tensor:
    """ML-GCN's order of products."""
    inner = functional.leaky_relu(graph @ (head.nodes @ head.first), 0.2)
    return x @ (graph @ (inner @ head.second)).t()


@pytest.mark.parametrize("graph", ["trained", "sparse"])
@pytest.mark.parametrize("direction", ["step", "predict"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_label_gcn(compare: Callable, correlation, graph: str, direction: str) -> None:
    torch.manual_seed(0)
    head = LabelGCN(FEATURES, CLASSES, correlation, train_graph=graph == "trained").to(DEVICE)
    logistic = LogisticHead(FEATURES, CLASSES).to(DEVICE)
    x = torch.randn(BATCH, FEATURES, device=DEVICE)
    contenders = {"pyseg": lambda: head(x), "logistic head": lambda: logistic(x)}
    if graph == "trained":
        contenders["as written"] = lambda: as_written(head, head.graph.weight, x)
    else:
        held = head.graph
        csr = torch.sparse_csr_tensor(held.offsets, held.columns, held.values, (CLASSES, CLASSES))
        contenders["torch.sparse, as written"] = lambda: as_written(head, csr, x)
        dense = csr.to_dense()
        contenders["dense, as written"] = lambda: as_written(head, dense, x)
    expected = contenders["pyseg"]()
    for name, contender in contenders.items():
        if name.endswith("as written"):
            torch.testing.assert_close(contender(), expected, rtol=1e-3, atol=1e-3)
    if direction == "step":

        def step(forward: Callable[[], Tensor]) -> None:
            head.zero_grad()
            forward().square().sum().backward()

        compare({name: lambda f=f: step(f) for name, f in contenders.items()})
    else:
        head.eval()
        with torch.no_grad():
            compare(contenders)

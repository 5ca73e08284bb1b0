"""The sample as an experiment of some seconds, and outcomes to write down."""

from __future__ import annotations

import pytest

from pyseg.config import LossConfig, StageConfig
from pyseg.reproduce import ModelSpec, Outcome, Variant
from pyseg.reproduce.experiments import GeneratedSample


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The sample with a tiny model, which is returned, and a few steps."""
    model = ModelSpec("nextvlad-small", {"clusters": 4, "hidden_size": 8, "reduction": 2})
    monkeypatch.setattr(GeneratedSample, "model", model)
    monkeypatch.setattr(GeneratedSample, "pretrain", StageConfig(4, 1e-3, 8))
    monkeypatch.setattr(GeneratedSample, "finetune", StageConfig(8, 1e-3, 8))
    return model


def outcomes_of(*values: list[float]) -> list[Outcome]:
    model = ModelSpec("mlp")
    return [
        Outcome(Variant(f"row {number}", model, LossConfig()), {"map": own}, 1.0)
        for number, own in enumerate(values)
    ]

"""The heads and presets of pyseg, registered in the same way as those of plugins."""

from __future__ import annotations

from typing import Any

from pyseg.models.registry import mixture, register, register_head
from pyseg.nn import (
    MLP,
    AttentionGRU,
    DBoF,
    LabelGCN,
    LogisticHead,
    LogisticRegression,
    MixtureOfExperts,
    NeXtVLADClassifier,
)

register_head("gcn")(LabelGCN)
register_head("logistic")(LogisticHead)
register_head("moe")(MixtureOfExperts)

# A preset names a head, but sets none of its options, which would not fit another head.

# The three of the paper's table 1: cluster size, hidden size and reduction of each.
_NEXTVLAD1: dict[str, Any] = {"clusters": 112, "hidden_size": 2048, "reduction": 16}
register("nextvlad1", **_NEXTVLAD1)(NeXtVLADClassifier)
register("nextvlad2", clusters=136, hidden_size=2048, reduction=16)(NeXtVLADClassifier)
register("nextvlad3", clusters=112, hidden_size=2048, reduction=8)(NeXtVLADClassifier)
register("nextvlad1-gcn", **_NEXTVLAD1, head="gcn")(NeXtVLADClassifier)

# The paper gives no sizes for this one.
register("attention-gru", gru_size=1024, attention_size=512, hidden_size=2048, reduction=16)(
    AttentionGRU
)

# The starter code's, normalization of frames included; and the paper's with a graph.
register("dbof", normalization="l2", head="moe")(DBoF)
register("dbof-gcn", normalization="l2", head="gcn")(DBoF)
register("mlp")(MLP)

# For few ratings. Logistic regression is convex: steps that start large and end small reach the
# minimum, and the penalty decides which one.
register(
    "linear",
    training_defaults={
        "pretrain.learning_rate": 3e-2,
        "pretrain.schedule": "cosine",
        "pretrain.l2": 1e-3,
        "finetune.learning_rate": 3e-2,
        "finetune.schedule": "cosine",
        "finetune.l2": 0.02,
    },
)(LogisticRegression)

# For few ratings, and the fastest: no steps, and what the label lists say of unrated classes.
register("ridge", unit_length=True, training_defaults={"solver": "ridge"})(LogisticRegression)

# For two CPU cores and a few hundred steps: with a momentum of 0.001 the running statistics would
# stay near their initial values.
register(
    "nextvlad-small",
    clusters=16,
    groups=4,
    hidden_size=128,
    reduction=4,
    expansion=1,
    dropout=0.1,
    batch_norm_momentum=0.1,
)(NeXtVLADClassifier)

# The three of the paper's table 2.
register("3nextvlad-same", branches=("nextvlad1",) * 3)(mixture)
register("3nextvlad-diff", branches=("nextvlad1", "nextvlad2", "nextvlad3"))(mixture)
register("paper-mixture", branches=("nextvlad1", "nextvlad2", "nextvlad3", "attention-gru"))(
    mixture
)

# Mixtures of classifiers that differ only in their weights, with the reference's T and lambda.
register(
    "mixture",
    branches=("nextvlad-small",) * 3,
    weights="static",
    temperature=3.0,
    distillation=9.0,
)(mixture)

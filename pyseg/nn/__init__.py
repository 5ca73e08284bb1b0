"""Modules: one component of the paper per file.

Shapes: B batch, T frames, N frame feature size, G groups, E expansion, F = E*N/G, K clusters,
H hidden size, C classes. Every classifier is called as ``model(frames, num_frames)`` and returns
logits (B, C); frames are uint8 as stored, or floating and already dequantised.
"""

from pyseg.nn.attention_gru import AttentionGRU
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.classifier import FrameClassifier
from pyseg.nn.dbof import BagOfFrames, DBoF
from pyseg.nn.dropout import Dropout
from pyseg.nn.gate import ContextGate
from pyseg.nn.gru import GRU
from pyseg.nn.head import LogisticHead, MixtureOfExperts
from pyseg.nn.l2 import l2_penalty
from pyseg.nn.label_gcn import LabelGCN
from pyseg.nn.learning_rates import OwnLearningRates, learning_rate_groups
from pyseg.nn.logistic_regression import LogisticRegression
from pyseg.nn.mask import frame_mask
from pyseg.nn.mixture import Mixture, MixtureOutputs
from pyseg.nn.mlp import MLP
from pyseg.nn.nextvlad import NeXtVLAD, NeXtVLADClassifier
from pyseg.nn.noise import MaskedGaussianNoise
from pyseg.nn.normalize import FrameNormalization

__all__ = [
    "GRU",
    "MLP",
    "AttentionGRU",
    "BagOfFrames",
    "BatchNorm",
    "ContextGate",
    "DBoF",
    "Dropout",
    "FrameClassifier",
    "FrameNormalization",
    "LabelGCN",
    "LogisticHead",
    "LogisticRegression",
    "MaskedGaussianNoise",
    "Mixture",
    "MixtureOfExperts",
    "MixtureOutputs",
    "NeXtVLAD",
    "NeXtVLADClassifier",
    "OwnLearningRates",
    "frame_mask",
    "l2_penalty",
    "learning_rate_groups",
]

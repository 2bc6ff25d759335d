"""Losses: the last step of a chain. One family a file; the contract is in `loss`."""

from framework.losses.cross_entropy import CrossEntropy, NegativeLogLikelihood
from framework.losses.elementwise import L1, BinaryCrossEntropy, Huber, MeanSquaredError
from framework.losses.loss import Loss, LossFootprint
from framework.losses.soft_targets import SoftTargetCrossEntropy

__all__ = [
    "L1",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Huber",
    "Loss",
    "LossFootprint",
    "MeanSquaredError",
    "NegativeLogLikelihood",
    "SoftTargetCrossEntropy",
]

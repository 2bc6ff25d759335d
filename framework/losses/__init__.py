"""Losses: the last step of a chain. One family a file; the contract is in `loss`."""

from framework.losses.cross_entropy import CrossEntropy
from framework.losses.elementwise import L1, BinaryCrossEntropy, Huber, MeanSquaredError
from framework.losses.loss import Loss, LossFootprint

__all__ = ["L1", "BinaryCrossEntropy", "CrossEntropy", "Huber", "Loss", "LossFootprint", "MeanSquaredError"]

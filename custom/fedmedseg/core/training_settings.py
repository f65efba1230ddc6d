"""How sites train: the section ``segmentation`` of experiment.yaml, and optimisers, which systems have, too."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedmedseg.core.bounds import Fraction, Positive
from fedmedseg.core.schema import Strict


class OptimizerSection(Strict):
    """AdamW with linear warm-up and cosine decay over the whole stage."""

    learning_rate: float = Field(gt=0.0)
    weight_decay: float = Field(0.05, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    clip_norm: float = Field(3.0, gt=0.0)


class SGDSection(Strict):
    """SGD with momentum; a system says how its rate moves."""

    learning_rate: float = Field(gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)


class SegmentationSection(Strict):
    """Supervised training, validation and test, shared by every system."""

    fine_tuning: Literal["local", "federated"] = "local"
    """``local``: every site trains a network of its own; ``federated``: one per start, averaged after every round
    of the stage (FedAvg, McMahan et al. 2017), of which each site keeps the round that does best on its validation."""
    steps: Positive
    """Optimiser steps of a site, over all rounds of the stage."""
    batch: Positive = 4
    optimizer: OptimizerSection
    encoder_rate_factor: Fraction = 0.1
    """Learning-rate factor of a pretrained encoder, so that the still random decoder does not spoil it."""
    encoder_rate_share: Fraction = 0.1
    """Share of the steps, from the first, in which that factor holds; 1.0 holds it to the end."""
    validate_every: Positive = 100
    """Steps between two validations; a federated training validates at the first round that has done so many more."""
    overlap: float = Field(0.5, ge=0.0, lt=1.0)
    """Sliding-window overlap."""
    foreground_share: float = Field(0.67, ge=0.0, le=1.0)
    """Share of crops centred on a labelled voxel."""
    augment: bool = True
    augmentation: Literal["flips", "elastic", "affine"] = "flips"
    """``flips``: mirror images, quarter turns, small changes of intensity; ``elastic``: mirror images, and one random
    turn, scale and elastic deformation in-plane, the same in all slices; ``affine``: small turns about z, scales and
    changes of intensity of every crop, CT's too (``data.augmentation``)."""
    test_untrained: bool = True
    """Test the untrained network too, the floor that any training must clear; a study of many runs can do without."""

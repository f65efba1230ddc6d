"""Batches of labelled crops, each with the structures its case marks."""

from __future__ import annotations

import numpy as np
import torch

from fedmedseg.core.config import DataSection, SegmentationSection
from fedmedseg.data.sampling import augment, labelled_crop
from fedmedseg.data.volumes import Volumes

"""fedmedseg: federated medical image segmentation as NVIDIA FLARE jobs."""

__version__ = "0.1.0"

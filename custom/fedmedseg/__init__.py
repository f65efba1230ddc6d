"""fedmedseg: federated medical image segmentation as NVIDIA FLARE jobs."""

import os

__version__ = "0.1.0"

# MLflow, which MONAI imports wherever it is installed, tells its makers of its use: here only where that is asked for
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

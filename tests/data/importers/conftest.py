"""Makes the generated data sets of ``public_sets`` available to this folder's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from public_sets import atlas, challenge, task

__all__ = ["atlas", "challenge", "task"]

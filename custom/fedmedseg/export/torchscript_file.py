"""TorchScript: the network traced on one window, with the metadata inside, checked on windows it was not traced on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedmedseg.export.network import Exportable, require_agreement


def write_torchscript(path: Path, source: Exportable, metadata: Mapping[str, Any]) -> float:
    """Write ``model.ts``, and read it again; the largest difference of a probability.

    The metadata lie in it as MONAI's ``load_net_with_metadata`` reads them. Its input has the shape it was traced with.

    Raises:
        FedMedSegError: it does not answer as the network does.
    """
    from monai.data import save_net_with_metadata

    with torch.no_grad(), warnings.catch_warnings():
        # tracing tells of every shape that becomes a number; require_agreement says whether that matters
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(source.network, source.example(), check_trace=False)
        save_net_with_metadata(
            traced, str(path.with_suffix("")), append_timestamp=False, include_config_vals=False, meta_values=metadata
        )
        read = torch.jit.load(str(path), map_location="cpu").eval()
        return require_agreement(source, read, what=path.name)

"""A MONAI bundle: configuration, weights, card and licences, passed through MONAI's own checks before it is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.export.card import NO_LICENCES, model_card
from fedmedseg.export.metadata import require_valid
from fedmedseg.export.monai_log import quiet_monai
from fedmedseg.export.network import Exportable, require_agreement
from fedmedseg.export.run_facts import RunFacts

NETWORK = "network_def"
"""What MONAI calls the network in a bundle's configuration."""
WEIGHTS = "models/model.pt"
PREDICTION = "fedmedseg.export.bundle_run.BundlePrediction"
LICENCE = """These weights come without a licence of their own unless docs/license.txt names one.

The software that trained and reads them, fedmedseg, is licensed under the Apache License, Version 2.0
(https://www.apache.org/licenses/LICENSE-2.0); MONAI, whose networks it uses, likewise.
"""
USE = """
The weights are the network's plain state dict, which `torch.load("models/model.pt", weights_only=True)` reads, and
`{definition}` in `configs/inference.json` builds the network ({by}).
"""
RUN = """
With fedmedseg installed (`pip install 'fedmedseg[export]'` brings what MONAI's command line needs), the whole way from
files to label maps in their own space runs as

```
python -m monai.bundle run --config_file configs/inference.json --bundle_root . --dataset_dir IMAGES --output_dir OUT
```

which is what `fedmedseg predict` does, byte for byte. `--force true` replaces what an earlier call wrote to OUT.
"""
NO_RUN = """
The configuration holds the network alone: this one answers one of several tasks, and `fedmedseg predict` on the file
that the bundle was made of prepares scans, reads landmarks and writes label maps.
"""


def write_bundle(
    folder: Path,
    source: Exportable,
    metadata: Mapping[str, Any],
    *,
    facts: RunFacts | None,
    licences: str | None,
    schema: Path | None,
) -> float:
    """Write the bundle into ``folder`` and hold it against MONAI's checks and the network itself.

    Returns the largest difference of a probability between the network and the one that the bundle builds.

    Raises:
        ConfigurationError: ``schema`` is none, or jsonschema is not installed.
        FedMedSegError: the bundle fails a check.
    """
    for name in ("configs", "docs", "models"):
        (folder / name).mkdir()
    torch.save({name: tensor.clone() for name, tensor in source.network.state_dict().items()}, folder / WEIGHTS)
    _json(folder / "configs" / "metadata.json", metadata)
    _json(folder / "configs" / "inference.json", configuration(source))
    by = "MONAI alone" if source.by_monai else "fedmedseg must be installed"
    use = USE.format(definition=NETWORK, by=by) + (RUN if source.settings else NO_RUN)
    texts = {
        "docs/README.md": model_card(source, facts=facts, licences=licences, use=use),
        "docs/license.txt": f"Licences of the data\n\n{licences or NO_LICENCES}",
        "LICENSE": LICENCE,
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    require_valid(folder / "configs" / "metadata.json", schema=schema)
    _verify(folder)
    return require_agreement(source, built(folder), what="the bundle's network")


def configuration(source: Exportable) -> dict[str, Any]:
    """configs/inference.json. Its expressions are MONAI's, which alone reads them: they join paths, call ``main``."""
    content: dict[str, Any] = {"bundle_root": ".", "device": "cpu", NETWORK: _plain(source.definition)}
    if source.settings:
        content |= {
            "dataset_dir": "$@bundle_root + '/images'",
            "output_dir": "$@bundle_root + '/predicted'",
            "force": False,
            "prediction": {
                "_target_": PREDICTION,
                "network": f"@{NETWORK}",
                "weights": f"$@bundle_root + '/{WEIGHTS}'",
                "settings": _plain(source.settings),
                "images": "@dataset_dir",
                "out": "@output_dir",
                "device": "@device",
                "force": "@force",
                "run_id": source.origin.run,
            },
            "run": ["$@prediction.main()"],
        }
    return content


def built(folder: Path) -> nn.Module:
    """The network as somebody else gets it: by MONAI's parser out of the bundle, with the bundle's weights."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    network: nn.Module = parser.get_parsed_content(NETWORK)
    network.load_state_dict(torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True))
    return network.eval()


def _verify(folder: Path) -> None:
    """MONAI's own ``verify_net_in_out``."""
    from monai.bundle import verify_net_in_out

    try:
        with quiet_monai():
            verify_net_in_out(
                NETWORK,
                meta_file=str(folder / "configs" / "metadata.json"),
                config_file=str(folder / "configs" / "inference.json"),
                device="cpu",
            )
    except (ValueError, KeyError, RuntimeError) as error:
        raise FedMedSegError(
            "the bundle's network",
            got=f"{type(error).__name__} from MONAI's verify_net_in_out",
            expected="an output as metadata.json says",
            reason=Reason.INTERNAL,
        ) from error


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it: keys as text, sequences as lists."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

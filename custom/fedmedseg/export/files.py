"""The files of each format: made and checked elsewhere, and moved into place when they are whole.

Every format comes with the model card and metadata.json; a MONAI bundle has the folders that its specification asks
for, the others lie flat.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedmedseg.core.errors import ConfigurationError, why
from fedmedseg.export.bundle import write_bundle
from fedmedseg.export.card import model_card
from fedmedseg.export.metadata import metadata_of
from fedmedseg.export.network import Exportable
from fedmedseg.export.onnx_file import write_onnx
from fedmedseg.export.run_facts import RunFacts
from fedmedseg.export.torchscript_file import write_torchscript

Format = Literal["monai-bundle", "onnx", "torchscript"]
FILES: dict[Format, tuple[str, ...]] = {
    "monai-bundle": (
        "LICENSE",
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "docs/license.txt",
        "models/model.pt",
    ),
    "onnx": ("README.md", "metadata.json", "model.onnx"),
    "torchscript": ("README.md", "metadata.json", "model.ts"),
}
USE: dict[Format, str] = {
    "onnx": """
`model.onnx` takes `image` (1, channels, ...) float32, prepared as above, and gives `logits`:

```
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"image": patch})
```
""",
    "torchscript": """
`model.ts` takes an image (1, channels, ...) float32, prepared as above, and gives logits:

```
import torch
model = torch.jit.load("model.ts").eval()
logits = model(patch)
```
""",
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    files: tuple[str, ...]
    difference: float
    """The largest of any probability from the network's own."""


def export(
    source: Exportable,
    out: Path,
    *,
    to: Format,
    facts: RunFacts | None = None,
    licences: str | None = None,
    schema: Path | None = None,
    force: bool = False,
) -> Exported:
    """Write ``source`` into the folder ``out``, where nothing is left of what failed its checks.

    ``schema`` is the one that a bundle's metadata are held against instead of this package's.

    Raises:
        ConfigurationError: a file that is there and may not be replaced, or cannot be written; a package missing.
        FedMedSegError: what was written does not answer as the network does, or a bundle fails MONAI's own checks.
    """
    require_room(out, to, force=force)
    metadata = metadata_of(source, facts=facts, licences=licences)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        if to == "monai-bundle":
            difference = write_bundle(made, source, metadata, facts=facts, licences=licences, schema=schema)
        else:
            (made / "README.md").write_text(
                model_card(source, facts=facts, licences=licences, use=USE[to]), encoding="utf-8"
            )
            (made / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
            write = write_onnx if to == "onnx" else write_torchscript
            difference = write(made / FILES[to][-1], source, metadata)
        place(made, out, FILES[to])
    return Exported(folder=out, files=FILES[to], difference=difference)


def require_room(out: Path, to: Format, *, force: bool) -> None:
    """Refuse a place that is taken.

    Raises:
        ConfigurationError: ``out`` is a file, or holds one of the files and they may not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise ConfigurationError("--out", got=f"the file {out}", expected="a folder")
    others = [kind for kind in FILES if kind != to and (out / FILES[kind][-1]).exists()]
    if others:
        raise ConfigurationError(
            "--out",
            got=f"{out}, which holds the same or another model as {others[0]}",
            expected="a folder of its own for each format",
            remedy="choose another",
        )
    there = [name for name in FILES[to] if (out / name).exists()]
    if there and not (force and all((out / name).is_file() for name in there)):
        raise ConfigurationError(
            "--out",
            got=f"{out / there[0]}, which is there",
            expected="a new folder",
            remedy="choose another" if force else "choose another, or add --force",
        )


def place(made: Path, out: Path, files: tuple[str, ...]) -> None:
    """Bring ``files`` from ``made`` to ``out``: all, or none, where what stood there before stands again.

    Raises:
        ConfigurationError: one cannot be written.
    """
    try:
        for name in files:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / name, _beside(out / name, "new"))
        _exchanged(out, files)
    except OSError as error:
        raise ConfigurationError(
            "--out",
            got=f"{out} ({why(error)})",
            expected="a folder that can be written",
            remedy="make room or rights there, or choose another",
        ) from None
    finally:
        for name in files:
            _beside(out / name, "new").unlink(missing_ok=True)


def _exchanged(out: Path, files: tuple[str, ...]) -> None:
    """Give the new files, which lie beside their places, their names."""
    try:
        for name in files:
            if (out / name).exists():
                os.replace(out / name, _beside(out / name, "old"))
            os.replace(_beside(out / name, "new"), out / name)
    except OSError:
        for name in files:
            old, new = _beside(out / name, "old"), _beside(out / name, "new")
            if old.exists():
                os.replace(old, out / name)
            elif not new.exists():
                (out / name).unlink(missing_ok=True)
        raise
    for name in files:
        _beside(out / name, "old").unlink(missing_ok=True)


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f".{os.getpid()}-{what}-{place.name}")

"""The pretrained encoder that travels in a job: one file beside experiment.yaml, named there by its digest.

A path would differ from machine to machine, and experiment.yaml is the same everywhere. So ``network.pretrained``
holds the SHA-256 of the tensors, the job's config folder holds the tensors, and the server lays them over the
initial shared tensors before round 0. Sites need neither: the first round brings them what the server starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.atomic import previous
from fedmedseg.core.checkpoint import CheckpointError, content_sha256
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.wire import Schema

ENCODER_FILE = "encoder.safetensors"
KIND = "encoder"
_FIELD = "network.pretrained"


def save_encoder(path: Path, tensors: Mapping[str, torch.Tensor], *, source_sha256: str) -> str:
    """Write ``tensors``, by their names in the segmentation network, and return their digest.

    ``source_sha256`` is the SHA-256 of the file they were taken from, for the record.

    Raises:
        OSError: the folder cannot be written.
    """
    tree = {"format": 1, "kind": KIND, "source_sha256": source_sha256, "tensors": dict(tensors)}
    checkpoint.save(path, tree)
    # a job folder carries one encoder, not the one before it
    previous(path).unlink(missing_ok=True)
    return content_sha256(tensors)


def load_encoder(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of an encoder file.

    Raises:
        ConfigurationError: there is none, it is damaged, or it is a file of another kind.
    """
    try:
        tree = checkpoint.load_file(path)
    except CheckpointError as error:
        raise _wrong(f"{error.got} {path.name}") from None
    if not isinstance(tree, Mapping) or tree.get("kind") != KIND or not isinstance(tree.get("tensors"), Mapping):
        raise _wrong(f"a {path.name} that holds no encoder")
    return dict(tree["tensors"])


def is_encoder(path: Path) -> bool:
    """Whether the file is one that ``save_encoder`` wrote."""
    try:
        load_encoder(path)
    except ConfigurationError:
        return False
    return True


def named_encoder(experiment: Experiment, folder: Path) -> dict[str, torch.Tensor] | None:
    """The encoder that ``experiment`` names, from the config folder ``folder``; None where it names none.

    Raises:
        ConfigurationError: the file is missing, damaged, or not the one that is named.
    """
    digest = experiment.network.pretrained
    if digest is None:
        return None
    tensors = load_encoder(folder / ENCODER_FILE)
    found = content_sha256(tensors)
    if found != digest:
        raise _wrong(f"tensors of SHA-256 {found} in {ENCODER_FILE}, {digest} named in experiment.yaml")
    return tensors


def with_encoder(
    initial: Mapping[str, torch.Tensor], experiment: Experiment, folder: Path
) -> Mapping[str, torch.Tensor]:
    """``initial`` with the encoder that ``experiment`` names and ``folder`` holds laid over it.

    The very same object where the experiment names none. An encoder may hold fewer tensors than the network's
    encoder has; the others keep their initial values.

    Raises:
        ConfigurationError: see ``named_encoder``; or a tensor is not shared in this study, has another shape or type,
            or is not finite.
    """
    tensors = named_encoder(experiment, folder)
    if tensors is None:
        return initial
    if not tensors:
        raise _wrong(f"no tensors in {ENCODER_FILE}")
    foreign = sorted(name for name in tensors if name not in initial)
    if foreign:
        raise _wrong(f"{len(foreign)} tensor(s) in {ENCODER_FILE} that this study does not share, first {foreign[0]}")
    problem = Schema({name: initial[name] for name in tensors}).problem(tensors)
    if problem is not None:
        raise _wrong(f"{ENCODER_FILE}: {problem[1]}")
    return {**initial, **tensors}


def _wrong(got: str) -> ConfigurationError:
    return ConfigurationError(
        _FIELD,
        got=got,
        expected=f"the encoder of this study's network, in {ENCODER_FILE} of the job's config folder",
        remedy="write the job again with --encoder FILE, or remove network.pretrained",
    )

"""The tensors of an earlier run that travel in a job, so that a stage can be run alone from where that run ended.

As a pretrained encoder does (``core.encoder_file``), they lie in the job's config folder, and experiment.yaml names
them by their digest: a system whose section has a field ``start`` can begin so. The server lays them over the initial
shared tensors before round 0; sites are sent what the server starts from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fedmedseg.core import checkpoint
from fedmedseg.core.atomic import previous
from fedmedseg.core.checkpoint import CheckpointError, content_sha256
from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.wire import Schema

START_FILE = "start.safetensors"
KIND = "start"


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's shared model, or of any other checkpoint that holds ``tensors``.

    Raises:
        ConfigurationError: there is none, it is damaged, or it holds no tensors.
    """
    try:
        tree = checkpoint.load_file(path)
    except CheckpointError as error:
        raise _wrong(f"{error.got} {path.name}") from None
    tensors = tree.get("tensors") if isinstance(tree, Mapping) else None
    if not isinstance(tensors, Mapping) or not all(isinstance(one, torch.Tensor) for one in tensors.values()):
        raise _wrong(f"a {path.name} that holds no tensors")
    if not tensors:
        raise _wrong(f"no tensors in {path.name}")
    return dict(tensors)


def save_start(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write ``tensors`` for a job folder and return their digest.

    Raises:
        OSError: the folder cannot be written.
    """
    checkpoint.save(path, {"format": 1, "kind": KIND, "tensors": dict(tensors)})
    # a job folder carries one start, not the one before it
    previous(path).unlink(missing_ok=True)
    return content_sha256(tensors)


def named_start(experiment: Experiment, folder: Path) -> dict[str, torch.Tensor] | None:
    """The tensors that ``experiment`` starts from, from the config folder ``folder``; None where it names none.

    Raises:
        ConfigurationError: the file is missing, damaged, or not the one that is named.
    """
    digest = getattr(experiment.wing, "start", None)
    if digest is None:
        return None
    tensors = tensors_of(folder / START_FILE)
    found = content_sha256(tensors)
    if found != digest:
        raise _wrong(f"tensors of SHA-256 {found} in {START_FILE}, {digest} named in experiment.yaml")
    return tensors


def with_start(initial: Mapping[str, torch.Tensor], experiment: Experiment, folder: Path) -> Mapping[str, torch.Tensor]:
    """``initial`` with what ``experiment`` starts from laid over it; the very same object where it names nothing.

    A file may lack what the study trains itself (``fresh`` of its system's plan), which then keeps its initial values;
    what of it begins anew (``anew``) keeps them whatever the file holds. What the study does not share is left aside.

    Raises:
        ConfigurationError: see ``named_start``; or a tensor is missing, has another shape or type, or is not finite.
    """
    tensors = named_start(experiment, folder)
    if tensors is None:
        return initial
    plan = system_module(experiment.system, "plan")
    anew, fresh = plan.anew(experiment), plan.fresh(experiment)
    own = {name: tensor for name, tensor in tensors.items() if name in initial and not name.startswith(anew)}
    missing = sorted(name for name in initial if name not in own and not name.startswith(fresh))
    if missing:
        raise _wrong(f"a file without {len(missing)} tensor(s) that this study starts from, first {missing[0]}")
    problem = Schema({name: initial[name] for name in own}).problem(own)
    if problem is not None:
        raise _wrong(f"{START_FILE}: {problem[1]}")
    return {**initial, **own}


def _wrong(got: str) -> ConfigurationError:
    return ConfigurationError(
        "start",
        got=got,
        expected=f"an earlier run's model of the same networks, in {START_FILE} of the job's config folder",
        remedy="write the job again with --start FILE, or remove start",
    )

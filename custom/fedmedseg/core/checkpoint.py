"""The one checkpoint format: safetensors, written atomically, checked when read, with one generation kept.

A tree of dictionaries and lists whose leaves are tensors, numbers, strings, booleans or None. Tensors
lie in the safetensors body; everything else, and the shape of the tree, in its JSON header together with
a CRC-32 of the whole content, which is what a torn or decayed file shows by. No pickle is involved.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedmedseg.core.atomic import previous, replaced
from fedmedseg.core.errors import FedMedSegError, Reason

logger = logging.getLogger(__name__)
_TENSOR = "$tensor"
HEADER_LENGTH_BYTES = 8
"""Of a safetensors file: the length of the JSON header that follows."""


class CheckpointError(FedMedSegError):
    """No readable generation of a checkpoint is left."""


def content_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes in sorted order: equal models, equal digest."""
    digest = hashlib.sha256()
    for piece in _pieces(tensors):
        digest.update(piece)
    return digest.hexdigest()


def content_crc32(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 over the same, in hexadecimal: eight times as fast, against accidents and not against people."""
    found = 0
    for piece in _pieces(tensors):
        found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode()
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def save(path: Path, tree: Any) -> None:
    """Write ``tree`` to ``path``; the generation before it stays as ``<name>.previous``.

    Raises:
        OSError: disk full or not writable. The old file is then untouched.
    """
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_flatten(tree, "", tensors, set()), sort_keys=True)
    with replaced(path, keep_previous=True) as temporary:
        # its mode is what this process gives its files; safetensors would keep everybody else from it
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata={"tree": skeleton, "crc32": _checksum(skeleton, tensors)})
        except SafetensorError as error:
            raise _of_disk(error) from None
        _order_header(temporary)
        temporary.chmod(mode)


def _order_header(file: Path) -> None:
    """Sort what safetensors' header says beside the tensors: it comes in another order every time, and equal content
    should be equal bytes."""
    with open(file, "r+b") as stream:
        length = int.from_bytes(stream.read(HEADER_LENGTH_BYTES), "little")
        header = json.loads(stream.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        # the tensors lie behind it; a header of another length is left as it came, and is read all the same
        if len(text) == length:
            stream.seek(HEADER_LENGTH_BYTES)
            stream.write(text)


def load(path: Path) -> Any | None:
    """The newest readable generation, or None where nothing was ever saved.

    Raises:
        CheckpointError: files exist and none of them is whole.
    """
    broken = 0
    for candidate in (path, previous(path)):
        if not candidate.exists():
            continue
        try:
            return _read(candidate)
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            broken += 1
            logger.warning(
                "checkpoint %s is damaged (%s); trying the generation before it", path.name, type(error).__name__
            )
    if broken:
        raise CheckpointError(
            path.name,
            got=f"{broken} damaged generation(s)",
            expected="an intact checkpoint",
            remedy="remove the file to start this stage again",
            reason=Reason.DISK,
        )
    return None


def load_file(path: Path) -> Any:
    """Exactly this file, never the generation before it.

    Raises:
        CheckpointError: missing, damaged, or no checkpoint of this format.
    """
    try:
        return _read(path)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(
            path.name,
            got=f"{'no' if isinstance(error, FileNotFoundError) else 'a damaged'} file",
            expected="an intact checkpoint",
            reason=Reason.DISK,
        ) from None


def _of_disk(error: SafetensorError) -> Exception:
    """What the system said where it was the system that refused, as the error that Python has for it."""
    found = re.search(r"os error (\d+)", str(error))
    return error if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


def _read(path: Path) -> Any:
    with safe_open(path, framework="pt") as stream:
        header = stream.metadata() or {}
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    skeleton = header["tree"]
    if "crc32" not in header and "sha256" in header:
        raise CheckpointError(
            path.name,
            got="a file of an earlier version, with another checksum",
            expected="one of this version of the package",
            remedy="make it anew, or use the version that wrote it",
            reason=Reason.STALE,
        )
    if header["crc32"] != _checksum(skeleton, tensors):
        raise ValueError("checksum")
    return _unflatten(json.loads(skeleton), tensors)


def _checksum(skeleton: str, tensors: Mapping[str, torch.Tensor]) -> str:
    return f"{zlib.crc32((skeleton + content_crc32(tensors)).encode()):08x}"


def _flatten(node: Any, place: str, tensors: dict[str, torch.Tensor], held: set[int]) -> Any:
    if isinstance(node, torch.Tensor):
        # keys that hold a slash, or 1 beside "1", must not make two tensors share a name
        while place in tensors:
            place += "'"
        tensors[place] = _alone(node.detach().cpu().contiguous(), held)
        return {_TENSOR: place}
    if isinstance(node, Mapping):
        return {"$items": [[key, _flatten(value, f"{place}/{key}", tensors, held)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return [_flatten(value, f"{place}/{index}", tensors, held) for index, value in enumerate(node)]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"a checkpoint holds tensors, numbers, strings and None, not {type(node).__name__}")


def _alone(tensor: torch.Tensor, held: set[int]) -> torch.Tensor:
    """The tensor, or a copy where its memory is not its own: safetensors refuses tensors that share storage.

    ``held`` collects where the memory of those before begins.
    """
    storage = tensor.untyped_storage()
    whole = storage.nbytes() == tensor.numel() * tensor.element_size()
    if not whole or storage.data_ptr() in held:
        return tensor.clone()
    held.add(storage.data_ptr())
    return tensor


def _unflatten(node: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(node, dict):
        if _TENSOR in node:
            return tensors[node[_TENSOR]]
        return {key: _unflatten(value, tensors) for key, value in node["$items"]}
    if isinstance(node, list):
        return [_unflatten(value, tensors) for value in node]
    return node

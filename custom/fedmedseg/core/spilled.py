"""A reply's tensors in a file of the server's run folder, so that its memory does not grow with the number of sites.

The file has no name from the moment it is made: whatever ends the process, the kernel frees it, and nobody finds a
single site's update on the disk afterwards. The rules of aggregation go tensor by tensor, so that at any time as many
sites' values of one tensor are in memory, not of all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TypeAlias, TypeGuard

import numpy as np
import torch
from nvflare.app_opt.pt.lazy_tensor_dict import _LazyRef
from safetensors import safe_open

FROM_BYTES = 32 * 2**20
"""Replies of so many bytes and more wait on the disk for the end of their round."""


class SpilledTensors(Mapping[str, torch.Tensor]):
    """Tensors that lie in a nameless file; each is read when it is asked for, as a new tensor with the same bytes.

    Args:
        tensors: what is written; not held on to. What FLARE has fetched to files with names is read and written once,
            and in memory for as long, one piece after the other.
        folder: where there is room; it must exist.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
        SafetensorError: a file that FLARE has written is none of tensors.
        ValueError: what was fetched makes no tensor of its shape.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor | Fetched], folder: Path) -> None:
        # a handle that FLARE's processes inherited would keep the file alive: Python's are closed on exec
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as the tensors are wanted
        self._places: dict[str, tuple[int, torch.Size, torch.dtype]] = {}
        for name, tensor in tensors.items():
            begin, dtypes = self._file.tell(), set()
            for piece in _pieces(tensor):
                dtypes.add(piece.dtype)
                self._file.write(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            shape, dtype = getattr(tensor, "shape", piece.shape), piece.dtype
            if dtypes != {dtype} or self._file.tell() - begin != prod(shape) * dtype.itemsize:
                raise ValueError(f"{name}: pieces that make no tensor of shape {tuple(shape)} and {dtype}")
            self._places[name] = (begin, shape, dtype)
        self._file.flush()

    def __getitem__(self, name: str) -> torch.Tensor:
        begin, shape, dtype = self._places[name]
        # not a bytearray, whose zeros take as long to write as the file to read
        raw = np.empty(prod(shape) * dtype.itemsize, dtype=np.uint8)
        left = raw.data
        while left:
            # one call reads 2 GB at most
            count = os.preadv(self._file.fileno(), [left], begin)
            if count == 0:
                raise OSError(f"a reply's file ends within {name}")
            left, begin = left[count:], begin + count
        return torch.from_numpy(raw).view(dtype).reshape(shape) if raw.size else torch.empty(shape, dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, of which none is read for that."""
        return sum(prod(shape) * dtype.itemsize for _, shape, dtype in self._places.values())

    def __contains__(self, name: object) -> bool:
        # a mapping's own would read the tensor to find out
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class FetchedPieces:
    """Stands for a tensor that FLARE has fetched to the disk in pieces.

    Args:
        pieces: one after the other, each of what it holds flat.
        shape: of the whole.
    """

    def __init__(self, pieces: Sequence[_LazyRef], shape: Sequence[int]) -> None:
        self.pieces, self.shape = list(pieces), torch.Size(shape)

    def materialize(self) -> torch.Tensor:
        """The tensor, as FLARE calls it of what it has fetched.

        Raises:
            RuntimeError: the pieces make no tensor of the shape.
        """
        return torch.cat([piece.materialize() for piece in self.pieces]).reshape(self.shape)


Fetched: TypeAlias = _LazyRef | FetchedPieces


def is_fetched(value: object) -> TypeGuard[Fetched]:
    """Whether it stands for a tensor that FLARE has fetched to the disk instead of into memory."""
    return isinstance(value, (_LazyRef, FetchedPieces))


def look_at(tensor: torch.Tensor | Fetched) -> tuple[torch.Size, torch.dtype]:
    """Shape and type of a tensor, of one that lies in a file without reading it; of pieces the type of the first."""
    if isinstance(tensor, torch.Tensor):
        return tensor.shape, tensor.dtype
    first = tensor.pieces[0] if isinstance(tensor, FetchedPieces) else tensor
    with safe_open(first.file_path, framework="pt") as stream:
        there = stream.get_slice(first.key)
        shape, dtype = torch.Size(there.get_shape()), there[:0].dtype
    return (tensor.shape, dtype) if isinstance(tensor, FetchedPieces) else (shape, dtype)


def _pieces(tensor: torch.Tensor | Fetched) -> Iterator[torch.Tensor]:
    if isinstance(tensor, FetchedPieces):
        yield from (piece.materialize() for piece in tensor.pieces)
    else:
        yield tensor.materialize() if is_fetched(tensor) else tensor


def holds_fetched(tensors: object) -> bool:
    """Whether any of a reply's tensors lies where FLARE has fetched it to."""
    return isinstance(tensors, Mapping) and any(map(is_fetched, tensors.values()))


class DerivedTensors(Mapping[str, torch.Tensor]):
    """Some of other tensors, or what is worked out of each, made anew whenever one is asked for and never kept.

    Args:
        tensors: the others.
        names: those of them that are in here.
        change: what is made of one; unset: nothing.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        names: Iterable[str],
        change: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> None:
        self._tensors, self._change = tensors, change
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._change(self._tensors[name])

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

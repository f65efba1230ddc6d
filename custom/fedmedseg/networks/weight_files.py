"""Tensors out of a weight file that somebody else wrote: safetensors, or a PyTorch file that holds tensors alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fedmedseg.core import checkpoint
from fedmedseg.core.checkpoint import CheckpointError
from fedmedseg.core.errors import ConfigurationError, why

DEEPEST = 8
"""Levels of dictionaries that are looked into."""


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the file by its full name, on the CPU; the keys of nested dictionaries are joined by dots.

    ``{"state_dict": {"module.a": t}}`` gives ``state_dict.module.a``. Our own checkpoints are read the same way.

    Raises:
        ConfigurationError: the file is missing, damaged or of another kind, or reading it would run code.
    """
    try:
        # opening a named pipe would wait for somebody to write into it
        if path.exists() and not path.is_file():
            raise ConfigurationError(
                path.name,
                got="a folder, a pipe or a device",
                expected=f"a regular weight file at {path}",
                remedy="name the file itself, or copy what the pipe brings into one",
            )
        with open(path, "rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise ConfigurationError(path.name, got=f"{path} ({why(error)})", expected="a weight file") from None
    # a safetensors file is the length of its JSON header in eight bytes, then the header
    content = _safetensors(path) if head[8:9] == b"{" else _torch_file(path)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _flat(content, ""):
        if name in tensors:
            raise ConfigurationError(path.name, got=f"two tensors called {name}", expected="one tensor per name")
        tensors[name] = tensor
    if not tensors:
        raise ConfigurationError(path.name, got="no tensors", expected="a state dict")
    return tensors


def _safetensors(path: Path) -> Any:
    try:
        with safe_open(path, framework="pt") as stream:
            if "tree" not in (stream.metadata() or {}):
                return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, ValueError, OSError) as error:
        raise ConfigurationError(
            path.name, got=f"a file that cannot be read ({why(error)})", expected="an intact safetensors file"
        ) from None
    try:
        return checkpoint.load_file(path)
    except CheckpointError as error:
        raise ConfigurationError(path.name, got=error.got, expected="an intact checkpoint of ours") from None


def _torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch raises half a dozen kinds here; whichever it is, this file is not used
        needed = re.search(r"(?:GLOBAL|global)\s+`?([\w.]+)", str(error))
        raise ConfigurationError(
            path.name,
            got=f"a file that needs {needed.group(1)} to be read"
            if needed
            else f"a file that cannot be read ({why(error)})",
            expected="tensors in dictionaries and nothing else: reading anything more may run code",
            remedy="where you trust the file, save its state dict alone with torch.save(model.state_dict(), ...) or as "
            "safetensors, on the machine it comes from",
        ) from None


def _flat(node: Any, name: str, depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(node, torch.Tensor):
        yield name, node.detach()
    elif isinstance(node, Mapping) and depth < DEEPEST:
        for key, value in node.items():
            if isinstance(key, str | int):
                yield from _flat(value, f"{name}.{key}" if name else str(key), depth + 1)

"""Which tensors of a network are shared, which stay personal, which are never sent: by module type and submodule.

Never by a substring of a tensor's name: `"bn" in name` matches no key of MONAI's networks, so a study that meant
to keep its norms at home would have shared them all without a word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedmedseg.core.errors import ConfigurationError, nearest


@dataclass(frozen=True)
class Partition:
    """State-dict names in the network's own order. The three sets are disjoint and cover the network."""

    shared: tuple[str, ...]
    """Cross the wire."""
    personal: tuple[str, ...]
    """Chosen to stay at the site although they lie in the shared part of the network."""
    local: tuple[str, ...]
    """Everything else: outside the shared part, and buffers that are not floating-point."""


def partition(
    model: nn.Module,
    *,
    within: Sequence[str] = ("",),
    without: Sequence[str] = (),
    personal_types: Sequence[type[nn.Module]] = (),
    personal_modules: Sequence[str] = (),
    buffers: bool = False,
) -> Partition:
    """Split the tensors of ``model``.

    Args:
        model: the network.
        within: submodules (dotted names; the empty name is the whole network) whose parameters are shared.
        without: submodules of those that are not.
        personal_types: module types that stay at the site wherever they occur, with all they contain.
        personal_modules: submodules that stay at the site.
        buffers: share floating-point buffers (running statistics) along with the parameters.

    Raises:
        ConfigurationError: a choice that matches nothing, or nothing left to share.
    """
    chosen = _under(model, within)
    excluded = _under(model, without)
    kept = _under(model, personal_modules) | _of_types(model, personal_types)
    floating = {name for name, _ in model.named_parameters()}
    if buffers:
        floating |= {name for name, buffer in model.named_buffers() if torch.is_floating_point(buffer)}
    candidates = (chosen - excluded) & floating
    if (personal_types or personal_modules) and not candidates & kept:
        raise ConfigurationError(
            "personal layers",
            got=", ".join([*(kind.__name__ for kind in personal_types), *personal_modules]),
            expected="at least one tensor of the shared part of the network",
            remedy=f"choose among {', '.join(_types(model))}",
        )
    names = list(model.state_dict())
    shared = tuple(name for name in names if name in candidates and name not in kept)
    if not shared:
        raise ConfigurationError("shared layers", got="no tensor", expected="at least one", remedy="share more modules")
    personal = tuple(name for name in names if name in candidates and name in kept)
    taken = {*shared, *personal}
    return Partition(shared=shared, personal=personal, local=tuple(name for name in names if name not in taken))


def _under(model: nn.Module, modules: Iterable[str]) -> set[str]:
    """State-dict names under dotted module names."""
    known = dict(model.named_modules())
    names: set[str] = set()
    for module in modules:
        if module not in known:
            guess = nearest(module, known)
            raise ConfigurationError(
                "module", got=repr(module), expected=f"a submodule of {type(model).__name__}",
                remedy=f"write {guess!r}" if guess else "",
            )  # fmt: skip
        prefix = f"{module}." if module else ""
        names |= {prefix + name for name in known[module].state_dict()}
    return names


def _of_types(model: nn.Module, types: Sequence[type[nn.Module]]) -> set[str]:
    """State-dict names of everything inside modules of the given types."""
    return _under(model, [name for name, module in model.named_modules() if types and isinstance(module, tuple(types))])


def _types(model: nn.Module) -> list[str]:
    return sorted({type(module).__name__ for module in model.modules() if list(module.parameters(recurse=False))})

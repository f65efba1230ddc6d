"""Which tensors of a foreign state dict are this study's encoder, and what speaks against using them.

Layouts that are understood, each under any prefix (``state_dict.module.``, ``swinViT.``, ``student.backbone.`` ...):

* MONAI's SwinUNETR and what its self-supervised recipe saves (``model_swinvit.pt``), where the two layers of a
  block's perceptron are called ``mlp.fc1`` and ``mlp.fc2``; the names are those of ``SwinUNETR.load_from``;
* the same with the stage's index twice (``layers1.0.0.blocks``), as ``filter_swinunetr`` of MONAI undoes it;
* MONAI's ViT, ViTAutoEnc, MaskedAutoEncoderViT and UNETR (``patch_embedding.``, ``blocks.``, ``norm.``);
* our own files: shared models, sites' models, imported encoders.

Shapes decide, and nothing is interpolated: position embeddings of another crop and bias tables of another window do
not fit. What no shape shows is for the user to compare: the number of heads of a ViT, and how intensities and spacing
were prepared.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.wire import TensorSpec, is_finite
from fedmedseg.networks.factory import build_segmentation, encoder_names, encoder_place

_RENAMED = ((re.compile(r"\bmlp\.fc([12])\."), r"mlp.linear\1."), (re.compile(r"\b(layers\d+)\.0\.0\."), r"\1.0."))
_RECOMPUTED = re.compile(r"(relative_position_index|attn_mask)$")
_NEVER_READ = re.compile(r"\bblocks\.\d+\.(cross_attn|norm_cross_attn)\.")
"""Older MONAI gave every ViT block a cross-attention that its forward pass leaves out."""
LOWER = "lower --min-matched to leave the others at their initial values"
"""The other way out of too few matches, for a command that has this option."""
_ENCODERS_OWN = re.compile(r"(layers\d+c?|blocks|patch_embed|patch_embedding)\.")


@dataclass(frozen=True)
class Encoder:
    """The tensors of a study's encoder, by their names inside the encoder."""

    prefix: str
    """Name of the encoder in the segmentation network, with a dot."""
    trained: Mapping[str, TensorSpec]
    """Those that pretraining trains and a job may carry."""
    others: frozenset[str]
    """Those of the state dict that it does not train."""


@dataclass(frozen=True)
class Match:
    """A state dict held against an encoder. Names are those in the segmentation network, or else in the file."""

    prefix: str
    """What stands before the encoder's names in the file."""
    matched: dict[str, torch.Tensor]
    mismatched: dict[str, str]
    """Name -> what the file has and what this study has."""
    missing: tuple[str, ...]
    foreign: tuple[str, ...]
    """Parts of the file's encoder that this study's has not: it is a deeper or another network."""
    left_out: tuple[str, ...]
    """Parts of the encoder that pretraining does not train, and what is computed anew."""
    unused: tuple[str, ...]
    """Everything else: heads, decoders, optimisers."""

    @property
    def share(self) -> float:
        """Matched tensors over all that pretraining trains."""
        return len(self.matched) / (len(self.matched) + len(self.mismatched) + len(self.missing))


def encoder_of(experiment: Experiment) -> Encoder:
    """The encoder of ``experiment``; the global generators are left as they were."""
    prefix = f"{encoder_place(experiment)}."
    with torch.random.fork_rng(devices=[]):
        model = build_segmentation(experiment)
    state = model.state_dict()
    trained = {
        name.removeprefix(prefix): TensorSpec(tuple(state[name].shape), state[name].dtype)
        for name in encoder_names(model, experiment)
    }
    whole = (name.removeprefix(prefix) for name in state if name.startswith(prefix))
    return Encoder(prefix=prefix, trained=trained, others=frozenset(name for name in whole if name not in trained))


def match(tensors: Mapping[str, torch.Tensor], encoder: Encoder, *, prefix: str | None = None) -> Match:
    """Find ``encoder`` among ``tensors``; matched tensors are copies in the encoder's own type.

    ``prefix`` names the place in the file where it holds several encoders (a student and a teacher, say).

    Raises:
        ConfigurationError: no or several such encoders, two names for one tensor, or a matched tensor that holds NaN
            or infinity.
    """
    names = _canonical(tensors)
    place = _place(names, encoder.trained, prefix)
    inside = {name.removeprefix(place): source for name, source in names.items() if name.startswith(place)}
    matched: dict[str, torch.Tensor] = {}
    mismatched: dict[str, str] = {}
    for name, spec in encoder.trained.items():
        if name not in inside:
            continue
        tensor, whole = tensors[inside[name]], encoder.prefix + name
        if tuple(tensor.shape) != spec.shape or not _usable(tensor):
            kind = "" if _usable(tensor) else f" of {tensor.dtype}"
            mismatched[whole] = f"{tuple(tensor.shape)}{kind} in the file, {spec.shape} in this study"
            continue
        matched[whole] = tensor.to(spec.dtype, copy=True).contiguous()
        if not is_finite(matched[whole]):
            raise ConfigurationError(
                inside[name], got="NaN or infinity", expected="finite numbers", remedy="use another file"
            )
    rest = {name: source for name, source in inside.items() if name not in encoder.trained}
    left_out = {name for name in rest if name in encoder.others or _RECOMPUTED.search(name) or _NEVER_READ.match(name)}
    foreign = {name for name in rest if name not in left_out and _ENCODERS_OWN.match(name)}
    used = {inside[name] for name in inside.keys() & encoder.trained.keys()}
    known = {rest[name] for name in left_out | foreign}
    return Match(
        prefix=place,
        matched=matched,
        mismatched=mismatched,
        missing=tuple(encoder.prefix + name for name in encoder.trained if name not in inside),
        foreign=tuple(sorted(rest[name] for name in foreign)),
        left_out=tuple(sorted(rest[name] for name in left_out)),
        unused=tuple(sorted(name for name in tensors if name not in used | known)),
    )


def require(found: Match, *, least: float, otherwise: str = "") -> None:
    """Refuse a match that is not what the user asked for.

    Args:
        found: see ``match``.
        least: the share of the encoder's tensors that must have matched.
        otherwise: what the caller offers besides other settings, as ``LOWER``.

    Raises:
        ConfigurationError: naming the first tensor that does not fit, and how to mend it.
    """
    if found.foreign:
        raise ConfigurationError(
            found.foreign[0],
            got=f"{len(found.foreign)} tensor(s) of a larger or another encoder",
            expected="the very encoder of this study: a part of a deeper one computes something else",
            remedy="set network.* to the file's network (depths, for one), or use another file",
        )
    if found.matched and found.share >= least:
        return
    total = len(found.matched) + len(found.mismatched) + len(found.missing)
    name, why = next(iter([*found.mismatched.items(), *((name, "not in the file") for name in found.missing)]))
    raise ConfigurationError(
        name,
        got=f"{why}; {len(found.matched)} of {total} tensors match",
        expected=f"at least {least:.0%} of the tensors that pretraining trains",
        remedy="set network.* and data.crop to those of the file" + (f", or {otherwise}" if otherwise else ""),
    )


def _canonical(tensors: Iterable[str]) -> dict[str, str]:
    """MONAI's present names -> the names in the file."""
    names: dict[str, str] = {}
    for source in tensors:
        name = source
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if name in names:
            raise ConfigurationError(
                source, got=f"another name of {names[name]}", expected="one name per tensor", remedy="use another file"
            )
        names[name] = source
    return names


def _place(names: Iterable[str], trained: Mapping[str, TensorSpec], wanted: str | None) -> str:
    """The prefix under which the encoder lies."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in trained:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    ranked = [place for place, _ in counts.most_common()]
    if wanted is not None:
        place = f"{wanted.rstrip('.')}." if wanted.rstrip(".") else ""
        if place not in counts:
            raise ConfigurationError(
                "--prefix",
                got=repr(wanted),
                expected=f"one of {', '.join(map(repr, ranked)) or '(no encoder found)'}",
            )
        return place
    if not ranked:
        raise ConfigurationError(
            "weight file",
            got=f"names like {', '.join(sorted(names)[:3])}",
            expected=f"an encoder with names like {', '.join(sorted(trained)[:2])} under some prefix",
            remedy="the page of FedATA (jobs/fedata/README.md) names the layouts that are understood",
        )
    # a student and its teacher have as many; taking one of them unasked would be a guess
    rivals = [place for place in ranked if 2 * counts[place] >= counts[ranked[0]]]
    if len(rivals) > 1:
        raise ConfigurationError(
            "weight file",
            got=f"{len(rivals)} encoders: {', '.join(map(repr, rivals))}",
            expected="one, or its name",
            remedy="choose with --prefix of `fedmedseg encoder import`, as in "
            f"--prefix {rivals[0].rstrip('.') or repr('')}",
        )
    return ranked[0]


def _usable(tensor: torch.Tensor) -> bool:
    dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    return dense and tensor.is_floating_point()

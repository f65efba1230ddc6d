"""Features that sites give one another: which rows may cross the wire, in which form, and who gets whose.

A site uploads a set of feature vectors with the part of the body each is of, and nothing else: no case, no patient, no
order. The server keeps every site's latest and sends each site those of all others, never its own. They travel beside
the shared tensors under names that begin with ``exchange.``, uploads and downloads alike:

| name | shape | type |
|---|---|---|
| ``exchange.features`` | (rows, width) | float32, float16 or int8 by ``transport`` |
| ``exchange.scales`` | (rows,) | float32, with int8 alone: what a row is multiplied with |
| ``exchange.parts`` | (rows,) | uint8 |

**Order.** A sender shuffles its rows with the operating system's own randomness, which nobody can repeat: else their
order would tell which rows are of one volume, and in which order a site holds its patients. The server then brings
what came into an order that follows from the rows' bytes alone, so that runs of equal seed stay equal byte for byte.

**Bound.** What all others give grows with their number. A site is sent ``most_received`` rows at most; of more, a
choice that the study's seed draws anew in every round for each site, as even over parts, and in a part over givers, as
what they gave allows.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.seeding import derive_seed, generator

PREFIX = "exchange."
"""Beginning of the names of what is exchanged; no shared tensor is called so."""
FEATURES, SCALES, PARTS = f"{PREFIX}features", f"{PREFIX}scales", f"{PREFIX}parts"

Transport = Literal["fp32", "fp16", "int8"]
TYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}
LEVELS = 127
"""Steps of an int8 row on either side of 0."""
NOISE_SPREADS = 8.0
"""Of a noisy row's length: as many standard deviations above its mean as no honest row ever has."""

Tensors = Mapping[str, torch.Tensor]
Pool = Mapping[str, Tensors]
"""Site to what it gave, encoded and in canonical order."""


@dataclass(frozen=True)
class Features:
    """Rows as learners use them."""

    vectors: torch.Tensor = field(repr=False)
    """(rows, width) float32, on the CPU."""
    parts: torch.Tensor = field(repr=False)
    """(rows,) uint8: the part each row is of, from 0."""

    def __len__(self) -> int:
        return int(self.parts.shape[0])


@dataclass(frozen=True)
class Exchange:
    """What a stage's exchange may carry; part of its contract."""

    width: int
    """Numbers of a feature vector."""
    most_rows: int
    """Rows of one upload, at most."""
    parts: int
    """Part ids lie below this."""
    transport: Transport = "fp32"
    most_received: int | None = None
    """Rows that one site is sent, at most; None: all that the others gave."""
    noise: float = 0.0
    """Standard deviation of noise on rows that are not brought back to length 1 after it; 0: every row has length 1."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.most_rows < 1 or not 1 <= self.parts <= 256 or self.noise < 0.0:
            raise ValueError("an exchange has at least one number, row and part, at most 256 parts, and noise >= 0")
        if self.most_received is not None and self.most_received < 1:
            raise ValueError(f"most_received must be at least 1, not {self.most_received}")
        if self.transport not in TYPES:
            raise ValueError(f"transport must be one of {', '.join(TYPES)}, not {self.transport!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that one upload or download consists of."""
        return (FEATURES, SCALES, PARTS) if self.transport == "int8" else (FEATURES, PARTS)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on the wire, its part id included."""
        return self.width * TYPES[self.transport].itemsize + (4 if self.transport == "int8" else 0) + 1

    @property
    def most_bytes(self) -> int:
        """Bytes of the largest upload."""
        return self.most_rows * self.row_bytes

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest length of a row after decoding.

        Rounding to int8 moves each of ``width`` numbers by half a step at most, and a step is a 127th of the row's
        largest number.
        """
        if self.noise:
            return 0.0, 1.0 + self.noise * (math.sqrt(self.width) + NOISE_SPREADS)
        slack = {"fp32": 1e-3, "fp16": 5e-3, "int8": 0.01 + math.sqrt(self.width) / (2 * LEVELS)}[self.transport]
        return 1.0 - slack, 1.0 + slack

    def encode(self, features: Features) -> dict[str, torch.Tensor]:
        """An upload of ``features``, in an order that nobody can repeat.

        Raises:
            FedMedSegError: they are not what this exchange declares.
        """
        vectors, parts = features.vectors.detach().cpu(), features.parts.detach().cpu()
        shapes = vectors.ndim == 2 and parts.ndim == 1 and len(vectors) == len(parts)
        if not shapes or not vectors.dtype.is_floating_point or parts.dtype != torch.uint8:
            raise FedMedSegError(
                "features",
                got=f"{tuple(vectors.shape)} {vectors.dtype} with {tuple(parts.shape)} {parts.dtype}",
                expected="(rows, width) floating-point vectors with (rows,) uint8 parts",
                reason=Reason.SCHEMA,
            )
        order = list(range(len(parts)))
        secrets.SystemRandom().shuffle(order)
        entries = self._packed(vectors[order].float(), parts[order].clone())
        self.require(entries, sender="this site")
        return entries

    def decode(self, entries: Tensors) -> Features:
        """The rows of an upload or download; those declared to have length 1 are brought back to it exactly."""
        vectors = entries[FEATURES].float()
        if self.transport == "int8":
            vectors = vectors * entries[SCALES][:, None]
        if not self.noise:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return Features(vectors=vectors, parts=entries[PARTS])

    def problem(self, entries: object, *, received: bool = False) -> tuple[Reason, str] | None:
        """The first reason why ``entries`` may not be used, or None; nothing is raised, whatever they are.

        They are an upload, or what a site has ``received``, whose rows have another bound.
        """
        if not isinstance(entries, Mapping) or set(entries) != set(self.names):
            return Reason.UNKNOWN_TENSORS, "features that are not those declared"
        expected = {FEATURES: TYPES[self.transport], SCALES: torch.float32, PARTS: torch.uint8}
        for name in self.names:
            tensor = entries[name]
            if not isinstance(tensor, torch.Tensor):
                return Reason.TENSOR_TYPE, f"{name} is a {type(tensor).__name__}, not a torch tensor"
            dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
            if not dense or tensor.dtype != expected[name]:
                return Reason.TENSOR_TYPE, f"{name} is {tensor.dtype}, declared {expected[name]}"
        rows = int(entries[PARTS].shape[0]) if entries[PARTS].ndim == 1 else -1
        shapes = {FEATURES: (rows, self.width), SCALES: (rows,), PARTS: (rows,)}
        for name in self.names:
            if tuple(entries[name].shape) != shapes[name]:
                return Reason.TENSOR_SHAPE, f"{name} is {tuple(entries[name].shape)}, declared (rows, {self.width})"
        if rows < 1:
            return Reason.EMPTY, "no features"
        most = self.most_received if received else self.most_rows
        if most is not None and rows > most:
            return Reason.OVERSIZE, f"{rows} features, at most {most} declared"
        if int(entries[PARTS].max()) >= self.parts:
            return Reason.SCHEMA, f"a part of {int(entries[PARTS].max())}, declared below {self.parts}"
        return self._lengths(entries)

    def require(self, entries: object, *, sender: str, received: bool = False) -> None:
        """Raise where ``problem`` finds one.

        Raises:
            FedMedSegError: naming the sender and the first problem.
        """
        found = self.problem(entries, received=received)
        if found is not None:
            most = self.most_received if received else self.most_rows
            number = "rows" if most is None else f"1 to {most} rows"
            raise FedMedSegError(
                f"features from {sender}",
                got=found[1],
                expected=f"{number} of {self.width} numbers as {self.transport}, with a part each",
                reason=found[0],
            )

    def _packed(self, vectors: torch.Tensor, parts: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.transport != "int8":
            return {FEATURES: vectors.to(TYPES[self.transport]).contiguous(), PARTS: parts}
        scales = vectors.abs().amax(dim=1) / LEVELS if vectors.numel() else vectors.new_zeros(len(vectors))
        # a row of zeros keeps a scale of 0 and is refused by its length
        steps = (vectors / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round()
        packed = steps.nan_to_num().clamp(-LEVELS, LEVELS).to(torch.int8).contiguous()
        return {FEATURES: packed, SCALES: scales.contiguous(), PARTS: parts}

    def _lengths(self, entries: Tensors) -> tuple[Reason, str] | None:
        vectors = entries[FEATURES].double()
        if self.transport == "int8":
            vectors = vectors * entries[SCALES].double()[:, None]
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        if not bool(torch.isfinite(lengths).all()):
            return Reason.NOT_FINITE, "features hold NaN or infinity"
        least, most = self.bounds
        if float(lengths.min()) < least or float(lengths.max()) > most:
            return Reason.SCHEMA, f"features whose length lies outside {least:.4g} to {most:.4g}"
        return None


def split(tensors: Tensors) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors without what is exchanged, and that alone; not copied."""
    exchanged = {name: tensor for name, tensor in tensors.items() if isinstance(name, str) and name.startswith(PREFIX)}
    return {name: tensor for name, tensor in tensors.items() if name not in exchanged}, exchanged


def canonical(entries: Tensors) -> dict[str, torch.Tensor]:
    """The same rows in an order that follows from their bytes alone, whatever order they came in."""
    keys = [_rows(entries[name]) for name in sorted(entries)]
    order = sorted(range(len(keys[0])), key=lambda row: tuple(key[row] for key in keys))
    return {name: entries[name][order].contiguous() for name in sorted(entries)}


def pooled(several: Sequence[Tensors]) -> dict[str, torch.Tensor]:
    """The rows of several sites, one after the other; empty where there are none."""
    if not several:
        return {}
    return {name: torch.cat([entries[name] for entries in several]) for name in sorted(several[0])}


def of_others(
    pool: Pool, sites: Sequence[str], *, most: int | None = None, seed: int = 0
) -> dict[str, dict[str, torch.Tensor]]:
    """Per site what all others gave, in canonical order, so that no row tells which site it is of.

    Of more than ``most`` rows, a choice by ``seed``, another for each site (``chosen``). A site to which nobody gives
    is left out.
    """
    found = {}
    for site in sorted(sites):
        others = [pool[other] for other in sorted(pool) if other != site]
        if most is not None:
            others = chosen(others, most=most, rng=generator(seed, "features for", site))
        given = pooled(others)
        if given:
            found[site] = canonical(given)
    return found


def features_of_others(
    exchange: Exchange | None, pool: Pool, sites: Sequence[str], *, seed: int, stage: str, number: int
) -> dict[str, dict[str, torch.Tensor]]:
    """What each of ``sites`` is sent in round ``number`` of a stage; nothing where the stage has no ``exchange``.

    A round that is asked again, or after the server's death, sends the same: ``seed`` is the study's.
    """
    if exchange is None:
        return {}
    return of_others(pool, sites, most=exchange.most_received, seed=derive_seed(seed, "exchange", stage, number))


def chosen(several: Sequence[Tensors], *, most: int, rng: np.random.Generator) -> list[Tensors]:
    """At most ``most`` rows of several sites together: as many of every part as there are, and in a part as many of
    every site, as far as they gave so many; drawn without replacement. All, where they are no more.
    """
    parts = [entries[PARTS].numpy() for entries in several]
    if sum(map(len, parts)) <= most:
        return list(several)
    known = np.unique(np.concatenate(parts))
    counts = np.array([[np.count_nonzero(own == part) for own in parts] for part in known])
    kept: list[list[np.ndarray]] = [[] for _ in several]
    for part, of_part, total in zip(known, counts, even_shares(counts.sum(axis=1), most, rng), strict=True):
        for place, share in enumerate(even_shares(of_part, total, rng)):
            kept[place].append(rng.choice(np.flatnonzero(parts[place] == part), size=share, replace=False))
    rows = [torch.from_numpy(np.concatenate(one)) for one in kept]
    return [{name: tensor[own] for name, tensor in entries.items()} for entries, own in zip(several, rows, strict=True)]


def even_shares(counts: Sequence[int] | np.ndarray, total: int, rng: np.random.Generator) -> list[int]:
    """``total`` split as evenly as ``counts`` allow, none above its count; who gets one more is drawn."""
    shares, left = [0] * len(counts), min(total, int(sum(counts)))
    # the smallest first: what they cannot give is shared by the rest
    order = sorted(rng.permutation(len(counts)).tolist(), key=lambda place: int(counts[place]))
    for done, place in enumerate(order):
        shares[place] = min(int(counts[place]), left // (len(order) - done))
        left -= shares[place]
    return shares


def rows_in(entries: Tensors) -> int:
    """How many rows an upload or download holds; 0 where it is empty."""
    return int(entries[PARTS].shape[0]) if PARTS in entries else 0


def _rows(tensor: torch.Tensor) -> list[bytes]:
    """The bytes of each row."""
    flat = tensor.contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
    return [row.tobytes() for row in flat]

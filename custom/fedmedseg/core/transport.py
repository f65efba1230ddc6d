"""How tensors travel: as they are, in fewer bits, or their largest alone.

``federation.transport`` chooses for the differences that come from a site, ``federation.transport_down`` for the shared
tensors that go to one (all but ``topk``, of which a network would keep a hundredth), in every stage that carries any:

| transport | of a float32 tensor of two axes or more | bytes of dense float32 |
|---|---|---|
| ``fp32`` | the tensor | 1 |
| ``fp16`` | float16, as multiples of the tensor's largest number | 0.5 |
| ``int8`` | 255 steps of the largest number in each ``BLOCK`` of them | 0.254 |
| ``topk`` | the largest of a hundred numbers, as float16 with their places | 0.015 |

All else (biases, norms, running statistics, which are few, and of which a variance must not become negative by
rounding) travels as it is. What crosses the wire are these, in the order of the tensors' names:

| name | content |
|---|---|
| ``wire.plain`` | float32, all vectors and scalars one after the other |
| ``wire.values`` | float16 or int8, the numbers of the others |
| ``wire.scales`` | float32, what they are multiplied with: one a tensor, or one a block |
| ``wire.places`` | int32, with ``topk`` alone: where in its tensor a number belongs, ascending |

**Error feedback.** Under ``topk`` a site adds to its differences what it has not sent of earlier ones, and keeps on its
disk what it does not send of these (Stich et al. 2018; Lin et al. 2018, without their momentum correction): nothing is
lost, it comes later.

**The way down.** The server keeps the shared tensors to their last bit, and encodes them anew for every round. A site
decodes them before anything else sees them, checks that they are what the server decoded (the task names the checksum
of that), and its differences are to them. The server adds these to what it keeps: what rounding took from one round is
not lost to the next. A site's copy is off by a 2048th of a number at most under ``fp16`` (by 2^-25 of its tensor's
largest where the number is below 2^-14 of that), and by a 254th of its block's largest under ``int8``.

Encoding happens after the site's filters have seen the differences in plain, so that a bound on them and noise are what
they were; it is arithmetic on what may leave anyway. The server decodes before it judges a reply like any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import cast

import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.wire import Schema, StageContract

PREFIX = "wire."
"""Beginning of the names of what crosses the wire; no shared tensor is called so."""
PLAIN, VALUES, SCALES, PLACES = f"{PREFIX}plain", f"{PREFIX}values", f"{PREFIX}scales", f"{PREFIX}places"
BLOCK = 256
"""Numbers that share a scale under ``int8``."""
LEVELS = 127
"""Steps of an int8 number on either side of 0."""
SENT = 0.01
"""Share of a tensor's numbers that ``topk`` sends."""

Tensors = Mapping[str, torch.Tensor]


class Codec:
    """Encodes and decodes the tensors of ``schema`` in one transport other than ``fp32``."""

    def __init__(self, *, transport: str, schema: Schema) -> None:
        self.transport = transport
        self.schema = schema
        single = [name for name, spec in schema.specs.items() if spec.dtype == torch.float32]
        self.packed = tuple(name for name in single if len(schema.specs[name].shape) >= 2 and self._numbers(name))
        """Tensors that are made smaller."""
        self.plain = tuple(name for name in single if name not in self.packed)
        self.others = tuple(name for name in schema.specs if name not in single)
        """Tensors of another type than float32, which travel under their own names."""

    def narrowed(self, names: Iterable[str]) -> Codec:
        """The same for those tensors of the schema alone that are among ``names``."""
        chosen = set(names)
        if chosen >= self.schema.specs.keys():
            return self
        return Codec(transport=self.transport, schema=self.schema.only(chosen))

    def encode(self, tensors: Tensors, kept: Tensors | None = None) -> tuple[Tensors, Tensors]:
        """What crosses the wire, and under ``topk`` what is kept for later; ``kept`` is what was kept before.

        ``tensors`` are those of the schema, finite, on the CPU.
        """
        entries = {name: tensors[name].contiguous() for name in self.others}
        if self.plain:
            entries[PLAIN] = torch.cat([tensors[name].reshape(-1) for name in self.plain])
        values, scales, places = [], [], []
        left: dict[str, torch.Tensor] = {}
        for name in self.packed:
            flat = tensors[name].reshape(-1)
            if self.transport == "topk":
                if kept is not None and name in kept:
                    flat = flat + kept[name].reshape(-1)
                chosen = torch.topk(flat.abs(), self._sent(name), sorted=False).indices.sort().values
                packed, scale = _halves(flat[chosen])
                places.append(chosen.to(torch.int32))
                rest = flat.clone()
                rest[chosen] -= packed.float() * scale
                left[name] = rest.reshape(tensors[name].shape)
            elif self.transport == "fp16":
                packed, scale = _halves(flat)
            else:
                packed, scale = _steps(flat)
            values.append(packed)
            scales.append(scale)
        for entry, parts in ((VALUES, values), (SCALES, scales), (PLACES, places)):
            if parts:
                entries[entry] = torch.cat(parts)
        return entries, left

    def decode(self, entries: Tensors) -> dict[str, torch.Tensor]:
        """The tensors of the schema, from entries in which ``problem`` found nothing."""
        found = {name: entries[name] for name in self.others}
        begin = 0
        for name in self.plain:
            end = begin + self._numbers(name)
            found[name] = entries[PLAIN][begin:end].reshape(self.schema.specs[name].shape)
            begin = end
        for name, values, scales, places in self._parts(entries):
            numbers = self._numbers(name)
            if self.transport == "int8":
                wide = values.float() * scales.repeat_interleave(BLOCK)[:numbers]
            else:
                wide = values.float() * scales
            if places is not None:
                wide = torch.zeros(numbers).index_copy_(0, places.long(), wide)
            found[name] = wide.reshape(self.schema.specs[name].shape)
        return {name: found[name] for name in self.schema.specs}

    def opened(self, entries: object, *, sender: str) -> dict[str, torch.Tensor]:
        """The tensors of the schema from whatever came.

        Raises:
            FedMedSegError: naming the sender and the first problem.
        """
        found = self.problem(entries)
        if found is not None:
            raise FedMedSegError(
                f"tensors from {sender}", got=found[1], expected=f"tensors as {self.transport}", reason=found[0]
            )
        return self.decode(cast(Tensors, entries))

    def problem(self, entries: object) -> tuple[Reason, str] | None:
        """The first reason why ``entries`` cannot be decoded, or None; nothing is raised, whatever they are."""
        if not isinstance(entries, Mapping):
            return Reason.TENSOR_TYPE, f"a {type(entries).__name__} instead of a mapping of tensors"
        expected = self._expected()
        if not entries and expected:
            return Reason.EMPTY, "no tensors"
        if entries.keys() != expected.keys():
            return Reason.UNKNOWN_TENSORS, f"{len(entries)} entries, not the {len(expected)} of {self.transport}"
        for name, (shape, dtype) in expected.items():
            tensor = entries[name]
            if not isinstance(tensor, torch.Tensor):
                return Reason.TENSOR_TYPE, f"{name} is a {type(tensor).__name__}, not a torch tensor"
            dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
            if not dense or tensor.dtype != dtype:
                return Reason.TENSOR_TYPE, f"{name} is {tensor.dtype}, declared {dtype}"
            if tuple(tensor.shape) != shape:
                return Reason.TENSOR_SHAPE, f"{name} is {tuple(tensor.shape)}, declared {shape}"
        for name, _, _, places in self._parts(entries):
            if places is None:
                break
            inside = int(places[0]) >= 0 and int(places[-1]) < self._numbers(name)
            if not inside or bool((places[1:] <= places[:-1]).any()):
                return Reason.SCHEMA, f"places of {name} that are not ascending within it"
        return None

    def _expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and type of every entry."""
        expected = {name: (self.schema.specs[name].shape, self.schema.specs[name].dtype) for name in self.others}
        if self.plain:
            expected[PLAIN] = ((sum(map(self._numbers, self.plain)),), torch.float32)
        if self.packed:
            kind = torch.int8 if self.transport == "int8" else torch.float16
            expected[VALUES] = ((sum(map(self._sent, self.packed)),), kind)
            expected[SCALES] = ((sum(map(self._scales, self.packed)),), torch.float32)
            if self.transport == "topk":
                expected[PLACES] = ((sum(map(self._sent, self.packed)),), torch.int32)
        return expected

    def _parts(self, entries: Tensors) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Per packed tensor its name, values, scales, and under ``topk`` places."""
        value = scale = 0
        for name in self.packed:
            values, scales = slice(value, value + self._sent(name)), slice(scale, scale + self._scales(name))
            places = entries[PLACES][values] if self.transport == "topk" else None
            yield name, entries[VALUES][values], entries[SCALES][scales], places
            value, scale = values.stop, scales.stop

    def _numbers(self, name: str) -> int:
        return math.prod(self.schema.specs[name].shape)

    def _sent(self, name: str) -> int:
        """How many numbers of a tensor travel."""
        return math.ceil(SENT * self._numbers(name)) if self.transport == "topk" else self._numbers(name)

    def _scales(self, name: str) -> int:
        return math.ceil(self._numbers(name) / BLOCK) if self.transport == "int8" else 1


def codec_of(experiment: Experiment, contract: StageContract, schema: Schema) -> Codec | None:
    """What encodes a stage's replies, whose differences are those of ``schema``; None where they travel as they are.

    A stage that collects gifts keeps them as they came.
    """
    transport = experiment.federation.transport
    if transport == "fp32" or contract.returns != "shared" or contract.collects:
        return None
    return Codec(transport=transport, schema=schema)


def down_codec_of(experiment: Experiment, contract: StageContract, schema: Schema) -> Codec | None:
    """What encodes the shared tensors that a stage sends, those of ``schema``; None where they travel as they are."""
    transport = experiment.federation.transport_down
    if transport == "fp32" or contract.sends == "nothing":
        return None
    if contract.held:
        # its own section says so before anything runs, and how to mend it
        raise ConfigurationError(
            "federation.transport_down",
            got=f"{transport}, in a stage whose sites work out bit for bit what the server has",
            expected="fp32",
        )
    return Codec(transport=transport, schema=schema)


def _halves(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float16 multiples of the largest number, and that: so none overflows, and small tensors keep their digits."""
    scale = flat.abs().amax().reshape(1)
    # zeros alone have a scale of 0, and stay zeros
    return (flat / scale.clamp_min(torch.finfo(torch.float32).tiny)).to(torch.float16), scale


def _steps(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 multiples of a 127th of the largest number in each block, and these."""
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    scales = blocks.abs().amax(dim=1) / LEVELS
    steps = (blocks / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).round().clamp(-LEVELS, LEVELS)
    return steps.to(torch.int8).reshape(-1)[: len(flat)].contiguous(), scales

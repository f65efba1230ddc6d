"""What leaves a site in every job, as tables made from the systems' own declarations.

`python tests/support/statement.py` writes them into docs/privacy.md; a test compares the page with the code.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.jobs import find_job, read_settings, setting
from fedmedseg.core.schema import read_yaml
from fedmedseg.core.wire import Schema, StageContract

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "privacy.md"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "cardiac_ct": ("--preset local_cnn", "--preset local_transformer", "--preset labels_only"),
    "fcl": ("--preset fedsimclr", "--preset local_contrastive", "fcl.transport=int8"),
    "fclopt": ("fclopt.mode=both", "fclopt.mode=ptnu", "--preset fedbyol"),
    "fedata": (
        "fedata.teacher_sync=aggregate",
        "fedata.server_aggregation=pair_att",
        "--preset federated_fine_tuning",
        "--preset local_only",
    ),
    "fedavg": ("--preset fedbn", "--preset fedopt", "--preset scaffold", "--preset ditto"),
    "fedcrld": ("--preset fedavg", "--preset fedbn", "--preset local"),
    "segviz": (
        "stages.publication.rounds=1",
        "segviz.share=fedavg",
        "segviz.candidates=received",
        "segviz.mode=one_model",
    ),
}
"""Settings of each job that change what crosses the wire."""

SPLIT = ("model", "student", "teacher", "transfer")
"""Beginnings of names that say something with the word that follows alone."""


def study(job: str, variant: str = "") -> Experiment:
    """The study of a job as it is shipped, or with one preset or setting laid over it."""
    if variant.startswith("--preset "):
        name = variant.removeprefix("--preset ")
        changes = [read_yaml(ROOT / "app_configs" / "presets" / job / f"{name}.yaml")]
    else:
        changes = [setting(variant)] if variant else []
    return read_settings(find_job(job), changes)[1]


class Declared:
    """The contracts of one study with the tensors they speak of."""

    def __init__(self, experiment: Experiment) -> None:
        plan = system_module(experiment.system, "plan")
        self.schema = Schema(plan.initial_shared(experiment))
        self.contracts: dict[str, StageContract] = plan.stages(experiment)
        self.rounds = {stage: experiment.stages[stage].rounds for stage in self.contracts}

    def of(self, schema: Schema) -> str:
        """Number, bytes and beginnings of the names of some tensors."""
        if not schema.specs:
            return "no tensor"
        groups = dict.fromkeys(_beginning(name) for name in schema.specs)
        return f"{len(schema.specs)} tensors, {_size(schema.nbytes)}: {_code(groups)}"

    def ways(self, stage: str) -> tuple[str, str]:
        """What goes down and up."""
        return self.down(stage), self.up(stage)

    def down(self, stage: str) -> str:
        """What one site is sent."""
        contract, parts = self.contracts[stage], []
        if contract.sends == "shared":
            parts.append(self._by_round(stage, contract.sent_in))
        if contract.extra is not None:
            parts.append(f"a site that fell behind also {self.of(self.schema.part(contract.extra))}")
        if contract.personal:
            parts.append("tensors of its own in their place, where the server made some")
        if contract.exchange is not None:
            most = contract.exchange.most_received
            parts.append(f"features of the other sites{f', at most {most} rows' if most else ''}")
        return "; ".join(parts) or "nothing but the task"

    def up(self, stage: str) -> str:
        """What one site sends beside figures."""
        contract, parts = self.contracts[stage], []
        if contract.returns == "shared":
            parts.append(f"differences of {self._by_round(stage, contract.returned_in)}")
        if contract.separable:
            groups = _code(f"{group}*" for group in contract.separable)
            parts.append(f"of {groups} those alone that moved")
        if contract.held:
            parts.append("the SHA-256 of the target it started from")
        if contract.exchange is not None:
            one = contract.exchange
            parts.append(
                f"features, at most {one.most_rows} rows of {one.width} numbers ({one.transport}), each with the "
                f"number of one of {one.parts} parts"
            )
        if contract.collects:
            parts.append("kept by site and averaged into nothing")
        return "; ".join(parts) or "no tensor"

    def figures(self, stage: str) -> str:
        """Patterns of the figures' names; counts of cases are marked."""
        contract = self.contracts[stage]
        marked = (f"`{name}`{' (count)' if name in contract.counts else ''}" for name in contract.metrics)
        return ", ".join(marked) or "none"

    def _by_round(self, stage: str, part: Any) -> str:
        numbers = range(max(1, self.rounds[stage]))
        said: dict[str, list[int]] = {}
        for number in numbers:
            said.setdefault(self.of(self.schema.part(part(number))), []).append(number)
        if len(said) == 1:
            return next(iter(said))
        return "; ".join(f"{words} (round {_listed(rounds)})" for words, rounds in said.items())


@functools.cache
def declared_in(job: str, variant: str = "") -> Declared:
    """What ``study`` declares, worked out once."""
    return Declared(study(job, variant))


def shipped_table(job: str) -> Iterator[str]:
    """The table of a job as it is shipped: what goes each way, stage by stage."""
    declared = declared_in(job)
    yield "| stage, rounds | to a site | from a site | figures that a site may send |"
    yield "|---|---|---|---|"
    for stage in declared.contracts:
        rounds = declared.rounds[stage]
        ways = (*declared.ways(stage), declared.figures(stage)) if rounds else ("-",) * 3
        yield " | ".join((f"| `{stage}`, {rounds or 'off'}", *ways)) + " |"


def variants_table(job: str) -> Iterator[str]:
    """What settings change of it: the stages that come out differently, those that come out alike in one row."""
    shipped = declared_in(job)
    yield "| with | stage | to a site | from a site |"
    yield "|---|---|---|---|"
    for variant in VARIANTS[job]:
        other, rows = declared_in(job, variant), dict[str, list[str]]()
        for stage, rounds in other.rounds.items():
            ways = other.ways(stage) if rounds else ("left out",) * 2
            if ways != (shipped.ways(stage) if shipped.rounds[stage] else ("left out",) * 2):
                rows.setdefault(" | ".join(ways), []).append(stage)
        for ways_there, stages in rows.items():
            yield f"| `{variant}` | {_code(stages)} | {ways_there} |"


def filled(text: str, *, jobs: Collection[str] = VARIANTS) -> str:
    """The page with every table of ``jobs`` as the code has it now."""

    def made(match: re.Match[str]) -> str:
        job = match.group(2)
        if job not in jobs:
            return match.group()
        lines = (*shipped_table(job), "", "Settings that change it:", "", *variants_table(job))
        return "\n".join((match.group(1).rstrip(), *lines, match.group(3)))

    return PLACE.sub(made, text)


def _beginning(name: str) -> str:
    first, *rest = name.split(".")
    return f"{first}.{rest[0]}" if first in SPLIT else first


def _size(number: int) -> str:
    return f"{number / 1e6:.2f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _listed(rounds: list[int]) -> str:
    return ", ".join(map(str, rounds)) if len(rounds) < 4 else f"{rounds[0]} to {rounds[-1]}"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

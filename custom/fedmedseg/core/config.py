"""experiment.yaml: the one model of a study, read alike by server and sites. Nothing in it is evaluated.

| section | documented in |
|---|---|
| ``data`` | ``data_settings`` |
| ``network`` | ``network_settings`` |
| ``segmentation`` | ``training_settings`` |
| ``federation``, ``stages``, ``compute`` | ``federation_settings`` |
| a system's own | ``config`` of its package |
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import pkgutil
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, create_model, model_validator

from fedmedseg.core.data_settings import DataSection
from fedmedseg.core.errors import ConfigurationError, choose
from fedmedseg.core.federation_settings import ComputeSection, FederationSection, StageSection
from fedmedseg.core.network_settings import NetworkSection, RelocalizationSection
from fedmedseg.core.schema import Misfit, Strict, parse, parse_yaml, read_text, worded
from fedmedseg.core.training_settings import SegmentationSection


class Experiment(Strict):
    """One study. Each system adds its own section under its own name."""

    system: str
    study: Annotated[
        str,
        worded(
            r"[a-z0-9][a-z0-9_-]{0,62}",
            "1 to 63 lower-case letters, digits, dashes and underscores that begin with a letter or digit",
        ),
    ]
    seed: int = Field(1, ge=0, lt=2**31)
    resume: bool = False
    """Continue this study's earlier state instead of setting it aside."""
    data: DataSection
    network: NetworkSection
    segmentation: SegmentationSection
    stages: dict[str, StageSection]
    federation: FederationSection = FederationSection()
    compute: ComputeSection = Field(default_factory=lambda: ComputeSection.model_validate({}))

    _whole: str | None = PrivateAttr(default=None)
    """Of a site's view: the digest of the study it is a view of."""

    @model_validator(mode="after")
    def _crop_suits_network(self) -> Experiment:
        multiple = self.network.input_multiple
        divided = 2 if isinstance(self.network, RelocalizationSection) else len(self.data.crop)
        if any(edge % multiple for edge in self.data.crop[:divided]):
            fit = [math.ceil(edge / multiple) * multiple for edge in self.data.crop[:divided]]
            raise Misfit(
                "data.crop",
                got=list(self.data.crop),
                expected=f"edges that divide by {multiple} (network {self.network.name})",
                remedy=f"use {', '.join(map(str, [*fit, *self.data.crop[divided:]]))}",
            )
        return self

    @property
    def wing(self) -> Any:
        """The section of this study's own system."""
        return getattr(self, self.system)

    @property
    def digest(self) -> str:
        """SHA-256 over every setting that changes results or names; ``resume`` does not. A view has its study's."""
        if self._whole is not None:
            return self._whole
        content = self.model_dump(mode="json", exclude={"resume"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def with_data(self, data: DataSection) -> Experiment:
        """This study as a site sees it that takes part with ``data``; it keeps the whole study's digest."""
        view = self.model_copy(update={"data": data})
        view._whole = self.digest
        return view


def systems() -> list[str]:
    """Installed systems: every sub-package of fedmedseg that has a ``plan`` module."""
    return list(_systems())


@cache
def _systems() -> tuple[str, ...]:
    # what is installed does not change under a running process
    import fedmedseg

    root = Path(fedmedseg.__file__).parent
    found = (module.name for module in pkgutil.iter_modules([str(root)]) if (root / module.name / "plan.py").is_file())
    return tuple(sorted(found))


def system_module(system: str, name: str) -> Any:
    """Module ``name`` of one installed system (``config`` or ``plan``).

    Raises:
        ConfigurationError: no such system.
    """
    known = systems()
    if system not in known:
        raise ConfigurationError(
            "experiment.yaml: system",
            got=repr(system),
            expected=f"one of {', '.join(known)}",
            remedy=f"{choose(system, known)}; another system needs a version of the package that has it",
        )
    return importlib.import_module(f"fedmedseg.{system}.{name}")


def parse_experiment(content: object, *, source: str = "experiment.yaml") -> Experiment:
    """Validate a whole study, the system's own section included.

    Raises:
        ConfigurationError: names the field, what came, what was expected and how to mend it.
    """
    if not isinstance(content, dict) or not isinstance(content.get("system"), str):
        raise ConfigurationError(f"{source}: system", got=None, expected=f"one of {', '.join(systems())}")
    system = content["system"]
    section = system_module(system, "config").Section
    fields: dict[str, Any] = {system: (section, ...)}
    model = create_model(f"Experiment_{system}", __base__=Experiment, **fields)
    experiment = parse(model, content, source=source)
    contracts = system_module(system, "plan").stages(experiment)
    expected = set(contracts)
    if set(experiment.stages) != expected:
        stray = sorted(set(experiment.stages) ^ expected)
        raise ConfigurationError(
            f"{source}: stages",
            got=", ".join(sorted(experiment.stages)),
            expected=f"exactly {', '.join(sorted(expected))}",
            remedy=f"add or remove {', '.join(stray)}",
        )
    if hasattr(section, "check"):
        experiment.wing.check(experiment)
    if experiment.federation.encryption != "none":
        # not above: sealing rests on torch, which reading most studies does not need
        from fedmedseg.core.sealing import check_encryption

        check_encryption(experiment, contracts)
    return experiment


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment.yaml. The file is read anew each time, and validated where it says something new:
    a site's executor and its filters ask for it in every round."""
    return _validated(Path(path), read_text(Path(path)))


@lru_cache(maxsize=8)
def _validated(path: Path, text: str) -> Experiment:
    # nobody changes what comes back: every section is frozen
    return parse_experiment(parse_yaml(text, path), source=path.name)

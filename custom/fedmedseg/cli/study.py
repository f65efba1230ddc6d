"""What `simulate` and `job` share: settings under presets and single changes, an encoder, an earlier run's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fedmedseg.cli.completion import job_names, preset_names
from fedmedseg.core.config import Experiment, system_module
from fedmedseg.core.errors import ConfigurationError, called
from fedmedseg.core.jobs import CONFIG, EXPERIMENT, find_job, find_preset, read_settings, setting
from fedmedseg.core.schema import read_yaml

JobName = Annotated[str, typer.Argument(help="A job by name (fedata) or folder.", autocompletion=job_names)]
Presets = Annotated[
    list[str] | None,
    typer.Option(
        "--preset",
        help="Settings laid over the job's: a name or a file; may be repeated, the later over the earlier.",
        autocompletion=preset_names,
    ),
]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="One setting, as stages.pretraining.rounds=2; may be repeated.")
]
EncoderFile = Annotated[
    Path | None,
    typer.Option("--encoder", help="Weights that pretraining starts from (see `fedmedseg encoder report`)."),
]
StartFile = Annotated[
    Path | None,
    typer.Option("--start", help="An earlier run's shared model, or networks made from one, that stages start from."),
]


Mlflow = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        metavar="WHERE",
        help="Tell MLflow, too, through FLARE's receiver at the server: `results`, a file among the job's results, or "
        "http(s)://HOST:PORT of a tracking server. Default: off.",
    ),
]
IN_RESULTS = "results"


@dataclass(frozen=True)
class Encoder:
    """An encoder that fits a study, ready to be put into its job."""

    tensors: Mapping[str, Any]
    sha256: str
    source_sha256: str
    wanted: int
    """How many tensors the study's encoder has; fewer may have come (see ``fitting_encoder``)."""


@dataclass(frozen=True)
class Study:
    """A job with everything that was laid over its settings."""

    folder: Path
    layers: tuple[Mapping[str, Any], ...]
    settings: dict[str, Any]
    experiment: Experiment
    encoder: Encoder | None = None
    start: Mapping[str, Any] | None = None
    """Tensors of an earlier run."""
    mlflow: str | None = None
    """``--mlflow``, checked: ``results``, an address, or None."""

    def over(self, layer: Mapping[str, Any]) -> Study:
        """The same study with one more layer.

        Raises:
            ConfigurationError: the settings are then no longer valid.
        """
        layers = (*self.layers, layer)
        settings, experiment = read_settings(self.folder, list(layers))
        return replace(self, layers=layers, settings=settings, experiment=experiment)

    def tracked(self, where: str | None) -> Study:
        """The same study with FLARE's MLflow receiver in its job; unchanged where ``where`` is None.

        Raises:
            ConfigurationError: ``where`` is neither ``results`` nor the address of a tracking server.
        """
        from fedmedseg.core.tracking import check_uri

        if where is not None and where != IN_RESULTS:
            check_uri(where, option="--mlflow")
        return replace(self, mlflow=where)

    def place_files(self, job: Path) -> None:
        """Put what the study starts from beside the experiment.yaml of ``job``, a copy of this study's.

        Raises:
            ConfigurationError: the experiment names an encoder or a start, and the folder holds none, or another.
        """
        from fedmedseg.core.start_file import START_FILE, save_start

        self.place_encoder(job)
        file = job / CONFIG / START_FILE
        if self.start is not None:
            save_start(file, self.start)
        elif getattr(self.experiment.wing, "start", None) is None:
            file.unlink(missing_ok=True)
        if self.mlflow is not None:
            from fedmedseg.core.tracking import add_mlflow

            add_mlflow(job, self.experiment.study, None if self.mlflow == IN_RESULTS else self.mlflow)
        self.check_files(job)

    def check_files(self, job: Path) -> None:
        """Raise unless ``job`` holds the encoder and the start that the experiment names, if it names any."""
        self.check_encoder(job)
        if getattr(self.experiment.wing, "start", None) is not None:
            from fedmedseg.core.start_file import with_start

            plan = system_module(self.experiment.system, "plan")
            with_start(plan.initial_shared(self.experiment), self.experiment, job / CONFIG)

    def place_encoder(self, job: Path) -> None:
        """Put the encoder beside the experiment.yaml of ``job``, a copy of this study's, or take a stale one away.

        Raises:
            ConfigurationError: the experiment names an encoder and the folder holds none, or another.
        """
        from fedmedseg.core.encoder_file import ENCODER_FILE, save_encoder

        file = job / CONFIG / ENCODER_FILE
        if self.encoder is not None:
            save_encoder(file, self.encoder.tensors, source_sha256=self.encoder.source_sha256)
        elif self.experiment.network.pretrained is None:
            file.unlink(missing_ok=True)
        self.check_encoder(job)

    def check_encoder(self, job: Path) -> None:
        """Raise unless ``job`` holds the encoder that the experiment names, if it names one."""
        if self.experiment.network.pretrained is not None:
            from fedmedseg.core.encoder_file import named_encoder

            named_encoder(self.experiment, job / CONFIG)


def read_study(
    job: str,
    presets: Sequence[str] | None,
    changes: Sequence[str] | None,
    encoder: Path | None,
    start: Path | None = None,
) -> Study:
    """The study that a command line describes: presets in their order, single settings, the encoder, the start.

    Raises:
        ConfigurationError: names what is wrong and how to mend it.
    """
    folder = find_job(job)
    layers: list[Mapping[str, Any]] = []
    if presets:
        system = read_settings(folder, [])[1].system
        layers += [_preset(system, name) for name in presets]
        layers += _named_by_all(system, layers)
    before, texts = tuple(layers), tuple(changes or ())
    layers += [setting(text) for text in texts]
    fitting = None
    if encoder is not None:
        # settings that make sense with an encoder only are judged with one, though its digest is not known yet
        unknown = {"network": {"pretrained": "0" * 64}}
        with _blaming(texts, folder, [*before, unknown]):
            _, experiment = read_settings(folder, [*layers, unknown])
        fitting = fitting_encoder(encoder, experiment)
        layers.append({"network": {"pretrained": fitting.sha256}})
    begun = None
    if start is not None:
        from fedmedseg.core.checkpoint import content_sha256
        from fedmedseg.core.start_file import tensors_of

        begun = tensors_of(start)
        layers.append({str(read_yaml(folder / EXPERIMENT).get("system")): {"start": content_sha256(begun)}})
    with _blaming(texts, folder, [*before, *layers[len(before) + len(texts) :]]):
        settings, experiment = read_settings(folder, layers)
    return Study(folder, tuple(layers), settings, experiment, fitting, begun)


@contextmanager
def _blaming(changes: Sequence[str], folder: Path, without: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Tell an error that came in with ``--set`` as one of that option, not as one of the file it was laid over.

    Args:
        changes: what ``--set`` was given.
        folder: the job.
        without: all layers but those of ``changes``: settings that are wrong without them are not theirs to answer for.
    """
    try:
        yield
    except ConfigurationError as error:
        if not changes or not _valid(folder, without):
            raise
        place = error.field.removeprefix("experiment.yaml").removeprefix(": ")
        keys = [text.partition("=")[0] for text in changes]
        near = [key for key in keys if _within(place, key) or _within(key, place)]
        # the setting itself, or, where a check over several settings names another one, all that was changed
        blamed = f"--set {near[-1]}" if near else ", ".join(f"--set {text}" for text in changes)
        where = "" if not place or place in near else f": {place}"
        raise ConfigurationError(
            f"{blamed}{where}", got=error.got, expected=error.expected, remedy=error.remedy, reason=error.reason
        ) from None


def _valid(folder: Path, layers: Sequence[Mapping[str, Any]]) -> bool:
    try:
        read_settings(folder, list(layers))
    except ConfigurationError:
        return False
    return True


def _within(inner: str, outer: str) -> bool:
    """Whether a setting is another one or lies in it."""
    return inner == outer or inner.startswith(f"{outer}.")


def fitting_encoder(file: Path, experiment: Experiment) -> Encoder:
    """All of the encoder of ``experiment`` from ``file``, or what an earlier import left of it.

    Raises:
        ConfigurationError: the file cannot be read, or does not fit.
    """
    from fedmedseg.core.atomic import file_sha256
    from fedmedseg.core.checkpoint import content_sha256
    from fedmedseg.core.encoder_file import is_encoder
    from fedmedseg.networks.pretrained import encoder_of, match, require
    from fedmedseg.networks.weight_files import read_tensors

    tensors, wanted = read_tensors(file), encoder_of(experiment)
    found = match(tensors, wanted)
    # an imported file may hold a part of the encoder, by its user's own --min-matched; all of it has to fit
    require(found, least=len(tensors) / len(wanted.trained) if is_encoder(file) else 1.0)
    return Encoder(found.matched, content_sha256(found.matched), file_sha256(file), len(wanted.trained))


def _named_by_all(system: str, layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The study's name from all presets that name one, so that a baseline on a data set is called after both.

    Otherwise the last preset's name would stand alone, and two baselines would share the state of one study.
    """
    names = [str(layer["study"]).removeprefix(f"{system}-") for layer in layers if "study" in layer]
    return [{"study": "-".join([system, *dict.fromkeys(names)])}] if len(names) > 1 else []


def _preset(system: str, name: str) -> Mapping[str, Any]:
    file = find_preset(system, name)
    content = read_yaml(file)
    if not isinstance(content, Mapping):
        raise ConfigurationError(file.name, got=called(content), expected="a mapping of settings")
    return content

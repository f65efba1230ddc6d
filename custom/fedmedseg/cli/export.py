"""`fedmedseg export`: a trained model as a MONAI bundle, ONNX or TorchScript, checked against the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fedmedseg.cli.console import console, friendly_errors, progress_bar
from fedmedseg.core.errors import ConfigurationError

MOST_BYTES = 1 << 20


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file: a site's own, or a run's shared one.")],
    to: Annotated[Literal["monai-bundle", "onnx", "torchscript"], typer.Option("--to", help="The format.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder to write into. Default: <study>-<model>-<format>, here.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="The run's report folder, or its run.json, for the model card.")
    ] = None,
    licences: Annotated[
        Path | None, typer.Option("--data-licences", help="A text file: under which licences the data were used.")
    ] = None,
    schema: Annotated[
        Path | None, typer.Option("--schema", help="Hold a bundle's metadata against this JSON schema, as MONAI's own.")
    ] = None,
    network: Annotated[
        Literal["student", "cnn"] | None,
        typer.Option("--network", help="Cardiac CT: which of the file's networks. Default: the transformer."),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="Cardiac CT: which head (hps, ms, calc, ...).")] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Of a shared model with several networks: which, by its start.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a trained model for other software, with label map, card and data licences, and check its answers.

    What does not answer as the original does is not kept. ONNX and bundles need: pip install 'fedmedseg[export]'.
    Research, not for diagnosis.
    """
    with friendly_errors():
        if schema is not None and to != "monai-bundle":
            raise ConfigurationError(
                "--schema", got=f"with --to {to}", expected="--to monai-bundle, which has metadata"
            )
        text = _text(licences)
        from fedmedseg.cli.model_file import open_exportable
        from fedmedseg.export.files import export as write
        from fedmedseg.export.files import require_room
        from fedmedseg.export.run_facts import read_facts

        source = open_exportable(model, network=network, task=task, start=start)
        origin = source.origin
        facts = None
        if run:
            facts = read_facts(
                run, experiment=origin.experiment, run=origin.run, model=origin.model, stages=source.trained_in
            )
        place = out or Path(f"{source.origin.study}-{source.origin.model}-{to}")
        require_room(place, to, force=force)
        with progress_bar() as steps:
            # neither torch's exporters nor MONAI's checks tell how far they are
            what = f"writing {to} and comparing its answers with the network's; seconds to a minute"
            steps.add_task(what)
            steps.say(what)
            made = write(source, place, to=to, facts=facts, licences=text, schema=schema, force=force)
    console.print(
        f"written: {made.folder} ({', '.join(made.files)}); probabilities differ from the original's by "
        f"{made.difference:.2g} at most",
        highlight=False,
        soft_wrap=True,
    )


def _text(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        content = file.read_bytes()
        if len(content) > MOST_BYTES:
            raise ConfigurationError("--data-licences", got=f"{len(content)} bytes", expected=f"{MOST_BYTES} at most")
        text = content.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text:
        raise ConfigurationError("--data-licences", got=f"no text at {file}", expected="a text file (UTF-8)")
    return text

"""`fedmedseg encoder`: take a pretrained encoder out of somebody else's weight file, with an account of what fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from fedmedseg.cli.console import console, example, friendly_errors
from fedmedseg.cli.new_file import require_new_file, writing
from fedmedseg.cli.rows import Rows, show
from fedmedseg.cli.study import Changes, Presets, read_study
from fedmedseg.core.errors import ConfigurationError

if TYPE_CHECKING:
    from fedmedseg.networks.pretrained import Match

encoder_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

EXAMPLES = 3
SHIPPED = "fedata"
"""The job whose network a file is held against where none is named."""

Source = Annotated[Path, typer.Argument(metavar="FILE", help="A PyTorch or safetensors weight file.")]
Job = Annotated[str, typer.Option("--job", help="The job by name (fedata) or folder whose network it is for.")]
Least = Annotated[
    float, typer.Option("--min-matched", help="Share of the encoder's tensors that have to match, above 0 up to 1.")
]
Prefix = Annotated[
    str | None, typer.Option("--prefix", help="What stands before the encoder's names, in a file that holds several.")
]


@encoder_app.command(
    "import", epilog=example("fedmedseg encoder import weights.pt --job fedata --out encoder.safetensors")
)
def import_encoder(
    source: Source,
    out: Annotated[Path, typer.Option("--out", help="The file to write, for --encoder of `simulate` and `job`.")],
    job: Job = SHIPPED,
    preset: Presets = None,
    changes: Changes = None,
    least: Least = 1.0,
    prefix: Prefix = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that is at --out.")] = False,
) -> None:
    """Write the tensors that fit a study's encoder, and say which did and which did not."""
    from fedmedseg.core.atomic import file_sha256
    from fedmedseg.core.encoder_file import save_encoder

    with friendly_errors():
        require_new_file(out, force=force, ending=".safetensors")
        found = _report(source, job, preset, changes, least, prefix)
        with writing(out):
            digest = save_encoder(out, found.matched, source_sha256=file_sha256(source))
    console.print(f"written: {out} (SHA-256 of its tensors: {digest})", highlight=False, soft_wrap=True)


@encoder_app.command(epilog=example("fedmedseg encoder report weights.pt --job fedata"))
def report(
    source: Source,
    job: Job = SHIPPED,
    preset: Presets = None,
    changes: Changes = None,
    least: Least = 1.0,
    prefix: Prefix = None,
) -> None:
    """Say what of a weight file fits a study's encoder, and write nothing. Too little ends with code 2."""
    with friendly_errors():
        _report(source, job, preset, changes, least, prefix)


def _report(
    source: Path, job: str, preset: list[str] | None, changes: list[str] | None, least: float, prefix: str | None
) -> Match:
    """Print the account, then refuse what is not good enough.

    Raises:
        ConfigurationError: see ``networks.pretrained.require``.
    """
    from fedmedseg.networks.pretrained import LOWER, encoder_of, match, require
    from fedmedseg.networks.weight_files import read_tensors

    if not 0.0 < least <= 1.0:
        raise ConfigurationError("--min-matched", got=least, expected="a share above 0 and up to 1")
    experiment = read_study(job, preset, changes, None).experiment
    tensors = read_tensors(source)
    found = match(tensors, encoder_of(experiment), prefix=prefix)
    show(console, _table(found, f"{source.name} for {experiment.network.name} of {experiment.study}"))
    require(found, least=least, otherwise=LOWER)
    if experiment.network.name == "unetr":
        console.print(
            "the number of heads leaves no trace in the tensors: the file's network must have "
            f"{experiment.network.heads}",
            highlight=False,
            soft_wrap=True,
        )
    return found


def _table(found: Match, title: str) -> Rows:
    table = Rows("tensors", "", "names", title=escape(title))
    rows = {
        "matched": [f"{name} {tuple(tensor.shape)}" for name, tensor in found.matched.items()],
        "other shape": [f"{name}: {why}" for name, why in found.mismatched.items()],
        "missing": list(found.missing),
        "of another encoder": list(found.foreign),
        "not pretrained here": list(found.left_out),
        "unused": list(found.unused),
    }
    for label, names in rows.items():
        more = [f"and {len(names) - EXAMPLES} more"] if len(names) > EXAMPLES else []
        table.add_row(label, str(len(names)), escape("\n".join([*names[:EXAMPLES], *more])))
    table.caption = f"{found.share:.1%} of the encoder, under {found.prefix or '(no prefix)'}"
    return table

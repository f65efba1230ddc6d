"""What a curious server can make of the features that a site gives away: FCL's exchange, attacked from its place.

    python benchmarks/feature_inversion.py
    python benchmarks/feature_inversion.py --sites DIR/sites --preset sunnybrook

A federation pretrains as the shipped study does (phantoms, or the sites given, the first of which is the victim). The
attacker holds what a server does, the victim's trained encoder and its upload, and slices of its own: here those of all
other sites, as if every other hospital helped it. It trains a decoder from features of its own slices to their images
(at 32 x 32 pixels), knowing transport and noise, and applies it to the victim's upload. Told for each form of the
features, over the victim's slices:

- correlation, PSNR and SSIM of what the decoder makes with the true slice, beside the attacker's mean slice of the same
  part, which needs no feature: only what lies above that baseline is what a feature gives away;
- re-identification: whoever holds a gallery of slices and the encoder looks for the slice nearest to a feature. How
  often it is the right one, chance beside it;
- the nearest gallery slice to the decoder's image, likewise.

Writes benchmarks/results/feature_inversion.json and .png, and prints a table. A few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedmedseg.core.exchange import Exchange, Features, canonical
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, find_preset, read_settings, setting, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.core.schema import read_yaml
from fedmedseg.core.seeding import derive_seed, seed_everything
from fedmedseg.data.slices import SliceAt, middle_crop, slice_crop
from fedmedseg.fcl.config import STAGE
from fedmedseg.fcl.noise import noisy
from fedmedseg.fcl.objective import ContrastiveObjective
from fedmedseg.fcl.sharing import ContrastiveNetwork

RESULT = Path(__file__).parent / "results" / "feature_inversion.json"
EDGE = 32
"""Pixels of a reconstruction's side."""
SHOWN = 6


@dataclass(frozen=True)
class Form:
    """How features leave: transport and noise, whose rows come back to length 1."""

    name: str
    transport: str = "fp32"
    sigma: float = 0.0

    def apply(self, vectors: torch.Tensor) -> torch.Tensor:
        """``vectors`` (N, width) of length 1 as whoever receives them sees them, in the same order."""
        changed = noisy(vectors, sigma=self.sigma, renormalise=True)
        exchange = Exchange(width=vectors.shape[1], most_rows=1, parts=1, transport=self.transport)  # type: ignore[arg-type]
        no_part = torch.zeros(1, dtype=torch.uint8)
        rows = [exchange.decode(exchange.encode(Features(vectors=row[None], parts=no_part))).vectors for row in changed]
        return torch.cat(rows)


FORMS = (
    Form("fp32"),
    Form("fp16", transport="fp16"),
    Form("int8", transport="int8"),
    Form("noise 0.01", sigma=0.01),
    Form("noise 0.03", sigma=0.03),
    Form("noise 0.1", sigma=0.1),
    Form("noise 0.3", sigma=0.3),
)


class Decoder(nn.Module):
    """Features (N, width) to images (N, 1, EDGE, EDGE): the attacker's inversion of the encoder."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, EDGE * EDGE)
        )

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """The images."""
        drawn: torch.Tensor = self.layers(vectors)
        return drawn.reshape(-1, 1, EDGE, EDGE)


def train_decoder(vectors: torch.Tensor, images: torch.Tensor, *, sigma: float, steps: int, seed: int) -> Decoder:
    """A decoder of the attacker's own pairs; noise of the kind that the victim adds is added anew at every step."""
    seed_everything(seed)
    decoder = Decoder(width=vectors.shape[1])
    optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-3)
    for _ in range(steps):
        chosen = torch.randint(len(vectors), (64,))
        loss = nn.functional.mse_loss(decoder(noisy(vectors[chosen], sigma=sigma, renormalise=True)), images[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return decoder.eval()


def quality(made: torch.Tensor, true: torch.Tensor) -> dict[str, float]:
    """Mean correlation, PSNR (dB) and SSIM of ``made`` with ``true``, both (N, 1, EDGE, EDGE)."""
    from monai.metrics.regression import SSIMMetric

    one, other = made.flatten(1).double(), true.flatten(1).double()
    centred = one - one.mean(1, keepdim=True), other - other.mean(1, keepdim=True)
    lengths = centred[0].norm(dim=1) * centred[1].norm(dim=1)
    spread = float(true.max() - true.min())
    error = (one - other).square().mean(1)
    likeness = SSIMMetric(spatial_dims=2, data_range=spread)(made.float(), true.float())
    return {
        "correlation": float(((centred[0] * centred[1]).sum(1) / lengths.clamp_min(1e-12)).mean()),
        "psnr": float((10 * torch.log10(spread**2 / error.clamp_min(1e-12))).mean()),
        "ssim": float(torch.as_tensor(likeness).mean()),
    }


def recognised(found: torch.Tensor, gallery: torch.Tensor) -> float:
    """How often row i of ``found`` is nearer to row i of ``gallery`` (both (N, ...)) than to any other, by correlation
    for images and by cosine for features."""
    rows = [tensor.flatten(1).double() for tensor in (found, gallery)]
    if found.ndim > 2:
        rows = [tensor - tensor.mean(1, keepdim=True) for tensor in rows]
    one, other = (nn.functional.normalize(tensor, dim=1) for tensor in rows)
    return float(((one @ other.T).argmax(1) == torch.arange(len(one))).double().mean())


def small(images: torch.Tensor) -> torch.Tensor:
    """Images (N, 1, X, Y) at the resolution of reconstructions."""
    return nn.functional.interpolate(images, size=(EDGE, EDGE), mode="area")


def of_part(images: torch.Tensor, parts: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """For each of ``wanted``: the mean of ``images`` of that part, or of all where none is of it."""
    means = {
        int(part): images[parts == part].mean(0) if bool((parts == part).any()) else images.mean(0)
        for part in wanted.unique()
    }
    return torch.stack([means[int(part)] for part in wanted])


@torch.no_grad()
def encoded(network: ContrastiveNetwork, images: torch.Tensor, *, batch: int) -> torch.Tensor:
    """Features of ``images`` as pretraining makes them: in training mode, by batches."""
    network.train()
    return torch.cat([network(images[first : first + batch]) for first in range(0, len(images), batch)])


@dataclass(frozen=True)
class Scene:
    """The victim's upload and the truth behind it, and what the attacker has of its own."""

    upload: torch.Tensor
    parts: torch.Tensor
    truth: torch.Tensor
    gallery: torch.Tensor
    """Features that the attacker's copy of the encoder gives the victim's slices, for whoever holds those."""
    own: torch.Tensor
    own_parts: torch.Tensor
    own_images: torch.Tensor


def scene(federation: InProcessFederation, *, copies: int, seed: int) -> Scene:
    """After the federation's pretraining: the first site is the victim, the others' slices are the attacker's."""
    victim, *others = federation.sites
    objective: ContrastiveObjective = federation.learner(victim, STAGE).objective  # type: ignore[attr-defined]
    # the server knows the victim's trained main encoder: what it sent plus the difference that came back
    network = objective.network
    batch = objective.section.volumes_per_step * objective.section.parts
    order = np.random.default_rng(seed).permutation(len(objective.slices))
    slices = [objective.slices[place] for place in order[: objective.bank.capacity]]
    seed_everything(seed)
    upload = objective.encoded(slices)
    truth = torch.stack([middle_crop(objective.volumes, at, federation.experiment.data) for at in slices])
    own, parts = [], []
    rng = np.random.default_rng(seed)
    for site in others:
        held: ContrastiveObjective = federation.learner(site, STAGE).objective  # type: ignore[attr-defined]
        # the crop in the middle, as uploads are made, and others beside it, which are more to learn from
        for at in held.slices:
            own += [_crop(held, at, rng if copy else None, federation) for copy in range(copies)]
            parts += [at.part] * copies
    images = torch.stack(own)
    shuffled = torch.from_numpy(rng.permutation(len(images)))
    images, own_parts = images[shuffled], torch.tensor(parts)[shuffled]
    return Scene(
        upload=upload.vectors,
        parts=upload.parts.long(),
        truth=small(truth),
        gallery=encoded(network, truth, batch=batch),
        own=encoded(network, images, batch=batch),
        own_parts=own_parts,
        own_images=small(images),
    )


def _crop(
    objective: ContrastiveObjective, at: SliceAt, rng: np.random.Generator | None, federation: InProcessFederation
) -> torch.Tensor:
    data = federation.experiment.data
    return middle_crop(objective.volumes, at, data) if rng is None else slice_crop(objective.volumes, at, rng, data)


def attack(found: Scene, form: Form, *, steps: int, seed: int) -> tuple[dict[str, float], torch.Tensor]:
    """What the attacker reaches with features of this form, and its images."""
    received = form.apply(found.upload)
    decoder = train_decoder(found.own, found.own_images, sigma=form.sigma, steps=steps, seed=seed)
    with torch.no_grad():
        made = decoder(received)
    figures = quality(made, found.truth)
    figures["recognised_features"] = recognised(received, found.gallery)
    figures["recognised_images"] = recognised(made, found.truth)
    return figures, made


def pretrained(args: argparse.Namespace, folder: Path) -> InProcessFederation:
    """The federation after its pretraining."""
    changes: list[Mapping[str, Any]] = [read_yaml(find_preset("fcl", name)) for name in args.preset]
    changes += [setting(f"stages.{STAGE}.rounds={args.rounds}"), setting("fcl.projector.out=128")]
    changes += [setting(change) for change in args.set]
    if args.sites is not None:
        shutil.copytree(args.sites.parent, folder / "w" / "local", dirs_exist_ok=True)
        names = sorted(file.stem for file in args.sites.glob("*.yaml"))
    else:
        names = ["site-1", "site-2", "site-3"]
    settings, _ = read_settings(find_job("fcl"), changes)
    job = write_job(find_job("fcl"), settings, folder / "job")
    federation = InProcessFederation(job=job, workspace=folder / "w", sites=names, run="inversion")
    if federation.contracts[STAGE].exchange is None or len(names) < 2:
        raise SystemExit("needs a study that exchanges features, and two sites")
    federation.run_stage(STAGE)
    return federation


def picture(path: Path, truth: torch.Tensor, rows: Sequence[tuple[str, torch.Tensor]]) -> None:
    """True slices above what the attacker makes of each form."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    places = np.linspace(0, len(truth) - 1, SHOWN).astype(int)
    lines = [("true slice", truth), *rows]
    figure, axes = pyplot.subplots(len(lines), SHOWN, figsize=(1.1 * SHOWN + 1, 1.1 * len(lines)), squeeze=False)
    low, high = float(truth.min()), float(truth.max())
    for row, (name, images) in enumerate(lines):
        for column, place in enumerate(places):
            axes[row][column].imshow(images[place, 0].T, cmap="gray", vmin=low, vmax=high, origin="lower")
            axes[row][column].set(xticks=[], yticks=[])
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """The whole of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=Path, default=None, help="folder of site files; the first is the victim")
    parser.add_argument("--preset", action="append", default=[], help="presets of fcl; may be repeated")
    parser.add_argument("--set", action="append", default=[], help="section.key=value; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of pretraining")
    parser.add_argument("--steps", type=int, default=600, help="steps of each decoder")
    parser.add_argument("--copies", type=int, default=4, help="crops of each of the attacker's slices")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    logging.getLogger("fedmedseg").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        federation = pretrained(args, Path(folder))
        found = scene(federation, copies=args.copies, seed=args.seed)
        baseline = of_part(found.own_images, found.own_parts, found.parts)
        rows: list[tuple[str, torch.Tensor]] = [("mean of part", baseline)]
        forms: dict[str, dict[str, float]] = {}
        for form in FORMS:
            seed = derive_seed(args.seed, "inversion", form.name) % 2**31
            forms[form.name], made = attack(found, form, steps=args.steps, seed=seed)
            rows.append((form.name, made))
        given = {site: len(canonical(entries)["exchange.parts"]) for site, entries in federation.exchanged.items()}
    result = {
        "command": "python benchmarks/feature_inversion.py",
        "study": federation.experiment.study,
        "width": int(found.upload.shape[1]),
        "rounds": args.rounds,
        "decoder_steps": args.steps,
        "victim_slices": len(found.truth),
        "attacker_slices": len(found.own) // args.copies,
        "given": given,
        "chance": 1 / len(found.truth),
        "baseline": quality(baseline, found.truth),
        "forms": forms,
        "seconds": round(time.monotonic() - began, 1),
        "versions": installed_versions(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    picture(args.out.with_suffix(".png"), found.truth, rows)
    return result


def table(result: Mapping[str, Any]) -> str:
    """The figures as a table of a README."""
    lines = [
        "| features | correlation | PSNR | SSIM | slice recognised by its feature | by the decoder's image |",
        "|---|---|---|---|---|---|",
    ]
    base = result["baseline"]
    chance = f"{result['chance']:.3f}"
    lines.append(
        f"| none: mean slice of the part | {base['correlation']:.3f} | {base['psnr']:.1f} dB | {base['ssim']:.3f} | "
        f"{chance} (chance) | {chance} (chance) |"
    )
    for name, one in result["forms"].items():
        lines.append(
            f"| {name} | {one['correlation']:.3f} | {one['psnr']:.1f} dB | {one['ssim']:.3f} | "
            f"{one['recognised_features']:.3f} | {one['recognised_images']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(main()))

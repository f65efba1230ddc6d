"""What a message weighs under each transport, as a share of dense float32, and what that costs in time and in Dice.

    python benchmarks/wire.py
    python benchmarks/wire.py --dice
    python benchmarks/wire.py --dice --set stages.training.rounds=2 --seeds 1

For MONAI's U-Net at its usual size, and for SwinUNETR with --large, the reply of a site and the task of the server are
encoded as FLARE encodes them, names included. With --dice the shipped FedAvg study (--set changes it) runs for each
transport up, each down and each seed, in one process, and the mean test Dice of the sites' models is set beside that of
dense float32. Prints the shares and writes benchmarks/results/wire.json, where results of parts that did not run stay
as they were, and a run of a form and seed that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from torch import nn

from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, setting, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.core.traffic import encoded_bytes
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Schema

RESULT = Path(__file__).parent / "results" / "wire.json"
GOALS = {"fp16": 0.51, "int8": 0.26, "topk": 0.02}
DOWN = ("fp16", "int8")
"""Those of them in which the shared model may travel to the sites."""
FORMS = {
    "fp32": {},
    **{transport: {"transport": transport} for transport in GOALS},
    **{f"{transport} down": {"transport_down": transport} for transport in DOWN},
    "int8 both": {"transport": "int8", "transport_down": "int8"},
}
"""What --dice runs the study under."""
DICE = 0.005
"""Mean Dice that a transport may cost."""


def networks(*, large: bool) -> dict[str, nn.Module]:
    """The networks whose differences are weighed."""
    from monai.networks.nets import SwinUNETR, UNet

    small: dict[str, nn.Module] = {
        "unet": UNet(3, 1, 4, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2, norm="BATCH")
    }
    return {**small, "swin_unetr": SwinUNETR(in_channels=1, out_channels=4, feature_size=48)} if large else small


def weighed(network: nn.Module) -> dict[str, Any]:
    """Share of the dense reply, and processor time of encoding and decoding, for each transport."""
    draws = torch.Generator().manual_seed(1)
    tensors = {name: one for name, one in network.state_dict().items() if one.is_floating_point()}
    differences = {name: torch.randn(one.shape, generator=draws) for name, one in tensors.items()}
    dense = encoded_bytes(DXO(DataKind.WEIGHT_DIFF, data=dict(differences)).to_shareable())
    found: dict[str, Any] = {"megabytes": dense / 1e6}
    for transport in GOALS:
        codec = Codec(transport=transport, schema=Schema(differences))
        began = time.process_time()
        entries, _ = codec.encode(differences)
        middle = time.process_time()
        codec.decode(entries)
        found[transport] = {
            "share": encoded_bytes(DXO(DataKind.WEIGHT_DIFF, data=dict(entries)).to_shareable()) / dense,
            "encode_seconds": middle - began,
            "decode_seconds": time.process_time() - middle,
        }
    task = encoded_bytes(DXO(DataKind.WEIGHTS, data=dict(tensors)).to_shareable())
    for transport in DOWN:
        entries, _ = Codec(transport=transport, schema=Schema(tensors)).encode(tensors)
        found[transport]["share_down"] = encoded_bytes(DXO(DataKind.WEIGHTS, data=dict(entries)).to_shareable()) / task
    return found


def dice_of(form: str, seed: int, changes: Sequence[str] = ()) -> float:
    """Mean test Dice of the sites' models in the shipped FedAvg study, without the reference that trains alone."""
    alone = {"stages": {"fine_tuning": {"rounds": 0}}, "fedavg": {"starts": ["personal"]}}
    wanted = {**alone, "seed": seed, "federation": FORMS[form], "segmentation": {"test_untrained": False}}
    settings, _ = read_settings(find_job("fedavg"), [wanted, *(setting(text) for text in changes)])
    with tempfile.TemporaryDirectory() as folder:
        job = write_job(find_job("fedavg"), settings, Path(folder) / "job")
        federation = InProcessFederation(
            job=job, workspace=Path(folder) / "w", sites=["site-1", "site-2"], run="benchmark"
        )
        for stage in federation.contracts:
            rounds = federation.run_stage(stage)
    figures = [value for site in rounds[-1].values() for name, value in site.items() if name.startswith("dice/")]
    return statistics.fmean(figures)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="SwinUNETR too")
    parser.add_argument("--dice", action="store_true", help="also run the shipped study under each transport")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the study; Dice is their mean")
    parser.add_argument("--set", dest="changes", action="append", default=[], help="one setting of the study")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(given.out.read_text()) if given.out.exists() else {}
    content["versions"] = installed_versions()
    for name, network in networks(large=given.large).items():
        found = weighed(network)
        content[name] = found
        print(f"{name}, {found['megabytes']:.1f} MB dense")
        for transport, goal in GOALS.items():
            one = found[transport]
            times = f"{one['encode_seconds']:.2f} s to encode, {one['decode_seconds']:.2f} s to decode"
            print(f"  {transport}: {one['share']:.4f} of dense from a site to the server (goal {goal}); {times}")
        for transport in DOWN:
            print(f"  {transport}: {found[transport]['share_down']:.4f} of dense from the server to a site")
    write(given.out, content)
    if given.dice:
        measure_dice(content, given.seeds, given.changes, given.out)


def measure_dice(content: dict[str, Any], seeds: Sequence[int], changes: Sequence[str], out: Path) -> None:
    """Run what is missing of each form under each seed, keep each run, print the means and what they cost."""
    study = {"changes": list(changes), "versions": installed_versions()}
    known = content.get("dice", {})
    if {name: known.get(name) for name in study} != study:
        known = {**study, "runs": {}}
    content["dice"] = known
    means = {}
    for form in FORMS:
        runs = known["runs"].setdefault(form, {})
        for seed in seeds:
            if str(seed) not in runs:
                runs[str(seed)] = dice_of(form, seed, changes)
                write(out, content)
        means[form] = statistics.fmean(runs[str(seed)] for seed in seeds)
        cost = means["fp32"] - means[form]
        verdict = "reached" if cost <= DICE else "missed"
        told = "" if form == "fp32" else f", costs {cost:+.4f} (goal {DICE}: {verdict})"
        print(f"  {form}: mean Dice {means[form]:.4f}{told}", flush=True)
    known["costs"] = {form: means["fp32"] - mean for form, mean in means.items()}
    write(out, content)


def write(out: Path, content: dict[str, Any]) -> None:
    """Keep what there is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

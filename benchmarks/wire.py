"""What a reply weighs under each transport, as a share of dense float32, and what that costs in time and in Dice.

    python benchmarks/wire.py
    python benchmarks/wire.py --dice

For MONAI's U-Net at its usual size, and for SwinUNETR with --large, the reply of a site is encoded as FLARE encodes it,
names and headers included. What goes the other way, from the server to a site, is the dense network under every
transport, and is not counted. With --dice the shipped FedAvg study runs once for each transport in one process, and the
mean test Dice of the sites' models is set beside that of dense float32. Prints the shares and writes
benchmarks/results/wire.json, where results of parts that did not run stay as they were.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind
from torch import nn

from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.jobs import find_job, read_settings, write_job
from fedmedseg.core.records import installed_versions
from fedmedseg.core.traffic import encoded_bytes
from fedmedseg.core.transport import Codec
from fedmedseg.core.wire import Schema

RESULT = Path(__file__).parent / "results" / "wire.json"
GOALS = {"fp16": 0.51, "int8": 0.26, "topk": 0.02}
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
    return found


def dice_of(transport: str) -> float:
    """Mean test Dice of the sites' models in the shipped FedAvg study, without the reference that trains alone."""
    alone = {"stages": {"fine_tuning": {"rounds": 0}}, "fedavg": {"starts": ["personal"]}}
    wanted = {**alone, "federation": {"transport": transport}, "segmentation": {"test_untrained": False}}
    settings, _ = read_settings(find_job("fedavg"), [wanted])
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
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    content = json.loads(given.out.read_text()) if given.out.exists() else {}
    content["versions"] = installed_versions()
    for name, network in networks(large=given.large).items():
        found = weighed(network)
        content[name] = found
        print(f"{name}, {found['megabytes']:.1f} MB dense, from a site to the server")
        for transport, goal in GOALS.items():
            one = found[transport]
            times = f"{one['encode_seconds']:.2f} s to encode, {one['decode_seconds']:.2f} s to decode"
            print(f"  {transport}: {one['share']:.4f} of dense (goal {goal}); {times}")
    if given.dice:
        content["dice"] = {}
        for transport in ("fp32", *GOALS):
            content["dice"][transport] = dice_of(transport)
            cost = content["dice"]["fp32"] - content["dice"][transport]
            print(f"  {transport}: mean Dice {content['dice'][transport]:.4f}, costs {cost:+.4f} (goal {DICE})")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

"""A task's CNN, and the transformer with a head for every task [0, 1].

Deviations from the published code: MONAI's DynUNet stands for nnU-Net's plain convolutional U-Net (30,781,970 instead
of 30,790,078 parameters with two inputs and six outputs); its auxiliary outputs come up-sampled to full size. The
transformer's stock output block, which the code builds and never uses (49 parameters), is left out.

[0] Tölle et al., Real world federated learning with a knowledge distilled transformer for cardiac CT imaging, npj
    Digital Medicine 2025, arXiv 2407.07557
[1] https://github.com/Cardio-AI/fed-foundation-model-cardiac-ct, src/models/{nnunet,multihead_swinunetr}.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.blocks import UnetOutBlock
from monai.networks.nets import DynUNet, SwinUNETR
from torch import nn

from fedmedseg.core.config import Experiment
from fedmedseg.core.network_settings import SwinUNETRSection
from fedmedseg.core.seeding import derive_seed
from fedmedseg.data.tasks import TASKS


class Student(nn.Module):
    """MONAI's SwinUNETR up to its last decoder, and a 1 x 1 x 1 output block per task on what that gives.

    At the published size (48 features, two inputs) 62,188,338 parameters, and 49 for each output of each head.

    Args:
        classes: outputs of each task's head, background included.
        channels: inputs, 2 with the heart's structures beside the image.
        section: size of the transformer.
        checkpointing: compute activations again in the backward pass instead of keeping them.
    """

    def __init__(
        self, *, classes: Mapping[str, int], channels: int, section: SwinUNETRSection, checkpointing: bool = False
    ) -> None:
        super().__init__()
        trunk = SwinUNETR(**swin_unetr(section, channels=channels), out_channels=1, use_checkpoint=checkpointing)
        trunk.out = nn.Identity()  # type: ignore[assignment]
        self.trunk = trunk
        self.heads = nn.ModuleDict({task: head(section.feature_size, number) for task, number in classes.items()})

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What every head reads: (B, feature_size, *crop) of images (B, channels, *crop)."""
        found: torch.Tensor = self.trunk(images)
        return found

    def forward(self, images: torch.Tensor, tasks: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Logits (B, classes, *crop) of each of ``tasks`` (None: all)."""
        features = self.features(images)
        return {task: self.heads[task](features) for task in (self.heads if tasks is None else tasks)}


def swin_unetr(section: SwinUNETRSection, *, channels: int) -> dict[str, Any]:
    """Arguments of MONAI's SwinUNETR, plain values, but for its outputs."""
    return {
        "in_channels": channels,
        "feature_size": section.feature_size,
        "depths": list(section.depths),
        "num_heads": list(section.heads),
        "window_size": section.window,
        "dropout_path_rate": section.drop_path,
        "spatial_dims": 3,
        "use_flash_attention": True,
    }


def dynunet(experiment: Experiment, task: str) -> dict[str, Any]:
    """Arguments of MONAI's DynUNet for the CNN of one task, plain values."""
    section = experiment.wing.teacher
    return {
        "spatial_dims": 3,
        "in_channels": channels(experiment),
        "out_channels": TASKS[task].classes,
        "kernel_size": [3] * len(section.filters),
        "strides": list(section.strides),
        "upsample_kernel_size": list(section.strides[1:]),
        "filters": list(section.filters),
        "dropout": ["dropout", {"p": section.dropout}] if section.dropout else None,
        "norm_name": ["INSTANCE", {"affine": True}],
        "deep_supervision": section.supervised > 0,
        "deep_supr_num": max(1, section.supervised),
    }


def head(features: int, classes: int) -> UnetOutBlock:
    """A 1 x 1 x 1 convolution; 98 parameters from 48 features to 2 classes."""
    return UnetOutBlock(spatial_dims=3, in_channels=features, out_channels=classes)


def build_teacher(experiment: Experiment, task: str) -> DynUNet:
    """The CNN of one task; weights depend on the study's seed and the task alone."""
    with _seeded(experiment, "teacher", task):
        teacher = DynUNet(**dynunet(experiment, task))
    for part in list(teacher.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                # MONAI's drops single numbers; nnU-Net's, as published, whole channels
                setattr(part, name, nn.Dropout3d(child.p))
    return teacher


def build_student(experiment: Experiment) -> Student:
    """The transformer with its heads; weights depend on the study's seed alone."""
    assert isinstance(experiment.network, SwinUNETRSection)
    wing = experiment.wing
    with _seeded(experiment, "student"):
        return Student(
            classes={task: TASKS[task].classes for task in wing.tasks},
            channels=channels(experiment),
            section=experiment.network,
            checkpointing=wing.checkpointing,
        )


def build_last_layer(experiment: Experiment, backbone: str) -> nn.Module:
    """The new last layer of a transfer: on the student's features, or on the CNN's."""
    wing = experiment.wing
    width = experiment.network.feature_size if backbone == "student" else wing.teacher.filters[0]  # type: ignore[union-attr]
    with _seeded(experiment, "transfer", backbone):
        return head(width, TASKS[wing.transfer.task].classes)


def channels(experiment: Experiment) -> int:
    """Inputs of every network: the image, and the heart's structures where the study conditions on them."""
    return 2 if experiment.wing.conditioning else 1


def teacher_outputs(teacher: DynUNet, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits (B, classes, *size): in training the deep supervision's levels, finest first, else one."""
    found: torch.Tensor = teacher(images)
    if found.ndim == images.ndim:
        return [found]
    return list(found.unbind(dim=1))


def teacher_features(teacher: DynUNet, images: torch.Tensor) -> torch.Tensor:
    """What the CNN's output block reads: (B, filters[0], *size)."""
    found: torch.Tensor = teacher.skip_layers(images)
    return found


def parameters_of(network: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Copies of the parameters by their names on the wire, on the CPU. Buffers follow from the settings."""
    return {prefix + name: tensor.detach().cpu().clone() for name, tensor in network.named_parameters()}


def load_parameters(network: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Set those parameters of ``network`` that ``tensors`` holds under ``prefix``.

    Raises:
        KeyError: a tensor under that prefix which is none of the network's.
    """
    own = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            if name.startswith(prefix):
                own[name.removeprefix(prefix)].copy_(tensor)


class _seeded:
    """Torch's global generator from the study's seed for a while; left as it was."""

    def __init__(self, experiment: Experiment, *place: str) -> None:
        self._seed = derive_seed(experiment.seed, "cardiac_ct", *place)
        self._fork: Any = None

    def __enter__(self) -> None:
        self._fork = torch.random.fork_rng(devices=[])
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: object) -> None:
        self._fork.__exit__(*error)

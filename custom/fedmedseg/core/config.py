"""experiment.yaml: the one model of a study, read alike by server and sites. Nothing in it is evaluated."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import pkgutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationInfo, create_model, field_validator, model_validator

from fedmedseg.core.errors import ConfigurationError, choose
from fedmedseg.core.schema import Misfit, Strict, parse, read_yaml, worded

LARGEST = 10**9
"""No count, size or number of seconds means anything beyond it, and torch could not take it."""
MOST_ROUNDS = 10**6
MOST_SITES = 10**4
MOST_VOXELS = 2**27
"""512 x 512 x 512: whole volumes of the largest scans; a crop beyond it fits no machine."""

Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(gt=0, strict=True)]
Share = Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
Digest = Annotated[
    str,
    worded(
        r"[0-9a-f]{64}",
        "a SHA-256 as 64 hexadecimal digits; --encoder FILE of `simulate` and `job` writes that of a weight file",
    ),
]


class PhantomSection(Strict):
    """What the simulator writes for a site that has no site file. Never used in a real federation."""

    family: Literal["cine_mr", "late_enhancement_mr", "abdominal_ct", "cardiac_ct"]
    sites: int = Field(3, gt=0, le=MOST_SITES)
    """How many sites `fedmedseg simulate` makes."""
    unlabeled: int = Field(12, ge=0, le=LARGEST)
    training: int = Field(6, ge=0, le=LARGEST)
    validation: int = Field(2, ge=0, le=LARGEST)
    test: int = Field(4, ge=0, le=LARGEST)
    size: tuple[Positive, Positive, Positive] | None = None
    annotation: Literal["style", "shared_out", "published"] = "style"
    """What a site marks: as its style says, or its share of all structures, dealt out in turn among ``sites`` sites.
    ``published`` (cardiac CT): numbers in proportion to the eight hospitals of the published study, where ``training``
    is what the first annotates and ``unlabeled`` what the third holds (``data.phantoms.annotators``)."""
    unseen: int | None = Field(None, ge=1, le=MOST_SITES)
    """Number of a site, from 1, that has a test section alone: it takes part in nothing but evaluation."""
    heart: bool = False
    """Cardiac CT: every volume comes with a label map of the heart's structures, as a segmenter would make it."""

    @model_validator(mode="after")
    def _for_cardiac_ct(self) -> PhantomSection:
        for setting, used in (("annotation", self.annotation == "published"), ("heart", self.heart)):
            if used and self.family != "cardiac_ct":
                raise Misfit(
                    setting,
                    got=getattr(self, setting),
                    expected=f"a setting of family {self.family}; this one belongs to cardiac_ct",
                    remedy=f"leave {setting} out",
                )
        return self


Role = Annotated[str, worded(r"[a-z][a-z0-9_]*", "lower-case letters, digits and underscores that begin with a letter")]


def _consecutive(labels: dict[int, str]) -> dict[int, str]:
    if sorted(labels) != list(range(1, len(labels) + 1)):
        raise Misfit(got=labels, expected="label numbers 1, 2, 3, ... without a gap (0 is background)")
    if len(set(labels.values())) != len(labels):
        raise Misfit(got=labels, expected="each structure's name once")
    return dict(sorted(labels.items()))


Labels = Annotated[dict[Annotated[int, Field(ge=1, le=254)], str], AfterValidator(_consecutive)]


class AlternativeSection(Strict):
    """Another data set that a site may take part with, laid over ``data``: what is not given here is as there."""

    role: Role
    labels: Labels
    modality: Literal["mr", "ct"] | None = None
    window: tuple[float, float] | None = None
    phantom: PhantomSection | None = None
    """Of the simulator's sites, those of ``data`` come first, then those of each alternative in turn."""


class DataSection(Strict):
    """Which data set a study uses and how volumes become crops."""

    role: Role
    modality: Literal["mr", "ct"]
    spatial_dims: Literal[2, 3]
    labels: Labels
    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    """Target spacing in mm per axis; null keeps the scanner's."""
    longest_edge: Positive | None = None
    """After ``spacing``: scale in-plane so that the longer in-plane side has so many voxels; null leaves it."""
    window: tuple[float, float] = (-175.0, 250.0)
    """CT only: the HU range that is mapped to 0..1."""
    intensity: Literal["foreground", "capped", "heart_crop", "whole_scan"] = "foreground"
    """MR. ``foreground``: z-score over what is not air, clipped to +-5; ``capped``: everything above the 96th
    percentile becomes that, then z-score over the whole volume (FedCRLD's published preprocessing).
    CT: left at ``foreground``, ``window`` is mapped to 0..1; ``heart_crop`` and ``whole_scan`` clip, shift and scale by
    constants instead, the same for every case (``preprocessing.FIXED``, the cardiac CT study's two published sets)."""
    crop: tuple[Positive, ...]
    """Crop in voxels after resampling: two numbers in 2D (in-plane), three in 3D."""
    whole_depth: bool = False
    """3D: a crop takes all slices of its volume, however many; crop's third number is then the fewest, to which a
    volume is padded."""
    min_foreground: float = Field(0.1, ge=0.0, lt=1.0)
    """The least share of tissue in a pretraining crop."""
    labelled_fraction: Fraction = 1.0
    """Share of each site's labelled training patients that fine-tuning sees, rounded up to a patient."""
    labelled_patients: Positive | None = None
    """Instead of a share: at most so many of each site's labelled training patients."""
    phantom: PhantomSection | None = None
    alternatives: tuple[AlternativeSection, ...] = ()
    """Other data sets, with label maps of their own, that a site may take part with instead (``data.views``)."""

    @field_validator("alternatives")
    @classmethod
    def _roles_differ(
        cls, alternatives: tuple[AlternativeSection, ...], info: ValidationInfo
    ) -> tuple[AlternativeSection, ...]:
        roles = [info.data.get("role"), *(one.role for one in alternatives)]
        if len(set(roles)) != len(roles):
            raise Misfit(
                got=", ".join(str(role) for role in roles),
                expected="each role once: a site's file offers a role, and that decides which labels are meant",
                remedy="give each data set a role of its own",
            )
        return alternatives

    @model_validator(mode="after")
    def _crop_fits_dimensions(self) -> DataSection:
        if len(self.crop) != self.spatial_dims:
            raise Misfit(
                "crop",
                got=list(self.crop),
                expected=f"{self.spatial_dims} numbers, because data.spatial_dims is {self.spatial_dims}",
                remedy="give crop as many, or set data.spatial_dims to the number of crop's axes; a 2D preset laid "
                "over a 3D one, or the reverse, needs data.spatial_dims as well",
            )
        if self.whole_depth and self.spatial_dims != 3:
            raise Misfit(
                "whole_depth",
                got=True,
                expected="false, because data.spatial_dims is 2: a crop is a part of one slice",
                remedy="leave whole_depth out, or set data.spatial_dims to 3 and give crop three numbers",
            )
        if math.prod(self.crop) > MOST_VOXELS:
            raise Misfit(
                "crop",
                got=list(self.crop),
                expected=f"at most {MOST_VOXELS} voxels, as in 512 x 512 x 512",
                remedy="give crop in voxels, not in millimetres or bytes; 96 on an axis is usual",
            )
        fitting = {"mr": ("foreground", "capped"), "ct": ("foreground", "heart_crop", "whole_scan")}[self.modality]
        if self.intensity not in fitting:
            raise Misfit(
                "intensity",
                got=self.intensity,
                expected=f"{' or '.join(fitting)} with modality {self.modality}",
                remedy="leave intensity out",
            )
        if self.labelled_patients is not None and self.labelled_fraction != 1.0:
            raise Misfit(
                "labelled_patients",
                got=f"{self.labelled_patients}, and labelled_fraction {self.labelled_fraction:g}",
                expected="one of the two",
                remedy="leave labelled_fraction out to count patients, or labelled_patients to take a share",
            )
        if self.window[0] >= self.window[1]:
            raise Misfit("window", got=list(self.window), expected="(low, high) in HU with low < high")
        return self

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labels) + 1

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role with which a site can take part."""
        return (self.role, *(one.role for one in self.alternatives))

    @property
    def structures(self) -> tuple[str, ...]:
        """Every structure that some site marks, once: those of ``labels`` first, then what alternatives add."""
        return tuple(
            dict.fromkeys([*self.labels.values(), *(n for one in self.alternatives for n in one.labels.values())])
        )


class SwinUNETRSection(Strict):
    """MONAI SwinUNETR; the field's usual size is feature_size 48, window 7."""

    name: Literal["swin_unetr"]
    feature_size: int = Field(48, gt=0, le=LARGEST, multiple_of=12)
    depths: tuple[Positive, Positive, Positive, Positive] = (2, 2, 2, 2)
    heads: tuple[Positive, Positive, Positive, Positive] = (3, 6, 12, 24)
    window: Positive = 7
    drop_path: float = Field(0.0, ge=0.0, lt=1.0)
    pretrained: Digest | None = None
    """SHA-256 of the encoder that pretraining starts from, which lies in the job's config folder
    (``core.encoder_file``); unset: random weights from the study's seed."""

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return 32


class UNETRSection(Strict):
    """MONAI UNETR on a 12-layer ViT with 16-voxel patches."""

    name: Literal["unetr"]
    feature_size: Positive = 16
    hidden_size: Positive = 768
    mlp_dim: Positive = 3072
    heads: Positive = 12
    pretrained: Digest | None = None
    """As in ``SwinUNETRSection``."""

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return 16

    @model_validator(mode="after")
    def _heads_divide(self) -> UNETRSection:
        if self.hidden_size % self.heads:
            raise Misfit(
                "heads",
                got=self.heads,
                expected=f"a divisor of network.hidden_size ({self.hidden_size})",
                remedy="change network.heads or network.hidden_size",
            )
        return self


class RelocalizationSection(Strict):
    """FedCRLD's network of a shared and a private encoder; its own system builds it (``fedcrld.network``)."""

    name: Literal["relocalization"]
    width: int = Field(64, gt=0, le=LARGEST, multiple_of=8)
    """Channels of the first block; 64 is the published size."""
    faithful_reshape: bool = False
    """Tokens of the attention by a raw reshape that mixes channels and positions, as in the published code."""
    pretrained: None = None
    """No encoder file exists for this network."""

    @property
    def input_multiple(self) -> int:
        """Both in-plane edges of a crop divide by this; any number of slices will do."""
        return 8


class UNetSection(Strict):
    """MONAI UNet, residual; the defaults are the 4.8 M parameters of SegViz's public code."""

    name: Literal["unet"]
    channels: tuple[Positive, ...] = Field((16, 32, 64, 128, 256), min_length=2)
    strides: tuple[Positive, ...] | None = None
    """From one level to the next; unset: 2 everywhere."""
    res_units: int = Field(2, ge=0, le=LARGEST)
    norm: Literal["batch", "instance", "instance_affine"] = "batch"
    """``instance`` is MONAI's default: without a scale and a shift of its own, and so without any tensor."""

    @property
    def steps(self) -> tuple[int, ...]:
        """The strides, written out."""
        return self.strides or (2,) * (len(self.channels) - 1)

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return math.prod(self.steps)

    @property
    def pretrained(self) -> None:
        """No pretraining is made for it."""
        return None

    @model_validator(mode="after")
    def _a_stride_between_levels(self) -> UNetSection:
        if len(self.steps) != len(self.channels) - 1:
            raise Misfit(
                "strides",
                got=list(self.steps),
                expected=f"{len(self.channels) - 1} numbers, one between two of the {len(self.channels)} channels",
                remedy="give one fewer than channels, or leave strides out",
            )
        return self


class BasicUNetSection(Strict):
    """MONAI BasicUNet: two convolutions a level, max-pooling; the defaults are those of FCL's sibling code on ACDC."""

    name: Literal["basic_unet"]
    features: tuple[Positive, Positive, Positive, Positive, Positive] = (48, 96, 192, 384, 768)
    """Channels of the encoder's four levels and its centre; the last level of the decoder has those of the first."""
    norm: Literal["batch", "instance", "group"] = "batch"
    """``group``: GroupNorm of 8 channels a group, which no batch leaks through."""
    centre: Literal["plain", "norm"] = "plain"
    """``plain``: convolution and ReLU without a norm, as in the sibling code; ``norm``: as on the levels above."""
    pretrained: None = None
    """No encoder file exists for this network."""

    @property
    def input_multiple(self) -> int:
        """Every crop edge divides by this."""
        return 16

    @model_validator(mode="after")
    def _groups_divide(self) -> BasicUNetSection:
        if self.norm == "group" and any(width % 8 for width in self.features):
            raise Misfit(
                "features",
                got=list(self.features),
                expected="multiples of 8 with network.norm group, whose groups are 8 channels wide",
                remedy="change network.features, or use batch or instance",
            )
        return self


NetworkSection = Annotated[
    SwinUNETRSection | UNETRSection | UNetSection | BasicUNetSection | RelocalizationSection,
    Field(discriminator="name"),
]


class OptimizerSection(Strict):
    """AdamW with linear warm-up and cosine decay over the whole stage."""

    learning_rate: float = Field(gt=0.0)
    weight_decay: float = Field(0.05, ge=0.0)
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_fraction: float = Field(0.05, ge=0.0, lt=1.0)
    clip_norm: float = Field(3.0, gt=0.0)


class SGDSection(Strict):
    """SGD with momentum; a system says how its rate moves."""

    learning_rate: float = Field(gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)


class SegmentationSection(Strict):
    """Supervised training, validation and test, shared by every system."""

    fine_tuning: Literal["local", "federated"] = "local"
    """``local``: every site trains a network of its own; ``federated``: one per start, averaged after every round
    of the stage (FedAvg, McMahan et al. 2017), of which each site keeps the round that does best on its validation."""
    steps: Positive
    """Optimiser steps of a site, over all rounds of the stage."""
    batch: Positive = 4
    optimizer: OptimizerSection
    encoder_rate_factor: Fraction = 0.1
    """Learning-rate factor of a pretrained encoder, so that the still random decoder does not spoil it."""
    encoder_rate_share: Fraction = 0.1
    """Share of the steps, from the first, in which that factor holds; 1.0 holds it to the end."""
    validate_every: Positive = 100
    """Steps between two validations; a federated training validates at the first round that has done so many more."""
    overlap: float = Field(0.5, ge=0.0, lt=1.0)
    """Sliding-window overlap."""
    foreground_share: float = Field(0.67, ge=0.0, le=1.0)
    """Share of crops centred on a labelled voxel."""
    augment: bool = True
    augmentation: Literal["flips", "elastic", "affine"] = "flips"
    """``flips``: mirror images, quarter turns, small changes of intensity; ``elastic``: mirror images, and one random
    turn, scale and elastic deformation in-plane, the same in all slices; ``affine``: small turns about z, scales and
    changes of intensity of every crop, CT's too (``data.augmentation``)."""
    test_untrained: bool = True
    """Test the untrained network too, the floor that any training must clear; a study of many runs can do without."""


class StageSection(Strict):
    """How often the server asks for a stage, and how long it waits."""

    rounds: int = Field(default=1, ge=0, le=MOST_ROUNDS)
    """0 leaves the stage out, where the system can do without it."""
    timeout: Positive | None = None
    """Seconds a round may take; unset: federation.timeout."""


class RobustSection(Strict):
    """What bounds a single site's influence on the shared model (``core.robust``)."""

    rule: Literal["mean", "trimmed_mean", "median", "krum"] = "mean"
    """In place of the mean, in every stage whose rule is one: number by number the mean without the ``faulty`` least
    and largest, or the median, or the one update nearest to the others. Sites then count alike, however many cases."""
    clip: Literal["none", "median"] = "none"
    """``median``: an update longer than the running median of the sites' lengths is brought to it, before any rule."""
    faulty: Positive = 1
    """How many sites may be faulty, or in league: the rules hold from 2 faulty + 1 sites on, ``krum`` from
    2 faulty + 3; with fewer the study is refused, and a round stays below its quorum."""

    @property
    def acts(self) -> bool:
        """Whether anything is changed, not only told."""
        return self.rule != "mean" or self.clip != "none"

    @property
    def least(self) -> int:
        """Sites that a round needs at least for the rule to hold."""
        if not self.acts:
            return 1
        return 2 * self.faulty + (3 if self.rule == "krum" else 1)

    @property
    def named(self) -> str:
        """The rule and its condition, for messages."""
        what = self.rule if self.clip == "none" else f"{self.rule} with clip {self.clip}"
        return f"{what} with {self.faulty} faulty"

    @model_validator(mode="after")
    def _read(self) -> RobustSection:
        if self.faulty != 1 and not self.acts:
            raise Misfit(
                "faulty",
                got=self.faulty,
                expected="nothing here: it is read with a rule other than mean, or clip median",
                remedy="remove faulty, or choose a rule",
            )
        return self


class FederationSection(Strict):
    """Quorum and patience."""

    quorum: (
        Literal["all"] | Annotated[int, Field(gt=0, strict=True)] | Annotated[float, Field(gt=0.0, lt=1.0, strict=True)]
    ) = "all"
    """``all``, a count, or a fraction below 1 of the sites that take part in the stage."""
    timeout: Positive = 3600
    wait_after_quorum: Positive | None = None
    """Seconds to wait for the rest once as many sites as the quorum have answered, whether they succeeded or not;
    unset: the stage's timeout. A short wait may leave out sites that are still training."""
    no_progress_rounds: Positive = 3
    """The job fails when the shared model has not changed for so many rounds; cannot be seen under encryption."""
    encryption: Literal["none", "ckks"] = "none"
    """``ckks``: sites encrypt their differences and the server adds them up unread (``core.ckks``). For stages whose
    rule is a weighted mean, in a federation whose kits hold the keys; privacy/README.md says what it turns off."""
    transport: Literal["fp32", "fp16", "int8", "topk"] = "fp32"
    """How the differences of a site travel to the server (``core.transport``): as they are, in half or a quarter of the
    bytes, or the largest of a hundred numbers, with what was not sent added to the next round's."""
    transport_down: Literal["fp32", "fp16", "int8"] = "fp32"
    """How the shared tensors travel to the sites. The server keeps them as they are; every site starts from what it
    decodes, bit for bit the same everywhere. There is no ``topk``: a network is no difference, and a hundredth of it is
    none at all."""
    robust: RobustSection = Field(default_factory=lambda: RobustSection.model_validate({}))
    """Bounds on the influence of single sites; none by default, when they are only told of."""

    @model_validator(mode="after")
    def _settings_suit_each_other(self) -> FederationSection:
        if self.robust.acts and self.encryption != "none":
            raise Misfit(
                "robust",
                got=f"{self.robust.named} and encryption {self.encryption}",
                expected="no rule that compares the sites' updates, which the server then cannot read",
                remedy="remove robust, or set encryption to none",
            )
        if self.transport != "fp32" and self.encryption != "none":
            raise Misfit(
                "transport",
                got=f"{self.transport} with encryption {self.encryption}",
                expected="fp32: what is encrypted has no scales or places that a server could read",
                remedy="remove transport, or set encryption to none",
            )
        if self.transport_down != "fp32" and self.encryption != "none":
            raise Misfit(
                "transport_down",
                got=f"{self.transport_down} with encryption {self.encryption}",
                expected="fp32: sites add encrypted sums to exactly what the server sent",
                remedy="remove transport_down, or set encryption to none",
            )
        if self.transport == "topk" and self.robust.rule in ("trimmed_mean", "median"):
            raise Misfit(
                "transport",
                got=f"topk with robust.rule {self.robust.rule}",
                expected="another transport: number by number most sites send nothing, and that would be the median",
                remedy="use fp16 or int8, or robust.clip",
            )
        if isinstance(self.quorum, int) and self.quorum < self.robust.least:
            raise Misfit(
                "quorum",
                got=self.quorum,
                expected=f"at least {self.robust.least}, below which {self.robust.named} does not hold",
                remedy="raise quorum, or lower robust.faulty",
            )
        return self

    def needed(self, taking_part: int) -> int:
        """The number of accepted replies a round needs."""
        if self.quorum == "all":
            return taking_part
        if isinstance(self.quorum, float):
            # 0.55 * 100 is a little more than 55 in floating point, and still means 55
            return max(1, math.ceil(self.quorum * taking_part - 1e-9))
        return self.quorum


class ComputeSection(Strict):
    """What a site computes with."""

    threads: Positive = 1
    """Torch threads per site; fixed, so that results do not depend on how many sites run at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_seconds: float = Field(30.0, ge=0.0)
    """A running task is saved at most this often, so that a killed process continues."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Of forward passes (``core.compute``); weights, gradients and losses are float32 always. ``auto``, here and in
    the next two, lets each site time its own network on its own machine once and remember what is fastest, which is
    never slower than plain float32. What a clock decides may come out differently on another machine or after the
    site's cache was emptied, and other arithmetic gives other last bits: a study whose results must repeat byte for
    byte keeps the fixed defaults, one that must be fast sets all three to ``auto``."""
    attention: Literal["fused", "explicit", "auto"] = "fused"
    """One kernel for softmax attention where MONAI has it, or attention written out."""
    layout: Literal["contiguous", "channels_last", "auto"] = "contiguous"
    """Order of convolutions' tensors in memory."""


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
    import fedmedseg

    root = Path(fedmedseg.__file__).parent
    return sorted(
        module.name for module in pkgutil.iter_modules([str(root)]) if (root / module.name / "plan.py").is_file()
    )


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
    """Read and validate an experiment.yaml."""
    return parse_experiment(read_yaml(Path(path)), source=Path(path).name)

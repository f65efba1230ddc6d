"""The section ``data`` of experiment.yaml: which data set, how it is prepared, and phantoms in its place."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from fedmedseg.core.bounds import LARGEST, MOST_SITES, MOST_VOXELS, Fraction, Positive
from fedmedseg.core.schema import Misfit, Strict, worded


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

    @field_validator("size")
    @classmethod
    def _of_a_scan(cls, size: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if size is not None and math.prod(size) > MOST_VOXELS:
            raise Misfit(
                got=" x ".join(map(str, size)), expected=f"at most {MOST_VOXELS} voxels", remedy="draw it smaller"
            )
        return size

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


ROLE_PATTERN = r"[a-z][a-z0-9_]*"
ROLE_WORDS = "lower-case letters, digits and underscores that begin with a letter"
Role = Annotated[str, worded(ROLE_PATTERN, ROLE_WORDS)]


def _consecutive(labels: dict[int, str]) -> dict[int, str]:
    if sorted(labels) != list(range(1, len(labels) + 1)):
        raise Misfit(got=labels, expected="label numbers 1, 2, 3, ... without a gap (0 is background)")
    if len(set(labels.values())) != len(labels):
        raise Misfit(got=labels, expected="each structure's name once")
    return dict(sorted(labels.items()))


MOST_LABELS = 254
"""The largest number of a label."""
Labels = Annotated[dict[Annotated[int, Field(ge=1, le=MOST_LABELS)], str], AfterValidator(_consecutive)]


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

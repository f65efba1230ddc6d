"""The volumes of one section at one site: checked, preprocessed once, cached on disk and mapped when used."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch

from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import DataError, Reason
from fedmedseg.core.progress import Progress
from fedmedseg.core.seeding import generator
from fedmedseg.data.cache import Cache
from fedmedseg.data.checks import Admission, CaseRejected, admit, read_voxels
from fedmedseg.data.datalist import Case, read_datalist
from fedmedseg.data.geometry import axial, spacing_of
from fedmedseg.data.landmarks import Place, read_landmarks
from fedmedseg.data.preprocessing import (
    Prepared,
    Steps,
    back_to_native,
    entry_digest,
    heart_on,
    prepare_heart,
    prepare_image,
    prepare_label,
)
from fedmedseg.data.site import Site
from fedmedseg.data.stacks import Stack, stack_of

logger = logging.getLogger(__name__)

Section = Literal["unlabeled", "training", "validation", "test", "scans"]


class Volumes:
    """Read-only access to the volumes of one section, in an order that depends on patients and file names only.

    ``unlabeled`` holds the entries of that section and the images of ``training`` without their labels, ``scans`` the
    same with those of ``training``; a patient of validation or test is never among them. ``fraction`` keeps that share
    of the patients, rounded up, ``patients`` at most so many of those; the fewer are a subset of the more.

    Raises:
        ConfigurationError: no such role or data list.
        DataError: reason NO_CASES where fewer than the site's ``min_cases`` are left (at least one for
            validation and test); reason DATA where every volume is smaller than the crop.
    """

    def __init__(
        self,
        *,
        site: Site,
        experiment: Experiment,
        section: Section,
        fraction: float = 1.0,
        patients: int | None = None,
    ) -> None:
        self.site, self.experiment, self.section, self.fraction = site, experiment, section, fraction
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must lie in (0, 1], not {fraction}")
        data = experiment.data
        self._cache = Cache(folder=site.cache)
        named = listed(read_datalist(site.data_list(data.role), salt=site.salt), section)
        admission = admit(named, data=data, budget_mb=site.volume_budget_mb, cache=self._cache)
        self.quarantined: dict[str, str] = dict(admission.quarantined)
        needed = site.min_cases if section in ("training", "unlabeled", "scans") else 1
        self._require(len(admission.valid), len(named), needed)
        chosen = choose_patients([case.patient for case in admission.valid], fraction, experiment.seed, patients)
        self.cases: list[Case] = []
        self._digests: list[tuple[str, str]] = []
        self._meta: list[dict[str, Any]] = []
        self._points: list[list[list[int]]] = []
        self._hearts: list[str | None] = []
        fresh = self._prepare([case for case in admission.valid if case.patient in chosen], admission)
        self._require(len(self.cases), len(named), needed if fraction == 1.0 and patients is None else 1)
        self.patients: list[str] = sorted({case.patient for case in self.cases})
        self._tell(len(named), fresh)

    def __len__(self) -> int:
        return len(self.cases)

    def image(self, index: int) -> np.ndarray:
        """Normalised image, float32 (1, X, Y, Z), read-only."""
        return self._cache.array(self._digests[index][0], "image")[None]

    def label(self, index: int) -> np.ndarray | None:
        """Label map on the preprocessed grid, uint8 (X, Y, Z), read-only; None without a label."""
        if self.cases[index].label is None:
            return None
        return self._cache.array(self._digests[index][1], "label")

    def landmarks(self, index: int) -> dict[str, Place | None]:
        """Points of the case's file in mm of the world, None for one that is not in the scan; empty without a file.

        Raises:
            DataError: the file can no longer be read.
        """
        path = self.cases[index].landmarks
        if path is None:
            return {}
        try:
            return read_landmarks(path)
        except CaseRejected:
            logger.warning("case %s: its landmark file can no longer be read", self.cases[index].key)
            raise DataError(
                "landmarks", got="a file that can no longer be read", expected="what it held", reason=Reason.UNREADABLE
            ) from None

    def to_voxel(self, index: int, points: np.ndarray) -> np.ndarray:
        """Points (N, 3) in mm of the world as continuous voxels of the preprocessed grid; rows of nan stay so."""
        return Steps.of(self._meta[index]).to_voxel(points)

    def to_world(self, index: int, voxels: np.ndarray) -> np.ndarray:
        """Continuous voxels (N, 3) of the preprocessed grid in mm of the world; rows of nan stay so."""
        return Steps.of(self._meta[index]).to_world(voxels)

    def heart(self, index: int) -> np.ndarray | None:
        """The heart's structures on the preprocessed grid, uint8 (X, Y, Z), read-only; None without that file."""
        digest = self._hearts[index]
        return None if digest is None else self._cache.array(digest, "heart")

    def spacing(self, index: int) -> tuple[float, float, float]:
        """mm per voxel of the preprocessed grid."""
        x, y, z = self._meta[index]["spacing"]
        return x, y, z

    def stack(self, index: int) -> Stack:
        """The volume's slices as a stack: how many, how thick, which way."""
        meta = self._meta[index]
        return stack_of(np.array(meta["target_affine"]), int(meta["target_shape"][2]))

    def native_label(self, index: int) -> np.ndarray:
        """Label map on the file's own grid, uint8.

        Raises:
            DataError: the case has no label, or its file has become unreadable.
        """
        label = self.cases[index].label
        if label is None:
            raise DataError("label", got=f"case {self.cases[index].key} without one", expected="a labelled case")
        try:
            return np.rint(read_voxels(label)).astype(np.uint8)
        except (CaseRejected, OSError):
            # the key is for the site's own log: the error's field may be told to the server
            logger.warning("case %s: its label file can no longer be read", self.cases[index].key)
            raise DataError(
                "label", got="a file that can no longer be read", expected="a readable file", reason=Reason.UNREADABLE
            ) from None

    def native_spacing(self, index: int) -> tuple[float, float, float]:
        """mm per voxel of the file's own grid."""
        return spacing_of(np.array(self._meta[index]["native_affine"]))

    def native_image(self, index: int) -> np.ndarray:
        """Values as the file has them, float32 (X', Y', Z') on its own grid: HU in CT.

        Raises:
            DataError: the file has become unreadable.
        """
        try:
            return read_voxels(self.cases[index].image)
        except (CaseRejected, OSError):
            logger.warning("case %s: its image file can no longer be read", self.cases[index].key)
            raise DataError(
                "image", got="a file that can no longer be read", expected="a readable file", reason=Reason.UNREADABLE
            ) from None

    def native_heart(self, index: int) -> np.ndarray:
        """The heart's structures on the image file's own grid, uint8 (X', Y', Z').

        Raises:
            DataError: the case has no such map, or its file has become unreadable.
        """
        case = self.cases[index]
        try:
            return heart_on(Steps.of(self._meta[index]).native, case)
        except (CaseRejected, OSError):
            logger.warning("case %s: its map of the heart can no longer be read", case.key)
            raise DataError(
                "heart", got="a file that can no longer be read", expected="a readable file", reason=Reason.UNREADABLE
            ) from None

    def slice_axis(self, index: int) -> int:
        """Which axis of the file's own grid, 0 to 2, leads from the feet to the head: axial slices lie along it."""
        return axial(np.array(self._meta[index]["native_affine"]))

    def to_native(self, index: int, probabilities: torch.Tensor) -> torch.Tensor:
        """``probabilities`` (C, X, Y, Z) of the preprocessed grid on the file's own grid (C, X', Y', Z').

        Padding is cut off, then values are interpolated linearly (copied exactly where nothing was
        resampled), then axes are turned back. Same device, float32.
        """
        return back_to_native(probabilities, self._meta[index])

    def tissue(self, index: int) -> float:
        """Normalised intensity above which a voxel is tissue rather than air."""
        return float(self._meta[index]["tissue"])

    def slice_tissue(self, index: int) -> np.ndarray:
        """Share of tissue in each slice along the last axis, float (Z,)."""
        return np.asarray(self._meta[index]["slice_tissue"])

    def points(self, index: int) -> dict[int, np.ndarray]:
        """For each structure present: voxels to centre crops on, int32 (N, 3). Empty without a label."""
        rows = self._points[index]
        if not rows:
            return {}
        points = self._cache.array(self._digests[index][1], "points")
        return {value: points[start:stop] for value, start, stop in rows}

    def _prepare(self, cases: list[Case], admission: Admission) -> int:
        """Fill the cache where needed; the number of volumes that had to be preprocessed."""
        data, sha256 = self.experiment.data, admission.sha256
        work = f"preparing {self.section} volumes"
        progress = Progress(site=self.site.name, stage=work, round=0, rounds=1)
        too_small: list[tuple[int, ...]] = []
        fresh = 0
        for number, case in enumerate(cases):
            digests = (entry_digest(sha256[case.key][:1], data), entry_digest(sha256[case.key], data))
            try:
                meta, made = self._entry(digests[0], case, partial(prepare_image, case, data))
                label_meta: dict[str, Any] = {"points": []}
                if case.label is not None:
                    label_meta, label_made = self._entry(digests[1], case, partial(prepare_label, case, meta))
                    made = made or label_made
                heart = None
                if case.heart is not None:
                    heart = entry_digest([sha256[case.key][0], "heart", admission.heart_sha256[case.key]], data)
                    made = self._entry(heart, case, partial(prepare_heart, case, meta))[1] or made
            except CaseRejected as rejected:
                self.quarantined[case.key] = rejected.reason
                if rejected.shape is not None:
                    too_small.append(rejected.shape)
                continue
            if made:
                fresh += 1
                progress.update(work, number + 1, len(cases))
            self.cases.append(case)
            self._digests.append(digests)
            self._meta.append(meta)
            self._points.append(label_meta["points"])
            self._hearts.append(heart)
        if too_small and not self.cases:
            smallest = min(too_small, key=lambda shape: min(s / c for s, c in zip(shape, data.crop, strict=False)))
            raise DataError(
                "data.crop",
                got=f"{data.crop}, while the smallest of {len(too_small)} volumes has {smallest} voxels",
                expected=f"volumes of at least three quarters of the crop along each axis in section {self.section}",
                remedy="make data.crop smaller, or data.spacing finer",
            )
        return fresh

    def _entry(self, digest: str, case: Case, make: Callable[[], Prepared]) -> tuple[dict[str, Any], bool]:
        """Figures of a cached entry, made where there is none, and whether it was made now.

        Raises:
            CaseRejected: now or when it was tried before.
        """
        meta = self._cache.meta(digest)
        if meta is not None:
            if "rejected" in meta:
                raise CaseRejected(meta["rejected"], shape=meta["shape"] and tuple(meta["shape"]))
            return meta, False
        try:
            prepared = make()
        except CaseRejected as rejected:
            logger.warning("case %s set aside: %s", case.key, rejected.reason)
            self._cache.write_entry(digest, {}, {"rejected": rejected.reason, "shape": rejected.shape})
            raise
        except (OSError, MemoryError) as error:
            # not remembered: the disk or the machine may recover
            reason = "not enough memory" if isinstance(error, MemoryError) else "file cannot be read"
            logger.warning("case %s set aside: %s", case.key, reason)
            raise CaseRejected(reason) from None
        self._cache.write_entry(digest, prepared.arrays, prepared.meta)
        return prepared.meta, True

    def _require(self, left: int, listed: int, needed: int) -> None:
        if left < needed:
            raise DataError(
                f"section {self.section}",
                got=f"{left} usable of {listed} listed cases" + self._reasons(),
                expected=f"at least {needed}",
                remedy="add cases to the data list or mend those set aside",
                reason=Reason.NO_CASES,
            )

    def _reasons(self) -> str:
        counted = sorted(Counter(self.quarantined.values()).items())
        return "; set aside: " + ", ".join(f"{reason} ({count})" for reason, count in counted) if counted else ""

    def _tell(self, listed: int, fresh: int) -> None:
        logger.log(
            logging.WARNING if self.quarantined else logging.INFO,
            "%s: %d volumes of %d patients in use, %d listed, %d prepared now%s",
            self.section,
            len(self.cases),
            len(self.patients),
            listed,
            fresh,
            self._reasons(),
        )


def choose_patients(patients: list[str], fraction: float, seed: int, most: int | None = None) -> set[str]:
    """ceil(fraction x number) of the patients, at most ``most``, in an order the seed fixes: fractions are nested."""
    known = sorted(set(patients))
    # 0.1 x 30 is a hair above 3 in binary numbers
    count = math.ceil(fraction * len(known) - 1e-9)
    order = generator(seed, "patients that count").permutation(len(known))
    return {known[place] for place in order[: count if most is None else min(count, most)]}


def listed(sections: dict[str, list[Case]], section: Section) -> list[Case]:
    """The cases that ``Volumes`` of ``section`` takes from a data list, admitted or not."""
    if section not in ("unlabeled", "scans"):
        return sections[section]
    held_out = {name for part in ("validation", "test") for c in sections[part] for name in (c.patient, str(c.image))}
    found: dict[str, Case] = {}
    left_out = 0
    # what stands in unlabeled is unlabelled, whatever files it names
    training = sections["training"] if section == "scans" else [without_label(case) for case in sections["training"]]
    for case in [*map(without_label, sections["unlabeled"]), *training]:
        if case.patient in held_out or str(case.image) in held_out:
            left_out += 1
            continue
        found[str(case.image)] = case
    if left_out:
        logger.warning("unlabeled: %d volumes left out because their patients are in validation or test", left_out)
    return sorted(found.values(), key=lambda case: (case.patient, case.image.name, str(case.image)))


def without_label(case: Case) -> Case:
    """The image alone, with the heart's structures, which are no annotation but come with it."""
    return replace(case, label=None, annotated_labels=None, allow_empty=False, landmarks=None)


def training_volumes(site: Site, experiment: Experiment) -> Volumes:
    """A site's labelled volumes, after ``data.labelled_fraction`` or ``data.labelled_patients``."""
    data = experiment.data
    return Volumes(
        site=site,
        experiment=experiment,
        section="training",
        fraction=data.labelled_fraction,
        patients=data.labelled_patients,
    )

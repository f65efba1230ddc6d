"""Label maps as NIfTI in the geometry of the image they were made of, the same bytes whenever they are written.

Of the image's header only its geometry is taken over: what somebody wrote into the other fields (a name, perhaps) and
extensions stays behind.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from fedmedseg.core.atomic import write_atomic
from fedmedseg.core.errors import ConfigurationError, DataError, why
from fedmedseg.data.checks import open_nifti

ENDINGS = (".nii.gz", ".nii")
ROOM = "make room or rights there, or choose another place"
"""How to mend a place that cannot be written."""
GEOMETRY = (
    "qform_code",
    "sform_code",
    *(f"quatern_{axis}" for axis in "bcd"),
    *(f"qoffset_{axis}" for axis in "xyz"),
    *(f"srow_{axis}" for axis in "xyz"),
)
"""Fields of a NIfTI header that place its voxels in space, beside the voxel's size."""


def write_label_map(path: Path, labels: np.ndarray, image: Path) -> None:
    """Write ``labels`` (X, Y, Z), whole numbers, as NIfTI in the geometry of ``image``, whole or not at all.

    uint8 where the numbers allow it, else uint16. Neither a time nor a file's name is in it.

    Raises:
        CaseRejected: ``image`` is no NIfTI file.
        DataError: labels of another shape than the image's, or beyond 65535.
        ConfigurationError: the folder is full or cannot be written.
    """
    content = _nifti(labels, open_nifti(image))
    if path.name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    try:
        write_atomic(path, content)
    except OSError as error:
        raise ConfigurationError(
            "label map", got=f"{path} ({why(error)})", expected="a file that can be written", remedy=ROOM
        ) from None


def _nifti(labels: np.ndarray, image: Any) -> bytes:
    import nibabel as nib

    if labels.shape != image.shape:
        raise DataError("label map", got=labels.shape, expected=f"the image's shape {image.shape}")
    highest = int(labels.max(initial=0))
    if highest > np.iinfo(np.uint16).max or labels.min(initial=0) < 0:
        raise DataError("label map", got=f"numbers up to {highest}", expected="0 to 65535")
    written = nib.Nifti1Image(labels.astype(np.uint8 if highest <= np.iinfo(np.uint8).max else np.uint16), image.affine)
    header = written.header
    # nibabel would state the affine in its own way; as it stood, it comes back to the last bit
    if image.header["sform_code"] > 0 or image.header["qform_code"] > 0:
        header["pixdim"][:4] = image.header["pixdim"][:4]
        for field in GEOMETRY:
            header[field] = image.header[field]
    header.set_xyzt_units("mm")
    content: bytes = written.to_bytes()
    return content

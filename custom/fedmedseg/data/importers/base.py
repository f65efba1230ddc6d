"""What every importer of a public data set agrees on: cases, a collection, and the protocol."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedmedseg.core.errors import ConfigurationError, DataError, FedMedSegError, Reason, why

Tick = Callable[[int, int], None]
"""Told (done, of) while something long is read or written."""

VOLUME_SUFFIXES = (".nii.gz", ".nii")

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What only a disk that is written to says of its room."""
READ_ONLY = frozenset({errno.EROFS})


class Content(Protocol):
    """Where the voxels of a case come from."""

    @property
    def has_label(self) -> bool:
        """Whether a label belongs to the image."""
        ...

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        """Write the image, and the label where ``label`` names a file.

        Raises:
            DataError: the source cannot be read.
        """
        ...

    def volume_mm3(self) -> float:
        """Volume of the image's field of view in cubic millimetres."""
        ...


class Further(Protocol):
    """A further map that belongs to an image, such as the heart's structures."""

    def write(self, target: Path) -> None:
        """Write it as ``.nii.gz``.

        Raises:
            DataError: the source cannot be read.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SourceCase:
    """One volume of a data set. ``group`` is the set's own partition (a diagnosis, a hospital), if it has one."""

    name: str
    patient: str
    content: Content
    suffix: str = ".nii.gz"
    group: str | None = None
    annotated_labels: tuple[int, ...] | None = None
    landmarks: Path | None = None
    heart: Further | None = None

    @property
    def annotated(self) -> bool:
        """Whether somebody drew or placed something: a label, or points."""
        return self.content.has_label or self.landmarks is not None


@dataclass(frozen=True, kw_only=True)
class Collection:
    """All cases an importer found. ``skipped`` counts what could not be used, per reason."""

    cases: Sequence[SourceCase]
    labels: Mapping[int, str] = field(default_factory=dict)
    skipped: Mapping[str, int] = field(default_factory=dict)
    role: str | None = None

    @property
    def groups(self) -> list[str]:
        """The set's own groups in the order in which they appear; empty where any case has none."""
        found = dict.fromkeys(case.group for case in self.cases)
        return [] if None in found else [group for group in found if group is not None]


class Importer(Protocol):
    """Reads one public data set in the layouts in which it is handed out."""

    @property
    def name(self) -> str:
        """What the user types."""
        ...

    @property
    def role(self) -> str | None:
        """The role its data lists serve unless the user names another; None takes it from the set itself."""
        ...

    def read(self, source: Path, *, tick: Tick) -> Collection:
        """Find every case below ``source`` without copying a voxel.

        Raises:
            ConfigurationError: the folder is not laid out as this set is.
            DataError: the layout is right and no case can be used.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FilePair:
    """Content that already lies in NIfTI files. ``channel`` picks one channel of a four-dimensional image."""

    image: Path
    label: Path | None = None
    channel: int | None = None

    @property
    def has_label(self) -> bool:
        """Whether a label file belongs to the image."""
        return self.label is not None

    def write(self, image: Path, label: Path | None, *, link: bool) -> None:
        """Copy or hard-link both files; a chosen channel is written as a volume of its own."""
        if self.channel is None:
            place(self.image, image, link=link)
        else:
            self._write_channel(image, self.channel)
        if label is not None:
            if self.label is None:
                raise DataError("label", got="a case without label", expected="a labelled case")
            place(self.label, label, link=link)

    def volume_mm3(self) -> float:
        """Read from the header alone."""
        import numpy as np

        with reading(self.image):
            header = nifti(self.image).header
            return float(np.prod(header.get_data_shape()[:3]) * np.prod(header.get_zooms()[:3]))

    def _write_channel(self, target: Path, channel: int) -> None:
        with reading(self.image):
            source = nifti(self.image)
            shape = source.shape
            if len(shape) != 4 or channel >= shape[3]:
                raise DataError("channel", got=f"{channel} of shape {shape}", expected="a channel the images have")
            source.slicer[..., channel].to_filename(target)


class reading:
    """Turns whatever a reader raises on a damaged file into a DataError that names the file to the user."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and isinstance(error, Exception) and not isinstance(error, FedMedSegError):
            raise DataError(
                "file",
                got=f"{self.path} ({why(error)})",
                expected="a readable file",
                remedy="download it again or remove it from the source folder",
                reason=Reason.UNREADABLE,
            ) from error


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turns what the disk below ``out`` says to being written into an error of ``out``, whatever file was read then.

    Raises:
        ConfigurationError: the disk is full or read-only, or this account may not write there (reason DISK).
    """
    try:
        yield
    except (OSError, DataError) as error:
        # a copy that fails was being read as well: `reading` cannot tell which end of it failed
        told = error.__cause__ if isinstance(error, DataError) else error
        if not isinstance(told, OSError) or not _of_writing(told, out):
            raise
        what = "full" if told.errno in FULL else "read-only" if told.errno in READ_ONLY else "not to be written"
        remedy = "free room on that disk" if told.errno in FULL else "let this account write there"
        raise ConfigurationError(
            "--out",
            got=f"{out}, which is {what} ({os.strerror(told.errno or 0)})",
            expected="a folder with room that can be written",
            remedy=f"{remedy}, or name another folder; nothing is wrong with the files that were read",
            reason=Reason.DISK,
        ) from None


def _of_writing(error: OSError, out: Path) -> bool:
    """Whether ``error`` came of writing below ``out``: by its number, or by the file that it names."""
    named = error.filename2 or error.filename
    inside = isinstance(named, str | os.PathLike) and Path(named).absolute().is_relative_to(out.absolute())
    no_folder = error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG)
    return error.errno in FULL | READ_ONLY or (no_folder and inside)


def nifti(path: Path) -> Any:
    """The NIfTI file at ``path``, voxels still on the disk."""
    import nibabel as nib

    return nib.Nifti1Image.from_filename(path)


def place(source: Path, target: Path, *, link: bool) -> None:
    """Copy ``source`` to ``target``, or hard-link it (both names then share the bytes on one disk).

    Raises:
        ConfigurationError: a hard link was asked for across file systems.
        DataError: the source is missing.
    """
    with reading(source):
        if not link:
            shutil.copyfile(source, target)
            return
        try:
            os.link(source.resolve(), target)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in FULL | READ_ONLY:
                raise
            raise ConfigurationError(
                "--link",
                got=f"{target.parent} ({why(error)})",
                expected="source and --out on one file system that knows hard links",
                remedy="import without --link, which copies",
            ) from None


def volumes_in(folder: Path) -> dict[str, Path]:
    """Stem -> NIfTI file, sorted; hidden files (``._x.nii.gz`` of the Decathlon archives) are no volumes."""
    found = {}
    for path in sorted(folder.iterdir()):
        suffix = suffix_of(path)
        if suffix and not path.name.startswith("."):
            found[path.name.removesuffix(suffix)] = path
    return found


def suffix_of(path: Path) -> str | None:
    """``.nii.gz`` or ``.nii``, or None for any other file."""
    return next((suffix for suffix in VOLUME_SUFFIXES if path.name.endswith(suffix)), None)


def slug(text: str, *, joint: str = "-") -> str:
    """Lower-case letters and digits with ``joint`` between: ``HF-I`` -> ``hf-i``."""
    return re.sub(r"[^a-z0-9]+", joint, text.lower()).strip(joint)


def folder_exists(source: Path) -> None:
    """Refuse a source that is no folder.

    Raises:
        ConfigurationError: it does not exist or is a file (an archive that was not unpacked, say).
    """
    if not source.is_dir():
        got = "a file" if source.is_file() else "nothing"
        raise ConfigurationError(
            "source folder", got=f"{got} at {source}", expected="the unpacked data set", remedy="unpack the archive"
        )


def listing(source: Path, limit: int = 8) -> str:
    """What lies in ``source``, for an error message."""
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in source.iterdir())
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) or "an empty folder") + more


def count(reasons: Iterable[str]) -> dict[str, int]:
    """How often each reason occurs."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts

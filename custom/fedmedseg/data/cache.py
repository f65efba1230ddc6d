"""A site's cache on disk: small JSON records and folders of arrays, written atomically, mapped when read.

Several processes may write the same entry at once: the first to finish wins and the others drop theirs.
When the disk is full the work goes on in memory; nothing is lost but the time to do it again.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedmedseg.core.atomic import write_atomic

logger = logging.getLogger(__name__)

MOST_OPEN = 192
"""Arrays mapped at once; each holds a file descriptor."""
_STALE_SECONDS = 86400.0


class Cache:
    """Records and entries under one folder, keyed by digests, never by names of patients or files."""

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder
        self.on_disk = True
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        self._entries: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
        self._open: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._sweep()

    def record(self, kind: str, digest: str) -> dict[str, Any] | None:
        """The JSON record of that digest, or None."""
        if (kind, digest) in self._records:
            return self._records[kind, digest]
        return _read_json(self._record_file(kind, digest))

    def write_record(self, kind: str, digest: str, content: dict[str, Any]) -> None:
        """Keep a record, on disk where there is room."""
        if self.on_disk:
            try:
                write_atomic(self._record_file(kind, digest), json.dumps(content).encode())
                return
            except OSError as error:
                self._give_up(error)
        self._records[kind, digest] = content

    def meta(self, digest: str) -> dict[str, Any] | None:
        """What was stored with an entry's arrays, or None where there is no whole entry."""
        if digest in self._entries:
            return self._entries[digest][0]
        folder = self._entry_folder(digest)
        meta = _read_json(folder / "meta.json")
        if meta is None or any(_damaged(folder / f"{name}.npy", size) for name, size in meta["files"].items()):
            return None
        return meta["content"]

    def array(self, digest: str, name: str) -> np.ndarray:
        """One array of an entry, read-only and mapped from the disk."""
        if digest in self._entries:
            return self._entries[digest][1][name]
        place = (digest, name)
        found = self._open.get(place)
        if found is None:
            found = np.load(self._entry_folder(digest) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            self._open[place] = found
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(place)
        return found

    def write_entry(self, digest: str, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Keep arrays and what belongs to them, on disk where there is room."""
        if self.on_disk:
            try:
                self._write_folder(digest, arrays, meta)
                return
            except OSError as error:
                self._give_up(error)
        for array in arrays.values():
            array.setflags(write=False)
        self._entries[digest] = (meta, dict(arrays))

    def _write_folder(self, digest: str, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> None:
        final = self._entry_folder(digest)
        temporary = final.with_name(f".{digest}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.mkdir(parents=True)
            files = {}
            for name, array in arrays.items():
                with open(temporary / f"{name}.npy", "wb") as stream:
                    _save_array(stream, array)
                    stream.flush()
                    os.fsync(stream.fileno())
                    files[name] = stream.tell()
            write_atomic(temporary / "meta.json", json.dumps({"files": files, "content": meta}).encode())
            if final.exists() and self.meta(digest) is None:
                shutil.rmtree(final, ignore_errors=True)
            try:
                os.rename(temporary, final)
            except OSError as error:
                # another process finished the same entry first
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _give_up(self, error: OSError) -> None:
        self.on_disk = False
        code = errno.errorcode.get(error.errno or 0, type(error).__name__)
        logger.warning("the cache cannot be written (%s); work goes on in memory without it", code)

    def _record_file(self, kind: str, digest: str) -> Path:
        return self.folder / kind / digest[:2] / f"{digest}.json"

    def _entry_folder(self, digest: str) -> Path:
        return self.folder / "volumes" / digest[:2] / digest

    def _sweep(self) -> None:
        """Remove what processes killed more than a day ago left half written."""
        for leftover in self.folder.glob("*/??/.*.tmp"):
            try:
                if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            except OSError:
                # another process is sweeping as well
                continue


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # absent or damaged: made again
        return None
    return content if isinstance(content, dict) else None


def _save_array(stream: BinaryIO, array: np.ndarray) -> None:
    """The .npy format; unlike numpy's own writer a failure keeps the system's error code."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    stream.write(array.reshape(-1).view(np.uint8).data)


def _damaged(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size != size
    except OSError:
        return True

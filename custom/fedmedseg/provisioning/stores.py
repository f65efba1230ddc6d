"""The server's job and snapshot store, inside the server's own workspace."""

from __future__ import annotations

from pathlib import Path

from nvflare.app_common.storages.filesystem_storage import FilesystemStorage


class WorkspaceStorage(FilesystemStorage):
    """FLARE's file store under a path that starts at the server's workspace.

    FLARE wants an absolute path, which nobody knows when the kit is made, and its kits say a folder for temporary
    files, which a reboot empties and all servers of a machine share. The server's processes change into their
    workspace before they build components, so a relative path is taken from there.

    Args:
        root_dir: folder of the store, relative to the workspace; an absolute path is used as it is.
    """

    def __init__(self, root_dir: str) -> None:
        super().__init__(root_dir=str((Path.cwd() / root_dir).resolve()))

"""What FLARE told this process about the job's submission: who sent it and under which privacy scope."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.apis.job_def import JobMetaKey
from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE
from nvflare.lighter.utils import verify_folder_signature_and_get_signers

from fedmedseg.core.place import Place
from fedmedseg.core.wishes import Submitter

LONGEST = 200


def submission(place: Place) -> tuple[Submitter | None, str]:
    """Submitter and scope of this job.

    Where the job is signed the submitter is who signed it, by a certificate of the kit's own root; otherwise whom the
    server names. The simulator tells nobody.
    """
    meta = _meta(place)
    scope = _text(meta, JobMetaKey.SCOPE)
    app, authority = place.config.parent, place.workspace / "startup" / "rootCA.pem"
    if (app / NVFLARE_SIG_FILE).is_file() and authority.is_file():
        verified, signers = verify_folder_signature_and_get_signers(str(app), str(authority))
        if verified and len(signers) == 1:
            name, org, role = (str(part) for part in signers[0])
            return Submitter(name=name, org=org, role=role, signed=True), scope
    name = _text(meta, JobMetaKey.SUBMITTER_NAME)
    if not name:
        return None, scope
    org, role = _text(meta, JobMetaKey.SUBMITTER_ORG), _text(meta, JobMetaKey.SUBMITTER_ROLE)
    return Submitter(name=name, org=org, role=role, signed=False), scope


def own_root(root: Path, place: Place) -> Path:
    """Folder under ``root`` that keeps what jobs of this submitter leave behind; in the simulator ``root`` itself.

    Settings of a study are no secret: without this, whoever submits those of another's study once more would continue
    it and be handed its model, or set aside what it has reached.
    """
    if place.simulated:
        return root
    submitter, _ = submission(place)
    who = "" if submitter is None else f"{submitter.name}\n{submitter.org}"
    return root / f"of-{hashlib.sha256(who.encode()).hexdigest()[:12]}"


def _meta(place: Place) -> dict[str, Any]:
    try:
        content = json.loads((place.run / WorkspaceConstants.JOB_META_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _text(meta: dict[str, Any], key: JobMetaKey) -> str:
    value = meta.get(key.value)
    return value[:LONGEST] if isinstance(value, str) else ""

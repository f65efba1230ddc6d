"""MLflow beside TensorBoard: off unless a job names FLARE's own receiver, and then at the server alone.

What it gets is what TensorBoard gets: the figures of accepted replies, which passed the sites' filters. The tracking
server it sends them to is the job's word, so the receiver is not on the list of classes that every job may name
(``core.allowed_classes``): who runs the server adds it there. The package comes with the extra ``tracking``; nothing
here imports it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.jobs import CONFIG

MLFLOW_RECEIVER = "nvflare.app_opt.tracking.mlflow.mlflow_receiver.MLflowReceiver"
PACKAGE = "mlflow"
ANALYTICS_EVENT = "fed.analytix_log_stats"
"""With which the server tells its receivers the figures of each round (``core.server_events``)."""
SCHEMES = ("http", "https")


def component(study: str, uri: str | None = None) -> dict[str, Any]:
    """The receiver as a job's server configuration names it: one MLflow experiment a study, in it one run a site.

    Without ``uri`` it writes an SQLite file into the job's results at the server.
    """
    args: dict[str, Any] = {"events": [ANALYTICS_EVENT], "kw_args": {"experiment_name": study}}
    return {"id": PACKAGE, "path": MLFLOW_RECEIVER, "args": args if uri is None else {"tracking_uri": uri, **args}}


def check_uri(uri: str, *, option: str) -> None:
    """Refuse what is no address of a tracking server, and one with a name and password in it: a job is read by all.

    Raises:
        ConfigurationError: names ``option``.
    """
    found = urlsplit(uri)
    if found.scheme not in SCHEMES or not found.hostname or found.username or found.password:
        shown = uri if "@" not in uri else "an address with a name or password in it"
        raise ConfigurationError(
            option,
            got=shown,
            expected="http://HOST:PORT or https://HOST of an MLflow tracking server, without name and password",
            remedy="MLflow reads MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the server's environment",
        )


def add_mlflow(job: Path, study: str, uri: str | None = None) -> None:
    """Name the receiver in the server's configuration of ``job``, in place of any that it names already."""
    file = job / CONFIG / "config_fed_server.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    others = [one for one in content["components"] if one.get("path") != MLFLOW_RECEIVER]
    content["components"] = [*others, component(study, uri)]
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def wants_mlflow(job: Path) -> bool:
    """Whether the server's configuration of ``job`` names the receiver."""
    content = json.loads((job / CONFIG / "config_fed_server.json").read_text(encoding="utf-8"))
    return any(one.get("path") == MLFLOW_RECEIVER for one in content.get("components", ()))


def require_mlflow(*, option: str) -> None:
    """Refuse where this machine's environment, which is to run the server, lacks the package.

    Raises:
        ConfigurationError: names ``option`` and how to install it.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigurationError(
            option,
            got="an environment without the package mlflow",
            expected="mlflow where the server runs",
            remedy='install the extra: pip install "fedmedseg[tracking]"',
        )

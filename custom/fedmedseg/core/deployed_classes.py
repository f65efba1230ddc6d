"""Refuses a job that names a class off the participant's list as it is deployed, before a process of it is started.

FLARE 2.9.0 looks at a job's classes when it builds them, in the job's own process; server and site learn of a refusal
from the code with which that process ended (`fuel/common/exit_codes.py`), some 10 s later and without the class. Its
parent processes do let a validator look at what was deployed (`private/fed/utils/app_deployer.py`), and its answer
stands in the job's meta data. Ours puts the classes that a job's settings name outright to FLARE's own authorizer. The
arguments of components may name classes, too: those, and everything once more, FLARE judges in the job's process.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.fl_constant import WorkspaceConstants
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.utils.config_factory import ConfigFactory

CONFIG = {"server": "config_fed_server.json", "client": "config_fed_client.json"}
"""The settings each side builds its components from; FLARE looks for other suffixes, too."""
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,150}")


class AllowedClasses(AppValidator):
    """The ``app_validator`` of a parent process (``local/resources.json``).

    Args:
        side: whose settings of a job to look at: ``server`` or ``client``.
    """

    def __init__(self, side: Literal["server", "client"]) -> None:
        super().__init__()
        self.side = side

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """Why the job in ``app_folder`` is refused, or an empty word; and nothing more to say of it."""
        folder = Path(app_folder)
        if (folder / WorkspaceConstants.CUSTOM_FOLDER_NAME).exists():
            # code of its own: FLARE asks for that right, and holds no class against a list where it was given
            return "", {}
        config = ConfigFactory.load_config(CONFIG[self.side], [str(folder / "config")])
        # a parent process works in its kit
        workspace = Workspace(root_dir=str(Path.cwd()))
        for component in named(config.to_dict() if config is not None else {}):
            try:
                ComponentPathAuthorizer().authorize_component_config(component, workspace=workspace)
            except UnsafeComponentError:
                return f"a class outside class_allow_list: {_word(component)}", {}
        return "", {}


def named(settings: Mapping[str, Any]) -> Iterator[object]:
    """What a side's settings have FLARE build: components, workflows, executors and filters that are not disabled."""
    found = [*_listed(settings, "components"), *_listed(settings, "workflows")]
    found += [entry.get("executor") for entry in _listed(settings, "executors") if isinstance(entry, Mapping)]
    for filters in ("task_data_filters", "task_result_filters"):
        for entry in _listed(settings, filters):
            found += _listed(entry, "filters") if isinstance(entry, Mapping) else []
    return (one for one in found if isinstance(one, dict) and one.get("disabled") is not True)


def _listed(settings: Mapping[str, Any], key: str) -> list[Any]:
    value = settings.get(key)
    return value if isinstance(value, list) else []


def _word(component: object) -> str:
    """The class a component names, where it is a name."""
    entry = component if isinstance(component, Mapping) else {}
    word = next((entry[key] for key in ("path", "class_path", "name") if key in entry), "")
    return word if isinstance(word, str) and _CLASS.fullmatch(word) else "no name of a class"

"""What a study starts with: a site file for each hospital and the federation's project file, from the templates that
come with the package."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.schema import parse
from fedmedseg.data.site import SiteFile

_DATASETS = re.compile(r"^datasets:\n(?:[ #].*\n)+", re.MULTILINE)
_FOLDERS = re.compile(r"^(?=(?:state|cache|models)_dir:)", re.MULTILINE)
_PARTICIPANTS = re.compile(r"^participants:\n.*?(?=^builders:)", re.MULTILINE | re.DOTALL)
_HEAD = re.compile(r"\A(?:#.*\n)+")


def site_text(template: str, lists: Mapping[str, str]) -> str:
    """A hospital's site file: the annotated template with this study's roles.

    Args:
        template: content of ``app_configs/sites/example.yaml``.
        lists: role -> data list, as the site file's own folder sees it.

    Raises:
        ConfigurationError: the template has no such place, or what comes of it is no site file.
    """
    entries = yaml.safe_dump({"datasets": {role: {"list": path} for role, path in lists.items()}}, sort_keys=False)
    text, changed = _DATASETS.subn(lambda _: entries, template, count=1)
    if changed != 1:
        raise ConfigurationError("example.yaml", got="no datasets", expected="the template of a site file")
    # a folder of another machine's is no default: left out, all three lie beside the file
    text = _FOLDERS.sub("# ", text)
    parse(SiteFile, yaml.safe_load(text), source="site file")
    return text


def project_text(
    template: str, *, server: str, sites: Sequence[str], admin: str, lead: str, lead_site: str, path: str
) -> str:
    """The federation's description for named hospitals, with the builders of the template and what it says of them.

    Args:
        template: content of ``provisioning/project.yml``.
        server: address under which everybody reaches the server.
        sites: names of the hospitals; each is an organisation of its own.
        admin: e-mail address of the network's administrator.
        lead: e-mail address of the one who submits the study.
        lead_site: the hospital the lead belongs to.
        path: where the file will lie, for the command in its first lines.

    Raises:
        ConfigurationError: FLARE would refuse a name, or a builder its settings.
    """
    participants: list[dict[str, Any]] = [
        {"name": server, "type": "server", "org": "network", "fed_learn_port": 8002, "admin_port": 8002}
    ]
    participants += [
        {"name": site, "type": "client", "org": organisation(site), "allow_log_streaming": False} for site in sites
    ]
    participants += [
        {"name": admin, "type": "admin", "org": "network", "role": "project_admin"},
        {"name": lead, "type": "admin", "org": organisation(lead_site), "role": "lead"},
    ]
    head = (
        f"# A federation: one server, {len(sites)} hospitals, the network's administrator and the study's lead.\n"
        f"#   nvflare provision -p {path} -w kits\n"
        "# Before that, correct names and addresses, and give hospitals with GPUs their `capacity` (as in\n"
        "# provisioning/project.yml, which also says what every entry means).\n"
        "# `fedmedseg site-policy --check KIT` proves that a kit still is as safe as it was made.\n"
    )
    entries = yaml.safe_dump({"participants": participants}, sort_keys=False) + "\n"
    text, changed = _PARTICIPANTS.subn(lambda _: entries, template, count=1)
    if changed != 1:
        raise ConfigurationError("project.yml", got="no participants", expected="the template of a federation")
    text = _HEAD.sub(lambda _: head, text, count=1)
    check_project(yaml.safe_load(text))
    return text


def organisation(site: str) -> str:
    """A hospital's organisation: FLARE takes letters, digits and underscores."""
    return site.replace("-", "_").lower()


def check_project(content: Mapping[str, Any]) -> None:
    """Have FLARE and our builders read a description as provisioning does, without building anything.

    Raises:
        ConfigurationError: what they refuse, in their words.
    """
    own = copy.deepcopy(dict(content))
    try:
        prepare_project(own)
        prepare_builders(own)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            "project.yml", got=str(error) or type(error).__name__, expected="a federation FLARE can provision"
        ) from None

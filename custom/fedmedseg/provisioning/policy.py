"""Contents of a kit's local files, as plain data: who may do what, which classes a job may name, where stores lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedmedseg.core import allowed_classes
from fedmedseg.provisioning.timeouts import values

ROLES = ("project_admin", "org_admin", "lead", "member")

STORE = "store"
"""Folder of the server's workspace that keeps submitted jobs, their results and snapshots."""

CODE_RIGHTS = ("byoc", "server-predeployed-flwr")
"""Rights to run code that is not the installed package."""

PINNED = ("resources.json", "comm_config.json")
"""Files of ``local`` that a kit's root links to, with the startup file of ``startup``.

FLARE 2.9.0 looks for its settings by name in the whole workspace, from the root down, and takes the first it meets
(`fuel/utils/config_factory.py`, `search_config_format`). Run folders lie there too: a job that carries a file of that
name in `app/config` could set `comm_driver_path`, from which FLARE imports Python code, BYOC or not, or let the
site's logs out. The root is searched first, so a link there is found before any job's file.
"""

STORAGE = "fedmedseg.provisioning.stores.WorkspaceStorage"
GPU_MANAGER = "fedmedseg.provisioning.gpu.AvailableGPUManager"
CLASS_CHECK = "fedmedseg.core.deployed_classes.AllowedClasses"

SERVER_COMPONENTS = {
    "job_scheduler": "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
    "job_manager": "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
    "job_store": STORAGE,
    "process_launcher": "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher",
    "log_receiver": "nvflare.app_common.logging.job_log_receiver.JobLogReceiver",
    "federation_guard": "fedmedseg.core.guard.FederationGuard",
    "audit": "fedmedseg.core.audit_server.ServerAudit",
}
SITE_COMPONENTS = {
    "resource_manager": GPU_MANAGER,
    "resource_consumer": "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer",
    "process_launcher": "nvflare.app_common.job_launcher.client_process_launcher.ClientProcessJobLauncher",
    "audit": "fedmedseg.core.audit_site.SiteAudit",
}
_LAUNCHERS = "nvflare.app_opt.job_launcher"
CONTAINER_COMPONENTS = {
    "nvflare.app_common.resource_managers.passthrough_resource_manager.PassthroughResourceManager",
    f"{_LAUNCHERS}.docker_launcher.ClientDockerJobLauncher",
    f"{_LAUNCHERS}.docker_launcher.ServerDockerJobLauncher",
    f"{_LAUNCHERS}.k8s_launcher.ClientK8sJobLauncher",
    f"{_LAUNCHERS}.k8s_launcher.ServerK8sJobLauncher",
}
"""What `nvflare deploy prepare` puts in place of launcher and resource manager."""

REPLACED = ("process_launcher", "resource_manager", "resource_consumer")
"""Our components that it takes out for them."""

CONTAINER_WORKSPACE = "/var/tmp/nvflare/workspace"
"""Where FLARE's containers see the kit."""


def authorization() -> dict[str, Any]:
    """Content of ``local/authorization.json``: FLARE's roles, without code of one's own and across no organisation.

    FLARE's own default gives the network's administrator every right by one word, BYOC included, and lets a lead
    bring code. A role that is given no word for a right does not have it.
    """
    no_code = dict.fromkeys(CODE_RIGHTS, "none")
    return {
        "format_version": "1.0",
        "permissions": {
            "project_admin": {
                "submit_job": "any",
                "clone_job": "any",
                "manage_job": "any",
                "download_job": "any",
                "get_job_log": "any",
                "view": "any",
                "operate": "any",
                # these read files of a site's workspace: the hospital's own people only
                "shell_commands": "o:site",
                **no_code,
            },
            "org_admin": {
                "submit_job": "none",
                "clone_job": "none",
                "manage_job": "o:submitter",
                "download_job": "o:submitter",
                "get_job_log": "o:submitter",
                "view": "any",
                "operate": "o:site",
                "shell_commands": "o:site",
                **no_code,
            },
            "lead": {
                "submit_job": "any",
                "clone_job": "n:submitter",
                "manage_job": "n:submitter",
                "download_job": "n:submitter",
                "get_job_log": "n:submitter",
                "view": "any",
                "operate": "o:site",
                "shell_commands": "o:site",
                **no_code,
            },
            "member": {"view": "any", **no_code},
        },
    }


def class_policy(side: str) -> dict[str, Any]:
    """The part of ``local/resources.json`` that says which classes a job may name, and that looks when it is deployed.

    Args:
        side: ``server`` or ``client``.
    """
    return {**allowed_classes.class_policy(), "app_validator": {"path": CLASS_CHECK, "args": {"side": side}}}


def server_resources(profile: str, *, max_jobs: int, max_sites: int) -> dict[str, Any]:
    """Content of the server's ``local/resources.json``: stores in its own workspace, nothing under a shared folder."""
    arguments: dict[str, dict[str, Any]] = {
        # FLARE gives a waiting job up after ten tries, and looks again every ten minutes: a training takes days
        "job_scheduler": {"max_jobs": max_jobs, "max_schedule_count": 10**6, "max_schedule_interval": 60.0},
        # relative on purpose: the store below resolves it inside the workspace, wherever the kit is unpacked
        "job_manager": {"uri_root": f"{STORE}/jobs", "job_store_id": "job_store"},
        "job_store": {"root_dir": "."},
    }
    return {
        "format_version": 2,
        **class_policy("server"),
        **values(profile, "server_top"),
        "servers": [{"admin_storage": "transfer", "max_num_clients": max_sites, **values(profile, "server")}],
        "snapshot_persistor": {
            "path": "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor",
            "args": {
                "uri_root": "/",
                "storage": {"path": STORAGE, "args": {"root_dir": f"{STORE}/snapshots"}},
            },
        },
        "components": _components(SERVER_COMPONENTS, arguments),
    }


def site_resources(profile: str, *, gpus: int, gpu_memory: float, allow_log_streaming: bool) -> dict[str, Any]:
    """Content of a site's ``local/resources.json``.

    Args:
        profile: kind of network, a name of ``timeouts.PROFILES``.
        gpus: GPUs the site offers.
        gpu_memory: GiB of each.
        allow_log_streaming: whether the site's logs may go to the server while a job runs.
    """
    manager = {"num_of_gpus": gpus, "mem_per_gpu_in_GiB": gpu_memory, "expiration_period": 300}
    return {
        "format_version": 2,
        **class_policy("client"),
        "allow_log_streaming": allow_log_streaming,
        "client": {"compression": "Gzip", **values(profile, "client")},
        "components": _components(SITE_COMPONENTS, {"resource_manager": manager}),
    }


def admin_resources(profile: str) -> dict[str, Any]:
    """Content of an administrator's ``local/resources.json``."""
    return {"format_version": 1, "admin": {"with_debug": False, "prompt": "> ", **values(profile, "admin")}}


def comm_config(profile: str) -> dict[str, Any]:
    """Content of ``local/comm_config.json``: no connection past the server, patience by ``profile``."""
    return {
        "allow_adhoc_conns": False,
        "backbone_conn_gen": 2,
        "internal": {
            "scheme": "tcp",
            "resources": {"host": "localhost", "connection_security": "clear"},
        },
        **values(profile, "comm_config"),
    }


def _components(paths: Mapping[str, str], arguments: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": name, "path": path, "args": arguments.get(name, {})} for name, path in paths.items()]


RESOURCE_KEYS = {
    "server": set(server_resources("lan", max_jobs=1, max_sites=1)),
    "client": set(site_resources("lan", gpus=0, gpu_memory=0, allow_log_streaming=False)),
}
"""What ``local/resources.json`` may hold; FLARE would read more (``handlers``, say) and build what they name."""

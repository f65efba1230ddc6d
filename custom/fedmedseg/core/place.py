"""Where a FLARE process keeps what: server and sites, in the simulator and in a federation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.homes import homes_beside

SIMULATED_SERVER = "SimulatorServerEngine"
"""FLARE's class, by name: importing it would load the whole server into every site."""


@dataclass(frozen=True)
class Place:
    """The folders of one process."""

    name: str
    """Site name, or ``server``."""
    simulated: bool
    folder: str
    """Name of the folder this process works in; a simulated participant's own name."""
    workspace: Path
    """In the simulator the whole simulator workspace; in a federation this kit's own root."""
    local: Path
    """The kit's ``local`` folder: what the site decides."""
    config: Path
    """The job's config folder, where experiment.yaml lies."""
    run: Path
    """This job's run folder: logs, progress, records."""

    @property
    def home(self) -> Path:
        """What outlives a job: state, caches, models."""
        if self.simulated:
            return homes_beside(self.workspace) / self.name
        return self.workspace / "fedmedseg"


def place_of(fl_ctx: FLContext) -> Place:
    """The place of the process that owns ``fl_ctx``."""
    engine = fl_ctx.get_engine()
    workspace = engine.get_workspace()
    job = fl_ctx.get_job_id()
    # FLARE flags its simulated clients only; the server it simulates is known by its engine
    is_server = any(kind.__name__ == SIMULATED_SERVER for kind in type(engine).__mro__)
    simulated = is_server or bool(fl_ctx.get_prop(FLContextKey.SIMULATE_MODE, False))
    root = Path(workspace.get_root_dir()).resolve()
    return Place(
        name="server" if is_server else fl_ctx.get_identity_name(),
        simulated=simulated,
        folder=root.name,
        # a simulated participant's workspace is a folder of its own name inside the simulator's
        workspace=root.parent if simulated else root,
        local=Path(workspace.get_site_config_dir()).resolve(),
        config=Path(workspace.get_app_config_dir(job)).resolve(),
        run=Path(workspace.get_run_dir(job)).resolve(),
    )

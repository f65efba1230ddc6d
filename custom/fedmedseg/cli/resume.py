"""`fedmedseg resume`: continue a federation's job that ended before its study did."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from fedmedseg.cli.console import console, friendly_errors, next_step
from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.resume import resumable

ENDING_SECONDS = 15.0
"""How long a job that still runs is given to end."""


def resume(
    job: Annotated[str, typer.Argument(help="Id of the job, or its first characters.")],
    startup_kit: Annotated[Path, typer.Option("--startup-kit", help="Startup kit of the one who submitted it.")],
) -> None:
    """Submit a job of a federation again so that it continues after its last whole round."""
    # FLARE is imported only once there is something to ask it
    from fedmedseg.core import admin

    with friendly_errors(), admin.session(startup_kit) as session:
        job = admin.whole_id(session, job)
        with suppress(TimeoutError):
            # FLARE takes some seconds to end a job that was aborted a moment ago
            admin.wait(session, job, timeout=ENDING_SECONDS)
        status = admin.status_of(admin.meta_of(session, job))
        if not admin.has_ended(status):
            raise ConfigurationError(
                "job",
                got=f"{job}, which is {status}",
                expected="one that does not run any more",
                remedy=f"abort it first, if it must be: nvflare job abort {job}",
            )
        if status == admin.COMPLETED:
            raise ConfigurationError("job", got=f"{job}, which is {status}", expected="one that did not complete")
        with tempfile.TemporaryDirectory() as folder:
            ready = resumable(admin.download(session, job, Path(folder)).parent, Path(folder) / "again")
            again = admin.submit(session, ready)
    console.print(f"job {job} was {status}; it continues as {again}", highlight=False, soft_wrap=True)
    next_step("fedmedseg", "monitor", again, "--startup-kit", startup_kit)

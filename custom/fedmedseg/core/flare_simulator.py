"""FLARE's simulator with one defect of 2.9.0 mended: two sites that start at the same moment may swap names.

The simulator's threads share one dictionary, write their site's name into it and send it to the process they have
just started. A thread that is interrupted in between sends another site's name: that process then works under a wrong
name, and both lose their connection. Run as `python -m fedmedseg.core.flare_simulator simulator JOB -w DIR ...`, with
the arguments of the `nvflare` command.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from nvflare.private.fed.app.simulator import simulator_runner

NAME = "client_name"


class ContextOfThread(dict[str, Any]):
    """A dictionary in which every thread sees, and sends, the site name that it wrote itself."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._thread = threading.local()

    def __setitem__(self, key: str, value: Any) -> None:
        if key == NAME:
            self._thread.name = value
        else:
            super().__setitem__(key, value)

    def __getitem__(self, key: str) -> Any:
        return self._plain()[key]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # what is sent is a plain dictionary: the receiver needs no class of ours
        return dict, (self._plain(),)

    def _plain(self) -> dict[str, Any]:
        content = dict(self.items())
        if hasattr(self._thread, "name"):
            content[NAME] = self._thread.name
        return content


class NamedClientRunner(simulator_runner.SimulatorClientRunner):
    """Starts the simulated sites, each under its own name."""

    def __init__(
        self, server_custom_folder: Any, args: Any, clients: Any, client_config: Any, deploy_args: Any, build_ctx: Any
    ) -> None:
        super().__init__(server_custom_folder, args, clients, client_config, deploy_args, ContextOfThread(build_ctx))


def main() -> None:
    """The `nvflare` command with our client runner in its simulator."""
    from nvflare import cli

    simulator_runner.SimulatorClientRunner = NamedClientRunner
    cli.main()


if __name__ == "__main__":
    main()

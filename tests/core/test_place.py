"""Where processes keep things: what outlives a job never lies where FLARE's simulator empties its workspace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

from nvflare.apis.fl_constant import ReservedKey
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.place import SIMULATED_SERVER, place_of


def test_a_real_kit_keeps_things_in_its_own_root(context: Callable[..., FLContext], tmp_path: Path) -> None:
    for name in ("site-1", "server"):
        place = place_of(context(name))
        assert (place.name, place.simulated) == (name, False)
        assert place.home == tmp_path / "kit" / "fedmedseg"


def test_a_simulated_site_keeps_things_beside_the_workspace(context: Callable[..., FLContext], tmp_path: Path) -> None:
    place = place_of(context("site-1", simulated=True))
    assert place.simulated
    assert place.workspace == tmp_path
    assert place.home == tmp_path.with_name(tmp_path.name + ".fedmedseg") / "site-1"


def test_the_simulated_server_too_although_flare_does_not_flag_it(
    context: Callable[..., FLContext], tmp_path: Path
) -> None:
    """Its state would otherwise lie in the workspace, which is emptied before anything could resume from it."""
    fl_ctx = context("simulator_server")
    plain = fl_ctx.get_engine()
    engine = type(SIMULATED_SERVER, (MagicMock,), {})()
    engine.get_workspace = plain.get_workspace
    fl_ctx.set_prop(ReservedKey.ENGINE, engine, private=True, sticky=False)
    place = place_of(fl_ctx)
    assert place.simulated
    assert place.home == tmp_path.with_name(tmp_path.name + ".fedmedseg") / "server"


def test_flare_still_calls_its_simulated_servers_engine_that() -> None:
    from nvflare.private.fed.simulator.simulator_server import SimulatorServer, SimulatorServerEngine

    assert SimulatorServerEngine.__name__ == SIMULATED_SERVER
    assert "SimulatorServerEngine" in SimulatorServer._create_server_engine.__code__.co_names

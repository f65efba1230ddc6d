"""Figures at the server: FLARE's receivers hear each site's under its name, and FLARE sends none of them on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from nvflare.apis.dxo import from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.app_opt.tracking.tb.tb_receiver import TBAnalyticsReceiver
from nvflare.widgets.fed_event import FedEventRunner

from fedmedseg.core.server_events import FigureTeller, tell_figures
from fedmedseg.core.tracking import ANALYTICS_EVENT

RECORD: dict[str, Any] = {
    "stage": "training",
    "round": 3,
    "sites": {
        "east": {"metrics": {"loss": 0.5, "dice/left ventricle": 0.75}},
        "west": {"metrics": {"loss": 0.25}},
        "silent": {"metrics": {}},
    },
}


@pytest.fixture
def server(context: Callable[..., FLContext], tmp_path: Path) -> Callable[..., FLContext]:
    """server(handler, ...): a server's context whose engine hands events to these."""

    def make(*handlers: Any) -> FLContext:
        fl_ctx = context("server")
        engine = fl_ctx.get_engine()
        engine.get_workspace().get_run_dir.return_value = str(tmp_path / "run")

        @contextmanager
        def new_context() -> Iterator[FLContext]:
            yield context("server")

        def fire_event(event_type: str, own: FLContext) -> None:
            for handler in handlers:
                handler.handle_event(event_type, own)

        engine.new_context, engine.fire_event = new_context, fire_event
        return fl_ctx

    return make


def test_each_sites_figures_stand_under_its_name_by_stage_and_round(
    server: Callable[..., FLContext], tmp_path: Path, events_in: Callable[[Path], dict[str, Any]]
) -> None:
    receiver = TBAnalyticsReceiver(events=[ANALYTICS_EVENT])
    fl_ctx = server(receiver)
    receiver.handle_event(EventType.START_RUN, fl_ctx)
    tell_figures(RECORD, fl_ctx.get_engine())
    tell_figures({**RECORD, "round": 4, "sites": {"west": {"metrics": {"loss": 0.125}}}}, fl_ctx.get_engine())
    receiver.handle_event(EventType.END_RUN, fl_ctx)
    assert events_in(tmp_path / "run" / "tb_events") == {
        "east": {"training/loss": [(3, 0.5)], "training/dice/left ventricle": [(3, 0.75)]},
        "west": {"training/loss": [(3, 0.25), (4, 0.125)]},
    }


def test_flare_sends_no_figure_to_the_sites(server: Callable[..., FLContext]) -> None:
    runner = FedEventRunner()
    runner.fire_and_forget_request = MagicMock()  # type: ignore[method-assign]
    tell_figures(RECORD, server(runner).get_engine())
    runner.fire_and_forget_request.assert_not_called()


class Slow:
    """A receiver whose tracking server does not answer until it is let go."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.answers = threading.Event()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        self.answers.wait(30.0)
        self.heard.append(from_shareable(fl_ctx.get_prop(FLContextKey.EVENT_DATA)).data["track_key"])


def test_a_receiver_that_waits_holds_no_round_up_and_the_end_for_so_long_alone(
    server: Callable[..., FLContext],
) -> None:
    slow, teller = Slow(), FigureTeller()
    teller.start(server(slow).get_engine())
    for _ in range(2):
        teller.add(RECORD)
    assert slow.heard == []
    assert not teller.finish(patience=0.05)
    slow.answers.set()
    assert teller.finish(patience=30.0)
    assert slow.heard == ["training/loss", "training/dice/left ventricle", "training/loss"] * 2


def test_without_an_engine_nothing_is_kept_or_waited_for() -> None:
    teller = FigureTeller()
    teller.add(RECORD)
    assert teller.finish(patience=0.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_broke_has_not_told_all(server: Callable[..., FLContext]) -> None:
    teller = FigureTeller()
    engine = server().get_engine()
    engine.fire_event = MagicMock(side_effect=ValueError)
    teller.start(engine)
    teller.add(RECORD)
    assert not teller.finish(patience=30.0)

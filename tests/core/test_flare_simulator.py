"""Every thread of the simulator sends the name of the site it starts, whatever the others write meanwhile."""

from __future__ import annotations

import inspect
import threading
from multiprocessing.reduction import ForkingPickler
from pickle import loads

from nvflare.private.fed.app.simulator.simulator_runner import SimulatorClientRunner

from fedmedseg.core.flare_simulator import NAME, ContextOfThread, NamedClientRunner


def sent(content: object) -> object:
    return loads(ForkingPickler.dumps(content))


def test_a_name_written_by_another_thread_is_not_sent() -> None:
    context = ContextOfThread({"server": "here", NAME: "nobody"})
    found: dict[str, object] = {}
    both_wrote = threading.Barrier(2)

    def start(site: str) -> None:
        context[NAME] = site
        both_wrote.wait(timeout=10)
        found[site] = sent(context)

    threads = [threading.Thread(target=start, args=(site,)) for site in ("site-1", "site-2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert found == {site: {"server": "here", NAME: site} for site in ("site-1", "site-2")}


def test_what_arrives_is_a_plain_dictionary_and_other_keys_are_shared() -> None:
    context = ContextOfThread({"server": "here"})
    context["server"] = "there"
    assert type(sent(context)) is dict
    assert context["server"] == "there"
    assert sent(context) == {"server": "there"}


def test_flare_still_shares_one_context_between_its_threads() -> None:
    """When this fails FLARE has changed: see whether the mend is still needed."""
    assert f'self.build_ctx["{NAME}"] = client.client_name' in inspect.getsource(SimulatorClientRunner.do_one_task)
    ours = list(inspect.signature(NamedClientRunner.__init__).parameters)
    assert ours == list(inspect.signature(SimulatorClientRunner.__init__).parameters)

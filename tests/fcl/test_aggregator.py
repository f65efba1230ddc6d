"""FedAvg over cases, and a word where sites' stacks cannot correspond."""

import logging
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext

from fedmedseg.core.contribution import Contribution
from fedmedseg.core.question import Round
from fedmedseg.core.wire import Schema
from fedmedseg.fcl.aggregator import ContrastiveAggregator
from fedmedseg.fcl.plan import exchange_of, initial_shared, stages


@pytest.fixture
def rule(settings, study, tmp_path) -> Any:
    """rule(correspondence=...): the aggregator of a study with its first round open."""

    def make(**options: Any) -> ContrastiveAggregator:
        file = tmp_path / "experiment.yaml"
        file.write_text(yaml.safe_dump(settings(**options)))
        experiment = study(**options)
        shared = initial_shared(experiment)
        made = ContrastiveAggregator(experiment_file=str(file))
        made.open_round(
            Round.begin(
                run="run",
                stage="pretraining",
                number=0,
                nonce="nonce",
                contract=stages(experiment)["pretraining"],
                schema=Schema(shared),
                shared=shared,
                personal={},
            )
        )
        return made

    return make


def contributed(
    made: ContrastiveAggregator, site: str, *, by: float, examples: int, features: Any, **metrics: float
) -> None:
    differences = {name: torch.full_like(tensor, by) for name, tensor in made.round.shared.items()}
    made.contributions[site] = Contribution(
        site=site,
        differences=differences,
        examples=examples,
        steps=1,
        train_seconds=0.0,
        metrics=metrics,
        features=features,
    )


def test_the_mean_is_weighted_by_cases_and_features_are_handed_on_untouched(rule, study, others) -> None:
    made, exchange = rule(), exchange_of(study())
    given = {site: exchange.encode(others(5, seed=seed)) for site, seed in (("a", 1), ("b", 2))}
    contributed(made, "a", by=1.0, examples=1, features=given["a"])
    contributed(made, "b", by=2.0, examples=3, features=given["b"])
    differences = from_shareable(made.aggregate(FLContext())).data
    for tensor in differences.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 1.75))
    assert made.notes["features"] == {"a": 5, "b": 5}
    assert sorted(made.exchanged) == ["a", "b"]
    for site, entries in given.items():
        for name, tensor in entries.items():
            assert torch.equal(made.exchanged[site][name].float().sum(0), tensor[_order(entries)].float().sum(0))


def _order(entries: Any) -> list[int]:
    """Canonical order, computed another way: by the bytes of features and parts."""
    rows = [
        (entries["exchange.features"][row].numpy().tobytes(), int(entries["exchange.parts"][row]))
        for row in range(len(entries["exchange.parts"]))
    ]
    return sorted(range(len(rows)), key=rows.__getitem__)


def test_stacks_that_differ_too_much_are_told_in_log_and_record(rule, study, others, caplog) -> None:
    entries = exchange_of(study()).encode(others())
    for factor, expected in ((2.0, 1), (4.0, 0)):
        made = rule(correspondence={"factor": factor})
        for site, coverage in (("a", 40.0), ("b", 120.0)):
            contributed(made, site, by=1.0, examples=1, features=entries, **{"stack/coverage_mm": coverage})
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            made.aggregate(FLContext())
        assert len(made.notes["correspondence"]) == expected
        assert ("parts may not correspond" in caplog.text) == bool(expected)


def test_without_an_exchange_nothing_is_said_of_parts(rule) -> None:
    made = rule(exchange=False)
    contributed(made, "a", by=1.0, examples=1, features={})
    made.aggregate(FLContext())
    assert "correspondence" not in made.notes
    assert made.exchanged == {}


def test_encrypted_replies_suit_the_rule() -> None:
    assert ContrastiveAggregator.needs_plain == ""

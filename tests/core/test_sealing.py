"""What a study with encrypted replies keeps, sends and opens, and where encryption is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.aggregator import GuardedAggregator, SharedKeysAggregator
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError, Reason
from fedmedseg.core.in_process import InProcessFederation
from fedmedseg.core.question import Round
from fedmedseg.core.sealing import (
    Sealing,
    check_encryption,
    layouts,
    numbers_in,
    refuse_simulation,
    seal,
    sealed_name,
    split,
    unseal,
)
from fedmedseg.core.wire import Part, Schema, StageContract

pytest.importorskip("tenseal", reason="the extra he is not installed")

from fedmedseg.core.ckks import GRID, SHARES, Cipher, make_contexts, packed_shape

ENCRYPTED = {"encryption": "ckks"}
ENTRY = sealed_name("training")
PLAIN = {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(2, 2), "c.half": torch.ones(3, dtype=torch.float16)}
CONTRACTS = {
    "training": StageContract(sends="shared", returns="shared", returned=Part(without=("b",))),
    "tuning": StageContract(sends="shared", returns="shared", returned=Part(within=("b", "a"))),
    "testing": StageContract(sends="shared", returns="metrics"),
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def ciphers() -> tuple[Cipher, Cipher]:
    """The server's and the sites'."""
    server, site = make_contexts()
    return Cipher(server), Cipher(site)


@pytest.fixture
def sealed_round(ciphers: tuple[Cipher, Cipher], round_of: Callable[..., Round], shared: Tensors) -> Round:
    """Round 0 of training, whose replies come encrypted."""
    plain = round_of()
    sealing = Sealing.begin(
        ciphers[0],
        stage="training",
        part=Part(),
        schema=Schema(shared),
        contracts={"training": plain.contract},
        whole=shared,
    )
    return Round(**{**plain.__dict__, "sealing": sealing})


@pytest.fixture
def reply_of(
    ciphers: tuple[Cipher, Cipher], reply_to: Callable[..., Shareable], sealed_round: Round
) -> Callable[..., Shareable]:
    """reply_of(2.0, examples=4): a site's encrypted reply whose differences are all 2."""

    def make(value: float, *, examples: object = 4, cipher: Cipher | None = None) -> Shareable:
        tensors = {"a": torch.full((2,), value), "b": torch.full((2, 2), value)}
        return reply_to(sealed_round, {ENTRY: seal(cipher or ciphers[1], tensors)}, examples=examples)

    return make


def close(opened: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], *, by: float = GRID) -> None:
    assert opened.keys() == expected.keys()
    for name, tensor in expected.items():
        assert opened[name].dtype == tensor.dtype
        assert float((opened[name].double() - tensor.double()).abs().max()) <= by, name


def test_entries_are_known_by_their_names() -> None:
    entry = torch.zeros(1, dtype=torch.uint8)
    assert split({**PLAIN, ENTRY: entry}) == (PLAIN, {ENTRY: entry})


def test_an_entry_holds_what_its_stage_returns_in_sorted_order() -> None:
    found = layouts(Schema(PLAIN), CONTRACTS, Part())
    assert {name: list(schema.specs) for name, schema in found.items()} == {
        ENTRY: ["a", "c.half"],
        sealed_name("tuning"): ["a", "b"],
    }
    assert [numbers_in(schema) for schema in found.values()] == [5, 6]


def test_only_entries_that_bear_on_what_is_sent_go_along() -> None:
    assert list(layouts(Schema(PLAIN), CONTRACTS, Part(within=("c",)))) == [ENTRY]
    assert list(layouts(Schema(PLAIN), CONTRACTS, Part(within=("b",)))) == [sealed_name("tuning")]
    assert layouts(Schema(PLAIN), CONTRACTS, Part(within=())) == {}


def test_the_opened_tensors_are_the_start_plus_the_sums_of_all_stages(ciphers: tuple[Cipher, Cipher]) -> None:
    server, site = ciphers
    schema = Schema(PLAIN)
    inside = layouts(schema, CONTRACTS, Part())
    first = {"a": torch.tensor([0.5, -0.5]), "c.half": torch.full((3,), 0.25)}
    second = {"a": torch.tensor([0.25, 0.25]), "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    sealed = {
        name: server.add(None, {"site-1": seal(site, tensors)}, {"site-1": SHARES})
        for name, tensors in zip(inside, (first, second), strict=True)
    }
    expected = {
        "a": torch.tensor([1.75, 1.75]),
        "b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "c.half": torch.full((3,), 1.25, dtype=torch.float16),
    }
    close(unseal(site, PLAIN, sealed, inside), expected)
    # what is not sent is not opened
    part = {"a": PLAIN["a"]}
    close(unseal(site, part, {ENTRY: sealed[ENTRY]}, inside), {"a": torch.tensor([1.5, 1.5])})


def test_an_entry_of_no_stage_is_refused(ciphers: tuple[Cipher, Cipher]) -> None:
    with pytest.raises(FedMedSegError) as caught:
        unseal(ciphers[1], PLAIN, {"sealed.other": torch.zeros(1, dtype=torch.uint8)}, {})
    assert caught.value.reason is Reason.UNKNOWN_TENSORS


def test_the_aggregate_of_encrypted_replies_opens_to_the_plain_one(
    ciphers: tuple[Cipher, Cipher],
    sealed_round: Round,
    reply_of: Callable[..., Shareable],
    reply_to: Callable[..., Shareable],
    round_of: Callable[..., Round],
    context: Callable[..., FLContext],
    shared: Tensors,
) -> None:
    plain, sealed = SharedKeysAggregator(), SharedKeysAggregator()
    plain.open_round(round_of())
    sealed.open_round(sealed_round)
    for site, value, examples in (("site-2", 3.0, 30), ("site-1", 1.0, 10), ("site-3", -2.0, 20)):
        came = context("server", peer=site)
        tensors = {"a": torch.full((2,), value), "b": torch.full((2, 2), value)}
        assert plain.accept(reply_to(round_of(), tensors, examples=examples), came)
        assert sealed.accept(reply_of(value, examples=examples), came)
    differences = from_shareable(plain.aggregate(context("server"))).data
    kept = from_shareable(sealed.aggregate(context("server")))
    assert kept.data_kind == DataKind.WEIGHTS, "FLARE adds what comes as differences"
    start, entries = split(kept.data)
    assert all(torch.equal(start[name], shared[name]) for name in shared)
    opened = unseal(ciphers[1], start, entries, layouts(Schema(shared), {"training": sealed_round.contract}, Part()))
    close(opened, {name: shared[name] + differences[name] for name in shared}, by=GRID + 3 * 3 / SHARES)
    # what was used is what is recorded: whole shares
    assert sum(sealed.weights.values()) == 1
    assert all((weight * SHARES).is_integer() for weight in sealed.weights.values())
    assert sealed.weights == pytest.approx(plain.weights, abs=1 / SHARES)


@pytest.mark.parametrize(
    ("examples", "weights"),
    [((1000, 10, 10), (100 / 120, 10 / 120, 10 / 120)), ((None, 5, 500), (1 / 3, 1 / 3, 1 / 3))],
    ids=["capped", "a count is withheld"],
)
def test_the_server_still_decides_the_weights(
    sealed_round: Round,
    reply_of: Callable[..., Shareable],
    context: Callable[..., FLContext],
    ciphers: tuple[Cipher, Cipher],
    examples: tuple[Any, ...],
    weights: tuple[float, ...],
) -> None:
    aggregator = SharedKeysAggregator()
    aggregator.open_round(sealed_round)
    for index, count in enumerate(examples):
        assert aggregator.accept(reply_of(float(index), examples=count), context("server", peer=f"site-{index + 1}"))
    kept = from_shareable(aggregator.aggregate(context("server"))).data
    found = ciphers[1].decrypt(kept[ENTRY], 6)
    expected = sum(index * weight for index, weight in enumerate(weights))
    assert float(abs(found - expected).max()) <= GRID + 3 * 3 / SHARES
    assert aggregator.notes["weighting"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"a": torch.ones(2), "b": torch.ones(2, 2)}, "UNKNOWN_TENSORS: 2 tensor(s) that are not the one encrypted"),
        ({}, "UNKNOWN_TENSORS: 0 tensor(s)"),
        ({ENTRY: torch.zeros(packed_shape(6), dtype=torch.uint8)}, "ENCRYPTION: ciphertext 0: ValueError"),
        ({ENTRY: torch.zeros(7, dtype=torch.uint8)}, "TENSOR_SHAPE"),
        ({ENTRY: torch.zeros(packed_shape(6))}, "TENSOR_TYPE"),
        ({ENTRY: torch.zeros(packed_shape(6), dtype=torch.uint8), "more": torch.ones(1)}, "UNKNOWN_TENSORS"),
        ([1], "UNREADABLE"),
    ],
)
def test_a_reply_of_another_form_costs_its_site_alone(
    sealed_round: Round,
    reply_to: Callable[..., Shareable],
    reply_of: Callable[..., Shareable],
    context: Callable[..., FLContext],
    data: Any,
    problem: str,
) -> None:
    aggregator = SharedKeysAggregator()
    aggregator.open_round(sealed_round)
    assert aggregator.accept(reply_of(1.0), context("server", peer="site-1"))
    assert not aggregator.accept(reply_to(sealed_round, data), context("server", peer="site-2"))
    assert aggregator.rejections["site-2"].startswith(problem)
    alone = from_shareable(aggregator.aggregate(context("server"))).data
    assert aggregator.weights == {"site-1": 1.0}
    assert ENTRY in alone


def test_a_plain_round_takes_no_encrypted_reply(
    reply_of: Callable[..., Shareable], aggregator: SharedKeysAggregator, context: Callable[..., FLContext]
) -> None:
    assert not aggregator.accept(reply_of(1.0), context("server", peer="site-1"))


def test_a_rule_that_reads_replies_says_so_and_is_never_given_encrypted_ones(
    sealed_round: Round, reply_of: Callable[..., Shareable], context: Callable[..., FLContext]
) -> None:
    class Distances(GuardedAggregator):
        pass

    rule = Distances()
    assert rule.needs_plain == "Distances reads the sites' differences"
    assert SharedKeysAggregator().needs_plain == ""
    rule.open_round(sealed_round)
    assert rule.accept(reply_of(1.0), context("server", peer="site-1"))
    with pytest.raises(TypeError, match="Distances reads"):
        rule.aggregate(context("server"))


def test_a_study_that_returns_no_tensors_has_nothing_to_encrypt(study: Callable[..., Experiment]) -> None:
    contracts = {"training": StageContract(sends="shared", returns="metrics")}
    with pytest.raises(ConfigurationError, match=r"federation.encryption.*nothing to encrypt"):
        check_encryption(study(federation=ENCRYPTED), contracts)
    none = {"training": {"rounds": 0}, "tuning": {}, "testing": {}}
    with pytest.raises(ConfigurationError, match="nothing to encrypt"):
        study(federation=ENCRYPTED, stages=none)
    study(federation=ENCRYPTED)


def test_personal_tensors_need_a_server_that_reads(study: Callable[..., Experiment]) -> None:
    contracts = {"training": StageContract(sends="shared", returns="shared", personal=True)}
    with pytest.raises(ConfigurationError, match="personal tensors, for which the server must read"):
        check_encryption(study(federation=ENCRYPTED), contracts)


def test_without_kits_there_is_no_encryption(study: Callable[..., Experiment]) -> None:
    refuse_simulation(study())
    with pytest.raises(ConfigurationError, match=r"without startup kits.*submit the job to a federation"):
        refuse_simulation(study(federation=ENCRYPTED))


def test_a_federation_in_one_process_refuses_it(
    toy: None, settings: dict[str, Any], experiment_file: Path, tmp_path: Path
) -> None:
    experiment_file.write_text(yaml.safe_dump({**settings, "federation": ENCRYPTED}))
    with pytest.raises(ConfigurationError, match="without startup kits"):
        InProcessFederation(job=experiment_file.parents[2], workspace=tmp_path / "w", sites=["site-1"], run="a1")

"""A round's encoders, bank and optimiser: what each switch changes, and what goes on exactly after a kill."""

import gc
import weakref
from typing import Any

import pytest
import torch

from fedmedseg.core.checkpoint import content_sha256
from fedmedseg.core.compute import ComputeChoice
from fedmedseg.core.seeding import seed_everything
from fedmedseg.fcl.losses import SLICES


def steps(made: Any, count: int = 2, *, start: int = 0) -> list[dict[str, float]]:
    found = []
    for index in range(start, start + count):
        seed_everything(100 + index)
        found.append(dict(made.step(index)))
    return found


def begun(made: Any, *, round: int = 1, received: Any = None, personal: Any = None) -> Any:
    made.begin(round=round, rounds=3, received=received)
    seed_everything(1)
    made.initialise(made.shared() if personal is None else personal["tensors"], personal)
    return made


def test_an_objective_frees_its_networks_without_the_collector(objective) -> None:
    made = begun(objective())
    seed_everything(1)
    made.batches.next()
    gone = weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()


def test_a_batch_made_beside_the_step_before_it_changes_no_bit(objective) -> None:
    plain, ahead = begun(objective()), begun(objective())
    steps(plain)
    for index in range(2):
        seed_everything(100 + index)
        if index == 0:
            ahead.expect(101)
        ahead.step(index)
        assert not ahead.batches._coming or index == 0, "what was expected was taken"
    assert content_sha256(plain.shared()) == content_sha256(ahead.shared())
    ahead.expect(102)
    ahead.begin(round=2, rounds=3, received=None)
    assert not ahead.batches._coming, "a new round expects nothing of the one before"


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.5},
        {"denominator": "exclude_same_partition"},
        {"positives": "view"},
        {"structural": False, "warmup_rounds": 5},
        {"parts": 2},
        {"partition": "rounded_width"},
        {"volumes_per_step": 3},
        {"bank": {"size": 3}},
        {"bank": {"size": 6, "share": 0.2}},
        {"bank": {"size": 6, "samples": 2}},
        {"projector": {"out": 4, "hidden": 5}},
        {"projector": {"out": 4, "norm": True}},
        {"optimizer": {"learning_rate": 0.01}},
        {"optimizer": {"momentum": 0.0}},
        {"optimizer": {"weight_decay": 0.1}},
        {"optimizer": {"warmup_fraction": 0.5}},
        {"optimizer": {"clip_norm": 0.001}},
        {"network": {"norm": "instance"}},
    ],
    ids=str,
)
def test_every_switch_changes_what_is_trained(objective, change: dict[str, Any]) -> None:
    plain, changed = begun(objective()), begun(objective(**change))
    for made in (plain, changed):
        steps(made)
    assert content_sha256(plain.shared()) != content_sha256(changed.shared())


def test_the_momentum_changes_the_momentum_encoder_alone_at_first(objective) -> None:
    slow, fast = begun(objective()), begun(objective(momentum=0.1))
    for made in (slow, fast):
        steps(made, 1)
    assert content_sha256(slow.shared()) == content_sha256(fast.shared())
    assert content_sha256(slow.key.shared()) != content_sha256(fast.key.shared())


def test_the_momentum_encoder_is_reset_to_the_servers_or_kept(objective) -> None:
    first = begun(objective())
    steps(first)
    personal = first.memory()
    assert content_sha256(personal["key"]) != content_sha256(personal["tensors"])
    server = {name: tensor + 0.01 for name, tensor in personal["tensors"].items()}
    for sync, expected in (("reset", server), ("keep", personal["key"])):
        made = objective(key_sync=sync)
        made.begin(round=2, rounds=3, received=None)
        seed_everything(5)
        made.initialise(server, personal)
        assert content_sha256(made.shared()) == content_sha256(server)
        assert content_sha256(made.key.shared()) == content_sha256(expected)
        same_bank = torch.equal(made.bank.rows.vectors, personal["bank"]["vectors"])
        assert same_bank == (sync == "keep"), "a bank of older weights is filled anew"


def test_without_aggregation_the_site_goes_on_from_its_own_encoder(objective) -> None:
    first = begun(objective(exchange=False))
    steps(first)
    server = {name: tensor + 1 for name, tensor in first.shared().items()}
    alone = objective(exchange=False, aggregation="none", starts=["personal"])
    alone.begin(round=2, rounds=3, received=None)
    alone.initialise(server, first.memory())
    assert content_sha256(alone.shared()) == content_sha256(first.shared())


def test_the_bank_is_filled_with_the_momentum_encoders_features_of_different_slices(objective) -> None:
    made = begun(objective())
    assert len(made.bank) == made.bank.capacity == 6
    slices = made.bank.rows.slices.tolist()
    assert len(set(slices)) == 6
    known = {at.volume * SLICES + at.slice: at.part for at in made.slices}
    assert [known[number] for number in slices] == made.bank.rows.parts.tolist()
    torch.testing.assert_close(made.bank.rows.vectors.norm(dim=1), torch.ones(6))


def test_a_bank_that_is_one_slice_more_than_a_batch_can_be_normalised(objective) -> None:
    # two volumes of two parts a batch: five slices are batches of three and two, not of four and one
    made = objective(volumes_per_step=2, parts=2, bank={"size": 5}, projector={"out": 4, "norm": True})
    made.refill()
    assert len(made.bank) == 5
    assert torch.isfinite(made.bank.rows.vectors).all()


def test_a_bank_never_holds_all_slices(objective) -> None:
    assert objective(bank={"size": 2048}).bank.capacity == 12, "four fifths of 15 slices"


def test_each_step_replaces_the_oldest_features(objective, volumes) -> None:
    made = begun(objective(held=volumes(depths=(4, 4)), bank={"size": 6}))
    steps(made, 1)
    assert len(made.bank) == 6, "all of them are of this step's eight slices"
    assert len(set(made.bank.rows.slices.tolist())) == 6


def test_structural_matching_waits_for_its_rounds(objective) -> None:
    made = objective(warmup_rounds=1)
    remote = []
    for number in (0, 1):
        begun(made, round=number)
        remote.append(steps(made, 1)[0]["loss/remote"])
    assert remote[0] == 0.0 < remote[1]


def test_received_features_are_compared_with_from_the_first_round_on(objective, others) -> None:
    """During warm-up as negatives: the loss differs, its remote term does not."""
    for number in (0, 1):
        without, with_ = begun(objective(), round=number), begun(objective(), round=number, received=others(40))
        one, other = steps(without, 1)[0], steps(with_, 1)[0]
        assert one["loss/local"] != other["loss/local"]
        assert (one["loss/remote"] == other["loss/remote"]) == (number == 0)


def test_k_is_the_own_banks_size_unless_it_is_set(objective, others, monkeypatch) -> None:
    from fedmedseg.fcl import objective as module

    asked = []
    real = module.sampled
    monkeypatch.setattr(module, "sampled", lambda own, received, *, count: asked.append(count) or real(
        own, received, count=count
    ))  # fmt: skip
    for options in ({}, {"bank": {"size": 6, "samples": 9}}):
        steps(begun(objective(**options), received=others(40)), 1)
    assert asked == [6, 9]


def test_what_leaves_is_the_bank_or_computed_anew_with_the_last_momentum_encoder(objective) -> None:
    kept, anew = begun(objective()), begun(objective(upload="recompute"))
    for made in (kept, anew):
        steps(made)
    bank = kept.bank.rows.vectors.clone()
    seed_everything(9)
    assert torch.equal(kept.leaving().vectors, bank)
    seed_everything(9)
    leaving = anew.leaving()
    assert not torch.equal(leaving.vectors, bank)
    by_slice = {(at.volume * SLICES + at.slice): at for at in anew.slices}
    slices = [by_slice[number] for number in anew.bank.rows.slices.tolist()]
    assert torch.equal(anew.encoded(slices).vectors, leaving.vectors)


def test_an_epoch_is_as_many_steps_as_see_every_slice_once(objective) -> None:
    # 15 slices, eight a step
    assert objective(local_epochs=1).steps == 2
    assert objective(local_epochs=3).steps == 6
    assert objective(local_steps=5).steps == 5


@pytest.mark.parametrize("network", [{"norm": "group"}, {"norm": "batch"}])
def test_a_killed_round_goes_on_to_the_same_bits(objective, others, network) -> None:
    whole = begun(objective(network=network), received=others())
    steps(whole, 4)
    first = begun(objective(network=network), received=others())
    steps(first, 2)
    tree = first.state()
    second = objective(network=network)
    second.begin(round=1, rounds=3, received=others())
    second.restore(tree)
    steps(second, 2, start=2)
    for one, other in ((whole.shared(), second.shared()), (whole.key.shared(), second.key.shared())):
        running = {name for name in one if "running" in name}
        assert content_sha256({n: t for n, t in one.items() if n not in running}) == content_sha256(
            {n: t for n, t in other.items() if n not in running}
        )
        assert content_sha256(one) == content_sha256(other)
    assert torch.equal(whole.bank.rows.vectors, second.bank.rows.vectors)


def test_momentum_of_sgd_goes_on_from_round_to_round(objective) -> None:
    first = begun(objective())
    steps(first)
    made = objective()
    made.begin(round=2, rounds=3, received=None)
    made.initialise(first.shared(), first.memory())
    buffers = [state["momentum_buffer"] for state in made.optimizer.state.values()]
    assert buffers
    assert any(float(buffer.abs().sum()) > 0 for buffer in buffers)
    assert made.figures == {}
    made.begin(round=2, rounds=3, received=None)
    made.initialise(first.shared(), None)
    assert not made.optimizer.state
    assert made.figures == {"memory_missing": 1.0}


def test_the_trial_is_timed_on_a_batch_of_the_studys_size(objective) -> None:
    made = objective()
    trial = made.trial()
    loss = trial.loss(made.compute)
    loss.backward()
    assert torch.isfinite(loss)
    assert any(parameter.grad is not None for parameter in made.network.parameters())
    assert all(parameter.grad is None for parameter in made.key.parameters())


def test_bfloat16_changes_features_a_little_and_they_stay_float32(objective) -> None:
    full, half = objective(), objective()
    half.use(ComputeChoice(precision="bf16"))
    one, other = (made.encoded(made.slices).vectors for made in (full, half))
    assert other.dtype == torch.float32
    assert 0.0 < float((one - other).abs().max()) < 0.1
    torch.testing.assert_close(other.norm(dim=1), torch.ones(len(other)))

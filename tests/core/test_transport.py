"""What travels in place of differences: how much, how exactly, what comes later, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from encoded import arrived
from nvflare.apis.dxo import from_shareable
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from fedmedseg.core.aggregator import SharedKeysAggregator
from fedmedseg.core.checkpoint import content_crc32
from fedmedseg.core.config import Experiment
from fedmedseg.core.errors import ConfigurationError, FedMedSegError
from fedmedseg.core.learner import Task
from fedmedseg.core.question import Round
from fedmedseg.core.replies import thin
from fedmedseg.core.traffic import encoded_bytes
from fedmedseg.core.transport import BLOCK, PLACES, PLAIN, SCALES, VALUES, Codec, codec_of, down_codec_of
from fedmedseg.core.wire import Schema, StageContract, tensor_bytes

Tensors = dict[str, torch.Tensor]
SIZES = {"fp16": 0.51, "int8": 0.26, "topk": 0.02}


def differences(seed: int = 0, *, size: int = 1000) -> Tensors:
    """Two matrices of very different scale, a vector, a scalar and a count in float64."""
    draws = torch.Generator().manual_seed(seed)
    return {
        "b.weight": 1e-7 * torch.randn(7, size, generator=draws),
        "a.weight": torch.randn(size, 3, generator=draws),
        "a.bias": torch.randn(5, generator=draws),
        "step": torch.tensor(0.25),
        "wide": torch.randn(3, 3, generator=draws, dtype=torch.float64),
    }


def codec(transport: str, tensors: Mapping[str, torch.Tensor] | None = None) -> Codec:
    return Codec(transport=transport, schema=Schema(differences() if tensors is None else tensors))


@pytest.mark.parametrize("transport", SIZES)
def test_what_is_decoded_has_the_form_of_what_was_encoded_and_small_tensors_are_exact(transport: str) -> None:
    given = differences()
    one = codec(transport)
    entries, _ = one.encode(given)
    assert one.problem(entries) is None
    found = one.decode(entries)
    assert one.schema.problem(found) is None
    for name in ("a.bias", "step", "wide"):
        assert torch.equal(found[name], given[name])


def test_half_precision_keeps_three_digits_of_tensors_of_any_scale() -> None:
    for scale in (1e-20, 1.0, 1e30):
        given = {name: tensor * scale for name, tensor in differences().items()}
        found = codec("fp16").decode(codec("fp16").encode(given)[0])
        for name in ("a.weight", "b.weight"):
            assert torch.allclose(found[name], given[name], rtol=1e-3, atol=float(given[name].abs().max()) * 1e-6)


def test_half_precision_is_off_by_half_of_its_last_digit_at_most_also_where_numbers_are_tiny() -> None:
    """A 2048th of a number, or 2^-25 of its tensor's largest; numbers over twelve orders of magnitude."""
    given = differences()
    shape = given["b.weight"].shape
    given["b.weight"] = (3.0 * torch.logspace(-12, 0, shape.numel())).reshape(shape)
    found = codec("fp16").decode(codec("fp16").encode(given)[0])
    error = (found["b.weight"] - given["b.weight"]).abs()
    bound = torch.maximum(given["b.weight"] / 2048, 3.0 * torch.tensor(2.0**-25))
    assert bool((error <= 1.001 * bound).all())
    assert bool((error > given["b.weight"] / 2048).any()), "the second bound is needed"


def test_int8_is_off_by_half_a_step_of_its_blocks_largest_number_at_most() -> None:
    given = differences()
    found = codec("int8").decode(codec("int8").encode(given)[0])
    flat, error = given["b.weight"].reshape(-1), (found["b.weight"] - given["b.weight"]).reshape(-1).abs()
    for begin in range(0, len(flat), BLOCK):
        block = slice(begin, begin + BLOCK)
        assert float(error[block].max()) <= float(flat[block].abs().max()) / 254 * 1.001
    assert float(error.max()) > 0.0


def test_topk_sends_the_largest_hundredth_of_each_tensor() -> None:
    """By tensor, not by model: the small scale of one must not silence it."""
    given = differences()
    found = codec("topk").decode(codec("topk").encode(given)[0])
    for name, sent in (("a.weight", 30), ("b.weight", 70)):
        there = found[name] != 0
        assert int(there.sum()) == sent
        assert float(given[name][there].abs().min()) >= float(given[name][~there].abs().max())
        assert torch.allclose(found[name][there], given[name][there], rtol=1e-3)


def test_what_topk_does_not_send_is_kept_to_the_last_bit_and_comes_later() -> None:
    one, kept = codec("topk"), {}
    total = {name: torch.zeros_like(tensor) for name, tensor in differences().items()}
    arrived = {name: torch.zeros_like(tensor) for name, tensor in total.items()}
    for number in range(300):
        # the same direction every round, as a drift is
        given = {name: 0.01 * tensor for name, tensor in differences().items()}
        entries, kept = one.encode(given, kept)
        for name, tensor in one.decode(entries).items():
            arrived[name] += tensor
            total[name] += given[name]
        assert kept.keys() == {"a.weight", "b.weight"}, number
    for name, tensor in kept.items():
        scale = float(total[name].abs().max())
        assert torch.allclose(arrived[name] + tensor, total[name], rtol=0, atol=1e-5 * scale)
    fresh, _ = one.encode({name: 0.01 * tensor for name, tensor in differences().items()})
    lost = sum(one.decode(fresh)["a.weight"] for _ in range(300))
    one_way = total["a.weight"].reshape(1, -1)
    near = torch.nn.functional.cosine_similarity(arrived["a.weight"].reshape(1, -1), one_way).item()
    forgetful = torch.nn.functional.cosine_similarity(lost.reshape(1, -1), one_way).item()
    assert near > 0.95 > forgetful


@pytest.mark.parametrize("transport", SIZES)
def test_zeros_and_a_tensor_of_one_number_come_through(transport: str) -> None:
    given = {"w": torch.zeros(3, 3), "one": torch.full((1, 1), -2.0), "none": torch.zeros(0, 2)}
    one = codec(transport, given)
    entries, _ = one.encode(given)
    assert one.problem(entries) is None
    found = one.decode(entries)
    assert not bool(found["w"].any())
    assert found["one"].item() == pytest.approx(-2.0)
    assert found["none"].shape == (0, 2)


@pytest.mark.parametrize(("transport", "most"), SIZES.items())
def test_bytes_as_flare_encodes_them_stay_below_the_goals(
    transport: str, most: float, context: Callable[..., FLContext], reply_to: Callable[..., Shareable], task: Any
) -> None:
    """The study's usual U-Net, names and headers included."""
    from monai.networks.nets import UNet

    network = UNet(3, 1, 4, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2), num_res_units=2, norm="BATCH")
    draws = torch.Generator().manual_seed(1)
    floating = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    given = {name: torch.randn(tensor.shape, generator=draws) for name, tensor in floating.items()}
    schema = Schema(given)
    current = Round.begin(
        run="run", stage="training", number=0, nonce="nonce", schema=schema, shared=given, personal={},
        contract=StageContract(sends="shared", returns="shared"),
    )  # fmt: skip
    dense, thinned = reply_to(current, given), reply_to(current, given)
    thin(thinned, codec=Codec(transport=transport, schema=schema), state=task().state)
    share = encoded_bytes(thinned) / encoded_bytes(dense)
    assert 0.5 * most < share <= most
    assert tensor_bytes(from_shareable(dense).data) == schema.nbytes, "the other reply stays as it is"


def change(name: str, value: Any) -> Callable[[Tensors], Any]:
    return lambda entries: {**entries, name: value(entries[name]) if callable(value) else value}


BAD = [
    pytest.param("fp16", lambda entries: [], "TENSOR_TYPE", id="no mapping"),
    pytest.param("fp16", lambda entries: {}, "EMPTY", id="nothing"),
    pytest.param(
        "fp16", lambda entries: {n: t for n, t in entries.items() if n != SCALES}, "UNKNOWN", id="one missing"
    ),
    pytest.param("fp16", lambda entries: {**entries, "x": torch.zeros(1)}, "UNKNOWN", id="one more"),
    pytest.param("fp16", lambda entries: differences(), "UNKNOWN", id="dense"),
    pytest.param("fp16", change(VALUES, lambda t: t.float()), "TENSOR_TYPE", id="another type"),
    pytest.param("int8", change(VALUES, lambda t: t[1:]), "TENSOR_SHAPE", id="too few"),
    pytest.param("int8", change(SCALES, lambda t: t[:, None]), "TENSOR_SHAPE", id="another shape"),
    pytest.param("fp16", change(PLAIN, "text"), "TENSOR_TYPE", id="text"),
    pytest.param("topk", change(PLACES, lambda t: t - 10**6), "SCHEMA", id="before the tensor"),
    pytest.param("topk", change(PLACES, lambda t: t + 10**6), "SCHEMA", id="behind the tensor"),
    pytest.param("topk", change(PLACES, lambda t: torch.zeros_like(t)), "SCHEMA", id="one place many times"),
    pytest.param("topk", change(PLACES, lambda t: t.long()), "TENSOR_TYPE", id="wider places"),
]


@pytest.mark.parametrize(("transport", "spoil", "reason"), BAD)
def test_what_cannot_be_decoded_is_refused_and_nothing_is_raised(transport: str, spoil: Any, reason: str) -> None:
    one = codec(transport)
    found = one.problem(spoil(one.encode(differences())[0]))
    assert found is not None
    assert found[0].startswith(reason)


@pytest.mark.parametrize("name", [SCALES, PLAIN])
def test_numbers_that_are_not_finite_once_decoded_cost_that_reply_alone(
    name: str, shared: Tensors, round_of: Callable[..., Round], reply_to: Any, context: Callable[..., FLContext]
) -> None:
    import dataclasses

    aggregator = SharedKeysAggregator()
    current = dataclasses.replace(round_of(), codec=Codec(transport="fp16", schema=Schema(shared)))
    aggregator.open_round(current)
    entries, _ = current.codec.encode({"a": torch.ones(2), "b": torch.ones(2, 2)})
    assert aggregator.accept(reply_to(current, dict(entries)), context("server", peer="site-1"))
    spoilt = {**entries, name: torch.full_like(entries[name], float("inf"))}
    assert not aggregator.accept(reply_to(current, spoilt), context("server", peer="site-2"))
    assert aggregator.rejections["site-2"].startswith("NOT_FINITE")
    kept = aggregator.contributions["site-1"]
    assert torch.equal(kept.differences["b"], torch.ones(2, 2))
    assert kept.nbytes == tensor_bytes(entries) != tensor_bytes(shared)


def test_a_dense_reply_is_refused_where_another_form_was_agreed_on(
    shared: Tensors, round_of: Callable[..., Round], reply_to: Any, context: Callable[..., FLContext]
) -> None:
    import dataclasses

    aggregator = SharedKeysAggregator()
    aggregator.open_round(dataclasses.replace(round_of(), codec=Codec(transport="int8", schema=Schema(shared))))
    assert not aggregator.accept(reply_to(aggregator.round, dict(shared)), context("server", peer="site-1"))


def test_a_round_that_is_asked_again_is_encoded_again_to_the_same_bytes(
    shared: Tensors, round_of: Callable[..., Round], reply_to: Any, task: Callable[..., Task]
) -> None:
    """What is not sent is remembered by round: a second answer must not add the first one's rest."""
    wide = {"a": torch.randn(30, 30)}
    one = Codec(transport="topk", schema=Schema(wide))
    replies = []
    for number in (0, 1, 1):
        reply = reply_to(round_of(number=number, tensors=wide), dict(wide))
        thin(reply, codec=one, state=task().state)
        replies.append(from_shareable(reply).data)
    assert torch.equal(replies[1][VALUES], replies[2][VALUES])
    assert torch.equal(replies[1][PLACES], replies[2][PLACES])
    assert not torch.equal(replies[0][PLACES], replies[1][PLACES])


def test_differences_of_another_schema_are_not_encoded(
    round_of: Callable[..., Round], reply_to: Any, task: Callable[..., Task]
) -> None:
    reply = reply_to(round_of(), {"a": torch.ones(3)})
    with pytest.raises(FedMedSegError):
        thin(reply, codec=codec("fp16"), state=task().state)


@pytest.mark.parametrize(
    ("federation", "message"),
    [
        ({"transport": "fp8"}, r"federation\.transport"),
        ({"transport": "fp16", "encryption": "ckks"}, r"federation\.transport"),
        ({"transport": "topk", "robust": {"rule": "median"}}, r"federation\.transport"),
        ({"transport_down": "topk"}, r"federation\.transport_down"),
        ({"transport_down": "int8", "encryption": "ckks"}, r"federation\.transport_down.*encrypted sums"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name(
    study: Callable[..., Experiment], federation: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        study(federation=federation)


def test_only_stages_that_return_differences_and_keep_no_gifts_are_encoded(study: Callable[..., Experiment]) -> None:
    thinned, dense = study(federation={"transport": "int8"}), study()
    schema = Schema(differences())
    returns = StageContract(sends="shared", returns="shared")
    assert codec_of(thinned, returns, schema) is not None
    assert codec_of(dense, returns, schema) is None
    assert codec_of(thinned, StageContract(sends="shared", returns="metrics"), schema) is None
    assert codec_of(thinned, StageContract(sends="shared", returns="shared", collects=True), schema) is None


def test_only_stages_that_send_tensors_are_encoded_on_the_way_down_and_none_whose_bits_must_agree(
    study: Callable[..., Experiment],
) -> None:
    thinned, dense = study(federation={"transport_down": "fp16"}), study(federation={"transport": "fp16"})
    schema, sends = Schema(differences()), StageContract(sends="shared", returns="metrics")
    made = down_codec_of(thinned, sends, schema)
    assert made is not None
    assert made.transport == "fp16"
    assert down_codec_of(dense, sends, schema) is None
    assert down_codec_of(thinned, StageContract(sends="nothing", returns="metrics"), schema) is None
    with pytest.raises(ConfigurationError, match=r"federation\.transport_down.*bit for bit"):
        down_codec_of(thinned, StageContract(sends="shared", returns="shared", held=True), schema)


def rounded(tensors: Tensors, transport: str, **more: Any) -> Round:
    """A round whose tensors go down encoded."""
    schema = Schema(tensors)
    return Round.begin(
        run="run", stage="training", number=0, nonce="nonce", schema=schema, shared=tensors,
        contract=StageContract(sends="shared", returns="shared", personal=bool(more.get("personal"))),
        down=Codec(transport=transport, schema=schema), **{"personal": {}, **more},
    )  # fmt: skip


@pytest.mark.parametrize(("transport", "most"), [("fp16", 0.51), ("int8", 0.26)])
def test_every_site_decodes_the_same_bits_which_the_task_names_and_the_server_keeps_its_own(
    transport: str, most: float
) -> None:
    given = differences(size=4000)
    current = rounded(given, transport)
    whole = sum(tensor.numel() for name, tensor in given.items() if name in ("a.weight", "b.weight"))
    message = current.message_to("site-1")
    assert tensor_bytes({name: message[name] for name in (VALUES, SCALES)}) <= most * 4 * whole
    copies = []
    for _ in ("site-1", "site-2"):
        copies.append(
            Codec(transport=transport, schema=Schema(given)).opened(arrived(dict(message)), sender="the server")
        )
    for found in copies:
        assert content_crc32(found) == current.base == current.base_of("site-1") != content_crc32(given)
        assert all(torch.equal(found[name], current.given_to("site-1")[name]) for name in given)
    # what comes back is added to what the server has
    assert current.start_of("site-1") is current.shared
    assert all(torch.equal(current.shared[name], given[name]) for name in given)


def test_what_cannot_be_decoded_on_arrival_is_named() -> None:
    one = codec("int8")
    entries, _ = one.encode(differences())
    with pytest.raises(FedMedSegError, match=r"tensors from the server: got wire.values is .*, declared") as caught:
        one.opened({**entries, VALUES: entries[VALUES][1:]}, sender="the server")
    assert caught.value.reason == "TENSOR_SHAPE"
    # a round that sends nothing of its stage's tensors
    assert Codec(transport="int8", schema=Schema({})).opened({}, sender="the server") == {}


def test_tensors_of_a_sites_own_go_down_encoded_and_its_differences_are_added_to_what_is_kept_of_them() -> None:
    given, own = differences(), {"a.weight": differences(1)["a.weight"]}
    features = {"exchange.features": torch.ones(2, 3)}
    current = rounded(given, "int8", personal={"site-2": own}, exchanged={"site-1": features})
    for site, tensors in (("site-1", given), ("site-2", {**given, **own})):
        message = dict(current.message_to(site))
        assert (message.pop("exchange.features", None) is not None) == (site == "site-1")
        found = codec("int8", given).opened(message, sender="the server")
        held = dict(current.given_to(site))
        assert held.pop("exchange.features", None) is None or site == "site-1"
        assert all(torch.equal(found[name], held[name]) for name in given)
        assert all(current.start_of(site)[name] is tensors[name] for name in given)
    assert len({current.base, current.base_of("site-1"), current.base_of("site-2")}) == 3


def test_steps_too_small_for_a_rounded_copy_are_not_lost_to_the_model() -> None:
    """A site trains from what it decodes; what it changed is added to the server's own."""
    kept = {"w": torch.full((4, 64), 1.0)}
    kept["w"][0, 0] = 100.0
    start, step = kept["w"].clone(), 0.01
    # an int8 step of a block whose largest number is 100 is 0.79
    for _ in range(100):
        current = rounded(kept, "int8")
        received = current.given_to("site-1")["w"]
        difference = (received + step) - received
        kept = {"w": current.shared["w"] + difference}
    assert torch.allclose(kept["w"], start + 1.0, atol=1e-3)

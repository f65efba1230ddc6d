"""The declared content of the wire: schemas of tensors and contracts of stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmedseg.core.errors import FedMedSegError, Reason
from fedmedseg.core.wire import Header, Part, Schema, StageContract, TensorSpec, is_finite, tensor_bytes

TENSORS = {"b": torch.zeros(2, 3), "a": torch.zeros(4).half()}
FLOAT32 = torch.finfo(torch.float32)


def test_a_schema_counts_the_bytes_of_its_tensors() -> None:
    schema = Schema(TENSORS)
    assert list(schema.specs) == ["a", "b"]
    assert schema.specs["b"] == TensorSpec((2, 3), torch.float32)
    assert schema.nbytes == tensor_bytes(TENSORS) == 2 * 3 * 4 + 4 * 2


def test_the_digest_knows_names_shapes_and_types_but_neither_order_nor_values() -> None:
    digest = Schema(TENSORS).digest
    assert digest == Schema({"a": torch.ones(4).half(), "b": torch.ones(2, 3)}).digest
    for other in (
        {**TENSORS, "b": torch.zeros(3, 2)},
        {**TENSORS, "b": torch.zeros(2, 3).double()},
        {"a": TENSORS["a"], "c": TENSORS["b"]},
        {"a": TENSORS["a"]},
    ):
        assert Schema(other).digest != digest


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_integer_buffers_stay_off_the_wire(dtype: torch.dtype) -> None:
    with pytest.raises(FedMedSegError, match=r"num_batches_tracked.*floating-point") as caught:
        Schema({"num_batches_tracked": torch.zeros(1, dtype=dtype)})
    assert caught.value.reason is Reason.SCHEMA


def test_what_fits_is_taken_whatever_its_order_or_strides() -> None:
    assert Schema(TENSORS).problem({"b": torch.zeros(3, 2).T, "a": torch.ones(8).half()[::2]}) is None


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.zeros(4, dtype=torch.half, device="meta"), "b": torch.zeros(2, 3)},
        None,
        3,
        "ab",
        [torch.zeros(2)],
        torch.zeros(2),
        {},
        {"a": None, "b": None},
        {1: 2, 3: 4},
        object(),
    ],
)
def test_a_problem_is_told_and_never_raised(content: Any) -> None:
    found = Schema(TENSORS).problem(content)
    assert found is not None
    assert isinstance(found[0], Reason)


def test_a_problem_that_is_required_away_names_the_sender() -> None:
    with pytest.raises(FedMedSegError, match="tensors from the server") as caught:
        Schema(TENSORS).require({}, sender="the server")
    assert caught.value.public == "EMPTY: tensors from the server"


def test_a_part_that_holds_nothing_is_fulfilled_by_nothing_alone() -> None:
    nothing = Schema(TENSORS).part(Part(within=()))
    assert (nothing.nbytes, nothing.problem({})) == (0, None)
    found = nothing.problem({"a": TENSORS["a"]})
    assert found is not None
    assert found[0] is Reason.OVERSIZE
    found = nothing.problem(None)
    assert found is not None
    assert found[0] is Reason.TENSOR_TYPE


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([], True),
        ([0.0, -1.5], True),
        ([FLOAT32.max, FLOAT32.max], True),
        ([FLOAT32.tiny / 4], True),
        ([1.0, float("nan")], False),
        ([float("inf"), 1.0], False),
        ([float("inf"), float("-inf")], False),
        ([FLOAT32.max, FLOAT32.max, float("nan")], False),
    ],
)
def test_finiteness_is_judged_by_element_even_where_the_sum_overflows(values: list[float], finite: bool) -> None:
    assert is_finite(torch.tensor(values)) is finite


@pytest.mark.parametrize("name", ["loss", "mixing/first", "mixing/"])
def test_declared_metrics_pass(name: str) -> None:
    contract = StageContract(sends="shared", returns="shared", metrics=("loss", "mixing/*"))
    contract.check_metrics({name: 1.0, "loss": 0})


@pytest.mark.parametrize("name", ["Loss", "loss ", "loss/x", "mixing", "patient", "", 3, None])
def test_other_metrics_do_not(name: Any) -> None:
    """Fault row 42 at the source: what is not declared does not leave."""
    contract = StageContract(sends="shared", returns="shared", metrics=("loss", "mixing/*"))
    with pytest.raises(FedMedSegError, match="declare it in the system's plan") as caught:
        contract.check_metrics({name: 1.0})
    assert caught.value.public == "SCHEMA: metric", "the name itself may identify somebody"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "1", None, torch.tensor(1.0), [1.0]])
def test_metrics_are_finite_numbers(value: Any) -> None:
    with pytest.raises(FedMedSegError, match="a finite number"):
        StageContract(sends="nothing", returns="metrics", metrics=("loss",)).check_metrics({"loss": value})


def test_headers_do_not_collide() -> None:
    names = [value for key, value in vars(Header).items() if key.isupper()]
    assert len(set(names)) == len(names) == 14
    assert all(name.startswith("fedmedseg.") for name in names)


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ({f"dice/{number}": 0.5 for number in range(4097)}, Reason.OVERSIZE),
        ({"dice/" + "x" * 196: 0.5}, Reason.SCHEMA),
        ({"dice/a\nINFO forged": 0.5}, Reason.SCHEMA),
    ],
)
def test_metrics_under_a_declared_pattern_are_neither_a_flood_nor_a_text(
    metrics: dict[str, float], reason: Reason
) -> None:
    """Fault rows 17 and 44: a pattern declares many names, but not any number of them and not any name."""
    with pytest.raises(FedMedSegError) as caught:
        StageContract(sends="nothing", returns="metrics", metrics=("dice/*",)).check_metrics(metrics)
    assert caught.value.reason is reason
    StageContract(sends="nothing", returns="metrics", metrics=("dice/*",)).check_metrics({"dice/" + "x" * 195: 0.5})

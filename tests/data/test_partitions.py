"""Parts of a stack, worked out by hand."""

import numpy as np
import pytest

from fedmedseg.data.partitions import partition_of_slices


@pytest.mark.parametrize(
    ("slices", "parts", "rule", "expected"),
    [
        (8, 4, "even", [0, 0, 1, 1, 2, 2, 3, 3]),
        (10, 4, "even", [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]),
        (6, 4, "even", [0, 0, 1, 2, 2, 3]),
        (3, 4, "even", [0, 1, 2]),
        (1, 4, "even", [0]),
        # width round(10 / 4) = 3, a half rounded up
        (10, 4, "rounded_width", [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]),
        # width round(9 / 4) = 2: what is left over belongs to the last part
        (9, 4, "rounded_width", [0, 0, 1, 1, 2, 2, 3, 3, 3]),
        # width round(6 / 4) = 2 leaves the last part empty
        (6, 4, "rounded_width", [0, 0, 1, 1, 2, 2]),
    ],
)
def test_slices_fall_into_parts(slices: int, parts: int, rule: str, expected: list[int]) -> None:
    found = partition_of_slices(slices, parts, rule)  # type: ignore[arg-type]
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_a_stack_too_short_for_a_width_is_refused() -> None:
    with pytest.raises(ValueError, match="1 slices are too few for 4 parts"):
        partition_of_slices(1, 4, "rounded_width")


@pytest.mark.parametrize(("slices", "parts"), [(0, 4), (5, 0)])
def test_nothing_cannot_be_divided(slices: int, parts: int) -> None:
    with pytest.raises(ValueError, match="at least one slice and one part"):
        partition_of_slices(slices, parts)

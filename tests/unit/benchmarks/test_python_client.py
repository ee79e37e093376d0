"""Results of the Python client's benchmark."""

import numpy as np
import pytest

from benchmarks import python_client


def test_clients_are_compared_with_tritonclient_of_the_same_round() -> None:
    costs = {
        "triton": [(100.0, 50.0), (200.0, 60.0)],
        "mayfly": [(110.0, 25.0), (180.0, 30.0)],
        "triton-async": [(10.0, 5.0)] * 2,
        "mayfly-async": [(10.0, 4.0)] * 2,
    }
    entries = python_client.results(1, costs)

    over = {row["contender"]: row.get("over_triton", {}).get("median") for row in entries}
    assert over == {"triton": None, "mayfly": 1.0, "triton-async": None, "mayfly-async": 1.0}
    assert [row["cpu_over_triton"]["median"] for row in entries[1::2]] == [0.5, 0.8]
    assert len(python_client.table(entries).splitlines()) == 5


def test_a_wrong_answer_ends_the_comparison() -> None:
    with pytest.raises(SystemExit, match="not 2x"):
        python_client.check(np.ones(3), np.ones(3))

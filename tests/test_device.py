"""What is set for the CPU, seen in what oneDNN says of itself."""

import os
import subprocess
import sys

import pytest

KEEP = "from vlformer_cli.engine.device import keep_many_primitives; keep_many_primitives()\n"
FOUR_HUNDRED_SHAPES_AND_THE_FIRST_AGAIN = """
import torch
torch.set_num_threads(1)
weight = torch.ones(16, 16, 3, 3)
for width in [*range(3, 403), 3]:
    torch.conv2d(torch.ones(2, 16, 3, width), weight)
"""
NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")


@pytest.mark.parametrize(
    ("first", "capacity", "expected"),
    [("", {}, "cache_miss"), (KEEP, {}, "cache_hit"), (KEEP, {NAMES[0]: "1024"}, "cache_miss"),
     (KEEP, {NAMES[1]: "1024"}, "cache_miss")],
)  # fmt: skip
def test_a_shape_of_long_ago_is_still_known(first: str, capacity: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    told = subprocess.run(
        [sys.executable, "-c", first + FOUR_HUNDRED_SHAPES_AND_THE_FIRST_AGAIN],
        env=environment | capacity | {"ONEDNN_VERBOSE": "2"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    made = [line for line in told.splitlines() if "create:" in line and ",convolution," in line]
    if not made:
        pytest.skip("torch does not ask oneDNN here, or that does not say what it does")
    assert len(made) == 401
    assert expected in made[-1]

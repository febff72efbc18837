"""What `make fuzz` found once, and some inputs of each fuzzer, so that none of them rots: always the same ones."""

from __future__ import annotations

import importlib

import pytest

from byol.bundle.schema import BundleError, read_object
from tests.fuzz.__main__ import modules


@pytest.mark.parametrize("name", modules())
def test_some_inputs_of_each_fuzzer(name: str) -> None:
    outcomes = importlib.import_module(f"tests.fuzz.{name}").run(seed=0, most=120)
    assert outcomes.total() == 120
    assert outcomes["refused"] >= 10
    assert outcomes["read"] + outcomes["ran"] >= 10


def test_a_manifest_s_key_is_quoted_short() -> None:
    key = "[" * 5000
    with pytest.raises(BundleError) as caught:
        read_object(f'{{"{key}": 1, "{key}": 2}}')
    assert len(str(caught.value)) < 300

"""What `make fuzz` found once, and a few seconds of each fuzzer, so that none of them rots: always the same ones."""

from __future__ import annotations

import importlib

import pytest

from byol.bundle.schema import BundleError, read_object
from tests.fuzz.__main__ import modules


@pytest.mark.parametrize("name", modules())
def test_a_few_seconds_of_each_fuzzer(name: str) -> None:
    importlib.import_module(f"tests.fuzz.{name}").run(2.0, seed=0)


def test_a_manifest_s_key_is_quoted_short() -> None:
    key = "[" * 5000
    with pytest.raises(BundleError) as caught:
        read_object(f'{{"{key}": 1, "{key}": 2}}')
    assert len(str(caught.value)) < 300

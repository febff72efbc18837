"""Tests keep nothing in the user's own cache."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYOL_HOME", str(tmp_path_factory.mktemp("byol-home")))
        yield

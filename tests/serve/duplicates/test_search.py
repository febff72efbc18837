"""The search for pairs, against all cosines in float64 at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byol.serve.duplicates import search as module
from byol.serve.duplicates.search import Found, Search
from byol.serve.duplicates.unfinished import Unfinished, key_of

PLENTY = 10**9


def cosines(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(length > 0, length, 1)
    return np.round(unit @ unit.T, 9)


def expected(x: np.ndarray, known: int, threshold: float) -> tuple[list[tuple[int, int]], list[int]]:
    """The pairs (a, b) in the order of b, and the leader of each new image, by the definition."""
    alike = cosines(x) >= threshold
    pairs = [(a, b) for b in range(known, len(x)) for a in range(b) if alike[a, b]]
    kept = set(range(known))
    leaders = []
    for b in range(known, len(x)):
        leader = next((a for a in sorted(kept) if a < b and alike[a, b]), -1)
        leaders.append(leader)
        if leader < 0:
            kept.add(b)
    return pairs, leaders


def searched(new: np.ndarray, known: np.ndarray | None, threshold: float) -> Found:
    found, done = Found.nothing(len(new)), list[int]()
    search = Search(new, known, threshold)
    search.run(found, done.append, lambda _: None)
    assert sum(done) == search.total
    return found


def clustered(seed: int, count: int, dim: int = 6) -> np.ndarray:
    """Rows around few centres at all distances, some equal, one zero: chains and piles of near-duplicates."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(max(1, count // 4), dim))
    x = centres[random.integers(len(centres), size=count)]
    x = x + random.normal(size=x.shape) * random.choice([0, 1e-4, 0.05, 0.3], size=(count, 1))
    x[random.integers(count)] = 0
    rows: np.ndarray = (x * random.uniform(0.1, 10, (count, 1))).astype(np.float32)
    return rows


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.integers(0, 25),
    st.sampled_from([0.5, 0.9, 0.99, 0.9999]),
    st.sampled_from([(64, 64), (7, 3), (3, 7), (1, 1), (16, 16), (8, 5)]),
)
def test_the_pairs_and_the_kept_are_those_of_all_cosines(
    seed: int, count: int, known: int, threshold: float, block: tuple[int, int]
) -> None:
    x = clustered(seed, count + known)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP", block[0])
        patch.setattr(module, "COLUMNS", block[1])
        patch.setattr(module, "MOST_PAIRS", PLENTY)
        found = searched(x[known:], x[:known] if known else None, threshold)
    pairs, leaders = expected(x, known, threshold)
    assert sorted(zip(found.a.tolist(), found.b.tolist(), strict=True)) == sorted(pairs)
    assert found.leader.tolist() == leaders
    assert found.pairs == len(pairs)
    np.testing.assert_array_equal(found.cosine, np.minimum(cosines(x)[found.a, found.b], 1))


def test_a_threshold_that_lies_between_two_neighbours_in_float32_is_met_exactly() -> None:
    """Float32 products round by more than the difference between these cosines and the threshold."""
    angles = np.linspace(0.1413, 0.1417, 2001)  # cosines from 0.98998 to 0.99003
    x = np.zeros((2002, 300), np.float32)
    x[0, :2], x[1:, 0], x[1:, 1] = (1, 0), np.cos(angles), np.sin(angles)
    turned = (x.astype(np.float64) @ np.linalg.qr(np.random.default_rng(0).normal(size=(300, 300)))[0]).astype(
        np.float32
    )
    found = searched(turned[1:], turned[:1], 0.99)
    alike = cosines(turned)[0, 1:] >= 0.99
    assert 0 < alike.sum() < 2000
    np.testing.assert_array_equal(np.sort(found.b[found.a == 0]) - 1, np.flatnonzero(alike))


def test_numbers_beyond_float32_squares_are_compared() -> None:
    x = clustered(3, 20) * np.float32(1e25)
    pairs, leaders = expected(x * np.float32(1e-25), 0, 0.9)
    found = searched(x, None, 0.9)
    assert (found.pairs, found.leader.tolist()) == (len(pairs), leaders)


def test_a_pile_of_equal_images_lists_few_pairs_of_each_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRIP", 128)
    monkeypatch.setattr(module, "COLUMNS", 64)
    found = searched(np.ones((1000, 4), np.float32), None, 0.99)
    assert found.pairs == 1000 * 999 // 2
    assert found.leader.tolist() == [-1] + [0] * 999
    listed = [found.a[found.b == b].tolist() for b in (1, 5, 20, 21, 999)]
    assert listed == [list(range(min(b, 20))) for b in (1, 5, 20, 21, 999)]
    assert len(found.a) <= 20 * 1000


def test_a_chain_keeps_each_image_that_no_kept_one_resembles() -> None:
    """0 ~ 1 ~ 2 ~ 3 ~ 4, others not: connected, they would be one group of which one is kept."""
    angles = np.deg2rad(np.arange(5) * 8.0)  # cos 8 degrees 0.9903, cos 16 degrees 0.961
    found = searched(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32), None, 0.99)
    assert found.leader.tolist() == [-1, 0, -1, 2, -1]
    assert found.pairs == 4


def test_the_cosines_of_leaders_are_exact() -> None:
    x = clustered(5, 50)
    search = Search(x[10:], x[:10], 0.9)
    a, b = np.array([0, 9, 12, 30]), np.array([11, 10, 49, 31])
    np.testing.assert_allclose(search.cosines(a, b), np.minimum(cosines(x)[a, b], 1), atol=1e-9)


# ---------------------------------------------------------------------------------------------- interruptions


class Killed(Exception):
    pass


@pytest.mark.parametrize("strips", [1, 3, 5])
def test_an_interrupted_search_goes_on_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strips: int
) -> None:
    monkeypatch.setattr(module, "STRIP", 16)
    monkeypatch.setattr(module, "COLUMNS", 8)
    x = clustered(1, 90)
    new, known = x[20:], x[:20]
    whole = searched(new, known, 0.9)
    unfinished = Unfinished(tmp_path / "pairs.parquet", key_of(0.9, new, known))
    assert unfinished.load(20, 70) is None
    calls = 0

    def pause(found: Found) -> None:
        nonlocal calls
        calls += 1
        unfinished.save(found)
        if calls == strips:
            raise Killed

    with pytest.raises(Killed):
        Search(new, known, 0.9).run(Found.nothing(70), lambda _: None, pause)
    found, done = unfinished.load(20, 70), list[int]()
    assert found
    assert 0 < found.next < 90
    search = Search(new, known, 0.9)
    search.run(found, done.append, lambda _: None)
    assert sum(done) == search.total
    for name in ("leader", "twins", "a", "b", "cosine"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    unfinished.remove()
    assert not list(tmp_path.iterdir())


def test_what_was_found_of_other_features_is_not_continued(tmp_path: Path) -> None:
    x, out = clustered(1, 30), tmp_path / "pairs.parquet"
    Unfinished(out, key_of(0.9, x, None)).save(searched(x, None, 0.9))
    assert Unfinished(out, key_of(0.9, x, None)).load(0, 30)
    other = x.copy()
    other[29, 0] += 1
    for key in (key_of(0.91, x, None), key_of(0.9, other, None), key_of(0.9, x[10:], x[:10]), key_of(0.9, None, x)):
        assert Unfinished(out, key).load(0, 30) is None


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    x, out = clustered(1, 30), tmp_path / "pairs.parquet"
    key = key_of(0.9, x, None)
    unfinished, found = Unfinished(out, key), searched(x, None, 0.9)
    for name, value in (("leader", found.leader[1:]), ("a", found.a + 100), ("twins", found.twins.astype(np.int32))):
        saved = Found(**{**vars(found), name: value})
        unfinished.save(saved)
        assert unfinished.load(0, 30) is None, name
    unfinished.save(found)
    content = unfinished.path.read_bytes()
    unfinished.path.write_bytes(content[: len(content) // 2])
    assert unfinished.load(0, 30) is None


def test_the_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet.unfinished.npz").write_bytes(b"somebody's")
    with pytest.raises(ValueError, match="exists and is not an unfinished search"):
        Unfinished(tmp_path / "pairs.parquet", "key")

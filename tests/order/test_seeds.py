"""Seeds: what is derived of a key and a counter, one by one or many at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aioloader.protocols import Seeds, take_seeds

MASK = (1 << 63) - 1


def mix(key: int, counter: int) -> int:
    """The seed of one row, by whole numbers of any size: what is documented, word for word."""
    z = (key + counter * 0x1E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0x3F58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x14D049BB133111EB) & MASK
    return z ^ z >> 31


keys = st.integers(0, MASK)
starts = st.one_of(
    st.integers(0, 10_000), st.integers(1_000_000_000, 1_000_010_000), st.integers(0, 1 << 61)
)


@given(key=keys, start=starts, length=st.integers(0, 5000))
def test_a_run_of_seeds_is_what_each_is_by_itself(key: int, start: int, length: int) -> None:
    seeds = list(Seeds(key, start, length))
    assert len(seeds) == length
    ends = {0, length // 2, length - 1} if length else set()
    for row in ends | {2048 - start % 2048 - 1, 2048 - start % 2048} & set(range(length)):
        assert seeds[row] == Seeds(key, start, length)[row] == mix(key, start + row)


@given(key=keys, start=starts, rows=st.lists(st.integers(0, 9000), max_size=20))
def test_rows_in_any_order_have_their_seeds(key: int, start: int, rows: list[int]) -> None:
    taken = take_seeds(Seeds(key, start, 9001), rows)
    assert taken == [mix(key, start + row) for row in rows]


@given(key=keys, start=starts, cut=st.slices(60))
def test_a_cut_of_seeds_is_what_a_cut_of_their_list_would_be(
    key: int, start: int, cut: slice
) -> None:
    seeds = Seeds(key, start, 60)
    assert list(seeds[cut]) == list(seeds)[cut]

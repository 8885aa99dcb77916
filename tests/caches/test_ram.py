"""The cache as a Hyrax user meets it: configuration, indices, fetching, inserting, bounds."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from providers import CONFIG, PRELOADING, AsyncProvider, Provider, number

from aioloader import DataCache

OFF = {"data_set": {"use_cache": False, "preload_cache": True}}


def array(nbytes: int) -> np.ndarray:
    return np.zeros(nbytes, np.uint8)


def room_for(count: int, nbytes: int = 1000) -> int:
    """Return how many bytes so many entries of one array take."""
    cache = DataCache(CONFIG, range(1))
    cache.insert_into_cache(0, array(nbytes))
    return count * cache._data_size_bytes


@pytest.mark.parametrize(
    ("config", "error", "named"),
    [
        (None, TypeError, "config=None"),
        ({}, KeyError, "data_set"),
        ({"data_set": 3}, TypeError, "data_set.*=3"),
        ({"data_set": {"preload_cache": True}}, KeyError, "use_cache"),
        ({"data_set": {"use_cache": True}}, KeyError, "preload_cache"),
        ({"data_set": {"use_cache": "no", "preload_cache": True}}, TypeError, "use_cache.*'no'"),
    ],
)
def test_a_configuration_that_lacks_something_says_what(
    config: Any, error: type[Exception], named: str
) -> None:
    """By its name, where it is made."""
    with pytest.raises(error, match=named):
        DataCache(config, range(3))


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"max_bytes": -1}, ValueError, "max_bytes"),
        ({"max_bytes": True}, TypeError, "max_bytes"),
        ({"policy": "random"}, ValueError, "policy='random'"),
        ({"max_preload_workers": 0}, ValueError, "max_preload_workers"),
        ({"logging_interval": 1.5}, TypeError, "logging_interval"),
    ],
)
def test_wrong_arguments_are_named(options: Any, error: type[Exception], named: str) -> None:
    """Where the cache is made."""
    with pytest.raises(error, match=named):
        DataCache(CONFIG, range(3), **options)


@pytest.mark.parametrize("provider", [object(), iter([1]), set()])
def test_a_provider_has_a_length_and_rows(provider: Any) -> None:
    """Or is refused by name."""
    with pytest.raises(TypeError, match="data_provider="):
        DataCache(CONFIG, provider)


@pytest.mark.parametrize(
    "call", ["try_fetch", "insert_into_cache", "get_or_load_sync", "_idx_check"]
)
def test_indices_are_those_of_rows(call: str) -> None:
    """NumPy's integers, too; nothing below 0, past the end, or that is no integer."""
    cache = DataCache(CONFIG, Provider(10))
    arguments = ({},) if call == "insert_into_cache" else ()
    method = getattr(cache, call)
    for index in (0, 9, np.int64(3), np.uint8(4), np.array(5)):
        method(index, *arguments)
    for index in (-1, 10, 10**30, np.int64(-1)):
        with pytest.raises(IndexError, match=f"idx={index} .* 10 rows"):
            method(index, *arguments)
    for wrong in (True, np.True_, 1.0, "1", None, slice(2)):
        with pytest.raises(TypeError, match="idx="):
            method(wrong, *arguments)


def test_rows_are_fetched_when_they_have_been_inserted() -> None:
    """As in hyrax, by the names that it has."""
    cache = DataCache(CONFIG, Provider(10))
    assert cache.try_fetch(3) is None
    cache.insert_into_cache(np.int64(3), {"data": {"x": np.arange(100.0)}})
    fetched = cache.try_fetch(3)
    assert fetched is not None
    assert fetched["data"]["x"][99] == 99.0
    assert cache._insert_count == 1
    assert cache._data_size_bytes == cache._data_size(fetched)
    assert list(cache._cache_map) == [3]
    assert (3 in cache, 4 in cache, len(cache)) == (True, False, 10)
    assert (
        repr(cache) == f"<DataCache: 1 of 10 rows, {cache._data_size_bytes} bytes, hit rate 0.50>"
    )


def test_a_cache_is_a_sequence_of_its_rows() -> None:
    """From anything with a length and items; each is loaded once."""
    provider = Provider(5)
    cache = DataCache(CONFIG, provider)
    assert [number(row) for row in cache] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]
    assert [number(row) for row in cache] == [0, 1, 2, 3, 4]  # type: ignore[attr-defined]
    assert provider.asked == [0, 1, 2, 3, 4]
    nested = DataCache(CONFIG, cache)
    assert number(nested[4]) == 4
    assert DataCache(CONFIG, "abc")[1] == "b"


def test_the_second_epoch_has_a_hit_rate_of_one() -> None:
    """All rows fit, so that none is loaded again."""
    provider = Provider(50)
    cache = DataCache(CONFIG, provider)
    for index in range(50):
        cache[index]
    first = cache.statistics()
    assert (first.hits, first.misses, first.hit_rate) == (0, 50, 0.0)
    for index in range(50):
        cache[index]
    second = cache.statistics()
    assert (second.hits - first.hits, second.misses - first.misses) == (50, 0)
    assert len(provider.asked) == 50


def test_a_provider_that_looks_first_and_inserts_itself_counts_once() -> None:
    """That is how hyrax's own provider does it: no row twice, and no miss but the consumer's."""

    class Looking(Provider):
        def resolve_data(self, index: int) -> Any:
            found = cache.try_fetch(index)
            if found is None:
                found = super().resolve_data(index)
                cache.insert_into_cache(index, found)
            return found

    provider = Looking(10)
    cache = DataCache(PRELOADING, provider)
    for _ in range(2):
        for index in range(10):
            assert number(cache[index]) == index
    now = cache.statistics()
    assert (now.hits, now.misses, now.inserts, now.replaced) == (10, 10, 10, 0)
    assert provider.asked == list(range(10))
    bounded = DataCache(PRELOADING, Looking(100), max_bytes=now.bytes // 2)
    cache = bounded
    bounded.start_preload_thread()
    assert bounded._preload_thread is not None
    bounded._preload_thread.join()
    after = bounded.statistics()
    assert (after.items, after.evictions, after.preload.state) == (5, 0, "full")
    assert 1 <= after.refusals <= 4
    assert (after.preload.kept, after.preload.refused) == (5, after.refusals)


def test_nothing_is_kept_where_the_configuration_says_so() -> None:
    """Every row comes from the provider; to insert, fetch or preload does nothing."""
    provider = Provider(10)
    cache = DataCache(OFF, provider)
    cache.insert_into_cache(1, 1)
    cache.start_preload_thread()
    assert cache.try_fetch(1) is None
    assert number(cache[1]) == number(cache[1]) == 1
    assert provider.asked == [1, 1]
    assert cache._preload_thread is None
    assert repr(cache) == "<DataCache: off>"
    now = cache.statistics()
    assert (now.items, now.bytes, now.hits, now.misses, now.inserts) == (0, 0, 0, 0, 0)


def test_the_least_recently_used_row_makes_room() -> None:
    """A fetch is a use, and so is an insert."""
    cache = DataCache(CONFIG, range(10), max_bytes=room_for(3))
    for index in (0, 1, 2):
        cache.insert_into_cache(index, array(1000))
    cache.try_fetch(0)
    cache.insert_into_cache(3, array(1000))
    cache.insert_into_cache(2, array(1000))
    cache.insert_into_cache(4, array(1000))
    assert sorted(cache._cache_map) == [2, 3, 4]
    now = cache.statistics()
    assert (now.inserts, now.replaced, now.evictions, now.items) == (6, 1, 2, 3)


def test_the_oldest_row_makes_room() -> None:
    """However often it has been used."""
    cache = DataCache(CONFIG, range(10), max_bytes=room_for(3), policy="fifo")
    for index in (0, 1, 2):
        cache.insert_into_cache(index, array(1000))
    cache.try_fetch(0)
    cache.insert_into_cache(3, array(1000))
    assert sorted(cache._cache_map) == [1, 2, 3]


def test_without_eviction_what_is_new_is_refused() -> None:
    """And counted; what is there can be replaced."""
    cache = DataCache(CONFIG, range(10), max_bytes=room_for(2), policy="none")
    for index in (0, 1, 2, 1):
        cache.insert_into_cache(index, array(1000))
    now = cache.statistics()
    assert sorted(cache._cache_map) == [0, 1]
    assert (now.refusals, now.evictions, now.replaced) == (1, 0, 1)


@pytest.mark.parametrize("policy", ["lru", "fifo", "none"])
def test_what_can_never_fit_evicts_nothing_but_what_it_replaces(policy: Any) -> None:
    """An older value of the same row would be a lie."""
    cache = DataCache(CONFIG, range(10), max_bytes=room_for(3), policy=policy)
    for index in (0, 1):
        cache.insert_into_cache(index, array(1000))
    cache.insert_into_cache(0, array(10_000))
    now = cache.statistics()
    assert sorted(cache._cache_map) == [1]
    assert (now.refusals, now.evictions, now.bytes) == (1, 1, room_for(1))
    nothing = DataCache(CONFIG, ["a"], max_bytes=0, policy=policy)
    assert nothing[0] == "a"
    assert nothing.statistics().refusals == 1


def test_what_cannot_be_copied_is_handed_out_and_not_kept(caplog: Any) -> None:
    """It works as it would without a cache, and says so."""

    class Generators(Provider):
        def resolve_data(self, index: int) -> Any:
            return (index for _ in range(1))

    cache = DataCache(CONFIG, Generators(3))
    assert [next(cache[1]), next(cache[1])] == [1, 1]
    cache.insert_into_cache(2, (k for k in ()))
    now = cache.statistics()
    assert (now.items, now.refusals, now.inserts) == (0, 3, 0)
    assert "generator cannot be copied" in caplog.text


def test_clearing_gives_up_what_is_kept() -> None:
    """Rows are loaded again, and counted as evicted."""
    cache = DataCache(CONFIG, Provider(5))
    list(cache)  # type: ignore[call-overload]
    cache.clear()
    now = cache.statistics()
    assert (now.items, now.bytes, now.evictions) == (0, 0, 5)
    assert number(cache[2]) == 2


def test_a_cache_travels_empty() -> None:
    """As the data of something that works in other processes, with all it was made with."""
    cache = DataCache(CONFIG, range(100), max_bytes=room_for(2), policy="fifo", logging_interval=7)
    assert cache[3] == 3
    other = pickle.loads(pickle.dumps(cache))
    assert (len(other), other.statistics().items, other[5]) == (100, 0, 5)
    assert other.logging_interval == 7
    for index in range(3):
        other.insert_into_cache(index, array(1000))
    assert sorted(other._cache_map) == [1, 2]


async def test_a_coroutine_may_have_any_of_the_names() -> None:
    """``resolve_data`` and ``__getitem__``, as methods or as anything that is called."""

    class Items:
        def __len__(self) -> int:
            return 3

        async def __getitem__(self, index: int) -> int:
            return index * 10

    class Called:
        async def __call__(self, index: int) -> int:
            return index * 100

    class Holder(list[int]):
        resolve_data = Called()

    assert await DataCache(CONFIG, Items()).get_or_load(2) == 20
    assert await DataCache(CONFIG, Holder([1, 2, 3])).get_or_load(2) == 200
    assert number(await DataCache(CONFIG, AsyncProvider()).get_or_load(5)) == 5


async def test_a_function_that_returns_an_awaitable_is_told_to_be_a_coroutine() -> None:
    """A coroutine object cannot be kept, and nobody would await it."""

    class Odd(AsyncProvider):
        def resolve_data(self, index: int) -> Any:
            return coroutine

    coroutine = AsyncProvider().resolve_data(1)
    with pytest.raises(TypeError, match="async def"):
        await DataCache(CONFIG, Odd()).get_or_load(1)
    coroutine.close()

"""Groups with a cache on disk: the same batches with and without, whatever happens to it."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import pytest
from loading import additional, each, host

from aioloader import CacheMismatch, DataGroup, Loader, LoadError
from aioloader.testing import no_leaks

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader import Batch

LOADER = {"x": ((4,), "int32", "int32"), "y": ((), "float64", "float32")}
CACHE = {"code": ((2,), "float32", "float32"), "norm": ((), "float16", "float32")}

loads = 0


def load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    global loads
    loads += 1
    arrays["x"][...] = (item, item * 3, (seed or 0) % 1000, -item)
    arrays["y"][...] = item / 4
    return {"name": f"item {item}"} if item % 3 else {"name": f"item {item}", "third": (item, None)}


@pytest.fixture(autouse=True)
def _no_loads() -> None:
    global loads
    loads = 0


def group(location: Path | None, length: int = 20, **options: Any) -> DataGroup[int]:
    return DataGroup(
        4, range(length), loader_arrays=LOADER, **{"cache_location": location, **options}
    )


def loader(*groups: DataGroup[int], **options: Any) -> Loader[int]:
    return Loader(load, groups, **{"num_workers": 0, "end_at": ("epoch", 3), **options})


def everything(batch: Batch[Any]) -> tuple[Any, ...]:
    arrays = {name: array.tolist() for name, array in host(batch).items()}
    return batch.group_index, tuple(batch.indices), arrays, additional(batch)


def encode(batch: Batch[Any]) -> dict[str, Any]:
    x = batch.arrays["x"].astype("float32")
    return {"code": x[:, :2] / 2, "norm": batch.arrays["y"]}


def encoded(batch: Batch[Any]) -> tuple[Any, ...]:
    if batch.uncached:
        batch.cache(encode(batch))
    return everything(batch)


def entries(location: Path) -> list[Path]:
    return sorted(location.rglob("*.batch"))


def temporaries(location: Path) -> list[Path]:
    return [p for p in location.rglob("*") if p.is_file() and p.suffix not in (".batch", ".json")]


# Directly -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("mode", ["default", "repeat", "batchwise"])
async def test_later_epochs_come_from_disk_and_are_the_same(
    tmp_path: Path, workers: int, mode: str
) -> None:
    plain = await each(
        loader(group(None, shuffle_later="batchwise" if mode == "default" else mode)), everything
    )
    cached = loader(group(tmp_path / "c", shuffle_later=mode), num_workers=workers)
    assert await each(cached, everything) == plain
    counts = cached.statistics().cache
    assert (counts.hits, counts.misses, counts.written) == (10, 5, 5)
    assert len(entries(tmp_path)) == 5
    assert temporaries(tmp_path) == []


@pytest.mark.parametrize("mode", ["itemwise", "reseed"])
@pytest.mark.parametrize("first", [True, False])
async def test_epochs_of_other_contents_have_entries_of_their_own(
    tmp_path: Path, mode: str, first: bool
) -> None:
    """They are of use to the next run, and never to another epoch."""
    options = {"shuffle_later": mode, "shuffle_first": first}
    plain = await each(loader(group(None, **options)), everything)
    for hits in (0, 15):
        cached = loader(group(tmp_path, **options))
        assert await each(cached, everything) == plain
        assert cached.statistics().cache.hits == hits
    assert len(entries(tmp_path)) == 15


async def test_a_hit_says_that_it_is_cached(tmp_path: Path) -> None:
    the_group = group(tmp_path)
    states = await each(loader(the_group, end_at=("epoch", 2)), lambda b: b.uncached)
    assert states == [True] * 5 + [False] * 5
    layouts = await each(loader(the_group, end_at=("epoch", 1)), lambda b: b.layouts)
    assert all(layout == the_group.cache_layouts for layout in layouts)


async def test_a_smaller_last_batch_is_cached_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"drop_remainder": False, "length": 10}
    plain = await each(loader(group(None, shuffle_later="batchwise", **options)), everything)
    assert await each(loader(group(tmp_path, **options)), everything) == plain
    assert await each(loader(group(tmp_path, **options)), everything) == plain


async def test_resuming_finds_what_was_cached(tmp_path: Path) -> None:
    plain = await each(loader(group(None, shuffle_later="batchwise")), everything)
    async with loader(group(tmp_path)) as first:
        seen = [everything(await anext(first)) for _ in range(7)]
        state = first.get_state()
    second = loader(group(tmp_path))
    second.set_state(state)
    assert seen + await each(second, everything) == plain
    assert second.statistics().cache.misses == 0


# Converted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
async def test_what_batches_were_turned_into_comes_from_disk(tmp_path: Path, workers: int) -> None:
    """Arrays in the dtypes of the cache, and the additional data."""
    options = {"cache_arrays": CACHE, "shuffle_later": "batchwise"}
    plain = await each(loader(group(None, **options)), encoded)
    cached = loader(group(tmp_path, **options), num_workers=workers, cacher_count=1)

    async def slowly() -> list[Any]:
        made = []
        async with cached:
            async for batch in cached:
                made.append(encoded(batch))
                del batch
                await cached.flush()
        return made

    assert await slowly() == plain
    assert cached.statistics().cache.hits == 10


async def test_other_additional_data_may_be_cached(tmp_path: Path) -> None:
    def check(batch: Batch[Any]) -> object:
        if batch.uncached:
            batch.cache(encode(batch), {"twice": [2 * n for n in batch.indices]})
        return additional(batch)

    the_group = group(tmp_path, cache_arrays=CACHE)
    first = await each(loader(the_group, end_at=("epoch", 1)), check)
    assert first[0] == {"twice": [0, 2, 4, 6]}
    again = loader(the_group, end_at=("epoch", 1))
    assert await each(again, check) == first
    assert loads == 20


async def test_what_is_not_to_persist_does_not(tmp_path: Path) -> None:
    the_group = group(tmp_path, cache_arrays=CACHE)
    await each(loader(the_group), lambda b: b.cache(encode(b), persist=False))
    assert entries(tmp_path) == []


async def test_batches_may_be_cached_from_other_threads(tmp_path: Path) -> None:
    the_group = group(tmp_path, cache_arrays=CACHE)
    async with loader(the_group, end_at=("epoch", 1)) as first:
        async for batch in first:
            await asyncio.to_thread(encoded, batch)
            del batch
    assert len(entries(tmp_path)) == 5


async def test_a_place_function_may_convert(tmp_path: Path) -> None:
    """What it returns in the cache's layout is written as if the consumer had cached it."""
    calls = Counter[frozenset[str]]()

    def place(arrays: Any, layouts: Any, extras: Any, of: Any) -> dict[str, jax.Array]:
        calls[frozenset(arrays)] += 1
        if "code" in arrays:
            return {name: jnp.asarray(a, "float32") for name, a in arrays.items()}
        x = jnp.asarray(arrays["x"], "float32")
        return {"code": x[:, :2] / 2, "norm": jnp.asarray(arrays["y"], "float32")}

    the_group = group(tmp_path, cache_arrays=CACHE)
    async with loader(the_group, end_at=("epoch", 2), place=place) as cached:
        seen = []
        async for batch in cached:
            assert not batch.uncached
            seen.append(everything(batch))
            await cached.flush()
    # Batches are placed as they become ready: the next epoch's first may be before the last's.
    assert calls == {frozenset({"x", "y"}): 5, frozenset({"code", "norm"}): 5}
    assert sorted(seen[:5]) == sorted(seen[5:])


async def test_names_and_shapes_in_the_cache_may_change(tmp_path: Path) -> None:
    """While position, dtype and size stay."""
    await each(loader(group(tmp_path, cache_arrays=CACHE)), encoded)
    renamed = {"embedding": ((1, 2), "float32", "float32"), "size": ((1,), "float16", "float32")}
    found = await each(
        loader(group(tmp_path, cache_arrays=renamed), end_at=("epoch", 1)), lambda b: host(b)
    )
    assert found[1]["embedding"].shape == (4, 1, 2)
    assert found[1]["embedding"][:, 0, 0].tolist() == [2.0, 2.5, 3.0, 3.5]
    assert loads == 20


# Only from the cache ------------------------------------------------------------------------------


def only(location: Path, **options: Any) -> DataGroup[int]:
    return DataGroup(4, range(20), cache_arrays=CACHE, cache_location=location, **options)


async def test_without_loader_arrays_everything_comes_from_the_cache(tmp_path: Path) -> None:
    made = await each(loader(group(tmp_path, cache_arrays=CACHE)), encoded)
    assert await each(loader(only(tmp_path)), encoded) == made
    assert loads == 20


async def test_what_is_not_there_is_dropped_and_counted(tmp_path: Path) -> None:
    """Whatever on_error says."""
    made = await each(loader(group(tmp_path, cache_arrays=CACHE), end_at=("epoch", 1)), encoded)
    entries(tmp_path)[2].unlink()
    cached = loader(only(tmp_path), end_at=("epoch", 1))
    assert await each(cached, encoded) == made[:2] + made[3:]
    assert cached.statistics().dropped == 1


async def test_a_cache_of_nothing_is_no_silent_end(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"every batch of epoch 0 was dropped.*not in the cache"):
        await each(loader(only(tmp_path)), encoded)
    assert list(tmp_path.iterdir()) == []


# Read-only, and apart -----------------------------------------------------------------------------


async def test_a_cache_that_is_only_read_is_neither_made_nor_filled(tmp_path: Path) -> None:
    plain = await each(loader(group(None, shuffle_later="batchwise")), everything)
    nowhere = tmp_path / "nowhere"
    readonly = group(nowhere, cache_readonly=True)
    assert await each(loader(readonly), everything) == plain
    assert not nowhere.exists()
    async with loader(group(nowhere)) as filling:
        await anext(filling)
        await anext(filling)
    filled = entries(nowhere)
    cached = loader(group(nowhere, cache_readonly=True))
    assert await each(cached, everything) == plain
    assert entries(nowhere) == filled
    assert cached.statistics().cache.hits == 3 * len(filled)


async def test_groups_never_serve_each_other(tmp_path: Path) -> None:
    """Two of the same settings in one location, for training and for validation."""

    def twice(item: int, arrays: Any, seed: int | None) -> None:
        arrays["x"][...] = item

    def groups(where: Path | None) -> dict[str, Any]:
        options: dict[str, Any] = {"shuffle_later": "batchwise"}
        first, second = (
            group(where, **options),
            DataGroup(4, range(100, 120), loader_arrays=LOADER, cache_location=where, **options),
        )
        return {"training": [first, second], "validation": ("epoch", 1, [second, first])}

    def run(where: Path | None) -> Loader[int]:
        return Loader(load, num_workers=0, end_at=("epoch", 2), **groups(where))

    plain = await each(run(None), everything)
    for _ in range(2):
        cached = run(tmp_path)
        assert await each(cached, everything) == plain
    assert cached.statistics().cache.misses == 0
    assert len(entries(tmp_path)) == 20


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"length": 24}, "length"),
        ({"shuffle_first": True}, "shuffle_first"),
        ({"shuffle_later": "repeat"}, "shuffle_later"),
        ({"drop_remainder": False}, "drop_remainder"),
        ({"data_version": "two"}, "data"),
        ({"cache_arrays": CACHE}, "arrays"),
    ],
)
async def test_other_settings_are_a_mismatch(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """Raised when the loader is entered, with both sides; and the cache stays as it is."""
    await each(loader(group(tmp_path)), everything)
    before = [p.read_bytes() for p in entries(tmp_path)]
    with no_leaks(), pytest.raises(CacheMismatch, match=rf"{named}.* in the cache, .* here"):
        await each(loader(group(tmp_path, **change)), everything)
    assert [p.read_bytes() for p in entries(tmp_path)] == before
    await each(loader(group(tmp_path)), everything)
    assert loads == 20


async def test_data_in_another_order_are_a_mismatch(tmp_path: Path) -> None:
    await each(loader(group(tmp_path)), everything)
    other = DataGroup(
        4, [*range(10, 20), *range(10)], loader_arrays=LOADER, cache_location=tmp_path
    )
    with pytest.raises(CacheMismatch, match="data: "):
        await each(loader(other), everything)


# Trouble ------------------------------------------------------------------------------------------


async def test_a_damaged_entry_is_loaded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = await each(loader(group(tmp_path), end_at=("epoch", 1)), everything)
    victim = entries(tmp_path)[3]
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    with caplog.at_level(logging.WARNING, "aioloader"):
        cached = loader(group(tmp_path), end_at=("epoch", 1))
        assert await each(cached, everything) == made
    counts = cached.statistics().cache
    assert (counts.hits, counts.damaged) == (4, 1)
    assert "entry 0/0/3.batch is damaged" in caplog.text
    again = loader(group(tmp_path), end_at=("epoch", 1))
    assert await each(again, everything) == made
    assert again.statistics().cache.hits == 5


async def test_additional_data_without_a_plain_encoding_say_so(tmp_path: Path) -> None:
    """Unless pickling was allowed, in which case they come back."""
    thing = Path("a/thing")

    def odd(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
        load(item, arrays, seed)
        return {"odd": thing}

    def run(**options: Any) -> Loader[int]:
        return Loader(odd, group(tmp_path, **options), num_workers=0, end_at=("epoch", 2))

    with pytest.raises(LoadError, match=r"'odd'.*Path.*allow_pickle"):
        await each(run(), everything)
    made = await each(run(allow_pickle=True), additional)
    assert made == [{"odd": [thing] * 4}] * 10

    def cache(batch: Batch[Any]) -> None:
        batch.cache(encode(batch), {"odd": [thing] * 4})

    with pytest.raises(TypeError, match=r"'odd'.*Path.*allow_pickle"):
        await each(loader(group(tmp_path / "other", cache_arrays=CACHE)), cache)


async def test_arrays_from_the_cache_stay_whole_when_kept(tmp_path: Path) -> None:
    """Also once the loader has closed and the cache's files are gone."""
    the_group = group(tmp_path)
    made = await each(loader(the_group, end_at=("epoch", 1)), lambda b: host(b)["x"].tolist())
    kept = []
    async with loader(the_group, end_at=("epoch", 1), depth=3) as cached:
        kept = [(await anext(cached)).arrays["x"] for _ in range(3)]
    for path in entries(tmp_path):
        path.unlink()
    assert [array.tolist() for array in kept] == made[:3]


async def test_hits_take_a_unit_of_depth_as_any_batch(tmp_path: Path) -> None:
    the_group = group(tmp_path)
    await each(loader(the_group, end_at=("epoch", 1)), everything)
    async with loader(the_group, end_at=("epoch", 1), depth=2, timeout=0.2) as cached:
        first, second = await anext(cached), await anext(cached)
        with pytest.raises(TimeoutError, match="batch 0 of training group 0"):
            await anext(cached)
        del first, second
        await anext(cached)


async def test_a_loader_may_be_left_at_any_point(tmp_path: Path) -> None:
    """What was begun is written, and nothing is left behind."""
    for count in range(8):
        where = tmp_path / str(count)
        with no_leaks():
            async with loader(group(where)) as cached:
                for _ in range(count):
                    await anext(cached)
        assert temporaries(where) == []
    assert len(entries(where)) == 5


async def test_a_cancelled_run_leaves_no_temporary_files(tmp_path: Path) -> None:
    for delay in range(12):
        where = tmp_path / str(delay)

        async def run(where: Path = where) -> None:
            await each(loader(group(where)), everything)

        with no_leaks():
            task = asyncio.ensure_future(run())
            await asyncio.sleep(delay / 500)
            task.cancel()
            await asyncio.wait([task])
        assert not where.exists() or temporaries(where) == []


async def test_items_are_looked_at_off_the_loop(tmp_path: Path) -> None:
    """For the fingerprint: data of the user's may be slow."""
    threads = set()

    class Slow:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> int:
            threads.add(threading.get_ident())
            return index

    slow: Any = Slow()
    the_group = DataGroup(4, slow, loader_arrays=LOADER, cache_location=tmp_path)
    await each(loader(the_group), everything)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_version": 1.5}, "data_version=1.5"),
        ({"data_version": True}, "data_version=True"),
        ({"cache_location": 7}, "cache_location=7"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        group(None, **options)


@pytest.mark.parametrize("count", [0, -1])
def test_the_number_of_cachers_is_checked(count: int) -> None:
    with pytest.raises(ValueError, match=f"cacher_count.*{count}"):
        loader(group(None), cacher_count=count)


def test_groups_with_a_cache_travel(tmp_path: Path) -> None:
    there: Callable[[Any], Any] = lambda value: pickle.loads(pickle.dumps(value))  # noqa: E731
    one = group(tmp_path, data_version=3, allow_pickle=True)
    assert there(one).cache_policy == one.cache_policy
    assert there(one).cache_location == Path(os.fspath(tmp_path))

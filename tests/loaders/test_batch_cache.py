"""`Batch.cache`: from the layout that was loaded to the one that is cached."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import pytest
from loading import each

from aioloader import DataGroup, LayoutError, Loader

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioloader import Batch

LOADER = {"x": ((4,), "int32", "int32")}
CACHE = {"code": ((2,), "float32", "float32"), "norm": ((), "float16", "float32")}


def _load(item: int, arrays: Any, seed: int | None) -> dict[str, object]:
    arrays["x"][...] = item
    return {"name": f"item {item}"}


def _group(**options: Any) -> DataGroup[int]:
    return DataGroup(3, range(9), loader_arrays=LOADER, **{"cache_arrays": CACHE, **options})


def _loader(group: DataGroup[int] | None = None, **options: Any) -> Loader[int]:
    options = {"end_at": ("epoch", 1), "num_workers": 0} | options
    return Loader(_load, group or _group(), **options)


def _encoded(batch: Batch[Any], **changes: Any) -> dict[str, Any]:
    x = batch.arrays["x"].astype("float32")
    return {"code": x[:, :2] / 2, "norm": x.sum(1), **changes}


async def _first(check: Callable[[Batch[Any]], None], **options: Any) -> None:
    async with _loader(**options) as loader:
        check(await anext(loader))


async def test_a_batch_becomes_what_it_is_given() -> None:
    """Arrays and layouts are those of the cache; everything else stays."""
    group = _group()

    def check(batch: Batch[Any]) -> None:
        assert batch.uncached
        assert batch.layouts is group.loader_layouts
        arrays = _encoded(batch)
        batch.cache(arrays)
        assert not batch.uncached
        assert batch.layouts is group.cache_layouts
        assert isinstance(batch.arrays, MappingProxyType)
        assert list(batch.arrays) == ["code", "norm"]
        assert all(batch.get_array(name) is array for name, array in arrays.items())
        assert batch.arrays["norm"].tolist() == [0.0, 4.0, 8.0]
        assert (list(batch.data), list(batch.indices)) == ([0, 1, 2], [0, 1, 2])
        assert batch.is_training
        arrays.clear()  # the mapping is the batch's own
        assert list(batch.arrays) == ["code", "norm"]

    await _first(check, group=group)


async def test_a_mapping_of_any_kind_and_order_will_do() -> None:
    """Arrays are matched by name."""

    def check(batch: Batch[Any]) -> None:
        batch.cache(MappingProxyType(dict(reversed(_encoded(batch).items()))))
        assert set(batch.arrays) == {"code", "norm"}

    await _first(check)


async def test_additional_data_are_kept_or_replaced() -> None:
    """Without a second argument they stay; with one, they are exactly that."""

    def kept(batch: Batch[Any]) -> None:
        batch.cache(_encoded(batch))
        assert list(batch.additional["name"]) == ["item 0", "item 1", "item 2"]

    def replaced(batch: Batch[Any]) -> None:
        column: list[object] = [None, "b", {"c": 3}]
        batch.cache(_encoded(batch), {"caption": column})
        assert isinstance(batch.additional, MappingProxyType)
        assert set(batch.additional) == {"caption"}
        assert batch.get_additional("caption", 2) == {"c": 3}
        assert batch.get_additional("name", default="gone") == "gone"
        column[1] = "changed"
        assert list(batch.additional["caption"]) == [None, "b", {"c": 3}]

    def emptied(batch: Batch[Any]) -> None:
        batch.cache(_encoded(batch), {}, persist=False)
        assert dict(batch.additional) == {}

    for check in (kept, replaced, emptied):
        await _first(check)


async def test_persist_is_by_name_only() -> None:
    """As documented; without it the batch is converted all the same."""

    def check(batch: Batch[Any]) -> None:
        with pytest.raises(TypeError):
            batch.cache(_encoded(batch), None, False)
        batch.cache(_encoded(batch), persist=False)
        assert not batch.uncached

    await _first(check)


async def test_a_cached_batch_cannot_be_cached() -> None:
    """The second call raises, and the first stands."""

    def check(batch: Batch[Any]) -> None:
        arrays = _encoded(batch)
        batch.cache(arrays)
        with pytest.raises(RuntimeError, match=r"batch 0 of training group 0.*cached"):
            batch.cache(arrays)
        assert batch.get_array("norm") is arrays["norm"]

    await _first(check)


@pytest.mark.parametrize("location", [None, "somewhere"])
async def test_without_cache_arrays_there_is_nothing_to_convert_to(
    location: str | None, tmp_path: Any
) -> None:
    """Also with a location, where loaded batches are cached by themselves."""
    group = _group(cache_arrays=None, cache_location=location and tmp_path / location)

    def check(batch: Batch[Any]) -> None:
        with pytest.raises(RuntimeError, match="cache_arrays"):
            batch.cache({"x": batch.arrays["x"]})
        assert batch.uncached
        assert batch.layouts is group.loader_layouts

    await _first(check, group=group)


WRONG: dict[str, tuple[Any, str]] = {
    "a missing array": ({"norm": None}, "norm"),
    "an array more": ({"extra": jnp.zeros(3)}, "extra"),
    "another shape": ({"code": jnp.zeros((3, 3))}, r"code.*3, 3.*3, 2"),
    "too few rows": ({"norm": jnp.zeros(2)}, r"norm.*2.*3"),
    "no batch dimension": ({"norm": jnp.zeros(())}, "norm"),
    "another dtype": ({"norm": jnp.zeros(3, "float16")}, "norm.*float16.*float32"),
    "numpy": ({"norm": np.zeros(3, "float32")}, "norm.*ndarray"),
    "a number": ({"norm": 3.0}, "norm.*float"),
}


@pytest.mark.parametrize("kind", list(WRONG))
async def test_arrays_that_are_not_as_declared_are_named(kind: str) -> None:
    """With what they are and what they should be; the batch stays as it was."""
    changes, message = WRONG[kind]

    def check(batch: Batch[Any]) -> None:
        arrays = {n: a for n, a in _encoded(batch, **changes).items() if a is not None}
        with pytest.raises(LayoutError, match=f"cache_arrays.*{message}"):
            batch.cache(arrays)
        assert batch.uncached
        assert list(batch.arrays) == ["x"]
        batch.cache(_encoded(batch))
        assert not batch.uncached

    await _first(check)


async def test_the_error_speaks_of_what_was_called() -> None:
    """Where no `place` was given, none is blamed."""

    def check(batch: Batch[Any]) -> None:
        with pytest.raises(LayoutError, match=r"^(?!.*place)"):
            batch.cache({})

    await _first(check)


@pytest.mark.parametrize("arrays", [None, [], 5])
async def test_what_is_no_mapping_is_an_error(arrays: Any) -> None:
    def check(batch: Batch[Any]) -> None:
        with pytest.raises((LayoutError, TypeError)):
            batch.cache(arrays)
        assert batch.uncached

    await _first(check)


@pytest.mark.parametrize("column", [[], [1, 2], [1, 2, 3, 4]])
async def test_a_column_of_the_wrong_length_is_named(column: list[object]) -> None:
    """And nothing is converted."""

    def check(batch: Batch[Any]) -> None:
        good: list[object] = [1, 2, 3]
        with pytest.raises(ValueError, match=f"'bad'.*{len(column)}.*3"):
            batch.cache(_encoded(batch), {"good": good, "bad": column})
        assert batch.uncached
        assert set(batch.additional) == {"name"}

    await _first(check)


async def test_a_smaller_batch_is_cached_as_a_smaller_batch() -> None:
    """With as many rows as it has, no more and no fewer."""
    group = DataGroup(4, range(6), loader_arrays=LOADER, cache_arrays=CACHE, drop_remainder=False)

    def check(batch: Batch[Any]) -> list[int]:
        rows = len(batch.indices)
        for wrong in (rows - 1, rows + 1):
            with pytest.raises(LayoutError, match="code"):
                batch.cache({"code": jnp.zeros((wrong, 2)), "norm": jnp.zeros(rows)})
        batch.cache(_encoded(batch))
        assert not batch.uncached
        return [layout.shape[0] for layout in batch.layouts.values()]

    assert await each(_loader(group), check) == [[4, 4], [2, 2]]


async def test_validation_batches_can_be_cached_too() -> None:
    group = _group()
    loader = _loader(group, validation=("epoch", 1, _group()))

    def check(batch: Batch[Any]) -> tuple[bool, bool]:
        batch.cache(_encoded(batch))
        return batch.is_validation, batch.uncached

    assert await each(loader, check) == [(False, False)] * 3 + [(True, False)] * 3


async def test_a_converted_batch_gives_its_slot_back_when_it_is_dropped() -> None:
    """As any other does, with the only slot there is."""
    loader = _loader(depth=1, end_at=("epoch", 3), timeout=10)

    def check(batch: Batch[Any]) -> bool:
        batch.cache(_encoded(batch))
        return batch.uncached

    assert await each(loader, check) == [False] * 9

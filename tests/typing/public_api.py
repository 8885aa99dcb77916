"""The contract of the public API's types: checked strictly, never run.

Every ``assert_type`` is a promise to programs that are type checked; every ``type: ignore``
marks a use that has to be refused (an ignore that is not needed is an error of its own).
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, assert_type

import jax
import numpy as np

import aioloader
from aioloader import (
    AioLoaderError,
    Batch,
    BatchTimeoutError,
    BestFitPackIterDataset,
    BOSHandling,
    CacheCorrupt,
    CacheMismatch,
    CacheStatistics,
    ConcatThenSplitIterDataset,
    DataCache,
    DataGroup,
    DataLoader,
    Dataloader,
    DataLoaderProtocol,
    DatasetIterator,
    DatasetOptions,
    DatasetSelectionMap,
    Fetch,
    FetchError,
    FetchPolicy,
    FetchStatistics,
    Filter,
    FilterTransform,
    FirstFitPackIterDataset,
    FlatMap,
    FlatMapIterDataset,
    FlatMapMapDataset,
    FlatMapTransform,
    InMemoryDataLoader,
    InterleaveIterDataset,
    IterDataset,
    LayoutError,
    LimitIterDataset,
    Loader,
    LoadError,
    LoaderStatistics,
    Map,
    MapDataset,
    MapDatasetProtocol,
    MapTransform,
    MapWithIndex,
    MapWithIndexTransform,
    MultiprocessingOptions,
    RandomMap,
    RandomMapTransform,
    ReadOptions,
    RebatchIterDataset,
    RepeatIterDataset,
    SizedIterable,
    StateError,
    ThreadExecutor,
    TrainingBatch,
    UnbatchIterDataset,
    ValidationBatch,
    WindowShuffleIterDataset,
    WindowShuffleMapDataset,
    WithOptionsIterDataset,
    WorkerDied,
    ZipIterDataset,
    ZipMapDataset,
    batch_and_pad,
    cycled_minibatches,
    debug_batch_references,
    device_put,
    is_worker,
    prefetching_map,
    run,
    sharding_map,
    wait_ready,
)
from aioloader.metrics import MetricsSink
from aioloader.metrics.tensorboard import TensorBoardSink
from aioloader.protocols import (
    ArrayLayout,
    Arrays,
    Executor,
    Extras,
    Filled,
    Layouts,
    Recipe,
    Segment,
    Slot,
    Work,
)

ARRAYS = {"image": ((28, 28), "uint8", "float32"), "label": ((), np.int32, np.dtype("int32"))}


class Sample:
    """An item of a program's own."""

    path: str


# Groups ---------------------------------------------------------------------------------------


def groups_are_sequences_of_what_they_were_made_of(
    samples: list[Sample], names: Iterator[str], table: np.ndarray[Any, np.dtype[np.float32]]
) -> None:
    group = DataGroup(64, samples, loader_arrays=ARRAYS)
    assert_type(group, DataGroup[Sample])
    assert_type(group[0], Sample)
    assert_type(group[1:], Sequence[Sample])
    assert_type(list(group), list[Sample])
    assert_type(len(group), int)
    assert_type(group.index(samples[0], 1, 2), int)
    assert_type(group.count(samples[0]), int)
    as_sequence: Sequence[Sample] = group
    assert_type(DataGroup(2, range(9), loader_arrays=ARRAYS), DataGroup[int])
    assert_type(DataGroup(2, names, loader_arrays=ARRAYS), DataGroup[str])
    assert_type(DataGroup(2, "abc", loader_arrays=ARRAYS), DataGroup[str])
    assert_type(DataGroup(2, (k for k in (1, 2)), loader_arrays=ARRAYS), DataGroup[int])
    assert_type(DataGroup(2, as_sequence, loader_arrays=ARRAYS), DataGroup[Sample])
    DataGroup(2, table, loader_arrays=ARRAYS)
    DataGroup(
        2,
        samples,
        loader_arrays=ARRAYS,
        cache_arrays={"z": ((2,), "float32", "float32")},
        cache_location=Path("cache"),
        cache_readonly=True,
        seed=3,
        shuffle_first=True,
        shuffle_later="reseed",
        drop_remainder=False,
    )


class Remote:
    """The least that a source of data has to be."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        return Sample()


def a_source_is_a_length_and_items(source: Remote) -> None:
    assert_type(DataGroup(2, source, loader_arrays=ARRAYS), DataGroup[Sample])


def groups_tell_what_they_are(group: DataGroup[Sample]) -> None:
    assert_type(group.batch_count, int)
    assert_type(group.batch_size, int)
    assert_type(group.loader_layouts, Mapping[str, ArrayLayout] | None)
    assert_type(group.cache_layouts, Mapping[str, ArrayLayout] | None)
    assert_type(group.loader_size, int | None)
    assert_type(group.cache_size, int | None)
    assert_type(group.cache_location, Path | None)
    assert_type(group.cache_readonly, bool)
    for name, layout in (group.loader_layouts or {}).items():
        assert_type(name, str)
        shape, numpy_dtype, jax_dtype, offset, count = layout
        assert_type(shape, tuple[int, ...])
        assert_type(numpy_dtype, np.dtype[Any])
        assert_type(jax_dtype, np.dtype[Any])
        assert_type(offset, int)
        assert_type(count, int)


def wrong_groups_are_refused(samples: list[Sample]) -> None:
    DataGroup("64", samples, loader_arrays=ARRAYS)  # type: ignore[arg-type]
    DataGroup(64, 5, loader_arrays=ARRAYS)  # type: ignore[arg-type]
    DataGroup(64, samples, ARRAYS)  # type: ignore[call-arg]
    DataGroup(64, samples, loader_arrays={"x": 3})  # type: ignore[dict-item]
    DataGroup(64, samples, loader_arrays=ARRAYS, seed="0")  # type: ignore[arg-type]
    DataGroup(64, samples, loader_arrays=ARRAYS, shuffle_frist=True)  # type: ignore[call-arg]
    samples_group = DataGroup(64, samples, loader_arrays=ARRAYS)
    samples_group.batch_size = 3  # type: ignore[misc]


# Recipes --------------------------------------------------------------------------------------


def load(item: Sample, arrays: Arrays, seed: int | None) -> None:
    arrays["image"][...] = len(item.path)


def load_with_extras(item: Sample, arrays: Arrays, seed: int | None) -> dict[str, object]:
    return {"path": item.path}


async def load_async(item: Sample, arrays: Arrays, seed: int | None) -> dict[str, object] | None:
    return None


def load_many(items: Sequence[Sample], arrays: Arrays, seeds: Sequence[int | None]) -> None: ...


def load_payload(payload: bytes, arrays: Arrays, seed: int | None) -> None: ...


async def fetch(item: Sample) -> bytes:
    return item.path.encode()


def scaled(scale: float, item: Sample, arrays: Arrays, seed: int | None) -> None: ...


class Reader:
    """A recipe with a state."""

    def __call__(self, item: Sample, arrays: Arrays, seed: int | None) -> None: ...


def functions_are_recipes() -> None:
    recipes: list[Recipe] = [load, load_with_extras, Reader()]
    assert recipes


# Loaders --------------------------------------------------------------------------------------


def any_function_makes_a_loader(group: DataGroup[Sample]) -> None:
    assert_type(Loader(load, group), Loader[Sample])
    assert_type(Loader(load, group, num_workers=8, executor=ThreadExecutor), Loader[Sample])
    assert_type(Dataloader(load, group), Loader[Sample])
    assert_type(Loader(load, [group, group]), Loader[Sample])
    assert_type(Loader(load, iter([group])), Loader[Sample])
    assert_type(Loader(load_with_extras, group), Loader[Sample])
    assert_type(Loader(load_async, group), Loader[Sample])
    assert_type(Loader(functools.partial(scaled, 2.0), group), Loader[Sample])
    assert_type(Loader(Reader(), group), Loader[Sample])
    assert_type(Loader(load_many, group, vectorized=True), Loader[Sample])
    assert_type(Loader(load_payload, group, fetch=fetch), Loader[Sample])


def place(
    arrays: Arrays, layouts: Layouts, additional: Extras, group: DataGroup[Sample]
) -> dict[str, jax.Array]:
    return {name: jax.device_put(array) for name, array in arrays.items()}


class OwnExecutor:
    """An executor, structurally."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def allocate(self, nbytes: int) -> Segment:
        raise MemoryError

    async def __aenter__(self) -> OwnExecutor:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    async def fill(
        self,
        slot: Slot,
        rows: Sequence[int],
        items: Sequence[object],
        seeds: Sequence[int | None],
    ) -> Filled:
        assert_type(slot.arrays, Mapping[str, np.ndarray])
        return Filled()


def executors_are_structural(work: Work) -> None:
    executor: Executor = OwnExecutor(work)
    assert executor


def every_option_has_its_type(group: DataGroup[Sample], held_out: DataGroup[Sample]) -> None:
    Loader(
        load,
        group,
        validation=("epoch", 1, held_out),
        fetch=None,
        depth=4,
        num_workers=2,
        max_concurrency=16,
        start_at=(1, 20),
        end_at=("batch", 100),
        interleave_groups=False,
        deterministic=False,
        timeout=None,
        on_error="drop",
        retries=2,
        item_timeout=3.5,
        startup=lambda: None,
        worker_nice=0,
        place=place,
        vectorized=False,
        executor=OwnExecutor,
    )
    Loader(load, group, validation=("batch", 10, [held_out, held_out]), timeout=5)
    Loader(load, group, place=jax.devices()[0])


def wrong_options_are_refused(group: DataGroup[Sample]) -> None:
    Loader(load)  # type: ignore[call-arg]
    Loader(5, group)  # type: ignore[arg-type]
    Loader(load, range(3))  # type: ignore[arg-type]
    Loader(load, group, None)  # type: ignore[call-arg]
    Loader(load, group, depth="3")  # type: ignore[arg-type]
    Loader(load, group, end_at=("epochs", 1))  # type: ignore[arg-type]
    Loader(load, group, start_at=3)  # type: ignore[arg-type]
    Loader(load, group, validation=("step", 1, group))  # type: ignore[arg-type]
    Loader(load, group, on_error="skip")  # type: ignore[arg-type]
    Loader(load, group, fetch=len)  # type: ignore[arg-type]
    Loader(load, group, workers=3)  # type: ignore[call-arg]


async def loaders_are_read_in_their_context(group: DataGroup[Sample]) -> None:
    async with Loader(load, group) as loader:
        assert_type(loader, Loader[Sample])
        async for batch in loader:
            assert_type(batch, Batch[Sample])
        assert_type(await anext(loader), Batch[Sample])
        assert_type(await anext(loader, None), Batch[Sample] | None)
    await loader.aclose()
    for _ in loader:  # type: ignore[attr-defined]
        pass


class Directory:
    """What Orbax hands to `save`."""

    async def await_creation(self) -> Path:
        return Path("checkpoint")


async def loaders_tell_where_they_are(loader: Loader[Sample]) -> None:
    assert_type(loader.batches_per_epoch, int)
    assert_type(loader.batches_per_validation, int)
    assert_type(loader.first_batch, int)
    assert_type(loader.last_batch, int | None)
    assert_type(loader.deterministic, bool)
    assert_type(loader.interrupted, bool)
    assert_type(loader.idle_usec(), int)
    assert_type(loader.get_state(), dict[str, Any])
    loader.interrupt()
    loader.set_state({"version": 1})
    saving: Awaitable[None] = await loader.save(Directory())
    loading: Awaitable[None] = await loader.load(Path("checkpoint"))
    await saving
    await loading


def statistics_are_numbers(loader: Loader[Sample]) -> None:
    figures = loader.statistics()
    assert_type(figures, LoaderStatistics)
    assert_type(figures.delivered, int)
    assert_type(figures.rows_per_second, float)
    assert_type(figures.idle_share, float)
    assert_type(figures.bound_by, Literal["fetch", "load", "place", "consumer"])
    figures.delivered = 3  # type: ignore[misc]
    assert_type(figures.fetch, FetchStatistics | None)
    assert_type(loader.headspace(10).rows_per_second, float)


async def the_next_batch_again_and_again(loader: Loader[Sample]) -> None:
    async for batch in loader.headspace():
        assert_type(batch, Batch[Sample])


# Batches --------------------------------------------------------------------------------------


def batches_have_arrays_and_data(batch: Batch[Sample]) -> None:
    assert_type(batch.arrays, Mapping[str, jax.Array])
    assert_type(batch.arrays["image"], jax.Array)
    assert_type(batch.get_array("image"), jax.Array)
    assert_type(batch.additional, Mapping[str, Sequence[Any]])
    assert_type(batch.get_additional("path"), Any)
    assert_type(batch.get_additional("path", 3, default=""), Any)
    assert_type(batch.data, Sequence[Sample])
    assert_type(batch.data[0], Sample)
    assert_type(batch.data[1:], Sequence[Sample])
    assert_type(batch.get_data(-1), Sample)
    assert_type(batch.indices, Sequence[int])
    assert_type(batch.group, DataGroup[Sample])
    assert_type(batch.group_index, int)
    assert_type(batch.layouts, Mapping[str, ArrayLayout])
    assert_type(batch.is_training, bool)
    assert_type(batch.is_validation, bool)
    assert_type(batch.uncached, bool)
    batch.arrays["image"] = batch.arrays["label"]  # type: ignore[index]
    batch.additional["path"] = []  # type: ignore[index]
    batch.arrays = {}  # type: ignore[misc]
    _ = batch.epoch  # type: ignore[attr-defined]


def training_batches_know_their_items(batch: TrainingBatch[Sample]) -> None:
    assert_type(batch.data[0], Sample)
    as_batch: Batch[Sample] = batch
    assert_type(as_batch.group, DataGroup[Sample])


def batches_are_converted_and_released(batch: Batch[Sample], code: jax.Array) -> None:
    batch.cache({"code": code})
    batch.cache({"code": code}, {"caption": ["a", None]}, persist=False)
    batch.cache({"code": code}, None, False)  # type: ignore[call-arg]
    batch.cache({"code": 3})  # type: ignore[dict-item]
    with batch as same:
        assert_type(same, Batch[Sample])
    batch.release()


def kinds_of_batches_are_told_apart(batch: Batch[Sample]) -> None:
    if isinstance(batch, TrainingBatch):
        assert_type(batch.epoch, int)
        assert_type(batch.epoch_batch, int)
        assert_type(batch.batch_num, int)
        assert_type(batch.seed, int)
        assert_type(batch.seeds, Sequence[int])
        assert_type(batch.arrays, Mapping[str, jax.Array])
        with batch as training:
            assert_type(training.epoch, int)
    elif isinstance(batch, ValidationBatch):
        assert_type(batch.validation_epoch, int)
        assert_type(batch.validation_epoch_batch, int)
        assert_type(batch.validation_batch_num, int)
        _ = batch.seed  # type: ignore[attr-defined]


# Minibatches ------------------------------------------------------------------------------------


class Dataset:
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> np.ndarray:
        return np.zeros(index)


async def minibatches_are_iterated_over_in_both_ways(arrays: dict[str, np.ndarray]) -> None:
    in_memory = InMemoryDataLoader(arrays, 4, drop_last=False)
    minibatches = in_memory.minibatches(shuffle_seed=0)
    assert_type(minibatches[0], dict[str, np.ndarray])
    assert_type(in_memory.sample_count, int)
    async for minibatch in minibatches:
        assert_type(minibatch, dict[str, np.ndarray])
    loader = DataLoader(Dataset(), 4, 2, collate_fn=lambda elements: len(elements))
    for count in loader.minibatches(None):
        assert_type(count, int)
    assert_type(len(loader.minibatches(1)), int)
    any_loader: DataLoaderProtocol[int] = loader
    assert_type(next(cycled_minibatches(any_loader, 0)), int)
    dataset: MapDatasetProtocol[np.ndarray] = Dataset()
    sized: SizedIterable[dict[str, np.ndarray]] = minibatches
    DataLoader(5, 4)  # type: ignore[arg-type]
    InMemoryDataLoader(arrays, 4, True, 1)  # type: ignore[call-arg]
    print(dataset, sized)


# Onto the device ------------------------------------------------------------------------------

Tree = dict[str, jax.Array]


async def both_maps_are_iterated_over_in_both_ways(
    trees: list[Tree], drawn: Iterator[Tree], streamed: AsyncIterator[Tree]
) -> None:
    for tree in prefetching_map(trees):
        assert_type(tree, Tree)
    async for tree in prefetching_map(trees, jax.devices()[0], 3):
        assert_type(tree, Tree)
    async for tree in prefetching_map(streamed, {"x": jax.devices()[0]}, buffer_size=0):
        assert_type(tree, Tree)
    for tree in sharding_map(drawn, jax.devices()):
        assert_type(tree, Tree)
    for tree, mask in sharding_map(trees, jax.local_devices(), pad=True):
        assert_type(tree, Tree)
        assert_type(mask, jax.Array)
    rows: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    async for tree in prefetching_map(sharding_map(streamed, rows)):
        assert_type(tree, Tree)


def they_have_a_length_exactly_if_their_inputs_have(
    trees: list[Tree], drawn: Iterator[Tree]
) -> None:
    assert_type(len(prefetching_map(trees)), int)
    assert_type(len(sharding_map(prefetching_map(trees), jax.devices())), int)
    len(prefetching_map(drawn))  # type: ignore[arg-type]
    len(sharding_map(drawn, jax.devices()))  # type: ignore[arg-type]
    prefetching_map(5)  # type: ignore[call-overload]
    prefetching_map(trees, buffer_size="2")  # type: ignore[call-overload]
    sharding_map(trees, 4)  # type: ignore[call-overload]
    sharding_map(trees, jax.devices(), True)  # type: ignore[call-overload]


# Rows in RAM ----------------------------------------------------------------------------------


async def a_cache_is_made_of_anything_with_rows(samples: list[Sample]) -> None:
    config = {"data_set": {"use_cache": True, "preload_cache": False}}
    board: MetricsSink = TensorBoardSink("runs")
    assert isinstance(board, MetricsSink)
    cache = DataCache(config, samples, max_bytes=1 << 30, policy="fifo", metrics=board)
    DataCache(config, samples, policy="some")  # type: ignore[arg-type]
    DataCache(config, samples, 1 << 30)  # type: ignore[call-arg]
    async with cache as entered:
        assert_type(entered, DataCache)
        row: Sample = await cache.get_or_load(3)
    cache.insert_into_cache(3, row)
    cache.start_preload_thread()
    assert_type(len(cache), int)
    assert_type(cache.statistics(), CacheStatistics)
    assert_type(cache.statistics().hit_rate, float)
    assert_type((await cache.preload()).failed_rows, tuple[int, ...])
    DataGroup(2, cache, loader_arrays=ARRAYS)


# Datasets -------------------------------------------------------------------------------------


class Doubled(Map):
    def map(self, element: int) -> int:
        return 2 * element


class Backwards(DatasetSelectionMap):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[int, int]:
        return 0, -index


class Halves(IterDataset[float]):
    def __init__(self, parent: IterDataset[int]) -> None:
        super().__init__(parent)

    def __iter__(self) -> HalvesIterator:
        return HalvesIterator(iter(self._parent))


class HalvesIterator(DatasetIterator[float]):
    def __next__(self) -> float:
        return float(next(self._parent)) / 2

    def get_state(self) -> dict[str, Any]:
        return self._parent.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state)


def first_of(dataset: MapDataset[int], count: int, *, func: str) -> list[int]:
    return list(dataset[:count])


def map_datasets_have_the_type_of_their_elements(words: list[str]) -> None:
    numbers = MapDataset.range(10)
    assert_type(numbers, MapDataset[int])
    assert_type(numbers[3], int | None)
    assert_type(numbers[3:], MapDataset[int])
    assert_type(numbers.shuffle(seed=1).repeat(2).filter(bool), MapDataset[int])
    assert_type(MapDataset.mix([numbers, numbers], [1, 2]), MapDataset[int])
    assert_type(MapDataset.select_from_datasets([numbers], Backwards()), MapDataset[int])
    assert_type(numbers.to_iter_dataset(ReadOptions(4, 8)), IterDataset[int])
    assert_type(numbers.pipe(first_of, 3, func="f"), list[int])
    numbers.pipe(first_of, "3", func="f")  # type: ignore[arg-type]
    numbers.shuffle(1, 2)  # type: ignore[call-arg]
    numbers.batch(2, True)  # type: ignore[call-arg]
    MapDataset.source(words).map(Doubled()).map(len).map_with_index(lambda i, x: (i, x))


def iter_datasets_have_it_too(numbers: IterDataset[int]) -> None:
    assert_type(iter(numbers), DatasetIterator[int])
    assert_type(list(numbers.filter(bool).seed(1)), list[int])
    assert_type(IterDataset.mix([numbers]), IterDataset[int])
    assert_type(IterDataset.source([1.5]), IterDataset[float])
    assert_type(WithOptionsIterDataset(numbers, DatasetOptions()), WithOptionsIterDataset[int])
    options = MultiprocessingOptions(num_workers=2, per_worker_buffer_size=4)
    assert_type(numbers.mp_prefetch(options, lambda index, count: None), IterDataset[int])
    assert_type(next(iter(Halves(numbers))), float)
    numbers.shuffle()  # type: ignore[attr-defined]
    DatasetOptions(0.5)  # type: ignore[call-arg]


async def iterators_are_of_both_kinds(numbers: IterDataset[int], directory: Path) -> None:
    async for number in numbers:
        assert_type(number, int)
    async with aiter(numbers) as iterator, numbers.__iter__() as other:
        assert_type(await anext(iterator), int)
        assert_type(next(other), int)
        iterator.set_state(other.get_state())
        other.start_prefetch()
        await (await iterator.load(directory))


def transforms_have_two_names() -> None:
    pairs: list[tuple[type[object], type[object]]] = [
        (Filter, FilterTransform),
        (FlatMap, FlatMapTransform),
        (Map, MapTransform),
        (MapWithIndex, MapWithIndexTransform),
        (RandomMap, RandomMapTransform),
    ]
    assert pairs


class Digits(FlatMap):
    max_fan_out = 20

    def flat_map(self, element: int) -> Sequence[int]:
        return [int(digit) for digit in str(element)]


def further_stages_are_for_pipe(numbers: IterDataset[int], words: MapDataset[str]) -> None:
    assert_type(LimitIterDataset(numbers, 3), LimitIterDataset[int])
    assert_type(list(numbers.pipe(RepeatIterDataset, 2)), list[int])
    assert_type(RepeatIterDataset(numbers), RepeatIterDataset[int])
    shuffled = numbers.pipe(WindowShuffleIterDataset, window_size=3, seed=1)
    assert_type(shuffled, WindowShuffleIterDataset[int])
    WindowShuffleIterDataset(numbers, 3)  # type: ignore[call-arg]
    interleaved: InterleaveIterDataset[str] = InterleaveIterDataset([words], cycle_length=2)
    assert_type(interleaved.filter(bool), IterDataset[str])
    assert_type(list(ZipIterDataset([numbers, interleaved])), list[tuple[Any, ...]])
    batches = numbers.pipe(FlatMapIterDataset, Digits()).batch(2)
    RebatchIterDataset(batches.pipe(UnbatchIterDataset), 3, drop_remainder=True)
    ZipMapDataset([words, words]).pipe(WindowShuffleMapDataset, window_size=2, seed=0)
    FlatMapMapDataset(words, list, max_fan_out=3)
    functools.partial(batch_and_pad, batch_size=2, mask=True)
    assert_type(numbers.pipe(device_put, jax.devices()[0]), IterDataset[Any])


def sequences_are_packed(sequences: IterDataset[dict[str, Any]]) -> None:
    first = FirstFitPackIterDataset(sequences, length_struct={"x": 4}, num_packing_bins=2)
    assert_type(next(iter(first)), dict[str, Any])
    BestFitPackIterDataset(first, length_struct={"x": 4}, num_packing_bins=2, seed=1)
    handling = BOSHandling.REPLACE_FIRST_TOKEN_WITH_BOS
    ConcatThenSplitIterDataset(first, length_struct={"x": 4}, bos_handling=handling)
    ConcatThenSplitIterDataset(first, {"x": 4})  # type: ignore[call-arg]


# The rest -------------------------------------------------------------------------------------


async def main() -> int:
    return 42


async def trees_keep_their_type(state: dict[str, jax.Array], step: jax.Array) -> None:
    assert_type(await wait_ready(state), dict[str, jax.Array])
    assert_type(await wait_ready((state, step)), tuple[dict[str, jax.Array], jax.Array])


def the_rest_is_plain() -> None:
    assert_type(run(main()), int)
    assert_type(run(main(), debug=True), int)
    assert_type(is_worker(), bool)
    debug_batch_references()
    debug_batch_references(False)
    assert_type(aioloader.__version__, str)
    _ = aioloader.nothing  # type: ignore[attr-defined]


async def fetches_have_a_policy() -> None:
    async def download(key: str) -> bytes:
        return key.encode()

    fetch = Fetch(download, FetchPolicy(concurrency=256, hedge_quantile=0.95))
    assert_type(fetch, Fetch[str, bytes])
    assert_type(await fetch("a"), bytes)
    assert_type(fetch.statistics(), FetchStatistics)
    assert_type(fetch.statistics().p99_seconds, float)
    FetchPolicy(256)  # type: ignore[call-arg]
    FetchPolicy().retries = 3  # type: ignore[misc]


def errors_have_a_common_root(error: LoadError) -> None:
    root: list[type[AioLoaderError]] = [
        LoadError,
        WorkerDied,
        BatchTimeoutError,
        LayoutError,
        StateError,
        CacheMismatch,
        CacheCorrupt,
        FetchError,
    ]
    values: list[type[ValueError]] = [LayoutError, StateError, CacheMismatch]
    late: type[TimeoutError] = BatchTimeoutError
    died: type[LoadError] = WorkerDied
    assert_type(error.group, str)
    assert_type(error.batch, int | None)
    assert_type(error.row, int | None)
    assert_type(error.item, object)
    assert root
    assert values
    assert late
    assert died

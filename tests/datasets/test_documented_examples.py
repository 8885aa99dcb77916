"""The examples of Grain's documentation that no docstring has, each with the result it states.

Where one says neither a seed nor what comes out, both are put in. Grain refuses `shuffle` and
`random_map` without any seed, as this package does.
"""

from __future__ import annotations

import doctest
from typing import TYPE_CHECKING, Any

import pytest

from aioloader import (
    IterDataset,
    MapDataset,
    WindowShuffleIterDataset,
    WindowShuffleMapDataset,
)

if TYPE_CHECKING:
    import numpy as np

NAMES: dict[str, Any] = {
    "IterDataset": IterDataset,
    "MapDataset": MapDataset,
    "WindowShuffleIterDataset": WindowShuffleIterDataset,
    "WindowShuffleMapDataset": WindowShuffleMapDataset,
}


def draw(x: Any, rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 30))


EXAMPLES = {
    "a source of any sequence": """
        >>> list(MapDataset.source([1, 2, 3, 4, 5])) == [1, 2, 3, 4, 5]
        True
        >>> list(MapDataset.range(2, 9, 3)) == list(range(2, 9, 3))
        True
    """,
    "a slice by subscript": """
        >>> ds = MapDataset.range(12)
        >>> list(ds.slice(slice(1, 10, 2))) == list(ds[1:10:2]) == [1, 3, 5, 7, 9]
        True
    """,
    "a filter in a MapDataset": """
        >>> ds = MapDataset.range(5)
        >>> ds = ds.filter(lambda x: x % 2 == 0)
        >>> ds[2] == 2
        True
        >>> ds[1] == None
        True
        >>> list(ds) == [0, 2, 4]
        True
    """,
    "an endless repetition": """
        >>> import sys
        >>> ds = MapDataset.range(5).repeat()
        >>> len(ds) == sys.maxsize
        True
        >>> ds[11111] == 1
        True
    """,
    "batches": """
        >>> ds = MapDataset.range(5)
        >>> ds = ds.batch(batch_size=2)
        >>> [batch.tolist() for batch in ds] == [[0, 1], [2, 3], [4]]
        True
        >>> ds = MapDataset.range(5).to_iter_dataset()
        >>> ds = ds.batch(batch_size=2)
        >>> [batch.tolist() for batch in ds] == [[0, 1], [2, 3], [4]]
        True
    """,
    "what has no method, in the order of the flow": """
        >>> dataset = (
        ...     WindowShuffleMapDataset(MapDataset.range(1000), window_size=128, seed=0)
        ...     .batch(16)
        ... )
        >>> piped = (
        ...     MapDataset.range(1000)
        ...     .pipe(WindowShuffleMapDataset, window_size=128, seed=0)
        ...     .batch(16)
        ... )
        >>> [batch.tolist() for batch in dataset] == [batch.tolist() for batch in piped]
        True
        >>> sorted(x for batch in piped for x in batch.tolist()) == list(range(1000))
        True
    """,
    "the same by iteration": """
        >>> numbers = MapDataset.range(1000).to_iter_dataset()
        >>> dataset = WindowShuffleIterDataset(numbers, window_size=128, seed=0).batch(16)
        >>> piped = numbers.pipe(WindowShuffleIterDataset, window_size=128, seed=0).batch(16)
        >>> [batch.tolist() for batch in dataset] == [batch.tolist() for batch in piped]
        True
    """,
    "seed, 1: a shuffle derives a seed of its own": """
        >>> ds = MapDataset.range(100)
        >>> list(ds.seed(7).shuffle()) == list(ds.seed(7).shuffle())
        True
        >>> list(ds.seed(7).shuffle()) == list(ds.shuffle(seed=7))
        False
    """,
    "seed, 2: each stage derives another one": """
        >>> ds = MapDataset.range(100).seed(7).random_map(draw)
        >>> list(ds) == list(ds.random_map(draw))
        False
        >>> ds = MapDataset.range(100).to_iter_dataset().seed(7).random_map(draw)
        >>> list(ds) == list(ds.random_map(draw))
        False
    """,
    "seed, 3: an explicit one is not affected": """
        >>> ds = MapDataset.range(100)
        >>> given = list(ds.random_map(draw, seed=5))
        >>> list(ds.seed(1).random_map(draw, seed=5)) == given
        True
        >>> list(ds.seed(2).random_map(draw, seed=5)) == given
        True
        >>> it = ds.to_iter_dataset()
        >>> list(it.seed(2).random_map(draw, seed=5)) == list(it.random_map(draw, seed=5))
        True
    """,
    "seed, 4: only what comes after is affected": """
        >>> ds = MapDataset.range(100)
        >>> def both(seed1, seed2):
        ...     pairs = ds.seed(seed1).shuffle().seed(seed2)
        ...     return list(pairs.random_map(lambda x, rng: (x, draw(x, rng))))
        >>> (first, other, third) = (both(1, 2), both(1, 3), both(4, 2))
        >>> [x for x, _ in first] == [x for x, _ in other]
        True
        >>> [y for _, y in first] == [y for _, y in other]
        False
        >>> [x for x, _ in first] == [x for x, _ in third]
        False
        >>> [y for _, y in first] == [y for _, y in third]
        True
    """,
    "seed, 5: what is mixed has its own, and what comes after has both": """
        >>> def mixed(seed1, seed2):
        ...     ds1 = MapDataset.source(range(100)).seed(seed1).shuffle()
        ...     ds2 = MapDataset.source(range(100, 200)).seed(seed2).shuffle()
        ...     mix = MapDataset.mix([ds1, ds2])
        ...     return list(mix[::2]), list(mix[1::2]), list(mix.random_map(draw))
        >>> (first, other, third) = (mixed(1, 2), mixed(1, 3), mixed(4, 2))
        >>> [x == y for x, y in zip(first, other)]
        [True, False, False]
        >>> [x == y for x, y in zip(first, third)]
        [False, True, False]
    """,
    "seed, 5, by iteration": """
        >>> def drawn(seed1, seed2):
        ...     ds1 = MapDataset.range(50).seed(seed1).shuffle().to_iter_dataset()
        ...     ds2 = MapDataset.range(50).seed(seed2).shuffle().to_iter_dataset()
        ...     return list(IterDataset.mix([ds1, ds2]).random_map(draw))
        >>> drawn(1, 2) == drawn(1, 2)
        True
        >>> len({tuple(drawn(*seeds)) for seeds in [(1, 2), (1, 3), (4, 2), (2, 1)]})
        4
    """,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_has_the_result_it_states(name: str) -> None:
    """In the words of the documentation."""
    names = NAMES | {"draw": draw}
    example = doctest.DocTestParser().get_doctest(EXAMPLES[name], names, name, None, 0)
    assert example.examples
    said: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert results.failed == 0, "".join(said)

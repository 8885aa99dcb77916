"""What Grain recorded for `MapDataset`: random numbers, mixtures and the seeds of stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from golden import GOLDEN

from aioloader import MapDataset

if TYPE_CHECKING:
    import numpy as np


def add_random(x: int, rng: np.random.Generator) -> int:
    return x + int(rng.integers(0, 1000))


PIPELINES: dict[str, Any] = {
    "range(10).seed(s).random_map(x + rng.integers(0, 1000))": lambda s: (
        MapDataset.range(10).seed(s).random_map(add_random)
    ),
    "range(10).random_map(rng.random(), seed=s)": lambda s: MapDataset.range(10).random_map(
        lambda x, rng: rng.random(), seed=s
    ),
    "range(10).seed(s).shuffle().random_map(x + rng.integers(0, 1000))": lambda s: (
        MapDataset.range(10).seed(s).shuffle().random_map(add_random)
    ),
    "range(10).seed(s).map(identity).shuffle()": lambda s: (
        MapDataset.range(10).seed(s).map(lambda x: x).shuffle()
    ),
    "range(10).seed(s).shuffle().shuffle()": lambda s: (
        MapDataset.range(10).seed(s).shuffle().shuffle()
    ),
    "mix([range(10).seed(s).shuffle(), range(100, 110).seed(s + 1).shuffle()])"
    ".random_map(x + rng.integers(0, 1000))": lambda s: MapDataset.mix(
        [MapDataset.range(10).seed(s).shuffle(), MapDataset.range(100, 110).seed(s + 1).shuffle()]
    ).random_map(add_random),
}
CASES = GOLDEN["random_map"] + GOLDEN["default_seeds"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['pipeline']}-{case['seed']}")
def test_numbers_are_grains(case: dict[str, Any]) -> None:
    """In all recorded epochs, by index."""
    recorded = case.get("elements") or [x for epoch in case["epochs"] for x in epoch]
    dataset = PIPELINES[case["pipeline"]](case["seed"])
    assert [dataset[i] for i in range(len(recorded))] == recorded


def test_every_recorded_pipeline_is_tested() -> None:
    assert {case["pipeline"] for case in CASES} == PIPELINES.keys()


@pytest.mark.parametrize("case", GOLDEN["shuffle"], ids=lambda case: f"{case['n']}-{case['seed']}")
def test_shuffles_are_grains(case: dict[str, Any]) -> None:
    """Through a dataset, in its epochs."""
    dataset = MapDataset.range(case["n"]).shuffle(seed=case["seed"])
    for epoch, order in enumerate(case.get("epochs", ())):
        start = epoch * case["n"]
        assert [dataset[start + position] for position in range(len(order))] == order
    assert [dataset[i] for i in case.get("indices", ())] == case.get("values", [])


@pytest.mark.parametrize("case", GOLDEN["mix"], ids=lambda case: str(case["lengths"]))
def test_mixtures_are_grains(case: dict[str, Any]) -> None:
    """By index and by iteration."""
    inputs = [MapDataset.range(1000 * k, 1000 * k + n) for k, n in enumerate(case["lengths"])]
    dataset = MapDataset.mix(inputs, case["weights"])
    assert len(dataset) == case["len"]
    assert list(dataset)[: len(case["map"])] == case["map"]


def test_numbers_that_grains_own_tests_pin() -> None:
    ten = MapDataset.range(10)
    assert list(ten.seed(42).shuffle()) == [1, 7, 6, 9, 0, 8, 4, 5, 3, 2]
    noisy = ten.seed(41).random_map(lambda x, rng: x + rng.integers(0, 10))
    assert list(noisy) == [0, 6, 9, 5, 10, 14, 14, 13, 15, 13]


OF_EPOCHS: dict[str, Any] = {
    "range(7).shuffle(seed=1).shuffle(seed=2)": lambda: (
        MapDataset.range(7).shuffle(seed=1).shuffle(seed=2)
    ),
    "range(7).seed(3).random_map(x + rng.integers(0, 1000)).shuffle()[1:6:2]": lambda: (
        MapDataset.range(7).seed(3).random_map(add_random).shuffle()[1:6:2]
    ),
    "concatenate([range(3).shuffle(seed=1), range(10, 15).shuffle(seed=2)]).shuffle(seed=3)": (
        lambda: MapDataset.concatenate(
            [MapDataset.range(3).shuffle(seed=1), MapDataset.range(10, 15).shuffle(seed=2)]
        ).shuffle(seed=3)
    ),
    "mix([range(4).shuffle(seed=1), range(10, 17).shuffle(seed=2)], [1, 2]).shuffle(seed=3)": (
        lambda: MapDataset.mix(
            [MapDataset.range(4).shuffle(seed=1), MapDataset.range(10, 17).shuffle(seed=2)], [1, 2]
        ).shuffle(seed=3)
    ),
    "range(5).shuffle(seed=1).repeat(2).shuffle(seed=2)": lambda: (
        MapDataset.range(5).shuffle(seed=1).repeat(2).shuffle(seed=2)
    ),
    "range(5).shuffle(seed=1).repeat().shuffle(seed=2)": lambda: (
        MapDataset.range(5).shuffle(seed=1).repeat().shuffle(seed=2)
    ),
}


@pytest.mark.parametrize("case", GOLDEN["epochs"], ids=lambda case: case["pipeline"])
def test_epochs_reach_the_parents(case: dict[str, Any]) -> None:
    """What is above a stage that reorders is in the same epoch: one by one, and at once."""
    make = OF_EPOCHS[case["pipeline"]]
    recorded = case["elements"]
    assert [make()[i] for i in range(len(recorded))] == recorded
    assert list(make()._each(range(len(recorded)))) == recorded

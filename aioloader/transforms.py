"""Transforms for datasets, as classes to derive from, under all their names; `Batch` is a value."""

from __future__ import annotations

from aioloader._datasets.transforms import (
    Batch,
    Filter,
    FilterTransform,
    FlatMap,
    FlatMapTransform,
    Map,
    MapTransform,
    MapWithIndex,
    MapWithIndexTransform,
    RandomMap,
    RandomMapTransform,
)

__all__ = [
    "Batch",
    "Filter",
    "FilterTransform",
    "FlatMap",
    "FlatMapTransform",
    "Map",
    "MapTransform",
    "MapWithIndex",
    "MapWithIndexTransform",
    "RandomMap",
    "RandomMapTransform",
]

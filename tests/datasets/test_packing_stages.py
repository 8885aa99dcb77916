"""Packing sequences into rows, and joining and cutting them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from golden import EXTRAS
from hypothesis import given, settings
from hypothesis import strategies as st
from walking import check_walks, walk

from aioloader import IterDataset, MapDataset
from aioloader._datasets import extras
from aioloader._datasets.extras import (
    BestFitPackIterDataset,
    ConcatThenSplitIterDataset,
    FirstFitPackIterDataset,
)
from aioloader._datasets.splitting import BOSHandling

if TYPE_CHECKING:
    from collections.abc import Sequence


def sequences(lengths: Sequence[int], **other: Any) -> IterDataset[Any]:
    """Return sequences, of which the k-th is of numbers from 100 * k on."""
    elements = [{"x": np.arange(n) + 100 * k, **other} for k, n in enumerate(lengths)]
    return MapDataset.source(elements).to_iter_dataset()


def as_lists(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}


@pytest.mark.parametrize("case", EXTRAS["pack"], ids=lambda c: f"{c['name']}-{c['options']}")
def test_rows_are_those_of_grain(case: dict[str, Any]) -> None:
    """Their order, their ids and positions; with padding, alignment, bounds and lists."""
    elements = [
        {k: np.array(v, np.int32) if isinstance(v, list) else v for k, v in element.items()}
        for element in case["elements"]
    ]
    kind = getattr(extras, case["name"])
    rows = kind(MapDataset.source(elements).to_iter_dataset(), **case["options"])
    assert [as_lists(row) for row in rows] == case["expected"]
    for row in rows:
        assert {row[k].dtype for k in ("a", "a_segment_ids", "a_positions")} == {np.dtype("int32")}


@pytest.mark.parametrize("case", EXTRAS["split"], ids=lambda c: str(c["options"]))
def test_cut_rows_are_those_of_grain(case: dict[str, Any]) -> None:
    """Also where full ones are handed through, and where each sequence begins anew."""
    options = dict(case["options"])
    if "bos_token_id" in options:
        options["bos_handling"] = BOSHandling.REPLACE_FIRST_TOKEN_WITH_BOS
    elements = [{k: np.array(v) for k, v in element.items()} for element in case["elements"]]
    dataset = MapDataset.source(elements).to_iter_dataset()
    rows = ConcatThenSplitIterDataset(dataset, **options)
    assert [as_lists(row) for row in rows] == case["expected"]
    check_walks(rows)


LENGTHS = (3, 4, 2, 9, 1, 5, 5, 2, 2, 4, 1)


def with_errors(element: Any) -> Any:
    if element["x"][0] in (200, 800):
        raise ValueError(f"no {element['x'][0]}")
    return element


@pytest.mark.parametrize("kind", [FirstFitPackIterDataset, BestFitPackIterDataset])
def test_each_walk_through_rows_is_the_same(kind: Any) -> None:
    """Errors come in between, each once: the parent's, and that of what is too long."""
    rows = kind(
        sequences(LENGTHS).map(with_errors), length_struct={"x": 6}, num_packing_bins=2, seed=3
    )
    seen = check_walks(rows)
    errors = [x[1] for x in seen if isinstance(x, tuple)]
    assert errors[0] == "no 200"
    assert "'x' has 9 of at most 6" in errors[1]
    assert errors[2:] == ["no 800"]
    found = sorted(v for row in rows_of(seen) for v in row["x"][2] if v)
    assert (
        found
        == sorted(
            100 * k + i for k, n in enumerate(LENGTHS) for i in range(n) if k not in (2, 3, 8)
        )[1:]
    )


def rows_of(seen: list[Any]) -> list[Any]:
    return [x for x in seen if isinstance(x, dict)]


def test_each_walk_through_cut_rows_is_the_same() -> None:
    """Whatever state they are cut in, and with errors between them."""
    for options in ({}, {"split_full_length_features": False}):
        rows = ConcatThenSplitIterDataset(
            sequences((3, 4, 13, 5, 1, 5, 0, 5, 2, 4, 12)).map(with_errors_at_300),
            length_struct={"x": 5},
            **options,  # type: ignore[arg-type]
        )
        seen = check_walks(rows)
        assert [x[1] for x in seen if isinstance(x, tuple)] == ["no 300"]


def with_errors_at_300(element: Any) -> Any:
    if 300 in element["x"]:
        raise ValueError("no 300")
    return element


def restored(rows: list[Any], name: str) -> list[list[int]]:
    """Return the sequences of all rows, by their segment ids."""
    found = []
    for row in rows:
        ids, values = row[f"{name}_segment_ids"], row[name]
        positions = row[f"{name}_positions"]
        for segment in range(1, int(ids.max(initial=0)) + 1):
            where = ids == segment
            assert positions[where].tolist() == list(range(int(where.sum())))
            found.append(values[where].tolist())
        assert not positions[ids == 0].any()
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), max_size=25), st.integers(1, 5), st.booleans(), st.booleans())
def test_no_sequence_is_lost_or_torn(
    lengths: list[int], bins: int, best: bool, shuffle: bool
) -> None:
    """Whatever their lengths; no bin is left for a later one that the next could have had."""
    kind = BestFitPackIterDataset if best else FirstFitPackIterDataset
    rows = list(
        kind(
            sequences(lengths),
            length_struct={"x": 9},
            num_packing_bins=bins,
            shuffle_bins=shuffle,
        )
    )
    expected = sorted((np.arange(n) + 100 * k).tolist() for k, n in enumerate(lengths))
    assert sorted(restored(rows, "x")) == expected
    assert all(len(row["x"]) == 9 for row in rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=12))
def test_cutting_loses_nothing_of_any_feature(lengths: list[tuple[int, int]]) -> None:
    """Also where elements are cut several times, and in two features at once."""
    elements = [
        {"a": np.arange(n) + 100 * k, "b": np.arange(m) + 100 * k}
        for k, (n, m) in enumerate(lengths)
    ]
    dataset = MapDataset.source(elements).to_iter_dataset()
    rows = list(ConcatThenSplitIterDataset(dataset, length_struct={"a": 5, "b": 3}))
    for name in "ab":
        joined = [value for piece in restored(rows, name) for value in piece]
        assert joined == [int(value) for element in elements for value in element[name]]


def test_rows_hold_other_than_numbers() -> None:
    """More axes, scalars, and lists of what is not packed."""
    elements = [{"x": np.full((n, 2), n, np.float32), "y": n, "name": f"n{n}"} for n in (2, 3, 1)]
    rows = FirstFitPackIterDataset(
        MapDataset.source(elements).to_iter_dataset(),
        length_struct={"x": 5, "y": 2},
        num_packing_bins=2,
        shuffle_bins=False,
        meta_features=["name"],
        padding_struct={"x": -1},
    )
    first, second = rows
    assert first["x"].shape == (5, 2)
    assert first["x"].dtype == np.float32
    assert first["y"].tolist() == [2, 3]
    assert first["name"] == ["n2", "n3"]
    assert second["x"][:, 0].tolist() == [1, -1, -1, -1, -1]
    assert second["name"] == ["n1"]
    assert "name_segment_ids" not in first


@pytest.mark.parametrize("kind", [FirstFitPackIterDataset, BestFitPackIterDataset])
def test_a_row_has_no_more_sequences_than_it_may(kind: Any) -> None:
    """Though there would be room for them."""
    rows = kind(
        sequences([1] * 5), length_struct={"x": 9}, num_packing_bins=2, max_sequences_per_bin=2
    )
    assert sorted(int(row["x_segment_ids"].max()) for row in rows) == [1, 2, 2]


def test_what_is_wrong_with_an_element_is_said() -> None:
    """And the next one is packed."""
    wrong: list[Any] = [
        {"z": np.ones(2)},
        np.ones(2),
        {"x": np.ones(2)},
        {"x": np.ones((2, 2))},
        {"x": np.ones(9)},
    ]
    dataset = MapDataset.source(wrong).to_iter_dataset()
    pack = FirstFitPackIterDataset(dataset, length_struct={"x": 6}, num_packing_bins=1)
    seen = [x[1] for x in walk(iter(pack)) if isinstance(x, tuple)]
    assert seen[0] == "length_struct has 'x', and an element has not"
    assert seen[1] == "elements to pack must be dictionaries, got ndarray"
    assert "of shapes (2,) and (2, 2)" in seen[2]
    assert "'x' has 9 of at most 6" in seen[3]
    cut = ConcatThenSplitIterDataset(dataset, length_struct={"x": 6})
    assert "must have the features of length_struct, got ['z']" in walk(iter(cut), 1)[0][1]
    meta = sequences([3, 3], m=np.ones(4))
    cut = ConcatThenSplitIterDataset(meta, length_struct={"x": 6, "m": 3}, meta_features=["m"])
    assert "meta feature 'm' has 4 steps" in walk(iter(cut), 1)[0][1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"length_struct": {}}, "length_struct must be a mapping of features, got {}"),
        ({"length_struct": {"x": 0}}, r"length_struct\['x'\] must be at least 1, got 0"),
        ({"num_packing_bins": 0}, "num_packing_bins must be at least 1, got 0"),
        ({"max_sequences_per_bin": 0}, "max_sequences_per_bin must be at least 1, got 0"),
        ({"padding_struct": {"y": 1}}, "padding_struct: 'y' is not in length_struct"),
        ({"pack_alignment_struct": {"x": 0}}, "must be at least 1, got 0"),
        ({"shuffle_bins_group_by_feature": "y"}, "'y' is not in length_struct"),
    ],
)
def test_wrong_arguments_of_packing_are_named(options: dict[str, Any], text: str) -> None:
    """At once, and not with the first element."""
    with pytest.raises(ValueError, match=text):
        FirstFitPackIterDataset(
            sequences([1]), **{"length_struct": {"x": 4}, "num_packing_bins": 2, **options}
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bos_token_id": 1}, "do nothing with bos_handling=DO_NOTHING"),
        ({"bos_handling": BOSHandling.REPLACE_FIRST_TOKEN_WITH_BOS}, "needs bos_token_id"),
        ({"meta_features": ["x"]}, "meta_features are all of length_struct"),
    ],
)
def test_wrong_arguments_of_cutting_are_named(options: dict[str, Any], text: str) -> None:
    """Likewise."""
    with pytest.raises(ValueError, match=text):
        ConcatThenSplitIterDataset(sequences([1]), length_struct={"x": 4}, **options)

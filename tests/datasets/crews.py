"""What tests of datasets with workers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioloader import MultiprocessingOptions

if TYPE_CHECKING:
    from aioloader import IterDataset


def manned(dataset: IterDataset[Any], workers: int = 2, **options: Any) -> IterDataset[Any]:
    """Return a dataset with so many workers."""
    return dataset.mp_prefetch(MultiprocessingOptions(num_workers=workers, **options))


def all_of(iterator: Any) -> list[Any]:
    """Return the elements of an iterator, and the texts of errors in their place."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            return found
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")

"""Options: how datasets are read, and what they warn of."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import final

__all__ = ["DatasetOptions", "MultiprocessingOptions", "ReadOptions"]

_log = logging.getLogger("aioloader")


@final
@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How the elements of a `MapDataset` are read ahead of their use.

    Up to ``num_threads`` elements are made at once, by threads. Where the pipeline has coroutine
    functions, that is how many calls of those are awaited at once, and how many threads call its
    plain functions meanwhile. Up to ``prefetch_buffer_size`` elements that together keep about
    ``prefetch_buffer_bytes`` are under way or ready. If any of the three is zero, nothing is
    read ahead: elements are made when they are asked for. The order of elements does not depend
    on any of it.
    """

    num_threads: int = 16
    prefetch_buffer_size: int = 500
    prefetch_buffer_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("num_threads", "prefetch_buffer_size", "prefetch_buffer_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, and is {getattr(self, name)}")
        if 0 < self.prefetch_buffer_size < self.num_threads:
            _log.warning(
                "prefetch_buffer_size=%d keeps some of num_threads=%d threads idle: no more "
                "elements than that are under way at once",
                self.prefetch_buffer_size,
                self.num_threads,
            )

    @property
    def reads_ahead(self) -> bool:
        """Whether elements are made before they are asked for."""
        return min(self.num_threads, self.prefetch_buffer_size, self.prefetch_buffer_bytes) > 0


@final
@dataclass(frozen=True, slots=True)
class MultiprocessingOptions:
    """How worker processes make elements ahead of their use.

    ``num_workers`` processes have up to ``per_worker_buffer_size`` elements each under way
    or ready. ``enable_profiling`` is accepted, and does nothing.
    """

    num_workers: int = 0
    per_worker_buffer_size: int = 1
    enable_profiling: bool = False

    def __post_init__(self) -> None:
        if self.num_workers < 0:
            raise ValueError(f"num_workers must not be negative, and is {self.num_workers}")
        if self.per_worker_buffer_size <= 0:
            raise ValueError(
                f"per_worker_buffer_size must be positive, and is {self.per_worker_buffer_size}"
            )


class _Unsaid(float):
    """A default: what another stage of the pipeline says comes before it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOptions:
    """When filters warn or raise; 0 turns either off.

    Of each 1000 elements that come to a filter, these are the shares from which on there is a
    warning, or a :class:`ValueError`. Where a pipeline has such options several times, what the
    last of them says holds for all of it; None for raising says nothing.
    """

    filter_warn_threshold_ratio: float | None = _Unsaid(0.9)
    filter_raise_threshold_ratio: float | None = None

    def __post_init__(self) -> None:
        for name in ("filter_warn_threshold_ratio", "filter_raise_threshold_ratio"):
            ratio = getattr(self, name)
            if ratio is not None and not 0 <= ratio <= 1:
                raise ValueError(f"{name} must be between 0 and 1, and is {ratio}")

    def updated(self, later: DatasetOptions) -> DatasetOptions:
        """Return these options with what ``later`` says in their place.

        >>> options = DatasetOptions(filter_warn_threshold_ratio=None)
        >>> options = options.updated(DatasetOptions(filter_raise_threshold_ratio=0.5))
        >>> options.filter_warn_threshold_ratio, options.filter_raise_threshold_ratio
        (None, 0.5)
        """
        said: dict[str, float | None] = {}
        if not isinstance(later.filter_warn_threshold_ratio, _Unsaid):
            said["filter_warn_threshold_ratio"] = later.filter_warn_threshold_ratio
        if later.filter_raise_threshold_ratio is not None:
            said["filter_raise_threshold_ratio"] = later.filter_raise_threshold_ratio
        return replace(self, **said) if said else self

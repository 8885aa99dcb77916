"""The sink: the one method that whatever records figures has."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

__all__ = ["MetricsSink"]


@runtime_checkable
class MetricsSink(Protocol):
    """Where figures go.

    ``scalar`` is called from any thread, also from that of an event loop, so it must be safe
    there and return at once. A sink that raises is not called again.

    >>> class Printed:
    ...     def scalar(self, tag, value, step):
    ...         print(f"{tag}={value} at {step}")
    >>> isinstance(Printed(), MetricsSink)
    True
    """

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Record one figure; ``step`` never falls for a tag. Times are in seconds."""

"""Where figures go: the seam, which each integration fills in a file of its own."""

from aioloader.metrics.sink import MetricsSink

__all__ = ["MetricsSink"]

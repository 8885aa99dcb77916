"""The workloads of the comparison, a module each, which has ``WORKLOAD`` and ``run(setting)``.

``run`` is called in a process of its own and returns figures; ``prepare(setting)``, where there
is one, is called before, and may write files to ``setting.scratch``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES = (
    "tiny",
    "large",
    "decode",
    "uneven",
    "uneven_unordered",
    "cached",
    "loop_lag",
    "first_batch",
    "worker_memory",
    "resume",
    "growth_items",
    "growth_depth",
    "recovery",
    "teardown",
)
"""The modules, in the order of the table. Objects over a network are `benchmarks.remote`."""


@dataclass(frozen=True)
class Column:
    """A figure: its heading, how it is written, and what it is compared by.

    ``ratio`` is "more" or "less" by what is better, and the figure is then told as a share of the
    limit; a "cost" is so many times the limit's, "above" by how much it is more, and empty is not
    compared.
    """

    heading: str
    form: str = "{:,.0f}"
    ratio: str = ""


@dataclass(frozen=True)
class Workload:
    """What is measured: for whom, in which cases, and the columns of its table, the main first.

    ``slopes`` are the figures whose growth over the cases, which are numbers, is told, and once
    more from case ``slopes_from`` on.
    """

    title: str
    columns: dict[str, Column]
    loaders: Sequence[str]
    short: Sequence[str]
    limit: str = ""
    cases: Sequence[str] = ("",)
    short_cases: Sequence[str] = ()
    reach: str = ""
    scale: float = 1.0
    short_scale: float = 0.5
    rounds: int = 5
    short_rounds: int = 3
    labels: Mapping[str, str] = field(default_factory=dict)
    slopes: Sequence[str] = ()
    slopes_from: int = 0
    prepares: bool = False


THROUGHPUT = {
    "rate": Column("items/s", ratio="more"),
    "cpu_us": Column("CPU µs an item", "{:,.2f}", ratio="cost"),
    "pss_mib": Column("PSS of all, MiB"),
    "first_s": Column("first batch, s", "{:.2f}"),
}
"""The columns of what is measured as items a second."""

"""Configurations: random loaders, random consumers and random faults, all of one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from aioloader import DataGroup, Loader
from aioloader._faults import Fault
from chaos.consuming import fetch, load, load_on_loop, load_spans

ITEM_TIMEOUT = 0.4
ENDING = ("kill", "exit")
ROW_POINTS = ("before_write", "mid_row", "written")
WORKER_POINTS = ("attach", "start", "idle", *ROW_POINTS, "acknowledging", "acknowledged")


@dataclass(frozen=True)
class Consumer:
    """What the program does with its batches."""

    holds: int = 0
    slow: float = 0.0
    cancels: float = 0.0
    stops_after: int | None = None
    stop: str = "break"


@dataclass(frozen=True)
class Configuration:
    """One run: the same seed gives the same, in any process."""

    seed: int
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    groups: tuple[dict[str, Any], ...] = ()
    validation: tuple[str, int] | None = None
    faults: tuple[Fault, ...] = ()
    consumer: Consumer = field(default_factory=Consumer)

    @classmethod
    def of(cls, seed: int) -> Configuration:
        """Draw a configuration."""
        draw = random.Random(seed)
        kind = draw.choice(["processes"] * 4 + ["vectorized", "thread", "coroutine", "fetch"])
        options = {
            "depth": draw.randint(2, 6),
            "num_workers": draw.randint(1, 3) if kind != "thread" else 0,
            "deterministic": draw.random() < 0.7,
            "interleave_groups": draw.random() < 0.7,
            "retries": draw.choice([0, 0, 1, 2]),
            "on_error": draw.choice(["raise", "raise", "drop"]),
            "end_at": ("epoch", draw.randint(1, 3)),
        }
        consumer = Consumer(
            holds=draw.choice([0, 0, options["depth"] - 2]),
            slow=draw.choice([0, 0, 0.005]),
            cancels=draw.choice([0, 0, 0.5]),
            stops_after=draw.choice([None, None, draw.randint(0, 12)]),
            stop=draw.choice(["break", "raise", "cancel", "interrupt", "aclose"]),
        )
        validation = draw.choice([None, ("epoch", 1), ("batch", draw.randint(2, 9))])
        groups = tuple(_group(draw) for _ in range(draw.randint(1, 3)))
        faults = [_fault(draw, kind) for _ in range(draw.randint(0, 5))]
        if any(group["cached"] for group in groups) and draw.random() < 0.5:
            action: Any = draw.choice(["raise", "slow"])  # in the program itself
            visit = draw.randint(20, 80)  # entries, and not the making of the caches
            faults.append(Fault("cache_write", action, visit, seconds=0.02))
        return cls(seed, kind, options, groups, validation, tuple(faults), consumer)

    def loader(self, folder: str = "", *, plain: bool = False, state: Any = None) -> Loader[Any]:
        """Return its loader; ``plain`` is the simplest that delivers the same batches.

        ``folder`` is where groups that are cached have their caches.
        """
        options = dict(self.options)
        if plain:
            options |= {"num_workers": 0, "retries": 0, "on_error": "raise", "deterministic": True}
        functions = {"coroutine": load_on_loop, "vectorized": load_spans}
        groups = [_make(group, "" if plain else folder) for group in self.groups]
        if self.validation is not None:
            held_out = DataGroup(4, range(500, 512), loader_arrays=_LAYOUTS[0])
            options["validation"] = (*self.validation, held_out)
        loader = Loader(
            load if plain else functions.get(self.kind, load),
            groups,
            fetch=fetch if self.kind == "fetch" and not plain else None,
            vectorized=self.kind == "vectorized" and not plain,
            item_timeout=ITEM_TIMEOUT,
            timeout=20.0,
            **options,
        )
        if state is not None:
            loader.set_state(state)
        return loader

    @property
    def may_fail(self) -> bool:
        """Whether an item may be reported as failed, after all retries."""
        hangs = any(f.action in ("hang", "stop", "raise") for f in self.faults)
        ends = sum(f.action in ENDING for f in self.faults) > 2
        return hangs or ends


_LAYOUTS: tuple[dict[str, Any], ...] = (
    {"x": ((4,), "int64", "int32"), "y": ((), "float32", "float32")},
    {
        "x": ((4,), "int32", "int32"),
        "y": ((), "float64", "float32"),
        "z": ((0, 3), "uint8", "int8"),
    },
    {"y": ((), "float16", "bfloat16"), "x": ((4,), "float32", "float32")},
)


_MODES = ("default", "repeat", "reseed", "batchwise", "itemwise")


def _group(draw: random.Random) -> dict[str, Any]:
    return {
        "batch_size": draw.choice([1, 3, 8, 16]),
        "length": draw.randint(17, 70),
        "arrays": draw.randrange(len(_LAYOUTS)),
        "shuffle_first": draw.random() < 0.5,
        "shuffle_later": draw.choice(_MODES),
        "seed": draw.randrange(100),
        "drop_remainder": draw.random() < 0.5,
        "cached": draw.random() < 0.3,
    }


def _make(drawn: dict[str, Any], folder: str) -> DataGroup[int]:
    options = dict(drawn)
    if options.pop("cached"):
        options["cache_location"] = folder or None
        if options["shuffle_later"] == "default":
            options["shuffle_later"] = "batchwise"  # as it is with a cache
    size, length = options.pop("batch_size"), options.pop("length")
    layouts = _LAYOUTS[options.pop("arrays")]
    return DataGroup(size, range(length), loader_arrays=layouts, **options)


def _fault(draw: random.Random, kind: str) -> Fault:
    visit, generation = int(draw.expovariate(1 / 15)), draw.choice([0, 0, 0, 1, 2])
    worker = draw.choice([None, 0, 1])
    if kind in ("thread", "coroutine"):
        action: Any = draw.choice(["raise", "slow"])
        return Fault(draw.choice(ROW_POINTS), action, visit, seconds=0.02)
    if kind == "fetch" and draw.random() < 0.4:
        action = draw.choice(["raise", "slow", "hang"])
        return Fault("fetch", action, visit, seconds=0.02)
    point = draw.choice(WORKER_POINTS)
    action = draw.choice(["kill"] * 4 + ["exit", "slow", "raise", "hang", "stop"])
    if point in ("attach", "start") and action in ("raise", "hang"):
        action = "kill"  # `startup` that raises ends the run, and one that hangs may take its time
    if point not in ROW_POINTS:
        visit //= 4
    if point in ("attach", "start"):
        visit = 0
    return Fault(point, action, visit, worker, generation, seconds=0.02)

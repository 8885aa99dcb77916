"""What an outcome amounts to. The rule:

Every row arrives, or an error comes in a bounded time that says which item is at fault; where a
worker is killed from outside, which is no item's fault, it may name the worker instead. When
the program itself is killed, nothing is left two seconds later. And the program can end.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from benchmarks.peers.faulty import BAD, BATCH_SIZE, ITEMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.enclosure import Outcome

_WORTH_SAYING_SECONDS = 0.95
_BAD_INDEX = ITEMS.index(BAD)
_BAD_BATCH = set(ITEMS[_BAD_INDEX - _BAD_INDEX % BATCH_SIZE :][:BATCH_SIZE])
_DEATH = r"exit|died|terminated|ended|killed"
_RIGHT = {
    "exception": "is unreadable",  # and not that its class cannot be made again
    "exit": _DEATH,
    "result": r"pickle|generator",
    "worker": _DEATH,
    "program": _DEATH,
}


@dataclass(frozen=True)
class Verdict:
    """A cell of the table: whether it keeps the rule, and what happened in words."""

    passed: bool
    text: str
    badness: tuple[float, ...] = ()


def worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the worst of several repetitions."""
    return max(verdicts, key=lambda verdict: (not verdict.passed, verdict.badness))


def judge(fault: str, outcome: Outcome) -> Verdict:
    """Say what became of a program with a fault."""
    if fault in ("worker", "program") and outcome.killed is None:
        return Verdict(False, f"not comparable: {_Judged(fault, outcome).what_came()}", (9,))
    if fault == "program":
        left = _left(outcome)
        counts = (len(outcome.processes), len(outcome.files))
        return Verdict(not left, f"{left} left" if left else "nothing left", counts)
    return _Judged(fault, outcome).verdict()


def _left(outcome: Outcome) -> str:
    """Count what was left behind."""
    memory = sum(name.startswith("/dev/shm") for name in outcome.files)
    kinds = (
        ("process", "processes", len(outcome.processes)),
        ("object in shared memory", "objects in shared memory", memory),
        ("temporary file", "temporary files", len(outcome.files) - memory),
    )
    return ", ".join(f"{n} {one if n == 1 else many}" for one, many, n in kinds if n)


class _Judged:
    """The outcome of a program that was not killed itself."""

    def __init__(self, fault: str, outcome: Outcome) -> None:
        self._fault = fault
        self._outcome = outcome
        self._errors = [entry for entry in outcome.journal if "error" in entry]
        self._ended = any("end" in entry or "left" in entry for entry in outcome.journal)
        batches = [entry for entry in outcome.journal if "batch" in entry]
        self._torn = sum(entry["torn"] for entry in batches)
        self._waits = [entry["waited"] for entry in batches[1:]]
        self._rows = Counter(row for entry in batches for row in entry["batch"])

    def verdict(self) -> Verdict:
        """Put it together."""
        wrong = self._wrong_rows()
        can_end = self._outcome.status is not None
        texts = [self.what_came(), wrong]
        if self._ended and not can_end:
            texts.append("does not exit")
        if left := _left(self._outcome):
            texts.append(f"{left} left")
        passed = can_end and not wrong and (self._names if self._errors else not self._missing)
        waited = max([*self._waits, *(e["waited"] for e in self._errors)], default=0.0)
        badness = (not can_end, len(self._missing), bool(left), waited)
        return Verdict(passed, "; ".join(filter(None, texts)), badness)

    def what_came(self) -> str:
        """Say what the program got."""
        if self._errors:
            return f"{self._error()}; {self._rest()}"
        if not self._ended:
            return f"hangs, {len(self._missing)} rows lost"
        if self._missing:
            logged = "only logged" if self._outcome.errors.strip() else "silently"
            return f"{len(self._missing)} rows lost, {logged}"
        return f"all rows, {max(self._waits):.2f} s"

    def _error(self) -> str:
        first = self._errors[0]
        right = re.search(_RIGHT[self._fault], _said(first))
        text = "right error" if right else f"`{first['error']}`"
        if first["waited"] > _WORTH_SAYING_SECONDS:
            text += f" after {first['waited']:.0f} s"
        return f"{text}, {self._whom(first)}"

    def _whom(self, error: dict[str, Any]) -> str:
        if self._names:
            return "names the worker" if self._names_worker else "names the item"
        pid = self._fault == "exit" and re.search(r"\bpid\b", _said(error))
        return "names the worker, not the item" if pid else "does not say which"

    def _rest(self) -> str:
        if not self._ended:
            return f"hangs when asked again, {len(self._missing)} rows lost"
        if self._missing <= _BAD_BATCH:
            return "all other batches arrive"
        return f"{len(self._missing)} rows lost"

    @property
    def _names_worker(self) -> bool:
        killed = self._outcome.killed
        return killed is not None and any(
            re.search(rf"\b{killed}\b", _said(entry)) for entry in self._errors
        )

    @property
    def _names(self) -> bool:
        item = any(str(BAD) in _said(entry) for entry in self._errors)
        return item or (self._fault == "worker" and self._names_worker)

    @cached_property
    def _missing(self) -> set[int]:
        return set(ITEMS) - set(self._rows)

    def _wrong_rows(self) -> str:
        twice = sum(count - 1 for count in self._rows.values())
        wrong = self._torn + len(set(self._rows) - set(ITEMS))
        kinds = ((twice, "rows twice"), (wrong, "rows corrupt"))
        return ", ".join(f"{count} {what}" for count, what in kinds if count)


def _said(entry: dict[str, Any]) -> str:
    """Return all that an error says, with its causes and its notes."""
    return f"{entry['error']}: {entry['message']}\n{entry['text']}"

"""How much better a network does on what it was trained on than on what it was not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe


def gap_rows(rows: Sequence[Row], probes: Mapping[str, Probe]) -> list[Row]:
    """`generalization_gap` of every test probe against every training probe, from their rows of accuracy and loss.

    Accuracy of training minus that of test, and loss of test minus that of training, so that above 0 always means worse
    on the test probe. The interval of the difference comes from those of the two sides, which share no samples
    (Newcombe 1998, method 10; Zou and Donner 2008, eq. 4). Nothing where either side is not known.
    """
    whole = {(row.metric, row.probe): row for row in rows if not row.part and row.status == "ok"}
    roles = {role: [name for name in probes if probes[name].role == role] for role in ("train", "test")}
    found = []
    for metric in ("accuracy", "loss"):
        for train in roles["train"]:
            for test in roles["test"]:
                trained, tested = whole.get((metric, train)), whole.get((metric, test))
                if trained is not None and tested is not None:
                    greater, smaller = (trained, tested) if metric == "accuracy" else (tested, trained)
                    found.append(_gap(greater, smaller, test, f"of={metric};against={train}"))
    return found


def _gap(greater: Row, smaller: Row, probe: str, part: str) -> Row:
    gap = greater.value - smaller.value
    low = gap - math.hypot(greater.value - greater.low, smaller.high - smaller.value)
    high = gap + math.hypot(greater.high - greater.value, smaller.value - smaller.low)
    known = math.isfinite(low) and math.isfinite(high)
    return Row(
        "generalization_gap", gap, probe=probe, part=part, n=min(greater.n, smaller.n), unit=greater.unit,
        low=low if known else math.nan, high=high if known else math.nan,
        estimator="95 % from both sides' intervals" if known else "", convention=greater.convention,
    )  # fmt: skip

"""Which methods failed on this network, for every figure that shows their maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

ANALYSIS = "attribution_trust"


def failed_methods(view: View, probe: str) -> dict[str, str]:
    """Why each method failed its tests at the last checkpoint of this run that was tested, by its name; none where none was.

    Reads what `attribution_trust` filed for the run; where it did not run nothing is known, and nothing is said.
    """
    units = [
        unit
        for unit in view.store.units()
        if unit.scope == "checkpoint"
        and unit.analysis == ANALYSIS
        and unit.run == view.run
        and unit.step in view.steps
    ]
    if not units:
        return {}
    last = max(unit.step for unit in units)
    rows = view.store.rows([unit for unit in units if unit.step == last])
    rows = rows[(rows["metric"] == "attribution_trusted") & (rows["probe"] == probe)]
    rows = rows[(rows["status"] == "ok") & (rows["value"] == 0)]
    return {
        part.removeprefix("method="): reason for part, reason in zip(rows["part"], rows["reason"], strict=True)
    }

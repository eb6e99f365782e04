"""The derivative of a layer's last state by its earlier states, of a few samples of a probe: norms, arrays and rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import NamedArray
from stratascope.tasks.sequence.lags import marked_lags, places_back
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_samples

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.tasks.sequence.cell_jacobians import CellSteps, StateJacobian
    from stratascope.tasks.sequence.recurrent_capture import RecurrentTrace
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

NORMS = ("full_largest", "full_typical", "direct_largest", "direct_typical")
_BETWEEN = (3, 7, 15, 30, 70, 150, 300, 700)


@dataclass(frozen=True)
class LayerJacobian:
    """Of one layer; NaN where a sample has no such step."""

    layer: str
    cell: str
    lags: list[int]
    norms: np.ndarray
    """float64 (norm, sample, lag), in the order of `NORMS`; of the direct path NaN where there is no gate."""
    sample_id: np.ndarray
    exact: bool


def measured_jacobians(
    network: SequenceNetwork, probe: Probe, options: SequenceOptions, count: int, exact_units: int
) -> Iterator[LayerJacobian]:
    """For each recurrent layer, of the first `count` measured samples. Raises DoesNotApply."""
    import torch

    from stratascope.tasks.sequence.cell_jacobians import state_jacobian
    from stratascope.tasks.sequence.gradient_tables import reads_backwards, real_steps
    from stratascope.tasks.sequence.recurrent_capture import captured_states

    samples = sequence_samples(probe, options)
    part = samples.given.part(network.batches_of(samples.given, count)[0])
    with torch.no_grad(), captured_states(network) as recorder:
        network.run(part)
        traces = recorder.take(len(part))
    for trace in traces:
        places = places_back(real_steps(trace, part), reads_backwards(trace.layer))
        lags = spread_lags(places.shape[1])
        found = state_jacobian(cell_steps(network, trace, places), lags, exact_units, options.seed)
        norms = np.stack([_known(found, name, places) for name in NORMS])
        yield LayerJacobian(trace.layer, trace.cell, lags, norms, part.sample_id, found.exact)


def spread_lags(count: int) -> list[int]:
    """Some of the lags 0 to `count` - 1, twice as close as the marked ones."""
    return sorted({*marked_lags(count), *(lag for lag in _BETWEEN if lag < count)})


def cell_steps(network: SequenceNetwork, trace: RecurrentTrace, places: np.ndarray) -> CellSteps:
    """What `trace` says, in double precision, by lag: `places` (sample, lag) as of `places_back`."""
    import torch

    from stratascope.tasks.sequence.cell_jacobians import CellSteps
    from stratascope.tasks.sequence.recurrent_cells import cell_weights

    at = torch.from_numpy(np.maximum(places, 0)).to(trace.hidden.device)
    name = trace.layer.partition("#")[0]
    modules = dict(network.network.named_modules())
    module, suffix = (name, "") if name in modules else name.rpartition(".")[::2]
    weights = cell_weights(modules[module], suffix)

    def by_lag(values: Tensor) -> Tensor:
        return values.gather(1, at[:, :, None].expand(-1, -1, values.shape[-1])).double()

    def double(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.detach().double()

    return CellSteps(
        trace.cell, by_lag(trace.hidden), {gate: by_lag(values) for gate, values in trace.gates.items()},
        weights.recurrent.detach().double(), None if trace.state is None else by_lag(trace.state),
        double(weights.projection), double(weights.recurrent_bias),
    )  # fmt: skip


def _known(found: StateJacobian, name: str, places: np.ndarray) -> np.ndarray:
    """float64 (sample, lag)."""
    values = getattr(found, name)
    there = places[:, found.lags] >= 0
    return np.where(there, np.nan if values is None else values.cpu().numpy(), np.nan)


def jacobian_arrays(probe: str, found: LayerJacobian) -> dict[str, NamedArray]:
    """`<probe>/<layer>/jacobian` (norm, jacobian_sample, jacobian_lag)."""
    about = {
        "norm": list(NORMS), "lag": found.lags, "cell": found.cell, "exact": found.exact,
        "sample_id": [str(name) for name in found.sample_id.tolist()],
    }  # fmt: skip
    place = f"{probe}/{encode_path_part(found.layer)}/jacobian"
    dims = ("norm", "jacobian_sample", "jacobian_lag")
    return {place: NamedArray(dims, found.norms.astype(np.float32), about)}


def jacobian_rows(probe: str, found: LayerJacobian) -> Iterator[Row]:
    """The largest singular values at the marked lags; the direct path has none in a plain network."""
    estimator = "median over samples; low and high are the smallest and the largest"
    method = "all singular values" if found.exact else "power iteration"
    marked = marked_lags(found.lags[-1] + 1)
    for path in ("full", "direct"):
        own = found.norms[NORMS.index(f"{path}_largest")]
        if not np.isfinite(own).any():
            reason = "a plain recurrent layer has no gate that keeps its state"
            yield Row("state_jacobian_norm", layer=found.layer, probe=probe, part=f"path={path}", status="does_not_apply", reason=reason)  # fmt: skip
            continue
        for place, lag in enumerate(found.lags):
            values = own[:, place][np.isfinite(own[:, place])]
            if lag in marked and len(values):
                yield Row(
                    "state_jacobian_norm", float(np.median(values)), layer=found.layer, probe=probe,
                    part=f"lag={lag};path={path}", low=float(values.min()), high=float(values.max()), n=len(values),
                    estimator=estimator, convention=method,
                )  # fmt: skip

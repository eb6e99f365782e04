"""The pictures of several runs' memory: gradient by lag, answers over the training, and both as maps side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import natural_order, plain_number, plain_step, shortened
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded
from stratascope.tasks.sequence.lag_pictures import BACK, Curve, lag_curves

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_RUNS, _MAPS, _COLUMNS = 8, 6, 24
_FLOOR = -6.0
_WORST = -1.0
"""A coefficient of determination below this says no more than that the answers are far off."""
_CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "plain, tanh", "rnn_relu": "plain, ReLU"}


@dataclass(frozen=True)
class _Run:
    name: str
    gradient: np.ndarray
    """(step, lag)."""
    newest: np.ndarray
    """(band, lag)."""
    quality: np.ndarray
    about: dict[str, Any]

    @property
    def title(self) -> str:
        cell = _CELLS[self.about["cell"]]
        return self.name if cell.lower() == self.name.lower() else f"{self.name} ({cell})"

    @property
    def shares(self) -> np.ndarray:
        """(step, lag): by the value at lag 0."""
        with np.errstate(all="ignore"):
            return self.gradient / self.gradient[:, :1]


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe, the leading one first."""
    arrays = view.arrays()
    probes = {path.split("/")[0] for path in arrays}
    lead = leading_probe(view, probes) if probes else ""
    for probe in sorted(probes, key=lambda name: (name != lead, name)):
        names = sorted({path.split("/")[1] for path in arrays if path.split("/")[0] == probe}, key=natural_order)
        runs = [_run(view, probe, name, arrays) for name in names]
        runs = [run for run in runs if np.isfinite(run.shares[-1]).sum() > 1]
        runs = [runs[place] for place in even_choice(range(len(runs)), _RUNS)]
        if len(runs) < 2:
            continue
        yield _curves(probe, runs, probe == lead)
        yield from _answers(probe, runs, options)
        if max(len(run.gradient) for run in runs) > 1:
            yield _maps(probe, runs[:_MAPS])


def _run(view: View, probe: str, name: str, arrays: dict[str, np.ndarray]) -> _Run:
    gradient, newest, quality = (arrays[f"{probe}/{name}/{kind}"] for kind in ("gradient", "newest", "quality"))
    about = view.store.array_info(join_path("cohort", view.analysis, probe, name, "gradient"))[3]
    return _Run(name, gradient, newest, quality, about)


def _last(run: _Run, lag: int) -> float:
    return float(run.shares[-1, lag])


def _common(runs: Sequence[_Run]) -> int:
    """The longest lag that all runs have at their newest step."""
    return min(int(np.flatnonzero(np.isfinite(run.shares[-1]))[-1]) for run in runs)


def _curves(probe: str, runs: Sequence[_Run], leads: bool) -> Figure:
    lag = _common(runs)
    curves, table = {}, {name: [] for name in ("run", "step", "lag", "share", "low", "high")}  # type: dict[str, Curve], dict[str, list[Any]]
    for run in runs:
        known = np.flatnonzero(np.isfinite(run.newest[0]))
        band = run.newest[:, known] / run.newest[0, 0]
        curves[run.title] = Curve.banded(known.tolist(), band)
        for column, values in zip(table, ([run.name] * len(known), [run.about["step"][-1]] * len(known), known.tolist(), *(line.tolist() for line in band)), strict=True):  # fmt: skip
            table[column] += values
    best, worst = max(runs, key=lambda run: _last(run, lag)), min(runs, key=lambda run: _last(run, lag))
    states = sorted({f"{_CELLS[run.about['cell']]}: {run.about['state']} state" for run in runs})
    numbers = {
        "states": "; ".join(states), "lag": lag, "best": best.title, "most": _plain(_last(best, lag)), "worst": worst.title,
        "least": _plain(_last(worst, lag)), "ratio": _factor(_last(best, lag), _last(worst, lag)), "count": len(runs),
    }  # fmt: skip
    return worded(
        _WORDS["gradient"], numbers, key=figure_key("gradient", probe), title=f"How far back the gradient reaches, probe {probe}",
        svg=lag_curves(curves, BACK, "share of the gradient at lag 0", logarithmic=True, height=3.2), probe=probe,
        headline=leads, table=table,
    )  # fmt: skip


def _factor(most: float, least: float) -> str:
    return f"{_plain(most / least)} times as much" if least > 0 else "all there is"


def _plain(value: float) -> str:
    return plain_number(float(f"{value:.2g}"))


def _answers(probe: str, runs: Sequence[_Run], options: Any) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    known = [run for run in runs if np.isfinite(run.quality).any()]
    measures = {run.about["measure"] for run in known}
    if not known or len(measures) > 1:
        return
    measure = measures.pop()
    series = {
        run.title: (list(run.about["step"]), np.maximum(run.quality.astype(float), _WORST).tolist())
        for run in known
    }
    ends = {run.title: float(run.quality[np.isfinite(run.quality)][-1]) for run in known}
    solved = [name for name, value in ends.items() if value >= options.solved_above]
    numbers = {
        "measure": measure, "worse": "; what is below -1 is drawn as -1" if measure != "accuracy" else "", "above": options.solved_above,
        "ends": "; ".join(f"{name} {value:.2f}" for name, value in ends.items()),
        "solved": f"{len(solved)} of {len(known)} end at {options.solved_above:g} or above" + (f": {', '.join(solved)}." if solved else "."),
    }  # fmt: skip
    yield worded(
        _WORDS["answers"], numbers, key=figure_key("answers", probe), title=f"{measure.capitalize()} over training, probe {probe}",
        svg=lines(series, measure, height=3.4), probe=probe,
        table={
            "run": [run.name for run in known for _ in run.about["step"]], "step": [step for run in known for step in run.about["step"]],
            measure.replace(" ", "_"): [float(value) for run in known for value in run.quality],
        },
    )  # fmt: skip


def _maps(probe: str, runs: Sequence[_Run]) -> Figure:
    """A panel for each run: lag downwards, training to the right, all on one scale of colours."""
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import INK, quiet, to_svg

    across = min(3, len(runs))
    down = -(-len(runs) // across)
    canvas = Canvas(figsize=(6.4, 0.8 + 2.5 * down), dpi=72, layout="constrained")
    panels = canvas.subplots(down, across, sharey=True, squeeze=False).ravel()
    picture: Any = None
    table: dict[str, list[Any]] = {name: [] for name in ("run", "step", "lag", "share")}
    longest = max(run.gradient.shape[1] for run in runs)
    brightest = max(1.0, *(float(np.nanmax(run.shares[np.isfinite(run.shares)])) for run in runs))
    for axes, run in zip(panels, runs, strict=False):
        places = even_choice(range(len(run.gradient)), _COLUMNS)
        shares = run.shares[places].T
        with np.errstate(all="ignore"):
            grid = np.where(np.isnan(shares), np.nan, np.maximum(np.log10(np.maximum(shares, 1e-30)), _FLOOR))
        quiet(axes)
        axes.grid(False)
        picture = axes.imshow(np.ma.masked_invalid(grid), aspect="auto", cmap="cividis", vmin=_FLOOR, vmax=float(np.log10(brightest)), interpolation="none")  # fmt: skip
        axes.set_ylim(longest - 0.5, -0.5)
        steps = [run.about["step"][place] for place in places]
        marks = even_choice(range(len(steps)), 3)
        axes.set_xticks(marks, [plain_step(steps[mark]) for mark in marks], fontsize=9)
        axes.set_title(shortened(run.title, 24), fontsize=10, color=INK, loc="left")
        table["run"] += [run.name] * grid.size
        table["step"] += np.tile(steps, len(grid)).tolist()
        table["lag"] += np.repeat(np.arange(len(grid)), len(steps)).tolist()
        table["share"] += shares.ravel().tolist()
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    for axes in panels[::across]:
        axes.set_ylabel(BACK)
    for axes in panels[max(0, len(runs) - across) : len(runs)]:
        axes.set_xlabel("training step")
    bar = canvas.colorbar(picture, ax=list(panels), location="top", shrink=0.55, aspect=30, pad=0.02)
    bar.set_label("share of the gradient at lag 0, power of ten", fontsize=10, color=INK)
    bar.ax.tick_params(labelsize=9, colors=INK, length=2)
    bar.outline.set_visible(False)
    lag = _common(runs)
    gains = {run.title: _gain(run, lag) for run in runs}
    most = max(gains, key=lambda name: gains[name])
    numbers = {
        "lag": lag, "most": most, "change": gains[most],
        "rising": sum(gain > 0 for gain in gains.values()), "count": len(gains),
    }  # fmt: skip
    return worded(
        _WORDS["maps"], numbers, key=figure_key("maps", probe), title=f"Gradient by lag over training, run by run, probe {probe}",
        svg=to_svg(canvas), probe=probe, table=table,
    )  # fmt: skip


def _gain(run: _Run, lag: int) -> float:
    """By how many powers of ten the share at `lag` grew from the first checkpoint to the last."""
    first, last = (max(float(run.shares[place, lag]), 1e-30) for place in (0, -1))
    return float(np.log10(last / first))


_WORDS: dict[str, dict[str, str]] = {
    "gradient": {
        "shows": "Gradient of the loss by the last recurrent layer's state so many steps before it, as a share of that at lag 0, at the newest checkpoint of each of {count} runs; pale bands are 95 % intervals over samples. The state is that which carries the memory ({states}).",
        "reading": "What falls along a straight line is forgotten by the same factor at every step, and no training can reach behind it. A gated network keeps its line flat where a gate has learned to stay open: that is how it can keep what a plain one forgets.",
        "caution": "{lag} steps back the gradient is {most} of that at lag 0 in {best} and {least} in {worst}: {ratio}. Each network was trained on its own; a plain one that never left the start shows the start's gradient.",
        "audience": "For everybody who must choose between a plain network, a GRU and an LSTM.",
        "practitioner": "Take the line of the network that you can afford and look at the lag that your task needs: below a thousandth or so, it will hardly be learned.",
        "researcher": "Shares take out the scale of loss and state, not the direction: a flat line may carry one number or many. One run of each kind is one draw of the seed.",
    },
    "answers": {
        "shows": "Each run's {measure} over its training steps, on the same probe{worse}.",
        "reading": "A jump from chance to nearly all right is the moment at which a network found the distant cue. Runs that stay flat have not found it, and the gradients beside tell whether they could have.",
        "caution": "At the end: {ends}. {solved} Steps of different runs are compared as they are, whatever a step costs.",
        "audience": "For those who want the outcome before the mechanism.",
        "practitioner": "If only some of the runs solve the task, hold the training budget against the gradient: more steps help a slow network, not one whose gradient is gone.",
        "researcher": "A threshold on a score turns gradual progress into a jump; see the loss as well before you speak of a transition.",
    },
    "maps": {
        "shows": "The same share of the gradient, for every lag (downwards) and checkpoint (to the right), run by run on one scale of colours; below a millionth all is drawn alike.",
        "reading": "A network in which brightness grows downwards learns to reach back while it trains. One whose picture does not change from left to right keeps the reach that it was born with.",
        "caution": "From its first to its last checkpoint the share {lag} steps back changed by {change:+.1f} powers of ten in {most}, the most; it grew in {rising} of {count} runs.",
        "audience": "For those who ask when, not only whether.",
        "practitioner": "If the reach comes only late, the early training was spent on what is near: a forget bias of one at the start gives it from the beginning.",
        "researcher": "Columns are checkpoints, not equal spans of training. Compare with the answers: reach that precedes them is cause or company, reach that follows is use.",
    },
}

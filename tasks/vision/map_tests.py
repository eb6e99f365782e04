"""Whether a map says what the network looks at: change the picture by it, and watch the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(pictures float32 (copy, channel, y, x), the sample of each (copy,)) → float64 (copy,): what is asked about."""

SHARES = tuple(round(0.1 * number, 1) for number in range(11))
"""Of the pixels, exchanged in the curves of deletion and insertion."""
REMOVED = (0.2, 0.4, 0.6, 0.8)
"""Of the pixels, removed in ROAD."""
_STRAIGHT, _DIAGONAL = 1 / 6, 1 / 12


def ranks(importance: np.ndarray) -> np.ndarray:
    """int64 (sample, place): the places of maps (sample, y, x), the most important first; of equal ones the first."""
    return np.argsort(-importance.reshape(len(importance), -1), axis=1, kind="stable")


def exchanged(inputs: np.ndarray, others: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """`inputs` (sample, channel, y, x) with the first `share` of the places in `order` taken from `others`."""
    count = round(share * order.shape[1])
    mixed = inputs.reshape(*inputs.shape[:2], -1).copy()
    from_others = others.reshape(*others.shape[:2], -1)
    for row in range(len(mixed)):
        places = order[row, :count]
        mixed[row][:, places] = from_others[row][:, places]
    return mixed.reshape(inputs.shape)


def exchange_curves(
    score: Score, inputs: np.ndarray, baseline: np.ndarray, importance: np.ndarray, shares: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Deletion and insertion curves, float64 (sample, share) each. Petsiuk et al. 2018, section 3.

    Deletion puts the baseline where the map is highest, a growing share of the places; insertion starts at the baseline
    and puts the picture there.
    """
    order, rows = ranks(importance), np.arange(len(inputs))
    deletion = np.stack([score(exchanged(inputs, baseline, order, share), rows) for share in shares], axis=1)
    insertion = np.stack([score(exchanged(baseline, inputs, order, share), rows) for share in shares], axis=1)
    return deletion, insertion


def area_below(curves: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """float64 (sample,): of curves (sample, share), by the trapezoidal rule, over the span of the shares."""
    widths = np.diff(np.asarray(shares, np.float64))
    return ((curves[:, 1:] + curves[:, :-1]) / 2 * widths).sum(1) / widths.sum()


def imputed(picture: np.ndarray, removed: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """float32 (channel, y, x): `picture` with the `removed` (y, x) places filled from their neighbours. Rong et al. 2022, eq. 5.

    Each removed place is the weighted mean of its eight neighbours (a sixth for straight ones, a twelfth for diagonal ones,
    scaled up at the border), removed ones among them, all at once; then `noise` (channel, y, x) is added there. What the mask
    looks like tells the network less than a flat colour would.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import spsolve

    places = np.argwhere(removed)
    if not len(places):
        return picture.astype(np.float32)
    number = np.full(removed.shape, -1)
    number[removed] = np.arange(len(places))
    rows, columns, values = [np.arange(len(places))], [np.arange(len(places))], [np.ones(len(places))]
    known = np.zeros((len(places), len(picture)))
    weight_sum = np.zeros(len(places))
    height, width = removed.shape
    offsets = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    neighbours = []
    for y, x in offsets:
        near = places + (y, x)
        inside = (near >= 0).all(1) & (near[:, 0] < height) & (near[:, 1] < width)
        weight = _STRAIGHT if 0 in (y, x) else _DIAGONAL
        weight_sum[inside] += weight
        neighbours.append((near, inside, weight))
    for near, inside, weight in neighbours:
        mine = np.flatnonzero(inside)
        at = near[mine]
        other = number[at[:, 0], at[:, 1]]
        share = weight / weight_sum[mine]
        unknown = other >= 0
        rows.append(mine[unknown])
        columns.append(other[unknown])
        values.append(-share[unknown])
        sure = ~unknown
        known[mine[sure]] += share[sure, None] * picture[:, at[sure, 0], at[sure, 1]].T
    if len(places) == removed.size:
        filled = np.repeat(picture.reshape(len(picture), -1).mean(1)[None], len(places), 0)
    else:
        entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
        system = csr_matrix(entries, shape=(len(places), len(places)))
        filled = np.asarray(spsolve(system.tocsc(), known)).reshape(len(places), len(picture))
    found = picture.astype(np.float64).copy()
    found[:, places[:, 0], places[:, 1]] = filled.T + noise[:, places[:, 0], places[:, 1]]
    return found.astype(np.float32)


def road_scores(
    score: Score, inputs: np.ndarray, importance: np.ndarray, noise: np.ndarray, shares: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(most relevant first, least relevant first), float64 (sample, share) each: the score after removing that share.

    `noise` has the shape of `inputs`. A good map falls fast in the first and slowly in the second. Rong et al. 2022.
    """
    order, rows = ranks(importance), np.arange(len(inputs))
    found = []
    for places in (order, order[:, ::-1]):
        columns = []
        for share in shares:
            count = round(share * places.shape[1])
            changed = []
            for row in rows:
                removed = np.zeros(inputs.shape[2] * inputs.shape[3], bool)
                removed[places[row, :count]] = True
                changed.append(imputed(inputs[row], removed.reshape(inputs.shape[2:]), noise[row]))
            columns.append(score(np.stack(changed), rows))
        found.append(np.stack(columns, axis=1))
    return found[0], found[1]


def infidelity(score: Score, inputs: np.ndarray, maps: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """float64 (sample,): E[(β I·φ − (f(x) − f(x − I)))²] / E[(f(x) − f(x − I))²] for the best β. Yeh et al. 2019, def. 2.1 and eq. 3.

    `noise` (sample, draw, channel, y, x) are the perturbations I, `maps` (sample, channel, y, x) the attributions φ. 0 means
    that the map tells every change of the score up to one factor, 1 that it tells nothing; NaN where no score changes.
    """
    count, draws = noise.shape[:2]
    rows = np.arange(count)
    changes = np.empty((count, draws))
    before = score(inputs, rows)
    for draw in range(draws):
        changes[:, draw] = before - score((inputs - noise[:, draw]).astype(np.float32), rows)
    told = np.einsum("sdcyx,scyx->sd", noise.astype(np.float64), maps.astype(np.float64))
    products, sizes, total = (told * changes).sum(1), (told**2).sum(1), (changes**2).sum(1)
    explained = np.divide(products**2, sizes, out=np.zeros(count), where=sizes > 0)
    return np.divide(total - explained, total, out=np.full(count, np.nan), where=total > 0).clip(0, 1)


def confidence_drop(score: Score, inputs: np.ndarray, baseline: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """float64 (sample,): how much the score falls where only what the map marks is left. Chattopadhyay et al. 2018, section 4.1.

    The map above zero, divided by its largest value, mixes the picture with the baseline; a map that is nowhere above zero
    leaves the baseline alone.
    """
    positive = np.maximum(importance, 0)
    largest = positive.max((1, 2), keepdims=True)
    share = np.divide(positive, largest, out=np.zeros_like(positive), where=largest > 0)[:, None].astype(
        np.float32
    )
    rows = np.arange(len(inputs))
    return score(inputs, rows) - score((share * inputs + (1 - share) * baseline).astype(np.float32), rows)

"""Superpixels: a picture in few coherent pieces, found from the picture alone and so the same for every checkpoint."""

from __future__ import annotations

import numpy as np

_COLOUR = 0.8
"""How much one standard deviation of the colours counts beside the width of one piece."""


def superpixels(picture: np.ndarray, count: int) -> np.ndarray:
    """int64 (y, x): the piece, from 0, of each place of a float `picture` (channel, y, x); about `count` pieces.

    K-means on colour and place that starts from a regular grid, in the manner of SLIC (Achanta et al. 2012): without
    chance, for any number of channels. A picture of one colour gives the grid. Pieces need not hang together.
    """
    from sklearn.cluster import KMeans

    channels, height, width = picture.shape
    count = max(1, min(count, height * width))
    rows = int(np.clip(round(np.sqrt(count * height / width)), 1, min(height, count)))
    columns = int(np.clip(round(count / rows), 1, width))
    place = np.indices((height, width)).reshape(2, -1).T.astype(np.float64)
    colour = picture.reshape(channels, -1).T.astype(np.float64)
    colour = (colour - colour.mean(0)) / max(float(colour.std(0).max()), 1e-12)
    piece = np.sqrt(height * width / (rows * columns))
    points = np.concatenate([colour * _COLOUR, place / piece], 1)
    grid = (place[:, 0] * rows // height * columns + place[:, 1] * columns // width).astype(np.int64)
    start = np.stack([points[grid == number].mean(0) for number in range(rows * columns)])
    if len(start) < 2:
        return np.zeros((height, width), np.int64)
    found = KMeans(len(start), init=start, n_init=1, max_iter=10, random_state=0).fit_predict(points)
    return np.unique(found, return_inverse=True)[1].reshape(height, width)

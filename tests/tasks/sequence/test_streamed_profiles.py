"""Curves added up batch by batch: the plain mean, honest intervals, and nothing of how the batches were cut."""

from __future__ import annotations

import numpy as np

from stratascope.tasks.sequence.streamed_profiles import StreamedProfile


def test_batches_and_their_order_are_no_part_of_the_result():
    values = np.random.default_rng(0).normal(size=(50, 6))
    values[3:9, 4:] = np.nan
    names = np.array([f"sample {number}" for number in range(50)])
    whole, parts = StreamedProfile(60), StreamedProfile(60)
    whole.add(values, names)
    order = np.random.default_rng(1).permutation(50)
    for some in (order[:7], order[7:30], order[30:]):
        width = 4 if np.isnan(values[some, 4:]).all() else 6
        parts.add(values[some][:, :width], names[some])
    np.testing.assert_allclose(parts.curves, whole.curves, atol=1e-12)
    np.testing.assert_allclose(whole.mean, np.nanmean(values, 0))
    assert whole.samples == 50


def test_the_band_is_that_of_the_mean():
    values = np.random.default_rng(2).normal(size=(400, 1))
    profile = StreamedProfile(400)
    profile.add(values, np.arange(400))
    low, high = profile.band()
    assert np.isclose(high[0] - low[0], 2 * 1.96 * values.std() / 20, rtol=0.15)
    value, least, most = profile.number(lambda line: 3 * float(line[0]))
    np.testing.assert_allclose([value, least, most], 3 * np.array([profile.mean[0], low[0], high[0]]))

"""Little networks that read pictures, and a real store of one at three steps of its training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.tasks.vision.image_network import ImageNetwork
from tests.tasks.conftest import LittleAudit

CLASSES = ("left", "right", "top", "bottom")


def bars(
    count: int, seed: int, channels: int = 1, height: int = 12, width: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 (sample, channel, y, x) from 0 to 1 with a bright bar at one of four borders, and its number."""
    generator = np.random.default_rng(seed)
    targets = np.arange(count) % 4
    inputs = generator.uniform(0, 0.4, (count, channels, height, width)).astype(np.float32)
    for picture, target in zip(inputs, targets, strict=True):
        depth = int(generator.integers(2, 4))
        place = [np.s_[:, :, :depth], np.s_[:, :, -depth:], np.s_[:, :depth], np.s_[:, -depth:]][target]
        picture[place] += 0.6
    return inputs, targets


def probe_of(inputs: np.ndarray) -> Probe:
    """Samples without targets, called by their numbers."""
    return Probe("test", "test", inputs, None, np.arange(len(inputs)), (), "digest")


def wrapped(network: nn.Module, **model) -> ImageNetwork:
    """`network` in evaluation mode, as analyses get it."""
    return ImageNetwork(network.eval(), ModelSpec(factory="none:none", **model))


@pytest.fixture(scope="session")
def pictured_audit(tmp_path_factory) -> LittleAudit:
    """A convolutional network at three steps of its training on bars, with probes `train` and `test`; 12 × 16, 1 channel.

    Nothing but the capture is done; tests may run analyses on it, each with options of its own.
    """
    from stratascope.tasks.models import convnet

    arguments = {"channels": 1, "widths": [6, 8], "outputs": 4}
    audit = LittleAudit(tmp_path_factory.mktemp("pictured"), "stratascope.tasks.models:convnet", arguments)
    scaling = np.array([0.25, 0.3])
    given = {}
    for name, role, count, seed in (("train", "train", 96, 0), ("test", "test", 48, 1)):
        raw, targets = bars(count, seed)
        inputs = ((raw - scaling[0]) / scaling[1]).astype(np.float32)
        audit.probe(name, role, CLASSES, inputs=inputs, targets=targets, denormalize=scaling)
        given[name] = torch.from_numpy(inputs), torch.from_numpy(targets)
    torch.manual_seed(0)
    network = convnet(**arguments)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for step in range(41):
        if step in (0, 10, 40):
            audit.checkpoint(step, network.eval())
            network.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(given["train"][0]), given["train"][1]).backward()
        optimizer.step()
    audit.capture()
    return audit

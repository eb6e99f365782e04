"""The network with its weights shuffled, from the outputs downwards: what a map that depends on the weights must notice."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.image_network import ImageNetwork


def weighted_modules(network: ImageNetwork) -> list[str]:
    """Names of the modules that hold weights of two or more axes, in the order of registration."""
    return [
        name
        for name, module in network.network.named_modules()
        if any(item.ndim > 1 for item in module.parameters(recurse=False))
    ]


def cascade(network: ImageNetwork, shares: Sequence[float], seed: int) -> Iterator[tuple[float, ImageNetwork]]:
    """(share, network): copies in which the last `share` of the weighted modules have their weights shuffled.

    Each tensor keeps its values and loses their places, so that scales stay those of the trained network; norms keep their
    statistics. Which way it is shuffled depends on its name and the seed alone, so every checkpoint is shuffled alike. Adebayo
    et al. 2018, section 3. Raises DoesNotApply where there is nothing to shuffle, or the network cannot be copied.
    """
    import xxhash

    names = weighted_modules(network)
    if not names:
        raise DoesNotApply("the network has no weights that could be shuffled.")
    try:
        copied = copy.deepcopy(network.network)
    except Exception as error:
        raise DoesNotApply(f"the network cannot be copied: {type(error).__name__}.") from None
    shuffled: set[str] = set()
    for share in sorted(shares):
        wanted = names[len(names) - max(1, round(share * len(names))) :]
        for name in wanted:
            if name in shuffled:
                continue
            shuffled.add(name)
            module = copied.get_submodule(name)
            for key, item in module.named_parameters(recurse=False):
                number = xxhash.xxh3_64_intdigest(f"{name}.{key}".encode(), seed=seed)
                order = np.random.default_rng(number).permutation(item.numel())
                with torch.no_grad():
                    flat = item.detach().reshape(-1)[torch.from_numpy(order).to(item.device)]
                    item.copy_(flat.reshape(item.shape))
        yield share, replace(network, network=copied)

"""How a step on one sample's loss changes another's: inner products of the two samples' gradients (TracIn).

Pruthi et al. 2020, section 3.2: the influence of a training sample on a test sample is the sum over checkpoints of the step size
times the inner product of the two gradients. Here the inner products of one checkpoint; `influence_over_training` sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.vision.sample_gradients import (
    LossKind,
    batch_losses,
    inner_products,
    sample_gradients,
    squared_norms,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratascope.tasks.vision.image_network import ImageNetwork

_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class Products:
    """Inner products of gradients at one checkpoint."""

    pairs: np.ndarray
    """float64 (test sample, training sample)."""
    own: np.ndarray
    """float64 (training sample,): squared norms, the self-influence before the step size."""


def products_of_all(
    network: ImageNetwork,
    test: GivenSamples,
    train: GivenSamples,
    kind: LossKind,
    parameters: dict[str, Tensor],
    most: int,
) -> Products:
    """Of the gradients by all `parameters`, exact; those of the test samples are held, training samples pass by."""
    import torch

    weights = sum(item.numel() for item in parameters.values())
    if 4 * weights * len(test) > _MOST_BYTES:
        raise DoesNotApply(
            f"the gradients of {len(test)} test samples by {weights:,} weights need more than {_MOST_BYTES >> 20} MiB: take "
            "fewer samples, or `weights: last_layer`."
        )
    held = [found for _, found in sample_gradients(network, test, kind, parameters, most)]
    wanted = {name: torch.cat([part[name] for part in held]) for name in parameters}
    pairs, own = [], []
    for _, found in sample_gradients(network, train, kind, parameters, most):
        pairs.append(inner_products(wanted, found))
        own.append(np.sum(list(squared_norms(found).values()), axis=0))
    return Products(np.concatenate(pairs, axis=1), np.concatenate(own))


@dataclass(frozen=True)
class LastLayerGradients:
    """The gradients by a linear layer's weights, never written out: ∂ℓ/∂W = Σ_p δ_p aᵀ_p over the layer's places."""

    errors: Tensor
    """float64 (sample, place, output): the gradients of each sample's loss by what the layer puts out, δ."""
    inputs: Tensor
    """float64 (sample, place, feature): what enters it, a; with a one behind where it has a bias."""

    def pairs(self, other: LastLayerGradients) -> np.ndarray:
        """float64 (sample, other sample): Σ_pq (δ_p · δ'_q)(a_p · a'_q)."""
        import torch

        if self.errors.shape[1] == other.errors.shape[1] == 1:
            return (self.errors[:, 0] @ other.errors[:, 0].T * (self.inputs[:, 0] @ other.inputs[:, 0].T)).numpy()
        found = torch.empty(len(self.errors), len(other.errors), dtype=torch.float64)
        for place in range(len(self.errors)):
            both = torch.einsum("po,nqo->npq", self.errors[place], other.errors)
            both = both * torch.einsum("pf,nqf->npq", self.inputs[place], other.inputs)
            found[place] = both.sum((1, 2))
        return found.numpy()

    def own(self) -> np.ndarray:
        """float64 (sample,): squared norms."""
        import torch

        errors = torch.einsum("npo,nqo->npq", self.errors, self.errors)
        return (errors * torch.einsum("npf,nqf->npq", self.inputs, self.inputs)).sum((1, 2)).numpy()


def last_layer_gradients(
    network: ImageNetwork, samples: GivenSamples, kind: LossKind, layer: str, most: int
) -> LastLayerGradients:
    """Of the linear layer called `layer`, from one pass forward and one back for at most `most` samples at a time.

    Raises DoesNotApply where it is not run once in each pass, or the samples are not its first axis.
    """
    import torch

    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be watched: take `weights: all`.")
    module = dict(network.network.named_modules())[layer]
    errors, inputs = [], []
    size = network.fixed_batch_size or most
    for start in range(0, len(samples), size):
        part = samples.part(slice(start, start + size))
        with torch.enable_grad(), _watched(module) as seen:
            losses = batch_losses(network, part, kind)
            if len(seen) != 1:
                times = "never" if not seen else f"{len(seen)} times"
                raise DoesNotApply(f"layer {layer!r} is run {times} in a pass: take `weights: all`.")
            entered, left = seen[0]
            if len(left) < len(part) or not losses.requires_grad:
                raise DoesNotApply(f"the loss carries no gradient to layer {layer!r}: take `weights: all`.")
            (error,) = torch.autograd.grad(losses.sum(), [left])
        count = len(part)
        errors.append(error[:count].reshape(count, -1, error.shape[-1]).double().cpu())
        given = entered.detach()[:count].reshape(count, -1, entered.shape[-1]).double().cpu()
        bias = getattr(module, "bias", None) is not None
        inputs.append(torch.cat([given, torch.ones_like(given[..., :1])], -1) if bias else given)
    return LastLayerGradients(torch.cat(errors), torch.cat(inputs))


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """(input, output) of each call of `module` while it lasts; the outputs carry a gradient. The hook is removed."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output if output.requires_grad else output.detach().requires_grad_()
        seen.append((inputs[0], output))
        # What goes on is a copy, so that an in-place operation cannot change what is kept.
        return output.clone()

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def products_of_last_layer(
    network: ImageNetwork, test: GivenSamples, train: GivenSamples, kind: LossKind, layer: str, most: int
) -> Products:
    """Of the gradients by the weights (and bias) of the last linear layer alone, in closed form."""
    wanted = last_layer_gradients(network, test, kind, layer, most)
    found = last_layer_gradients(network, train, kind, layer, most)
    return Products(wanted.pairs(found), found.own())


def same_class_share(
    influence: np.ndarray, test_classes: np.ndarray, train_classes: np.ndarray, most: int
) -> np.ndarray:
    """float64 (test sample,): the share of the `most` training samples of highest influence that have its class.

    `influence` is (test sample, training sample). Ties go to the earlier training sample.
    """
    order = np.argsort(-influence, axis=1, kind="stable")[:, :most]
    return (train_classes[order] == test_classes[:, None]).mean(1)

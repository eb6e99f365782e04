"""Norms of the gradients of single samples, without storing the gradients."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from stratascope.errors import ConfigurationError
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.models.network import call_network, select_output
from stratascope.tasks.training.config import LossSpec
from stratascope.tasks.training.data import map_inputs, rows_of
from stratascope.tasks.training.losses import loss_of

_AT_ONCE = 64
"""So many gradients are in memory at a time."""


class _LossOfOne(nn.Module):
    """The loss of one sample, as a module, so that `functional_call` can exchange the weights below it."""

    def __init__(self, network: nn.Module, model: ModelSpec, loss: LossSpec, folder: Path | None) -> None:
        super().__init__()
        self.network = network
        self._model, self._loss, self._folder = model, loss, folder

    def forward(self, inputs: Any, target: Tensor) -> Tensor:
        batch = map_inputs(inputs, lambda part: part[None])
        output = call_network(self.network, batch, self._model, self._folder)
        return loss_of(select_output(output, self._model.output), target[None], self._loss)


def refuse_batch_norm(network: nn.Module) -> None:
    """Raise ConfigurationError where samples share statistics, so that no gradient belongs to one of them."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigurationError(
                f"`trace: {{example_gradients_every: …}}` does not go with batch norm ({name}): a sample's gradient "
                "then depends on the whole batch."
            )


def example_gradient_norms(
    network: nn.Module, model: ModelSpec, loss: LossSpec, inputs: Any, targets: Tensor, folder: Path | None = None
) -> Tensor:
    """‖∂ loss_i / ∂ θ‖ over the trained weights θ, float64 (sample,), for each sample of a batch.

    The network is in evaluation mode for the time being: dropout is off. Recurrent layers, which `vmap` does not
    know, are taken sample by sample.
    """
    whole = _LossOfOne(network, model, loss, folder)
    trained = {name: item for name, item in whole.named_parameters() if item.requires_grad}

    def loss_at(weights: dict[str, Tensor], sample: Any, target: Tensor) -> Tensor:
        return functional_call(whole, weights, (sample, target))

    def square(weights: dict[str, Tensor], sample: Any, target: Tensor) -> Tensor:
        return _square(grad(loss_at)(weights, sample, target).values())

    was_training = network.training
    network.eval()
    try:
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            losses = (whole(rows_of(inputs, at), targets[at]) for at in range(len(targets)))
            squares = [
                _square(torch.autograd.grad(one, tuple(trained.values()), materialize_grads=True))
                for one in losses
            ]
            return torch.stack(squares).sqrt()
        weights = {name: item.detach() for name, item in trained.items()}
        return vmap(square, in_dims=(None, 0, 0), chunk_size=_AT_ONCE)(weights, inputs, targets).sqrt()
    finally:
        network.train(was_training)


def _square(gradients: Iterable[Tensor]) -> Tensor:
    """The squared norm, float64, of all `gradients` taken together."""
    return torch.stack([item.double().square().sum() for item in gradients]).sum()

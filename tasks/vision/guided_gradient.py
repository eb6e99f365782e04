"""The guided gradient of the picture, which guided Grad-CAM multiplies with a map when it is drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.targets import Target


class _Score(nn.Module):
    """A network as captum takes it, with one number for each sample."""

    def __init__(self, network: ImageNetwork, indices: Tensor, target: Target) -> None:
        super().__init__()
        self.scored, self._indices, self._target = network.scored, indices, target

    def forward(self, inputs: Tensor) -> Tensor:
        return self._target.scores(self.scored(inputs), self._indices)


def guided_gradient(network: ImageNetwork, inputs: Tensor, indices: Tensor, target: Target) -> Tensor:
    """float32 (sample, channel, y, x): the gradient that passes a ReLU only where it and the ReLU's input are above 0.

    Springenberg et al. 2015, section 3. Must be used inside `network.untouched()`. Raises DoesNotApply where the network
    has no ReLU that is a module: those called as functions are not guided, and the result would be the plain gradient
    under another name.
    """
    import warnings

    from captum.attr import GuidedBackprop

    if not network.hookable or network.fixed_batch_size is not None:
        raise DoesNotApply(
            "guided gradients need a network whose layers can be watched, with batches of any size."
        )
    if not any(isinstance(module, nn.ReLU) for module in network.network.modules()):
        raise DoesNotApply("the network has no ReLU that is a module: there is nothing to guide.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU")
        with torch.enable_grad():
            pixels = inputs.detach().clone().to(network.device).requires_grad_()
            found = GuidedBackprop(_Score(network, indices, target)).attribute(pixels, target=None)
    return found.detach().float().cpu()

"""The guided gradient of the picture, which guided Grad-CAM multiplies with a map when it is drawn."""

from __future__ import annotations

from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.rectifier_rules import rectifiers
from stratascope.tasks.vision.targets import Target


def guided_gradient(network: ImageNetwork, inputs: Tensor, indices: Tensor, target: Target) -> Tensor:
    """float32 (sample, channel, y, x): the gradient that passes a ReLU only where it and the ReLU's input are above 0.

    Springenberg et al. 2015, section 3. Must be used inside `network.untouched()`. Raises DoesNotApply where the network
    rectifies nowhere: the result would be the plain gradient under another name.
    """
    with rectifiers("guided") as calls:
        found = network.input_gradient(inputs, indices, target)
    if not calls.rectified:
        raise DoesNotApply("the network has no ReLU: there is nothing to guide.")
    return found

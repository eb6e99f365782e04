"""The gradient of each sample's own loss by the weights, a few samples at a time.

Where the network allows it, one vectorised pass gives the gradients of many samples (`torch.func.vmap` over `grad`);
recurrent layers, compiled programs and whatever else `vmap` does not know are taken sample by sample. Both in evaluation
mode, so that no sample depends on its neighbours. A sample's loss is the mean over its real tokens where it has tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import AnalysisError, DoesNotApply, StratascopeError
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.memory import is_memory_shortage
from stratascope.tasks.representation.losses import IGNORED, Rows, counted_rows, losses_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratascope.tasks.contexts import Subject
    from stratascope.tasks.vision.image_network import ImageNetwork

_BYTES_AT_ONCE = 192 << 20
"""So much memory the gradients of the samples of one pass may take."""


@dataclass(frozen=True)
class LossKind:
    """Which loss is differentiated."""

    task: str = "classification"
    loss: str = "cross_entropy"
    folder: Path | None = None

    @classmethod
    def of(cls, subject: Subject) -> LossKind:
        """That which the run was trained with."""
        return cls(subject.task, subject.loss, Path(subject.folder))


def trained_parameters(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that take a gradient, by name; one that is shared is named once. Raises DoesNotApply."""
    found: dict[str, Tensor] = {name: item for name, item in network.named_parameters() if item.requires_grad}
    if not found:
        raise DoesNotApply("the network has no parameter that takes a gradient.")
    return found


def sample_gradients(
    network: ImageNetwork, samples: GivenSamples, kind: LossKind, parameters: dict[str, Tensor], most: int = 32
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """(rows, gradients by parameter, float32 (sample, *shape)) for at most `most` samples at a time.

    `parameters` are those of `trained_parameters`, taken before the network was made to be left untouched. Zero for a
    parameter that a sample's loss does not depend on. Raises DoesNotApply where outputs and targets do not fit the task,
    AnalysisError where the user's own loss fails.
    """

    samples_at_once = _BYTES_AT_ONCE // max(1, 4 * sum(item.numel() for item in parameters.values()))
    size = int(max(1, min(most, samples_at_once)))
    # Once by plain automatic differentiation: what does not fit, or carries no gradient, is named in words.
    _one_by_one(network, samples.part(slice(0, 1)), kind, parameters)
    vectorised = _can_be_vectorised(network, kind)
    start = 0
    while start < len(samples):
        rows = slice(start, min(start + size, len(samples)))
        part = samples.part(rows)
        if vectorised:
            try:
                found = _vectorised(network, part, kind, parameters)
            except (StratascopeError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                # What is really at fault, if anything, is said where the samples are taken one by one.
                if is_memory_shortage(error):
                    raise
                vectorised = False
                continue
        else:
            found = _one_by_one(network, part, kind, parameters)
        yield rows, found
        start = rows.stop


def _can_be_vectorised(network: ImageNetwork, kind: LossKind) -> bool:
    from torch import jit, nn

    inner = network.network
    if not network.hookable or network.fixed_batch_size is not None or isinstance(inner, jit.ScriptModule):
        return False
    if kind.task == "tokens" and ":" in kind.loss:
        return False  # the user's own loss is given real tokens only, whose number differs
    return not any(isinstance(module, nn.RNNBase) for module in inner.modules())


def _outputs(network: ImageNetwork, inputs: Any) -> Tensor:
    """The network's outputs (sample, …) on the processor, whatever its inputs are; filled up for a fixed batch size."""
    from stratascope.tasks.models.network import as_tensor, call_network, select_output
    from stratascope.tasks.representation.gradients import _filled

    given = as_tensor(_filled(inputs, network.fixed_batch_size))
    output = call_network(network.network, given, network.model, network.folder)
    return select_output(output, network.model.output).cpu()


def _rows_of(network: ImageNetwork, samples: GivenSamples, kind: LossKind) -> Rows:
    import torch

    assert samples.targets is not None
    output = _outputs(network, samples.inputs)[: len(samples)]
    return counted_rows(output, torch.as_tensor(samples.targets), samples.mask, kind.task)


def batch_losses(network: ImageNetwork, samples: GivenSamples, kind: LossKind) -> Tensor:
    """(sample,): each sample's own loss, from one pass; carries a gradient. Raises as `sample_gradients` does."""
    import torch

    if network.fixed_batch_size is not None and len(samples) > network.fixed_batch_size:
        raise DoesNotApply(f"the network takes {network.fixed_batch_size} samples at once only.")
    rows = _rows_of(network, samples, kind)
    losses = losses_of(rows, kind.task, kind.loss, kind.folder)
    if not losses.ndim:
        raise DoesNotApply(f"loss {kind.loss!r} gives a mean alone: it must return one loss for each row.")
    counts = torch.bincount(rows.owner, minlength=len(samples)).clamp(min=1)
    return torch.zeros(len(samples), dtype=losses.dtype).index_add(0, rows.owner, losses) / counts


def _one_by_one(
    network: ImageNetwork, samples: GivenSamples, kind: LossKind, parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    import torch

    weights = list(parameters.values())
    flags = [item.requires_grad for item in weights]
    found: list[tuple[Tensor, ...]] = []
    try:
        for item in weights:
            item.requires_grad_(True)
        with torch.enable_grad():
            for place in range(len(samples)):
                rows = _rows_of(network, samples.part(slice(place, place + 1)), kind)
                loss = losses_of(rows, kind.task, kind.loss, kind.folder).mean()
                if not loss.requires_grad:
                    raise _without_gradient(kind, rows.outputs.requires_grad)
                found.append(torch.autograd.grad(loss, weights, materialize_grads=True))
    finally:
        for item, flag in zip(weights, flags, strict=True):
            item.requires_grad_(flag)
    return {name: torch.stack([one[place] for one in found]).cpu() for place, name in enumerate(parameters)}


def _without_gradient(kind: LossKind, outputs_carry_one: bool) -> StratascopeError:
    if outputs_carry_one:
        return AnalysisError(f"loss {kind.loss!r} carries no gradient: compute it with torch from the outputs.")
    return DoesNotApply("no gradient reaches the network's weights from its outputs.")


def _vectorised(
    network: ImageNetwork, samples: GivenSamples, kind: LossKind, parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    import torch
    from torch.func import functional_call, grad, vmap

    from stratascope.tasks.device import moved
    from stratascope.tasks.models.network import as_tensor

    assert samples.targets is not None
    whole = _loss_of_one(network, kind)
    inputs = moved(as_tensor(samples.inputs), network.device)
    targets = torch.as_tensor(samples.targets)
    targets = (targets.float() if targets.is_floating_point() else targets).to(network.device)
    mask = None if samples.mask is None else torch.as_tensor(samples.mask).to(network.device)
    weights = {f"network.{name}": item.detach() for name, item in parameters.items()}

    def loss_at(given: dict[str, Tensor], sample: Any, target: Tensor, real: Tensor | None) -> Tensor:
        return functional_call(whole, given, (sample, target, real))

    axes = (None, 0, 0, None if mask is None else 0)
    found = vmap(grad(loss_at), in_dims=axes)(weights, inputs, targets, mask)
    return {name: found[f"network.{name}"].detach().cpu() for name in parameters}


def _loss_of_one(network: ImageNetwork, kind: LossKind) -> nn.Module:
    """The loss of one sample as a module, so that `functional_call` can exchange the weights below it."""
    import torch
    from torch import nn

    from stratascope.tasks.models.network import call_network, select_output

    def batch_of_one(inputs: Any) -> Any:
        if isinstance(inputs, dict):
            return {name: batch_of_one(item) for name, item in inputs.items()}
        return inputs[None]

    class LossOfOne(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network.network

        def forward(self, inputs: Any, target: Tensor, real: Tensor | None) -> Tensor:
            output = call_network(self.network, batch_of_one(inputs), network.model, network.folder)
            output = select_output(output, network.model.output)
            if kind.task == "tokens":
                counts = target != IGNORED
                counts = counts if real is None else counts & real
                rows = Rows(output[0], torch.where(counts, target, 0).long(), torch.arange(len(target)))
                losses = losses_of(rows, kind.task, kind.loss, kind.folder)
                return (losses * counts).sum() / counts.sum()
            if kind.task == "regression":
                rows = counted_rows(output, target[None], None, kind.task)
                if real is not None and output.shape[1] == len(real):
                    errors = losses_of(Rows(output[0], target.to(output.dtype), real), kind.task, kind.loss, kind.folder)  # fmt: skip
                    return (errors * real).sum() / real.sum()
            else:
                rows = Rows(output, target[None].long(), torch.zeros(1, dtype=torch.long))
            return losses_of(rows, kind.task, kind.loss, kind.folder).sum()

    return LossOfOne()


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to: `block.conv` of `block.conv.weight`."""
    return parameter.rpartition(".")[0]


def inner_products(left: dict[str, Tensor], right: dict[str, Tensor]) -> np.ndarray:
    """float64 (left sample, right sample): inner products of gradients over all parameters."""
    products = [values.flatten(1).double() @ right[name].flatten(1).double().T for name, values in left.items()]
    return np.sum([product.numpy() for product in products], axis=0)


def squared_norms(gradients: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """float64 (sample,) by parameter."""
    return {name: values.flatten(1).double().square().sum(1).numpy() for name, values in gradients.items()}

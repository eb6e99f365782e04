"""A checkpoint's network as attribution needs it: private, in evaluation mode, run in batches, left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.capture.layers import LayerInfo, tensors_in
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.models.network import call_network, place_of, select_output
from stratascope.tasks.vision.targets import Target


class ScoredOutput(nn.Module):
    """The network with its output selected: (sample, channel, y, x) → (sample, output, …). What captum is given."""

    def __init__(self, network: nn.Module, model: ModelSpec, folder: Path | None = None) -> None:
        super().__init__()
        self.network = network
        self._model, self._folder = model, folder

    def forward(self, inputs: Tensor) -> Tensor:
        return select_output(call_network(self.network, inputs, self._model, self._folder), self._model.output)


@dataclass
class ImageNetwork:
    """A network that nothing else uses: hooks on a shared one would corrupt what runs beside them."""

    network: nn.Module
    model: ModelSpec = field(default_factory=lambda: ModelSpec(factory="none:none"))
    folder: Path | None = None
    fixed_batch_size: int | None = None
    hookable: bool = True
    """Whether its layers can be watched and replaced; exported programs have none."""

    @classmethod
    def of(cls, context: CheckpointContext) -> Self:
        """The network of a checkpoint, in evaluation mode and single precision."""
        from stratascope.tasks.intake.facts import open_network

        subject = context.subject
        folder = Path(subject.folder)
        assert context.file is not None
        loaded = open_network(
            context.file, subject.source, folder, context.facts.get("weights_digest"), context.device
        )
        network = loaded.module if loaded.traits.kind == "exported" else loaded.module.float()
        return cls(network, subject.source.model, folder, loaded.traits.fixed_batch_size, loaded.traits.hookable)

    @property
    def device(self) -> torch.device:
        return place_of(self.network)

    @property
    def scored(self) -> ScoredOutput:
        """As one module, for captum; its layers are those of `network`, by the same objects."""
        return ScoredOutput(self.network, self.model, self.folder)

    def outputs(self, inputs: Tensor) -> Tensor:
        """(sample, output, …) of `inputs` (sample, channel, y, x); carries a gradient where they do."""
        size = self.fixed_batch_size
        if size is None or len(inputs) == size:
            # A copy: networks that rectify or normalise their input in place must not change what is asked about.
            return self.scored(inputs.to(self.device, copy=True))
        if len(inputs) > size:
            parts = [self.outputs(part) for part in inputs.split(size)]
            return torch.cat(parts)
        filled = torch.cat([inputs, inputs[:1].expand(size - len(inputs), *inputs.shape[1:])])
        return self.scored(filled.to(self.device))[: len(inputs)]

    @torch.no_grad()
    def outputs_in_batches(self, inputs: Tensor | np.ndarray, size: int) -> Tensor:
        """float32 (sample, output, …) on the processor, without a gradient."""
        parts = torch.as_tensor(inputs).split(self.fixed_batch_size or size)
        return torch.cat([self.outputs(part).float().cpu() for part in parts])

    def input_gradient(self, inputs: Tensor, indices: Tensor, target: Target) -> Tensor:
        """float32 (sample, channel, y, x): the gradient of each sample's score by its own pixels, detached.

        Raises DoesNotApply where no gradient reaches the inputs.
        """
        with torch.enable_grad():
            pixels = inputs.detach().to(self.device).requires_grad_()
            scores = target.scores(self.outputs(pixels), indices)
            return gradient_of(scores.sum(), [pixels], "the inputs")[0].float().cpu()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """While it lasts the network is in evaluation mode and its weights take no gradient; then all is as it was.

        Modes, flags of the weights and their `.grad` are put back, also after an error.
        """
        modes = {module: module.training for module in self.network.modules()}
        flags = [(item, item.requires_grad, item.grad) for item in self.network.parameters()]
        try:
            for module in modes:
                module.training = False
            for item, _, _ in flags:
                item.requires_grad_(False)
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            for item, flag, gradient in flags:
                item.requires_grad_(flag)
                item.grad = gradient


def gradient_of(total: Tensor, sources: Sequence[Tensor], what: str) -> list[Tensor]:
    """Detached gradients of `total` by each of `sources`. Raises DoesNotApply, which names `what`, where none flows."""
    if not total.requires_grad:
        raise DoesNotApply(f"no gradient flows from the output to {what}: something on the way detaches it.")
    found = torch.autograd.grad(total, list(sources), allow_unused=True)
    if any(gradient is None for gradient in found):
        raise DoesNotApply(f"the output does not depend on {what} in a way that carries a gradient.")
    return [gradient.detach() for gradient in found]


@contextmanager
def replaced_outputs(
    network: nn.Module, layers: Sequence[LayerInfo], replace: Callable[[LayerInfo, Tensor], Tensor]
) -> Iterator[None]:
    """While it lasts, what each of `layers` puts out is what `replace` makes of it. The hooks are always removed.

    `replace` gets a copy, which no later in-place operation can overwrite, and returns a tensor of the same shape; what
    it returns goes on through the network. Calls are counted anew for each pass.
    """
    wanted: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        if layer.side != "output":
            raise DoesNotApply(f"layer {layer.name!r} names what enters a module; name what leaves one.")
        wanted.setdefault(layer.module, []).append(layer)
    calls: dict[str, int] = {}

    def on_output(name: str, output: Any) -> Any:
        call = calls.get(name, 0)
        calls[name] = call + 1
        changes = {layer.element: layer for layer in wanted[name] if layer.call == call}
        if not changes:
            return None
        members = dict(tensors_in(output))
        made = {path: replace(layer, members[path].clone()) for path, layer in changes.items()}
        return rebuilt(output, made)

    modules = dict(network.named_modules())
    handles = [network.register_forward_pre_hook(lambda module, inputs: calls.clear())]
    try:
        for name in wanted:
            handles.append(modules[name].register_forward_hook(lambda m, i, o, name=name: on_output(name, o)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def rebuilt(output: Any, changes: Mapping[tuple[int, ...], Tensor], path: tuple[int, ...] = ()) -> Any:
    """`output`, nested as it is, with the tensors at the paths of `changes` (as of `tensors_in`) exchanged."""
    if isinstance(output, Tensor):
        return changes.get(path, output)
    if isinstance(output, dict):
        items = [rebuilt(item, changes, (*path, number)) for number, item in enumerate(output.values())]
        return type(output)(zip(output, items, strict=True)) if type(output) is dict else _like(output, items)
    if isinstance(output, tuple | list):
        items = [rebuilt(item, changes, (*path, number)) for number, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    return output


def _like(output: Any, items: list[Any]) -> Any:
    copied = output.copy()
    for key, item in zip(list(output), items, strict=True):
        copied[key] = item
    return copied


@dataclass(frozen=True)
class LayerPass:
    """What one forward and one backward pass give of several layers."""

    outputs: Tensor
    """(sample, output, …), detached."""
    scores: Tensor
    """(sample,), detached."""
    activations: dict[str, Tensor]
    """By layer (sample, …), sample axis first, before any in-place operation; detached."""
    gradients: dict[str, Tensor]
    """Of each sample's score by those activations, of the same shapes."""


def layer_pass(
    network: ImageNetwork,
    inputs: Tensor,
    indices: Tensor,
    target: Target,
    layers: Sequence[LayerInfo],
) -> LayerPass:
    """Activations of `layers` and the gradient of the score by each of them, from one pass forward and one back.

    The tensors are matched by the layers' names, never by their order. Raises DoesNotApply where a layer carries no
    gradient, or is not reached.
    """
    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be watched.")
    kept: dict[str, Tensor] = {}

    def keep(layer: LayerInfo, values: Tensor) -> Tensor:
        values = values if values.requires_grad else values.requires_grad_()
        kept[layer.name] = values
        # What goes on is a view of its own, so that an in-place operation cannot change what is kept.
        return values.clone()

    with torch.enable_grad(), replaced_outputs(network.network, layers, keep):
        outputs = network.outputs(inputs.detach())
        scores = target.scores(outputs, indices)
        missing = [layer.name for layer in layers if layer.name not in kept]
        if missing:
            raise DoesNotApply(f"layer {missing[0]!r} is not reached by a forward pass.")
        found = gradient_of(scores.sum(), [kept[layer.name] for layer in layers], _named(layers))
    axes = {layer.name: layer.sample_axis for layer in layers}
    count = len(inputs)
    return LayerPass(
        outputs.detach()[:count],
        scores.detach(),
        {name: values.detach().movedim(axes[name], 0)[:count] for name, values in kept.items()},
        {
            layer.name: gradient.movedim(layer.sample_axis, 0)[:count]
            for layer, gradient in zip(layers, found, strict=True)
        },
    )


def _named(layers: Sequence[LayerInfo]) -> str:
    names = ", ".join(layer.name for layer in layers[:6])
    return f"layer{'s' if len(layers) > 1 else ''} {names}{' …' if len(layers) > 6 else ''}"

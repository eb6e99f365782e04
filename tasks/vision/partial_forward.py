"""Only the part of a network that comes after a layer: what ran before it is remembered and not run again.

A call of a module that had ended before the layer began cannot depend on what the layer puts out. It is therefore
answered with what it put out before; what lies between modules (additions, functional activations) runs again. That this
gives what the whole network gives is tested on the first samples; where it does not, the whole network is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply, StratascopeError
from stratascope.tasks.capture.layers import LayerInfo, tensors_in
from stratascope.tasks.vision.image_network import ImageNetwork, rebuilt, replaced_outputs

_TOLERANCE = 1e-4
"""Of the largest output: so far may a replay be from the whole network."""
_TESTED = 2


@dataclass
class _Call:
    """One call of a module that had ended before the layer began, with what it put out."""

    module: str
    number: int
    output: Any


@dataclass
class _Frame:
    """A call that is not over, and the calls within it that are."""

    module: str
    number: int
    ended: list[_Call] = field(default_factory=list)


class PartialForward:
    """The rest of a network behind one layer, for a batch of samples whose forward pass has been recorded.

    Must be used inside `network.untouched()` and without gradients. `known` are the layers as observed: they tell
    where the sample axis of each output is.
    """

    def __init__(self, network: ImageNetwork, layer: LayerInfo, known: Sequence[LayerInfo]) -> None:
        self.network, self.layer = network, layer
        self._axes = {(item.module, item.call, item.element): item.sample_axis for item in known if item.side == "output"}  # fmt: skip
        self._modules = dict(network.network.named_modules())
        self._frames: list[_Frame] = []
        self._own: Any = None
        self._copied = False
        self.inputs = torch.empty(0)
        self.outputs = torch.empty(0)
        self.whole = network.fixed_batch_size is not None
        """Whether the whole network is run every time, since the part alone was not to be had."""
        self._tested = self.whole

    @torch.no_grad()
    def record(self, inputs: Tensor) -> None:
        """Run the network once on `inputs` (sample, channel, y, x). Raises DoesNotApply where the layer is not reached."""
        self.inputs = inputs
        self._frames, self._own = [], None
        with self._watched():
            self.outputs = self.network.outputs(inputs)
        if self._own is None:
            raise DoesNotApply(f"layer {self.layer.name!r} is not reached by a forward pass.")
        if not self._tested:
            self.whole = not self._is_sound()
            self._tested = True

    @property
    def values(self) -> Tensor:
        """(sample, …), sample axis first: what the layer put out."""
        return dict(tensors_in(self._own))[self.layer.element].movedim(self.layer.sample_axis, 0)

    @torch.no_grad()
    def run(self, sample: int, values: Tensor) -> Tensor:
        """(copy, output, …): the outputs for `sample` with `values` (copy, …) in the place of the layer's own."""
        copies = self.inputs[sample : sample + 1].expand(len(values), *self.inputs.shape[1:])
        if self.whole:
            return self._run_whole(copies, values)
        with self._replayed(sample, values):
            return self.network.outputs(copies.clone() if self._copied else copies)

    def _run_whole(self, copies: Tensor, values: Tensor) -> Tensor:
        size = self.network.fixed_batch_size or len(copies)
        parts = []
        for copied, given in zip(copies.split(size), values.split(size), strict=True):

            def replace(layer: LayerInfo, own: Tensor, given: Tensor = given) -> Tensor:
                # A network of a fixed batch size is given more samples than are asked about.
                rest = own.movedim(layer.sample_axis, 0)[len(given) :]
                return torch.cat([given.to(own), rest]).movedim(0, layer.sample_axis)

            with replaced_outputs(self.network.network, [self.layer], replace):
                parts.append(self.network.outputs(copied))
        return torch.cat(parts)

    # -- recording -----------------------------------------------------------------------------------

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Hooks that keep what every outermost call put out that ended before the layer began."""
        open_frames = [_Frame("", -1)]
        calls: dict[str, int] = {}

        def before(name: str) -> None:
            number = calls.get(name, 0)
            calls[name] = number + 1
            open_frames.append(_Frame(name, number))
            if not self._frames and (name, number) == (self.layer.module, self.layer.call):
                self._frames = list(open_frames)

        def after(name: str, output: Any) -> None:
            frame = open_frames.pop()
            if (frame.module, frame.number) == (self.layer.module, self.layer.call):
                self._own = _copy_of(output)
            if not self._frames:
                open_frames[-1].ended.append(_Call(frame.module, frame.number, _copy_of(output)))

        handles = []
        try:
            for name, module in self._modules.items():
                handles.append(module.register_forward_pre_hook(lambda m, i, name=name: before(name)))
                handles.append(module.register_forward_hook(lambda m, i, o, name=name: after(name, o)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    # -- replaying -----------------------------------------------------------------------------------

    @contextmanager
    def _replayed(self, sample: int, values: Tensor) -> Iterator[None]:
        """While it lasts, remembered calls answer for `sample`, and the layer puts out `values` (copy, …)."""
        copies = len(values)
        queues: dict[str, list[Callable[[], Any] | None]] = {}
        for frame in self._frames:
            # Outer calls began before the ones within them: by frame, this is the order in time.
            if frame.number >= 0 and frame is not self._frames[-1]:
                queues.setdefault(frame.module, []).append(None)
            for call in frame.ended:
                queues.setdefault(call.module, []).append(partial(self._answer, call, sample, copies))
        own = _Call(self.layer.module, self.layer.call, self._own)
        given = {self.layer.element: values.movedim(0, self.layer.sample_axis)}
        queues.setdefault(self.layer.module, []).append(partial(self._answer, own, sample, copies, given))
        replaced: list[tuple[nn.Module, Any]] = []
        try:
            for name, queue in queues.items():
                if any(answer is not None for answer in queue):
                    module = self._modules[name]
                    replaced.append((module, module.__dict__.get("forward")))
                    module.forward = _answering(module.forward, queue)
            yield
        finally:
            for module, before in replaced:
                if before is None:
                    module.__dict__.pop("forward", None)
                else:
                    module.forward = before

    def _answer(
        self, call: _Call, sample: int, copies: int, given: dict[tuple[int, ...], Tensor] | None = None
    ) -> Any:
        """What `call` put out for `sample`, `copies` times; as views without memory of their own where that is enough."""
        made = dict(given or {})
        for element, tensor in tensors_in(call.output):
            if element in made:
                continue
            axis = self._axes.get((call.module, call.number, element))
            if axis is not None:
                sizes = list(tensor.shape)
                sizes[axis] = copies
                tensor = tensor.narrow(axis, sample, 1).expand(sizes)
            made[element] = tensor.clone() if self._copied or copies == 1 or axis is None else tensor
        return rebuilt(call.output, made)

    def _is_sound(self) -> bool:
        """Whether the part gives what the whole gives: with the layer's own values, and with every other one zero.

        An operation that writes into what a remembered call put out needs memory of its own: then copies are made.
        """
        for self._copied in (False, True):
            try:
                if all(self._agrees(sample) for sample in range(min(_TESTED, len(self.inputs)))):
                    return True
            except (StratascopeError, RuntimeError, TypeError, AttributeError, ValueError, IndexError, KeyError):
                continue
        return False

    def _agrees(self, sample: int) -> bool:
        own = self.values[sample : sample + 1]
        every_other = torch.arange(own.numel(), device=own.device).reshape(own.shape) % 2
        values = torch.cat([own, own * every_other])
        copies = self.inputs[sample : sample + 1].expand(2, *self.inputs.shape[1:])
        expected = self._run_whole(copies, values)
        found = self.run(sample, values)
        bound = _TOLERANCE * float(torch.cat([expected, self.outputs[sample : sample + 1]]).abs().max())
        return (
            found.shape == expected.shape
            and bool(torch.isfinite(found).all())
            and float((found - expected).abs().max()) <= bound
            and float((found[0] - self.outputs[sample]).abs().max()) <= bound
        )


def _copy_of(output: Any) -> Any:
    return rebuilt(output, {element: tensor.clone() for element, tensor in tensors_in(output)})


def _answering(forward: Callable[..., Any], queue: Sequence[Callable[[], Any] | None]) -> Callable[..., Any]:
    """`forward`, but the calls that `queue` has answers to get those."""
    calls = iter(queue)

    def answered(*arguments: Any, **options: Any) -> Any:
        answer = next(calls, None)
        return forward(*arguments, **options) if answer is None else answer()

    return answered

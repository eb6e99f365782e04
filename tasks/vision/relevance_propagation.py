"""Layer-wise relevance propagation over a network as it runs: every operation gets the way back of its rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import Explained
from stratascope.tasks.vision.image_network import gradient_of
from stratascope.tasks.vision.intercepted_calls import (
    Call,
    check_operations_can_be_seen,
    pooled_maximum,
)
from stratascope.tasks.vision.relevance_rules import LinearStep, Rule, share
from stratascope.tasks.vision.relevance_steps import (
    COPIES,
    NormalisedStep,
    PassedOn,
    as_sum,
    linear_step,
    normalised_step,
    passes,
)

RuleOf = Callable[[str, bool], Rule]
"""The rule of an operation by its name, told whether it is the first one with weights."""


class HandedBack(torch.autograd.Function):
    """A step whose way back is not its gradient: `back` makes of the output's relevance that of each activation.

    It is given the activations, the output and its relevance.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Callable[[Sequence[Tensor]], Tensor],
        back: Callable[[Sequence[Tensor], Tensor, Tensor], Sequence[Tensor]],
        *activations: Tensor,
    ) -> Tensor:
        ctx.back = back
        output = run([values.detach() for values in activations])
        # A copy: what comes after may overwrite the output in place.
        ctx.save_for_backward(*activations, output.clone())
        return output

    @staticmethod
    def backward(ctx: Any, *relevance: Any) -> Any:
        *activations, output = ctx.saved_tensors
        return None, None, *ctx.back(activations, output, relevance[0])


class _Propagating(TorchFunctionMode):
    """Gives every operation on activations the way back of its rule; at one that has none DoesNotApply is raised."""

    def __init__(self, samples: int, rule_of: RuleOf, epsilon: float, gamma: float) -> None:
        super().__init__()
        self.absorbed: Tensor | None = torch.zeros(samples, dtype=torch.float64)
        """(sample,): relevance that biases have taken; None where samples are not the first axis everywhere."""
        self._rule_of, self._epsilon, self._gamma = rule_of, epsilon, gamma
        self._weighted = 0
        self._steps: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call.of(function, args, kwargs)
        activations = call.activations
        if not activations:
            return call.plainly()
        if passes(call):
            values = activations[0].clone() if call.in_place else activations[0]
            return call.handed_on(PassedOn.apply(call.on, values))
        normalised = normalised_step(call)
        if normalised is not None:
            return self._normalised(call, normalised)
        plain = as_sum(call)
        step = linear_step(plain)
        if step is not None:
            return call.handed_on(self._linear(plain, step, call.in_place))
        if call.name in COPIES or pooled_maximum(call) is not None:
            return call.plainly()
        return _refused(call)

    def _linear(self, call: Call, step: LinearStep, in_place: bool) -> Any:
        weighted = step.weight.ndim > 0
        self._weighted += weighted
        rule = self._rule_of(call.name, weighted and self._weighted == 1)
        activations = [values.clone() if in_place else values for values in call.activations]
        output = self._handed_back(call.on, step, rule, activations)
        if weighted and not in_place:
            self._steps[output] = (step, rule, activations, output._version)
        return output

    def _normalised(self, call: Call, found: NormalisedStep) -> Any:
        """A batch norm right after a convolution or a linear layer is one step with it; any other is a step of its own."""
        values = call.activations[0]
        step, rule, activations, version = self._steps.get(values, (None, None, None, None))
        merged = None if step is None or values._version != version else found.merged(step, values)
        if merged is None:
            rule = self._rule_of(call.name, False)
            return self._handed_back(call.on, found.alone(values), rule, call.activations)
        # The value is computed as the network does it; only the way back is that of the merged step.
        return self._handed_back(lambda _: call.on([values.detach()]), merged, rule, activations)

    def _handed_back(
        self, run: Callable[[Sequence[Tensor]], Tensor], step: LinearStep, rule: Rule, activations: list[Tensor]
    ) -> Any:
        def back(saved: Sequence[Tensor], output: Tensor, relevance: Tensor) -> Sequence[Tensor]:
            shared = share(rule, step, saved, output, relevance, self._epsilon, self._gamma)
            if shared.to_bias is not None:
                self._take(shared.to_bias)
            return shared.to_activations

        return HandedBack.apply(run, back, *activations)

    def _take(self, relevance: Tensor) -> None:
        """What a bias has got, by sample; samples are the first axis, or the slower part of it, as with windows."""
        if self.absorbed is None or relevance.shape[0] % len(self.absorbed):
            self.absorbed = None
        else:
            self.absorbed += relevance.reshape(len(self.absorbed), -1).sum(1, dtype=torch.float64).cpu()


def _refused(call: Call) -> Any:
    """An operation without a rule, which is an obstacle only if relevance comes to it: side branches do not count."""
    result = call.plainly()

    def refuse(relevance: Tensor) -> None:
        raise DoesNotApply(_no_rule(call))

    def watch(items: Any) -> None:
        for item in items if isinstance(items, tuple | list) else (items,):
            if isinstance(item, tuple | list):
                watch(item)
            elif isinstance(item, Tensor) and item.requires_grad:
                item.register_hook(refuse)

    watch(result)
    return result


def _no_rule(call: Call) -> str:
    if call.name in ("mul", "div", "matmul", "bmm", "mm", "einsum", "pow", "square") and len(call.activations) > 1:
        what = f"`{call.name}` of two activations"
    else:
        what = f"`{call.name}`"
    return (
        f"layer-wise relevance propagation has no rule for {what}, which this network does on the way to the score. "
        "It applies to convolutions, linear layers, batch norm, sums, poolings and activations that are 0 at 0."
    )


def propagated(
    part: Explained, rule_of: RuleOf, epsilon: float, gamma: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One batch of samples: maps float32 (sample, channel, y, x), scores and what biases have taken, float64 (sample,).

    The last is None where samples are not the first axis everywhere. Raises DoesNotApply at an operation without a rule,
    by name.
    """
    network = part.network
    check_operations_can_be_seen(network, "layer-wise relevance propagation")
    with torch.enable_grad():
        pixels = part.inputs.detach().to(network.device).requires_grad_()
        mode = _Propagating(network.fixed_batch_size or len(part), rule_of, epsilon, gamma)
        with mode:
            score = part.target.scores(network.outputs(pixels.clone()), part.indices)
        started = score.detach()
        # The relevance of a score is the score itself: it weighs the way back.
        (found,) = gradient_of((score * started).sum(), [pixels], "the inputs")
    taken = None if mode.absorbed is None else mode.absorbed[: len(part)]
    return found.float().cpu(), started.double().cpu(), taken

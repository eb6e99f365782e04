"""Layer-wise relevance propagation: the score handed back from step to step until it lies on the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.tasks.vision.attribution_methods import Attributed, AttributionMethod, Explained, register_method
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

_TOLERANCE = 1e-3
_EPSILON = 1e-9
_GAMMA = 0.25


class HandedBack(torch.autograd.Function):
    """A step whose way back is not its gradient: `back` makes of the output's relevance that of each activation.

    It is given the activations, where the output is negative, and the relevance.
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
        ctx.save_for_backward(*activations, output < 0)
        return output

    @staticmethod
    def backward(ctx: Any, *relevance: Any) -> Any:
        *activations, below = ctx.saved_tensors
        return None, None, *ctx.back(activations, below, relevance[0])


class _Propagating(TorchFunctionMode):
    """Gives every operation on activations the way back of its rule; at one that has none DoesNotApply is raised."""

    def __init__(self, samples: int, rule_of: Callable[[str, bool], Rule], epsilon: float, gamma: float) -> None:
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
        def back(saved: Sequence[Tensor], below: Tensor, relevance: Tensor) -> Sequence[Tensor]:
            shared = share(rule, step, saved, below, relevance, self._epsilon, self._gamma)
            if shared.to_bias is not None:
                self._take(shared.to_bias)
            return shared.to_activations

        return HandedBack.apply(run, back, *activations)

    def _take(self, relevance: Tensor) -> None:
        """What a bias has got, by sample; samples are the first axis, or the slower part of it, as with windows."""
        if self.absorbed is None or relevance.shape[0] % len(self.absorbed):
            self.absorbed = None
        else:
            self.absorbed += relevance.double().cpu().reshape(len(self.absorbed), -1).sum(1)


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


def relevance(explained: Explained, rule_of: Callable[[str, bool], Rule]) -> Attributed:
    """The score of each sample on its pixels.

    `conservation_gap` is what the map adds up to less the score, `conservation_gap_with_biases` the same with what
    biases have taken added to the map. `rule_of` gives the rule of an operation, told whether it is the first one with
    weights. Raises DoesNotApply at an operation without a rule, by name.
    """
    network, settings = explained.network, explained.settings
    epsilon, gamma = float(settings.get("epsilon", _EPSILON)), float(settings.get("gamma", _GAMMA))
    size = network.fixed_batch_size or explained.batch_size
    check_operations_can_be_seen(network, "layer-wise relevance propagation")
    maps, scores, absorbed = [], [], []
    with network.untouched(), torch.enable_grad():
        for start in range(0, len(explained), size):
            part = explained.part(slice(start, start + size))
            pixels = part.inputs.detach().to(network.device).requires_grad_()
            mode = _Propagating(network.fixed_batch_size or len(part), rule_of, epsilon, gamma)
            with mode:
                score = part.target.scores(network.outputs(pixels.clone()), part.indices)
            started = score.detach()
            # The relevance of a score is the score itself: it weighs the way back.
            (found,) = gradient_of((score * started).sum(), [pixels], "the inputs")
            maps.append(found.float().cpu())
            scores.append(started.double().cpu())
            absorbed.append(None if mode.absorbed is None else mode.absorbed[: len(part)])
    values, wanted = torch.cat(maps), torch.cat(scores).numpy()
    gap = values.double().flatten(1).sum(1).numpy() - wanted
    numbers = {"conservation_gap": gap}
    taken = [item for item in absorbed if item is not None]
    if len(taken) < len(absorbed):
        return Attributed(values.numpy(), numbers)
    numbers["conservation_gap_with_biases"] = gap + torch.cat(taken).numpy()
    warnings = _lost(numbers["conservation_gap_with_biases"], wanted, explained)
    return Attributed(values.numpy(), numbers, warnings=warnings)


def _lost(gap: np.ndarray, score: np.ndarray, explained: Explained) -> tuple[str, ...]:
    tolerance = float(explained.settings.get("tolerance", _TOLERANCE))
    share_lost = np.abs(gap) / np.maximum(1, np.abs(score))
    if not (share_lost > tolerance).any():
        return ()
    return (
        f"{int((share_lost > tolerance).sum())} of {len(share_lost)} maps do not hand on the whole score, biases counted: "
        f"up to {share_lost.max():.2g} of it is lost, more than {tolerance:g}.",
    )


def _chosen(rules: Callable[[str], Rule]) -> Callable[[Explained], Attributed]:
    """A method that takes `rules` by operation, and for the first step with weights what `first_layer` says."""

    def compute(explained: Explained) -> Attributed:
        first_rule = explained.settings.get("first_layer", "same")
        if first_rule not in ("same", "flat"):
            raise ConfigurationError(f"`first_layer` {first_rule!r} is not known; it is `same` or `flat`.")
        return relevance(explained, lambda name, first: "flat" if first and first_rule == "flat" else rules(name))

    return compute


def _composite(operation: str) -> Rule:
    return "epsilon" if operation in ("linear", "matmul", "mm", "bmm") else "gamma"


_SETTINGS: dict[str, Any] = {"epsilon": _EPSILON, "first_layer": "same", "tolerance": _TOLERANCE}
_SHARED_CAUTION = (
    " Biases take relevance that no pixel then shows: see how far the map is from adding up to the score. Batch norm right after "
    "a convolution or a linear layer counts as one step with it."
)
_METHODS: tuple[tuple[str, str, Callable[[str], Rule], dict[str, Any], str, str, str], ...] = (
    (
        "lrp_epsilon", "LRP-ε", lambda operation: "epsilon", {},
        "R_i = Σ_k a_i w_ik / (z_k + ε sign z_k) · R_k, z_k = Σ_i a_i w_ik + b_k",
        "Bach et al. 2015, equation 58",
        "the network is deep: with ReLUs and a small ε it is gradient × input, with the same noise.",
    ),
    (
        "lrp_gamma", "LRP-γ", lambda operation: "gamma", {"gamma": _GAMMA},
        "R_i = Σ_k a_i (w_ik + γ max(0, w_ik)) / Σ_i a_i (w_ik + γ max(0, w_ik)) · R_k",
        "Montavon et al. 2019, section 10.2.2, with both signs of a and z",
        "evidence against the class matters: what has the sign of the output is preferred at every step.",
    ),
    (
        "lrp_alpha1beta0", "LRP-α1β0 (z⁺)", lambda operation: "alpha1beta0", {},
        "R_i = Σ_k max(0, a_i w_ik) / Σ_i max(0, a_i w_ik) · R_k",
        "Bach et al. 2015, equation 60 with α = 1; Montavon et al. 2017",
        "another class is asked: the map hardly depends on the class, since what speaks against one is never counted "
        "(Sixt, Granz and Landgraf 2020).",
    ),
    (
        "lrp_composite", "LRP composite (γ in convolutions, ε in linear layers)", _composite, {"gamma": _GAMMA},
        "LRP-γ in convolutions, sums and poolings; LRP-ε in linear layers",
        "Montavon et al. 2019, section 10.3; Kohlbrenner et al. 2020",
        "convolutions see much evidence against the class: there what has the sign of the output is preferred.",
    ),
)  # fmt: skip
for _name, _title, _rules, _own, _formula, _source, _lies in _METHODS:
    register_method(
        AttributionMethod(
            name=_name,
            title=_title,
            family="relevance",
            formula=_formula,
            source=_source,
            lies_when=_lies + _SHARED_CAUTION,
            compute=_chosen(_rules),
            settings=_SETTINGS | _own,
        )
    )

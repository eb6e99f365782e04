"""The network at its start, and the rule that changes it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from stratascope.errors import ConfigurationError
from stratascope.tasks.models.network import build_network
from stratascope.tasks.training.config import OptimizerSpec, TrainConfig
from stratascope.tasks.training.seeds import base_seed, derived_seed


def initial_network(config: TrainConfig, folder: Path) -> nn.Module:
    """The network of `config` with its seeded initial weights; those that match `frozen` take no gradient.

    Raises ConfigurationError for a pattern that matches nothing, or where nothing is left to train.
    """
    torch.default_generator.manual_seed(derived_seed(base_seed(config, "weights"), "weights"))
    network = build_network(config.model, folder)
    if config.initial_scale != 1.0:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(config.initial_scale)
    names = [name for name, _ in network.named_parameters()]
    for pattern in config.frozen:
        if not any(fnmatchcase(name, pattern) for name in names):
            there = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise ConfigurationError(f"`frozen: {pattern!r}` matches no weights of the network: it has {there}.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in config.frozen))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigurationError("there is nothing to train: the network has no weights, or all are frozen.")
    if config.memory_format == "channels_last":
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def build_optimizer(spec: OptimizerSpec, trained: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of `spec` over the weights `trained`; its rate is set anew in each step."""
    if spec.name == "adam":
        return torch.optim.Adam(trained, spec.rate, spec.betas, weight_decay=spec.weight_decay)
    if spec.name == "adamw":
        return torch.optim.AdamW(trained, spec.rate, spec.betas, weight_decay=spec.weight_decay)
    if spec.nesterov and not spec.momentum:
        raise ConfigurationError("`optimizer: {nesterov: true}` needs a `momentum` above 0.")
    return torch.optim.SGD(
        trained, spec.rate, momentum=spec.momentum, weight_decay=spec.weight_decay, nesterov=spec.nesterov
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's memory as tensors, named ``<parameter number>/<what>``."""
    return {
        f"{number}/{key}": value
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give `optimizer` back what `optimizer_tensors` took from one over the same weights."""
    content = optimizer.state_dict()
    content["state"] = {}
    for name, value in tensors.items():
        number, _, key = name.partition("/")
        content["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(content)

"""Where the weights lie inside what a file holds, and under which names the network knows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stratascope.errors import CheckpointError
from stratascope.storage.checkpoint_files import MOST_STEPS

if TYPE_CHECKING:
    from torch import Tensor

STEP_KEYS = ("global_step", "step", "epoch")
_PLACES = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "module",
    "network",
    "net",
    "weights",
    "params",
)
_NOT_WEIGHTS = ("optim", "lr_sched", "sched", "scaler", "rng", "callbacks", "loops", "ema_optim")
"""Beginnings of keys under which tensors lie that are no weights of the network."""
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""
_DEEPEST = 4


def find_state_dict(content: Any, name: str, key: str | None) -> dict[str, Tensor]:
    """The tensors by name inside `content`, which the file `name` holds.

    `key` leads to them, dots going further down. Without it they are looked for under the usual keys, then under
    the only key that has any. Raises CheckpointError where there are none, or more than one such place.
    """
    if key is not None:
        content = _at(content, key, name)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{name} holds a {type(content).__name__}, not a state dict.")
    tensors = _search(content, name, _DEEPEST)
    if not tensors:
        held = ", ".join(repr(str(item)) for item in list(content)[:8]) or "nothing"
        raise CheckpointError(f"{name} holds no tensors where weights are looked for (it holds {held}); name their place with `state_dict: {{key: …}}`.")  # fmt: skip
    return tensors


def _at(content: Any, key: str, name: str) -> Any:
    if isinstance(content, Mapping) and key in content:
        return content[key]
    found = content
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            held = ", ".join(repr(str(item)) for item in list(content)[:8]) if isinstance(content, Mapping) else ""
            raise CheckpointError(f"{name} has no key {key!r}; it has {held or 'none'}.")
        found = found[part]
    return found


def _search(content: Mapping[Any, Any], name: str, depth: int) -> dict[str, Tensor]:
    from torch import Tensor

    direct = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if depth == 0:
        return direct
    below = {
        str(key): found
        for key, value in content.items()
        if isinstance(value, Mapping)
        and not str(key).lower().startswith(_NOT_WEIGHTS)
        and (found := _search(value, name, depth - 1))
    }
    usual = [key for key in _PLACES if key in below]
    # Loose numbers (a loss, a step) stand beside the weights of a training state; weights have dimensions.
    if any(value.dim() for value in direct.values()) or not below:
        return direct
    chosen = usual or list(below)
    if len(chosen) > 1:
        raise CheckpointError(
            f"{name} holds weights under {chosen[0]!r} and {chosen[1]!r}; say which with `state_dict: {{key: …}}`."
        )
    return below[chosen[0]]


def inner_step(content: Any) -> int | None:
    """The step that a key of `content` tells: `global_step`, `step` or `epoch`; None without one."""
    if not isinstance(content, Mapping):
        return None
    for key in STEP_KEYS:
        value: Any = content.get(key)
        if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            value = value.item()
        if isinstance(value, str) and value.isdecimal() and len(value) < 16:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_STEPS:
            return value
    return None


def fit_names(
    tensors: Mapping[str, Tensor], wanted: Iterable[str], strip_prefix: str | None, name: str
) -> dict[str, Tensor]:
    """`tensors` under the network's names: what wrappers put before or into them goes.

    `wanted` are the names of the network's state dict. A prefix is taken off where more names fit without it; those
    that do not carry it stay as they are. Raises CheckpointError where two prefixes (`student.`, `teacher.`) fit
    equally well, or two names become one.
    """
    expected = set(wanted)
    if strip_prefix is not None:
        return _renamed(tensors, strip_prefix.rstrip(".") + "." if strip_prefix else "", name)
    plain = {_without_wrappers(key, expected): value for key, value in tensors.items()}
    if len(plain) < len(tensors):
        plain = dict(tensors)
    fitting = len(plain.keys() & expected)
    counts = Counter(prefix for key in plain for prefix in _prefixes(key))
    scores = {
        prefix: sum(key.removeprefix(prefix) in expected for key in plain if key.startswith(prefix))
        for prefix, count in counts.items()
        if 2 * count >= len(expected)
    }
    best = max(scores.values(), default=0)
    if best <= fitting:
        return plain
    chosen = sorted(prefix for prefix, score in scores.items() if score == best)
    if len(chosen) > 1:
        raise CheckpointError(
            f"{name} holds the network under {chosen[0]!r} and {chosen[1]!r}; say which with "
            "`state_dict: {strip_prefix: …}`."
        )
    return _renamed(plain, chosen[0], name)


def _renamed(tensors: Mapping[str, Tensor], prefix: str, name: str) -> dict[str, Tensor]:
    """`tensors` with `prefix` off those that carry it; those are sure of their names, others keep theirs if free."""
    renamed = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    for key, value in tensors.items():
        if not key.startswith(prefix):
            if key in renamed:
                raise CheckpointError(f"{name} holds both {key!r} and {prefix + key!r}; expected one of them.")
            renamed[key] = value
    return renamed


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:depth]) + "." for depth in range(1, min(len(parts), 6))]


def _without_wrappers(key: str, expected: set[str]) -> str:
    if key in expected:
        return key
    parts = [part for part in key.split(".") if part not in _WRAPPERS]
    shorter = ".".join(parts)
    if shorter in expected or "module" not in parts:
        return shorter
    # A part of the network that stood in DataParallel by itself has `module` in the middle of its names.
    bare = ".".join(part for part in parts if part != "module")
    return bare if bare in expected else shorter

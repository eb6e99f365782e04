"""What is known of a checkpoint once it has been read: digests, norms, what does not fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import CheckpointError, DeferredCheckpointError, nearest_names
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.digests import identity_of
from stratascope.tasks.device import device_of
from stratascope.tasks.intake.fingerprints import describe, sketch, tensor_digest
from stratascope.tasks.intake.load import LoadedWeights, NetworkTraits, first_line, load_weights
from stratascope.tasks.intake.state_dicts import fit_names

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, and what its capture must know."""

    module: nn.Module
    traits: NetworkTraits


@dataclass(frozen=True)
class Fit:
    """The tensors of a file under the network's names, and the names without a counterpart on either side."""

    tensors: dict[str, Tensor]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def checkpoint_facts(file: CheckpointFile, source: RunSource, folder: Path) -> dict[str, Any]:
    """Read `file` once and tell what planning and triage need, as JSON-like data.

    A file that cannot be read or does not fit its network gives ``status`` quarantined with its reason.
    Raises DeferredCheckpointError where the file changes while it is read.
    """
    try:
        loaded = load_weights(file, source, folder)
        network = _bare_network(loaded, source, folder)
        fit = fit_weights(loaded.tensors, network, file, source, folder)
        return _facts(file, fit, network, loaded)
    except DeferredCheckpointError:
        raise
    except CheckpointError as error:
        return {"status": "quarantined", "reason": str(error)}


def load_network(
    file: CheckpointFile, source: RunSource, folder: Path, weights_digest: str | None = None, device: str = "cpu"
) -> nn.Module:
    """The network of `file` with its weights, in evaluation mode. Raises as `open_network` does."""
    return open_network(file, source, folder, weights_digest, device).module


def open_network(
    file: CheckpointFile, source: RunSource, folder: Path, weights_digest: str | None = None, device: str = "cpu"
) -> LoadedNetwork:
    """The network of `file` with its weights, in evaluation mode, and what its capture must know.

    An exported program stays on the processor, which is built into it. Raises ClusterError where this process has no
    such `device`, CheckpointError where it cannot be read or does not fit, DeferredCheckpointError where its weights are not
    (any more) those of `weights_digest`.
    """
    loaded = load_weights(file, source, folder)
    network = _bare_network(loaded, source, folder)
    fit = fit_weights(loaded.tensors, network, file, source, folder)
    if weights_digest is not None and weights_digest != _digest_of(fit.tensors):
        raise DeferredCheckpointError(
            f"{file.path.name} has changed since this audit began: it is left for the next one."
        )
    if network is not loaded.network:
        try:
            network.load_state_dict(fit.tensors, strict=False)
        except RuntimeError as error:
            reason = first_line(error)
            raise CheckpointError(f"{file.path.name} does not fit {_factory(source)}: {reason}.") from None
    if loaded.traits.kind != "exported":  # an exported program has its mode and its device built in
        network.eval()
        if device != "cpu":
            network.to(device_of(device))
    return LoadedNetwork(network, loaded.traits)


def _bare_network(loaded: LoadedWeights, source: RunSource, folder: Path) -> nn.Module:
    from stratascope.tasks.models.network import build_network

    if loaded.network is not None and (loaded.traits.kind != "module" or not source.model.factory):
        return loaded.network
    return build_network(source.model, folder)


def _factory(source: RunSource) -> str:
    return repr(source.model.factory) if source.model.factory else "its own module"


def fit_weights(
    found: dict[str, Tensor], network: nn.Module, file: CheckpointFile, source: RunSource, folder: Path
) -> Fit:
    """`found` under the names of `network`, complete in all that training moves.

    One tensor under two names (tied weights) may be in the file once. Buffers that the factory sets, such as
    `num_batches_tracked` or a mask, may be missing; parameters and running statistics may not, for the network would
    be partly random. Raises CheckpointError that names the tensor, its nearest name, or both shapes.
    """
    from torch import Tensor

    own = {name: value for name, value in network.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}
    tensors = fit_names(found, own, source.state_dict.strip_prefix, file.path.name)
    for name in own.keys() - tensors.keys():
        twin = next((other for other in tensors if other in own and own[other] is own[name]), None)
        if twin is not None:
            tensors[name] = tensors[twin]
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    needed = [name for name in missing if name in _learned(network)]
    if needed:
        near = nearest_names(needed[0], unexpected, 1)
        raise CheckpointError(
            f"{file.path.name} does not fit {_factory(source)}: {len(needed)} of {len(own)} tensors are missing, "
            f"first {needed[0]!r}{f'; it has {near[0]!r}' if near else ''}. Check the factory and its args."
        )
    wrong = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        more = f" ({len(wrong) - 1} more do not fit)" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{file.path.name} does not fit {_factory(source)}: {wrong[0]!r} has shape "
            f"{tuple(tensors[wrong[0]].shape)}, the network expects {tuple(own[wrong[0]].shape)}{more}."
        )
    if missing:
        _refuse_random(missing, own, file, source, folder)
    kept = {name: tensors[name] for name in own if name in tensors}
    return Fit(kept, tuple(missing), tuple(unexpected))


def _learned(network: nn.Module) -> set[str]:
    """The names of what training moves: parameters, and the running statistics of norm layers."""
    names = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    return names | {name for name, _ in network.named_buffers() if name.endswith(("running_mean", "running_var"))}


def _refuse_random(
    missing: list[str], own: dict[str, Tensor], file: CheckpointFile, source: RunSource, folder: Path
) -> None:
    """Raise CheckpointError where a buffer that the file lacks is another in each network that the factory builds."""
    import torch

    from stratascope.tasks.models.network import build_network

    if not source.model.factory:
        return
    again = build_network(source.model, folder).state_dict()
    for name in missing:
        if name not in again or not torch.equal(torch.nan_to_num(again[name]), torch.nan_to_num(own[name])):
            raise CheckpointError(
                f"{file.path.name} lacks the buffer {name!r}, which {_factory(source)} sets at random; save it, or "
                "seed the factory."
            )


def _digest_of(tensors: dict[str, Tensor]) -> str:
    return identity_of({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def _facts(file: CheckpointFile, fit: Fit, network: nn.Module, loaded: LoadedWeights) -> dict[str, Any]:
    described = {}
    for name, tensor in sorted(fit.tensors.items()):
        try:
            described[name] = describe(tensor)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise CheckpointError(
                f"{file.path.name}: {name!r} of type {tensor.dtype} cannot be read: {first_line(error)}."
            ) from None
    parameters = [name for name, _ in network.named_parameters() if name in fit.tensors]
    matrices = sketch((name, fit.tensors[name]) for name in parameters if fit.tensors[name].dim() > 1)
    others = sketch((name, fit.tensors[name]) for name in parameters if fit.tensors[name].dim() <= 1)
    return {
        "status": "ok",
        "reason": "",
        "inner_step": loaded.inner_step,
        "weights_digest": identity_of({name: facts["digest"] for name, facts in described.items()}),
        "parameter_count": sum(item.numel() for item in network.parameters()),
        "parameter_norm": sum(described[name]["norm"] ** 2 for name in parameters) ** 0.5,
        "non_finite_count": sum(facts["non_finite"] for facts in described.values()),
        "missing_keys": list(fit.missing),
        "unexpected_keys": [_with_neighbour(name, fit.missing) for name in fit.unexpected],
        "tensors": described,
        "parameters": parameters,
        "sketch": [float(value) for value in matrices + others],
        "matrix_sketch": [float(value) for value in matrices],
        "network": asdict(loaded.traits),
    }


def _with_neighbour(name: str, missing: tuple[str, ...]) -> str:
    near = nearest_names(name, missing, 1)
    return f"{name} (near {near[0]})" if near else name

"""Little recurrent networks whose memory is known, and tasks that need one."""

from __future__ import annotations

import numpy as np
import torch

from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.models import character_model, recurrent_classifier
from stratascope.tasks.sequence.sequence_network import SequenceNetwork

CHARACTERS = {"cell": "lstm", "alphabet": 6, "embedding": 4, "width": 5}
CLASSIFIER = {"cell": "gru", "inputs": 3, "width": 5, "outputs": 3}


def wrapped(network: torch.nn.Module) -> SequenceNetwork:
    """`network` in evaluation mode, as analyses get it."""
    return SequenceNetwork(network.eval(), ModelSpec(factory="none:none"))


def given(inputs: np.ndarray, targets: np.ndarray | None, mask: np.ndarray | None = None) -> GivenSamples:
    """Samples called by their numbers."""
    rows = np.arange(len(inputs))
    return GivenSamples("test", rows, inputs, targets, mask, rows.astype(str), ())


def texts(count: int = 12, time: int = 16, alphabet: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random codes (sample, time) and, for each, the next one."""
    codes = np.random.default_rng(seed).integers(0, alphabet, (count, time + 1))
    return codes[:, :-1], codes[:, 1:]


def seeded(build, seed: int = 0, **arguments) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(**arguments)


@torch.no_grad()
def holding(keep: np.ndarray, seed: int = 0) -> torch.nn.Module:
    """A character LSTM whose forget gates are `keep` (unit,) whatever it reads, and whose gates never see its state."""
    network = seeded(character_model, seed, **(CHARACTERS | {"width": len(keep)}))
    recurrent = network.recurrent
    units = len(keep)
    recurrent.weight_hh_l0.zero_()
    recurrent.weight_ih_l0[units : 2 * units] = 0
    recurrent.bias_hh_l0.zero_()
    recurrent.bias_ih_l0[units : 2 * units] = torch.from_numpy(np.log(keep / (1 - keep))).float()
    return network


def text_audit(audit, networks: dict[int, torch.nn.Module], **probe):
    """`audit` with a probe of texts and a checkpoint of each of `networks`, by step."""
    inputs, targets = texts(**probe)
    audit.probe("test", class_names=tuple("abcdef"), inputs=inputs, targets=targets)
    for step, network in networks.items():
        audit.checkpoint(step, network)
    return audit


__all__ = ["CHARACTERS", "CLASSIFIER", "character_model", "given", "holding", "recurrent_classifier", "seeded", "text_audit", "texts", "wrapped"]  # fmt: skip

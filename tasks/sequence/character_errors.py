"""What a model of characters gets wrong: what n-grams, a memory of words, rare words or the next word would have told."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.resampling import bootstrap_counts, percentile_interval
from stratascope.tasks.sequence.character_errors_drawing import draw
from stratascope.tasks.sequence.sequence_samples import (
    SHOWN,
    SequenceOptions,
    SequenceSamples,
    names_of,
    sequence_samples,
)

_ROUNDS = 200


class CharacterErrorsOptions(SequenceOptions):
    """How far the oracles see. N-grams and words are counted in the probe with role `train`."""

    max_samples: int = Field(default=512, ge=1)
    training_samples: int = Field(default=4000, ge=1)
    """So many samples of the training probe are counted at most."""
    order: int = Field(default=9, ge=1, le=16)
    """The longest n-gram."""
    memory: tuple[int, ...] = (25, 50, 100, 500)
    """A word counts as remembered where it stands among so many characters before."""
    rare: int = Field(default=5, ge=0)
    """A word is rare where the training text holds it so often at most."""

    @field_validator("memory")
    @classmethod
    def _ascends(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if list(given) != sorted(set(given)) or any(length < 1 for length in given):
            raise ValueError("the lengths must be above 0 and ascend")
        return given


def compute(context: CheckpointContext, options: CharacterErrorsOptions) -> Findings:
    """Rows by probe and type; arrays `<probe>/count`, `<probe>/loss` (sample, type) and the shown texts' probabilities."""
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    network = SequenceNetwork.of(context)
    training = next((probe for probe in context.probes.values() if probe.role == "train"), None)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                if training is not None and name == training.name:
                    raise DoesNotApply("n-grams and words are counted in this probe: they know all of it.")
                _probe(network, probe, training, options, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
    return findings


def character_texts(samples: SequenceSamples) -> np.ndarray:
    """int64 (sample, token + 1): the codes of each sample and the one that follows, -1 at padding.

    Raises DoesNotApply where the targets are not the next characters of the inputs.
    """
    name = next(iter(samples.inputs), "")
    probe, targets = samples.probe.name, samples.given.targets
    codes = np.asarray(leaves_of(samples.given.inputs)[name])
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or not names_of(samples.probe, name):
        raise DoesNotApply(f"the samples of probe {probe!r} are no text: codes with a name for each are needed.")
    if any(len(word) != 1 for word in names_of(samples.probe, name)):
        raise DoesNotApply(f"the tokens of probe {probe!r} are not single characters.")
    if (
        targets is None
        or targets.shape != codes.shape
        or not (targets[:, :-1] == codes[:, 1:])[samples.real(name)[:, 1:]].all()
    ):
        raise DoesNotApply(f"the targets of probe {probe!r} are not the characters that follow its inputs.")
    real = samples.real(name)
    return np.concatenate([np.where(real, codes, -1)[:, :1], np.where(real, targets, -1)], axis=1).astype(np.int64)


def _probe(
    network: Any, probe: Probe, training: Probe | None, options: CharacterErrorsOptions, findings: Findings
) -> None:
    from stratascope.tasks.sequence.error_types import ErrorTypes, least_orders, word_counts

    samples = sequence_samples(probe, options)
    codes = character_texts(samples)
    names = names_of(probe)
    given = _given_probability(network, samples, codes, options.batch_size)
    order, counts = 0, None
    grams = np.zeros(given.shape, np.int8)
    if training is not None:
        known = sequence_samples(
            training, SequenceOptions(max_samples=options.training_samples, seed=options.seed)
        )
        counted = character_texts(known)
        if names_of(training) != names:
            raise DoesNotApply(f"probe {training.name!r} has another alphabet than {probe.name!r}.")
        order, grams = options.order, least_orders(counted, codes, options.order)
        counts = word_counts([_text(row, names) for row in counted])
    types = ErrorTypes(
        order, tuple(m for m in options.memory if m <= codes.shape[1]), options.rare if counts is not None else -1
    )
    kinds = np.full(given.shape, -1, np.int64)
    for row, text in enumerate(codes):
        length = int((text >= 0).sum()) - 1
        kinds[row, :length] = types.assign(_text(text, names), given[row, :length], grams[row, :length], counts)
    _file(samples, codes, given, kinds, types.names, options, findings, training is None)


def _text(codes: np.ndarray, names: tuple[str, ...]) -> str:
    return "".join(names[code] for code in codes.tolist() if code >= 0)


def _given_probability(network: Any, samples: SequenceSamples, codes: np.ndarray, size: int) -> np.ndarray:
    """float64 (sample, token): what the network gives to each character that follows; NaN at padding."""
    import torch

    found = np.full((len(codes), codes.shape[1] - 1), np.nan)
    with torch.no_grad():
        for rows in network.batches_of(samples.given, size):
            outputs = network.run(samples.given.part(rows))
            wanted = torch.from_numpy(codes[rows, 1:])
            if outputs.ndim != 3 or outputs.shape[:2] != wanted.shape or outputs.shape[2] <= int(wanted.max()):
                raise DoesNotApply(
                    f"the network's output has shape {tuple(outputs.shape)}; (sample, token, character) is needed."
                )
            logits = torch.log_softmax(outputs.double().cpu(), -1)
            chosen = logits.gather(2, wanted.clamp(min=0)[..., None])[..., 0].exp()
            found[rows] = torch.where(wanted >= 0, chosen, torch.nan).numpy()
    return found


def _file(
    samples: SequenceSamples, codes: np.ndarray, given: np.ndarray, kinds: np.ndarray, names: tuple[str, ...],
    options: CharacterErrorsOptions, findings: Findings, untaught: bool,
) -> None:  # fmt: skip
    probe = samples.probe.name
    real = np.isfinite(given)
    losses = np.where(real, -np.log(np.maximum(given, 1e-300)), 0.0)
    count = np.stack([(kinds == number).sum(1) for number in range(len(names))], 1)
    loss = np.stack([np.where(kinds == number, losses, 0.0).sum(1) for number in range(len(names))], 1)
    tokens = real.sum(1)
    drawn = bootstrap_counts(len(tokens), _ROUNDS, options.seed)
    convention = "no probe with role `train`: n-grams and rare words are left out" if untaught else ""
    for metric, by_type in (("character_error_rate", count), ("character_error_loss", loss)):
        columns = {"": by_type.sum(1), **{f"type={name}": by_type[:, number] for number, name in enumerate(names)}}
        for part, values in columns.items():
            low, high = percentile_interval((drawn @ values) / np.maximum(drawn @ tokens, 1))
            findings.rows.append(Row(
                metric, float(values.sum() / tokens.sum()), probe=probe, part=part, n=int(tokens.sum()), low=low, high=high,
                estimator="interval by bootstrap over samples", convention=convention,
            ))  # fmt: skip
    rate = count.sum() / tokens.sum()
    findings.rows.append(Row("character_loss", float(losses.sum() / tokens.sum()), probe=probe, n=int(tokens.sum()), convention=f"{rate:.1%} of the characters are errors"))  # fmt: skip
    root = encode_path_part(probe)
    facts = {"type": list(names)}
    findings.arrays |= samples.shown_arrays() | {
        f"{root}/count": NamedArray(("measured_sample", "type"), count.astype(np.int64), facts),
        f"{root}/loss": NamedArray(("measured_sample", "type"), loss, facts),
        f"{root}/tokens_counted": NamedArray(("measured_sample",), tokens.astype(np.int64)),
        f"{root}/shown_text": NamedArray((SHOWN, "character"), codes[: samples.shown]),
        f"{root}/shown_probability": NamedArray((SHOWN, "predicted"), given[: samples.shown].astype(np.float32)),
        f"{root}/shown_type": NamedArray((SHOWN, "predicted"), kinds[: samples.shown], facts),
    }


_KEPT = "order of the samples; a number added to all logits of a character"

ANALYSIS = register(
    Analysis(
        name="character_errors", version=1, scope="checkpoint", title="Errors of a character model",
        question="Would short memory, long memory or more words have avoided its errors?",
        options=CharacterErrorsOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("character_error_rate", "1", "[0, 1]", "The share of all characters to which the model gives less than a half; with `type=…` of those that this oracle would have avoided first: n-gram models of the training text with n = 1 … 9, a memory of the words before, words that are rare in training, the first letter of a word, marks, ends of words, near misses (0.4 or more), the rest. The types add up to the whole.", "Karpathy et al. 2015, section 4.4", _KEPT),
            Metric("character_error_loss", "nat", "[0, ∞)", "What the errors of that type add to the mean loss of a character: the sum of their losses by the number of all characters.", "Karpathy et al. 2015, section 4.4", _KEPT),
            Metric("character_loss", "nat", "[0, ∞)", "Mean loss of all characters of the measured samples.", "", _KEPT),
        ),
    )
)  # fmt: skip

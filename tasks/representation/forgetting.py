"""Which samples a network learned, forgot and never knew, as the audited checkpoints saw it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEVER = -1
"""In place of a number of a checkpoint that there is not."""


@dataclass(frozen=True)
class LearningHistory:
    """What became of each sample over the checkpoints; everything is (sample,)."""

    events: np.ndarray
    """int64: how often it was right at one checkpoint and wrong at the next."""
    first_learned: np.ndarray
    """int64: the number of the first checkpoint that has it right; `NEVER` where none has."""
    settled: np.ndarray
    """int64: the number of the checkpoint from which on all have it right; `NEVER` where the last has it wrong."""

    @property
    def never_learned(self) -> np.ndarray:
        return np.asarray(self.first_learned == NEVER)

    @property
    def unforgettable(self) -> np.ndarray:
        """Learned, and never wrong after that."""
        return np.asarray((self.first_learned != NEVER) & (self.events == 0))


def learning_history(right: np.ndarray) -> LearningHistory:
    """The history that bool `right` (checkpoint, sample) tells.

    Toneva et al. (2019, section 3) count forgetting events over presentations in training; between checkpoints that are
    further apart some go unseen, so that these are lower bounds.
    """
    right = np.asarray(right, bool)
    events = (right[:-1] & ~right[1:]).sum(0)
    learned = right.any(0)
    first = np.where(learned, right.argmax(0), NEVER)
    wrong = ~right
    last_wrong = len(right) - 1 - wrong[::-1].argmax(0)
    settled = np.where(wrong.any(0), last_wrong + 1, 0)
    settled = np.where(right[-1], settled, NEVER)
    return LearningHistory(events.astype(np.int64), first.astype(np.int64), settled.astype(np.int64))


@dataclass(frozen=True)
class Course:
    """Shares of the samples at each checkpoint, counted over the checkpoints up to it; everything is (checkpoint,)."""

    events: np.ndarray
    """Forgetting events a sample so far."""
    forgotten: np.ndarray
    """Had at least one."""
    never_learned: np.ndarray
    unforgettable: np.ndarray
    """Learned by then, and not forgotten since."""


def learning_course(right: np.ndarray) -> Course:
    """How the history of bool `right` (checkpoint, sample) unfolds."""
    right = np.asarray(right, bool)
    lost = np.zeros(right.shape, np.int64)
    lost[1:] = np.cumsum(right[:-1] & ~right[1:], axis=0)
    learned = np.logical_or.accumulate(right, axis=0)
    return Course(lost.mean(1), (lost > 0).mean(1), (~learned).mean(1), (learned & (lost == 0)).mean(1))


TRANSITIONS = ("newly_right", "newly_wrong", "changed_wrong")


def transitions(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """bool (sample,) for each of `TRANSITIONS` between two predictions (sample,) of the same samples.

    `changed_wrong` has another wrong answer than before; all that is in none of the three kept its answer.
    """
    was, now = before == targets, after == targets
    return {
        "newly_right": ~was & now,
        "newly_wrong": was & ~now,
        "changed_wrong": ~was & ~now & (before != after),
    }


def chance_of_churn(before: np.ndarray, after: np.ndarray) -> float:
    """How often two predictions (sample,) would differ if they were unrelated, each class staying as frequent as it is."""
    classes = int(max(before.max(initial=0), after.max(initial=0))) + 1
    shares = [np.bincount(item, minlength=classes) / len(item) for item in (before, after)]
    return float(1.0 - (shares[0] * shares[1]).sum())


def relative_change(before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 (sample,): mean squared change of predictions (sample, number), over the targets' mean variance.

    Its mean's root is the change in standard deviations of the targets. Raises ValueError where the targets do not vary.
    """
    spread = float(np.asarray(targets, np.float64).reshape(len(targets), -1).var(0).mean())
    if spread == 0:
        raise ValueError("the targets do not vary")
    change = (np.asarray(after, np.float64) - np.asarray(before, np.float64)).reshape(len(before), -1)
    found: np.ndarray = (change**2).mean(1) / spread
    return found

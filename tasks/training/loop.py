"""The one training loop: a seeded run that leaves a series of checkpoints and its trace."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stratascope.errors import ConfigurationError
from stratascope.storage.probes import build_probe
from stratascope.storage.traces import write_trace
from stratascope.tasks.models.network import as_tensor, build_network, call_network, select_output
from stratascope.tasks.training.config import LossSpec, ScheduleSpec, TrainConfig
from stratascope.tasks.training.data import augment, corrupted


@dataclass(frozen=True)
class TrainingSummary:
    """What a run left behind."""

    directory: str
    checkpoints: int
    steps: int
    train_accuracy: float
    test_accuracy: float
    train_loss: float


Progress = Callable[[int, int, dict[str, Any]], None]


def train(config: TrainConfig, folder: Path, progress: Progress | None = None) -> TrainingSummary:
    """Train as `config` says; paths are relative to `folder`. Raises ConfigurationError, ProbeError.

    A `twin` trains a second run from the same initial weights in the same batch order.
    """
    torch.set_num_threads(config.threads)
    training = build_probe("train", config.train, folder)
    testing = build_probe("test", config.test, folder)
    if training.targets is None or testing.targets is None:
        raise ConfigurationError("training needs targets: the data set of `train` and `test` must have them.")
    classes = max(len(training.class_names), int(training.targets.max()) + 1 if config.loss.name != "mse" else 0)
    inputs, targets = corrupted(training.inputs, training.targets, config.corruption, classes, config.seed)
    data = (as_tensor(inputs), as_tensor(targets))
    tests = (as_tensor(testing.inputs), as_tensor(testing.targets))
    directory = folder / config.directory
    summary = _Run(config, folder, directory, data, tests, progress).train()
    if config.twin is not None:
        replaced = int(config.twin.get("replace", 0))
        twin = tuple(part.clone() for part in data)
        twin[0][replaced], twin[1][replaced] = tests[0][0], tests[1][0]
        _Run(config, folder, directory.with_name(f"{directory.name}-twin"), twin, tests, progress).train()
    return summary


class _Run:
    """One run in the making."""

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        directory: Path,
        data: tuple[Tensor, ...],
        tests: tuple[Tensor, ...],
        progress: Progress | None,
    ) -> None:
        self.config, self.folder, self.directory, self.progress = config, folder, directory, progress
        self.inputs, self.targets = data
        self.tests = tests
        torch.manual_seed(config.seed)
        self.network = build_network(config.model, folder)
        self.noise = torch.Generator().manual_seed(config.seed + 7919)
        self.steps_per_epoch = math.ceil(len(self.inputs) / config.batch_size)
        self.last_step = config.stop.steps or max(1, round(config.stop.epochs * self.steps_per_epoch))
        self.optimizer = self._optimizer()
        self.moments = checkpoint_steps(config, self.steps_per_epoch, self.last_step)
        self.trace: list[dict[str, Any]] = []

    def _optimizer(self) -> torch.optim.Optimizer:
        spec = self.config.optimizer
        if spec.name == "adam":
            return torch.optim.Adam(self.network.parameters(), spec.rate, weight_decay=spec.weight_decay)
        return torch.optim.SGD(
            self.network.parameters(), spec.rate, momentum=spec.momentum, weight_decay=spec.weight_decay
        )

    def train(self) -> TrainingSummary:
        """All steps; returns the summary of the last recorded moment."""
        self.directory.mkdir(parents=True, exist_ok=True)
        written = 0
        step = 0
        self._record(step, 0.0, 0)
        self._write(step)
        written += 1
        stopped = False
        while step < self.last_step and not stopped:
            epoch = step // self.steps_per_epoch
            batch_seed = self.config.seed * 1_000_003 + epoch
            order = torch.randperm(len(self.inputs), generator=torch.Generator().manual_seed(batch_seed))
            losses = []
            for start in range(0, len(order), self.config.batch_size):
                rows = order[start : start + self.config.batch_size]
                rate = self._set_rate(step)
                losses.append(self._step(rows, rate))
                step += 1
                last = step == self.last_step
                if step in self.moments or last:
                    self._record(step, rate, batch_seed)
                    self._write(step)
                    written += 1
                if last:
                    break
            target = self.config.stop.loss_below
            if target is not None and float(np.mean(losses)) < target and step not in self.moments:
                stopped = True
                self._record(step, rate, batch_seed)
                self._write(step)
                written += 1
        write_trace(self.directory / "trace.parquet", self.trace)
        last_row = self.trace[-1]
        return TrainingSummary(
            str(self.directory), written, step, last_row["train_accuracy"], last_row["test_accuracy"],
            last_row["train_loss"],
        )  # fmt: skip

    def _step(self, rows: Tensor, rate: float) -> float:
        self.network.train()
        images = self.inputs[rows]
        augmentation = self.config.augmentation
        if augmentation.crop or augmentation.flip:
            images = augment(images, augmentation, self.noise)
        loss = loss_of(self._outputs(images), self.targets[rows], self.config.loss)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        temperature = self.config.optimizer.temperature
        if temperature:
            with torch.no_grad():
                for parameter in self.network.parameters():
                    noise = torch.randn(parameter.shape, generator=self.noise)
                    parameter.add_(noise, alpha=math.sqrt(2 * rate * temperature))
        return float(loss.detach())

    def _outputs(self, images: Tensor) -> Tensor:
        output = call_network(self.network, images, self.config.model, self.folder)
        return select_output(output, self.config.model.output)

    def _set_rate(self, step: int) -> float:
        factor = rate_factor(self.config.schedule, step, self.steps_per_epoch, self.last_step)
        rate = self.config.optimizer.rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _record(self, step: int, rate: float, batch_seed: int) -> None:
        train_loss, train_accuracy = self._evaluate(self.inputs[:5000], self.targets[:5000])
        test_loss, test_accuracy = self._evaluate(*self.tests)
        gradients = [item.grad for item in self.network.parameters() if item.grad is not None]
        row = {
            "step": step,
            "epoch": step / self.steps_per_epoch,
            "rate": rate,
            "noise_variance": 2 * rate * self.config.optimizer.temperature,
            "batch_seed": batch_seed,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "gradient_norm": float(sum(float((item**2).sum()) for item in gradients)) ** 0.5,
        }
        self.trace.append(row)
        if self.progress is not None:
            self.progress(step, self.last_step, row)

    @torch.inference_mode()
    def _evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        self.network.eval()
        loss, right, count = 0.0, 0.0, 0
        for start in range(0, len(inputs), 500):
            outputs = self._outputs(inputs[start : start + 500])
            wanted = targets[start : start + 500]
            loss += float(loss_of(outputs, wanted, self.config.loss)) * len(wanted)
            count += len(wanted)
            if wanted.dtype == torch.int64:
                right += float((outputs.argmax(-1) == wanted).float().mean()) * len(wanted)
        return loss / count, right / count

    def _write(self, step: int) -> None:
        from safetensors.torch import save_file

        path = self.directory / f"step-{step:09d}.safetensors"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        tensors = {name: value.contiguous().clone() for name, value in self.network.state_dict().items()}
        facts = {"global_step": str(step), "run": self.config.name, "seed": json.dumps(self.config.seed)}
        save_file(tensors, temporary, metadata=facts)
        os.replace(temporary, path)


def loss_of(outputs: Tensor, targets: Tensor, spec: LossSpec) -> Tensor:
    """Mean loss of scores (sample, …, class) for targets (sample, …)."""
    if spec.name == "mse":
        return functional.mse_loss(outputs, targets)
    scores, wanted = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    if spec.name == "margin":
        return functional.multi_margin_loss(scores, wanted, margin=spec.margin)
    return functional.cross_entropy(scores, wanted, label_smoothing=spec.label_smoothing)


def rate_factor(spec: ScheduleSpec, step: int, steps_per_epoch: int, last_step: int) -> float:
    """What the rate is multiplied by at `step`."""
    epoch = step / steps_per_epoch
    if epoch < spec.warm_up_epochs:
        return (step + 1) / (spec.warm_up_epochs * steps_per_epoch)
    if spec.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / last_step))
    if spec.name == "milestones":
        return spec.factor ** sum(epoch >= milestone for milestone in spec.milestones)
    if spec.name == "inverse":
        return 1 / (1 + math.floor(epoch))
    return 1.0


def checkpoint_steps(config: TrainConfig, steps_per_epoch: int, last_step: int) -> frozenset[int]:
    """The steps after which weights are written."""
    spec = config.checkpoints
    early: Any = np.geomspace(1, max(1, steps_per_epoch), spec.log_spaced + 1)[:-1] if spec.log_spaced else []
    regular = np.arange(1, last_step / (spec.every_epochs * steps_per_epoch) + 1) * (
        spec.every_epochs * steps_per_epoch
    )
    wanted = {*(round(float(step)) for step in early), *(round(float(step)) for step in regular), *spec.steps}
    return frozenset(step for step in {*wanted, last_step} if 0 < step <= last_step)

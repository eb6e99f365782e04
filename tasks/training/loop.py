"""The one training loop: a seeded run that leaves a series of checkpoints and its trace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratascope.errors import StoreError, StratascopeError
from stratascope.storage.digests import canonical_json, identity_of
from stratascope.storage.traces import write_samples, write_trace
from stratascope.tasks.models.network import call_network, select_output
from stratascope.tasks.training.augmentation import augment
from stratascope.tasks.training.config import TrainConfig
from stratascope.tasks.training.data import Samples, TrainingData, load_data, map_inputs, rows_of, twin_data
from stratascope.tasks.training.example_gradients import example_gradient_norms, refuse_batch_norm
from stratascope.tasks.training.losses import accuracy_of, check_targets, cross_entropy_of, loss_of, target_count
from stratascope.tasks.training.optimization import (
    build_optimizer,
    initial_network,
    optimizer_tensors,
    restore_optimizer,
)
from stratascope.tasks.training.run_directory import Progress, RunDirectory
from stratascope.tasks.training.schedules import checkpoint_steps, evaluation_steps, factor, noise_variance
from stratascope.tasks.training.seeds import SEED_PURPOSES, base_seed, batch_order, derived_seed, stream

VERSION = 1
"""Raised when the same configuration comes to mean other bytes, a changed default included."""


@dataclass(frozen=True)
class TrainingSummary:
    """What a run left behind. Accuracies are NaN where targets are numbers; `stopped` is `cap` or `target`."""

    directory: str
    checkpoints: int
    steps: int
    train_accuracy: float
    test_accuracy: float
    train_loss: float
    stopped: str


Report = Callable[[int, int, dict[str, Any]], None]


def train(config: TrainConfig, folder: Path, progress: Report | None = None) -> TrainingSummary:
    """Train as `config` says; paths are relative to `folder`. `progress` hears (step, last step, trace row).

    A finished run is left as it is and an interrupted one goes on, to the same bytes. A `twin` is a second run.
    Raises ConfigurationError, ProbeError, CaptureError, StoreError where the disk takes no more, and StratascopeError
    where the loss is no longer finite.
    """
    torch.set_num_threads(config.threads)
    data = load_data(config, folder)
    directory = folder / config.directory
    alone = config.model_copy(update={"twin": None})
    other = twin_data(data, config.twin) if config.twin is not None else None
    try:
        summary = Run(alone, folder, directory, data, progress).train()
        if config.twin is not None and other is not None:
            place = directory.with_name(f"{directory.name}-twin-{config.twin.replace}")
            Run(config, folder, place, other, progress).train()
    except OSError as error:
        raise StoreError(
            f"{error.filename or directory} cannot be written: {error.strerror}. The checkpoints so far are whole, and "
            "the same command goes on from there."
        ) from error
    return summary


class Run:
    """One run in the making."""

    def __init__(
        self, config: TrainConfig, folder: Path, directory: Path, data: TrainingData, progress: Report | None
    ) -> None:
        self.config, self.folder, self.data, self.progress = config, folder, data, progress
        self.network = initial_network(config, folder)
        self.trained = [item for item in self.network.parameters() if item.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, self.trained)
        if config.trace.example_gradients_every is not None:
            refuse_batch_norm(self.network)
        count = len(data.train)
        self.batch_size = count if config.batch_size == "full" else min(int(config.batch_size), count)
        self.steps_per_epoch = math.ceil(count / self.batch_size)
        self.last_step = config.stop.steps or max(1, round(config.stop.epochs * self.steps_per_epoch))
        self.checkpoints = checkpoint_steps(config.checkpoints, self.steps_per_epoch, self.last_step)
        self.evaluations = evaluation_steps(
            config.evaluation, self.checkpoints, self.steps_per_epoch, self.last_step
        )
        self.seeds = {purpose: base_seed(config, purpose) for purpose in SEED_PURPOSES}
        self.trace: list[dict[str, Any]] = []
        self.written: list[int] = []
        self._epoch, self._order, self._batch_seed = -1, torch.empty(0, dtype=torch.int64), 0
        settings = config.model_dump(mode="json", exclude={"directory"}, exclude_defaults=True)
        self.digest = identity_of({"training": VERSION, "config": settings, "data": data.digests})
        facts = {
            "config": config.model_dump(mode="json"),
            "data": data.digests,
            "seeds": self.seeds,
            "torch": torch.__version__,
        }
        facts |= {"steps_per_epoch": self.steps_per_epoch, "batch_size": self.batch_size}
        self.directory = RunDirectory(directory, self.digest, facts)

    def train(self) -> TrainingSummary:
        """Everything from the initial weights, or from where the run was interrupted, to the last step."""
        started = time.monotonic(), time.process_time()
        finished = self.directory.open()
        if finished is not None:
            known: dict[str, Any] = {
                name: math.nan if value is None else value for name, value in finished.items()
            }
            return TrainingSummary(**(known | {"directory": str(self.directory.path)}))
        self._write_samples()
        step = self._go_on()
        try:
            while step < self.last_step and not self._target_is_met():
                step += 1
                self._advance(step)
        except _NotFinite as error:
            self._end("failed", {"reason": str(error)}, started)
            raise StratascopeError(
                f"run {self.config.name!r}: {error}. The checkpoints before it are kept; a lower rate, a warm-up or "
                "`optimizer: {clip_norm: 1}` may help."
            ) from None
        if step not in self.checkpoints:
            self._write_checkpoint(step)
        summary = self._summary(step)
        self._end("complete", asdict(summary), started)
        return summary

    def _go_on(self) -> int:
        """The step from which to go on, with everything as it was after it."""
        found = self.directory.load_progress()
        if found is None:
            row: dict[str, Any] = {"step": 0, "epoch": 0.0}
            self._evaluate(row)
            self.trace.append(row)
            self._tell(row)
            self._write_checkpoint(0)
            return 0
        self.network.load_state_dict(found.network)
        restore_optimizer(self.optimizer, found.optimizer)
        self.trace = found.trace
        self.written = sorted({found.step, *(step for step in self.checkpoints if step < found.step)})
        return found.step

    def _advance(self, step: int) -> None:
        """The update that leads to `step`, and what is due after it."""
        row = self._update(step)
        evaluated = step in self.evaluations
        if evaluated:
            self._evaluate(row)
        if evaluated or step % self.config.trace.every == 0 or "example_gradient_norm_max" in row:
            self.trace.append(row)
        if evaluated:
            self._tell(row)
        if step in self.checkpoints:
            self._write_checkpoint(step)

    def _update(self, step: int) -> dict[str, Any]:
        """One step of the optimizer; returns the trace row of it."""
        config, done = self.config, step - 1
        rows = self._batch(done)
        targets = self.data.train.targets[rows]
        rate = config.optimizer.rate * factor(config.schedule, done, self.steps_per_epoch, self.last_step)
        variance = noise_variance(config.noise, rate, done, self.steps_per_epoch, self.last_step)
        row: dict[str, Any] = {
            "step": step, "epoch": step / self.steps_per_epoch, "rate": rate, "noise_variance": variance,
            "batch_seed": self._batch_seed,
        }  # fmt: skip
        inputs = self._augmented(rows_of(self.data.train.inputs, rows), step)
        every = config.trace.example_gradients_every
        if every is not None and (step == 1 or step % every == 0):
            row |= self._example_gradients(inputs, targets)
        self.network.train()
        torch.default_generator.manual_seed(derived_seed(self.seeds["dropout"], "dropout", step))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            outputs = self._outputs(inputs)
        outputs = outputs.float() if outputs.dtype == torch.bfloat16 else outputs
        if step == 1:
            check_targets(outputs, targets, config.loss)
        loss = loss_of(outputs, targets, config.loss)
        row["batch_loss"] = float(loss.detach())
        if not math.isfinite(row["batch_loss"]):
            raise _NotFinite(f"the loss is {row['batch_loss']} at step {step}")
        row["batch_accuracy"] = float(accuracy_of(outputs.detach(), targets, config.loss))
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [item.grad for item in self.trained if item.grad is not None]
        row["gradient_norm_squared"] = float(sum(float(item.double().square().sum()) for item in gradients))
        if config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, config.optimizer.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self._add_noise(variance, step)
        return row

    def _batch(self, done: int) -> Tensor:
        """Places int64 (sample,) of the batch that follows `done` updates."""
        epoch, place = divmod(done, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._batch_seed = epoch, derived_seed(self.seeds["order"], "order", epoch)
            self._order = torch.from_numpy(batch_order(self._batch_seed, len(self.data.train)))
        return self._order[place * self.batch_size : (place + 1) * self.batch_size]

    def _augmented(self, inputs: Any, step: int) -> Any:
        spec = self.config.augmentation
        if not spec.is_active:
            return inputs
        generator = stream(self.seeds["augmentation"], "augmentation", step)
        return map_inputs(inputs, lambda images: augment(images, spec, generator))

    def _outputs(self, inputs: Any) -> Tensor:
        output = call_network(self.network, inputs, self.config.model, self.folder)
        return select_output(output, self.config.model.output)

    def _add_noise(self, variance: float, step: int) -> None:
        if not variance:
            return
        generator = stream(self.seeds["noise"], "noise", step)
        with torch.no_grad():
            for item in self.trained:
                drawn = generator.standard_normal(tuple(item.shape), dtype="float32")
                item.add_(torch.as_tensor(drawn), alpha=math.sqrt(variance))

    def _example_gradients(self, inputs: Any, targets: Tensor) -> dict[str, float]:
        norms = example_gradient_norms(
            self.network, self.config.model, self.config.loss, inputs, targets, self.folder
        )
        return {
            "example_gradient_norm_mean": float(norms.mean()),
            "example_gradient_norm_squared_mean": float((norms**2).mean()),
            "example_gradient_norm_max": float(norms.max()),
        }

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Put loss, cross-entropy and accuracy of training and test samples into `row`."""
        spec = self.config.evaluation
        for name, samples, limit in (
            ("train", self.data.train, spec.train_samples),
            ("test", self.data.test, spec.test_samples),
        ):
            loss, cross_entropy, accuracy = self._measured(samples, limit)
            if not math.isfinite(loss):
                raise _NotFinite(f"the {name} loss is {loss} after step {row['step']}")
            row |= {f"{name}_loss": loss, f"{name}_cross_entropy": cross_entropy, f"{name}_accuracy": accuracy}

    @torch.inference_mode()
    def _measured(self, samples: Samples, limit: int | None) -> tuple[float, float, float]:
        self.network.eval()
        spec, size = self.config.loss, self.config.evaluation.batch_size
        count = len(samples) if limit is None else min(limit, len(samples))
        sums, total = [0.0, 0.0, 0.0], 0
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            outputs = self._outputs(rows_of(samples.inputs, rows))
            wanted = samples.targets[rows]
            check_targets(outputs, wanted, spec)
            weight = target_count(wanted, spec)
            if not weight:
                continue
            for place, measure in enumerate((loss_of, cross_entropy_of, accuracy_of)):
                sums[place] += weight * float(measure(outputs, wanted, spec))
            total += weight
        return sums[0] / total, sums[1] / total, sums[2] / total

    def _target_is_met(self) -> bool:
        target = self.config.stop.cross_entropy_below
        reached = self.trace[-1].get("train_cross_entropy")
        return target is not None and reached is not None and reached < target

    def _write_checkpoint(self, step: int) -> None:
        model = self.config.model
        metadata = {
            "global_step": str(step), "run": self.config.name, "factory": model.factory,
            "args": canonical_json(model.args), "config_digest": self.digest,
        }  # fmt: skip
        tensors = self.network.state_dict()
        self.directory.write_checkpoint(step, tensors, metadata)
        self.written.append(step)
        self.directory.save_progress(Progress(step, tensors, optimizer_tensors(self.optimizer), self.trace))

    def _write_samples(self) -> None:
        samples = self.data.train
        columns: dict[str, Any] = {"sample_id": samples.sample_id}
        if samples.original.ndim == 1:
            columns |= {"target": samples.targets.numpy(), "original_target": samples.original}
            columns |= {"label_redrawn": samples.redrawn}
        write_samples(self.directory.path / "samples.parquet", columns)

    def _tell(self, row: dict[str, Any]) -> None:
        if self.progress is not None:
            self.progress(row["step"], self.last_step, row)

    def _summary(self, step: int) -> TrainingSummary:
        measured = ("train_accuracy", "test_accuracy", "train_loss")
        last = {name: self.trace[-1].get(name) for name in measured}
        numbers = {name: math.nan if value is None else value for name, value in last.items()}
        stopped = "target" if self._target_is_met() else "cap"
        return TrainingSummary(str(self.directory.path), len(self.written), step, **numbers, stopped=stopped)

    def _end(self, status: str, summary: dict[str, Any], started: tuple[float, float]) -> None:
        write_trace(self.directory.path / "trace.parquet", self.trace)
        # JSON has no NaN.
        summary = {name: None if value != value else value for name, value in summary.items()}
        seconds = time.monotonic() - started[0], time.process_time() - started[1]
        self.directory.finish(status, summary, self.written, *seconds)


class _NotFinite(Exception):
    """The loss is NaN or infinite."""

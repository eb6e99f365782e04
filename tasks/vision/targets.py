"""What is explained: one number of the network's output for each sample, such as the logit of its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import ConfigurationError, DoesNotApply

if TYPE_CHECKING:
    from torch import Tensor

TARGET_TEXT = "`label`, `predicted`, the number of an output, or a callable `module:name`"


@dataclass(frozen=True)
class Target:
    """A scalar for each sample, taken from the outputs (sample, output, …).

    `label` is the output of the sample's own class: the same question at every checkpoint. `predicted` is the output
    that is highest there and then. A whole number is that output for every sample. `module:name` is called with
    the outputs and the indices that `label` gives (or None), and returns a number for each sample (sample,). Where
    outputs have positions (sample, class, y, x) the mean over those positions counts at which the class is the highest,
    and over all where it is nowhere the highest.
    """

    wanted: str | int = "label"
    function: Callable[[Tensor, Tensor | None], Tensor] | None = None

    @classmethod
    def of(cls, wanted: str | int, folder: Path | None = None) -> Target:
        """Raises ConfigurationError for what names no target."""
        if isinstance(wanted, str) and ":" in wanted:
            from stratascope.storage.factories import load_object

            return cls(wanted, load_object(wanted, folder))
        if isinstance(wanted, str) and wanted not in ("label", "predicted"):
            raise ConfigurationError(f"target: {wanted!r} is not {TARGET_TEXT}.")
        return cls(wanted)

    def indices(self, outputs: Tensor, classes: np.ndarray | Tensor | None) -> Tensor:
        """int64 (sample,): which output is asked for each sample. Raises DoesNotApply where there is none such."""
        import torch

        if outputs.ndim < 2:
            return torch.zeros(len(outputs), dtype=torch.int64)
        count = outputs.shape[1]
        if isinstance(self.wanted, int):
            if not -count <= self.wanted < count:
                raise DoesNotApply(f"target {self.wanted} is out of range: the network has {count} outputs.")
            return torch.full((len(outputs),), self.wanted % count, dtype=torch.int64)
        if classes is None and count == 1:
            return torch.zeros(len(outputs), dtype=torch.int64)
        if self.wanted == "predicted" or classes is None:
            scores = outputs.detach().flatten(2).mean(2) if outputs.ndim > 2 else outputs.detach()
            return scores.argmax(1).cpu()
        found = torch.as_tensor(np.asarray(classes)).long().cpu()
        if len(found) != len(outputs):
            raise DoesNotApply(f"there are {len(outputs)} outputs and {len(found)} targets: one each is needed.")
        outside = (found < 0) | (found >= count)
        if bool(outside.any()):
            raise DoesNotApply(
                f"class {int(found[outside][0])} is out of range: the network has {count} outputs, 0 to {count - 1}."
            )
        return found

    def scores(self, outputs: Tensor, indices: Tensor) -> Tensor:
        """(sample,): the number asked for; it carries a gradient where the outputs do. Raises DoesNotApply."""
        import torch

        if len(indices) != len(outputs):
            raise DoesNotApply(f"there are {len(outputs)} outputs and {len(indices)} targets: one each is needed.")
        if self.function is not None:
            found = self.function(outputs, indices)
            if not isinstance(found, torch.Tensor) or found.shape != (len(outputs),):
                raise DoesNotApply(
                    f"target {self.wanted!r} returned {tuple(getattr(found, 'shape', ()))}; expected one number for "
                    f"each of the {len(outputs)} samples."
                )
            return found
        if outputs.ndim < 2:
            return outputs
        indices = indices.to(outputs.device)
        chosen = outputs[torch.arange(len(outputs), device=outputs.device), indices]
        if chosen.ndim == 1:
            return chosen
        inside = (outputs.detach().argmax(1) == indices.view(-1, *(1,) * (outputs.ndim - 2))).flatten(1)
        inside = torch.where(inside.any(1, keepdim=True), inside, torch.ones_like(inside)).to(outputs.dtype)
        return (chosen.flatten(1) * inside).sum(1) / inside.sum(1)

"""What the axes of a layer's output mean: told by the kind of module, by what went in, or by the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from stratascope.errors import ConfigurationError

_SPACE = {1: ("position",), 2: ("y", "x"), 3: ("z", "y", "x")}
_BY_CHANNEL = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d,
    nn.InstanceNorm3d, nn.LocalResponseNorm, nn.PixelShuffle, nn.PixelUnshuffle, nn.Upsample,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_FEATURES_LAST = (
    nn.Linear, nn.LayerNorm, nn.Embedding, nn.EmbeddingBag, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer,
    nn.TransformerEncoder, nn.TransformerDecoder,
)  # fmt: skip
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


class AxisGuesser:
    """Names axes during one pass over the network; remembers what each tensor's axes were."""

    def __init__(self, given: Mapping[str, Sequence[str]]) -> None:
        self._given = given
        self._by_tensor: dict[int, tuple[str, ...]] = {}
        self._by_shape: dict[tuple[int, ...], tuple[str, ...]] = {}
        self._alive: list[Tensor] = []

    def note_input(self, tensor: Tensor) -> None:
        """The network's own input: four axes are pictures."""
        if tensor.ndim == 4:
            self._remember(tensor, ("channel", "y", "x"))

    def dims(
        self,
        name: str,
        module: nn.Module,
        element: tuple[int, ...],
        inputs: Tensor | None,
        output: Tensor,
        axis: int,
    ) -> tuple[tuple[str, ...], int]:
        """Names of the axes without the sample axis, and the sample axis (which the user may have set)."""
        given = self.given_for(name, output)
        if given is not None:
            axis = given.index("sample")
            names = tuple(item for item in given if item != "sample")
        else:
            shape = tuple(output.shape[:axis]) + tuple(output.shape[axis + 1 :])
            names = self._guess(module, element, inputs, output, shape)
        self._remember(output, names)
        return names, axis

    def given_for(self, name: str, output: Tensor) -> tuple[str, ...] | None:
        """What the user said of this layer. Raises ConfigurationError where the number of axes differs."""
        for pattern, names in self._given.items():
            if fnmatchcase(name, pattern):
                if len(names) != output.ndim:
                    raise ConfigurationError(
                        f"capture.axes: {pattern!r} names {len(names)} axes, but the output of {name!r} has "
                        f"{output.ndim}: {tuple(output.shape)}."
                    )
                return tuple(names)
        return None

    def _guess(
        self,
        module: nn.Module,
        element: tuple[int, ...],
        inputs: Tensor | None,
        output: Tensor,
        shape: tuple[int, ...],
    ) -> tuple[str, ...]:
        rank = len(shape)
        numbered = tuple(f"axis_{place}" for place in range(1, rank + 1))
        if rank < 2:
            return ("feature",)[:rank]
        if isinstance(module, _BY_CHANNEL) and rank - 1 in _SPACE:
            return ("channel", *_SPACE[rank - 1])
        if isinstance(module, _FEATURES_LAST):
            return ("token", "feature") if rank == 2 else (*numbered[:-1], "feature")
        if isinstance(module, _RECURRENT):
            return ("token", "feature") if element in ((), (0,)) else ("recurrent_layer", "feature")
        if isinstance(module, nn.MultiheadAttention):
            weights = ("token", "source_token") if rank == 2 else ("head", "token", "source_token")
            return ("token", "feature") if element in ((), (0,)) else weights
        known = self._by_tensor.get(id(output)) or self._from_input(inputs, shape) or self._by_shape.get(shape)
        return known if known is not None and len(known) == rank else numbered

    def _from_input(self, inputs: Tensor | None, shape: tuple[int, ...]) -> tuple[str, ...] | None:
        known = self._by_tensor.get(id(inputs)) if inputs is not None else None
        if known is None or inputs is None or inputs.ndim != len(shape) + 1:
            return None
        # Maps stay maps when a block changes their number or size; sequences only while their shape holds.
        same = tuple(inputs.shape[1:]) == shape
        return known if same or known[0] == "channel" else None

    def _remember(self, tensor: Tensor, names: tuple[str, ...]) -> None:
        if names and not names[0].startswith("axis_"):
            self._by_tensor[id(tensor)] = names
            self._by_shape[tuple(tensor.shape[1:])] = names
            self._alive.append(tensor)

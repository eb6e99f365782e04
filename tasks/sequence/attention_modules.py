"""What `nn.MultiheadAttention` does, taken apart: its arguments, which keys it may see, its output from its weights."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

ARGUMENTS = tuple(inspect.signature(nn.MultiheadAttention.forward).parameters)[1:]
"""The names of the arguments of a call, in their order."""


def is_multihead(module: nn.Module) -> bool:
    """Whether `module` is called as torch's own: a subclass with a `forward` of its own need not be."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


@dataclass
class MultiheadCall:
    """One call of a module, from its arguments to what its caller gets."""

    module: nn.MultiheadAttention
    given: dict[str, Any]
    """Its arguments by name, with those that were left out."""
    lengths: Tensor | None = None
    """int64 (sample,): how long each query of a nested tensor is."""

    @classmethod
    def of(cls, module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> MultiheadCall:
        defaults: dict[str, Any] = {"need_weights": True, "average_attn_weights": True, "is_causal": False}
        given = {**dict.fromkeys(ARGUMENTS), **defaults, **dict(zip(ARGUMENTS, args, strict=False)), **kwargs}
        call = cls(module, given)
        if any(isinstance(item, Tensor) and item.is_nested for item in given.values()):
            call._pad()
        return call

    @property
    def asked(self) -> tuple[Any, ...]:
        """The arguments in their order, asking for the weights of each head."""
        given = self.given | {"need_weights": True, "average_attn_weights": False}
        if self._only_hinted:
            given["attn_mask"] = self._causal_mask
        return tuple(given[name] for name in ARGUMENTS)

    @property
    def is_self(self) -> bool:
        query, key = self.given["query"], self.given["key"]
        return query is key or (query.shape == key.shape and bool(torch.equal(query, key)))

    @property
    def added_keys(self) -> int:
        """Keys that stand behind those of the input: a learned one, and one of zeros."""
        return int(self.module.bias_k is not None) + int(self.module.add_zero_attn)

    @property
    def _only_hinted(self) -> bool:
        """Without weights, torch looks at the hint and not at the mask: with weights it would be the other way."""
        given = self.given
        return given["is_causal"] and not given["need_weights"] and given["key_padding_mask"] is None

    @property
    def _causal_mask(self) -> Tensor:
        counts = [self.given[name].shape[self._token_axis] for name in ("query", "key")]
        return torch.ones(*counts, dtype=torch.bool, device=self.given["query"].device).triu(1)

    @property
    def _token_axis(self) -> int:
        return 1 if self.module.batch_first and self.given["query"].dim() == 3 else 0

    def allowed(self, samples: int) -> Tensor | None:
        """bool (sample, query, key): the keys that any head may look at, those that were added among them.

        None where there is no mask.
        """
        mask = self._causal_mask if self._only_hinted else self.given["attn_mask"]
        padding = self.given["key_padding_mask"]
        if mask is None and padding is None:
            return None
        queries = self.given["query"].shape[self._token_axis]
        keys = self.given["key"].shape[self._token_axis]
        found = torch.ones(samples, queries, keys, dtype=torch.bool, device=self.given["query"].device)
        if mask is not None:
            seen = _seen(mask)
            found &= seen.unflatten(0, (samples, -1)).any(1) if seen.dim() == 3 else seen
        if padding is not None:
            found &= _seen(padding).reshape(-1, 1, keys)
        return functional.pad(found, (0, self.added_keys), value=True)

    def output_of(self, weights: Tensor, gates: Tensor | None = None) -> Tensor:
        """The module's output from `weights` (sample, head, query, key): Σ_h ξ_h A_h V_h W_h + b, as the module lays it out.

        `gates` (head,) or (sample, head) are the ξ, 1 where they are None (Michel et al. 2019, section 2.3).
        """
        module = self.module
        values = self._heads_of_values()
        if gates is not None:
            gates = gates.to(weights)
            weights = weights * (gates if gates.dim() == 2 else gates[None])[:, :, None, None]
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        output = functional.linear(mixed, module.out_proj.weight, module.out_proj.bias)
        if self.given["query"].dim() == 2:
            return output[0]
        return output if module.batch_first else output.transpose(0, 1)

    def _heads_of_values(self) -> Tensor:
        """(sample, head, key, width of a head): the projected values, with what the module adds to them."""
        module, value = self.module, self.given["value"]
        if value.dim() == 2:
            value = value[None]
        elif not module.batch_first:
            value = value.transpose(0, 1)
        # Stubs say that neither is ever None.
        packed: Tensor | None = module.in_proj_weight
        bias: Tensor | None = module.in_proj_bias
        weight = module.v_proj_weight if packed is None else packed.chunk(3)[2]
        values = functional.linear(value, weight, None if bias is None else bias.chunk(3)[2])
        if module.bias_v is not None:
            values = torch.cat([values, module.bias_v.expand(len(values), 1, -1)], 1)
        if module.add_zero_attn:
            values = functional.pad(values, (0, 0, 0, 1))
        return values.unflatten(2, (module.num_heads, -1)).transpose(1, 2)

    def handed_on(self, output: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What the caller gets: `weights` ((sample,) head, query, key) as it asked for them, or none."""
        if self.lengths is not None:
            output = torch.nested.as_nested_tensor([row[: int(n)] for row, n in zip(output, self.lengths, strict=True)])  # fmt: skip
        if not self.given["need_weights"] or weights is None:
            return output, None
        return output, weights.mean(-3) if self.given["average_attn_weights"] else weights.clone()

    def _pad(self) -> None:
        """Nested tensors are for the fast path alone: they are filled up with zeros, which no query sees."""
        filled: dict[int, tuple[Tensor, Tensor]] = {}
        for name in ("query", "key", "value"):
            item = self.given[name]
            if id(item) not in filled:
                lengths = torch.tensor([len(row) for row in item.unbind()], device=item.device)
                filled[id(item)] = torch.nested.to_padded_tensor(item, 0.0), lengths
            self.given[name], lengths = filled[id(item)]
            if name == "query":
                self.lengths = lengths
            if name == "key":
                places = torch.arange(self.given[name].shape[1], device=item.device)
                self.given["key_padding_mask"] = places[None] >= lengths[:, None]


def _seen(mask: Tensor) -> Tensor:
    """bool, true where a key may be seen, of a mask that is true where not, or is added to the scores."""
    return ~mask if mask.dtype == torch.bool else mask != -torch.inf

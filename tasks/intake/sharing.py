"""Tensors that two checkpoints share although training moved on in between: the sign of a wrongly copied shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any


def wrongly_shared(facts: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[str], int]]:
    """For each checkpoint (in order): the place of the one that it shares weights with, which, and of how many.

    `facts` are those of `checkpoint_facts`. Counted are parameters of two or more dimensions. One counts as
    shared where it has the same bytes at two places and others at a place between, or where it stands still for one
    stride inside the run while it moves before and after, and most others move in that stride. A layer that is
    frozen from the start, to the end, or for longer counts nowhere, and neither do exact copies.
    The place is -1 where there is none.
    """
    names = sorted(
        name
        for name in facts[0].get("parameters", ())
        if all(name in item["tensors"] and len(item["tensors"][name]["shape"]) > 1 for item in facts)
    )
    rows = {name: [item["tensors"][name]["digest"] for item in facts] for name in names}
    moving = [name for name in names if len(set(rows[name])) > 1]
    shared: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in moving:
        blocks = _blocks(rows[name], [item["tensors"][name]["norm"] > 0 for item in facts])
        for places in blocks.values():
            starts = [first for first, _ in places]
            for number, first in enumerate(starts):
                for second in starts[number + 1 :]:
                    shared[first, second].append(name)
            first, last = places[0]
            inside = len(places) == 1 and last == first + 1 and 0 < first < last < len(facts) - 1
            if inside and _moves_around(rows[name], first, last):
                shared[first, last].append(name)
    found: list[tuple[int, list[str], int]] = [(-1, [], len(moving))] * len(facts)
    for (first, second), which in sorted(shared.items()):
        moved = sum(rows[name][first] != rows[name][second] for name in moving)
        stands = second == first + 1
        if facts[first]["weights_digest"] == facts[second]["weights_digest"] or moved == 0:
            continue
        if stands and 2 * moved < len(moving):
            continue
        for here, there in ((first, second), (second, first)):
            if len(which) > len(found[here][1]):
                found[here] = (there, which, len(moving))
    return found


def _blocks(row: Sequence[str], counts: Sequence[bool]) -> dict[str, list[tuple[int, int]]]:
    """For each digest of `row` the stretches (first, last) where it stands; zeros, which say nothing, left out."""
    blocks: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for place, digest in enumerate(row):
        if not counts[place]:
            continue
        if blocks[digest] and blocks[digest][-1][1] == place - 1:
            blocks[digest][-1] = (blocks[digest][-1][0], place)
        else:
            blocks[digest].append((place, place))
    return dict(blocks)


def _moves_around(row: Sequence[str], first: int, last: int) -> bool:
    """Whether the tensor is another one stride before, and moves on in the stride after and the one before that."""
    before = first < 2 or row[first - 2] != row[first - 1]
    after = last > len(row) - 3 or row[last + 2] != row[last + 1]
    return before and after

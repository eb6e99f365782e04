"""The two compiled loops of Winograd's convolution: picture to transformed tiles, and products of tiles back to a picture.

Both work on float32 arrays laid out (sample, y, x, channel), channels in vectors of `LANES`. The vectors are written out by
hand: left to itself the compiler takes one number at a time, because it cannot know that the 36 planes that a tile goes to
don't overlap.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from stratascope.tasks.vision.winograd_convolution import FAR, LANES, NEAR, TAKEN, TILE

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INDEX = types.intp


def _filled(number: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [ir.Constant(ir.FloatType(), float(np.float32(number)))] * LANES)


def _plus(builder: Any, number: float, first: Any, second: Any) -> Any:
    """number · first + second, fused where the processor can."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    called = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(called, [_filled(number), first, second])


def _input_transform(builder: Any, d: list[Any]) -> list[Any]:
    """Bᵀd, for six vectors."""
    even, odd = _plus(builder, -2.0, d[2], d[4]), _plus(builder, -2.0, d[1], d[3])
    outer_even, outer_odd = _plus(builder, -0.5, d[2], d[4]), _plus(builder, -0.5, d[1], d[3])
    return [
        builder.fadd(d[0], _plus(builder, -2.5, d[2], d[4])),
        _plus(builder, NEAR, odd, even),
        _plus(builder, -NEAR, odd, even),
        _plus(builder, FAR, outer_odd, outer_even),
        _plus(builder, -FAR, outer_odd, outer_even),
        builder.fadd(d[1], _plus(builder, -2.5, d[3], d[5])),
    ]


def _output_transform(builder: Any, m: list[Any]) -> list[Any]:
    """Aᵀm, for six vectors: four."""
    near, near_difference = builder.fadd(m[1], m[2]), builder.fsub(m[1], m[2])
    far, far_difference = builder.fadd(m[3], m[4]), builder.fsub(m[3], m[4])
    return [
        builder.fadd(builder.fadd(m[0], near), far),
        _plus(builder, NEAR, near_difference, builder.fmul(_filled(FAR), far_difference)),
        _plus(builder, 0.5, near, builder.fmul(_filled(2.0), far)),
        _plus(builder, NEAR / 2, near_difference, _plus(builder, 2 * FAR, far_difference, m[5])),
    ]


class _Memory:
    """A flat float32 array of the compiled function, read and written a vector at a time."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        self._builder = builder
        self._start = context.make_array(kind)(context, builder, array).data

    def _address(self, base: Any, steps: tuple[tuple[int, Any], ...]) -> Any:
        for count, step in steps:
            base = self._builder.add(base, self._builder.mul(ir.Constant(base.type, count), step))
        return self._builder.bitcast(self._builder.gep(self._start, [base]), _VECTOR.as_pointer())

    def load(self, base: Any, *steps: tuple[int, Any]) -> Any:
        """The vector at `base` and so many times each step after it."""
        return self._builder.load(self._address(base, steps), align=4)

    def store(self, value: Any, base: Any, *steps: tuple[int, Any]) -> None:
        self._builder.store(value, self._address(base, steps), align=4)


@intrinsic
def _copy_vector(typing_context: Any, source: Any, at: Any, into: Any, place: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read = _Memory(context, builder, signature.args[0], arguments[0])
        written = _Memory(context, builder, signature.args[2], arguments[2])
        written.store(read.load(arguments[1]), arguments[3])
        return context.get_dummy_value()

    return types.void(source, _INDEX, into, _INDEX), generate


@intrinsic
def _clear_vector(typing_context: Any, into: Any, place: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _Memory(context, builder, signature.args[0], arguments[0]).store(_filled(0.0), arguments[1])
        return context.get_dummy_value()

    return types.void(into, _INDEX), generate


@intrinsic
def _transform_tile(
    typing_context: Any, source: Any, at: Any, row: Any, column: Any, into: Any, place: Any, plane: Any
) -> Any:
    """6 × 6 vectors from `source[at]`, `row` and `column` apart, to as many of `into[place]`, `plane` apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read = _Memory(context, builder, signature.args[0], arguments[0])
        written = _Memory(context, builder, signature.args[4], arguments[4])
        _, at, row, column, _, place, plane = arguments
        columns = [
            _input_transform(builder, [read.load(at, (y, row), (x, column)) for y in range(TAKEN)])
            for x in range(TAKEN)
        ]
        for y in range(TAKEN):
            for x, value in enumerate(_input_transform(builder, [one[y] for one in columns])):
                written.store(value, place, (TAKEN * y + x, plane))
        return context.get_dummy_value()

    return types.void(source, _INDEX, _INDEX, _INDEX, into, _INDEX, _INDEX), generate


@intrinsic
def _finish_tile(
    typing_context: Any, source: Any, at: Any, plane: Any, bias: Any, channel: Any, least: Any,
    added: Any, added_at: Any, added_row: Any, added_column: Any, into: Any, place: Any, row: Any, column: Any,
) -> Any:  # fmt: skip
    """36 vectors from `source[at]`, `plane` apart, to 4 × 4 of `into[place]`: plus bias and `added`, at least `least`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read, biases, others, written = (
            _Memory(context, builder, signature.args[index], arguments[index]) for index in (0, 3, 6, 10)
        )
        _, at, plane, _, channel, least, _, added_at, added_row, added_column, _, place, row, column = arguments
        bias, floor = biases.load(channel), ir.Constant(_VECTOR, ir.Undefined)
        for lane in range(LANES):
            floor = builder.insert_element(floor, least, ir.Constant(ir.IntType(32), lane))
        columns = [
            _output_transform(builder, [read.load(at, (TAKEN * y + x, plane)) for y in range(TAKEN)])
            for x in range(TAKEN)
        ]
        for y in range(TILE):
            for x, value in enumerate(_output_transform(builder, [one[y] for one in columns])):
                other = others.load(added_at, (y, added_row), (x, added_column))
                summed = builder.fadd(builder.fadd(value, bias), other)
                below = builder.fcmp_ordered("<", summed, floor)  # false of NaN, which passes as in a ReLU
                written.store(builder.select(below, floor, summed), place, (y, row), (x, column))
        return context.get_dummy_value()

    counts = (source, _INDEX, _INDEX, bias, _INDEX, types.float32)
    return types.void(*counts, added, _INDEX, _INDEX, _INDEX, into, _INDEX, _INDEX, _INDEX), generate


@njit(nogil=True, cache=True)
def transform_strips(
    values: np.ndarray, first: int, last: int, tiles_down: int, padding_y: int, padding_x: int,
    rows: np.ndarray, transformed: np.ndarray,
) -> None:  # fmt: skip
    """Bᵀ d B of every tile of some strips of `values` float32 (sample, y, x, channel), zeros around it.

    A strip is a row of tiles; strip s is row s % `tiles_down` of sample s // `tiles_down`. `rows` float32 is flat and has room
    for 6 rows of a strip's inputs. Fills `transformed` float32 (36, tile, channel) from its first tile on.
    """
    _, height, width, channels = values.shape
    flat, into, plane = values.reshape(-1), transformed.reshape(-1), transformed.shape[1] * channels
    tiles_across = (width + 2 * padding_x - 2 + TILE - 1) // TILE
    row = (TILE * tiles_across + 2) * channels
    for place in range(0, TAKEN * row, LANES):
        _clear_vector(rows, place)
    tile = 0
    for strip in range(first, last):
        sample, top = strip // tiles_down, TILE * (strip % tiles_down) - padding_y
        for y in range(TAKEN):
            place = y * row + padding_x * channels
            at = (sample * height + top + y) * width * channels
            inside = 0 <= top + y < height
            for step in range(0, width * channels, LANES):
                if inside:
                    _copy_vector(flat, at + step, rows, place + step)
                else:
                    _clear_vector(rows, place + step)
        for across in range(tiles_across):
            for channel in range(0, channels, LANES):
                at = TILE * across * channels + channel
                _transform_tile(rows, at, row, channels, into, tile * channels + channel, plane)
            tile += 1


@njit(nogil=True, cache=True)
def finish_strips(
    products: np.ndarray, first: int, last: int, tiles_down: int, bias: np.ndarray, least: float,
    added: np.ndarray, adds: bool, edge: np.ndarray, outputs: np.ndarray,
) -> None:  # fmt: skip
    """Aᵀ m A of every tile of some strips, plus `bias` (channel,), at least `least`, into `outputs` (sample, y, x, channel).

    `products` float32 (36, tile, channel) as `transform_strips` lays tiles out. Where `adds`, `added` float32 (sample, y, x,
    channel) is added before `least` counts; else it is not read. `edge` float32 is flat: room for two tiles and a vector for
    each channel, all zero.
    """
    _, height, width, channels = outputs.shape
    flat, source, plane = outputs.reshape(-1), products.reshape(-1), products.shape[1] * channels
    others = added.reshape(-1)
    tiles_across = (width + TILE - 1) // TILE
    row, square = width * channels, TILE * TILE * channels
    tile = 0
    for strip in range(first, last):
        sample, top = strip // tiles_down, TILE * (strip % tiles_down)
        for across in range(tiles_across):
            left = TILE * across
            at = ((sample * height + top) * width + left) * channels
            down, right = min(TILE, height - top), min(TILE, width - left)
            whole = down == TILE and right == TILE
            if adds and not whole:
                for y in range(down):
                    for step in range(0, right * channels, LANES):
                        _copy_vector(others, at + y * row + step, edge, square + y * TILE * channels + step)
            for channel in range(0, channels, LANES):
                place = tile * channels + channel
                if whole and adds:
                    _finish_tile(source, place, plane, bias, channel, least, others, at + channel, row, channels, flat, at + channel, row, channels)  # fmt: skip
                elif whole:
                    _finish_tile(source, place, plane, bias, channel, least, edge, 2 * square + channel, 0, 0, flat, at + channel, row, channels)  # fmt: skip
                else:
                    _finish_tile(source, place, plane, bias, channel, least, edge, square + channel, TILE * channels, channels, edge, channel, TILE * channels, channels)  # fmt: skip
            if not whole:
                for y in range(down):
                    for step in range(0, right * channels, LANES):
                        _copy_vector(edge, y * TILE * channels + step, flat, at + y * row + step)
            tile += 1

"""Unrolled layers against torch's own outputs: every kind of layer, both precisions, gradients, edits."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stratascope.tasks.sequence.unrolling import unroll

LENGTHS = torch.tensor([200, 3, 150, 80])
SHORT = torch.tensor([40, 3, 30, 16])
KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm, projected": (nn.LSTM, {"proj_size": 5}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-12}


def made(kind, dtype=torch.float32, **options):
    torch.manual_seed(0)
    build, own = KINDS[kind]
    return build(7, 9, **own, **options).to(dtype).eval()


def initial_of(module, count):
    directions = 2 if module.bidirectional else 1
    rows = module.num_layers * directions
    dtype = module.weight_ih_l0.dtype
    hidden = torch.randn(rows, count, getattr(module, "proj_size", 0) or module.hidden_size, dtype=dtype)
    return (hidden, torch.randn(rows, count, 9, dtype=dtype)) if isinstance(module, nn.LSTM) else hidden


def largest(one, other):
    return float((one - other).detach().abs().max())


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(
    ("kind", "layers", "bidirectional", "packed", "given"),
    [
        (kind, layers, bidirectional, packed, given)
        for kind, (layers, bidirectional), (packed, given) in itertools.product(
            KINDS, ((1, False), (2, False), (2, True), (3, True)), ((False, False), (True, True), (False, True))
        )
    ],
)
def test_outputs_and_last_states_are_those_of_torch(kind, layers, bidirectional, packed, given, dtype):
    module = made(kind, dtype, num_layers=layers, bidirectional=bidirectional, batch_first=True, bias=layers != 2)
    lengths = LENGTHS if layers == 1 else LENGTHS // 3
    inputs = torch.randn(4, int(lengths.max()), 7, dtype=dtype)
    initial = initial_of(module, 4) if given else None
    with torch.no_grad():
        fed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False) if packed else inputs
        output, last = module(fed, initial)
        if packed:
            output, _ = pad_packed_sequence(output, batch_first=True)
        found = unroll(module, inputs, lengths if packed else None, initial)
    last_hidden, last_state = last if isinstance(last, tuple) else (last, None)
    assert largest(found.output, output) < CLOSE[dtype]
    assert largest(found.last_hidden, last_hidden) < CLOSE[dtype]
    if last_state is None:
        assert found.last_state is None
    else:
        assert largest(found.last_state, last_state) < CLOSE[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_with_and_without_a_gradient_every_value_is_the_same(kind):
    module = made(kind, torch.float64, num_layers=2, bidirectional=True)
    inputs, initial = torch.randn(4, 40, 7, dtype=torch.float64), initial_of(module, 4)
    with torch.no_grad():
        plain = unroll(module, inputs, SHORT, initial)
    traced = unroll(module, inputs, SHORT, initial, retain=True)
    for one, other in zip(plain.layers, traced.layers, strict=True):
        assert largest(one.hidden, other.hidden) < 1e-12
        assert one.gates.keys() == other.gates.keys()
        for name in one.gates:
            assert largest(one.gates[name], other.gates[name]) < 1e-12
        if one.state is not None:
            assert largest(one.state, other.state) < 1e-12
        assert not one.hidden[1, 3:].any()


def test_last_cell_state_is_that_of_the_last_real_step():
    module = made("lstm", torch.float64, num_layers=2, bidirectional=True, batch_first=True)
    inputs = torch.randn(4, 200, 7, dtype=torch.float64)
    packed = pack_padded_sequence(inputs, LENGTHS, batch_first=True, enforce_sorted=False)
    with torch.no_grad():
        _, (_, last_state) = module(packed)
        layers = unroll(module, inputs, LENGTHS).layers
    for sample, length in enumerate(LENGTHS.tolist()):
        for place, layer in enumerate(layers):
            own = layer.state[sample, 0 if layer.suffix.endswith("_reverse") else length - 1]
            assert largest(own, last_state[place, sample]) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_reverse_direction_is_a_forward_run_over_reversed_input(kind):
    both = made(kind, torch.float64, bidirectional=True)
    forward = made(kind, torch.float64)
    with torch.no_grad():
        for name, value in forward.named_parameters():
            value.copy_(getattr(both, f"{name}_reverse"))
        inputs = torch.randn(3, 20, 7, dtype=torch.float64)
        backwards = unroll(both, inputs).layers[1]
        reversed_run = unroll(forward, inputs.flip(1)).layers[0]
    assert largest(backwards.hidden, reversed_run.hidden.flip(1)) < 1e-12
    for name, gate in backwards.gates.items():
        assert largest(gate, reversed_run.gates[name].flip(1)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gradient", [False, True])
def test_a_sample_does_not_depend_on_those_beside_it(kind, gradient):
    module = made(kind, torch.float64, num_layers=2, bidirectional=True)
    inputs = torch.randn(4, 40, 7, dtype=torch.float64)
    with torch.set_grad_enabled(gradient):
        together = unroll(module, inputs, SHORT)
        alone = unroll(module, inputs[2:3, :30], SHORT[2:3])
    for one, other in zip(together.layers, alone.layers, strict=True):
        assert largest(one.hidden[2, :30], other.hidden[0]) < 1e-12
        assert largest(one.last_hidden[2], other.last_hidden[0]) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_weight_gradients_are_those_of_torch(kind):
    module = made(kind, torch.float64, num_layers=2, bidirectional=True, batch_first=True)
    inputs = torch.randn(4, 12, 7, dtype=torch.float64)
    lengths = torch.tensor([12, 3, 9, 7])
    parameters = list(module.parameters())
    output, _ = pad_packed_sequence(
        module(pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False))[0], batch_first=True
    )
    weights = torch.randn_like(output)
    wanted = torch.autograd.grad((output * weights).sum(), parameters)
    found = torch.autograd.grad((unroll(module, inputs, lengths).output * weights).sum(), parameters)
    assert max(largest(one, other) for one, other in zip(found, wanted, strict=True)) < 1e-12


@pytest.mark.parametrize("what", ["hidden", "state", "forget"])
def test_retained_gradient_is_the_finite_difference_of_an_edit(what):
    """Nothing before the layer carries a gradient; the one by step 4 is that of changing the value at step 4."""
    module = made("lstm", torch.float64).requires_grad_(False)
    inputs = torch.randn(2, 9, 7, dtype=torch.float64)
    run = unroll(module, inputs, retain=True)
    total = run.output[:, -1].sum()
    step = run.layers[0].steps[4]
    source = step.gates["forget"] if what == "forget" else getattr(step, what)
    (found,) = torch.autograd.grad(total, source)
    before = run.layers[0].steps[3].state.detach()

    def total_with(shift):
        def change(layer, time, hidden, state):
            assert layer == "l0"
            if time != 4:
                return hidden, state
            if what == "forget":
                state = state + shift * before
                return step.gates["output"].detach() * torch.tanh(state), state
            if what == "state":
                state = state + shift
                return step.gates["output"].detach() * torch.tanh(state), state
            return hidden + shift, state

        return unroll(module, inputs, edit=change).output[:, -1].sum()

    shift = torch.zeros(2, 9, dtype=torch.float64)
    for sample, unit in ((0, 0), (1, 5)):
        shift.zero_()[sample, unit] = 1e-5
        slope = float(total_with(shift) - total_with(-shift)) / 2e-5
        assert slope == pytest.approx(float(found[sample, unit]), rel=1e-6, abs=1e-9)


def test_an_edit_is_felt_from_its_step_on_and_in_the_layers_above():
    module = made("gru", torch.float64, num_layers=2)
    inputs = torch.randn(2, 9, 7, dtype=torch.float64)
    plain = unroll(module, inputs)

    def erase(layer, time, hidden, state):
        return (torch.zeros_like(hidden), state) if (layer, time) == ("l0", 4) else (hidden, state)

    changed = unroll(module, inputs, edit=erase)
    assert not changed.layers[0].hidden[:, 4].any()
    assert largest(changed.output[:, :4], plain.output[:, :4]) == 0
    assert (changed.output[:, 4:] - plain.output[:, 4:]).abs().amax(2).min() > 1e-6

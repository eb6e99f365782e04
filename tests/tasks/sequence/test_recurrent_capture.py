"""States of recurrent layers inside networks that call them in every way that torch allows."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stratascope.errors import CaptureError, DoesNotApply
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.models import attention_encoder_decoder, character_model
from stratascope.tasks.sequence.recurrent_capture import captured_states
from stratascope.tasks.sequence.sequence_network import SequenceNetwork


class Called(nn.Module):
    """`layer`, called as a function says."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer = layer
        self._call = call

    def forward(self, inputs):
        return self._call(self.layer, inputs)


def wrapped(network) -> SequenceNetwork:
    return SequenceNetwork(network.eval(), ModelSpec(factory="none:none"))


def traces_of(network, inputs, **options):
    wrapper = wrapped(network)
    with torch.set_grad_enabled(bool(options)), captured_states(wrapper, **options) as recorder:
        output = wrapper.outputs(inputs)
        return output, recorder.take()


def packed(batch_first, enforce_sorted):
    def call(layer, inputs):
        lengths = torch.tensor([9, 7, 7, 2]) if enforce_sorted else torch.tensor([7, 9, 2, 7])
        given = inputs if batch_first else inputs.transpose(0, 1)
        output, _ = layer(pack_padded_sequence(given, lengths, batch_first, enforce_sorted))
        return pad_packed_sequence(output, True)[0]

    return call


def one_step_at_a_time(layer, inputs):
    last, found = None, []
    for step in inputs.unbind(1):
        output, last = layer(step[:, None], last)
        found.append(output)
    return torch.cat(found, 1)


def cell_loop(layer, inputs):
    last, found = None, []
    for step in inputs.unbind(1):
        last = layer(step, last)
        found.append(last[0] if isinstance(last, tuple) else last)
    return torch.stack(found, 1)


def unbatched_loop(layer, inputs):
    last, found = None, []
    for step in inputs[0]:
        last = layer(step, last)
        found.append(last[0])
    return torch.stack(found)[None]


CALLS = {
    "batch first": (nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True), lambda layer, inputs: layer(inputs)[0]),
    "time first": (nn.GRU(3, 5, 2), lambda layer, inputs: layer(input=inputs.transpose(0, 1))[0].transpose(0, 1)),
    "packed": (nn.LSTM(3, 5, 2, batch_first=True, bidirectional=True, proj_size=4), packed(True, False)),
    "packed and sorted": (nn.GRU(3, 5, bidirectional=True), packed(False, True)),
    "one sample without an axis": (nn.LSTM(3, 5, 2), lambda layer, inputs: torch.stack([layer(inputs[0])[0]])),
    "with a start": (nn.RNN(3, 5, batch_first=True), lambda layer, inputs: layer(inputs, hx=torch.ones(1, 4, 5))[0]),
    "step by step": (nn.LSTM(3, 5, 2, batch_first=True), one_step_at_a_time),
    "LSTM cell": (nn.LSTMCell(3, 5), cell_loop),
    "GRU cell": (nn.GRUCell(3, 5, bias=False), cell_loop),
    "plain cell": (nn.RNNCell(3, 5, nonlinearity="relu"), cell_loop),
    "cell for one sample": (nn.LSTMCell(3, 5), unbatched_loop),
}  # fmt: skip


@pytest.mark.parametrize("way", CALLS)
def test_every_way_of_calling_leaves_the_real_hidden_states(way):
    torch.manual_seed(0)
    layer, call = CALLS[way]
    inputs = torch.randn(4, 9, 3)
    output, traces = traces_of(Called(layer, call), inputs)
    directions = 2 if getattr(layer, "bidirectional", False) else 1
    top = torch.cat([trace.hidden for trace in traces[-directions:]], -1)
    assert float((top - output).abs().max()) < 1e-6
    assert all(trace.residual < 1e-5 for trace in traces)
    assert {trace.layer.split(".")[0] for trace in traces} == {"layer"}
    assert not any("#" in trace.layer for trace in traces)


@pytest.mark.parametrize("way", CALLS)
def test_a_later_pass_runs_unrolled_and_says_the_same(way):
    torch.manual_seed(0)
    layer, call = CALLS[way]
    network = wrapped(Called(layer, call))
    first, second = torch.randn(4, 9, 3), torch.randn(4, 9, 3)
    with torch.no_grad():
        wanted = network.outputs(second)
        with captured_states(network) as recorder:
            network.outputs(first)
            tested = recorder.take()
            output = network.outputs(second)
            traces = recorder.take()
    assert float((output - wanted).abs().max()) < 1e-6
    assert [trace.layer for trace in traces] == [trace.layer for trace in tested]
    assert [trace.hidden.shape for trace in traces] == [trace.hidden.shape for trace in tested]
    if isinstance(layer, nn.RNNBase):
        assert [trace.residual for trace in traces] == [trace.residual for trace in tested]
    assert "forward" not in layer.__dict__


@pytest.mark.parametrize("way", CALLS)
def test_with_retain_the_output_stays_and_gradients_of_every_step_can_be_asked(way):
    torch.manual_seed(0)
    layer, call = CALLS[way]
    network = Called(layer, call)
    inputs = torch.randn(4, 9, 3)
    plain, _ = traces_of(network, inputs)
    network.requires_grad_(False)
    output, traces = traces_of(network, inputs, retain=True)
    assert float((output - plain).abs().max().detach()) < 1e-6
    for trace in traces:
        assert len(trace.steps) == trace.hidden.shape[1]
        gradients = torch.autograd.grad(output.sum(), [step.hidden for step in trace.steps], retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0].any()
    network.requires_grad_(True)


@pytest.mark.parametrize("way", CALLS)
def test_an_edit_reaches_the_output(way):
    torch.manual_seed(0)
    layer, call = CALLS[way]
    network = Called(layer, call)
    inputs = torch.randn(4, 9, 3)
    plain, _ = traces_of(network, inputs)
    seen = []

    def nothing_but_watching(name, step, hidden, state):
        seen.append((name, step))
        return hidden, state

    same, _ = traces_of(network, inputs, edit=nothing_but_watching)
    assert float((same - plain).abs().max().detach()) < 1e-6
    assert sorted({step for _, step in seen}) == list(range(9))

    def push(name, step, hidden, state):
        return (hidden + 1.0, state) if step == 1 else (hidden, state)

    changed, traces = traces_of(network, inputs, edit=push)
    assert float((changed[:, 1] - plain[:, 1]).abs().max().detach()) > 0.1
    assert all(trace.residual != trace.residual for trace in traces)


def test_a_second_sequence_of_the_same_module_is_told_apart():
    torch.manual_seed(0)

    def twice(layer, inputs):
        first, _ = layer(inputs)
        second, _ = layer(inputs.flip(1))
        return first + second

    _, traces = traces_of(Called(nn.GRU(3, 5, batch_first=True), twice), torch.randn(4, 9, 3))
    assert [trace.layer for trace in traces] == ["layer.l0", "layer.l0#1"]

    def two_loops(layer, inputs):
        return cell_loop(layer, inputs) + cell_loop(layer, inputs.flip(1))

    _, traces = traces_of(Called(nn.GRUCell(3, 5), two_loops), torch.randn(4, 9, 3))
    assert [(trace.layer, trace.hidden.shape[1]) for trace in traces] == [("layer", 9), ("layer#1", 9)]


def test_a_call_that_starts_elsewhere_is_no_continuation():
    def restarted(layer, inputs):
        first, last = layer(inputs)
        return first + layer(inputs, last * 0.5)[0]

    _, traces = traces_of(Called(nn.GRU(3, 5, batch_first=True), restarted), torch.randn(4, 9, 3))
    assert [trace.layer for trace in traces] == ["layer.l0", "layer.l0#1"]


def test_a_cell_whose_state_the_loop_changes_is_still_one_sequence():
    def masked(layer, inputs):
        hidden = torch.zeros(len(inputs), 5)
        for step in inputs.unbind(1):
            hidden = layer(step, hidden) * 0.9
        return hidden

    _, traces = traces_of(Called(nn.GRUCell(3, 5), masked), torch.randn(4, 9, 3))
    assert [(trace.layer, trace.hidden.shape[1]) for trace in traces] == [("layer", 9)]


def test_layers_come_in_the_order_of_their_work_with_their_real_steps():
    network = attention_encoder_decoder(source=8, target=9, embedding=4, width=6, cell="lstm")
    source = torch.tensor([[3, 4, 5, 0], [3, 0, 0, 0]])
    target = torch.tensor([[2, 3, 4], [2, 3, 0]])
    _, traces = traces_of(network, {"source": source, "target": target})
    assert [trace.layer for trace in traces] == ["encoder.l0", "encoder.l0_reverse", "decoder.l0"]
    assert traces[0].real.sum(1).tolist() == [3, 1]
    assert not traces[0].hidden[1, 1:].any()
    assert list(traces[0].gates) == ["input", "forget", "candidate", "output"]


def test_a_residual_tells_of_a_layer_that_is_not_what_it_seems():
    class Scaled(nn.LSTM):
        def forward(self, inputs, hx=None):
            output, last = super().forward(inputs, hx)
            return output * 1.5, last

    _, traces = traces_of(Called(Scaled(3, 5, batch_first=True), lambda layer, inputs: layer(inputs)[0]), torch.randn(4, 9, 3))  # fmt: skip
    assert traces[0].residual == pytest.approx(1 / 3, rel=1e-5)


def test_hooks_are_removed_and_passes_do_not_mix():
    network = wrapped(character_model(alphabet=6, embedding=3, width=4))
    codes = torch.randint(0, 6, (2, 5))
    with captured_states(network) as recorder:
        network.outputs(codes)
        network.outputs(codes)
        assert len(recorder.take()) == 1
        assert recorder.take() == []
    with pytest.raises(CaptureError, match="index out of range"), captured_states(network):
        network.outputs(codes + 10)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.network.modules())


def test_a_network_without_recurrence_is_told_so():
    with pytest.raises(DoesNotApply, match="no recurrent layer"), captured_states(wrapped(nn.Linear(3, 4))):
        pass

"""Weights of every head: rows sum to 1, masked keys are 0, and values under them are what the network itself gives."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.tasks.models import attention_encoder_decoder, text_transformer, vision_transformer
from stratascope.tasks.sequence.attention_calls import AttentionSpec, captured_attention

PADDED = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]).bool()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def captured(network, *args, spec=None, gates=None, **kwargs):
    """Calls, what the network returned meanwhile, and what it returns without."""
    network.eval()
    with torch.no_grad():
        plain = network(*args, **kwargs)
        with captured_attention(network, spec, gates) as recorder:
            watched = network(*args, **kwargs)
    return recorder.take(), watched, plain


def check(call, allowed=None):
    """Checks 1 and 2 of the reference: rows, masked keys, and the output that the weights give."""
    sums = call.weights.sum(-1)
    seen = torch.ones_like(sums, dtype=torch.bool) if allowed is None else allowed.any(-1)[:, None].expand_as(sums)
    torch.testing.assert_close(sums[seen], torch.ones_like(sums[seen]), rtol=0, atol=1e-6)
    assert call.residual < 1e-5
    if allowed is not None:
        assert not call.weights[~allowed[:, None].expand_as(call.weights)].any()
        torch.testing.assert_close(call.allowed.expand_as(allowed), allowed)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("asked", [{}, {"need_weights": False}, {"average_attn_weights": False}])
def test_the_caller_gets_what_it_asked_for(batch_first, asked):
    module = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=batch_first)
    query, key = torch.randn(4, 4, 12), torch.randn(4, 4, 12)
    calls, (output, weights), (plain, wanted) = captured(module, query, key, key, **asked)
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-6)
    assert (weights is None) == (wanted is None)
    if wanted is not None:
        torch.testing.assert_close(weights, wanted, rtol=0, atol=0)
    assert calls[0].kind == "cross"
    check(calls[0])


def test_the_mean_over_heads_is_what_torch_averages():
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    inputs = torch.randn(2, 5, 12)
    calls, _, (_, averaged) = captured(module, inputs, inputs, inputs)
    assert torch.equal(calls[0].weights.mean(1), averaged)


def test_arguments_that_are_given_by_place_are_changed_too():
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    inputs = torch.randn(2, 5, 12)
    calls, (_, weights), _ = captured(module, inputs, inputs, inputs, None, False)
    assert weights is None
    assert calls[0].weights.shape == (2, 3, 5, 5)
    assert calls[0].kind == "self"


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_encoder_layers_give_their_weights_whatever_path_torch_would_take(nested, gradients):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()
    inputs = torch.randn(3, 5, 16)
    allowed = ~PADDED[:, None].expand(3, 5, 5)
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.set_grad_enabled(gradients):
        plain = encoder(inputs, src_key_padding_mask=PADDED)
        with captured_attention(encoder) as recorder:
            watched = encoder(inputs, src_key_padding_mask=PADDED)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    calls = recorder.take()
    assert [call.layer for call in calls] == ["layers.0.self_attn", "layers.1.self_attn"]
    for call in calls:
        check(call, allowed)
    torch.testing.assert_close(watched[~PADDED], plain[~PADDED], rtol=0, atol=5e-6)


def test_a_nested_tensor_gives_rows_of_its_real_tokens():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    rows = [torch.randn(count, 16) for count in (5, 3, 1)]
    nested = torch.nested.nested_tensor(rows)
    with torch.no_grad(), captured_attention(layer) as recorder:
        watched = layer(nested)
    call = recorder.take()[0]
    for number, row in enumerate(rows):
        with torch.no_grad(), captured_attention(layer) as recorder:
            alone = layer(row[None])
        torch.testing.assert_close(watched[number], alone[0], rtol=0, atol=1e-6)
        kept = call.weights[number, :, : len(row), : len(row)]
        torch.testing.assert_close(kept, recorder.take()[0].weights[0], rtol=0, atol=1e-6)
        assert not call.weights[number, :, : len(row), len(row) :].any()


def test_a_whole_transformer_has_encoder_decoder_and_cross_attention():
    network = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    source, target = torch.randn(3, 6, 16), torch.randn(3, 4, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    spec = AttentionSpec(inputs={"source": 6, "target": 4})
    calls, watched, plain = captured(network, source, target, tgt_mask=mask, tgt_is_causal=True, spec=spec)
    torch.testing.assert_close(watched, plain, rtol=0, atol=5e-6)
    assert [(call.layer, call.kind, call.query_input, call.key_input) for call in calls] == [
        ("encoder.layers.0.self_attn", "self", "source", "source"),
        ("decoder.layers.0.self_attn", "self", "target", "target"),
        ("decoder.layers.0.multihead_attn", "cross", "target", "source"),
    ]
    check(calls[0])
    check(calls[1], torch.ones(3, 4, 4).bool().tril())
    assert not calls[1].weights.triu(1).any()
    check(calls[2])


def test_a_causal_hint_counts_as_torch_counts_it():
    module = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    inputs = torch.randn(2, 5, 12)
    wrong = torch.zeros(5, 5).bool()
    calls, (watched, _), (plain, _) = captured(
        module, inputs, inputs, inputs, need_weights=False, attn_mask=wrong, is_causal=True
    )
    torch.testing.assert_close(watched, plain, rtol=0, atol=1e-6)
    check(calls[0], torch.ones(2, 5, 5).bool().tril())


@pytest.mark.parametrize("batch_first", [True, False])
def test_other_widths_and_added_keys_and_unbatched_inputs(batch_first):
    module = nn.MultiheadAttention(
        12, 3, kdim=8, vdim=6, add_bias_kv=True, add_zero_attn=True, batch_first=batch_first
    )
    nn.init.normal_(module.in_proj_bias)
    query, key, value = torch.randn(3, 12), torch.randn(5, 8), torch.randn(5, 6)
    calls, (watched, _), (plain, _) = captured(module, query, key, value)
    torch.testing.assert_close(watched, plain, rtol=0, atol=1e-6)
    assert calls[0].weights.shape == (1, 3, 3, 7)
    assert calls[0].added_keys == 2
    check(calls[0])
    hidden = torch.tensor([0, 0, 0, 1, 1]).bool()
    allowed = torch.cat([~hidden, torch.ones(2).bool()]).expand(1, 3, 7)
    batch = [item[None] if batch_first else item[:, None] for item in (query, key, value)]
    calls, _, _ = captured(module, *batch, key_padding_mask=hidden[None])
    check(calls[0], allowed)


def test_a_query_that_sees_no_key_is_counted_and_has_a_row_of_zeros():
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    inputs = torch.randn(2, 4, 12)
    hidden = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    calls, _, _ = captured(module, inputs, inputs, inputs, hidden)
    assert calls[0].blind == 4
    assert not calls[0].weights[1].any()
    check(calls[0], (~hidden)[:, None].expand(2, 4, 4))


def test_masks_of_single_heads_and_masks_that_are_added():
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    inputs = torch.randn(2, 4, 12)
    mask = torch.zeros(6, 4, 4)
    mask[:, :, 3] = -math.inf
    mask[0, :, 2] = -math.inf
    mask[:, :, 0] = 0.7
    calls, _, _ = captured(module, inputs, inputs, inputs, attn_mask=mask)
    assert not calls[0].weights[0, 0, :, 2].any()
    assert calls[0].weights[0, 1, :, 2].all()
    check(calls[0], torch.tensor([1, 1, 1, 0]).bool().expand(2, 4, 4))


class Direct(nn.Module):
    """Attention by the function alone; `keys` heads of keys and values serve 4 of queries."""

    def __init__(self, keys: int = 4, **asked):
        super().__init__()
        self.project = nn.Linear(16, 16)
        self.asked = asked
        self.keys = keys

    def forward(self, inputs):
        heads = self.project(inputs).unflatten(-1, (4, 4)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(
            heads, heads[:, : self.keys], heads[:, : self.keys], **self.asked
        )
        return mixed.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("keys", "asked", "allowed"),
    [
        (4, {}, None),
        (4, {"scale": 1.7}, None),
        (4, {"is_causal": True}, torch.ones(5, 5).bool().tril()),
        (4, {"attn_mask": ~torch.eye(5).bool()}, ~torch.eye(5).bool()),
        (4, {"attn_mask": torch.randn(5, 5)}, None),
        (2, {"enable_gqa": True}, None),
    ],
)
def test_attention_by_the_function_is_computed_anew_and_agrees(keys, asked, allowed):
    calls, watched, plain = captured(nn.Sequential(Direct(keys, **asked)), torch.randn(2, 5, 16))
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert [call.layer for call in calls] == ["0"]
    check(calls[0], None if allowed is None else allowed.expand(2, 5, 5))


def test_dropout_is_off_and_the_mode_is_put_back():
    network = text_transformer(alphabet=7, length=8, width=8, heads=2, dropout=0.5).train()
    codes = torch.randint(0, 7, (2, 8))
    with captured_attention(network) as recorder:
        first = network(codes)
        again = network(codes)
    assert torch.equal(first, again)
    assert all(module.training for module in network.modules())
    calls = recorder.take()
    assert [call.layer for call in calls] == ["blocks.0.attention", "blocks.1.attention"] * 2
    check(calls[0], torch.ones(2, 8, 8).bool().tril())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_a_module_that_is_called_twice_gives_two_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, inputs):
            once = self.shared(inputs, inputs, inputs)[0]
            return self.shared(once, once, once)[0]

    calls, _, _ = captured(Twice(), torch.randn(2, 3, 8))
    assert [call.layer for call in calls] == ["shared", "shared#1"]


def test_names_have_no_prefix_of_what_spreads_the_network():
    network = nn.DataParallel(vision_transformer(size=8, patch=4, width=8, heads=2, depth=1))
    calls, _, _ = captured(network, torch.randn(2, 1, 8, 8))
    assert [call.layer for call in calls] == ["blocks.0.attention"]


def test_additive_attention_is_found_and_can_be_named():
    network = attention_encoder_decoder(source=8, target=8, embedding=4, width=6)
    source, target = torch.tensor([[3, 4, 5, 0], [3, 3, 3, 3]]), torch.tensor([[3, 4, 5], [3, 3, 3]])
    for spec in (AttentionSpec(inputs={"source": 4, "target": 3}), AttentionSpec({"attention": "[1]"})):
        calls, watched, plain = captured(network, source, target, spec=spec)
        assert torch.equal(watched, plain)
        assert [(call.layer, call.kind) for call in calls] == [("attention", "named")]
        check(calls[0])
        assert not calls[0].weights[0, 0, :, 3].any()


class Step(nn.Module):
    """Luong's "general" score, one query at a time, weights alone: as decoders in tutorials have it."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(6, 6)

    def forward(self, query, keys):
        return torch.einsum("sw,skw->sk", self.score(query), keys).softmax(-1)


def test_rows_of_a_loop_over_queries_are_joined():
    class Attn(Step):
        pass

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.align = Attn()

        def forward(self, queries, keys):
            steps = [torch.einsum("sk,skw->sw", self.align(query, keys), keys) for query in queries.unbind(1)]
            return torch.stack(steps, 1)

    network, queries, keys = Decoder(), torch.randn(2, 5, 6), torch.randn(2, 4, 6)
    calls, watched, _ = captured(network, queries, keys)
    assert [call.weights.shape for call in calls] == [(2, 1, 5, 4)]
    torch.testing.assert_close(calls[0].weights[:, 0] @ keys, watched)


class Graph(nn.Module):
    """Graph attention over all nodes (Velickovic et al. 2018) with its weights hidden inside."""

    def __init__(self, edges: bool = False):
        super().__init__()
        self.edges = edges
        self.weight = nn.Linear(3, 2 * 4)
        self.score = nn.Parameter(torch.randn(2, 2, 4))

    def forward(self, nodes, adjacency):
        hidden = self.weight(nodes).unflatten(-1, (2, 4))
        scores = torch.einsum("snhw,ahw->asnh", hidden, self.score)
        logits = functional.leaky_relu(scores[0][:, :, None] + scores[1][:, None], 0.2)
        alpha = torch.softmax(logits.masked_fill(~adjacency[None, :, :, None], -math.inf), dim=2)
        mixed = torch.einsum("sijh,sjhw->sihw", alpha, hidden).flatten(2)
        if not self.edges:
            return mixed
        target, source = adjacency.nonzero(as_tuple=True)
        return mixed, (torch.stack([source, target]), alpha[0, target, source])


def test_graph_attention_by_its_last_softmax_and_by_its_edges():
    adjacency = torch.eye(5).bool() | (torch.rand(5, 5) < 0.4)
    hidden, listed = Graph(), Graph(edges=True)
    listed.load_state_dict(hidden.state_dict())
    nodes = torch.randn(1, 5, 3)
    one, _, _ = captured(nn.ModuleDict({"gat": hidden})["gat"], nodes, adjacency, spec=AttentionSpec())
    assert one == []

    class Network(nn.Module):
        def __init__(self, gat):
            super().__init__()
            self.gat = gat

        def forward(self, nodes):
            found = self.gat(nodes, adjacency)
            return found[0] if isinstance(found, tuple) else found

    by_softmax, _, _ = captured(Network(hidden), nodes, spec=AttentionSpec(softmax=("gat",)))
    by_edges, _, _ = captured(Network(listed), nodes, spec=AttentionSpec(modules={"gat": "[1]"}))
    assert [call.kind for call in by_softmax + by_edges] == ["graph", "graph"]
    assert by_softmax[0].weights.shape == (1, 2, 5, 5)
    torch.testing.assert_close(by_edges[0].weights, by_softmax[0].weights)
    assert not by_softmax[0].weights[:, :, ~adjacency].any()
    torch.testing.assert_close(by_softmax[0].weights.sum(-1), torch.ones(1, 2, 5))


def test_what_is_no_attention_is_named():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    inputs = torch.randn(2, 3, 4)
    with pytest.raises(ConfigurationError, match="'lin' matches no module"), captured_attention(network, AttentionSpec({"lin": ""})):  # fmt: skip
        pass
    with pytest.raises(DoesNotApply, match="rows do not sum to 1"):
        captured(network, inputs, spec=AttentionSpec({"0": ""}))
    with pytest.raises(DoesNotApply, match="no part '\\[3\\]\\[1\\]'"):
        captured(network, inputs, spec=AttentionSpec({"0": "[3][1]"}))
    with pytest.raises(DoesNotApply, match="calls no softmax"):
        captured(network, inputs, spec=AttentionSpec(softmax=("1",)))
    with pytest.raises(DoesNotApply, match="'1' is no attention"):
        captured(network, inputs, gates={"1": torch.ones(2)})
    assert captured(network, inputs)[0] == []


NETWORKS = {
    "modules": lambda: text_transformer(alphabet=7, length=6, width=8, heads=4, depth=2),
    "functions": lambda: nn.Sequential(nn.Embedding(7, 16), Direct(is_causal=True), nn.Linear(16, 7)),
    "torch layers": lambda: nn.Sequential(
        nn.Embedding(7, 16),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 8, batch_first=True), 1),
        nn.Linear(16, 7),
    ),
}
LAYERS = {"modules": "blocks.1.attention", "functions": "1", "torch layers": "1.layers.0.self_attn"}


@pytest.mark.parametrize("kind", NETWORKS)
def test_gates_of_one_change_nothing_and_those_of_zero_take_a_head_away(kind):
    network, layer, codes = NETWORKS[kind](), LAYERS[kind], torch.randint(0, 7, (3, 6))
    _, watched, plain = captured(network, codes, gates={layer: torch.ones(4)})
    torch.testing.assert_close(watched, plain, rtol=0, atol=1e-6)
    _, without, _ = captured(network, codes, gates={layer: torch.tensor([1.0, 0, 1, 1])})
    assert float((without - plain).abs().max()) > 1e-4
    rows = torch.ones(3, 4)
    rows[2, 1] = 0
    _, some, _ = captured(network, codes, gates={layer: rows})
    torch.testing.assert_close(some[:2], plain[:2], rtol=0, atol=1e-6)
    torch.testing.assert_close(some[2], without[2], rtol=0, atol=1e-6)


def test_a_head_whose_output_block_is_zero_can_be_masked_without_a_trace():
    network = NETWORKS["modules"]()
    attention = network.blocks[1].attention
    with torch.no_grad():
        attention.out_proj.weight[:, 2:4] = 0  # the columns of head 1, two wide
    codes = torch.randint(0, 7, (3, 6))
    _, masked, plain = captured(network, codes, gates={"blocks.1.attention": torch.tensor([1.0, 0, 1, 1])})
    torch.testing.assert_close(masked, plain, rtol=0, atol=1e-6)
    _, other, _ = captured(network, codes, gates={"blocks.1.attention": torch.tensor([0.0, 1, 1, 1])})
    assert float((other - plain).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", ["modules", "functions"])
def test_the_gradient_of_a_gate_is_the_finite_difference(kind):
    network, layer = NETWORKS[kind]().double().eval(), LAYERS[kind]
    codes = torch.randint(0, 7, (3, 6))

    def loss(gates):
        with captured_attention(network, gates={layer: gates}):
            return network(codes).square().mean()

    gates = torch.ones(4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(gates), gates)
    step = 1e-5
    with torch.no_grad():
        differences = [(loss(1 + step * row) - loss(1 - step * row)) / (2 * step) for row in torch.eye(4).double()]
    torch.testing.assert_close(gradient, torch.stack(differences), rtol=1e-5, atol=1e-9)


def test_gates_need_as_many_numbers_as_heads():
    with pytest.raises(ConfigurationError, match="has 4 heads; the gates are for 3"):
        captured(NETWORKS["modules"](), torch.zeros(1, 6).long(), gates={"blocks.0.attention": torch.ones(3)})


def test_models_of_hugging_face_give_their_weights():
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12, "vocab_size": 9}
    for implementation in ("sdpa", "eager"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation=implementation))
        calls, watched, plain = captured(model, torch.randint(0, 9, (2, 5)))
        torch.testing.assert_close(watched.logits, plain.logits, rtol=0, atol=1e-6)
        assert [call.layer for call in calls] == ["transformer.h.0.attn", "transformer.h.1.attn"]
        assert model.config._attn_implementation == implementation
        for call in calls:
            assert not call.weights.triu(1).any()
            torch.testing.assert_close(call.weights.sum(-1), torch.ones(2, 2, 5))
            assert implementation == "eager" or call.residual < 1e-5

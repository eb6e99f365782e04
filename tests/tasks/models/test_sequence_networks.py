"""Recurrent networks, transformers, encoder and decoder: sizes, causality, padding, attention that sums to 1."""

import math

import pytest
import torch

from stratascope.tasks.models import (
    attention_encoder_decoder,
    character_model,
    recurrent_classifier,
    text_transformer,
    vision_transformer,
)

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def weights_of(network):
    return sum(item.numel() for item in network.parameters())


def recurrent_formula(cell, inputs, width, layers=1, directions=1):
    sizes = [inputs] + [directions * width] * (layers - 1)
    return directions * sum(GATES[cell] * width * (size + width + 2) for size in sizes)


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("layers", [1, 2])
def test_recurrent_networks_have_the_weights_of_their_gates(cell, layers):
    classifier = recurrent_classifier(cell, 5, 7, layers, 3)
    assert weights_of(classifier) == recurrent_formula(cell, 5, 7, layers) + 7 * 3 + 3
    model = character_model(cell, 11, 4, 6, layers)
    assert weights_of(model) == 11 * 4 + recurrent_formula(cell, 4, 6, layers) + 6 * 11 + 11


@pytest.mark.parametrize("cell", GATES)
def test_a_recurrent_classifier_reads_images_row_by_row(cell):
    network = recurrent_classifier(cell, 8, 6, 1, 3)
    images = torch.randn(2, 1, 5, 8)
    assert torch.equal(network(images), network(images[:, 0]))
    assert network(images).shape == (2, 3)


@torch.no_grad()
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_spread_memories_last_from_one_step_to_the_span(cell):
    span, width = 50, 400
    layers = recurrent_classifier(cell, 3, width, 2, memory_span=span).recurrent
    for layer in range(2):
        biases = [getattr(layers, f"bias_{kind}_l{layer}").view(GATES[cell], width) for kind in ("ih", "hh")]
        keeping = (biases[0] + biases[1])[1].sigmoid()
        # A gate that keeps the share k of what it holds forgets it with the time constant -1 / log k, about 1 / (1 - k) - 1/2.
        steps = 1 / (1 - keeping)
        assert 2 <= float(steps.min()) < 4
        assert 0.9 * span < float(steps.max()) <= span
        assert float(steps.mean()) == pytest.approx(span / 2 + 1, rel=0.1)
        if cell == "lstm":
            torch.testing.assert_close((biases[0] + biases[1])[0].sigmoid(), 1 - keeping)
    # With inputs and states of 0 a unit keeps exactly that share.
    for weights in layers.parameters():
        if weights.ndim == 2:
            weights.zero_()
    held = torch.full((2, 1, width), 0.5)
    start = (torch.zeros_like(held), held) if cell == "lstm" else held
    layers.get_parameter("bias_ih_l0").view(GATES[cell], width)[2] = 0.0
    layers.get_parameter("bias_hh_l0").view(GATES[cell], width)[2] = 0.0
    _, last = layers(torch.zeros(1, 1, 3), start)
    kept = (last[1] if cell == "lstm" else last)[0, 0] / 0.5
    torch.testing.assert_close(kept, (layers.bias_ih_l0 + layers.bias_hh_l0).view(-1, width)[1].sigmoid())


@pytest.mark.parametrize(("cell", "span", "match"), [("rnn", 50, "has none"), ("gru", 2, "at least 3")])
def test_memories_that_cannot_be_spread_are_refused(cell, span, match):
    with pytest.raises(ValueError, match=match):
        character_model(cell, memory_span=span)


def test_an_unknown_cell_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'lsmt'.*rnn, gru, lstm"):
        character_model("lsmt")


@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("length", [1, 9])
def test_a_character_model_never_sees_what_comes_later(cell, length):
    network = character_model(cell, 11, 4, 6).eval()
    codes = torch.randint(11, (3, length))
    changed = codes.clone()
    changed[:, length // 2 :] = (changed[:, length // 2 :] + 1) % 11
    before, after = network(codes), network(changed)
    assert before.shape == (3, length, 11)
    assert torch.equal(before[:, : length // 2], after[:, : length // 2])
    assert not torch.equal(before[:, -1], after[:, -1])


@pytest.mark.parametrize("expansion", [0, 2])
@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_causal_transformer_never_sees_what_comes_later_and_another_one_does(expansion, layer_norm):
    codes = torch.randint(11, (2, 8))
    changed = codes.clone()
    changed[:, 5:] = (changed[:, 5:] + 3) % 11
    for causal in (True, False):
        torch.manual_seed(0)
        network = text_transformer(11, 8, 12, 3, 2, expansion, layer_norm, causal).eval()
        same = torch.isclose(network(codes), network(changed), rtol=0, atol=1e-6).all(-1)
        assert bool(same[:, :5].all()) == causal
        assert not same[:, 5:].any()


@pytest.mark.parametrize("expansion", [0, 4])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("depth", [1, 3])
def test_a_text_transformer_has_the_weights_of_its_parts(expansion, layer_norm, depth):
    width, alphabet, length = 12, 11, 8
    block = 4 * width * width + 4 * width
    if expansion:
        block += 2 * expansion * width * width + (expansion + 1) * width
    if layer_norm:
        block += 2 * width * (2 if expansion else 1)
    expected = (alphabet + length) * width + depth * block + 2 * width * layer_norm
    network = text_transformer(alphabet, length, width, 3, depth, expansion, layer_norm)
    assert weights_of(network) == expected + width * alphabet + alphabet
    assert network(torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, alphabet)


def test_a_text_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="9 tokens are more than the 8"):
        text_transformer(11, 8, 12, 3)(torch.zeros(1, 9, dtype=torch.int64))


def seen_attention(network, module, inputs):
    """What the attention module hands back beside its output: weights (sample, head, query, key)."""
    seen = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    network(inputs)
    handle.remove()
    (weights,) = seen
    return weights


@pytest.mark.parametrize("train", [True, False])
def test_a_hook_sees_attention_head_by_head_that_is_causal_and_sums_to_one(train):
    network = text_transformer(11, 8, 12, 3, 2).train(train)
    weights = seen_attention(network, network.blocks[1].attention, torch.randint(11, (2, 8)))
    assert weights.shape == (2, 3, 8, 8)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 8))
    assert not weights.triu(1).any()


def test_padding_of_a_text_is_never_looked_at():
    network = text_transformer(11, 8, 12, 3, 2, padding_index=0).eval()
    codes = torch.randint(1, 11, (2, 8))
    codes[0, 5:] = 0
    weights = seen_attention(network, network.blocks[0].attention, codes)
    assert not weights[0, :, :, 5:].any()
    assert weights[1, :, -1, 5:].all()
    torch.testing.assert_close(network(codes)[0, :5], network(codes[:1, :5])[0])


@pytest.mark.parametrize(("size", "patch", "channels"), [(28, 7, 1), (32, 4, 3), (8, 2, 1)])
def test_a_vision_transformer_sees_every_patch_and_has_the_weights_of_its_parts(size, patch, channels):
    width, depth, expansion = 12, 2, 2
    network = vision_transformer(size, patch, channels, width, 3, depth, expansion, 5).eval()
    tokens = (size // patch) ** 2 + 1
    block = 4 * width * width + 4 * width + 2 * expansion * width * width + (expansion + 1) * width + 4 * width
    expected = patch**2 * channels * width + width + width + tokens * width + depth * block + 2 * width
    assert weights_of(network) == expected + 5 * width + 5
    images = torch.randn(2, channels, size, size)
    assert network(images).shape == (2, 5)
    weights = seen_attention(network, network.blocks[0].attention, images)
    assert weights.shape == (2, 3, tokens, tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, tokens))


def test_patches_that_do_not_fit_the_image_are_refused():
    with pytest.raises(ValueError, match="5 pixels do not divide images of 28"):
        vision_transformer(28, 5)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_encoder_decoder_has_the_weights_of_its_parts(cell):
    network = attention_encoder_decoder(9, 7, 5, 6, cell)
    expected = 9 * 5 + 7 * 5 + recurrent_formula(cell, 5, 6, directions=2) + 6 * 6 + 6
    expected += recurrent_formula(cell, 5, 6)
    expected += 6 * 6 + (12 * 6 + 6) + 6 + (18 * 6 + 6) + (6 * 7 + 7)
    assert weights_of(network) == expected


@torch.no_grad()
def test_additive_attention_equals_the_formula_of_bahdanau_et_al():
    attention = attention_encoder_decoder(9, 7, 5, 6).attention
    queries, keys = torch.randn(2, 3, 6), torch.randn(2, 4, 12)
    contexts, weights = attention(queries, keys)
    for sample in range(2):
        for query in range(3):
            energies = [
                float(attention.score.weight[0] @ torch.tanh(
                    attention.query.weight @ queries[sample, query]
                    + attention.key.weight @ keys[sample, key] + attention.key.bias
                ))
                for key in range(4)
            ]  # fmt: skip
            total = sum(math.exp(energy) for energy in energies)
            expected = torch.tensor([math.exp(energy) / total for energy in energies])
            torch.testing.assert_close(weights[sample, query], expected)
            torch.testing.assert_close(contexts[sample, query], expected @ keys[sample])


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_an_encoder_decoder_ignores_padding_and_sees_only_earlier_targets(cell):
    network = attention_encoder_decoder(9, 7, 5, 6, cell).eval()
    source, target = torch.randint(1, 9, (2, 5)), torch.randint(2, 7, (2, 4))
    source[0, 3:] = 0
    scores = network({"source": source, "target": target})
    assert scores.shape == (2, 4, 7)
    assert torch.equal(scores, network(source, target))
    seen = []
    network.attention.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    alone = network(source[:1, :3], target[:1])
    network(source, target)
    torch.testing.assert_close(alone[0], scores[0])
    weights = seen[1]
    assert weights.shape == (2, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4))
    assert not weights[0, :, 3:].any()
    changed = target.clone()
    changed[:, 2:] = (changed[:, 2:] - 1) % 5 + 2
    later = network(source, changed)
    assert torch.equal(later[:, :3], scores[:, :3])
    assert not torch.equal(later[:, 3], scores[:, 3])


def test_a_target_that_begins_with_its_own_mark_is_read_as_it_is():
    shifting, plain = (
        attention_encoder_decoder(9, 7, 5, 6),
        attention_encoder_decoder(9, 7, 5, 6, start_index=None),
    )
    plain.load_state_dict(shifting.state_dict())
    source, target = torch.randint(1, 9, (2, 5)), torch.randint(2, 7, (2, 4))
    shown = torch.cat((torch.ones(2, 1, dtype=torch.int64), target[:, :-1]), 1)
    assert torch.equal(plain(source, shown), shifting(source, target))


def test_an_encoder_decoder_without_a_target_says_what_is_missing():
    with pytest.raises(ValueError, match="`source` and `target`"):
        attention_encoder_decoder()(torch.ones(1, 3, dtype=torch.int64))

"""What heads are worth to the loss: gates against finite differences, idle heads, pruning, and the filed findings."""

import numpy as np
import pytest
import torch
import xarray

from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.tasks.models import text_transformer
from stratascope.tasks.sequence.attention_calls import AttentionSpec, captured_attention
from stratascope.tasks.sequence.attention_switches import gateable_attention
from stratascope.tasks.sequence.head_passes import GatedNetwork
from stratascope.tasks.sequence.head_pruning import bearable_share, order_by, pruning_points, random_orders
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_samples
from stratascope.tasks.sequence.step_losses import step_losses
from stratascope.tasks.vision.sample_gradients import LossKind
from tests.tasks.conftest import LittleAudit

ARGUMENTS = {"alphabet": 7, "length": 10, "width": 16, "heads": 4, "depth": 2, "expansion": 0}
HEADS = {"blocks.0.attention": 4, "blocks.1.attention": 4}


def texts(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes (sample, token) and, to be said at each, the code before the last."""
    codes = np.random.default_rng(seed).integers(0, 7, (count, 10))
    return codes, np.roll(codes, 1, axis=1)


def gated(network: torch.nn.Module, count: int = 12, order: slice = slice(None)) -> GatedNetwork:
    codes, targets = texts(count)
    probe = Probe("test", "test", codes[order], targets[order], np.arange(count)[order], (), "digest", "text")
    given = sequence_samples(probe, SequenceOptions()).given
    wrapped = SequenceNetwork(network.eval(), ModelSpec(factory="none:none"))
    return GatedNetwork(wrapped, given, LossKind("tokens"), AttentionSpec(), 5)


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return text_transformer(**ARGUMENTS)


def test_gradient_by_a_gate_is_the_finite_difference(network):
    network.double()
    asked = gated(network)
    slopes = asked.gradients(HEADS)
    for layer in HEADS:
        for head in range(4):
            losses = []
            for width in (1e-3, -1e-3):
                gates = torch.ones(4, dtype=torch.float64)
                gates[head] += width
                with torch.no_grad(), captured_attention(asked.network, gates={layer: gates}):
                    outputs = asked.network.run(asked.samples)
                losses.append(step_losses(outputs, asked.samples, asked.kind).whole().numpy())
            difference = (losses[0] - losses[1]) / 2e-3
            np.testing.assert_allclose(slopes[layer][:, head], difference, rtol=1e-4, atol=1e-7)


def test_head_that_nothing_reads_is_worth_nothing(network):
    width = ARGUMENTS["width"] // ARGUMENTS["heads"]
    with torch.no_grad():
        network.blocks[1].attention.out_proj.weight[:, 2 * width : 3 * width] = 0
    asked = gated(network)
    whole = asked.scores_without(HEADS, frozenset())
    without = asked.scores_without(HEADS, frozenset({("blocks.1.attention", 2)}))
    np.testing.assert_allclose(without, whole, atol=1e-6)
    assert np.abs(asked.gradients(HEADS)["blocks.1.attention"][:, 2]).max() < 1e-7
    other = asked.scores_without(HEADS, frozenset({("blocks.1.attention", 1)}))
    assert np.abs(other[0] - whole[0]).max() > 1e-4


def test_no_sample_depends_on_its_batch_nor_on_the_order_of_the_probe(network):
    one, other = gated(network), gated(network, order=slice(None, None, -1))
    removed = frozenset({("blocks.0.attention", 1), ("blocks.1.attention", 3)})
    np.testing.assert_array_equal(one.samples.sample_id, other.samples.sample_id)
    single = GatedNetwork(one.network, one.samples, one.kind, one.spec, 1)
    np.testing.assert_allclose(
        one.scores_without(HEADS, removed), single.scores_without(HEADS, removed), atol=1e-5
    )
    for layer, slopes in one.gradients(HEADS).items():
        np.testing.assert_allclose(slopes, single.gradients(HEADS)[layer], atol=1e-6)


def test_focus_is_one_on_a_single_key_and_zero_where_weights_are_uniform(network):
    with torch.no_grad():
        for block in network.blocks:
            block.attention.in_proj_weight.zero_()
            block.attention.in_proj_bias.zero_()
    uniform = gated(network).focus({"": np.ones((12, 10), bool)})
    for values in uniform.values():
        np.testing.assert_allclose(values, 0, atol=1e-6)


def test_orders_and_points():
    scores = {("a", 0): 0.5, ("a", 1): 0.1, ("b", 0): 0.1, ("b", 1): -1.0}
    assert order_by(scores) == [("b", 1), ("a", 1), ("b", 0), ("a", 0)]
    assert pruning_points(4) == [0, 1, 2, 3, 4]
    assert pruning_points(144)[0] == 0
    assert pruning_points(144)[-1] == 144
    assert len(pruning_points(144)) == 13
    draws = random_orders(list(scores), 3, 0)
    assert draws == random_orders(list(scores), 3, 0)
    assert all(sorted(draw) == sorted(scores) for draw in draws)


def test_bearable_share_ends_at_the_first_harm():
    losses, numbers = np.array([1.0, 1.02, 1.2, 0.9]), np.full(4, np.nan)
    assert bearable_share([0, 1, 2, 3], np.stack([losses, numbers]), 0.05) == pytest.approx(1 / 3)
    accuracies = np.array([0.9, 0.88, 0.87, 0.5])
    assert bearable_share([0, 1, 2, 3], np.stack([losses, accuracies]), 0.05) == pytest.approx(2 / 3)
    assert bearable_share([0, 1, 2, 3], np.stack([losses, np.ones(4)]), 0.05) == 1.0


def test_findings_of_an_audit(tmp_path, network):
    audit = LittleAudit(tmp_path, "stratascope.tasks.models:text_transformer", ARGUMENTS, task="tokens")
    codes, targets = texts(16)
    audit.probe("test", inputs=codes, targets=targets)
    with torch.no_grad():
        network.blocks[0].attention.out_proj.weight[:, :4] = 0
    for step in (0, 5):
        audit.checkpoint(step, network)
    rows = audit.analyse("head_importance")
    ablation = rows[rows["metric"] == "head_importance_ablation"].set_index(["step", "layer", "part"])["value"]
    assert len(ablation) == 16
    assert abs(ablation[0, "blocks.0.attention", "head=0"]) < 1e-6
    assert (rows.loc[rows["metric"] == "prunable_head_share", "value"].between(0, 1)).all()
    xarray.open_datatree(audit.store.path / "archive.zarr", engine="zarr", consolidated=False)
    figures = audit.draw("head_importance")
    assert [figure.key.split("-")[0] for figure in figures] == [
        "ablation",
        "agreement",
        "pruning",
        "pruning",
        "over",
    ]
    assert all(figure.caution and "{" not in figure.caution for figure in figures)


def test_network_without_attention_is_told_so(tmp_path):
    from stratascope.tasks.models import character_model

    audit = LittleAudit(
        tmp_path, "stratascope.tasks.models:character_model", {"alphabet": 7, "width": 4}, task="tokens"
    )
    codes, targets = texts(8)
    audit.probe("test", inputs=codes, targets=targets)
    audit.checkpoint(0, character_model(alphabet=7, width=4))
    rows = audit.analyse("head_importance")
    assert set(rows["status"]) == {"does_not_apply"}
    assert rows["reason"].str.contains("attention").all()


EAGER = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel

class Answering(torch.nn.Module):
    def __init__(self, implementation):
        super().__init__()
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 12, "vocab_size": 7, "tie_word_embeddings": False}
        self.model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation=implementation))

    def forward(self, inputs):
        return self.model(inputs).logits
"""


def test_heads_of_a_model_of_hugging_face_are_worth_the_same_however_it_attends(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="needs the extra `hf`")
    (tmp_path / "answering.py").write_text(EAGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    from answering import Answering

    codes, targets = texts(12)
    torch.manual_seed(0)
    weights = Answering("sdpa").state_dict()
    found = {}
    for implementation in ("sdpa", "eager"):
        folder = tmp_path / implementation
        folder.mkdir()
        audit = LittleAudit(folder, "answering:Answering", {"implementation": implementation}, task="tokens")
        audit.probe("test", inputs=codes, targets=targets)
        network = Answering(implementation)
        network.load_state_dict(weights)
        audit.checkpoint(0, network)
        found[implementation] = audit.analyse("head_importance")
    rows = found["eager"]
    assert (rows["status"] == "ok").all()
    assert (rows["metric"] == "head_importance_ablation").sum() == 8
    assert list(rows["part"]) == list(found["sdpa"]["part"])
    np.testing.assert_allclose(rows["value"], found["sdpa"]["value"], rtol=1e-4, atol=1e-6)


def test_the_attention_of_a_model_of_hugging_face_is_put_back(network):
    transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12, "vocab_size": 9}
    for implementation in ("sdpa", "eager"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_implementation=implementation))
        with pytest.raises(KeyError), gateable_attention(model):
            assert model.config._attn_implementation == "sdpa"
            raise KeyError
        assert model.config._attn_implementation == implementation
    with gateable_attention(network):
        assert network.training

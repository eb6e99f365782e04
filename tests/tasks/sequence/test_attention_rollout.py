"""Rollout and flow of real networks: against products by hand, on pictures, and where they do not apply."""

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.sequence.attention_calls import captured_attention
from stratascope.tasks.sequence.attention_rollout import self_attention_stack
from stratascope.tasks.sequence.attention_rollout_drawing import patch_shares
from stratascope.tasks.sequence.attention_scores import masked_attention
from tests.tasks.conftest import LittleAudit

TEXT = {"alphabet": 7, "length": 9, "width": 16, "heads": 2, "depth": 3, "padding_index": 0}
PICTURES = {"size": 8, "patch": 4, "width": 16, "heads": 2, "depth": 4, "outputs": 3}


@pytest.fixture(scope="module")
def text_audit(tmp_path_factory) -> LittleAudit:
    """Six padded texts, read by a causal transformer at two steps."""
    from stratascope.tasks.models import text_transformer

    audit = LittleAudit(tmp_path_factory.mktemp("texts"), "stratascope.tasks.models:text_transformer", TEXT, task="tokens")  # fmt: skip
    tokens = np.random.default_rng(0).integers(1, 7, (6, 9))
    real = np.arange(9)[None] < np.array([9, 5, 7, 3, 9, 6])[:, None]
    tokens[~real] = 0
    audit.probe("test", inputs=tokens, targets=tokens, mask=real)
    for step in (0, 5):
        torch.manual_seed(step)
        audit.checkpoint(step, text_transformer(**TEXT))
    return audit


@pytest.fixture(scope="module")
def text_rows(text_audit):
    return text_audit.analyse("attention_rollout", flow_depth=2, batch_size=4)


def test_rollout_is_the_product_of_the_layers_of_the_shortened_text_alone(text_audit, text_rows):
    from safetensors.torch import load_file

    from stratascope.tasks.models import text_transformer

    ids = text_audit.store.array("runs/run/000000000005/attention_rollout/test/sample_id")
    filed = text_audit.store.array("runs/run/000000000005/attention_rollout/test/rollout")
    tokens = np.asarray(text_audit.view("attention_rollout").probes["test"].inputs_at(slice(0, 6)))
    network = text_transformer(**TEXT).eval()
    network.load_state_dict(load_file(text_audit.files[-1].path))
    for place, row in enumerate(ids):
        text = torch.from_numpy(tokens[row][tokens[row] != 0])[None]
        with torch.no_grad(), captured_attention(network) as recorder:
            network(text)
        product = torch.eye(text.shape[1])
        for depth, call in enumerate(recorder.take()):
            product = (0.5 * torch.eye(text.shape[1]) + 0.5 * call.weights[0].mean(0)) @ product
            count = text.shape[1]
            np.testing.assert_allclose(filed[place, depth, :count, :count], product.numpy(), atol=1e-5)


def test_the_spread_is_that_of_the_filed_matrices_and_falls_with_depth(text_audit, text_rows):
    spreads = text_rows[(text_rows["metric"] == "rollout_row_spread") & (text_rows["step"] == 5)]
    assert list(spreads["part"]) == ["depth=1", "depth=2", "depth=3"]
    assert spreads["value"].is_monotonic_decreasing
    assert (spreads["n"] == 6).all()
    shown = text_audit.analyse("attention_rollout", flow_depth=2, max_samples=1, shown=1)
    filed = text_audit.store.array("runs/run/000000000005/attention_rollout/test/rollout")[0]
    sample = text_audit.store.array("runs/run/000000000005/attention_rollout/test/tokens/input")[0]
    count = int((sample != 0).sum())
    one = shown[(shown["metric"] == "rollout_row_spread") & (shown["step"] == 5)]["value"]
    np.testing.assert_allclose(one, filed[:, :count, :count].std(1).mean(-1), atol=1e-6)
    text_audit.analyse("attention_rollout", flow_depth=2, batch_size=4)


def test_batch_size_changes_nothing(text_audit, text_rows):
    other = text_audit.analyse("attention_rollout", flow_depth=2, batch_size=6)
    np.testing.assert_allclose(other["value"], text_rows["value"], atol=1e-6)


def test_flow_is_filed_for_real_tokens_and_not_below_the_rollout(text_audit, text_rows):
    flow = text_audit.store.array("runs/run/000000000005/attention_rollout/test/flow")
    rolled = text_audit.store.array("runs/run/000000000005/attention_rollout/test/rollout")[:, 1]
    known = np.isfinite(flow)
    assert known.any((1, 2)).all()
    assert (flow[known] >= rolled[known] - 1e-6).all()
    row = text_rows[(text_rows["metric"] == "flow_row_spread") & (text_rows["step"] == 5)].iloc[0]
    assert (row["status"], row["part"], row["n"]) == ("ok", "depth=2", 4)


def test_no_more_is_kept_than_was_told(text_audit):
    from stratascope.tasks.models import text_transformer
    from stratascope.tasks.sequence.attention_rollout import AttentionRolloutOptions, foretold
    from tests.tasks.vision.conftest import wrapped

    options = {"megabytes": 2.5 * 3 * 81 * 4 / 1e6, "flow_depth": 2}
    text_audit.analyse("attention_rollout", **options)
    filed = text_audit.store.array("runs/run/000000000005/attention_rollout/test/rollout")
    assert filed.shape == (2, 3, 9, 9)
    assert text_audit.store.array("runs/run/000000000005/attention_rollout/test/sample_id").shape == (2,)
    probe = text_audit.view("attention_rollout").probes["test"]
    told = foretold(wrapped(text_transformer(**TEXT)), probe, AttentionRolloutOptions(**options))
    assert told.startswith("rollouts of 2 of 4 shown samples at 3 depths, 0.00194 MB")
    assert filed.nbytes == pytest.approx(0.00194e6, rel=0.01)
    text_audit.analyse("attention_rollout", flow_depth=2, batch_size=4)


def test_pictures_of_text_and_flow(text_audit, text_rows):
    figures = {figure.key: figure for figure in text_audit.draw("attention_rollout")}
    assert set(figures) == {"rollout-test", "flow-test", "spread-test"}
    assert [step for step, _ in figures["rollout-test"].frames] == [0, 5]
    assert figures["rollout-test"].headline
    assert "spread of the flow's rows" in figures["flow-test"].caution


def test_a_vision_transformer_is_shown_on_the_picture(tmp_path):
    from stratascope.tasks.models import vision_transformer

    audit = LittleAudit(tmp_path, "stratascope.tasks.models:vision_transformer", PICTURES)
    inputs = np.random.default_rng(1).random((4, 1, 8, 8)).astype(np.float32)
    audit.probe("test", inputs=inputs, targets=np.arange(4) % 3, denormalize=np.array([0.0, 1.0]))
    torch.manual_seed(0)
    audit.checkpoint(3, vision_transformer(**PICTURES))
    rows = audit.analyse("attention_rollout", flow_depth=4)
    assert len(rows[rows["metric"] == "rollout_row_spread"]) == 4
    # Untrained attention is nearly uniform: four layers of it leave nothing of the query in the flow.
    assert rows[rows["metric"] == "flow_row_spread"]["value"].item() < 0.01
    about = audit.store.array_info("runs/run/000000000003/attention_rollout/test/rollout")[3]
    assert about["grid"] == [1, 2, 2, 4]
    figures = {figure.key: figure for figure in audit.draw("attention_rollout")}
    assert "<image" in figures["rollout-test"].frames[0][1]
    assert "saturated" in figures["flow-test"].caution


def test_patches_share_what_the_class_token_has_of_them():
    rollout = np.array([[0.4, 0.1, 0.2, 0.0, 0.3], *np.eye(5)[1:]])
    np.testing.assert_allclose(patch_shares(rollout, (1, 2, 2, 4)), [[1 / 6, 2 / 6], [0, 3 / 6]])
    np.testing.assert_allclose(patch_shares(np.full((4, 4), 0.25), (0, 2, 2, 4)), np.full((2, 2), 0.25))


class _Narrowing(nn.Module):
    """Attends over eight tokens, then over every second of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(4, 1, batch_first=True)
        self.second = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.first(inputs, inputs, inputs)
        kept = hidden[:, ::2]
        return self.second(kept, kept, kept)[0]


def test_layers_of_unequal_length_and_cross_attention_do_not_apply():
    network = _Narrowing()
    with captured_attention(network) as recorder:
        network(torch.randn(2, 8, 4))
    calls = [(call, masked_attention(call.weights)) for call in recorder.take()]
    with pytest.raises(DoesNotApply, match="different numbers of tokens: first 8, second 4"):
        self_attention_stack(calls)
    decoder = nn.TransformerDecoderLayer(4, 1, 8, batch_first=True)
    with captured_attention(decoder) as recorder:
        decoder(torch.randn(2, 5, 4), torch.randn(2, 5, 4))
    calls = [(call, masked_attention(call.weights)) for call in recorder.take()]
    with pytest.raises(DoesNotApply, match="attends to other tokens than its own"):
        self_attention_stack(calls)

"""Kinds of errors: n-grams against counting by hand, each kind by an example, and that they add up."""

from collections import Counter

import numpy as np
import pytest

from stratascope.tasks.sequence.error_types import ErrorTypes, least_orders, n_gram_probabilities, word_counts
from tests.tasks.sequence.planted_cells import ARGUMENTS, LENGTH, WINDOWS, bracket_audit


def test_n_grams_are_what_counting_gives():
    generator = np.random.default_rng(0)
    training, texts = generator.integers(0, 3, (20, 12)), generator.integers(0, 3, (5, 9))
    training[3, 8:] = -1
    texts[1, 6:] = -1
    found = list(n_gram_probabilities(training, texts, 4))
    for n in range(1, 5):
        rows = [row[row >= 0].tolist() for row in training]
        grams = Counter(tuple(row[place : place + n]) for row in rows for place in range(len(row) - n + 1))
        contexts = Counter(gram[:-1] for gram in grams.elements())
        for sample, text in enumerate(texts.tolist()):
            for place in range(1, 9):
                if place < n - 1 or text[place] < 0:
                    assert np.isnan(found[n - 1][sample, place - 1])
                else:
                    gram = tuple(text[place - n + 1 : place + 1])
                    wanted = grams[gram] / contexts[gram[:-1]] if contexts[gram[:-1]] else 0
                    assert found[n - 1][sample, place - 1] == pytest.approx(wanted)


def test_the_least_order_is_that_of_the_shortest_sure_context():
    training = np.array([[0, 1, 2, 0, 1, 2, 3, 1, 0]])
    # After 0 comes 1 in two of two; after 1 comes 2 in two of three; after 2 comes 0 or 3; after 1, 2 too.
    assert least_orders(training, np.array([[3, 0, 1, 2, 3, 3]]), 3).tolist() == [[0, 2, 2, 0, 0]]


def kinds_of(text, probability=0.1, grams=None, counts=None, memory=(5, 20), rare=1):
    types = ErrorTypes(2, memory, rare if counts is not None else -1)
    size = len(text) - 1
    chances = np.full(size, probability) if np.isscalar(probability) else np.asarray(probability)
    given = np.zeros(size, int) if grams is None else np.asarray(grams)
    assigned = types.assign(text, chances, given, counts)
    return ["" if number < 0 else types.names[number] for number in assigned]


def test_words_marks_and_blanks():
    assert kinds_of("ab cd.\n") == ["other", "word_end", "word_start", "other", "punctuation", "word_end"]


def test_a_word_that_stood_before_is_remembered_at_the_smallest_length():
    assert kinds_of("abc abc") == ["other", "other", "word_end", "word_start", "memory_5", "memory_5"]
    assert kinds_of("abc defgh abc")[-2:] == ["memory_20", "memory_20"]


def test_a_rare_word_is_one_that_training_hardly_holds():
    counts = word_counts(["often often, rare", "often"])
    assert counts == {"often": 3, "rare": 1}
    assert kinds_of("rare often", counts=counts)[:3] == ["rare_word"] * 3
    assert kinds_of("rare often", counts=counts)[-4:] == ["other"] * 4


def test_the_smallest_n_gram_comes_first_and_before_everything():
    assert kinds_of("a b.", grams=[0, 1, 2]) == ["word_end", "n_gram_1", "n_gram_2"]


def test_only_what_got_less_than_a_half_is_an_error():
    assert kinds_of("abcde", probability=[0.5, 0.49, 0.4, 0.39]) == ["", "near_miss", "near_miss", "other"]


@pytest.fixture(scope="module")
def errors(lasting_audit):
    audit = bracket_audit(lasting_audit("stratascope.tasks.models:character_model", ARGUMENTS, task="tokens"))
    return audit, audit.analyse("character_errors", order=4, batch_size=16)


@pytest.mark.parametrize("metric", ["character_error_rate", "character_error_loss"])
def test_the_kinds_add_up_to_the_whole(errors, metric):
    own = errors[1][(errors[1].metric == metric) & (errors[1].probe == "test") & (errors[1].step == 10)]
    whole = own[own.part == ""].value.iloc[0]
    assert whole > 0
    assert own[own.part != ""].value.sum() == pytest.approx(whole)
    assert own.n.eq(WINDOWS * LENGTH).all()


def test_the_loss_of_all_errors_is_what_the_model_loses_where_every_character_is_one(errors):
    """Random weights give no character a half, so all are errors and their losses are all of the loss."""
    own = errors[1][(errors[1].probe == "test") & (errors[1].step == 0) & (errors[1].part == "")].set_index(
        "metric"
    )
    assert own.value["character_error_rate"] == 1
    assert own.value["character_error_loss"] == pytest.approx(own.value["character_loss"])
    assert own.value["character_loss"] == pytest.approx(np.log(10), abs=0.2)


def test_the_probe_that_was_counted_is_not_measured(errors):
    own = errors[1][errors[1].probe == "train"]
    assert set(own.status) == {"does_not_apply"}


def test_the_size_of_a_batch_is_no_part_of_the_result(errors):
    other = errors[0].analyse("character_errors", order=4, batch_size=7)
    np.testing.assert_allclose(errors[1].value.fillna(0), other.value.fillna(0), atol=1e-5)


@pytest.mark.parametrize("name", ["character_errors", "character_errors_over_training"])
def test_history_and_pictures(errors, name):
    rows = errors[0].analyse("character_errors_over_training")
    changes = rows[(rows.metric == "character_error_change") & (rows.probe == "test")]
    at = {step: errors[1][(errors[1].metric == "character_error_rate") & (errors[1].part == "") & (errors[1].step == step) & (errors[1].probe == "test")].value.iloc[0] for step in (0, 10)}  # fmt: skip
    assert changes.value.sum() == pytest.approx(at[10] - at[0], abs=1e-9)
    figures = errors[0].draw(name)
    assert figures
    assert all("nan" not in figure.caution.lower().split() for figure in figures)

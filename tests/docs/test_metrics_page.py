"""The page of metrics says what the registry says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_is_what_the_generator_gives(generate):
    written = (FOLDER / "metrics.md").read_text(encoding="utf-8")
    assert written == generate.page(generate.built_in()), "run `make docs`"


def test_every_analysis_option_and_metric_stands_on_it(generate):
    written = (FOLDER / "metrics.md").read_text(encoding="utf-8")
    for name, analysis in generate.built_in().items():
        section = written.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert analysis.question in section
        for metric in analysis.metrics:
            row = next(line for line in section.splitlines() if line.startswith(f"| `{metric.name}` |"))
            assert metric.definition in row
            assert metric.range in row
        for option in analysis.options.model_fields:
            assert f"| `{option}` |" in section


def test_every_metric_has_unit_range_and_a_whole_sentence(generate):
    for name, analysis in generate.built_in().items():
        names = [metric.name for metric in analysis.metrics]
        assert len(set(names)) == len(names), name
        for metric in analysis.metrics:
            assert metric.unit
            assert metric.range
            assert metric.definition.endswith("."), metric.name
            assert metric.name == metric.name.lower().replace(" ", "_")


def test_a_bar_in_a_definition_cannot_break_the_table(generate):
    assert generate._cell("a | b\nc") == "a \\| b c"

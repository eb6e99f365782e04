"""The page of data sets names every one of them with its splits, its options and their defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from stratascope.storage.datasets import SOURCES

PAGE = (Path(__file__).parents[2] / "docs" / "data-sets.md").read_text(encoding="utf-8")
SHARED = {"count", "seed"}
"""Options of all data sets that are made up, which a sentence above their table tells."""


@pytest.mark.parametrize("name", SOURCES)
def test_a_data_set_stands_there_as_it_is(name):
    source = SOURCES[name]
    row = next(line for line in PAGE.splitlines() if re.match(rf"\| [^|]*`{name}`", line))
    *_, told = row.strip("| ").split("|")
    is_made_up = set(source.options.model_fields) >= SHARED
    for option, field in source.options.model_fields.items():
        if is_made_up and option in SHARED:
            assert f"`{option}` ({field.default})" in PAGE
        elif field.is_required():
            assert f"`{option}`" in told
        else:
            default = field.default if isinstance(field.default, str) else json.dumps(field.default)
            assert f"`{option}: {default}`" in told
    if source.splits and "path" not in source.options.model_fields and not is_made_up:
        assert ", ".join(source.splits) in row

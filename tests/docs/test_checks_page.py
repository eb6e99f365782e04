"""The page of checks: every key stands on it, its examples are sound, its table is what the suites say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from stratascope.tasks.checks.alerting import AlertSpec
from stratascope.tasks.checks.spec import ChangeSpec, CheckSpec, ReferenceSpec, refuse_equal_names
from stratascope.tasks.checks.suites import REASONS, SUITES

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(text) -> list:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_committed_table_is_what_the_generator_gives(text):
    spec = importlib.util.spec_from_file_location("docs_generate", PAGE.with_name("generate.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert text == module.checks_page(text), "run `make docs`"
    names = [member.name for members in SUITES.values() for member in members]
    assert sorted(REASONS) == sorted(names)
    for name in names:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize("model", [CheckSpec, ChangeSpec, AlertSpec])
def test_every_key_is_explained(text, model):
    keys = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", text, re.MULTILINE)
    explained = {key for row in keys for key in re.findall(r"\w+", row)}
    assert set(model.model_fields) <= explained


def test_the_example_is_a_configuration(blocks):
    example = next(block for block in blocks if "checks" in block)
    checks = [CheckSpec.model_validate(item) for item in example["checks"]]
    refuse_equal_names(checks)
    assert checks[4].change.reference == ReferenceSpec(run="baseline")
    assert [AlertSpec.model_validate(item).cooldown for item in example["alerts"]] == [21600]


def test_the_automation_is_one_that_prefect_takes(blocks):
    from prefect.events.schemas.automations import AutomationCore

    (automation,) = next(block["automations"] for block in blocks if "automations" in block)
    assert AutomationCore.model_validate(automation).trigger.expect == {"stratascope.check.raised"}

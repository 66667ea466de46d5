"""What `make verify` left behind fits together: figures, reasons and the report made of them."""

import importlib.util
import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.plain

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("shared", ROOT / "verify" / "shared.py")
shared = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shared)
RESULTS = json.loads(shared.RESULTS.read_text())
REASONS = json.loads(shared.REASONS.read_text())


def test_the_report_shows_the_figures_of_the_last_run():
    report = shared.REPORT.read_text()
    assert report == shared.reported(report, RESULTS)


@pytest.mark.parametrize("kind", ["uncovered", "survivors"])
def test_all_that_is_open_has_a_reason(kind):
    for figures in RESULTS.values():
        assert not shared.unexplained(kind, figures.get(kind, {}))


@pytest.mark.parametrize("kind", ["uncovered", "survivors"])
def test_no_reason_outlives_its_line(kind):
    for file, reasons in REASONS[kind].items():
        source = " ".join((ROOT / "rmsprop_c" / file).read_text().replace("\\\n", "\n").split())
        gone = [text for text in reasons if " ".join(text.split(" -> ")[0].split()) not in source]
        assert not gone, file

"""What the pages show of measurements is what was recorded."""

import importlib
import json
from pathlib import Path


def test_the_tables_on_the_page_are_those_of_the_recorded_results(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(str(root / "bench"))
    scipy_noise = importlib.import_module("scipy_noise")
    results = json.loads((root / "bench" / "results" / "scipy.json").read_text())
    page = (root / "docs" / "scipy.md").read_text()
    for table in scipy_noise.tables(results).values():
        assert table in page

"""Fetches transformers' tests and makes them importable. `make test` leaves this folder out (`norecursedirs`)."""

import re
import sys

from modeling_tests.hf_common.source import PACKAGE, fetch


def pytest_configure(config):
    folder = fetch()
    sys.path.insert(0, str(folder))
    marks = {
        name
        for path in (folder / PACKAGE).glob("test_*.py")
        for name in re.findall(r"^\s*@(?:pytest\.)?mark\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for name in sorted(marks):
        config.addinivalue_line("markers", f"{name}: of transformers' own tests")

"""Marks the whole folder as `fuzz`, and prints one table of all processes at the end."""

from pathlib import Path

import pytest

from modeling_tests.fuzz import fuzzing


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.fuzz)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        counts = {area: dict(counts) for area, counts in fuzzing.COUNTS.items() if counts}
        session.config.workeroutput["fuzz"] = (counts, fuzzing.ORACLES)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    counts, oracles = getattr(node, "workeroutput", {}).get("fuzz", ({}, {}))
    fuzzing.ORACLES.update(oracles)
    for area, found in counts.items():
        fuzzing.COUNTS.setdefault(area, fuzzing.Counter()).update(found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(fuzzing.COUNTS.values()):
        terminalreporter.section(f"fuzz, seed {fuzzing.SEED}")
        terminalreporter.write_line(fuzzing.table())

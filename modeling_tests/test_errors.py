"""Errors of our own: what the package refuses is told from a fault in its code."""

import ast
import builtins
import json
import pickle
from pathlib import Path

import pytest

import vlm_par_hf
from vlm_par_hf import errors


ROOT = Path(vlm_par_hf.__file__).parent
# Python's protocols ask for these, and the last one is caught where it is raised; the others have a class of ours.
OF_PROTOCOLS = {"AttributeError", "IndexError", "KeyboardInterrupt", "StopIteration", "TimeoutError"}


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name[0] == "P"])
def test_each_is_the_built_in_one_too_and_crosses_processes(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.ParError) and vlm_par_hf.ParError is errors.ParError
    if name != "ParError":
        assert issubclass(kind, getattr(builtins, name.removeprefix("Par")))
    error = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(error) is kind and str(error) == "what is wrong"


def test_nothing_else_is_raised_on_purpose():
    """The command line takes any other error for a fault of ours."""
    found = []
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        converted = set()  # raised inside a `try`, whose handlers make an error of ours of it
        for node in ast.walk(tree):
            if isinstance(node, ast.Try) and node.handlers:
                converted |= {inner for one in node.body for inner in ast.walk(one)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
                name = node.exc.func.id
                if hasattr(builtins, name) and name not in OF_PROTOCOLS and node not in converted:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert not found


def test_what_another_package_raises_for_a_damaged_file_is_explained(monkeypatch):
    words = r"org/x: config.json cannot be read, it is damaged .*JSONDecode"
    with pytest.raises(errors.ParValueError, match=words), errors.unreadable("org/x", "config.json"):
        json.loads("{")
    # An error of our own code stays a fault.
    monkeypatch.setattr(errors, "raised_elsewhere", lambda error: False)
    with pytest.raises(KeyError), errors.unreadable("org/x", "config.json"):
        raise KeyError("a")


def test_where_an_error_was_raised():
    def caught(call):
        try:
            call()
        except Exception as error:
            return errors.raised_elsewhere(error)

    assert caught(lambda: json.loads("{"))
    assert not caught(lambda: vlm_par_hf.get_schema("no such table"))

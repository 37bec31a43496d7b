"""The scripts in benchmarks/: what they import from each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_no_two_benchmarks_import_each_other():
    scripts = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in BENCHMARKS.glob("*.py")}
    assert scripts, f"no benchmark found in {BENCHMARKS}"
    imports = {}
    for name, tree in scripts.items():
        found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imports[name] = found & scripts.keys()
    assert "models" in imports["speed"] and "models" in imports["cache"], "the test sees the imports"
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle

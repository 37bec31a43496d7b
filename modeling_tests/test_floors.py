"""The house: imports go strictly down, families stay apart, light modules stay light.

Every import statement is read, also those inside functions, so a lazy import is no way around a floor.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vlm_par_hf


PACKAGE = "vlm_par_hf"
ROOT = Path(vlm_par_hf.__file__).parent

# Top-level module or folder -> (floor, step). An import must go to a strictly smaller pair; a folder may import itself
# (a family only its own folder). A new module gets its place here first.
FLOORS: dict[str, tuple[int, int]] = {
    "errors": (0, -1),
    "escaping": (0, -2),
    "utils": (0, 0),
    "families": (0, 0),
    "upstream": (0, 0),
    "labels": (0, 1),
    "output_folders": (0, 1),
    "images": (0, 1),
    "metrics": (1, 0),
    "hub": (1, 0),
    "visualization": (1, 0),
    "pixels": (1, 0),  # public name of images.preprocessing
    "data": (1, 1),
    "par_metrics": (1, 1),
    "base": (2, 0),
    "losses": (2, 1),  # public name of base.losses
    "models": (3, 0),
    "features": (4, 0),
    "inference": (5, 0),
    "annotation": (6, 0),
    "calibration": (6, 0),
    "export": (6, 0),
    "tracking": (6, 1),
    "auto": (7, 0),
    "training": (8, 0),
    "cli": (9, 0),
    "embedded": (9, 0),  # data, and the scripts that made it
    "__main__": (9, 1),
    "__init__": (10, 0),
}
# What a family may import beside its own folder.
FOR_FAMILIES = {"base", "errors", "labels", "upstream"}

# Nothing here may import torch when it is itself imported: labels, readers and metrics work without it.
TORCH_FREE = (
    "labels/",
    "errors.py",
    "escaping.py",
    "utils.py",
    "output_folders.py",
    "base/priors.py",
    "calibration.py",
    "families.py",
    "images/",
    "metrics/",
    "data/",
    "hub/",
    "visualization.py",
)
NEEDS_TORCH = ("data/collator.py", "images/preprocessing.py")
# Never at module level: they belong to extras. The files that must subclass a type of such a package are themselves
# imported inside functions only, or by the package.
OPTIONAL = {
    "accelerate", "av", "datasets", "evaluate", "fastapi", "lancedb", "matplotlib", "nncf", "onnx", "onnxruntime",
    "onnxscript", "openvino", "peft", "prometheus_client", "pyarrow", "ray", "scipy", "starlette", "uvicorn",
}  # fmt: skip
DEFINES_OPTIONAL = {
    "data/image_column.py": {"datasets"},
    "par_metrics/par_evaluator.py": {"evaluate"},
    "par_metrics/par_metrics.py": {"datasets", "evaluate"},
}
# torchvision must match the torch build exactly; the others run code that a file brings along.
FORBIDDEN = {"cloudpickle", "dill", "pickle", "torchvision"}


def imports(file: str, source: str) -> Iterator[tuple[int, str, bool]]:
    """(line, full dotted name, at module level?) of every import; a name starting with ".." left its folder."""
    folder = [PACKAGE, *Path(file).parts[:-1]]
    tree = ast.parse(source, filename=file)
    at_module_level = set()
    pending: list[ast.AST] = [tree]
    while pending:
        for child in ast.iter_child_nodes(pending.pop()):
            type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if not type_checking and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                at_module_level.add(id(child))
                pending.append(child)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in at_module_level
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1:
                yield node.lineno, "." * node.level + (node.module or ""), id(node) in at_module_level
                continue
            start = [*(folder if node.level else []), *([node.module] if node.module else [])]
            for alias in node.names:
                yield node.lineno, ".".join([*start, alias.name]), id(node) in at_module_level


def violations(file: str, source: str) -> list[str]:
    """What a file of the package does against the rules, one line each; `file` is its path inside the package."""
    parts = Path(file).with_suffix("").parts
    unit = parts[0]
    if unit not in FLOORS:
        return [f"{file}: {unit!r} has no floor yet: place it in FLOORS and in the table of CONTRIBUTING.md"]
    family = parts[1] if unit == "models" and len(parts) > 2 else None
    torch_free = file.startswith(TORCH_FREE) and file not in NEEDS_TORCH
    found = []
    for line, name, at_module_level in imports(file, source):
        where = f"{file}:{line}"
        if name.startswith(".."):
            found.append(f"{where}: {name!r} goes up a folder: write the full name")
            continue
        top, *rest = name.split(".")
        if top != PACKAGE:
            if top in FORBIDDEN:
                found.append(f"{where}: {top} is not used in this package")
            if at_module_level and torch_free and top == "torch":
                found.append(f"{where}: this module must not need torch when it is imported")
            if at_module_level and top in OPTIONAL - DEFINES_OPTIONAL.get(file, set()):
                found.append(f"{where}: {top} is optional: import it where it is used")
            continue
        target = rest[0] if rest and rest[0] in FLOORS else "__init__"
        if len(rest) > 1 and target == "__init__":
            found.append(f"{where}: {name!r} has no floor")
        elif at_module_level and "/".join(rest[:2]) + ".py" in DEFINES_OPTIONAL:
            found.append(f"{where}: {name!r} needs an optional package: import it inside a function")
        elif target == unit == "models":
            if family is not None and rest[1:2] != [family]:
                found.append(f"{where}: family {family!r} imports {name!r}: move what both need down to base")
        elif target == unit:
            pass
        elif unit == "models" and target not in FOR_FAMILIES:
            found.append(f"{where}: a family never imports {target!r}")
        elif FLOORS[target] >= FLOORS[unit]:
            found.append(
                f"{where}: {unit!r} (floor {FLOORS[unit]}) imports {name!r} (floor {FLOORS[target]}): imports go down"
            )
    return found


def source_files() -> dict[str, str]:
    """Path inside the package -> source."""
    paths = sorted(ROOT.rglob("*.py"))
    found = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    # Part of a checkpoint, as in every one that is saved: they import the public package, not the other way round.
    return {file: source for file, source in found.items() if not file.startswith("embedded/heads_")}


def file_imports(files: dict[str, str]) -> dict[str, set[str]]:
    """Which file imports which, also inside functions; not what only type checkers read."""
    module_of = {
        ".".join([PACKAGE, *Path(file).with_suffix("").parts]).removesuffix(".__init__"): file for file in files
    }
    graph: dict[str, set[str]] = {file: set() for file in files}
    for file, source in files.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                node.body = [ast.Pass()]
        for _, name, _ in imports(file, ast.unparse(tree)):
            # "a.b.c": the module a.b.c, else the name c of the module a.b.
            target = module_of.get(name) or module_of.get(name.rpartition(".")[0])
            if target is not None and target != file:
                graph[file].add(target)
    return graph


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """The files of one circle, in order; None where there is none."""
    done: set[str] = set()

    def visit(file: str, path: list[str]) -> list[str] | None:
        if file in path:
            return [*path[path.index(file) :], file]
        if file in done:
            return None
        for target in sorted(graph[file]):
            found = visit(target, [*path, file])
            if found:
                return found
        done.add(file)
        return None

    for file in sorted(graph):
        found = visit(file, [])
        if found:
            return found
    return None


def test_the_house_keeps_its_floors():
    files = source_files()
    assert "labels/schema.py" in files and "base/modeling.py" in files, "the package was not found"
    found = [line for file, source in files.items() for line in violations(file, source)]
    assert not found, "\n" + "\n".join(found)


def test_no_two_files_import_each_other_in_a_circle():
    graph = file_imports(source_files())
    assert graph["inference/pipelines.py"] >= {"inference/predicting.py", "hub/pushing.py"}, "imports were not found"
    found = circle(graph)
    assert found is None, " -> ".join(found)


def test_a_circle_is_seen():
    files = {
        "data/a.py": "from .b import x",
        "data/b.py": "def f():\n    from vlm_par_hf.data import c",
        "data/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import y",
    }
    assert circle(file_imports(files)) is None
    files["data/c.py"] += "\nimport vlm_par_hf.data.a"
    assert circle(file_imports(files)) == ["data/a.py", "data/b.py", "data/c.py", "data/a.py"]


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("labels/schema.py", "from vlm_par_hf.base.losses import A", "imports 'vlm_par_hf.base.losses.A' .*go down"),
        ("utils.py", "import vlm_par_hf.labels.schema", "imports go down"),
        ("base/losses.py", "def f():\n    from vlm_par_hf.training import train", r"losses.py:2: .*imports go down"),
        ("base/losses.py", "from vlm_par_hf import models", "imports go down"),
        ("data/loading.py", "from vlm_par_hf import training", "imports go down"),
        ("data/loading.py", "from vlm_par_hf import get_schema", r"floor \(10, 0\).*imports go down"),
        ("training/loop.py", "class A:\n    def f(self):\n        import vlm_par_hf", "imports go down"),
        ("training/loop.py", "from ..labels import schema", "goes up a folder"),
        ("training/loop.py", "from .. import labels", "goes up a folder"),
        (
            "models/vlm_par/modeling_vlm_par.py",
            "from vlm_par_hf.models.focus_par import F",
            "family 'vlm_par' imports",
        ),
        ("models/vlm_par/modeling_vlm_par.py", "from vlm_par_hf.models import focus_par", "family 'vlm_par' imports"),
        ("models/vlm_par/modeling_vlm_par.py", "from vlm_par_hf.metrics import ParMetrics", "never imports 'metrics'"),
        ("models/vlm_par/modeling_vlm_par.py", "def f():\n    import vlm_par_hf.data", "never imports 'data'"),
        ("models/vlm_par/modeling_vlm_par.py", "from vlm_par_hf.hub.pushing import P", "never imports 'hub'"),
        ("metrics/ranking.py", "import torch", "must not need torch"),
        ("families.py", "import torch", "must not need torch"),
        ("data/a.py", "try:\n    from torch import Tensor\nexcept ImportError:\n    pass", "must not need torch"),
        ("data/readers/pa100k.py", "import scipy.io", "scipy is optional"),
        ("inference/pipelines.py", "import datasets", "datasets is optional"),
        ("data/loading.py", "from .image_column import A", "inside a function"),
        ("base/losses.py", "def f():\n    import pickle", "pickle is not used"),
        ("inference/pipelines.py", "def f():\n    from torchvision import io", "torchvision is not used"),
        ("newcomer.py", "", "'newcomer' has no floor yet"),
        ("newcomer/part.py", "", "'newcomer' has no floor yet"),
        ("base/losses.py", "from vlm_par_hf.newcomer import x", "'vlm_par_hf.newcomer.x' has no floor"),
    ],
)
def test_the_reader_sees_a_violation(file, source, expected):
    found = violations(file, source)
    assert len(found) == 1, found
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(found[0])


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("labels/tables.py", "from .schema import Attribute\nimport numpy as np"),
        ("base/losses.py", "import torch\nfrom vlm_par_hf.labels.schema import AttributeSchema"),
        ("metrics/attributes.py", "def f():\n    import torch"),
        ("metrics/attributes.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/__init__.py", "from .readers.pa100k import read_pa100k"),
        ("data/collator.py", "import torch"),
        ("data/image_column.py", "import datasets"),
        ("data/loading.py", "def f():\n    from .image_column import A\n    import datasets"),
        (
            "models/vlm_par/modeling_vlm_par.py",
            "from .configuration_vlm_par import A\nfrom vlm_par_hf.base.numerics import B",
        ),
        ("models/vlm_par/__init__.py", "from vlm_par_hf.models.vlm_par.modeling_vlm_par import A"),
        ("training/loop.py", "from .plots import plot\nfrom vlm_par_hf.data import load_par_dataset"),
        ("__init__.py", "from .cli import main\nfrom .labels.schema import Attribute"),
    ],
)
def test_the_reader_allows_what_the_rules_allow(file, source):
    assert violations(file, source) == []


def test_import_is_light():
    """`import vlm_par_hf` must not drag in what only training, readers or plots need."""
    unwanted = ["accelerate", "datasets", "matplotlib", "scipy", "torchvision", "transformers.trainer"]
    # What transformers itself loads is not ours to answer for.
    code = (
        "import sys\nfrom transformers import AutoModel, AutoProcessor, pipeline\nbefore = set(sys.modules)\n"
        f"import vlm_par_hf\nprint([name for name in {unwanted} if name in set(sys.modules) - before])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "[]", result.stdout

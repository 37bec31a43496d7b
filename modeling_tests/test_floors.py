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
    "images": (0, 1),
    "outputs": (0, 0),
    "remote_code": (0, 1),
    "utils": (0, 0),
    "schema": (0, 1),
    "schemas": (0, 2),
    "pixels": (1, 0),
    "model_card": (1, 0),
    "hub": (1, 1),
    "layers": (1, 1),
    "backbones": (1, 4),
    "processing": (1, 4),
    "data": (1, 2),
    "losses": (1, 2),
    "metrics": (1, 2),
    "par_metrics": (1, 3),
    "base": (1, 3),
    "families": (0, 0),
    "labels": (0, 2),
    "upstream": (0, 1),
    "models": (2, 0),
    "auto": (4, 2),
    "calibration": (3, 0),
    "retrieval": (3, 0),
    "features": (3, 1),
    "inference": (3, 2),
    "visualization": (4, 0),
    "export": (4, 1),
    "pipelines": (4, 1),
    "training": (4, 3),
    "annotation": (4, 3),
    "demo": (5, 0),
    "embedded": (5, 0),  # data, and the scripts that made it
    "cli": (5, 1),
    "__main__": (5, 2),
    "__init__": (6, 0),
}
NOT_FOR_FAMILIES = {"data", "metrics"}

# Nothing here may import torch when it is itself imported: labels, readers and metrics work without it.
TORCH_FREE = ("schema.py", "schemas.py", "utils.py", "images.py", "metrics.py", "data/")
NEEDS_TORCH = ("data/collator.py",)
# Never at module level: they belong to extras. The files that must subclass a type of such a package are themselves
# imported inside functions only, or by the package.
OPTIONAL = {
    "accelerate", "datasets", "evaluate", "matplotlib", "nncf", "onnx", "onnxruntime", "onnxscript", "openvino",
    "pyarrow", "ray", "scipy",
}  # fmt: skip
DEFINES_OPTIONAL = {
    "data/features.py": {"datasets"},
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
                found.append(f"{where}: family {family!r} imports {name!r}: move what both need down to layers")
        elif target == unit:
            pass
        elif unit == "models" and target in NOT_FOR_FAMILIES:
            found.append(f"{where}: a family never imports {target!r}")
        elif FLOORS[target] >= FLOORS[unit]:
            found.append(
                f"{where}: {unit!r} (floor {FLOORS[unit]}) imports {name!r} (floor {FLOORS[target]}): imports go down"
            )
    return found


def test_the_house_keeps_its_floors():
    files = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))
    # Part of a checkpoint, as in every one that is saved: they import the public package, not the other way round.
    files = [file for file in files if not file.startswith("embedded/heads/")]
    assert "schema.py" in files and "schemas.py" in files, "the package was not found"
    found = [line for file in files for line in violations(file, (ROOT / file).read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("schema.py", "from .losses import ParLoss", "imports 'vlm_par_hf.losses.ParLoss' .*imports go down"),
        ("schema.py", "from .schemas import get_schema", "imports go down"),
        ("utils.py", "import vlm_par_hf.schema", "imports go down"),
        ("losses.py", "def f():\n    from vlm_par_hf.training import train", r"losses.py:2: .*imports go down"),
        ("losses.py", "from . import metrics", "imports go down"),
        ("data/pa100k.py", "from vlm_par_hf import metrics", "imports go down"),
        ("data/pa100k.py", "from vlm_par_hf import get_schema", r"floor \(6, 0\).*imports go down"),
        ("training/loop.py", "class A:\n    def f(self):\n        import vlm_par_hf", "imports go down"),
        ("training/loop.py", "from ..schema import AttributeSchema", "goes up a folder"),
        ("training/loop.py", "from .. import schema", "goes up a folder"),
        (
            "models/vlm_par/modeling_vlm_par.py",
            "from vlm_par_hf.models.focus_par import F",
            "family 'vlm_par' imports",
        ),
        ("models/vlm_par/modeling_vlm_par.py", "from vlm_par_hf.models import focus_par", "family 'vlm_par' imports"),
        ("models/vlm_par/modeling_vlm_par.py", "from vlm_par_hf.metrics import ParMetrics", "never imports 'metrics'"),
        ("models/vlm_par/modeling_vlm_par.py", "def f():\n    import vlm_par_hf.data", "never imports 'data'"),
        ("metrics.py", "import torch", "must not need torch"),
        ("data/pa100k.py", "try:\n    from torch import Tensor\nexcept ImportError:\n    pass", "must not need torch"),
        ("data/pa100k.py", "import scipy.io", "scipy is optional"),
        ("pipelines.py", "import datasets", "datasets is optional"),
        ("data/loading.py", "from .features import A", "inside a function"),
        ("losses.py", "def f():\n    import pickle", "pickle is not used"),
        ("pipelines.py", "def f():\n    from torchvision import io", "torchvision is not used"),
        ("newcomer.py", "", "'newcomer' has no floor yet"),
        ("newcomer/part.py", "", "'newcomer' has no floor yet"),
        ("losses.py", "from vlm_par_hf.newcomer import x", "'vlm_par_hf.newcomer.x' has no floor"),
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
        ("schemas.py", "from .schema import Attribute\nimport numpy as np"),
        ("losses.py", "import torch\nfrom vlm_par_hf.schema import AttributeSchema"),
        ("metrics.py", "def f():\n    import torch"),
        ("metrics.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("data/__init__.py", "from .pa100k import read_pa100k"),
        ("data/collator.py", "import torch"),
        ("data/features.py", "import datasets"),
        ("data/loading.py", "def f():\n    from .features import A\n    import datasets"),
        (
            "models/vlm_par/modeling_vlm_par.py",
            "from .configuration_vlm_par import A\nfrom vlm_par_hf.layers import B",
        ),
        ("models/vlm_par/__init__.py", "from vlm_par_hf.models.vlm_par.modeling_vlm_par import A"),
        ("models/__init__.py", "from .vlm_par import VlmParModel\nfrom .focus_par import A"),
        ("training/loop.py", "from .plots import plot\nfrom vlm_par_hf.data import load_par_dataset"),
        ("__init__.py", "from .cli import main\nfrom .schema import Attribute"),
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

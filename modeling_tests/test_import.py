"""Importing is cheap, registers everything, and a checkpoint says so where it was forgotten."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vlm_par_hf
from modeling_tests.tiny import tiny_model, tiny_processor


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_import_is_light():
    """CPU time beyond what transformers itself costs, in one process: load and a cold disk do not matter. Nothing
    optional is imported."""
    code = (
        "import sys, time\n"
        "from transformers import AutoModel, AutoProcessor, pipeline\n"
        "base = time.process_time()\n"
        "import vlm_par_hf\n"
        "print((time.process_time() - base) / base)\n"
        "lazy = ['vlm_par_hf.' + name for name in ('data', 'metrics', 'schemas', 'training')]\n"
        "print([name for name in (*lazy, 'datasets', 'matplotlib', 'scipy.io') if name in sys.modules])\n"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr
    ratio, loaded = result.stdout.splitlines()
    assert float(ratio) < 0.15
    assert loaded == "[]"


def test_every_public_name_is_there():
    assert sorted(vlm_par_hf.__all__) == vlm_par_hf.__all__
    for name in vlm_par_hf.__all__:
        assert getattr(vlm_par_hf, name).__name__ == name
    assert set(vlm_par_hf.__all__) <= set(dir(vlm_par_hf))
    with pytest.raises(AttributeError, match="VlmParModell"):
        vlm_par_hf.VlmParModell  # noqa: B018


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_without_the_import_the_folder_is_refused_and_trusting_it_imports_this_package(checkpoint):
    assert (checkpoint / "modeling_vlm_par.py").read_text().count("from vlm_par_hf import VlmParModel\n") == 1
    code = (
        "from transformers import AutoConfig, AutoModel, AutoProcessor\n"
        f"folder = {str(checkpoint)!r}\n"
        "for auto in (AutoConfig, AutoModel, AutoProcessor):\n"
        "    try:\n"
        "        print('LOADED', type(auto.from_pretrained(folder)))\n"
        "    except ValueError as error:\n"
        "        print('REFUSED', auto.__name__, 'trust_remote_code' in str(error))\n"
        "for auto in (AutoModel, AutoProcessor):\n"
        "    print('TRUSTED', type(auto.from_pretrained(folder, trust_remote_code=True)).__module__)\n"
    )
    result = run(code)
    words = ("LOADED", "REFUSED", "TRUSTED")
    # transformers' prompt stands before the first word on its line.
    found = [line[line.index(word) :] for line in result.stdout.splitlines() for word in words if word in line]
    refused = [f"REFUSED {name} True" for name in ("AutoConfig", "AutoModel", "AutoProcessor")]
    family = "vlm_par_hf.models.vlm_par"
    trusted = [f"TRUSTED {family}.modeling_vlm_par", f"TRUSTED {family}.processing_vlm_par"]
    assert found == refused + trusted, result.stdout + result.stderr


def test_what_type_checkers_read_is_what_there_is():
    """The one place besides the table of families that names a new family's classes."""
    tree = ast.parse(Path(vlm_par_hf.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.name: node.module for node in block.body for alias in node.names}
    assert sorted(names) == vlm_par_hf.__all__
    for name, module in names.items():
        assert getattr(importlib.import_module(module), name) is getattr(vlm_par_hf, name)


@pytest.mark.parametrize(
    "path",
    [
        "data.load_par_dataset", "data.synthetic.render_person", "data.transforms.epoch_callback", "training.train",
        "training.predict_logits", "metrics.roc_auc", "losses.compute_priors", "pixels.preprocess_images",
        "images.open_image", "export.pick_images", "annotation.Annotator", "visualization.is_positive_answer",
        "utils.embedded_path", "par_metrics.PATH", "cli.main", "models.focus_par.AttributeTexts",
    ],
)  # fmt: skip
def test_paths_that_documents_name_stay(path):
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(f"vlm_par_hf.{module}"), name) is not None

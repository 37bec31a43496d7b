"""Exported folders whose configuration or files were damaged or edited."""

import json
import shutil

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import strategies as st
from transformers.utils import logging as transformers_logging

from modeling_tests.exports import noise_images
from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.fuzz.mutations import damaged_bytes, damaged_json, damages
from modeling_tests.tiny import randomize, tiny_inputs, tiny_model, tiny_processor
from vlm_par_hf.errors import ParError
from vlm_par_hf.export.exported import ExportedParModel
from vlm_par_hf.export.exporting import export_model


pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

AREA = Area("export folders", "the logits and the labels of the folder as it was exported")
STATE: dict = {}
# What a field decides that is in the file as well; other fields of config.json are the user's to change.
FIELDS = ("format", "precision", "files", "input_shapes", "patch_grid")
REFUSALS = (ParError, StrictDataclassError)


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    transformers_logging.set_verbosity_error()
    root = tmp_path_factory.mktemp("exports")
    STATE.update(work=root / "work", inputs={})
    for to, grid in (("onnx", None), ("openvino", None), ("onnx", (4, 2))):
        name = f"{to} {grid}"
        model = randomize(tiny_model("kway"))
        export_model(
            model, root / name, to=to, processor=tiny_processor("kway"), patch_grid=grid,
            compared_images=noise_images(3), images_from="noise",
        )  # fmt: skip
        if grid:
            processor = tiny_processor("kway")
            processor.fix_patch_grid(grid)
            inputs = dict(processor(images=noise_images(3), return_tensors="pt"))
        else:
            inputs = tiny_inputs("kway")
        STATE["inputs"][name] = inputs
        STATE[name] = root / name, answer(root / name, name)


def answer(folder, name):
    model = ExportedParModel.from_pretrained(folder)
    labels = [(attribute.name, tuple(attribute.labels)) for attribute in model.config.schema]
    return labels, model(**STATE["inputs"][name]).logits


def judge(name):
    labels, logits = STATE[name][1]

    def right(found):
        assert found[0] == labels, "other labels"
        torch.testing.assert_close(found[1], logits, atol=1e-5, rtol=1e-5)
        return True

    AREA.judge(lambda: answer(STATE["work"], name), right, refusals=REFUSALS)


def copy(name):
    shutil.rmtree(STATE["work"], ignore_errors=True)
    shutil.copytree(STATE[name][0], STATE["work"])
    return STATE["work"]


KINDS = ("onnx None", "onnx (4, 2)", "openvino None")
NUMBERS = st.integers(0, 2**31)


@AREA.fuzz(800, name=st.sampled_from(KINDS), field=st.sampled_from(FIELDS), numbers=st.tuples(*[NUMBERS] * 3))
def test_fields_of_the_configuration(name, field, numbers):
    path = copy(name) / "config.json"
    config = json.loads(path.read_text())
    config.update(damaged_json({field: config[field]}, *numbers))
    path.write_text(json.dumps(config))
    judge(name)


@AREA.fuzz(
    700,
    name=st.sampled_from(KINDS),
    number=st.integers(0, 4),
    choice=st.sampled_from(["less", "more", "order", "name", *["threshold", "question", "region", "form"] * 2]),
    threshold=st.floats(0.01, 0.99),
)
def test_the_label_space_of_the_configuration(name, number, choice, threshold):
    """What the file answers is refused where it is another; thresholds and texts are the user's to change."""
    path = copy(name) / "config.json"
    config = json.loads(path.read_text())
    attributes = config["attributes"]
    if choice == "less":
        del attributes[number]
    elif choice == "more":
        attributes.append({**attributes[number], "name": "Another"})
    elif choice == "order":
        attributes.insert(0, attributes.pop(number))
    elif choice == "name":
        attributes[number]["name"] = "Another"
    elif choice == "threshold":
        attributes[0]["threshold"] = threshold
    elif choice == "question":
        attributes[number]["question"] = f"what about {threshold}?"
    elif choice == "region":
        attributes[number]["region"] = "whole"
    for derived in ("id2label", "label2id"):
        config.pop(derived, None)
    path.write_text(json.dumps(config, indent=number, sort_keys=number % 2 == 0))
    judge(name)


@AREA.fuzz(400, name=st.sampled_from(KINDS), damage=damages(), number=NUMBERS)
def test_bytes_of_the_files(name, damage, number):
    folder = copy(name)
    files = sorted(file for file in json.loads((folder / "config.json").read_text())["files"])
    path = folder / files[number % len(files)]
    path.write_bytes(damaged_bytes(path.read_bytes(), damage))
    judge(name)


@AREA.fuzz(500, name=st.sampled_from(KINDS), damage=damages(), number=NUMBERS, extra=st.binary(max_size=50))
def test_files_that_decide_nothing(name, damage, number, extra):
    folder = copy(name)
    (folder / "notes.bin").write_bytes(extra)
    path = folder / ("parity.json", ".vlm_par_output.json", "processor_config.json")[number % 3]
    path.write_bytes(damaged_bytes(path.read_bytes(), damage))
    judge(name)

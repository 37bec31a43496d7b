"""Files that take a picture: the answers are those of the pipeline, in both runtimes, for pictures of any size."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from modeling_tests.exports import noise_images
from modeling_tests.labels.test_decisions import SCHEMA, some_decisions
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.base.decisions import decide, label_probabilities
from vlm_par_hf.cli import main
from vlm_par_hf.export import export_picture_model
from vlm_par_hf.export.exported import openvino_core
from vlm_par_hf.export.picture import open_picture_file
from vlm_par_hf.export.picture_graph import read_settings
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.upstream import naflex_image_size


MAIN = {"onnx": "model.onnx", "openvino": "model.xml"}
SIZES = [(16, 16), (7, 5), (48, 20), (33, 90), (4, 200), (300, 6), (128, 64)]


def pictures():
    """Of smooth colours, as photographs have them, in every shape."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (5, 4, 3), dtype=np.uint8)).resize((width, height), 3)
        for height, width in SIZES
    ]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Per format and kind: the model, its processor, the record and the folder; written once."""
    done = {}

    def make(to, kind="kway", **options):
        key = (to, kind, *map(str, options.items()))
        if key not in done:
            model, processor = randomize(tiny_model(kind)), tiny_processor(kind)
            folder = tmp_path_factory.mktemp("picture") / "model"
            calibration = {"calibration_images": noise_images(8, seed=1)} if "precision" in options else {}
            record = export_picture_model(
                model, folder, to=to, processor=processor, compared_images=pictures(), images_from="colours",
                **options, **calibration,
            )  # fmt: skip
            if "patch_grid" in options:
                processor.fix_patch_grid(options["patch_grid"])
            done[key] = model, processor, record, folder
        return done[key]

    return make


def reference_of(folder):
    spec = importlib.util.spec_from_file_location("reference", folder / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Tracing a model takes seconds.
CASES = [("kway", {}), ("fixed", {}), pytest.param("kway", {"patch_grid": (4, 3)}, marks=pytest.mark.slow)]


@pytest.mark.parametrize("to", MAIN)
@pytest.mark.parametrize("kind, options", CASES)
def test_answers_are_those_of_the_pipeline(written, to, kind, options):
    model, processor, record, folder = written(to, kind, **options)
    run, schema = open_picture_file(folder / MAIN[to]), model.config.schema
    pipe = PedestrianAttributesPipeline(model=model, processor=processor)
    for picture in pictures():
        probabilities, decided = run(np.asarray(picture))
        assert probabilities.dtype == np.float32 and probabilities.shape == (len(schema), schema.max_labels)
        assert decided.dtype == np.int64 and decided.shape == (len(schema),)
        wanted = pipe(picture)["attributes"]
        for one, row in zip(schema, probabilities):
            # Two grey levels of 255 in the pixels, and random weights.
            assert row[: one.num_labels] == pytest.approx([*wanted[one.name]["probabilities"].values()], abs=0.02)
            assert not row[one.num_labels :].any()
        own = decide(torch.from_numpy(probabilities)[None], schema)[0]
        assert decided.tolist() == own.tolist()
    assert record["decisions"] == len(SIZES) * len(schema) and record["changed_share"] <= 0.02
    assert record == json.loads((folder / "parity.json").read_text())


@pytest.mark.parametrize("kind, options", CASES)
def test_the_reference_script_prepares_as_the_processor(written, kind, options):
    _, processor, _, folder = written("onnx", kind, **options)
    reference = reference_of(folder)
    for picture in pictures():
        inputs = processor(images=[picture], return_tensors="np")
        found = reference.prepare(np.asarray(picture))
        assert found.dtype == np.float32
        assert np.abs(found - inputs["pixel_values"]).max() <= 2.01 / 127.5, picture.size


def test_the_grid_is_that_of_transformers(written):
    reference = reference_of(written("onnx")[3])
    settings = read_settings(tiny_processor("kway"))
    generator = np.random.default_rng(0)
    patches = settings.max_num_patches
    for height, width in generator.integers(4, 400, (300, 2)).tolist():
        image = np.zeros((height, width, 3), dtype=np.uint8)
        rows, columns = (one // 4 for one in naflex_image_size(height, width, 4, patches))
        found = reference.prepare(image)
        assert int((found[0] != 0).any(-1).sum()) == rows * columns, (height, width)


@pytest.mark.parametrize("to", MAIN)
def test_the_reference_script_runs(written, to, tmp_path):
    model, _, _, folder = written(to)
    picture = pictures()[2]
    picture.save(tmp_path / "person.png")
    done = subprocess.run(
        [sys.executable, str(folder / "reference.py"), str(tmp_path / "person.png")],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    _, decided = open_picture_file(folder / MAIN[to])(np.asarray(picture))
    labels = [one.labels[place] for one, place in zip(model.config.schema, decided)]
    assert [line.split(" (")[0] for line in done.stdout.splitlines()] == [
        f"{one.name}: {label}" for one, label in zip(model.config.schema, labels)
    ]


@pytest.mark.parametrize("to", MAIN)
def test_the_metadata_says_it_all(written, to):
    model, processor, _, folder = written(to)
    if to == "onnx":
        proto = onnx.load(folder / "model.onnx")
        onnx.checker.check_model(proto)
        (text,) = [one.value for one in proto.metadata_props if one.key == "vlm_par_hf"]
        assert [one.name for one in proto.graph.input] == ["image"]
        assert [one.name for one in proto.graph.output] == ["probabilities", "decided"]
    else:
        text = openvino_core().read_model(folder / "model.xml").get_rt_info(["vlm_par_hf"]).astype(str)
    found = json.loads(text)
    assert found["attributes"] == model.config.schema.to_list()
    assert found["preprocessing"] == json.loads(json.dumps(read_settings(processor)._asdict()))
    words = (folder / "preprocessing.md").read_text()
    assert max(map(len, words.splitlines())) <= 119 and "rows * columns <= 12" in words
    assert words.count("\n1. ") == words.count("\n4. ") == 1
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == sorted(
        ["parity.json", "preprocessing.md", "reference.py", MAIN[to], *(["model.bin"] if to == "openvino" else [])]
    )


@pytest.mark.parametrize("to", MAIN)
def test_int8_keeps_most_answers(written, to):
    _, _, record, folder = written(to, precision="int8")
    assert record["precision"] == "int8" and record["changed_share"] <= 0.15
    assert open_picture_file(folder / MAIN[to])(np.asarray(pictures()[0]))[0].sum() == pytest.approx(5, abs=1e-5)
    if to == "onnx":
        nodes = onnx.load(folder / "model.onnx").graph.node
        assert any("MatMulInteger" in one.op_type for one in nodes)
        assert not any("Integer" in one.op_type and one.name.startswith("picture/") for one in nodes)


@pytest.mark.slow
def test_fitted_decisions_are_inside(tmp_path):
    model = randomize(tiny_model("naflex", attributes=SCHEMA))
    model.config.set_decisions(some_decisions())
    processor = tiny_processor("naflex")
    export_picture_model(model, tmp_path / "out", processor=processor, compared_images=pictures()[:2])
    run = open_picture_file(tmp_path / "out" / "model.onnx")
    for picture in pictures():
        probabilities, decided = run(np.asarray(picture))
        with torch.no_grad():
            logits = model(**processor(images=[picture], return_tensors="pt")).logits
        wanted = label_probabilities(logits, model.config.schema)
        assert probabilities == pytest.approx(wanted[0].numpy(), abs=0.02)
        own = decide(
            torch.from_numpy(probabilities)[None], model.config.schema, Decisions.from_dict(model.config.decisions)
        )
        assert decided.tolist() == own[0].tolist()


def test_what_is_refused(tmp_path):
    model, processor = tiny_model("naflex"), tiny_processor("naflex")
    with pytest.raises(ValueError, match="to must be one of .* for a file that takes a picture, got 'folded'"):
        export_picture_model(model, tmp_path / "out", to="folded", processor=processor)
    processor.image_processor.do_normalize = False
    with pytest.raises(ValueError, match="a Siglip2ImageProcessorPil that leaves out a step"):
        export_picture_model(model, tmp_path / "out", processor=processor)
    processor.image_processor.do_normalize, processor.image_processor.resample = True, 1
    with pytest.raises(ValueError, match="resample of the image processor is 1, expected bilinear or bicubic"):
        export_picture_model(model, tmp_path / "out", processor=processor)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    randomize(tiny_model("kway")).save_pretrained(folder)
    tiny_processor("kway").save_pretrained(folder)
    crops = tmp_path / "crops"
    crops.mkdir()
    for number, picture in enumerate(pictures()):
        picture.save(crops / f"{number}.png")
    out = str(tmp_path / "out")
    arguments = ["export", str(folder), "--picture", "--to", "onnx", "--out", out, "--calibrate", str(crops)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"onnx, float32: {out}" in said and "probabilities by up to" in said
    assert main(arguments) == 2 and "holds something already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0

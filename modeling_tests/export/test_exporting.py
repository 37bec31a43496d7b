"""An exported file answers as the checkpoint does; what it cannot do is refused in words."""

import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from modeling_tests.tiny import randomize, tiny_inputs, tiny_model, tiny_processor
from vlm_par_hf.cli.main import main
from vlm_par_hf.export import exporting as export
from vlm_par_hf.export.exported import ExportedParConfig, ExportedParModel
from vlm_par_hf.export.exporting import export_model
from vlm_par_hf.export.parity import pick_images
from vlm_par_hf.utils import embedded_path, require


for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)


def pictures(number, seed=0):
    """Of every aspect ratio."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(12, 60, (number, 2))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module", autouse=True)
def _each_model_is_traced_once():
    """Tracing takes seconds even for a tiny model; ONNX and OpenVINO, float32 and int8 all start from its result."""
    kept = {}
    write = export.write_onnx

    def write_once(graph, probe, output_names, path):
        weights = tuple(float(one.double().sum()) for one in graph.state_dict().values())
        key = (graph.has_fixed_grid, tuple(probe), *weights)
        if key not in kept:
            names = write(graph, probe, output_names, path)
            kept[key] = names, path.read_bytes()
        names, data = kept[key]
        path.write_bytes(data)
        return names

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "write_onnx", write_once)
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Per format and kind of tiny model: the model, the record and the folder; written once."""
    done = {}

    def make(to="onnx", kind="kway", precision="float32", patch_grid=None, **config):
        if kind == "kway" and patch_grid is None:
            config = {"fusion": "image_to_text", **config}
        key = (to, kind, precision, patch_grid, *sorted(config.items()))
        if key not in done:
            model = randomize(tiny_model(kind, **config))
            folder = tmp_path_factory.mktemp("exported") / "model"
            record = export_model(
                model,
                folder,
                to=to,
                precision=precision,
                processor=tiny_processor(kind),
                patch_grid=patch_grid,
                calibration_images=pictures(8, seed=1) if precision == "int8" else None,
                compared_images=pictures(12),
                images_from="noise",
            )
            done[key] = model, record, folder
        return done[key]

    return make


def difference(model, other, inputs):
    """Of the logits, at most; checks what is not a number of the model."""
    with torch.no_grad():
        wanted, found = model(**inputs), other(**inputs)
    mask = torch.from_numpy(model.config.schema.label_mask())
    assert found.logits.dtype == torch.float32 and bool((found.logits[:, ~mask] == -1e4).all())
    return float((wanted.logits - found.logits)[:, mask].abs().max())


@pytest.mark.parametrize(
    ("to", "kind", "config"),
    [
        ("onnx", "kway", {}),
        ("openvino", "kway", {}),
        ("onnx", "fixed", {}),
        ("openvino", "fixed", {}),
        pytest.param("onnx", "naflex", {"fusion": "none", "alignment": "none"}, marks=pytest.mark.slow),
        pytest.param("onnx", "naflex", {}, marks=pytest.mark.slow),
    ],
)
def test_float32_is_equal_at_every_batch_size_and_aspect_ratio(exported, to, kind, config):
    model, record, folder = exported(to, kind, **config)
    loaded = AutoModel.from_pretrained(folder)
    assert isinstance(loaded, ExportedParModel) and loaded.config.schema == model.config.schema
    for batch in (1, 2, 3, 7):
        inputs = tiny_inputs(kind, batch, seed=batch)
        if kind != "fixed":
            assert len(set(map(tuple, inputs["spatial_shapes"].tolist()))) == min(batch, 4)
        assert difference(model, loaded, inputs) < 1e-4
    assert record["max_abs_difference"] < 1e-4 and record["changed_decisions"] == 0
    assert record["decisions"] == 12 * len(model.config.schema)
    with_head = config.get("alignment") != "none"
    found = loaded(**tiny_inputs(kind)).image_embeds
    assert (found is not None) == with_head
    if with_head:
        torch.testing.assert_close(found, model(**tiny_inputs(kind)).image_embeds, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_fixed_patch_grid_takes_nothing_but_pixels(exported, to):
    model, record, folder = exported(to, "kway", patch_grid=(4, 2))
    loaded, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert list(loaded.config.input_shapes) == ["pixel_values"] and record["patch_grid"] == [4, 2]
    for batch in (1, 5):
        inputs = dict(processor(images=pictures(batch, seed=batch)))
        assert inputs["spatial_shapes"].tolist() == [[4, 2]] * batch
        assert difference(model, loaded, inputs) < 1e-4
        assert difference(model, lambda **given: loaded(given["pixel_values"]), inputs) < 1e-4
    with pytest.raises(ValueError, match=r"image 0 has \(4, 3\) patches, expected \(4, 2\), the grid that was"):
        loaded(**tiny_inputs())


def test_int8_leaves_the_logging_of_others_alone(tmp_path, caplog):
    export_model(
        tiny_model("fixed"), tmp_path / "out", to="openvino", precision="int8", processor=tiny_processor("fixed"),
        calibration_images=pictures(4, seed=1), compared_images=pictures(4, seed=2),
    )  # fmt: skip
    logging.getLogger("vlm_par_hf").warning("heard")
    assert "heard" in caplog.text


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_int8_quantises_the_encoder_and_keeps_the_answers(exported, to):
    model, record, folder = exported(to, "kway", "int8")
    loaded = AutoModel.from_pretrained(folder)
    inputs = tiny_inputs("kway", 5)
    # Of logits up to 3, from weights without any order.
    assert 1e-6 < difference(model, loaded, inputs) < 1, "either nothing was quantised, or too much"
    assert record["precision"] == loaded.config.precision == "int8"
    if to == "onnx":
        import onnx

        graph = onnx.load(folder / "model.onnx").graph
        operations = [node.op_type for node in graph.node]
        assert operations.count("MatMulInteger") == 2 * 6, "six products with weights in each of the two layers"
        assert operations.count("MatMul") > 4, "attention and heads stay in float"


def test_bfloat16_folded_is_a_checkpoint_of_half_the_size(exported):
    model, record, folder = exported("folded", precision="bfloat16")
    _, _, wide = exported("folded")
    loaded = AutoModel.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16 and 0 < record["max_abs_difference"] < 0.3
    assert (folder / "model.safetensors").stat().st_size < 0.7 * (wide / "model.safetensors").stat().st_size


def test_the_given_model_stays_as_it_is_and_a_folded_one_will_do(exported, tmp_path):
    model, _, _ = exported("folded")
    given = model.fold().to(torch.bfloat16)
    record = export_model(
        given, tmp_path / "out", to="folded", precision="bfloat16", processor=tiny_processor("kway"),
        compared_images=pictures(3),
    )  # fmt: skip
    assert given.dtype == torch.bfloat16 and record["max_abs_difference"] > 0
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert loaded.attribute_heads.direction.dtype == torch.float32, "what decides stays in float32"
    trained = tiny_model("kway").train()
    export_model(trained, tmp_path / "two", to="folded", processor=tiny_processor("kway"), compared_images=pictures(3))
    assert trained.training


def test_the_folder_says_what_it_is(exported):
    model, record, folder = exported()
    assert json.loads((folder / "parity.json").read_text()) == record
    assert record["images"] == {"from": "noise", "compared": 12, "calibration": 0}
    assert set(record["files"]) == {"model.onnx"} and record["versions"]["onnxruntime"]
    config = AutoConfig.from_pretrained(folder)
    assert config.schema["Backpack"].threshold == 0.4, "thresholds travel"
    import onnx

    proto = onnx.load(folder / "model.onnx")
    described = {one.key: one.value for one in proto.metadata_props}
    assert json.loads(described["vlm_par_hf"])["attributes"] == config.attributes
    assert b".py" not in proto.SerializeToString(), "a stack trace of the machine that exported"


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_pipeline_answers_as_with_torch(exported, to, tmp_path):
    model, _, folder = exported(to)
    images = pictures(5, seed=3)
    wanted = pipeline("pedestrian-attributes", model=model, processor=tiny_processor("kway"))(images, batch_size=2)
    pipe = pipeline("pedestrian-attributes", model=str(folder))
    found = pipe(images, batch_size=2)
    for one, other in zip(wanted, found, strict=True):
        for name, answer in one["attributes"].items():
            assert other["attributes"][name]["label"] == answer["label"]
            assert other["attributes"][name]["score"] == pytest.approx(answer["score"], abs=1e-4)
    with pytest.raises(ValueError, match="ExportedParModel cannot explain its answers"):
        pipe(images[0], explain=True)
    pipe.save_pretrained(tmp_path / "copy")
    again = pipeline("pedestrian-attributes", model=str(tmp_path / "copy"))(images, batch_size=2)
    assert again == found and (tmp_path / "copy" / "parity.json").is_file()


def test_as_many_threads_as_torch(exported, monkeypatch):
    import onnxruntime

    _, _, folder = exported()
    seen = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, **kw: seen.append(options) or session(path, options, **kw),
    )
    ExportedParModel.from_pretrained(folder)
    ExportedParModel.from_pretrained(folder, num_threads=3)
    assert [one.intra_op_num_threads for one in seen] == [torch.get_num_threads(), 3]


@pytest.mark.slow
@pytest.mark.parametrize("to", ["folded", "onnx", "openvino"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_decisions_of_the_embedded_model_hardly_change(tmp_path, to, precision):
    if precision not in export.FORMATS[to]:
        pytest.skip(f"{to} has no {precision}")
    real = Path(os.environ["PAR_DATA"], "pa100k_mini", "data") if "PAR_DATA" in os.environ else None
    if real is None or not real.is_dir():
        warnings.warn("PAR_DATA names no folder with pa100k_mini: drawings only", stacklevel=1)
    sources = [pick_images("synthetic", num_calibration=128, num_train=128, num_validation=256, num_test=1)]
    sources += [pick_images(str(real))] if real is not None and real.is_dir() else []
    for calibration, compared, source in sources:
        record = export_model(
            embedded_path("heads"), tmp_path / "out", to=to, precision=precision, calibration_images=calibration,
            compared_images=compared, images_from=source, overwrite=True,
        )  # fmt: skip
        assert record["images"]["compared"] == 256
        assert record["unchanged_share"] >= (0.99 if precision == "int8" else 0.995), source


# What goes wrong


def test_a_file_that_is_missing_or_broken_is_named(exported, tmp_path):
    _, _, folder = exported()
    shutil.copytree(folder, tmp_path / "broken")
    data = (folder / "model.onnx").read_bytes()
    (tmp_path / "broken" / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model.onnx is not the file that was exported: its sha256 is"):
        AutoModel.from_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "model.onnx").unlink()
    with pytest.raises(OSError, match=r"model\.onnx"):
        AutoModel.from_pretrained(tmp_path / "broken")
    config = ExportedParConfig.from_pretrained(folder)
    config.files = None
    with pytest.raises(ValueError, match="config.json names no files"):
        ExportedParModel.from_pretrained(folder, config=config)
    with pytest.raises(ValueError, match="this model has no file to run"):
        ExportedParModel(config)(**tiny_inputs())
    with pytest.raises(ValueError, match="this model has no file to save"):
        ExportedParModel(config).save_pretrained(tmp_path / "x")


def test_wrong_inputs_are_refused(exported):
    _, _, folder = exported()
    loaded = AutoModel.from_pretrained(folder)
    inputs = tiny_inputs()
    with pytest.raises(
        ValueError, match=r"pixel_values has shape \(3, 8, 48\), expected \(B, 12, 48\) for model.onnx"
    ):
        loaded(**{**inputs, "pixel_values": inputs["pixel_values"][:, :8]})
    with pytest.raises(ValueError, match=r"spatial_shapes has shape None, expected \(B, 2\)"):
        loaded(inputs["pixel_values"], inputs["pixel_attention_mask"])
    with pytest.raises(ValueError, match="computes no loss"):
        loaded(**inputs, labels=torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="cannot be trained"):
        loaded.train()
    with pytest.raises(ValueError, match="precision of an exported model was chosen when it was exported"):
        AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    _, _, fixed = exported("onnx", "fixed")
    with pytest.raises(ValueError, match=r"pixel_values has shape \(2, 3, 32, 32\), expected \(B, 3, 16, 16\)"):
        AutoModel.from_pretrained(fixed)(torch.zeros(2, 3, 32, 32))


def test_wrong_choices_are_refused(exported, tmp_path):
    model, _, folder = exported()
    processor = tiny_processor()
    for choices, message in (
        ({"to": "tflite"}, r"to must be one of \('folded', 'onnx', 'openvino'\), got 'tflite'"),
        ({"to": "onnx", "precision": "bfloat16"}, r"precision must be one of \('float32', 'int8'\) for 'onnx'"),
        ({"precision": "int8"}, "calibration_images is empty, but OpenVINO's int8"),
        ({"processor": None}, "processor is None: a model in memory needs its processor"),
        ({"patch_grid": (0, 8)}, "patch_grid must be a number of rows and of columns"),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(model, tmp_path / "out", **{"processor": processor, **choices})
    with pytest.raises(ValueError, match="but SiglipImageProcessorPil makes images of a fixed resolution"):
        export_model(tiny_model("fixed"), tmp_path / "out", processor=tiny_processor("fixed"), patch_grid=(4, 4))
    with pytest.raises(ValueError, match="was exported already: export the checkpoint"):
        export_model(folder, tmp_path / "out")
    with pytest.raises(TypeError, match="model is a Linear, expected a VlmParModel or a FoldedVlmParModel"):
        export_model(torch.nn.Linear(1, 1), tmp_path / "out", processor=processor)
    with pytest.raises(FileExistsError, match="holds something already"):
        export_model(model, folder, processor=processor)
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_a_file_that_computes_something_else_is_not_kept(exported, tmp_path, monkeypatch):
    model, _, _ = exported()
    other = randomize(tiny_model("kway", fusion="image_to_text"), seed=5)
    monkeypatch.setattr(model, "fold", other.fold, raising=True)
    with pytest.raises(RuntimeError, match="the exported file is wrong: its logits are up to"):
        export_model(model, tmp_path / "out", to="folded", processor=tiny_processor(), compared_images=pictures(3))
    assert not list(tmp_path.iterdir())


def test_without_the_extra_the_error_says_what_to_install(exported, tmp_path, monkeypatch):
    model, _, folder = exported()

    def refuse(module, extra):
        raise ImportError(f'{module} is needed here and is not installed: pip install "vlm-par-hf[{extra}]"')

    for module in ("exporting", "exported"):
        monkeypatch.setattr(f"vlm_par_hf.export.{module}.require", refuse)
    for to in ("onnx", "openvino"):
        with pytest.raises(ImportError, match=r'onnx is needed here.*pip install "vlm-par-hf\[export\]"'):
            export_model(model, tmp_path / "out", to=to, processor=tiny_processor())
    with pytest.raises(ImportError, match=r"onnxruntime is needed here"):
        AutoModel.from_pretrained(folder)
    assert not list(tmp_path.iterdir())
    assert require("onnx", "export")


@pytest.mark.slow
def test_nothing_is_reported_to_anybody(tmp_path):
    # In a process of its own: nncf holds its tongue where pytest runs.
    script = f"""
import openvino_telemetry

def refuse(*args, **kwargs):
    raise SystemExit("telemetry was started")

openvino_telemetry.Telemetry.__init__ = refuse
from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person
from vlm_par_hf.export import export_model
from vlm_par_hf.utils import embedded_path

people = [SyntheticPerson.sample(0, number) for number in range(12)]
drawings = [render_person(person, Frame.sample(person, 0)) for person in people]
export_model(
    embedded_path("heads"), {str(tmp_path / "out")!r}, to="openvino", precision="int8",
    calibration_images=drawings[:8], compared_images=drawings[8:],
)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (tmp_path / "out" / "model.xml").exists()


# Images


def test_picked_images_are_disjoint(tmp_path):
    for index, image in enumerate(pictures(9)):
        image.save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no image")
    calibration, compared, source = pick_images(str(tmp_path), num_calibration=6, num_compared=3)
    assert (len(calibration), len(compared)) == (4, 3) and not set(calibration) & set(compared)
    assert source == f"the folder {tmp_path.name}"
    assert pick_images(str(tmp_path), num_calibration=6, num_compared=3)[0] == calibration
    with pytest.raises(ValueError, match="holds 0 images, expected at least 2"):
        (tmp_path / "empty").mkdir()
        pick_images(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="name is 'pa100kk'"):
        pick_images("pa100kk")


def test_picked_from_a_data_set():
    calibration, compared, source = pick_images(
        "synthetic", num_calibration=3, num_compared=2, num_train=6, num_validation=4, num_test=2
    )
    assert (len(calibration), len(compared)) == (3, 2) and "synthetic" in source
    assert isinstance(calibration[0], Image.Image)


# Command line, on the embedded model


def test_command_line(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for index, image in enumerate(pictures(6)):
        image.save(images / f"{index}.png")
    out = tmp_path / "onnx8"
    checkpoint = str(embedded_path("heads"))
    assert main(["export", checkpoint, "--to", "onnx", "--int8", "--calibrate", str(images), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "onnx, int8" in said and "decisions differ from the checkpoint's" in said
    assert json.loads((out / "parity.json").read_text())["images"]["compared"] == 3
    assert main(["predict", str(images / "0.png"), "--model", str(out), "--out", "-"]) == 0
    answers = json.loads(capsys.readouterr().out)["attributes"]
    assert answers["Hat"]["label"] in ("no", "yes") and len(answers) == 29
    assert main(["export", checkpoint, "--to", "onnx", "--out", str(out)]) == 2
    assert "holds something already" in capsys.readouterr().err
    assert main(["export", checkpoint, "--patch-grid", "16", "--out", str(tmp_path / "x")]) == 2
    assert "expected ROWSxCOLUMNS, such as 16x8" in capsys.readouterr().err
    assert main(["export", checkpoint, "--root", "x", "--out", str(tmp_path / "x")]) == 2
    assert "name the data set with --calibrate" in capsys.readouterr().err
    assert main(["export", checkpoint, "--int8", "--out", str(tmp_path / "x")]) == 2
    assert "calibration_images is empty" in capsys.readouterr().err


def test_evaluate_takes_an_exported_folder(exported, tmp_path):
    from vlm_par_hf.training import evaluate

    out = tmp_path / "onnx"
    export_model(embedded_path("heads"), out, to="onnx", compared_images=pictures(2))
    options = {"num_train": 2, "num_validation": 2, "num_test": 12, "seed": 5}
    records = [
        evaluate(str(path), "synthetic", output_dir=tmp_path / name, dataset_options=options, bootstrap=0)
        for name, path in (("torch", embedded_path("heads")), ("onnx", out))
    ]
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], abs=1e-6, nan_ok=True)

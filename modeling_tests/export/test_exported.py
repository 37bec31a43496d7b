"""The model that answers from an exported file: equal answers, and what it refuses."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor, pipeline

from modeling_tests.exports import difference, noise_images
from modeling_tests.labels.test_decisions import SCHEMA, some_decisions
from modeling_tests.tiny import tiny_inputs, tiny_processor
from vlm_par_hf.base.decisions import decide, label_probabilities
from vlm_par_hf.export.exported import ExportedParConfig, ExportedParModel
from vlm_par_hf.export.exporting import export_model
from vlm_par_hf.labels.consistency import NO_ANSWER, consistent
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.utils import embedded_path


for package in ("onnx", "onnxscript", "nncf"):
    pytest.importorskip(package)
onnxruntime, openvino = pytest.importorskip("onnxruntime"), pytest.importorskip("openvino")


@pytest.mark.parametrize(
    ("to", "kind", "config"),
    [
        ("onnx", "kway", {}),
        ("openvino", "kway", {}),
        ("onnx", "fixed", {}),
        ("openvino", "fixed", {}),
        pytest.param(
            "onnx",
            "naflex",
            {"fusion": "none", "alignment": "none", "pooled_classifier": False},
            marks=pytest.mark.slow,
        ),
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
        inputs = dict(processor(images=noise_images(batch, seed=batch)))
        assert inputs["spatial_shapes"].tolist() == [[4, 2]] * batch
        assert difference(model, loaded, inputs) < 1e-4
        assert difference(model, lambda **given: loaded(given["pixel_values"]), inputs) < 1e-4
    with pytest.raises(ValueError, match=r"image 0 has \(4, 3\) patches, expected \(4, 2\), the grid that was"):
        loaded(**tiny_inputs())


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_fitted_decisions_are_in_the_file_and_in_the_model(exported, to):
    """A program without this package reads `decided`; the model itself can be fitted anew without an export."""
    model, record, folder = exported(to, "kway", decisions=some_decisions())
    loaded = AutoModel.from_pretrained(folder)
    assert loaded.config.decisions == model.config.decisions and record["changed_decisions"] == 0
    inputs = tiny_inputs("kway", 7, seed=4)
    assert difference(model, loaded, inputs) < 1e-4
    arrays = {name: value.numpy() for name, value in inputs.items()}
    if to == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        found = dict(zip([one.name for one in session.get_outputs()], session.run(None, arrays)))
        assert list(found) == ["logits", "decided", "probabilities", "image_embeds"]
    else:
        compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        results = compiled(arrays)
        found = {name: results[name] for name in ("logits", "decided", "probabilities")}
    with torch.no_grad():
        logits = model(**inputs).logits
        model.config.decisions, before = None, model.config.decisions
        raw = model(**inputs).logits
        model.config.decisions = before
        assert difference(model, loaded, inputs) < 1e-4
    schema = model.config.schema
    np.testing.assert_allclose(found["logits"], raw, atol=1e-3)
    np.testing.assert_allclose(found["probabilities"], label_probabilities(logits, schema), atol=1e-5)
    biases = some_decisions().bias_table(schema)
    answers = consistent(label_probabilities(logits, schema).numpy(), schema, biases=biases)
    assert (answers == NO_ANSWER).any()
    assert found["decided"].dtype == np.int64 and np.array_equal(found["decided"], answers)
    assert not np.array_equal(answers, decide(label_probabilities(raw, SCHEMA), SCHEMA).numpy())
    loaded.config.decisions = None
    np.testing.assert_allclose(loaded(**inputs).logits, raw, atol=1e-3)


_DROPPED_ELSEWHERE = """
import gc, signal, subprocess, sys, threading
from vlm_par_hf.export import ExportedParModel

signal.signal(signal.SIGCHLD, lambda *_: None)
models = [ExportedParModel.from_pretrained(sys.argv[1])]
thread = threading.Thread(target=lambda: (models.clear(), gc.collect()))
thread.start()
thread.join()
subprocess.run([sys.executable, "-c", ""])
"""


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_a_process_survives_a_model_that_another_thread_drops(exported, to):
    _, _, folder = exported(to)
    subprocess.run([sys.executable, "-c", _DROPPED_ELSEWHERE, folder], check=True)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_pipeline_answers_as_with_torch(exported, to, tmp_path):
    model, _, folder = exported(to)
    images = noise_images(5, seed=3)
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


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_the_pipeline_chooses_points_and_leaves_open_as_with_torch(exported, to):
    model, _, folder = exported(to, "kway", decisions=some_decisions())
    model.schema = model.config.schema
    images = noise_images(8)
    torch_pipe = pipeline("pedestrian-attributes", model=model, processor=tiny_processor("kway"))
    pipe = pipeline("pedestrian-attributes", model=str(folder))
    for options in ({}, {"decide": "f1"}, {"decide": "f1", "abstain": 0.5}):
        wanted, found = torch_pipe(images, **options), pipe(images, **options)
        for one, other in zip(wanted, found):
            for name, answer in one["attributes"].items():
                same = {key: value for key, value in answer.items() if key in ("label", "threshold", "set", "reason")}
                assert {key: other["attributes"][name][key] for key in same} == same
    with pytest.raises(ValueError, match="decide is 'recall', expected a point"):
        pipe(images[0], decide="recall")


def test_some_of_the_attributes(exported):
    _, _, folder = exported("onnx")
    pipe, (image,) = pipeline("pedestrian-attributes", model=str(folder)), noise_images(1)
    everything, asked = pipe(image)["attributes"], pipe(image, attributes=["UpperColor", "Hat"], threshold=0.9)
    assert {name: one["probabilities"] for name, one in asked["attributes"].items()} == {
        name: everything[name]["probabilities"] for name in ("UpperColor", "Hat")
    }
    assert asked["attributes"]["Hat"]["threshold"] == 0.9
    with pytest.raises(ValueError, match="an exported model has no text tower, .*: ask the model that was exported"):
        pipe(image, attributes=["wearing a red scarf"])


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
    with pytest.raises(ValueError, match="files=None is not what the weights in .* were trained with"):
        ExportedParModel.from_pretrained(folder, config=config)
    schema = AttributeSchema([{**one, "threshold": 0.25} for one in config.attributes])
    assert AutoModel.from_pretrained(folder, attributes=schema).schema == schema
    config.save_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match="config.json names no files"):
        ExportedParModel.from_pretrained(tmp_path / "broken")
    with pytest.raises(ValueError, match="this model has no file to run"):
        ExportedParModel(config)(**tiny_inputs())
    with pytest.raises(ValueError, match="this model has no file to save"):
        ExportedParModel(config).save_pretrained(tmp_path / "x")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../payload": "0" * 64}, "files of config.json holds '../payload'"),
        ({"/etc/passwd": "0" * 64}, "files of config.json holds '/etc/passwd'"),
        ({"sub/model.onnx": "0" * 64}, "files of config.json holds"),
        ({".": "0" * 64}, "files of config.json holds"),
        ({"model.onnx": None}, "'model.onnx': None, expected names of files beside it"),
        ({}, "names no files"),
        ({"config.json": "0" * 64}, "lacks 'model.onnx', which 'onnx' needs"),
    ],
)
def test_names_of_files_are_not_paths(exported, tmp_path, files, words):
    _, _, folder = exported()
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "payload").write_text("secret")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "files": files}))
    with pytest.raises(ValueError, match=words):
        AutoModel.from_pretrained(tmp_path / "model")
    loaded = AutoModel.from_pretrained(folder)
    loaded.config.files = files
    with pytest.raises(ValueError, match=words):
        loaded.save_pretrained(tmp_path / "deep" / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "payload"}


def test_a_file_that_is_a_link_out_of_the_folder_is_refused(exported, tmp_path):
    _, _, folder = exported()
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "model.onnx").rename(tmp_path / "elsewhere")
    (tmp_path / "model" / "model.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="model.onnx' is a link to '.*elsewhere': expected a file of the folder"):
        AutoModel.from_pretrained(tmp_path / "model")
    # In the cache of the Hub a file of a revision is a link to the blobs of its repository.
    revision = tmp_path / "models--org--name" / "snapshots" / "0123"
    shutil.copytree(folder, revision)
    (revision.parents[1] / "blobs").mkdir()
    (revision / "model.onnx").rename(revision.parents[1] / "blobs" / "abc")
    (revision / "model.onnx").symlink_to("../../blobs/abc")
    AutoModel.from_pretrained(revision).save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "model.onnx").is_file() and not (tmp_path / "copy" / "model.onnx").is_symlink()


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


def test_evaluate_takes_an_exported_folder(exported, tmp_path):
    from vlm_par_hf.training import evaluate

    out = tmp_path / "onnx"
    export_model(embedded_path("heads_rendered"), out, to="onnx", compared_images=noise_images(2))
    options = {"num_train": 2, "num_validation": 2, "num_test": 12, "seed": 5, "cache_dir": str(tmp_path)}
    records = [
        evaluate(str(path), "rendered", output_dir=tmp_path / name, dataset_options=options, bootstrap=0)
        for name, path in (("torch", embedded_path("heads_rendered")), ("onnx", out))
    ]
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], abs=1e-6, nan_ok=True)

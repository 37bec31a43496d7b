"""An exported file answers as the checkpoint does; what it cannot do is refused in words."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from modeling_tests.exports import noise_images
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.export import exporting as export
from vlm_par_hf.export.exporting import export_model
from vlm_par_hf.export.parity import compare_answers, pick_images
from vlm_par_hf.output_folders import LIST
from vlm_par_hf.utils import embedded_path, require


for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)


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
        compared_images=noise_images(3),
    )  # fmt: skip
    assert given.dtype == torch.bfloat16 and record["max_abs_difference"] > 0
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert loaded.attribute_heads.direction.dtype == torch.float32, "what decides stays in float32"
    trained = tiny_model("kway").train()
    export_model(
        trained, tmp_path / "two", to="folded", processor=tiny_processor("kway"), compared_images=noise_images(3)
    )
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
            embedded_path("heads"), tmp_path / "out", to=to, precision=precision,
            calibration_images=calibration,
            compared_images=compared, images_from=source, overwrite=True,
        )  # fmt: skip
        assert record["images"]["compared"] == 256
        # Their thresholds are the shares of positives, near which more pictures lie than near 1/2: int8 keeps 98.9 %.
        assert record["unchanged_share"] >= (0.985 if precision == "int8" else 0.995), source


# What goes wrong


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
        export_model(model, tmp_path / "out", to="folded", processor=tiny_processor(), compared_images=noise_images(3))
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


def folded_export(model, out, **options):
    return export_model(
        model, out, to="folded", processor=tiny_processor("kway"), compared_images=noise_images(3), **options
    )


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_is_not_replaced_by_its_export(exported, tmp_path):
    model, _, _ = exported("folded")
    checkpoint = tmp_path / "checkpoint"
    model.save_pretrained(checkpoint)
    tiny_processor("kway").save_pretrained(checkpoint)
    before = files(checkpoint)
    for out in (checkpoint, checkpoint / "export", tmp_path):
        with pytest.raises(ValueError, match="which is only read: name another output"):
            export_model(checkpoint, out, to="folded", overwrite=True, delete_listed=True)
    with pytest.raises(FileExistsError, match="nothing in it says that this package wrote it"):
        folded_export(model, checkpoint, overwrite=True, delete_listed=True)
    assert files(checkpoint) == before


def test_overwrite_replaces_the_export_and_nothing_else(exported, tmp_path, monkeypatch):
    model, _, _ = exported("folded")
    out = tmp_path / "out"
    folded_export(model, out)
    (out / "notes.md").write_text("mine")
    before = files(out)
    # After an error it is as it was before.
    monkeypatch.setattr(export, "compare_answers", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folded_export(model, out, overwrite=True)
    monkeypatch.undo()
    assert files(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    folded_export(model, out, precision="bfloat16", overwrite=True)
    assert (out / "notes.md").read_text() == "mine"
    assert AutoModel.from_pretrained(out).dtype == torch.bfloat16
    (out / "config.json").write_text((out / "config.json").read_text() + " ")
    with pytest.raises(FileExistsError, match="1 files were changed since.*'config.json'"):
        folded_export(model, out, overwrite=True)
    (out / LIST).unlink()
    with pytest.raises(FileExistsError, match="earlier version of this package.*'config.json'.*'model.safetensors'"):
        folded_export(model, out, overwrite=True)
    folded_export(model, out, overwrite=True, delete_listed=True)
    assert (out / "notes.md").read_text() == "mine" and AutoModel.from_pretrained(out).dtype == torch.float32


def test_an_export_that_was_ended_while_it_replaced_files_does_not_load_and_is_completed(
    exported, tmp_path, monkeypatch
):
    model, _, _ = exported("folded")
    out = tmp_path / "out"
    folded_export(model, out)
    replace, count = os.replace, iter(range(100))

    def end_at_the_third(source, target):
        if "/.saving/" in str(source) and Path(target).parent == out and next(count) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", end_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            folded_export(model, out, precision="bfloat16", overwrite=True)
    with pytest.raises(ValueError, match="Unrecognized model"):
        AutoModel.from_pretrained(out)
    folded_export(model, out, precision="bfloat16")
    assert AutoModel.from_pretrained(out).dtype == torch.bfloat16


@pytest.mark.parametrize("whose", ["the checkpoint", "the exported file"])
def test_answers_that_are_no_numbers_are_no_parity(exported, whose):
    model, _, _ = exported("folded")
    names = model.config.schema.names

    class Broken(torch.nn.Module):
        config, device, dtype = model.config, model.device, model.dtype

        def forward(self, **inputs):
            output = model(**inputs)
            output.logits = output.logits.clone()
            output.logits[1, 2, 0] = float("nan")
            return output

    pair = (Broken().eval(), model) if whose == "the checkpoint" else (model, Broken().eval())
    expected = f"{whose} gives no answer, and nothing was written: .*attribute {names[2]!r}.* is nan for image 1,"
    with pytest.raises(RuntimeError, match=expected):
        compare_answers(*pair, tiny_processor("kway"), noise_images(3))


def test_files_of_an_export_have_the_permissions_of_the_umask(exported, tmp_path):
    model, _, _ = exported()
    before = os.umask(0o027)
    try:
        for to in ("folded", "onnx", "openvino"):
            export_model(
                model, tmp_path / to, to=to, processor=tiny_processor("kway"), compared_images=noise_images(2)
            )
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o640}, modes

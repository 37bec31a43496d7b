"""Files of ONNX Runtime and OpenVINO in int8, written without a word to anybody."""

import logging
import subprocess
import sys

import pytest
from transformers import AutoModel

from modeling_tests.exports import difference, noise_images
from modeling_tests.tiny import tiny_inputs, tiny_model, tiny_processor
from vlm_par_hf.export.exporting import export_model


for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(package)


def test_int8_leaves_the_logging_of_others_alone(tmp_path, caplog):
    export_model(
        tiny_model("fixed"), tmp_path / "out", to="openvino", precision="int8", processor=tiny_processor("fixed"),
        calibration_images=noise_images(4, seed=1), compared_images=noise_images(4, seed=2),
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

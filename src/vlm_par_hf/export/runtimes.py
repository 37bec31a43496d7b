"""Writes the files of ONNX Runtime and OpenVINO, in float or int8."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vlm_par_hf.utils import require

from .exported import DESCRIPTION, ExportedParConfig, openvino_core, require_silent
from .graph import ExportGraph


__all__ = ["describe", "describe_onnx", "quantize_onnx", "write_onnx", "write_openvino"]

# Only products with weights inside modules of this name become int8. Embeddings, pooling head and attribute heads stay
# in float: they are a few percent of the work, but in int8 would cause most of the error. So do the products inside
# attention, which in int8 would double the number of changed decisions.
_QUANTIZED = ".encoder."


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters: their warnings (operators of torchvision, names of axes, shapes) concern no result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_onnx(graph: ExportGraph, probe: dict[str, torch.Tensor], output_names: list[str], path: Path) -> list[str]:
    """Writes an ONNX file in float32.

    Args:
        graph: the computation.
        probe: an example of its inputs, with at least two images.
        output_names: names of its outputs.
        path: the file; large weights go to `PATH.data` beside it.

    Returns:
        Names of the nodes that must stay in float when the rest becomes int8.
    """
    batch = torch.export.Dim("batch", min=1, max=2**16)
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            graph, (), probe, dynamic_shapes={name: {0: batch} for name in probe}, strict=False
        )
        program = torch.onnx.export(
            program, (), kwargs=probe, input_names=list(probe), output_names=output_names, dynamo=True, verbose=False
        )
    kept = []
    for node in program.model.graph.all_nodes():
        has_weights = any(value is not None and value.const_value is not None for value in node.inputs)
        if not has_weights or _QUANTIZED not in node.metadata_props.get("pkg.torch.onnx.name_scopes", ""):
            kept.append(node.name)
        node.metadata_props.clear()  # they hold stack traces with paths of this machine
    program.model.graph.metadata_props.clear()
    program.save(path)
    return kept


def quantize_onnx(path: Path, kept: list[str]) -> None:
    """Turns an ONNX file into int8 in place, except for the nodes named in `kept`."""
    import onnx

    quantization = require("onnxruntime.quantization", "export")
    model = onnx.load(path)
    del model.graph.value_info[:]  # shapes from the exporter, which contradict those that the quantizer infers
    weights = path.with_name(f"{path.name}.data")
    with _quiet():
        quantization.quantize_dynamic(
            model,
            path,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            # The quantizer first replaces each Gemm by a node of that name.
            nodes_to_exclude=[*kept, *(f"{name}_MatMul" for name in kept)],
            use_external_data_format=weights.exists(),
        )


def describe(config: ExportedParConfig) -> str:
    """What is written into the file, for programs that read nothing else, and for the check at loading."""
    return json.dumps(
        {"attributes": config.attributes, "patch_grid": config.patch_grid, "precision": config.precision}
    )


def describe_onnx(path: Path, description: str) -> None:
    """Writes a description into an ONNX file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, {DESCRIPTION: description})
    path.write_bytes(model.SerializeToString())


def write_openvino(
    source: Path,
    target: Path,
    batches: list[dict[str, np.ndarray]] | None,
    kept: list[str],
    description: str,
) -> None:
    """Converts an ONNX file to OpenVINO's format, in int8 if there are batches to calibrate with.

    Args:
        source: the ONNX file.
        target: the file to write.
        batches: inputs to calibrate with; None: float32.
        kept: nodes that stay in float.
        description: is written into the file.
    """
    openvino = require_silent("openvino")
    model = openvino_core().read_model(source)  # `convert_model` would report its use to Intel
    if batches is not None:
        nncf = require_silent("nncf")
        # nncf logs every operation that it skips. `nncf.set_log_level` would also change handlers of other loggers.
        logging.getLogger("nncf").setLevel(logging.ERROR)
        names = {operation.get_friendly_name() for operation in model.get_ops()}
        model = nncf.quantize(
            model,
            nncf.Dataset(batches),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(batches),
            ignored_scope=nncf.IgnoredScope(names=sorted(names & set(kept)), validate=False),
        )
    model.set_rt_info(description, [DESCRIPTION])
    openvino.save_model(model, target, compress_to_fp16=False)

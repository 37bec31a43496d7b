"""From a picture to the model's inputs as ONNX operators: grid of patches, resizing, normalising, patches.

Resizing is a product with two matrices, whose weights are those of Pillow's filters: `w(x, i) = f((i + 1/2 - c) / s)`
for the output x, its centre `c = (x + 1/2) * size / new_size` and `s = max(1, size / new_size)`, normalised to sum 1.
Runtimes agree about a product; about an operator that resizes with antialias they do not. Pixels are rounded after
each of the two passes, as Pillow and torch do.

The grid of a NaFlex picture is the finest one with at most N patches that keeps the picture's shape. Rows (or columns)
are whole at the finest scale, so it is found among the N numbers of rows and the N numbers of columns.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.images.preprocessing import normalisation


__all__ = ["PictureSettings", "put_picture_before", "read_settings"]

PREFIX = "picture/"  # of the names of its nodes and tensors
_FILTERS = {2: "bilinear", 3: "bicubic"}  # by Pillow's number


class PictureSettings(NamedTuple):
    """How a picture becomes the model's inputs.

    Attributes:
        resample: `"bilinear"` or `"bicubic"`.
        scale, shift: per channel; a value of 0 to 255 becomes `value * scale + shift`.
        patch_size: None for a model of fixed resolution.
        max_num_patches: N, the length of the sequence of patches; None for a model of fixed resolution.
        size: height and width that every picture is resized to; None: that of its own grid of patches.
    """

    resample: str
    scale: list[float]
    shift: list[float]
    patch_size: int | None = None
    max_num_patches: int | None = None
    size: tuple[int, int] | None = None


def read_settings(processor: Any) -> PictureSettings:
    """The settings of a processor.

    Raises:
        ValueError: its image processor does something that there are no operators for here.
    """
    images = processor.image_processor
    kind, resample = type(images).__name__, _FILTERS.get(int(images.resample))
    steps = ("do_resize", "do_rescale", "do_normalize")
    done = all(getattr(images, step, False) for step in steps)
    if kind not in ("Siglip2ImageProcessorPil", "SiglipImageProcessorPil", "CLIPImageProcessorPil") or not done:
        raise ParValueError(
            f"the image processor is a {kind}{'' if done else ' that leaves out a step'}, expected one of SigLIP 2, "
            "SigLIP or CLIP that resizes, rescales and normalises"
        )
    if resample is None:
        raise ParValueError(f"resample of the image processor is {images.resample}, expected bilinear or bicubic")
    scale, shift = (np.broadcast_to(one, 3).tolist() for one in normalisation(images))
    if kind == "Siglip2ImageProcessorPil":
        patch, grid = images.patch_size, processor.patch_grid
        size = None if grid is None else (grid[0] * patch, grid[1] * patch)
        return PictureSettings(resample, scale, shift, patch, images.max_num_patches, size)
    size = dict(images.size)
    if getattr(images, "do_center_crop", False) or size.keys() != {"height", "width"}:
        raise ParValueError(f"size of the image processor is {size}, expected height and width without a center crop")
    return PictureSettings(resample, scale, shift, size=(size["height"], size["width"]))


class _Operators:
    """Nodes and constants of an ONNX graph; calling it adds a node and gives the name of its output."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any) -> str:
        name = f"{PREFIX}constant_{len(self.constants)}"
        self.constants.append(self._numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def integer(self, value: Any) -> str:
        return self.constant(value, np.int64)

    def number(self, value: Any) -> str:
        return self.constant(value, np.float32)

    def __call__(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = f"{PREFIX}{kind}_{len(self.nodes)}"
        output = output or name
        self.nodes.append(self._helper.make_node(kind, list(inputs), [output], name=name, **attributes))
        return output


def put_picture_before(path: Path, settings: PictureSettings) -> list[str]:
    """Puts the operators in front of a model in an ONNX file, in place.

    The input is then `image` uint8 `(height, width, 3)`, and the outputs are `probabilities` float32 `(A, C)` and
    `decided` int64 `(A,)`, of that one picture.

    Args:
        path: what `write_onnx` wrote; large weights lie in `PATH.data` beside it.
        settings: from `read_settings`.

    Returns:
        The names of the nodes that were added, which must stay in float.
    """
    import onnx
    from onnx import TensorProto, helper

    weights = path.with_name(f"{path.name}.data")
    is_external = weights.exists()
    model = onnx.load(path)
    graph = model.graph
    add = _Operators()
    inputs = {value.name for value in graph.input}
    _add_inputs(add, settings, inputs)
    before = list(add.nodes)
    for name in ("probabilities", "decided"):
        for node in graph.node:
            for names in (node.input, node.output):
                for place, one in enumerate(names):
                    if one == name:
                        names[place] = f"{PREFIX}{name}"
        add("Squeeze", f"{PREFIX}{name}", add.integer([0]), output=name)
    kept = {value.name: value for value in graph.output}
    shapes = {name: [dim.dim_value for dim in kept[name].type.tensor_type.shape.dim][1:] for name in kept}
    nodes = [*before, *graph.node, *add.nodes[len(before) :]]
    merged = helper.make_graph(
        nodes,
        graph.name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shapes["probabilities"]),
            helper.make_tensor_value_info("decided", TensorProto.INT64, shapes["decided"]),
        ],
        [*graph.initializer, *add.constants],
    )
    found = helper.make_model(merged, opset_imports=model.opset_import, ir_version=model.ir_version)
    if is_external:
        weights.unlink()
    onnx.save(found, path, save_as_external_data=is_external, location=weights.name)
    return [node.name for node in add.nodes]


def _add_inputs(add: _Operators, settings: PictureSettings, inputs: set[str]) -> None:
    """Adds what makes the inputs of the model, which get their names."""
    shape = add("Shape", "image")
    height, width = (add("Gather", shape, add.integer(axis)) for axis in (0, 1))
    N, p = settings.max_num_patches, settings.patch_size
    if settings.size is not None:
        new_height, new_width = (add.integer(one) for one in settings.size)
    else:
        rows, columns = _add_grid(add, height, width, N)
        new_height, new_width = (add("Mul", one, add.integer(p)) for one in (rows, columns))
    pixels = _add_resizing(add, settings.resample, height, width, new_height, new_width)  # (new_height, new_width * 3)
    if p is None:
        size = add.integer([*settings.size, 3])
        pixels = add("Reshape", pixels, size)
        values = add("Add", add("Mul", pixels, add.number(settings.scale)), add.number(settings.shift))
        values = add("Transpose", values, perm=[2, 0, 1])
        add("Unsqueeze", values, add.integer([0]), output="pixel_values")
        return
    if settings.size is not None:
        rows, columns = (add.integer(one // p) for one in settings.size)
    count = add("Mul", rows, columns)

    def joined(*sizes: str) -> str:
        return add("Concat", *(add("Reshape", one, add.integer([1])) for one in sizes), axis=0)

    # (rows, p, columns, p * 3) -> (rows, columns, p, p * 3) -> (rows * columns, 3 * p**2)
    pixels = add("Reshape", pixels, joined(rows, add.integer(p), columns, add.integer(3 * p)))
    pixels = add("Transpose", pixels, perm=[0, 2, 1, 3])
    pixels = add("Reshape", pixels, joined(count, add.integer(3 * p * p)))
    scale, shift = (add.number(np.tile(one, p * p)) for one in (settings.scale, settings.shift))
    values = add("Add", add("Mul", pixels, scale), shift)
    missing = add("Sub", add.integer(N), count)
    padding = joined(add.integer(0), add.integer(0), missing, add.integer(0))
    values = add("Pad", values, padding, add.number(0.0))
    values = add("Reshape", values, add.integer([1, N, 3 * p * p]))
    add("Identity", values, output="pixel_values")
    if "pixel_attention_mask" in inputs:
        is_patch = add("Less", add.integer(np.arange(N)[None]), count)
        add("Cast", is_patch, to=6, output="pixel_attention_mask")  # int32
        add("Reshape", joined(rows, columns), add.integer([1, 2]), output="spatial_shapes")


def _add_grid(add: _Operators, height: str, width: str, N: int) -> tuple[str, str]:
    """Rows and columns of patches."""
    some, one, zero = add.integer(np.arange(1, N + 1)), add.integer(1), add.integer(0)

    def others(number: str, own: str, other: str) -> str:
        """ceil(other * number / own): columns for a number of rows, where a patch is as wide as it is high."""
        return add("Div", add("Sub", add("Add", add("Mul", other, number), own), one), own)

    def most(own: str, other: str) -> str:
        fits = add("LessOrEqual", add("Mul", some, others(some, own, other)), add.integer(N))
        return add("ReduceMax", add("Where", fits, some, zero), keepdims=0)

    rows, columns = most(height, width), most(width, height)
    by_rows = add("GreaterOrEqual", add("Mul", rows, width), add("Mul", columns, height))
    return (
        add("Where", by_rows, rows, others(columns, width, height)),
        add("Where", by_rows, others(rows, height, width), columns),
    )


def _add_resizing(add: _Operators, resample: str, height: str, width: str, new_height: str, new_width: str) -> str:
    """The resized picture, float32 `(new_height, new_width * 3)` of whole numbers from 0 to 255."""

    def rounded(values: str) -> str:
        return add("Clip", add("Round", values), add.number(0), add.number(255))

    pixels = add("Cast", "image", to=1)  # float32
    pixels = rounded(add("MatMul", _add_weights(add, resample, width, new_width), pixels))  # (height, new_width, 3)
    row = add("Mul", new_width, add.integer(3))
    flat = add("Concat", *(add("Reshape", one, add.integer([1])) for one in (height, row)), axis=0)
    pixels = add("Reshape", pixels, flat)
    return rounded(add("MatMul", _add_weights(add, resample, height, new_height), pixels))


def _add_weights(add: _Operators, resample: str, size: str, new_size: str) -> str:
    """The matrix that resizes one side, float32 `(new_size, size)`."""
    zero, one, half = add.integer(0), add.integer(1), add.number(0.5)

    def numbers(end: str) -> str:
        return add("Add", add("Cast", add("Range", zero, end, one), to=1), half)

    scale = add("Div", add("Cast", size, to=1), add("Cast", new_size, to=1))
    centers = add("Unsqueeze", add("Mul", numbers(new_size), scale), add.integer([1]))
    distance = add("Sub", numbers(size), centers)
    x = add("Abs", add("Div", distance, add("Max", scale, add.number(1.0))))
    if resample == "bilinear":
        weights = add("Max", add("Sub", add.number(1.0), x), add.number(0.0))
    else:
        weights = _add_cubic(add, x)
    return add("Div", weights, add("ReduceSum", weights, add.integer([1]), keepdims=1))


def _add_cubic(add: _Operators, x: str) -> str:
    """Pillow's cubic filter, with a = -1/2, of distances."""

    def polynomial(*coefficients: float) -> str:
        value = add.number(coefficients[0])
        for one in coefficients[1:]:
            value = add("Add", add("Mul", value, x), add.number(one))
        return value

    near, far = polynomial(1.5, -2.5, 0.0, 1.0), polynomial(-0.5, 2.5, -4.0, 2.0)
    inside = add("Where", add("Less", x, add.number(2.0)), far, add.number(0.0))
    return add("Where", add("Less", x, add.number(1.0)), near, inside)

"""From RGB pictures to `pixel_values`: computes what transformers' own image processors do, several times faster.

The settings of the checkpoint's image processor are read at every call. Cases for which this module might give another
result (another class, a subclass, a center crop, other arguments) are left to the image processor itself. For SigLIP
and SigLIP 2 the result equals that of transformers' Pillow backend within 2 grey levels (2 / 127.5 in `pixel_values`).

Why it is faster: torch resizes 8-bit pictures with vector instructions, Pillow does not. A picture that already has
the right size is not resized. Patches are cut as one strided view and written as floats directly into the batch. Each
picture is computed by one thread outside Python's global lock, so several threads can work on a batch.

torch does only bilinear resizing (SigLIP 2). Its two passes, over rows and over columns, round each pixel by at most
half a level in either order, so two libraries differ by at most 2 levels. Bicubic resizing (SigLIP, CLIP) overshoots
and is clipped after each pass, so the pixels depend on the order of the passes, and that changed between versions of
Pillow. Therefore bicubic resizing is done by Pillow, and only the other steps here.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.upstream import SizeDict, naflex_image_size
from vlm_par_hf.utils import shorten, thread_map


__all__ = ["normalisation", "preprocess_images"]

_RESAMPLING = {int(one) for one in Image.Resampling}
_LARGEST_SIDE, _LARGEST_PATCHES = 1_024, 1_048_576
_LARGEST_NUMBER, _SMALLEST_STD = 1e6, 1e-6  # what is beyond overflows in float32, or would soon


def preprocess_images(
    image_processor: Any, images: Sequence[Image.Image], *, return_tensors: str | None = "pt", **kwargs: Any
) -> Mapping[str, Any]:
    """`image_processor(images, return_tensors=return_tensors, **kwargs)`, equal within 2 grey levels.

    Args:
        image_processor: an image processor of transformers. Fast are those of SigLIP, SigLIP 2, CLIP and ViT (Pillow
            backend) if they resize (to one size or to a number of patches), rescale and normalise, and no argument but
            `max_num_patches` is given. All other cases are computed by the image processor.
        images: decoded RGB pictures, as `open_image` gives them.
        return_tensors: `"pt"`, `"np"` or another value that the image processor takes.
        kwargs: further arguments of the image processor.

    Returns:
        For NaFlex `pixel_values` float32 `(B, N, 3 * patch_size**2)`, `pixel_attention_mask` int32 `(B, N)` and
        `spatial_shapes` int64 `(B, 2)` (rows, columns), with N = `max_num_patches`; for fixed resolution
        `pixel_values` float32 `(B, 3, height, width)`.

    Raises:
        ValueError: `max_num_patches` is not a whole number above 0, or a setting of the image processor cannot be
            used.
    """
    _check_settings(image_processor)
    compute = _FAST.get(f"{type(image_processor).__module__}.{type(image_processor).__qualname__}")
    steps = ("do_resize", "do_rescale", "do_normalize")
    arrays = None
    if (
        compute is not None
        and return_tensors in ("pt", "np")
        and all(getattr(image_processor, step) for step in steps)
    ):
        arrays = compute(image_processor, images, **kwargs)
    if arrays is None:
        return image_processor(images, return_tensors=return_tensors, **kwargs)
    if return_tensors == "np":
        return arrays
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _check_settings(image_processor: Any) -> None:
    """Refuses settings that a damaged file may hold: NumPy would broadcast some of them, or give NaN or infinity."""

    def refuse(name: str, expected: str) -> None:
        value = shorten(getattr(image_processor, name))
        raise ParValueError(f"{type(image_processor).__name__}: {name} is {value}, expected {expected}")

    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not isinstance(getattr(image_processor, name, None), (bool, type(None))):
            refuse(name, "True or False")
    if getattr(image_processor, "do_rescale", False) and not _is_number(image_processor.rescale_factor):
        refuse("rescale_factor", "a number below a million")
    if getattr(image_processor, "do_normalize", False):
        for name in ("image_mean", "image_std"):
            value = getattr(image_processor, name)
            values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
            if len(values) != 3 or not all(_is_number(one) for one in values):
                refuse(name, "three numbers below a million")
            if name == "image_std" and not all(one >= _SMALLEST_STD for one in values):
                refuse(name, "three numbers above 0")
    resample = getattr(image_processor, "resample", 0)
    if isinstance(resample, bool) or not isinstance(resample, int) or resample not in _RESAMPLING:
        refuse("resample", f"one of {sorted(_RESAMPLING)}")
    for name, largest in (("patch_size", _LARGEST_SIDE), ("max_num_patches", _LARGEST_PATCHES)):
        value = getattr(image_processor, name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            refuse(name, f"a whole number from 1 to {largest}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST_NUMBER


def _naflex_arrays(image_processor: Any, images: Sequence[Image.Image], **kwargs: Any) -> dict[str, np.ndarray] | None:
    """The arrays of a NaFlex image processor; None where it must compute them itself."""
    max_num_patches = kwargs.pop("max_num_patches", image_processor.max_num_patches)
    if kwargs:
        return None
    if isinstance(max_num_patches, bool) or not isinstance(max_num_patches, int) or max_num_patches < 1:
        raise ParValueError(f"max_num_patches is {max_num_patches!r}; expected a whole number, at least 1")
    patch_size, resample = image_processor.patch_size, image_processor.resample
    scale, shift = normalisation(image_processor)
    sizes = [_naflex_size(image.height, image.width, patch_size, max_num_patches) for image in images]
    shapes = np.array(sizes, dtype=np.int64) // patch_size
    counts = shapes.prod(1)
    values = np.empty((len(images), max_num_patches, 3 * patch_size**2), dtype=np.float32)
    scale, shift = (one if one.size == 1 else np.tile(one, patch_size) for one in (scale, shift))

    def fill(index: int) -> None:
        rows, columns = shapes[index]
        grid = (rows, columns, patch_size, patch_size * 3)
        pixels = _resize(images[index], *sizes[index], resample)
        # (rows, p, columns, p * 3) -> (rows, columns, p, p * 3): a row of a patch is p * 3 bytes that stay together.
        pixels = pixels.reshape(rows, patch_size, columns, patch_size * 3).transpose(0, 2, 1, 3)
        _write_normalised(values[index, : counts[index]].reshape(grid), pixels, scale, shift)
        values[index, counts[index] :] = 0

    thread_map(fill, range(len(images)))
    mask = (np.arange(max_num_patches) < counts[:, None]).astype(np.int32)
    return {"pixel_values": values, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def _fixed_size_arrays(
    image_processor: Any, images: Sequence[Image.Image], **kwargs: Any
) -> dict[str, np.ndarray] | None:
    """The array of an image processor with a fixed resolution; None where it must compute it itself."""
    size = dict(image_processor.size) if isinstance(image_processor.size, (dict, SizeDict)) else {}
    if kwargs or image_processor.do_center_crop or image_processor.do_pad or size.keys() != {"height", "width"}:
        return None
    height, width, resample = size["height"], size["width"], image_processor.resample
    values = np.empty((len(images), 3, height, width), dtype=np.float32)
    scale, shift = (one.reshape(-1, 1, 1) for one in normalisation(image_processor))

    def fill(index: int) -> None:
        _write_normalised(
            values[index], _resize(images[index], height, width, resample).transpose(2, 0, 1), scale, shift
        )

    thread_map(fill, range(len(images)))
    return {"pixel_values": values}


def _resize(image: Image.Image, height: int, width: int, resample: int) -> np.ndarray:
    """The picture resized: uint8 `(height, width, 3)`."""
    if image.size == (width, height):
        return np.asarray(image)
    if resample != Image.Resampling.BILINEAR:
        return np.asarray(image.resize((width, height), resample))
    # Copy the array, because torch warns of arrays that are read-only. Give it the strides of a batch in channels_last
    # format, because torch takes its fast kernel only then; the stride of the batch axis matters too.
    pixels = torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy())


def _write_normalised(out: np.ndarray, pixels: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> None:
    # NumPy, not torch: called in one of our threads, torch would start further threads of its own.
    out[...] = pixels
    out *= scale
    out += shift


def normalisation(image_processor: Any) -> tuple[np.ndarray, np.ndarray]:
    """scale and shift such that (x * rescale_factor - mean) / std = x * scale + shift.

    Returns:
        float32 `(3,)` each, or `(1,)` if all channels have the same values.
    """
    mean = np.asarray(image_processor.image_mean, dtype=np.float64)
    std = np.asarray(image_processor.image_std, dtype=np.float64)
    scale, shift = np.broadcast_arrays(image_processor.rescale_factor / std, -mean / std)
    if (scale == scale.flat[0]).all() and (shift == shift.flat[0]).all():
        scale, shift = scale.reshape(-1)[:1], shift.reshape(-1)[:1]
    return scale.astype(np.float32), shift.astype(np.float32)


@lru_cache(maxsize=65536)
def _naflex_size(height: int, width: int, patch_size: int, max_num_patches: int) -> tuple[int, int]:
    # transformers finds the size by a search that takes longer than resizing. Cached, because crops repeat their
    # sizes.
    return naflex_image_size(height, width, patch_size, max_num_patches)


# By name, because importing these classes would slow down every import of this package.
_FAST = {
    "transformers.models.siglip2.image_processing_pil_siglip2.Siglip2ImageProcessorPil": _naflex_arrays,
    "transformers.models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil": _fixed_size_arrays,
    "transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil": _fixed_size_arrays,
    "transformers.models.vit.image_processing_pil_vit.ViTImageProcessorPil": _fixed_size_arrays,
}

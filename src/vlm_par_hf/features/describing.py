"""What features depend on: hashes of the weights and of the images, and the settings of tower and processor."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import tqdm

from vlm_par_hf.base.adapters import adapter_state
from vlm_par_hf.images.opening import open_image
from vlm_par_hf.images.regions import is_region


__all__ = ["describe_features"]

_TEXT_WEIGHTS = ("text_model.", "text_projection.", "logit_")


def describe_features(model, processor, images, *, progress: bool = True) -> dict[str, Any]:
    """What the features of an image set depend on, as plain JSON: equal descriptions mean equal features.

    The weights are hashed as they are in memory (without the text tower, which changes no feature). The images are
    hashed in order, by the bytes of their files or, without a file, by their pixels. Names of files do not count, so a
    data set may be moved.

    Args:
        model: has `vlm`, a vision-language backbone.
        processor: has `image_processor`, and may have `patch_grid` and `pad_to_square`.
        images: rows with `image`; not decoded if they have a file.
        progress: show a progress bar.
    """
    vision = model.vlm.config.vision_config
    # Settings that change features, but neither the weights nor their names.
    fields = ("hidden_act", "layer_norm_eps", "num_attention_heads", "patch_size", "image_size", "num_patches")
    weights = {name: value for name, value in model.vlm.state_dict().items() if not name.startswith(_TEXT_WEIGHTS)}
    settings = json.loads(processor.image_processor.to_json_string())
    adapters = adapter_state(model.vlm.vision_model)  # their weights are hashed with the others
    return {
        "backbone": {
            "model_type": model.vlm.config.model_type,
            "weights_sha256": _hash_tensors(weights),
            **{name: getattr(vision, name, None) for name in fields},
            **({"adapters": adapters} if adapters else {}),
        },
        "processor": {
            **{name: value for name, value in settings.items() if not name.startswith("_")},
            "image_processor_type": type(processor.image_processor).__name__,
            "patch_grid": getattr(processor, "patch_grid", None),
            **({"pad_to_square": True} if getattr(processor, "pad_to_square", False) else {}),
        },
        "images": {"count": len(images), "sha256": _hash_images(images, progress)},
    }


def _hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _hash_images(images, progress: bool) -> str:
    digest = hashlib.sha256()
    bar = tqdm(total=len(images), desc="image set", unit="image", disable=not progress, leave=False)
    # Reading many small files mostly waits for the disk, so several threads are faster.
    with ThreadPoolExecutor(8) as pool, bar:
        for start in range(0, len(images), 256):
            sources = [images[row]["image"] for row in range(start, min(start + 256, len(images)))]
            for image_digest in pool.map(_hash_image, sources):
                digest.update(image_digest)
            bar.update(len(sources))
    return digest.hexdigest()


def _hash_image(source: Any) -> bytes:
    if isinstance(source, dict) and source.get("bytes") is not None:
        source = source["bytes"]
    elif isinstance(source, dict) and "path" in source and not is_region(source["path"]):
        source = source["path"]
    if isinstance(source, (str, os.PathLike)):
        source = Path(source).read_bytes()
    if not isinstance(source, (bytes, bytearray, memoryview)):
        picture = open_image(source)
        source = json.dumps(picture.size).encode() + picture.tobytes()
    return hashlib.sha256(source).digest()

"""Images of noise, and the difference of the logits of two models."""

import numpy as np
import torch
from PIL import Image


def noise_images(number, seed=0):
    """Images of noise, of every aspect ratio."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(12, 60, (number, 2))
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def difference(model, other, inputs):
    """The largest difference of the logits; checks the dtype and the entries past an attribute's own labels."""
    with torch.no_grad():
        wanted, found = model(**inputs), other(**inputs)
    mask = torch.from_numpy(model.config.schema.label_mask())
    assert found.logits.dtype == torch.float32 and bool((found.logits[:, ~mask] == -1e4).all())
    return float((wanted.logits - found.logits)[:, mask].abs().max())

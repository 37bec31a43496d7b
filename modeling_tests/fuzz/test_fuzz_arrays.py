"""Arrays and tensors as images: every dtype, layout and range, and those that are no image."""

import numpy as np
import torch
from hypothesis import strategies as st

from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.tiny import tiny_processor
from vlm_par_hf.images.opening import open_image


AREA = Area("arrays", "the drawn 8-bit picture that the array was made of")
PROCESSOR = tiny_processor("naflex")

# From uint8 (H, W, C) to an array of another dtype that means the same picture, and how many levels it may lose.
DTYPES = {
    "uint8": (lambda p: p, 0),
    "uint16": (lambda p: p.astype(np.uint16) * 257, 0),
    "big-endian": (lambda p: (p.astype(np.uint16) * 257).astype(">u2"), 0),
    "float16": (lambda p: (p / 255).astype(np.float16), 1),
    "float32": (lambda p: (p / 255).astype(np.float32), 0),
    "float64": (lambda p: p / 255, 0),
    "big-endian float": (lambda p: (p / 255).astype(">f8"), 0),
    "longdouble": (lambda p: (p / 255).astype(np.longdouble), 0),
    "torch uint8": (lambda p: torch.from_numpy(p.copy()), 0),
    "torch uint16": (lambda p: torch.from_numpy(p.astype(np.uint16) * 257), 0),
    "torch float16": (lambda p: torch.from_numpy(p / 255).half(), 1),
    "torch bfloat16": (lambda p: torch.from_numpy(p / 255).bfloat16(), 1),
    "torch float32": (lambda p: torch.from_numpy(p / 255).float(), 0),
    "torch float64": (lambda p: torch.from_numpy(p / 255).double().requires_grad_(), 0),
}
LAYOUTS = {
    "plain": lambda a: a,
    "columns": lambda a: (
        a.swapaxes(0, 1).copy().swapaxes(0, 1)
        if isinstance(a, np.ndarray)
        else a.mT.contiguous().mT
        if a.ndim == 2
        else a.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    ),
    "every other": lambda a: (
        np.repeat(a, 2, 1)[:, ::2] if isinstance(a, np.ndarray) else a.repeat_interleave(2, 1)[:, ::2]
    ),
    "backwards": lambda a: a[::-1, ::-1].copy()[::-1, ::-1] if isinstance(a, np.ndarray) else a,
    "read only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) if isinstance(a, np.ndarray) else a,
}
drawn = {
    "height": st.integers(1, 24),
    "width": st.integers(1, 24),
    "channels": st.sampled_from((None, 1, 3, 4)),
    "seed": st.integers(0, 2**32 - 1),
}


def draw(height, width, channels, seed):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def to_rgb(pixels):
    """What the picture shows: grey three times, transparent parts blended with mid grey."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] == 4:
        share = pixels[..., 3:] / 255
        return pixels[..., :3] * share + 128 * (1 - share)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(float)


@AREA.fuzz(2500, **drawn, dtype=st.sampled_from(sorted(DTYPES)), layout=st.sampled_from(sorted(LAYOUTS)))
def test_the_drawn_picture_in_every_dtype_and_layout(height, width, channels, seed, dtype, layout):
    pixels = draw(height, width, channels, seed)
    convert, lost = DTYPES[dtype]
    array = LAYOUTS[layout](convert(pixels))
    levels = lost + (1 if channels == 4 else 0) + (2 if lost and channels == 4 else 0)

    def right(answer):
        found = np.asarray(answer).astype(float)
        assert found.shape == (height, width, 3), found.shape
        difference = np.abs(found - to_rgb(pixels)).max()
        assert difference <= levels, f"off by {difference} levels"
        return True

    AREA.judge(lambda: open_image(array), right, refusals=())


@AREA.fuzz(300, **drawn, bits=st.booleans())
def test_masks_are_black_and_white(height, width, channels, seed, bits):
    mask = draw(height, width, 3 if channels == 4 else channels, seed) > 127
    array = torch.from_numpy(mask) if bits else mask
    AREA.judge(lambda: open_image(array), lambda found: (np.asarray(found) == to_rgb(mask * 255)).all(), refusals=())


@AREA.fuzz(200, **drawn, dtype=st.sampled_from(sorted(DTYPES)))
def test_the_processor_prepares_them_as_pictures(height, width, channels, seed, dtype):
    pixels = draw(height, width, 3 if channels == 4 else channels, seed)
    array = DTYPES[dtype][0](pixels)
    expected = PROCESSOR(images=[open_image(to_rgb(pixels).astype(np.uint8))])["pixel_values"][0]

    def right(answer):
        return len(answer["pixel_values"]) == 2 and all(
            (one - expected).abs().max() < 3 / 127 for one in answer["pixel_values"]
        )

    AREA.judge(lambda: PROCESSOR(images=[array, array]), right, refusals=())


WRONG = {
    "int8": lambda p: p.astype(np.int8),
    "int32": lambda p: p.astype(np.int32),
    "int64": lambda p: p.astype(np.int64),
    "uint32": lambda p: p.astype(np.uint32),
    "complex": lambda p: p.astype(np.complex64),
    "text": lambda p: p.astype("U3"),
    "object": lambda p: p.astype(object),
    "dates": lambda p: p.astype("datetime64[s]"),
    "record": lambda p: p.astype([("a", "u1")]),
    "0 to 255 as floats": lambda p: np.maximum(p, 2).astype(np.float32),
    "-1 to 1": lambda p: -1 / 256 - p / 256,
    "one NaN": lambda p: with_one(p, np.nan),
    "one infinity": lambda p: with_one(p, np.inf),
    "one above 1": lambda p: with_one(p, 1.01),
    "one below 0": lambda p: with_one(p, -0.01),
    "masked": lambda p: np.ma.array(p, mask=p >= p.min()),
    "batch": lambda p: p[None, ..., None] if p.ndim == 2 else p[None],
    "row": lambda p: p.reshape(-1),
    "nothing": lambda p: p[:0],
    "no width": lambda p: p[:, :0],
    "two channels": lambda p: np.stack([p.reshape(p.shape[0], -1)] * 2, -1),
    "five channels": lambda p: np.stack([p.reshape(p.shape[0], -1)] * 5, -1),
    "channels first": lambda p: np.zeros((3, p.shape[0], p.shape[1] + 4), np.uint8),
    "torch int64": lambda p: torch.from_numpy(p.astype(np.int64)),
    "torch int8": lambda p: torch.from_numpy(p.astype(np.int8)),
    "torch complex": lambda p: torch.from_numpy(p.astype(np.complex64)),
    "torch sparse": lambda p: torch.from_numpy(p / 255).to_sparse(),
    "torch meta": lambda p: torch.from_numpy(p.copy()).to("meta"),
    "torch channels first": lambda p: torch.zeros(1, p.shape[0], p.shape[1] + 4),
    "torch NaN": lambda p: torch.from_numpy(with_one(p, np.nan)),
    "list": lambda p: p.tolist(),
}


def with_one(pixels, value):
    array = pixels / 255
    array.reshape(-1)[pixels.size // 2] = value
    return array


@AREA.fuzz(1500, **drawn, wrong=st.sampled_from(sorted(WRONG)))
def test_what_is_no_picture_is_refused(height, width, channels, seed, wrong):
    array = WRONG[wrong](draw(height, width, channels, seed))
    AREA.judge(lambda: open_image(array), lambda found: False, must_refuse=True)

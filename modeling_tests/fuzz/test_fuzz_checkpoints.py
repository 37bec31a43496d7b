"""Damaged checkpoints: configuration, weights, and the files of tokenizer and processor."""

import functools
import json
import logging
import shutil
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoImageProcessor

from modeling_tests.fuzz.damage import byte_edits, edit_json, json_edits
from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.tiny import (
    randomize,
    tiny_focus_model,
    tiny_focus_processor,
    tiny_inputs,
    tiny_model,
    tiny_processor,
)
from vlm_par_hf.errors import ParError
from vlm_par_hf.families import FAMILIES
from vlm_par_hf.models.focus_par import FocusParProcessor
from vlm_par_hf.models.vlm_par import VlmParProcessor


CONFIG = Area("config", "the same configuration, built and filled without from_pretrained")
WEIGHTS = Area("safetensors", "the bytes of each tensor, read by numpy")
PROCESSOR = Area("processor files", "transformers' own image processor, within 2 grey levels")
TOKENIZER = Area("tokenizer files", "the tokenizers library on the same file, or on the undamaged one")

# What transformers raises for a file that is missing or no JSON; its message names it.
UPSTREAM = (ParError, OSError)
PROCESSORS = {"full": VlmParProcessor, "focus": FocusParProcessor}
KINDS = ("full", "folded", "heads", "focus")


@functools.cache
def checkpoint(kind):
    """A folder with a tiny checkpoint of this kind, and the logits of the model."""
    logging.disable(logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    model = randomize(tiny_focus_model("kway") if kind == "focus" else tiny_model("kway"))
    if kind == "heads":
        model.vlm.save_pretrained(folder / "backbone")
        model.config.save_backbone, model.config.backbone_name = False, str(folder / "backbone")
    model = model.fold() if kind == "folded" else model
    model.eval().save_pretrained(folder / "model")
    (tiny_focus_processor("kway") if kind == "focus" else tiny_processor("kway")).save_pretrained(folder / "model")
    return folder / "model", model


def damaged(kind, name, content):
    """A copy of the checkpoint in which one file has other bytes."""
    source, _ = checkpoint(kind)
    folder = source.with_name("damaged")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    (folder / name).write_bytes(content)
    return folder


def logits_of(model):
    with torch.no_grad():
        return model.eval()(**tiny_inputs("kway")).logits


@CONFIG.fuzz(1500, kind=st.sampled_from(KINDS), edit=json_edits())
def test_configurations(kind, edit):
    source, original = checkpoint(kind)
    document, _ = edit_json(json.loads((source / "config.json").read_text()), edit)
    folder = damaged(kind, "config.json", json.dumps(document).encode())

    def load():
        model = type(original).from_pretrained(folder)
        return model, logits_of(model)

    def right(answer):
        model, logits = answer
        # Built from the configuration and filled by hand. What the file says of the backbone's weights does not count.
        config = type(model).config_class.from_pretrained(folder)
        assert model.config.schema == config.schema and model.schema == config.schema
        plain = type(model)(config)
        plain.load_state_dict(original.state_dict(), strict=True)
        plain.to(next(model.parameters()).dtype)
        return torch.equal(logits_of(plain), logits)

    CONFIG.judge(load, right, refusals=UPSTREAM)


@CONFIG.fuzz(400, kind=st.sampled_from(KINDS), edit=byte_edits())
def test_bytes_of_configurations(kind, edit):
    source, original = checkpoint(kind)
    content = (source / "config.json").read_bytes()
    folder = damaged(kind, "config.json", edit(content))

    def right(model):
        known = {family.model_type for family in FAMILIES}
        plain = type(model)(type(model).config_class.from_pretrained(folder))
        plain.load_state_dict(original.state_dict(), strict=True)
        return model.config.model_type in known and torch.equal(
            logits_of(plain.to(next(model.parameters()).dtype)), logits_of(model)
        )

    CONFIG.judge(lambda: type(original).from_pretrained(folder), right, refusals=UPSTREAM)


NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BOOL": "?", "U8": "u1", "I8": "i1"}


def tensors_of(content):
    """name -> array of a safetensors file, by the text of the format's specification."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            data = content[8 + length + start : 8 + length + end]
            found[name] = np.frombuffer(data, NUMPY[entry["dtype"]]).reshape(entry["shape"])
    return found


def data_edit(edit):
    """Other bytes in the tensors: no damage that could be seen, so they are the weights."""
    share, value = edit

    def apply(content):
        start = 8 + struct.unpack("<Q", content[:8])[0]
        at = start + int(share * (len(content) - start - len(value)))
        return content[:at] + value + content[at + len(value) :]

    return apply


def header_edit(content, edit):
    (length,) = struct.unpack("<Q", content[:8])
    header, _ = edit_json(json.loads(content[8 : 8 + length]), edit)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@WEIGHTS.fuzz(
    2000,
    kind=st.sampled_from(KINDS),
    edit=st.one_of(
        byte_edits(),
        json_edits().map(lambda edit: lambda content: header_edit(content, edit)),
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64)).map(data_edit),
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=64)).map(data_edit),
    ),
)
def test_weights(kind, edit):
    source, original = checkpoint(kind)
    content = edit((source / "model.safetensors").read_bytes())
    folder = damaged(kind, "model.safetensors", content)

    def right(model):
        state = model.state_dict()
        for name, array in tensors_of(content).items():
            np.testing.assert_array_equal(state[name].numpy().astype(array.dtype), array, err_msg=name)
        return True

    WEIGHTS.judge(lambda: type(original).from_pretrained(folder), right, refusals=UPSTREAM)


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 20, 3), dtype=np.uint8))


@PROCESSOR.fuzz(1500, kind=st.sampled_from(("full", "focus")), edit=json_edits())
def test_processor_files(kind, edit):
    source, _ = checkpoint(kind)
    document, _ = edit_json(json.loads((source / "processor_config.json").read_text()), edit)
    folder = damaged(kind, "processor_config.json", json.dumps(document).encode())

    def call():
        return PROCESSORS[kind].from_pretrained(folder)(images=[PICTURE], return_tensors="pt")

    def right(found):
        reference = AutoImageProcessor.from_pretrained(folder, backend="pil")
        expected = reference([PICTURE], return_tensors="pt")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name != "pixel_values":
                assert torch.equal(found[name], value), name
        step = 1.0
        if reference.do_rescale:
            step *= abs(reference.rescale_factor)
        if reference.do_normalize:
            step /= np.abs(np.asarray(reference.image_std)).min()
        torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=1e-4, atol=2.01 * step + 1e-6)
        return True

    PROCESSOR.judge(call, right, refusals=UPSTREAM)


@PROCESSOR.fuzz(400, kind=st.sampled_from(("full", "focus")), edit=byte_edits())
def test_bytes_of_processor_files(kind, edit):
    source, _ = checkpoint(kind)
    folder = damaged(kind, "processor_config.json", edit((source / "processor_config.json").read_bytes()))

    def right(found):
        expected = AutoImageProcessor.from_pretrained(folder, backend="pil")([PICTURE], return_tensors="pt")
        torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=1e-4, atol=0.1)
        return True

    PROCESSOR.judge(
        lambda: PROCESSORS[kind].from_pretrained(folder)(images=[PICTURE], return_tensors="pt"),
        right,
        refusals=UPSTREAM,
    )


TEXTS = ["a person wearing a hat", "is there a Backpack?", "帽子 and naïve café", ""]


@TOKENIZER.fuzz(
    1200,
    name=st.sampled_from(("tokenizer.json", "tokenizer_config.json")),
    edit=st.one_of(
        byte_edits(),
        json_edits().map(lambda edit: lambda content: json.dumps(edit_json(json.loads(content), edit)[0]).encode()),
    ),
)
def test_tokenizer_files(name, edit):
    source, _ = checkpoint("full")
    folder = damaged("full", name, edit((source / name).read_bytes()))

    def right(found):
        # The tokenizer's class of transformers sets the normalizer and the like itself, whatever the file says.
        files = [Tokenizer.from_file(str(source / "tokenizer.json"))]
        with suppress(Exception):  # what the class does not read may be damaged
            files.append(Tokenizer.from_file(str(folder / "tokenizer.json")))
        for reference in files:
            reference.no_padding()
            reference.no_truncation()
        for text, ids in zip(TEXTS, found):
            expected = [reference.encode(text.lower()).ids[:64] for reference in files]
            assert any(ids[: len(one)].tolist() == one for one in expected), text
        return True

    TOKENIZER.judge(lambda: VlmParProcessor.from_pretrained(folder)(text=TEXTS)["input_ids"], right, refusals=UPSTREAM)

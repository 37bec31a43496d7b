"""The backbones that ship: which edition heads are loaded over, and the dtype they come in."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from vlm_par_hf import FocusParModel, VlmParModel, VlmParProcessor, get_schema
from vlm_par_hf.base.weights import hash_weights
from vlm_par_hf.utils import EMBEDDED_BACKBONES, backbone_files, embedded_path


# Saved as heads alone over "embedded" when that was the first edition, by the version of that time.
FIRST = Path(__file__).parent / "heads_of_first_edition"


def picture():
    rows, columns = np.mgrid[0:96, 0:48]
    return Image.fromarray(np.stack([rows * 2, columns * 4, rows + columns], -1).astype(np.uint8))


def test_heads_of_the_first_edition_are_loaded_over_it(tmp_path):
    model, processor = AutoModel.from_pretrained(FIRST), AutoProcessor.from_pretrained(FIRST)
    assert model.config.backbone_name == "embedded-drawings"
    with torch.no_grad():
        logits = model(**processor(images=[picture()], return_tensors="pt")).logits
    expected = torch.tensor([[[2.756589, -2.581847], [3.483620, -4.082833]]])  # of that version
    assert torch.allclose(logits, expected, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_name"] == "embedded-drawings"
    with torch.no_grad():
        again = AutoModel.from_pretrained(tmp_path)(**processor(images=[picture()], return_tensors="pt")).logits
    assert torch.equal(again, logits)


def test_heads_of_no_edition_are_refused(tmp_path):
    shutil.copytree(FIRST, tmp_path / "heads")
    path = tmp_path / "heads" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone_hash": "0" * 64}))
    with pytest.raises(ValueError, match="0{64}.*backbone_hash.*'embedded' with weights.*'embedded-drawings' with"):
        AutoModel.from_pretrained(tmp_path / "heads")


@pytest.mark.parametrize("name", EMBEDDED_BACKBONES)
def test_each_edition_has_a_processor(name):
    assert VlmParProcessor.from_backbone(name)(images=[picture()])["pixel_values"].shape[0] == 1


def test_float16_files_are_loaded_as_float32():
    folder = embedded_path("backbone")
    assert {one.dtype for one in load_file(folder / "model.safetensors").values()} == {torch.float16}
    schema = get_schema("pa100k").subset(["Hat", "Glasses"])
    for model in (
        AutoModel.from_pretrained(folder),
        VlmParModel.from_backbone("embedded", attributes=schema),
        FocusParModel.from_backbone("embedded", attributes=schema),
        AutoModel.from_pretrained(embedded_path("heads")),
    ):
        assert {one.dtype for one in model.parameters()} == {torch.float32}
    half = VlmParModel.from_backbone("embedded", attributes=schema, dtype=torch.bfloat16)
    assert {one.dtype for one in half.parameters()} == {torch.bfloat16}


def test_what_ships_is_small():
    for kind, limit in (("backbone", 16), ("heads_pa100k", 6), ("heads_rendered", 6)):
        assert sum(path.stat().st_size for path in embedded_path(kind).iterdir()) <= limit << 20


def test_the_hash_of_weights_is_over_the_file():
    first = hash_weights(backbone_files("embedded-drawings"))
    assert (
        json.loads((FIRST / "config.json").read_text())["backbone_hash"]
        == first
        != hash_weights(backbone_files("embedded"))
    )
    for kind in ("heads_pa100k", "heads_rendered"):
        config = json.loads((embedded_path(kind) / "config.json").read_text())
        assert config["backbone_hash"] == hash_weights(backbone_files(config["backbone_name"]))

"""Files of weights: found as a variant and in shards, and refused where their header lies."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_tests.tiny import randomize, tiny_inputs, tiny_model
from vlm_par_hf.base.weights import check_dtypes, find_weights, hash_weights


@pytest.fixture(scope="module", params=["full", "heads"])
def model(request, tmp_path_factory):
    model = randomize(tiny_model())
    if request.param == "heads":
        backbone = tmp_path_factory.mktemp("weights") / "backbone"
        model.vlm.save_pretrained(backbone)
        model.config.save_backbone, model.config.backbone_name = False, str(backbone)
    return model


@pytest.mark.parametrize(
    ("saved", "loaded", "count"),
    [({"variant": "fp16"}, {"variant": "fp16"}, 1), ({"max_shard_size": "10KB"}, {}, 2),
     ({"max_shard_size": "10KB", "variant": "fp16"}, {"variant": "fp16"}, 2)],
)  # fmt: skip
def test_a_variant_and_shards_come_back(model, tmp_path, saved, loaded, count):
    model.save_pretrained(tmp_path, **saved)
    assert len(find_weights(tmp_path, **loaded)) >= count
    with torch.no_grad():
        found = AutoModel.from_pretrained(tmp_path, **loaded)(**tiny_inputs()).logits
        assert torch.equal(found, model(**tiny_inputs()).logits)


def test_whole_numbers_are_no_weights(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "attribute_heads.classifier_weight"
    save_file({**tensors, name: tensors[name].to(torch.int64)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{name}.* has dtype I64, expected one like torch.float32"):
        AutoModel.from_pretrained(tmp_path)
    save_file({**tensors, name: tensors[name].to(torch.float16)}, path, metadata={"format": "pt"})
    AutoModel.from_pretrained(tmp_path)


def test_an_index_names_files_beside_it(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}))
    assert [path.name for path in find_weights(tmp_path)] == ["model-00001-of-00001.safetensors"]
    for content in (
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {}},
        {},
        [],
        {"weight_map": {"a": 1}},
    ):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"index\.json is damaged"):
            find_weights(tmp_path)


def header(entries, size=8):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"1234567", struct.pack("<Q", 1 << 60) + b"{}", struct.pack("<Q", 2) + b"[]", header({"a": 1}),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [8, 0]}}),
        header({"a": {"dtype": 1, "shape": [2], "data_offsets": [0, 8]}}),
        header({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}),
        struct.pack("<Q", 20_000) + b"[" * 20_000,
    ],
)  # fmt: skip
def test_a_damaged_header_is_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for call in (lambda: hash_weights(str(tmp_path)), lambda: check_dtypes(path, {})):
        with pytest.raises(ValueError, match=r"model\.safetensors: a file of weights is damaged"):
            call()

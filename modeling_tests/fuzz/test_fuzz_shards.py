"""Folders of features whose files were damaged, converted, cut, mixed up or edited."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modeling_tests.fuzz.fuzzing import Area
from modeling_tests.fuzz.mutations import damaged_bytes, damages
from vlm_par_hf.features import FeatureStore, FeatureView


AREA = Area("shards", "the features as they were computed")
IMAGES, SHAPE, ROWS = 7, (3, 4, 2), 3
VIEWS = {name: FeatureView.from_name(name, pad=0.05, seed=0) for name in ("identity", "flip")}
DTYPES = ("float32", "float16", "bfloat16", "int8")
STATE: dict = {}


def encoded(store, shard):
    """The features of a shard: numbers that depend on the view and the row."""
    generator = torch.Generator().manual_seed(1000 * (shard.view == "flip") + shard.index)
    patches = torch.randn(len(shard), *SHAPE[:2], generator=generator)
    pooled = torch.randn(len(shard), SHAPE[2], generator=generator)
    return store.encode(patches, pooled, torch.rand(len(shard), SHAPE[0], generator=generator) > 0.3)


def fill(folder, dtype):
    store = FeatureStore.create(
        IMAGES, lambda: SHAPE, dtype, VIEWS, directory=folder, describe={"images": "these"}, rows_per_shard=ROWS
    )
    for shard in store.missing():
        store.put(shard, encoded(store, shard))
    return store


def read(store):
    return {view: store.read(range(IMAGES), [view] * IMAGES) for view in VIEWS}


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    STATE["work"] = root / "work"
    for dtype in DTYPES:
        fill(root / dtype, dtype)
        STATE[dtype] = root / dtype, read(FeatureStore.open(root / dtype))


def is_right(dtype):
    def right(found):
        for view, tensors in STATE[dtype][1].items():
            for name, tensor in tensors.items():
                assert torch.equal(found[view][name], tensor), f"{name} of {view}"
        return True

    return right


def copy(dtype) -> Path:
    shutil.rmtree(STATE["work"], ignore_errors=True)
    shutil.copytree(STATE[dtype][0], STATE["work"], ignore=lambda folder, names: {".locks", ".lock"} & set(names))
    return STATE["work"]


def judge(dtype, opened):
    folder = STATE["work"]
    call = (lambda: read(FeatureStore.open(folder))) if opened else (lambda: read(fill(folder, dtype)))
    AREA.judge(call, is_right(dtype))


FILES = ("identity-00000.safetensors", "identity-00002.safetensors", "flip-00001.safetensors")


@AREA.fuzz(
    2000,
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from((*FILES, "manifest.json")),
    damage=damages(),
    opened=st.booleans(),
)
def test_bytes_of_a_file(dtype, name, damage, opened):
    path = copy(dtype) / name
    path.write_bytes(damaged_bytes(path.read_bytes(), damage))
    judge(dtype, opened)


@AREA.fuzz(1000, dtype=st.sampled_from(DTYPES), name=st.sampled_from(FILES), damage=damages(), opened=st.booleans())
def test_the_header_of_a_shard(dtype, name, damage, opened):
    """With a length that fits: dtypes, shapes, offsets, names, the description."""
    path = copy(dtype) / name
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = damaged_bytes(data[8 : 8 + length], ("json", *damage[1:]))
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    judge(dtype, opened)


CHANGES = {
    "half": lambda value: value.half() if value.is_floating_point() else value,
    "float": lambda value: value.float() if value.is_floating_point() else value,
    "integers": lambda value: value.to(torch.int32),
    "fewer rows": lambda value: value[:-1],
    "more rows": lambda value: torch.cat([value, value[:1]]),
    "other order": lambda value: value.flip(0),
    "rounded": lambda value: value.round() if value.is_floating_point() else value,
    "transposed": lambda value: value.transpose(0, -1),
    "not finite": lambda value: value / 0 if value.is_floating_point() else value,
}


@AREA.fuzz(
    1000,
    dtype=st.sampled_from(DTYPES),
    name=st.sampled_from(FILES),
    change=st.sampled_from(sorted(CHANGES)),
    tensor=st.sampled_from(["patch_embeds", "image_embeds", "patch_mask", "all"]),
    opened=st.booleans(),
)
def test_tensors_that_were_saved_anew(dtype, name, change, tensor, opened):
    """As a converter leaves a file: other tensors under the old description."""
    path = copy(dtype) / name
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for key in tensors:
        if tensor in (key, "all"):
            tensors[key] = CHANGES[change](tensors[key].clone()).contiguous()
    save_file(tensors, path, metadata)
    judge(dtype, opened)


@AREA.fuzz(
    600,
    dtype=st.sampled_from(DTYPES),
    other=st.sampled_from(DTYPES),
    name=st.sampled_from(FILES),
    source=st.sampled_from(("identity-00001.safetensors", "flip-00001.safetensors", "flip-00002.safetensors", None)),
    opened=st.booleans(),
)
def test_files_that_were_mixed_up_or_lost(dtype, other, name, source, opened):
    path = copy(dtype) / name
    if source is None:
        path.unlink()
    else:
        shutil.copyfile(STATE[other][0] / source, path)
    judge(dtype, opened)


def test_a_manifest_says_what_it_is():
    manifest = json.loads((STATE["int8"][0] / "manifest.json").read_text())
    assert manifest["images"] == IMAGES and manifest["rows_per_shard"] == ROWS

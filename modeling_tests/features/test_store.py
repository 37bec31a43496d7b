"""Features in a folder: the same as in memory, computed once whatever happens, refused where they are of other things.

This file is also the script of the processes that are killed or that share the work: `python test_cache.py FOLDER`.
"""

import contextlib
import copy
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from modeling_tests.bands import build_data
from modeling_tests.tiny import tiny_model, tiny_processor, tiny_schema
from modeling_tests.training_runs import Interrupt, assert_same_weights, heads, run
from vlm_par_hf.data import ParCollator
from vlm_par_hf.features import FeatureView
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.training import FeatureDataset, FeatureStore, compute_features, feature_views


ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
VIEWS = feature_views(True, 1)


@pytest.fixture
def model():
    return tiny_model("naflex")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("naflex")


def compute(model, rows, processor, folder=None, **options):
    options = {"views": VIEWS, "rows_per_shard": 10, "batch_size": 4, "progress": False, **options}
    return compute_features(model, rows, processor, directory=folder, **options)


@contextlib.contextmanager
def counting(model):
    """How many images the backbone sees in the block."""
    seen, compute_images = [0], type(model).get_image_features

    def count(self, pixel_values, *args, **kwargs):
        seen[0] += len(pixel_values)
        return compute_images(self, pixel_values, *args, **kwargs)

    type(model).get_image_features = count
    try:
        yield seen
    finally:
        type(model).get_image_features = compute_images


def everything(features):
    rows = range(len(features))
    return {view: features.store.read(rows, [view] * len(rows)) for view in features.views}


def assert_same(found, expected):
    found, expected = everything(found), everything(expected)
    assert found.keys() == expected.keys()
    for view, tensors in expected.items():
        for name, tensor in tensors.items():
            assert torch.equal(found[view][name], tensor), (view, name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_folder_holds_what_memory_would(model, processor, data, tmp_path, dtype):
    found = compute(model, data["train"], processor, tmp_path / "cache", dtype=dtype)
    expected = compute(model, data["train"], processor, dtype=dtype)
    assert_same(found, expected)
    assert found.nbytes == expected.nbytes
    assert found.labels.tolist() == expected.labels.tolist()
    files = sorted(path.name for path in (tmp_path / "cache").glob("*.safetensors"))
    assert files == [f"{view}-{index:05d}.safetensors" for view in sorted(VIEWS) for index in range(5)]
    payload = sum((tmp_path / "cache" / file).stat().st_size for file in files)
    assert found.nbytes < payload < found.nbytes + 1000 * len(files), "the size that is announced is that on disk"
    assert not list((tmp_path / "cache").glob(".*.tmp"))
    manifest = (tmp_path / "cache" / "manifest.json").stat()
    assert {(tmp_path / "cache" / file).stat().st_mode for file in files} == {manifest.st_mode}, (
        "a cache may be shared"
    )


def test_a_second_call_runs_no_backbone_and_draws_nothing(model, processor, data, tmp_path):
    torch.manual_seed(0)
    with counting(model) as seen:
        first = compute(model, data["train"], processor, tmp_path)
        assert seen[0] == 3 * 48 + 1, "one more for the shape"
    state = torch.random.get_rng_state()
    with counting(model) as seen:
        again = compute(tiny_model("naflex"), data["train"], processor, tmp_path)
        assert seen[0] == 0
    assert_same(again, first)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(0)
    assert torch.equal(torch.random.get_rng_state(), state), "whether features are there decides no random number"


def test_more_views_are_added_and_fewer_are_taken(model, processor, data, tmp_path):
    compute(model, data["train"], processor, tmp_path, views=("identity",))
    with counting(model) as seen:
        both = compute(model, data["train"], processor, tmp_path, views=("identity", "flip"))
        assert seen[0] == 48
    assert both.views == ("identity", "flip")
    with counting(model) as seen:
        assert compute(model, data["train"], processor, tmp_path, views=("identity",)).views == ("identity",)
        assert seen[0] == 0
    assert sorted(FeatureStore.open(tmp_path).views) == ["flip", "identity"]


def test_other_label_spaces_read_the_same_folder(model, processor, data, tmp_path):
    compute(model, data["train"], processor, tmp_path)
    schema = AttributeSchema(tiny_schema(kway=True).to_list()[3:])
    labels = np.arange(96).reshape(48, 2) % 3
    other = Dataset.from_dict({"image": data["train"]["image"], "labels": labels.tolist()})
    other = other.cast_column("image", data["train"].features["image"])
    narrow = tiny_model("naflex", attributes=schema, fusion="image_to_text")
    with counting(model) as seen:
        found = compute(narrow, other, processor, tmp_path, flip=1.0)
        assert seen[0] == 0
    mirrored = schema.mirror_labels(labels)
    assert [item["labels"].tolist() for item in found] == mirrored.tolist() != labels.tolist()


def test_features_of_something_else_are_refused_and_the_differences_named(model, processor, data, tmp_path):
    compute(model, data["train"], processor, tmp_path)

    def refused(*expected, model=model, rows=data["train"], processor=processor, **options):
        with pytest.raises(ValueError, match="of something else; name another folder or delete it") as error:
            compute(model, rows, processor, tmp_path, **options)
        lines = [line.strip().partition(":")[0] for line in str(error.value).splitlines()[1:]]
        assert lines == list(expected), str(error.value)

    refused("backbone weights_sha256", model=tiny_model("naflex", seed=1))
    refused("backbone weights_sha256", model=tiny_model("naflex").bfloat16())
    refused("images count", "images sha256", rows=data["train"].select(range(47)))
    refused("images sha256", rows=data["train"].select([1, 0, *range(2, 48)]))
    refused("dtype", dtype="float32")
    refused("view crop1 pad", pad=0.1)
    refused("view crop1 seed", crop_seed=5)
    small = tiny_processor("naflex")
    small.image_processor.max_num_patches = 9
    refused("processor max_num_patches", processor=small)
    squashed = tiny_processor("naflex")
    squashed.patch_grid = [4, 2]
    refused("processor patch_grid", processor=squashed)
    refused("backbone weights_sha256", "dtype", model=tiny_model("naflex", seed=1), dtype="float32")
    fixed = tiny_model("fixed")
    with pytest.raises(ValueError, match="backbone model_type: 'siglip2' there, 'siglip' now"):
        compute(fixed, data["train"], tiny_processor("fixed"), tmp_path)
    # The text tower and the heads change no feature.
    with torch.no_grad():
        for parameter in (*model.vlm.text_model.parameters(), *model.attribute_heads.parameters()):
            parameter.add_(1)
    with counting(model) as seen:
        compute(model, data["train"], processor, tmp_path)
        assert seen[0] == 0


def test_image_files_may_move_and_may_not_change(model, processor, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        Image.fromarray(rng.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")

    def rows():
        return [{"image": path if index else str(path)} for index, path in enumerate(sorted(folder.iterdir()))]

    compute(model, rows(), processor, tmp_path / "cache")
    folder = folder.rename(tmp_path / "elsewhere")
    with counting(model) as seen:
        compute(model, rows(), processor, tmp_path / "cache")
        # The same files as bytes, as a parquet export has them.
        packed = [{"image": {"bytes": Path(row["image"]).read_bytes(), "path": None}} for row in rows()]
        compute(model, packed, processor, tmp_path / "cache")
        assert seen[0] == 0
    # Pictures in memory have no file: their pixels count.
    pictures = [{"image": Image.open(row["image"]).copy()} for row in rows()]
    compute(model, pictures, processor, tmp_path / "pictures")
    pictures[1]["image"].putpixel((3, 3), (1, 2, 3))
    for changed, cache in ((pictures, "pictures"), (rows(), "cache")):
        if cache == "cache":
            shutil.copyfile(folder / "0.png", folder / "2.png")
        with pytest.raises(ValueError, match="images sha256"):
            compute(model, changed, processor, tmp_path / cache)


def test_damaged_and_foreign_shards_are_computed_again(model, processor, data, tmp_path, caplog):
    cache = tmp_path / "cache"
    expected = compute(model, data["train"], processor)
    compute(model, data["train"], processor, cache)
    other = tmp_path / "other"
    compute(tiny_model("naflex", seed=1), data["train"], processor, other)
    cut = cache / "flip-00002.safetensors"
    os.truncate(cut, cut.stat().st_size - 1)
    (cache / "flip-00003.safetensors").write_bytes(b"")
    (cache / "crop1-00000.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not a header at all")
    shutil.copyfile(cache / "identity-00001.safetensors", cache / "identity-00002.safetensors")
    shutil.copyfile(other / "identity-00004.safetensors", cache / "identity-00004.safetensors")
    with pytest.raises(ValueError, match="lacks 5 shards, the first is identity-00002.safetensors"):
        FeatureStore.open(cache, VIEWS)
    caplog.clear()
    with caplog.at_level(logging.WARNING), counting(model) as seen:
        found = compute(model, data["train"], processor, cache)
        assert seen[0] == 10 + 8 + 10 + 10 + 10
    named = {record.getMessage().split(" is damaged")[0].rpartition("/")[2] for record in caplog.records}
    assert named == {
        "flip-00002.safetensors", "flip-00003.safetensors", "crop1-00000.safetensors", "identity-00002.safetensors",
        "identity-00004.safetensors",
    }  # fmt: skip
    assert_same(found, expected)


def test_a_shard_is_compared_with_its_checksum_rows_dtype_and_shape(model, processor, data, tmp_path, caplog):
    expected = compute(model, data["train"], processor)
    compute(model, data["train"], processor, tmp_path)
    files = [tmp_path / f"{name}.safetensors" for name in ("identity-00001", "flip-00000", "crop1-00002")]
    flipped = bytearray(files[0].read_bytes())
    flipped[-5] ^= 1
    files[0].write_bytes(flipped)
    for path, change in (
        (files[1], lambda name, value: value.float() if name == "patch_embeds" else value),
        (files[2], lambda name, value: value[:-1]),
    ):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        # As whoever converts or cuts a file leaves it: the description is the old one.
        save_file({name: change(name, value).contiguous() for name, value in load_file(path).items()}, path, metadata)
    with pytest.raises(ValueError, match="lacks 3 shards, the first is identity-00001.safetensors"):
        FeatureStore.open(tmp_path, VIEWS)
    with counting(model) as seen:
        assert_same(compute(model, data["train"], processor, tmp_path), expected)
        assert seen[0] == 30
    assert all(f"{path.name} is damaged or belongs to other features: it is computed again" in caplog.text
               for path in files)  # fmt: skip
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for change in ({"images": 40}, {"rows_per_shard": 12}, {"shape": [1, 2, 3]}, {"views": {}}):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match="manifest.json' is damaged: delete the folder"):
            FeatureStore.open(tmp_path, VIEWS)
        with pytest.raises(ValueError, match="manifest.json' is damaged: delete the folder"):
            compute(model, data["train"], processor, tmp_path)
    del manifest["checksum"]
    manifest["depends_on"]["format"] = 1
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="of an earlier version, which kept no checksums"):
        compute(model, data["train"], processor, tmp_path)


def test_a_folder_is_opened_without_model_and_images(model, processor, data, tmp_path):
    expected = compute(model, data["train"], processor, tmp_path)
    store = FeatureStore.open(tmp_path, VIEWS)
    found = FeatureDataset(store, expected.labels, schema=tiny_schema(), seed=4)
    assert_same(found, expected)
    assert FeatureStore.open(tmp_path, ["identity"]).nbytes == store.nbytes / 3
    with pytest.raises(ValueError, match=r"views=\['crop2'\] are not in .*: it has \['crop1', 'flip', 'identity'\]"):
        FeatureStore.open(tmp_path, ["identity", "crop2"])
    with pytest.raises(FileNotFoundError, match="has no manifest.json: expected a folder of features"):
        FeatureStore.open(tmp_path / "nothing")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="manifest.json' is not valid JSON"):
        FeatureStore.open(tmp_path)


def test_a_folder_of_other_things_is_left_alone(model, processor, data, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds safetensors files and no manifest.json"):
        compute(model, data["train"], processor, tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["model.safetensors"]


def test_the_room_on_disk_is_checked_first_and_what_is_there_counts(
    model, processor, data, tmp_path, monkeypatch, caplog
):
    free = {"bytes": 2**30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": free["bytes"]}))
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        compute(model, data["train"], processor, tmp_path, views=("identity",))
    assert f"features of 48 images x 1 view(s) x 12 patches x 32 as float16: 0.00 GiB in {tmp_path}" in caplog.text
    assert "1.0 GiB of disk are free" in caplog.text
    free["bytes"] = 0
    compute(model, data["train"], processor, tmp_path, views=("identity",))
    with (
        pytest.raises(ValueError, match="another 0.00 GiB in .* and 0.00 GiB are free: name a folder on another disk"),
        counting(model) as seen,
    ):
        compute(model, data["train"], processor, tmp_path)
    assert seen[0] == 0


def test_the_announced_size_at_full_scale():
    """PA-100K on a base-size backbone: the arithmetic that decides whether it fits, without computing anything."""
    gib = {
        dtype: FeatureStore.create(100_000, lambda: (128, 768, 768), dtype, {"identity": FeatureView()}).nbytes / 2**30
        for dtype in ("float32", "float16", "bfloat16", "int8")
    }
    assert gib["float16"] == gib["bfloat16"] == pytest.approx(18.31 + 0.15, abs=0.02)
    assert gib["float32"] == pytest.approx(2 * 18.46, abs=0.03)
    assert gib["int8"] == pytest.approx(9.16 + 0.15 + 0.05, abs=0.02)


def test_workers_see_the_epoch_and_read_the_same(model, processor, data, tmp_path):
    features = compute(model, data["train"], processor, tmp_path)
    loader = DataLoader(
        features, batch_size=16, num_workers=2, persistent_workers=True, collate_fn=ParCollator()
    )  # fmt: skip
    epochs = []
    for epoch in (0, 1):
        features.set_epoch(epoch)
        found = torch.cat([batch["patch_embeds"] for batch in loader])
        assert torch.equal(found, ParCollator()(features.__getitems__(range(48)))["patch_embeds"])
        epochs.append(found)
    assert not torch.equal(*epochs)


def _first_row(features, queue):
    queue.put(features[0]["image_embeds"].tolist())


def test_a_copy_maps_the_files_itself(model, processor, data, tmp_path):
    features = compute(model, data["train"], processor, tmp_path)
    expected = features[0]["image_embeds"].tolist()
    assert features.store._tensors and not copy.copy(features.store)._tensors
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_first_row, args=(features, queue))
    process.start()
    assert queue.get(timeout=120) == expected
    process.join()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of the process from /proc")
def test_reading_takes_no_memory_of_its_own(tmp_path):
    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    size = 24 * 2**20  # per shard
    rows = size // (64 * 256 * 2)
    store = FeatureStore.create(
        6 * rows, lambda: (64, 256, 256), "float16", {"identity": FeatureView()}, directory=tmp_path,
        rows_per_shard=rows,
    )  # fmt: skip
    for shard in store.missing():
        tensors = torch.randn(len(shard), 64, 256), torch.randn(len(shard), 256), torch.ones(len(shard), 64)
        store.put(shard, store.encode(*tensors))
        del tensors
    features = FeatureDataset(FeatureStore.open(tmp_path))
    order = np.random.default_rng(0).permutation(len(features)).tolist()
    features.__getitems__(order[:64])
    before, seen = anonymous(), 0
    for start in range(0, len(order), 64):
        seen += len(features.__getitems__(order[start : start + 64]))
    # Six shards were read; what the heap of a long test process does by itself is a few MB.
    assert anonymous() - before < 2 * size, "shards were read into memory"
    assert seen == len(features) and features.nbytes > 6 * size


def losses(result):
    return [
        {name: row[name] for name in ("step", "loss", "grad_norm", "eval_loss", "eval_mA") if name in row}
        for row in result.log_history
    ]


def assert_same_curve(found, expected, tolerance=1e-6):
    found, expected = losses(found), losses(expected)
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for mine, other in zip(found, expected):
        for name, value in other.items():
            assert mine[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, other["step"])


@pytest.mark.parametrize("fusion", ["text_to_image", "image_to_text", "none"])
def test_the_loss_curve_from_a_float32_cache_is_that_from_images(data, tmp_path, fusion):
    common = {"flip": 0.0, "pad": 0.0, "logging_steps": 1, "epochs": 2, "learning_rate": 1e-3}
    images = run(data, tmp_path / "images", model=tiny_model("naflex", fusion=fusion), **common)
    cached = run(
        data, tmp_path / "cached", model=tiny_model("naflex", fusion=fusion), cache_features=tmp_path / "cache",
        feature_dtype="float32", **common,
    )  # fmt: skip
    assert len(losses(images)) > 10
    assert_same_curve(cached, images)


def test_runs_with_other_seeds_fusions_and_recipes_share_the_cache(data, tmp_path):
    cache = tmp_path / "cache"
    model = tiny_model("naflex")
    options = {"epochs": 1, "cache_features": cache, "feature_crops": 2, "feature_dtype": "int8"}
    first = run(data, tmp_path / "first", model=model, **options)
    assert sorted(path.name for path in cache.iterdir()) == ["train", "validation"]
    assert sorted(FeatureStore.open(cache / "train").views) == sorted(feature_views(True, 2))
    assert list(FeatureStore.open(cache / "validation").views) == ["identity"]
    with counting(model) as seen:
        run(data, tmp_path / "seed", seed=7, flip=0.2, **options)
        run(data, tmp_path / "head", model=tiny_model("naflex", fusion="image_to_text"), learning_rate=1e-3, **options)
        again = run(data, tmp_path / "again", **options)
        assert seen[0] == 0
    assert_same_curve(again, first, tolerance=0)
    memory = run(data, tmp_path / "memory", **{**options, "cache_features": None, "precompute_features": True})
    assert_same_curve(memory, first, tolerance=0)


def test_an_interrupted_run_goes_on_from_its_cache(data, tmp_path):
    options = {"eval_steps": 3, "cache_features": tmp_path / "cache", "feature_crops": 1}
    whole = run(data, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", callbacks=[Interrupt(4)], **options)
    shutil.move(tmp_path / "cache", tmp_path / "moved")
    continued = run(data, tmp_path / "cut", resume=True, **{**options, "cache_features": tmp_path / "moved"})
    assert_same_weights(heads(continued.model), heads(whole.model), atol=0, rtol=0)
    with pytest.raises(ValueError, match="feature_crops: 1 then, 2 now"):
        run(data, tmp_path / "cut", resume=True, **{**options, "feature_crops": 2})


def test_crops_are_for_features(data, tmp_path):
    with pytest.raises(ValueError, match="feature_crops=1: crops are kept only with features"):
        run(data, tmp_path / "run", feature_crops=1)


# Processes: killed, sharing, taking over


def work(folder: Path, seconds_per_image: float) -> None:
    """Fills the cache slowly and says at the end how many images this process ran."""
    model, data = tiny_model("naflex"), build_data(tiny_schema())
    compute_images, seen = type(model).get_image_features, []

    def slowly(self, pixel_values, *args, **kwargs):
        seen.append(len(pixel_values))
        time.sleep(seconds_per_image * len(pixel_values))
        return compute_images(self, pixel_values, *args, **kwargs)

    type(model).get_image_features = slowly
    compute(model, data["train"], tiny_processor("naflex"), folder, workers=1)
    print(sum(seen))


def start(folder, count=1, seconds_per_image=0.01):
    """`count` processes that begin together, however long each of them took to import what it needs."""
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(seconds_per_image)],
            cwd=ROOT, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )
        for _ in range(count)
    ]  # fmt: skip
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * count
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return processes


def wait_for_shards(folder, count, process):
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.safetensors"))) < count:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_9_loses_one_shard_at_most(model, processor, data, tmp_path):
    (process,) = start(tmp_path / "cache")
    wait_for_shards(tmp_path / "cache", 4, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.safetensors")}
    assert 4 <= len(kept) < 15
    (tmp_path / "cache" / f".{VIEWS[-1]}-00004.safetensors.tmp").write_bytes(b"half a shard")
    with counting(model) as seen:
        found = compute(model, data["train"], processor, tmp_path / "cache")
        assert seen[0] == 3 * 48 - sum(8 if path.name.endswith("4.safetensors") else 10 for path in kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_same(found, compute(model, data["train"], processor))
    assert not list((tmp_path / "cache").glob(".*.tmp"))


def test_processes_share_the_work_and_one_takes_over_for_another(model, processor, data, tmp_path):
    cache = tmp_path / "cache"
    processes = start(cache, count=3, seconds_per_image=0.02)
    wait_for_shards(cache, 2, processes[0])
    os.killpg(processes[0].pid, signal.SIGKILL)
    counts = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0, 0]
    shares = [int(count) for count in counts[1:]]
    # One image more per process that found no shape there; the killed one had finished a few shards.
    assert min(shares) > 10 and sum(shares) <= 3 * 48 + 2, shares
    assert_same(compute(model, data["train"], processor, cache), compute(model, data["train"], processor))


def test_a_shard_that_another_process_computes_is_waited_for(model, processor, data, tmp_path, caplog, monkeypatch):
    compute(model, data["train"], processor, tmp_path)
    kept = tmp_path / "kept"
    (tmp_path / "flip-00001.safetensors").rename(kept)
    lock = FileLock(tmp_path / ".locks" / "flip-00001.safetensors")
    lock.acquire()

    def other_process_finishes(seconds):
        kept.rename(tmp_path / "flip-00001.safetensors")
        lock.release()

    monkeypatch.setattr(time, "sleep", other_process_finishes)
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"), counting(model) as seen:
        compute(model, data["train"], processor, tmp_path)
        assert seen[0] == 0
    assert "waiting for 1 shards that other processes compute" in caplog.text


def test_an_error_gives_the_shard_free(model, processor, data, tmp_path):
    rows = [data["train"][index] for index in range(20)]
    broken = [*rows[:13], {**rows[13], "image": tmp_path / "missing.png"}, *rows[14:]]
    for position, row in enumerate(broken):
        row["image"] = row["image"] if position == 13 else _saved(row["image"], tmp_path / f"{position}.png")
    _saved(rows[13]["image"], tmp_path / "missing.png")
    (tmp_path / "missing.png").write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(ValueError, match="missing.png"):
            compute(model, broken, processor, tmp_path / "cache", views=("identity",))
    assert [path.name for path in (tmp_path / "cache").glob("*.safetensors")] == ["identity-00000.safetensors"]


def _saved(picture, path):
    picture.save(path)
    return path


@pytest.mark.slow
def test_torchrun_fills_one_cache_and_trains_from_it(tmp_path):
    options = ["train", "synthetic", "--num-train", 64, "--num-validation", 20, "--num-test", 2, "--epochs", 1,
               "--max-num-patches", 32, "--no-progress", "--feature-crops", 1]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher, size in (("two", torchrun, 4), ("one", [], 8)):
        command = [sys.executable, *launcher, "-m", "vlm_par_hf", *options, "--batch-size", size,
                   "--cache-features", tmp_path / f"cache_{name}", "--out", tmp_path / name]  # fmt: skip
        done = subprocess.run(list(map(str, command)), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("features of 64 images x 3 view(s)") == 1
    for split in ("train", "validation"):
        one, two = (FeatureDataset(FeatureStore.open(tmp_path / name / split), schema=tiny_schema())
                    for name in ("cache_one", "cache_two"))  # fmt: skip
        assert_same(two, one)
    summaries = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["steps"] == summaries[1]["steps"] == 8
    assert summaries[0]["validation_mA"] == pytest.approx(summaries[1]["validation_mA"], abs=0.02)


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    work(Path(sys.argv[1]), float(sys.argv[2]))

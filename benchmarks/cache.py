"""Training from cached features, compared with training from images: time of an epoch, speed of reading the cache.

    python benchmarks/cache.py                    # everything
    python benchmarks/cache.py --only reads       # a part; the results of the others stay as they are

Both ways of training run in turns in one process, on the same images, batches, heads and optimizer, forward, backward
and step included; ratios are of medians. `base` has the size of google/siglip2-base-patch16-naflex and random weights
(speed does not depend on them), `embedded` is the small backbone in the package. The time to fill the cache is not
included: one pass of the backbone over the images, about one epoch from images per view.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from models import base_model
from torch.utils.data import DataLoader

from vlm_par_hf import VlmParModel, VlmParProcessor, dataset_schema, get_schema, load_par_dataset
from vlm_par_hf.data import AugmentedDataset, ParCollator
from vlm_par_hf.features import FeatureView
from vlm_par_hf.training import FeatureDataset, FeatureStore, compute_features
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("cache")

BATCH = 64
PATCHES = 128  # a crop of 256 x 128 in patches of 16
GIB = 2**30


class Relabelled:
    """Drawings with random labels of another schema: speed does not depend on the labels."""

    def __init__(self, images, schema):
        self.images = images
        rng = np.random.default_rng(0)
        self.labels = np.stack([rng.integers(0, one.num_labels, len(images)) for one in schema], 1)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index]["image"], "labels": self.labels[index]}


def epoch(model, loader, optimizer) -> float:
    """Seconds of one pass: batches, forward, backward, step."""
    model.train()
    started = time.perf_counter()
    for batch in loader:
        model(**{name: value.to(model.device) for name, value in batch.items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(model, processor, data, folder: Path, rounds: int) -> dict:
    features = compute_features(model, data, processor, BATCH, directory=folder, progress=False)
    order = {"batch_size": BATCH, "shuffle": True}
    loaders = {
        "images": DataLoader(AugmentedDataset(data), collate_fn=ParCollator(processor), **order),
        "cache": DataLoader(features, collate_fn=ParCollator(), **order),
    }
    optimizer = torch.optim.AdamW(model.parameter_groups(1e-3), lr=1e-3, fused=True)  # as `train` makes it
    epoch(model, loaders["cache"], optimizer)
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, loader in loaders.items():
            seconds[name].append(epoch(model, loader, optimizer))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "images": len(data),
        "faster": medians["images"] / medians["cache"],
        "rounds": rounds,
        "seconds": seconds,
        "cache_gib": features.nbytes / GIB,
    }
    logger.info("  epoch from the cache %.1f times faster than from images", result["faster"])
    return result


def measure_base(args) -> dict:
    drawings = load_par_dataset("synthetic", num_train=args.base_images, num_validation=1, num_test=1)["train"]
    processor = VlmParProcessor.from_backbone("embedded", max_num_patches=PATCHES)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for fusion in ("text_to_image", "image_to_text", "none"):
            logger.info("base size, %s", fusion)
            model = base_model(get_schema("pa100k"), fusion, alignment="logit").to(args.device)
            data = Relabelled(drawings, model.config.schema)
            results[fusion] = compare(model, processor, data, Path(folder), args.rounds)
    return results


def measure_embedded(args) -> dict:
    data = load_par_dataset("synthetic", num_train=args.embedded_images, num_validation=1, num_test=1)["train"]
    processor = VlmParProcessor.from_backbone("embedded")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for fusion in ("text_to_image", "image_to_text", "none"):
            logger.info("embedded, %s", fusion)
            model = VlmParModel.from_backbone("embedded", attributes=dataset_schema(data), fusion=fusion)
            results[fusion] = compare(model.to(args.device), processor, data, Path(folder), args.rounds)
    return results


def memory() -> dict[str, float]:
    lines = Path("/proc/self/status").read_text().splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) / 2**20 for name in ("RssAnon", "RssFile")}


def read_all(features: FeatureDataset, order: list[int]) -> tuple[float, float]:
    """Seconds, and by how many GiB the process' own memory grew at most."""
    start, largest = memory()["RssAnon"], 0.0
    started = time.perf_counter()
    for first in range(0, len(order), BATCH):
        features.__getitems__(order[first : first + BATCH])
        largest = max(largest, memory()["RssAnon"] - start)
    return time.perf_counter() - started, largest


def measure_reads(args) -> dict:
    """Batches of 64 from a large cache, in order and shuffled, from the page cache and (if the system drops its cached
    pages when asked) from the disk."""
    results = {}
    for dtype in ("float16", "int8"):
        with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
            count = int(args.gib * GIB / (PATCHES * 768 * 2))
            shape = (PATCHES, 768, 768)
            store = FeatureStore.create(count, lambda s=shape: s, dtype, {"identity": FeatureView()}, directory=folder)
            rows = store.encode(torch.randn(1, *shape[:2]), torch.randn(1, 768), torch.ones(1, PATCHES))
            for shard in store.missing():
                store.put(
                    shard, {name: value.repeat(len(shard), *[1] * (value.ndim - 1)) for name, value in rows.items()}
                )
            orders = {"in order": list(range(count)), "shuffled": np.random.default_rng(0).permutation(count).tolist()}
            seconds: dict[str, list[float]] = {}
            grown, file_pages = 0.0, 0.0
            for round_ in range(2 * args.rounds):
                for name, order in orders.items():
                    # Mapped anew each time; every second round is read from the disk.
                    features = FeatureDataset(FeatureStore.open(folder))
                    cold = round_ % 2 == 1
                    if cold:
                        drop_pages(Path(folder))
                    taken, more = read_all(features, order)
                    grown, file_pages = max(grown, more), max(file_pages, memory()["RssFile"])
                    seconds.setdefault(f"{name}, {'disk' if cold else 'page cache'}", []).append(taken)
                    del features
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            results[dtype] = {
                "images": count,
                "cache_gib": store.nbytes / GIB,
                "own_memory_grew_gib": grown,
                "mapped_pages_gib": file_pages,
                "images_per_second": {name: count / value for name, value in medians.items()},
                "shuffled_over_in_order_page_cache": medians["shuffled, page cache"] / medians["in order, page cache"],
                "shuffled_over_in_order_disk": medians["shuffled, disk"] / medians["in order, disk"],
            }
            logger.info("reads, %s: %s", dtype, json.dumps(results[dtype], indent=2))
    return results


def drop_pages(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    parts = {"base": measure_base, "embedded": measure_embedded, "reads": measure_reads}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base-images", type=int, default=64)
    parser.add_argument("--embedded-images", type=int, default=2048)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the cache that is read, as float16")
    parser.add_argument("--scratch", help="folder for that cache, on a disk and not in memory")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cache.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    saved = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"parts": {}}
    for name in args.only:
        saved["parts"][name] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {args.device}",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "result": parts[name](args),
        }
        atomic_write_json(args.out, saved)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()

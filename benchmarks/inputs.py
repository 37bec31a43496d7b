"""From pictures to `pixel_values`: transformers' own image processors compared with ours, in turns in one process.

    PAR_DATA=... python benchmarks/inputs.py        # real PA-100K crops
    python benchmarks/inputs.py                     # drawn pedestrians, as JPEG

`decoded` starts from Pillow images, `jpeg` from the bytes of files. Ratios are of medians, of elapsed time ("clock")
and of processor time of all threads ("computing"), which other load on the machine disturbs less.
"""

import argparse
import io
import os
import statistics
import time
from pathlib import Path

from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from vlm_par_hf import load_par_dataset
from vlm_par_hf.images.opening import open_images
from vlm_par_hf.images.preprocessing import preprocess_images
from vlm_par_hf.utils import default_threads


def crops(count: int) -> tuple[str, list[bytes]]:
    """What they are, and JPEG files: `count` of the real crops with PAR_DATA, evenly spread, else drawings."""
    if os.environ.get("PAR_DATA"):
        paths = sorted((Path(os.environ["PAR_DATA"]) / "pa100k_mini" / "data").glob("*.jpg"))
        return "PA-100K crops", [path.read_bytes() for path in paths[:: max(1, len(paths) // count)][:count]]
    files = []
    for row in load_par_dataset("synthetic", root=None)["test"].select(range(count)):
        stream = io.BytesIO()
        row["image"].save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return "drawn pedestrians", files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    kind, files = crops(args.images)
    images = open_images(files)
    print(f"{len(files)} {kind}, {default_threads()} threads, medians of {args.rounds} rounds\n")
    print("| processor | from | transformers | ours | clock | computing | grey levels apart |")
    print("|---|---|---|---|---|---|---|")
    for name, processor in {
        "NaFlex, 128 patches": Siglip2ImageProcessorPil(max_num_patches=128),
        "fixed 224, bilinear (SigLIP 2)": SiglipImageProcessorPil(resample=Image.Resampling.BILINEAR),
        "fixed 224, bicubic (SigLIP)": SiglipImageProcessorPil(),
    }.items():
        ways = {
            "decoded": (
                lambda processor=processor: processor(images, return_tensors="pt"),
                lambda processor=processor: preprocess_images(processor, images),
            ),
            "jpeg": (
                lambda processor=processor: processor(
                    [Image.open(io.BytesIO(data)).convert("RGB") for data in files], return_tensors="pt"
                ),
                lambda processor=processor: preprocess_images(processor, open_images(files)),
            ),
        }
        for source, pair in ways.items():
            clock, computing = ([], []), ([], [])
            for _ in range(args.rounds):
                for which, run in enumerate(pair):
                    started, spent = time.perf_counter(), time.process_time()
                    run()
                    clock[which].append(time.perf_counter() - started)
                    computing[which].append(time.process_time() - spent)
            theirs, ours = (statistics.median(one) for one in clock)
            ratio = statistics.median(computing[0]) / statistics.median(computing[1])
            apart = (pair[0]()["pixel_values"] - pair[1]()["pixel_values"]).abs().max().item() * 127.5
            print(
                f"| {name} | {source} | {len(files) / theirs:.0f}/s | {len(files) / ours:.0f}/s | "
                f"{theirs / ours:.1f}x | {ratio:.1f}x | {apart:.1f} |"
            )


if __name__ == "__main__":
    main()

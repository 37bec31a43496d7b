"""Put another embedded backbone in the place of the one that ships, and train the heads that ship on it.

    PAR_DATA=... python -m vlm_par_hf.embedded.exchange --backbone FOLDER --work WORK [--rendered DIR ...]

`FOLDER` is the checkpoint that `train_backbone` exports. Its weights stay in float16; its configuration says float32,
which they are loaded as. Everything is written into the package itself: run it in a clone. `--num-train 500` tries it.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

from vlm_par_hf.errors import ParFileNotFoundError
from vlm_par_hf.utils import atomic_write_json, embedded_path

from . import train_heads


FILES = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
RECORDS = (
    "train_log.jsonl",
    "transfer.json",
    "zero_shot.md",
)  # taken where they are there, also from the folder above


def copy_backbone(source: Path, target: Path) -> None:
    """Copies a checkpoint in place of another.

    Raises:
        FileNotFoundError: a file of it is missing.
    """
    for name in FILES:
        if not (source / name).is_file():
            raise ParFileNotFoundError(f"--backbone {str(source)!r} lacks {name}; expected an exported checkpoint")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in (*FILES, *RECORDS):
        found = next((folder / name for folder in (source, source.parent) if (folder / name).is_file()), None)
        if found is not None:
            shutil.copyfile(found, target / name)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    atomic_write_json(target / "config.json", config | {"dtype": "float32"})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", type=Path, help="exported checkpoint; without it the one that is there stays")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--rendered", nargs="+", metavar="DIR", help="as for train_heads")
    parser.add_argument("--num-train", default="6000", metavar="N", help="as for train_heads")
    parser.add_argument("--targets", nargs="+", default=["pa100k", "rendered"], choices=("pa100k", "rendered"))
    args = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if args.backbone is not None:
        copy_backbone(args.backbone, embedded_path("backbone"))
    for target in args.targets:
        out = embedded_path(f"heads_{target}")
        shutil.rmtree(out, ignore_errors=True)
        words = [target, "--work", str(args.work / target), "--out", str(out), "--num-train", args.num_train]
        train_heads.main(words + (["--rendered", *args.rendered] if args.rendered else []))


if __name__ == "__main__":
    main()

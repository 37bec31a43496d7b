"""`vlm-par doctor`: what is installed, and how fast one picture is answered."""

import argparse
import os
import platform
import statistics
import time

from vlm_par_hf.utils import install_command, installed_version

from .options import quiet_transformers, say


__all__ = ["add_parser", "run"]

_PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "pillow")
# What an extra is recognised by: the packages that only it brings.
_EXTRAS = {
    "train": ("accelerate", "datasets"), "rendered": ("numba",), "demo": ("matplotlib",), "evaluate": ("evaluate",),
    "ray": ("ray",), "peft": ("peft",), "gallery": ("lancedb",), "video": ("av",),
    "serve": ("fastapi", "prometheus-client", "python-multipart", "uvicorn"),
    "export": ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino"),
}  # fmt: skip
_REPEATS = 5


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "doctor",
        help="what is installed, and how fast one picture is answered",
        description="Prints versions, the device, which extras are there, and the time of one picture of one person.",
    )
    parser.add_argument("--model", metavar="PATH", help="checkpoint folder or repository (default: the embedded one)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: as transformers chooses)")
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    quiet_transformers()
    say(f"vlm-par {installed_version('vlm-par-hf') or 'of unknown version'}, Python {platform.python_version()}")
    say(f"{platform.platform()}, {_cores()} cores for this process")
    for name in _PACKAGES:
        say(f"  {name} {installed_version(name) or 'not installed'}")
    say("extras:")
    for extra, packages in _EXTRAS.items():
        missing = [name for name in packages if installed_version(name) is None]
        found = ", ".join(f"{name} {installed_version(name)}" for name in packages)
        lacks = f"without {', '.join(missing)}: {install_command(extra)}"
        say(f"  {extra}: {lacks if missing else found}")
    _say_device(args.device)
    _say_speed(args.model, args.device)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say_device(device: str | None) -> None:
    import torch

    from vlm_par_hf.inference.devices import inference_dtype

    gpus = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
    fast = str(inference_dtype(device)).removeprefix("torch.")
    say(f"torch: {torch.get_num_threads()} threads, GPUs: {', '.join(gpus) or 'none'}; fast in {fast}")


def _say_speed(model: str | None, device: str | None) -> None:
    from transformers import pipeline

    from vlm_par_hf.errors import argument_in_errors
    from vlm_par_hf.images.example_crops import example_crop
    from vlm_par_hf.inference.pipelines import TASK

    options = {name: value for name, value in (("model", model), ("device", device)) if value is not None}
    with argument_in_errors("model", "embedded" if model is None else model):
        pipe = pipeline(TASK, **options)
    crop = str(example_crop("backpack"))
    seconds = []
    for _ in range(_REPEATS + 1):
        started = time.perf_counter()
        pipe(crop)
        seconds.append(time.perf_counter() - started)
    milliseconds = 1000 * statistics.median(seconds[1:])
    name = model or "the embedded model"
    say(f"one picture: {milliseconds:.1f} ms by {name} on {pipe.device}; the first one {1000 * seconds[0]:.0f} ms")

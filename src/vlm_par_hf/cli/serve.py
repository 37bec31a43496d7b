"""`vlm-par serve`: answer over HTTP."""

import argparse
import os

from vlm_par_hf.errors import ParFileNotFoundError, ParValueError

from .options import quiet_transformers


__all__ = ["add_parser", "run"]


def add_parser(commands) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "serve",
        help="answer over HTTP: warm, batched across requests, within limits",
        description="Answer over HTTP: POST /v1/attributes, the Open Inference Protocol v2 below /v2, /metrics, and "
        "/docs, which describes them; with a gallery POST /v1/search. The port opens when the model is warm; SIGTERM "
        "answers what was taken and ends. "
        "Logs are lines of JSON on standard error. Nothing of a picture is logged or kept.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="checkpoint folder or repository, an exported one too (default: the embedded one)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine only")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, each with its own model (default: %(default)s)"
    )
    parser.add_argument("--name", help="of the model below /v2 (default: the last part of CHECKPOINT)")
    parser.add_argument(
        "--detector", metavar="NAME",
        help="folder or repository of a model for object detection, which finds people in pictures without boxes",
    )  # fmt: skip
    parser.add_argument("--detector-label", default="person", metavar="LABEL", help="default: %(default)s")
    parser.add_argument("--detector-threshold", type=float, default=0.5, metavar="P", help="default: %(default)s")
    parser.add_argument(
        "--gallery", metavar="DIR", help="what `vlm-par index` made of this checkpoint: POST /v1/search searches it"
    )
    parser.add_argument(
        "--allow-sensitive", action="store_true",
        help="admit searches for perceived gender and age, which is a decision to take on purpose",
    )  # fmt: skip
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda:0, ... (default: as transformers chooses)")
    parser.add_argument(
        "--dtype", choices=("auto", "bfloat16", "float32"),
        help="of the weights; auto: bfloat16 where the device is fast with it (default: as saved)",
    )  # fmt: skip
    group = parser.add_argument_group("who may ask")
    group.add_argument(
        "--api-key", metavar="KEY",
        help="asked of every request, as Authorization: Bearer KEY; other users of this machine can see it here, so "
        "rather set VLM_PAR_API_KEY",
    )  # fmt: skip
    group.add_argument("--api-key-file", metavar="FILE", help="file that holds the key")
    group.add_argument(
        "--allow-urls", action="store_true", help="fetch pictures from http(s) URLs; never from private addresses"
    )
    group = parser.add_argument_group("limits")
    group.add_argument("--max-batch", type=int, default=16, metavar="N", help="people per forward pass (%(default)s)")
    group.add_argument(
        "--max-wait-ms", type=float, default=5.0, metavar="MS",
        help="that a person waits at most for others to share the forward pass (%(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-in-work", type=int, default=64, metavar="N", help="pictures at once; more get 429 (%(default)s)"
    )
    group.add_argument("--max-pictures", type=int, default=32, metavar="N", help="per request (%(default)s)")
    group.add_argument("--max-people", type=int, default=100, metavar="N", help="per picture (%(default)s)")
    group.add_argument("--max-megabytes", type=float, default=20.0, metavar="MB", help="per request (%(default)s)")
    group.add_argument("--max-megapixels", type=float, default=40.0, metavar="MP", help="per picture (%(default)s)")
    group.add_argument(
        "--seconds", type=float, default=30.0, help="for a body to arrive, and for its answer (%(default)s)"
    )
    group.add_argument(
        "--drain", type=float, default=1.0, metavar="SECONDS",
        help="after SIGTERM: how long it still takes requests, while it says that it is not ready (%(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=run)
    return parser


def run(args) -> None:
    quiet_transformers()
    from vlm_par_hf.utils import require

    for package in ("fastapi", "prometheus_client", "python_multipart", "uvicorn"):
        require(package, "serve")
    from vlm_par_hf.serving.handler import Limits
    from vlm_par_hf.serving.running import ServiceSettings, serve

    limits = Limits(
        max_bytes=int(args.max_megabytes * 1_000_000),
        max_pixels=int(args.max_megapixels * 1_000_000),
        max_pictures=min(args.max_pictures, args.max_in_work),
        max_people=args.max_people,
        seconds=args.seconds,
        max_in_work=args.max_in_work,
        max_batch=args.max_batch,
        max_wait=args.max_wait_ms / 1000,
    )
    if args.gallery is None and args.allow_sensitive:
        raise ParValueError("--allow-sensitive is about searches: it needs --gallery")
    settings = ServiceSettings(
        args.checkpoint,
        name=args.name,
        detector=args.detector,
        detector_label=args.detector_label,
        detector_threshold=args.detector_threshold,
        gallery=args.gallery,
        allow_sensitive=args.allow_sensitive,
        device=args.device,
        dtype=args.dtype,
        limits=limits,
        api_key=_api_key(args.api_key, args.api_key_file),
        allow_urls=args.allow_urls,
        drain=args.drain,
    )
    serve(settings, host=args.host, port=args.port, workers=args.workers)


def _api_key(given: str | None, file: str | None) -> str | None:
    """The key of the service, from one of its three places.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or no printable ASCII, which no header could hold.
    """
    if given is not None and file is not None:
        raise ParValueError("--api-key and --api-key-file were given, expected one of them")
    if file is not None:
        if not os.path.isfile(file):
            raise ParFileNotFoundError(f"--api-key-file: there is no file {file!r}")
        with open(file, encoding="utf-8") as stream:
            given = stream.read().strip()
    elif given is None:
        given = os.environ.get("VLM_PAR_API_KEY")
    if given is not None and not (given.isascii() and given.isprintable() and given.strip()):
        raise ParValueError("the API key is empty or holds other signs than printable ASCII")
    return given

"""Small helpers for the whole package: embedded files, optional packages, atomic writes, threads, containers, texts.

Needs no torch.
"""

import importlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import re
import reprlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vlm_par_hf.errors import ParImportError, ParTypeError, ParValueError


__all__ = [
    "EMBEDDED_BACKBONES",
    "atomic_write_json",
    "atomic_write_text",
    "backbone_files",
    "default_threads",
    "embedded_path",
    "format_percent",
    "install_command",
    "installed_version",
    "is_embedded",
    "iterate",
    "read_json",
    "read_json_object",
    "redact",
    "redact_command",
    "require",
    "shared_mode",
    "shorten",
    "shorten_text",
    "thread_map",
]

EMBEDDED_KINDS = ("backbone", "backbone_drawings", "heads_pa100k", "heads_rendered")
DEFAULT_HEADS = "heads_pa100k"  # what "heads" means, and what the pipeline takes without a model
# Names of the backbones that ship, the newest first -> their folders.
EMBEDDED_BACKBONES = {"embedded": "backbone", "embedded-drawings": "backbone_drawings"}

_TABLE_PACKAGES = ("pandas", "polars", "pyarrow")
_SECRET = (
    r"[\w.-]*(?:token(?![si])|secret|passw|passphrase|api[-_]?key|access[-_]?key|credential|signature|authorization)"
    r"[\w.-]*"
)
# What a server takes as a key in the address of a file; `sig`, `key`, `code` and `auth` only as the whole name.
_SECRET_PARAMETER = re.compile(
    rf"(?P<start>[?&;](?:{_SECRET}|sig|key|code|auth|policy|session|key-pair-id|jwt|sas)=)[^&;#\s'\"]*", re.IGNORECASE
)
_LONG_PARAMETER = re.compile(r"(?P<start>[?&;][^=&;#\s'\"]*=)[^&;#\s'\"]{24,}")
_USER_IN_URL = re.compile(r"(?P<start>\b[a-z][a-z0-9+.-]*://)[^/?#\s'\"]*@", re.IGNORECASE)
_ASSIGNED_SECRET = re.compile(rf"(?P<start>(?<![?&;\w]){_SECRET}[=:]\s*)[^\s'\"&]+", re.IGNORECASE)
_BEARER = re.compile(r"(?P<start>\bbearer\s+)[^\s'\"]+", re.IGNORECASE)
_HUB_TOKEN = re.compile(r"(?P<start>)\b(?:hf|api_org|gh[pousr]|sk|glpat)[_-][A-Za-z0-9_-]{16,}")
_SECRET_FLAG = re.compile(rf"--?{_SECRET}", re.IGNORECASE)
_HOME = re.compile(r"(?<![\w.])(?:/home/[^/\s'\"]+|/Users/[^/\s'\"]+|/root|[A-Za-z]:\\Users\\[^\\\s'\"]+)(?![\w.-])")


def embedded_path(kind: str) -> Path:
    """Folder of a checkpoint that ships inside the package.

    Args:
        kind: `"backbone"` (SigLIP-2-shaped backbone, tokenizer and processor), `"backbone_drawings"` (its first
            edition, which has only seen drawings), `"heads_pa100k"` or `"heads_rendered"` (VLM-PAR heads over
            `"backbone"`, of the label spaces `"pa100k"` and `"rendered"`), `"heads"` (those of them that
            `pipeline("pedestrian-attributes")` takes without a model).

    Raises:
        ValueError: `kind` is something else.
    """
    folder = DEFAULT_HEADS if kind == "heads" else kind
    if folder not in EMBEDDED_KINDS:
        raise ParValueError(f"kind must be one of {('heads', *EMBEDDED_KINDS)}, got {kind!r}")
    return Path(__file__).parent / "embedded" / folder


def is_embedded(path: str | Path | None) -> bool:
    """Whether a path is the folder of a checkpoint that ships inside the package."""
    return path is not None and Path(path).resolve().parent == (Path(__file__).parent / "embedded").resolve()


def backbone_files(name: str | Path) -> str:
    """The folder or repository to load a backbone from: `"embedded"` and `"embedded-drawings"` ship in the package."""
    name = str(name)
    return str(embedded_path(EMBEDDED_BACKBONES[name])) if name in EMBEDDED_BACKBONES else name


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional package where it is used.

    Args:
        module: dotted name, `"datasets"` or `"pyarrow.parquet"`.
        extra: the extra of this package that installs it, `"train"` or `"demo"`.

    Raises:
        ImportError: it is not installed; the message holds the command that installs it. An error inside an installed
            package is raised unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ParImportError(
            f"{package} is needed here and is not installed: {install_command(extra)}", name=package
        ) from error


def install_command(extra: str) -> str:
    """The command that adds an extra to this package, from where it was installed: the package is not on PyPI."""
    try:
        text = importlib.metadata.distribution("vlm-par-hf").read_text("direct_url.json")
        origin = json.loads(text) if text else {}
    except (importlib.metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = str(origin.get("url", ""))
    folder = url2pathname(urlsplit(url).path) if "dir_info" in origin and url.startswith("file:") else ""
    if folder and os.path.isfile(os.path.join(folder, "pyproject.toml")):
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f'pip install {editable}"{folder}[{extra}]"'
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        revision = f"@{vcs['requested_revision']}" if vcs.get("requested_revision") else ""
        return redact(f'pip install "vlm-par-hf[{extra}] @ {vcs.get("vcs", "git")}+{url}{revision}"')
    clone = Path(__file__).parents[2]
    if (clone / "pyproject.toml").is_file() and (clone / "src").is_dir():
        return f'pip install -e "{clone}[{extra}]"'
    return f'pip install ".[{extra}]" in a clone of the repository of vlm_par_hf'


def installed_version(package: str) -> str | None:
    """The version of a package that is installed, without importing it; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def shorten(value: Any, length: int = 100) -> str:
    """A value for an error message: its `repr` (control characters escaped), with its middle cut out where it is long.

    Deeply nested and huge values are cut before they are printed.
    """
    short = reprlib.Repr()
    short.maxlevel = 3
    short.maxstring = short.maxother = short.maxlong = length
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 8
    try:
        text = short.repr(value)
    except ValueError:  # Python does not print whole numbers of thousands of digits
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= 3 * length else f"{text[: 3 * length - 4]} ..."


def read_json(text: str) -> Any:
    """The value of a JSON text, in which no object has a key twice: of two values one would be lost.

    Raises:
        ValueError: it is not JSON, has a key twice, or is nested too deeply; the message says where or which.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ParValueError("it is nested too deeply") from None


def read_json_object(path: Path) -> dict[str, Any] | None:
    """The object that a JSON file holds; None if it is missing, damaged or something else."""
    try:
        found = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ParValueError(f"the key {shorten(twice)} appears twice in one object")
    return found


def atomic_write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text as a whole: neither a reader nor a crash can see half a file. Creates the folder if
    missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_json(path: str | Path, data: Any) -> None:
    """Writes standard JSON (indent 2, UTF-8, a final newline) with `atomic_write_text`.

    NumPy scalars and arrays, and anything else with `tolist()`, become numbers and lists; tuples become lists; paths
    become text. NaN and infinity become null, because the JSON standard has neither and other programs refuse them.

    Raises:
        TypeError: a value in `data` has no JSON form.
    """
    text = json.dumps(_to_plain(data), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


def shared_mode(folder: str | Path) -> int:
    """The permissions that a new file in a folder gets from `open`, that is from the umask of this process.

    Libraries that first write to a temporary file leave 0600, which nobody else can read.
    """
    # os.umask would have to change it to read it, for all threads.
    path = Path(folder) / f".{uuid.uuid4().hex}.tmp"
    with path.open("x"):
        mode = path.stat().st_mode & 0o777
    path.unlink()
    return mode


def _to_plain(data: Any) -> Any:
    if hasattr(data, "tolist"):
        data = data.tolist()
    if isinstance(data, dict):
        return {key: _to_plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_to_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return str(data) if isinstance(data, Path) else data


def iterate(items: Iterable, name: str = "items") -> Iterator[Any]:
    """The elements of a container, one by one, in the container's own order.

    `items[0]` is the first element of a list, but of a pandas Series it is the element with the label 0, which stands
    anywhere or is not there. Therefore containers are iterated; positions are asked for only where a type has nothing
    else, as map-style data sets of torch have. Elements of Arrow arrays become Python objects.

    Args:
        items: a list, tuple, generator, view of a dict, Series, array, column or data set.
        name: of the argument, for errors.

    Raises:
        TypeError: `items` cannot be iterated; is a set, which has no order; a dict; a table, whose columns would be
            iterated; text; or an array of fixed-width bytes, which has lost zeros at their ends.
    """
    package = type(items).__module__.partition(".")[0]
    if isinstance(items, (set, frozenset)):
        raise ParTypeError(f"{name} is a {type(items).__name__}, which has no order; expected a list")
    if isinstance(items, (str, bytes, bytearray, Mapping)):
        raise ParTypeError(f"{name} is {shorten(items)}; expected a list, or another container with an order")
    if package in _TABLE_PACKAGES and hasattr(items, "columns"):
        raise ParTypeError(f"{name} is a {package} table ({type(items).__name__}); expected one of its columns")
    if getattr(getattr(items, "dtype", None), "kind", None) == "S":
        raise ParTypeError(
            f"{name} is an array of dtype {items.dtype}, which cuts zero bytes at the end of its elements; expected "
            "dtype object"
        )
    if package == "pyarrow" and hasattr(items, "to_pylist"):
        return (element.as_py() for element in items)
    if not hasattr(type(items), "__iter__") and hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        return (items[position] for position in range(len(items)))
    try:
        return iter(items)
    except TypeError:
        raise ParTypeError(f"{name} is {shorten(items)}; expected a list") from None


def default_threads() -> int:
    """The number of threads for reading images: the cores that this process may use, at most 8.

    `OMP_NUM_THREADS` can lower it, as it lowers the number of torch's threads. In a child process of
    `multiprocessing`, such as a worker of a `DataLoader`, it is 1, because several processes run in parallel already.
    """
    if multiprocessing.parent_process() is not None:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, min(8, cores, int(limit) if limit.isdecimal() else cores))


def thread_map(function: Callable[[Any], Any], items: Iterable, threads: int | None = None) -> list:
    """`[function(item) for item in items]`, computed by several threads if there are enough items.

    It is faster only if `function` spends its time outside Python's global lock, as decoding and resizing do.

    Args:
        function: called once per item, from any thread.
        items: any container that `iterate` takes.
        threads: their number; None: `default_threads()`.

    Raises:
        Exception: the first error of `function`, in the order of the items. Later items may have been computed too.
    """
    items = list(iterate(items))
    # At least 4 items per thread: starting a thread takes as long as a few items.
    threads = min(default_threads() if threads is None else threads, len(items) // 4)
    if threads <= 1:
        return [function(item) for item in items]
    results: list = [None] * len(items)

    def work(start: int) -> tuple[int, Exception] | None:
        for index in range(start, len(items), threads):
            try:
                results[index] = function(items[index])
            except Exception as error:
                return index, error
        return None

    with ThreadPoolExecutor(threads) as pool:
        failures = [failure for failure in pool.map(work, range(threads)) if failure is not None]
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
    return results


def format_percent(share: float | None) -> str:
    """A share in 0 to 1 as percent with two decimals, "12.34" for 0.1234; empty text for None, NaN and infinity."""
    return "" if share is None or not math.isfinite(share) else f"{100 * share:.2f}"


def shorten_text(text: str, length: int = 160) -> str:
    """Text for a message: its beginning and its end if it is longer than `length`; control characters are escaped."""
    if len(text) > length:
        text = f"{text[: length - 40]}...{text[-30:]} ({len(text)} characters)"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)


def redact(text: str) -> str:
    """Text for a record, a card or a message: without secrets, and with home folders written as `~`.

    Secrets are user names and passwords in URLs, parameters of URLs that hold keys or are long, values that are
    assigned to something that is called a token, password or key, and tokens of known forms.
    """
    home = os.path.expanduser("~")
    if len(home) > 1:
        text = re.sub(rf"(?<![\w.]){re.escape(home.rstrip(os.sep))}(?![\w.-])", "~", text)
    text = _HOME.sub("~", text)
    text = _USER_IN_URL.sub(r"\g<start>***@", text)
    for secret in (_SECRET_PARAMETER, _LONG_PARAMETER, _BEARER, _ASSIGNED_SECRET, _HUB_TOKEN):
        text = secret.sub(r"\g<start>***", text)
    return text


def redact_command(arguments: Iterable[str]) -> list[str]:
    """The words of a command line for a record: each through `redact`, and the value after `--token` and the like
    replaced."""
    words: list[str] = []
    after_flag = False
    for argument in arguments:
        words.append("***" if after_flag and not argument.startswith("-") else redact(argument))
        after_flag = _SECRET_FLAG.fullmatch(argument) is not None
    return words

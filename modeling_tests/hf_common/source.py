"""The common tests of transformers, of exactly the installed version.

They are in its source distribution and not in its wheel. They are fetched, not kept: nothing of them is in this
repository.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path


__all__ = ["PACKAGE", "fetch"]

CACHE = Path(__file__).parents[2] / ".cache"
PACKAGE = "transformers_tests"
# What the common tests import and the source distribution lacks. Our models neither export nor generate through these
# mixins, and the last is any set of general options that differ from their defaults.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        'config_common_kwargs = {"output_hidden_states": True, "return_dict": False, "dtype": "float16"}\n'
    ),
}


def fetch() -> Path:
    """The folder to import `transformers_tests` from; downloads about 10 MB when this version was never fetched.

    Raises:
        RuntimeError: the download failed, or brought another version.
    """
    wanted = version("transformers")
    folder = CACHE / f"transformers-{wanted}"
    if (folder / PACKAGE).is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as aside:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                   "--dest", aside, f"transformers=={wanted}"]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(aside).glob("*.tar.gz"))
        if result.returncode or len(archives) != 1:
            raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr.strip()}")
        unpacked = Path(aside) / "unpacked"
        _unpack(archives[0], unpacked, wanted)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    return folder


def _unpack(archive: Path, target: Path, wanted: str) -> None:
    root = f"transformers-{wanted}"
    with tarfile.open(archive) as tar:
        information = tar.extractfile(f"{root}/PKG-INFO").read().decode()
        found = next(line.split()[1] for line in information.splitlines() if line.startswith("Version:"))
        if found != wanted:
            raise RuntimeError(f"{archive.name} holds transformers {found}, expected the installed {wanted}")
        tests = [member for member in tar.getmembers() if member.name.startswith(f"{root}/tests/")]
        tar.extractall(target, members=tests, filter="data")
    package = (target / root / "tests").rename(target / PACKAGE)
    (target / root).rmdir()
    for name, text in STUBS.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    for folder in (package, *(path for path in package.rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()

"""What is installed: versions that agree, extras that are explained, what the wheel and the source distribution hold.

`make test-wheel` installs them into empty environments.
"""

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import vlm_par_hf


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    assert vlm_par_hf.__version__ == PROJECT["version"]
    assert re.search(r"^version: (.+)$", read("CITATION.cff"), re.MULTILINE)[1] == PROJECT["version"]
    assert re.search(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)[1] == PROJECT["version"]


def test_the_page_names_all_that_is_supported():
    page = read("docs/install.md")
    minors = [int(one.rpartition(".")[2]) for one in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", one)]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert f"| Python | 3.{minors[0]} | 3.{minors[-1]} |" in page
    assert PROJECT["requires-python"] == f">=3.{minors[0]}"
    lowest = dict(re.split(r"(?=>=)", one.partition(",")[0]) for one in PROJECT["dependencies"])
    tried = dict(line.split("==") for line in read("lock-py311.txt").splitlines() if "==" in line)
    for name in ("torch", "transformers"):
        highest = tried[name].rpartition(".")[0]
        assert f"| {name} | {lowest[name].removeprefix('>=')} | {highest} |" in page


def test_every_extra_and_its_packages_are_explained():
    extras = PROJECT["optional-dependencies"]
    page, table = read("docs/install.md"), read("CONTRIBUTING.md").partition("## Dependencies")[2]
    for extra, packages in extras.items():
        assert f"| `{extra}` |" in page, extra
        for package in packages:
            name = re.match(r"[\w.-]+(?:\[data\])?", package)[0]
            assert name == PROJECT["name"] or f"`{name}`" in table, package
    installed = {name for package in extras["dev"] for name in re.findall(r"vlm-par-hf\[(.+)\]", package)[0:1]}
    everything = set(",".join(installed).split(",")) | {"dev", "train", "rendered"}  # demo brings the last two
    assert everything == set(extras), "dev is everything"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("hatchling", reason="hatchling builds the package, and is not installed here")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel(built):
    (path,) = built.glob("*.whl")
    assert path.name == f"vlm_par_hf-{PROJECT['version']}-py3-none-any.whl"
    assert path.stat().st_size < 25e6, "weights that ship are counted in megabytes"
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"vlm_par_hf-{PROJECT['version']}.dist-info/METADATA").decode()
    source = ROOT / "src"
    files = [one for one in (source / "vlm_par_hf").rglob("*") if one.is_file() and "__pycache__" not in one.parts]
    packed = {name for name in names if ".dist-info/" not in name}
    assert {one.relative_to(source).as_posix() for one in files} == packed
    assert {name.rpartition("/")[2] for name in names} >= {"py.typed", "LICENSE", "NOTICE", "entry_points.txt"}
    assert set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) == set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_the_source_distribution(built):
    (path,) = built.glob("*.tar.gz")
    assert path.stat().st_size < 30e6
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git repository: what is tracked is not known")
    assert set(tracked.stdout.split("\n")) - {""} - names <= {".gitattributes"}
    assert {name for name in names if "__pycache__" in name or name.startswith((".venv", ".cache", "runs/"))} == set()

"""How `make test-hf` gets transformers' own tests; the tests themselves are in `hf_common`."""

import io
import subprocess
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

from modeling_tests.hf_common import source


def distribution(folder, found):
    """A source distribution of transformers, as small as it can be."""
    wanted = version("transformers")
    with tarfile.open(Path(folder) / f"transformers-{wanted}.tar.gz", "w:gz") as tar:
        for name, text in {
            "PKG-INFO": f"Metadata-Version: 2.4\nName: transformers\nVersion: {found}\n",
            "src/transformers/__init__.py": "",
            "tests/test_modeling_common.py": "from .generation.test_utils import GenerationTesterMixin\n",
        }.items():
            member = tarfile.TarInfo(f"transformers-{wanted}/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """The commands that were run; `found` is the version that the downloaded archive says it has."""

    class Downloads(list):
        found = version("transformers")

        def run(self, command, **kwargs):
            self.append(command)
            if self.found is None:
                return subprocess.CompletedProcess(command, 1, "", "ERROR: Could not find a version")
            distribution(command[command.index("--dest") + 1], self.found)
            return subprocess.CompletedProcess(command, 0, "", "")

    downloads = Downloads()
    monkeypatch.setattr(source, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(source.subprocess, "run", downloads.run)
    return downloads


def test_the_tests_of_the_installed_version_are_fetched_once(downloads):
    wanted = version("transformers")
    folder = source.fetch()
    assert downloads[0][-1] == f"transformers=={wanted}" and "--no-deps" in downloads[0]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    package = source.PACKAGE
    assert files >= {f"{package}/test_modeling_common.py", f"{package}/__init__.py"}
    assert files >= {f"{package}/{name}" for name in source.STUBS}
    assert files >= {f"{package}/{Path(name).parent}/__init__.py" for name in source.STUBS}
    assert source.fetch() == folder and len(downloads) == 1
    assert [path.name for path in source.CACHE.iterdir()] == [folder.name], "nothing else is left"


def test_another_version_is_refused(downloads):
    downloads.found = "4.0.0"
    with pytest.raises(
        RuntimeError, match=f"holds transformers 4.0.0, expected the installed {version('transformers')}"
    ):
        source.fetch()
    assert not list(source.CACHE.iterdir())


def test_a_failed_download_says_what_was_tried(downloads):
    downloads.found = None
    with pytest.raises(RuntimeError, match=r"(?s)pip download .* failed:\nERROR: Could not find a version"):
        source.fetch()
    assert not list(source.CACHE.iterdir())

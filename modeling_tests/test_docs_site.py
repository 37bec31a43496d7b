"""The documentation site: what is copied, its navigation, and the check of its links. `make docs` builds it."""

import importlib.util
import re
from pathlib import Path

import pytest

import vlm_par_hf


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    """A small repository with pages."""
    for name, text in {
        "README.md": "# Front\n[a](docs/a.md#top) [out](https://example.org) `[no](link.md)`\n```\n[no](x)\n```\n",
        "docs/a.md": "# A\n![picture](../results/a.png)\n[more](../more/b.md)\n",
        "docs/new.md": "# New\n",
        "more/b.md": "# B\n",
        "results/a.png": "",
        "not_linked.md": "# Nobody\n",
        "mkdocs.yml": "paths: [src]\nnav:\n  - README.md\n  - Guides:\n      - docs/a.md\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_navigation_names_pages_that_are_there(build):
    _, nav = build.split_config((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = list(build.files_of(nav))
    assert len(named) == len(set(named)) > 20
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert len(build.linked_files(ROOT, named)) > len(named)  # raises where a link leads nowhere


def test_the_pages_of_the_api_have_every_public_name():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: vlm_par_hf\.(\w+)$", text, re.MULTILINE))
    assert shown == set(vlm_par_hf.__all__)


def test_pages_and_what_they_link_to_are_copied(build, root):
    work = root / "work"
    build.copy_pages(root, work)
    copied = {path.relative_to(work / "pages").as_posix() for path in (work / "pages").rglob("*") if path.is_file()}
    assert copied == {"README.md", "docs/a.md", "docs/new.md", "more/b.md", "results/a.png"}
    text = (work / "mkdocs.yml").read_text()
    assert text.startswith(f'paths: ["{root / "src"}"]\n')
    assert build.split_config(text)[1] == ["README.md", {"Guides": ["docs/a.md"]}, {"More": ["docs/new.md"]}]


def test_a_link_to_nowhere_stops_the_build(build, root):
    (root / "docs" / "a.md").write_text("[gone](gone.md)")
    with pytest.raises(FileNotFoundError, match=r"docs/a\.md links to gone\.md: expected a file"):
        build.copy_pages(root, root / "work")


def test_broken_links_of_a_site_are_found(build, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="sub/b.html#here">b</a> <a href="sub">folder</a> <h1 id="top">x</h1>'
    )
    (tmp_path / "sub" / "index.html").write_text("")
    (tmp_path / "sub" / "b.html").write_text(
        '<a href="../index.html#top"></a><a href="gone.html"></a><a href="#nowhere"></a>'
        '<script src="https://cdn.example.org/x.js"></script><a href="https://example.org"></a>'
    )
    assert build.broken_links(tmp_path) == [
        "index.html: sub/b.html#here has no such anchor",
        "sub/b.html loads https://cdn.example.org/x.js from another server",
        "sub/b.html: #nowhere has no such anchor",
        "sub/b.html: gone.html is not there",
    ]

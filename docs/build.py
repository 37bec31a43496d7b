"""Builds the documentation site: `make docs`.

The pages lie where they are read in a repository (README.md, docs/, model_cards/, ...) and link to scripts and results
beside them. So they and every file that they link to are copied, each to its own path, into a folder of its own. The
site is built there, and the HTML that comes out is checked: every link inside the site leads to a file and an anchor,
and no page loads anything from another server.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml


ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LOADED = {("script", "src"), ("img", "src"), ("source", "src"), ("iframe", "src"), ("link", "href")}


def own_pages(root: Path) -> list[str]:
    """The pages that the site has even if nothing links to them."""
    return ["README.md", *(path.relative_to(root).as_posix() for path in sorted((root / "docs").glob("**/*.md")))]


def split_config(text: str) -> tuple[str, list]:
    """What mkdocs.yml says before its nav, and the nav."""
    before, nav = re.split(r"^nav:\n", text, flags=re.MULTILINE)
    return before, yaml.safe_load(nav)


def files_of(nav: list | dict | str) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from files_of(part)


def complete_nav(nav: list, pages: list[str]) -> list:
    """The nav with the pages that it does not name."""
    named = set(files_of(nav))
    more = [page for page in pages if page not in named]
    return [*nav, {"More": more}] if more else nav


def linked_files(root: Path, pages: list[str]) -> list[str]:
    """The pages and all files that they link to, over any number of steps.

    Raises:
        FileNotFoundError: a link leads nowhere.
    """
    found = dict.fromkeys(pages)
    waiting = list(pages)
    while waiting:
        page = waiting.pop()
        text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", (root / page).read_text(encoding="utf-8")))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if re.match(r"[a-z]+:", target):
                continue
            path = (root / page).parent.joinpath(target).resolve()
            if not path.is_file():
                raise FileNotFoundError(f"{page} links to {target}: expected a file")
            name = path.relative_to(root).as_posix()
            if name not in found:
                found[name] = None
                waiting.extend([name] if name.endswith(".md") else [])
    return list(found)


def copy_pages(root: Path, work: Path) -> None:
    """Writes `work/mkdocs.yml` and `work/pages/`, from which the site is built."""
    before, nav = split_config((root / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = own_pages(root)
    shutil.rmtree(work, ignore_errors=True)
    for name in linked_files(root, [*dict.fromkeys([*pages, *files_of(nav)])]):
        path = work / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, path)
    # Docstrings are read where they are: what builds the package would follow a link to src/ in place of src/ itself.
    before = before.replace("paths: [src]", f"paths: [{json.dumps(str(root / 'src'))}]")
    text = before + yaml.safe_dump({"nav": complete_nav(nav, pages)}, sort_keys=False, allow_unicode=True)
    (work / "mkdocs.yml").write_text(text, encoding="utf-8")


class Page(HTMLParser):
    """The anchors of a page of HTML, its links, and what it loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded = set(), set(), set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)
                if (tag, name) in LOADED:
                    self.loaded.add(value)


def broken_links(site: Path) -> list[str]:
    """What is wrong with the links of a site, one line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.glob("**/*.html"))}
    wrong = []
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        wrong += [f"{name} loads {link} from another server" for link in sorted(page.loaded) if urlsplit(link).netloc]
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name == "404.html":  # that one is shown at any depth
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{name}: {link} is not there")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{name}: {link} has no such anchor")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "docs", help="folder to copy to; it is emptied")
    args = parser.parse_args()
    work = args.work.resolve()
    copy_pages(ROOT, work)
    subprocess.run(["zensical", "build", "--strict", "--clean"], cwd=work, check=True)
    wrong = broken_links(work / "site")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"The site is in {work / 'site'}; look at it with: python3 -m http.server --directory {work / 'site'}")


if __name__ == "__main__":
    main()

"""What README and docs/ show: Python runs, commands parse, links resolve, measured text is that of the results."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from modeling_tests.pa100k_files import pa100k_variables
from modeling_tests.videos import walkers, write_tracks, write_video
from vlm_par_hf import AttributeSchema, FocusParModel, FocusParProcessor, get_schema
from vlm_par_hf.cli.config import expand_config
from vlm_par_hf.cli.main import build_parser
from vlm_par_hf.data import list_par_datasets
from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person
from vlm_par_hf.utils import embedded_path


ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("**/*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *DOCS)}
# Pages whose links are followed.
LINKED = PAGES | {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *sorted((ROOT / "model_cards").glob("*.md")))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
STAND_INS = {
    "your-name/your-checkpoint": str(embedded_path("heads")),
    "google/siglip2-base-patch16-naflex": "embedded",
}


def blocks(page, language):
    return [text for found, text in FENCE.findall(page) if found == language]


def python_of(page):
    """The Python of a page, on the lines where the page has it, so that a traceback names the line of the page."""
    lines = [""] * page.count("\n")
    for block in FENCE.finditer(page):
        if block[1] == "python":
            first = page.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[first : first + len(code)] = code
    code = "\n".join(lines) + "\n"
    for name, stand_in in STAND_INS.items():
        code = code.replace(f'"{name}"', repr(stand_in))
    return code


def commands_of(page):
    """Every `vlm-par ...` of a page, at the start of a line or in backticks, and what torchrun starts."""
    found = re.findall(r"(?:^|`)(vlm-par [^`\n]+)", page, re.MULTILINE)
    return found + [f"vlm-par {rest}" for rest in re.findall(r"-m vlm_par_hf ([^`\n]+)", page)]


def without_code(page):
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page))


def anchors_of(page):
    """The anchors that GitHub gives to the headings of a page."""
    anchors = []
    for heading in re.findall(r"^#{1,6} +(.+?) *$", FENCE.sub("", page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        earlier = sum(one == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", one) is not None for one in anchors)
        anchors.append(f"{anchor}-{earlier}" if earlier else anchor)
    return anchors


COMMANDS = [(name, command) for name, page in PAGES.items() for command in commands_of(page)]
LINKS = [
    (name, target)
    for name, page in LINKED.items()
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page))
    if not re.match(r"[a-z]+:", target)
]
WITH_PYTHON = [name for name, page in PAGES.items() if blocks(page, "python")]


def _person(number=0):
    person = SyntheticPerson.sample(0, number)
    return render_person(person, Frame.sample(person, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the snippets name: a picture, a tiny PA-100K, a FOCUS checkpoint, an exported folder."""
    folder = tmp_path_factory.mktemp("docs")
    FocusParModel.from_backbone("embedded", attributes=get_schema("synthetic")).save_pretrained(folder / "runs/focus")
    FocusParProcessor.from_backbone("embedded").save_pretrained(folder / "runs/focus")
    _person().save(folder / "person.jpg")
    pictures, rows = walkers(12)
    write_video(folder / "street.mp4", pictures)
    write_tracks(folder / "street.txt", rows)
    (folder / "exported").mkdir()  # what a page reads of an exported folder
    exported = json.loads((embedded_path("heads") / "config.json").read_text(encoding="utf-8"))
    exported["patch_grid"] = [16, 8]
    (folder / "exported" / "config.json").write_text(json.dumps(exported), encoding="utf-8")
    (folder / "PA-100K" / "data").mkdir(parents=True)
    variables = pa100k_variables((16, 8, 8))
    savemat(folder / "PA-100K" / "annotation.mat", variables)
    for split in ("train", "val", "test"):
        for number, name in enumerate(np.ravel(variables[f"{split}_images_name"])):
            _person(number).save(folder / "PA-100K" / "data" / str(np.ravel(name)[0]))
    return folder


def test_there_is_something_to_test():
    assert DOCS, f"no page found in {ROOT / 'docs'}"
    assert "README.md" in WITH_PYTHON and len(WITH_PYTHON) >= 3
    assert len(COMMANDS) >= 10 and len(LINKS) >= 10
    for target in ("make demo", "make test"):
        assert target in PAGES["README.md"]


def test_the_readme_is_short():
    assert PAGES["README.md"].count("\n") < 160


def test_every_page_is_three_clicks_away():
    """From the README, along links in the pages."""
    reached = {"README.md"}
    for _ in range(3):
        steps = {
            ((ROOT / name).parent / target.partition("#")[0]).resolve() for name, target in LINKS if name in reached
        }
        reached |= {step.relative_to(ROOT).as_posix() for step in steps}
    api = {name for name in PAGES if name.startswith("docs/api/")}  # in the navigation of the site
    assert PAGES.keys() - api - reached == set()


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python(name, folder):
    """The snippets of a page, in their order, in one process: a later one may use what an earlier one made."""
    script = folder / f"{name.replace('/', '_')}.py"
    script.write_text(python_of(PAGES[name]), encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name, command", COMMANDS)
def test_commands_parse(name, command, tmp_path):
    words = shlex.split(command.split("#")[0])[1:]
    if "--config" in words:  # the page shows what the file holds
        path = tmp_path / "config.yaml"
        path.write_text("\n".join(blocks(PAGES["docs/datasets.md"], "yaml")))
        words[words.index("--config") + 1] = str(path)
        words = expand_config(words, build_parser)
    if len(words) == 1 or "--help" in words:  # only the name of a command: it has a help
        with pytest.raises(SystemExit, match="^0$"):
            build_parser().parse_args([words[0], "--help"])
    else:
        build_parser().parse_args(words)


@pytest.mark.parametrize("name", PAGES)
def test_scripts_and_make_targets_exist(name):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for script in re.findall(r"\b(?:python|node|cmake -S) ((?:examples|benchmarks)/[^\s`]+)", PAGES[name]):
        assert (ROOT / script).exists(), script
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", PAGES[name], re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("name", PAGES)
def test_json_is_a_label_space(name):
    for text in blocks(PAGES[name], "json"):
        assert len(AttributeSchema(json.loads(text))) == len(json.loads(text))


def test_the_page_of_data_sets_has_all_of_them():
    assert set(re.findall(r'load_par_dataset\("(\w+)"', PAGES["docs/datasets.md"])) == set(list_par_datasets())


@pytest.mark.parametrize("name, target", LINKS)
def test_links(name, target):
    path, _, anchor = target.partition("#")
    found = ((ROOT / name).parent / path if path else ROOT / name).resolve()
    assert found.is_relative_to(ROOT), f"{target} leaves the repository"
    assert found.exists(), f"{target} is not there"
    if anchor:
        anchors = anchors_of(found.read_text(encoding="utf-8"))
        assert anchor in anchors, f"{target}: the anchors of that page are {anchors}"


def test_anchors():
    page = "# What is it? A `test`!\n## Two\n```\n# code\n```\n## Two\n### [Link](x.md), too\n"
    assert anchors_of(page) == ["what-is-it-a-test", "two", "two-1", "link-too"]


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("benchmark_pages", ROOT / "benchmarks" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results_of(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["speed", "quality", "decisions", "fine_tuning", "cross_domain"])
def test_measured_text_is_that_of_the_results(name, pages):
    page = PAGES[f"docs/{pages.PAGES[name]}.md"]
    start, end = pages.measured_part(page, name)
    assert page[start:end] == pages.TEXTS[name](results_of(name)), "run: python benchmarks/pages.py"


def test_measured_text_without_some_of_the_results(pages):
    parts = {name: part for name, part in results_of("speed").items() if name in ("predict", "growth")}
    text = pages.speed_text(parts)
    assert "model alone" in text and "plain form is" not in text and "float32:" not in text
    assert pages.quality_text({"sets": {}}) == pages.decisions_text({"sets": {}}) == "Nothing is measured yet."
    wide = results_of("decisions")["sets"]["rendered"]
    assert "examples are covered exactly in" in " ".join(pages.decisions_text({"sets": {"rendered": wide}}).split())
    real = pages.decisions_text({"sets": {"real": results_of("decisions")["sets"]["real"]}})
    assert "covered exactly" not in real and "5 folds without a common person, fitted on 320" in real


def test_measured_text_of_the_quality_benchmark(pages):
    def number(value, **more):
        return {"value": value, "low": value - 0.01, "high": value + 0.02, "seeds": [value], **more}

    probe = {name: number(0.7) for name in ("auc", "ap", "mA", "mA_shift", "mA_fitted")} | {
        "label": "linear probe", "f1": {"value": 0.6}, "f1_fitted": {"value": 0.65}, "validation_auc": 0.71,
        "train_auc": 0.8, "parameters": 6708,
    }  # fmt: skip
    ours = {**probe, "label": "VLM-PAR", "auc": number(0.75, difference=number(0.05)), "parameters": 27_000_000}
    zero_shot = {**probe, "label": "zero-shot", "validation_auc": None}
    part = {
        "title": "crops", "pictures": {"train": 960}, "folds": 5, "seeds": 2, "tested": 1600, "scored": ["Hat"],
        "recipe": {"weighting": "sqrt"}, "best_probe": "probe", "command": "python x", "machine": "a machine",
        "methods": {"zero_shot": zero_shot, "probe": probe, "ours": ours},
    }  # fmt: skip
    text = pages.quality_text({"sets": {"real": part}})
    assert text.count("### ") == 1 and "### crops" in text and "figure 4" not in text
    assert (
        "| VLM-PAR | 75.0 [74.0, 77.0] | +5.0 [+4.0, +7.0] | 70.0 | 70.0 | 70.0 | 70.0 | 60.0 | 65.0 | 9.0 | 27.00 |"
        in text
    )
    assert "| zero-shot | 70.0 [69.0, 72.0] |  | 70.0 | 70.0 | 70.0 | 70.0 | 60.0 | 65.0 |  | 0.01 |" in text
    flowing = " ".join(text.split())
    assert "5 folds" in flowing and "2 seeds" in flowing and "*linear probe*" in flowing
    accuracy = {"without": {"Hat": 0.5, "Bag": 0.7}, "with": {"Hat": 0.6, "Bag": 0.8}}
    text = pages.quality_text({"sets": {"real": part}, "attention_gain": {"title": "crops", "accuracy": accuracy}})
    assert "figure 4, on crops" in text and "without 60.0, with 70.0" in text
    text = pages.quality_text({"sets": {"real": part}, "variants": {"balanced": {"real": part}}})
    assert text.index("### crops\n") < text.index("### crops: balanced\n")


def test_write_page(pages, tmp_path, monkeypatch):
    (tmp_path / "quality.json").write_text(json.dumps(results_of("quality")))
    (tmp_path / "quality.md").write_text("before\n<!-- quality:begin -->\nold\n<!-- quality:end -->\nafter\n")
    monkeypatch.setattr(pages, "DOCS", tmp_path)
    monkeypatch.setattr(pages, "RESULTS", tmp_path)
    pages.write_page("quality")
    text = pages.quality_text(results_of("quality"))
    expected = f"before\n<!-- quality:begin -->\n{text}\n<!-- quality:end -->\nafter\n"
    assert (tmp_path / "quality.md").read_text() == expected
    pages.write_page("quality")
    assert (tmp_path / "quality.md").read_text() == expected
    (tmp_path / "quality.md").write_text("<!-- quality:end -->\n")
    with pytest.raises(ValueError, match=r"markers of 'quality' are \['<!-- quality:end -->'\]: expected one"):
        pages.write_page("quality")

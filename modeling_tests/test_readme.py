"""What the README shows runs: its Python on drawings and the embedded model, its commands through the parser."""

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
from vlm_par_hf import FocusParModel, FocusParProcessor, get_schema
from vlm_par_hf.cli import build_parser
from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person
from vlm_par_hf.utils import embedded_path


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
COMMANDS = re.findall(r"(?:^|`)(vlm-par [^`\n]+)", README, re.MULTILINE)


def _person(number=0):
    person = SyntheticPerson.sample(0, number)
    return render_person(person, Frame.sample(person, 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the snippets name: a picture, a tiny PA-100K and a FOCUS checkpoint."""
    folder = tmp_path_factory.mktemp("readme")
    FocusParModel.from_backbone("embedded", attributes=get_schema("synthetic")).save_pretrained(folder / "runs/focus")
    FocusParProcessor.from_backbone("embedded").save_pretrained(folder / "runs/focus")
    _person().save(folder / "person.jpg")
    (folder / "PA-100K" / "data").mkdir(parents=True)
    variables = pa100k_variables((16, 8, 8))
    savemat(folder / "PA-100K" / "annotation.mat", variables)
    for split in ("train", "val", "test"):
        for number, name in enumerate(np.ravel(variables[f"{split}_images_name"])):
            _person(number).save(folder / "PA-100K" / "data" / str(np.ravel(name)[0]))
    return folder


def test_the_readme_shows_what_is_tested():
    assert len(PYTHON) >= 3 and len(COMMANDS) >= 4
    for target in ("make demo", "make test"):
        assert target in README


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number, folder):
    code = PYTHON[number]
    for name, stand_in in (
        ("your-name/your-checkpoint", str(embedded_path("heads"))),
        ("google/siglip2-base-patch16-naflex", "embedded"),
    ):
        code = code.replace(f'"{name}"', repr(stand_in))
    # A snippet may use what the one before it imported or opened.
    before = "import vlm_par_hf\nfrom PIL import Image\nimage = Image.open('person.jpg')\n"
    script = folder / f"snippet_{number}.py"
    script.write_text(before + code)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    build_parser().parse_args(shlex.split(command.split("#")[0])[1:])

"""`vlm-par index` and `vlm-par search`, as a user types them."""

import json

import pytest
from PIL import Image

from vlm_par_hf.cli.main import main


@pytest.fixture(scope="module")
def gallery(checkpoint, files, tmp_path_factory):
    place = tmp_path_factory.mktemp("galleries") / "people"
    report = place.parent / "report.json"
    arguments = ["index", files["data"], "--out", str(place), "--model", str(checkpoint), "--report", str(report)]
    assert main(arguments) == 0
    assert json.loads(report.read_text())["people"] == 48
    return place


def test_index_again_adds_nothing(gallery, checkpoint, files, capsys):
    assert main(["index", files["data"], "--out", str(gallery), "--model", str(checkpoint)]) == 0
    assert "48 images: 0 new, 0 changed, 48 unchanged; 0 people added" in capsys.readouterr().out
    assert main(["index", "--out", str(gallery), "--compact"]) == 0
    assert "48 people of 48 files" in capsys.readouterr().out


def test_search_prints_a_table_an_object_and_a_sheet(gallery, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["search", str(gallery), "hat", "--top", "5", "--draw", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "query Hat=yes; by log_likelihood: 48 of 48 people" and len(lines) == 7
    assert "Hat=yes" in lines[2]
    with Image.open(sheet) as picture:
        assert picture.width > 300
    assert main(["search", str(gallery), "hat", "--filter", "not hat", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["attributes"]["Hat"]["label"] for one in found["people"]} <= {"no"}


def test_search_by_picture_and_by_words(gallery, files, capsys):
    picture = f"{files['data']}/test_003.png"
    assert main(["search", str(gallery), "--image", picture, "--top", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["people"][0]["path"] == picture
    assert main(["search", str(gallery), "hat", "--text", "a red hat", "--top", "2"]) == 0
    assert "by similarity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["spaceship"], "spaceship"),
        ([], "nothing is searched for"),
        (["hat", "--score", "adapters"], "needs a retrieval head"),
        (["hat", "--image", "a.jpg", "--score", "l1"], "expected one of them"),
        (["hat", "--draw", "sheet.xyz"], "expected an ending such as .png"),
        (["hat", "--storage-option", "endpoint"], "expected NAME=VALUE"),
    ],
)
def test_search_refuses(gallery, arguments, message, capsys):
    assert main(["search", str(gallery), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_no_gallery_and_nothing_to_index(tmp_path, capsys):
    assert main(["search", str(tmp_path / "none"), "hat"]) == 2
    assert "there is no gallery" in capsys.readouterr().err
    assert main(["index", "--out", str(tmp_path / "none")]) == 2
    assert "no images were named" in capsys.readouterr().err

"""Boxes of people from a file beside the pictures."""

import json

import pytest

from modeling_tests.crops import close
from modeling_tests.image_folders import read, run, save_image
from vlm_par_hf.annotation import ImageList, read_boxes


BOX, OTHER = [1, 2, 6, 20], [0, 0, 12, 24]
FORMS = {
    "a.json": json.dumps({"1.png": [BOX, OTHER], "2.png": []}),
    "a.jsonl": '{"image": "1.png", "boxes": [[1, 2, 6, 20], [0, 0, 12, 24]]}\n{"image": "2.png", "boxes": []}\n',
    "b.jsonl": '{"image": "1.png", "box": [1, 2, 6, 20]}\n{"image": "1.png", "box": [0, 0, 12, 24]}\n',
    "a.csv": "image,x0,y0,x1,y1,Hat\n1.png,1,2,6,20,yes\n1.png,0,0,12,24,no\n",
    "b.csv": "file_name;box\n1.png;[1 2 6 20]\n1.png;0, 0, 12, 24\n",
    "a.tsv": "image\txmin\tymin\txmax\tymax\n1.png\t1\t2\t6\t20\n1.png\t0\t0\t12\t24\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(tmp_path, name):
    (tmp_path / name).write_text(FORMS[name])
    boxes = read_boxes(tmp_path / name)
    assert boxes.of["1.png"] == [BOX, OTHER] and not boxes.of.get("2.png")
    assert boxes.box_format == ("xyxy" if name in ("a.csv", "a.tsv") else None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "expected a file ending in .json, .jsonl, .csv, .tsv"),
        ("a.json", "[1", "not JSON"),
        ("a.json", "[1]", r"holds \[1\]; expected {image: list of boxes}"),
        ("a.json", '{"1.png": [1, 2, 3, 4]}', r"'1.png' has \[1, 2, 3, 4\]; expected a list of boxes"),
        ("a.csv", "image,x0,y0,x1,y1\n1.png,1,2,3,a\n", r"a.csv, line 2: the box is \['1', '2', '3', 'a'\]"),
        ("a.csv", "image,Hat\n1.png,1\n", "a.csv, line 2: the box is None; expected four numbers, in columns such as"),
        ("a.csv", "x0,y0,x1,y1\n1,2,3,4\n", "a.csv, line 2: image is None; expected a column with the paths"),
        ("a.jsonl", '{"image": "1.png", "boxes": 3}\n', "a.jsonl, line 1: boxes is 3; expected a list"),
    ],
)
def test_what_is_no_file_of_boxes(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_boxes(tmp_path / name)


def test_names_are_ends_of_paths(tmp_path):
    for folder in ("day", "night"):
        save_image(tmp_path / folder / "1.png", 0)
    for name in ("day/1.png", str(tmp_path / "day" / "1.png")):
        rows = list(ImageList(tmp_path, boxes={name: [BOX]}).rows())
        assert [row.image.boxes for row in rows] == [[BOX], ()]
    for name, message in (
        ("1.png", "boxes names '1.png', which is the end of .*: expected one"),
        ("y/1.png", "boxes names 'y/1.png', which is none of the 2 images"),
        ("11.png", "none of the 2 images; did you mean '1.png'"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageList(tmp_path, boxes={name: [BOX]})


def test_a_run_is_continued_with_the_same_boxes_only(folder, model, tmp_path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({f"{number}.png": [BOX] * (number % 3) for number in range(1, 20)}))
    report = run(folder, tmp_path / "out.jsonl", model, boxes=path)
    rows = read(tmp_path / "out.jsonl")
    assert report["predictions"] == len(rows) == 19 and report["images"] == 20
    assert report["without_people"] == {"count": 7, "first": f"{folder}/3.png"}
    assert rows[1]["image"] == rows[2]["image"] == f"{folder}/2.png" and close(rows[1], rows[2])
    path.write_text(json.dumps({"1.png": [OTHER]}))
    with pytest.raises(ValueError, match="is the work of another run: the images differ"):
        run(folder, tmp_path / "out.jsonl", model, boxes=path)
    path.write_text(json.dumps({"1.png": [BOX, [50, 50, 60, 60]]}))
    (entry,) = run(folder, tmp_path / "out.jsonl", model, boxes=path, overwrite=True)["broken"]
    assert "boxes[1] is [50, 50, 60, 60], which is outside" in entry["error"]

"""Results: dicts and lists that can be drawn and saved."""

import copy
import json
import pickle

import numpy as np
import pytest
from PIL import Image, ImageChops

from modeling_tests.crops import crop
from vlm_par_hf import draw_boxes
from vlm_par_hf.inference.results import PersonResult, PictureResult


BOXES = [[2, 3, 60, 80], [50, 10, 110, 85]]


@pytest.fixture(scope="module")
def street():
    return crop(3, size=(120, 90))


def differ(first, second):
    return first.size != second.size or ImageChops.difference(first, second).getbbox() is not None


def test_they_are_plain_data_for_json_and_pickle(naflex, street):
    people, person = naflex(street, boxes=BOXES), naflex(street)
    assert type(people) is PictureResult and type(people[0]) is type(person) is PersonResult
    for result in (people, person):
        assert json.loads(json.dumps(result)) == result == pickle.loads(pickle.dumps(result)) == copy.deepcopy(result)


def test_people_are_drawn_over_their_picture(naflex, street, tmp_path):
    people = naflex(street, boxes=BOXES)
    drawn = people.draw()
    assert drawn.size == street.size and differ(drawn, street)
    assert not differ(drawn, draw_boxes(street, people))
    people.save(tmp_path / "street.png")
    assert not differ(Image.open(tmp_path / "street.png"), drawn)
    assert not differ(naflex(street, boxes=[]).draw(), street)


def test_a_person_is_drawn_beside_their_attributes(naflex, street, tmp_path):
    whole, cut = naflex(street), naflex(street, boxes=BOXES)[0]
    assert whole.draw().width > street.width and differ(whole.draw(), cut.draw())
    explained = naflex(street, explain=["Hat"])
    assert differ(explained.draw(), whole.draw())
    explained.save(tmp_path / "why.jpg")
    assert Image.open(tmp_path / "why.jpg").format == "JPEG"
    with pytest.raises(ValueError, match=r"path='.*none.xyz': .*; expected an ending such as .png"):
        whole.save(tmp_path / "none.xyz")


def test_which_results_remember_their_picture(naflex, street, tmp_path):
    path = tmp_path / "street.png"
    street.save(path)
    (from_path,) = naflex(iter([str(path)]))
    (from_memory,) = naflex(iter([street]))
    (in_list,) = naflex([street])
    assert not differ(from_path.draw(), in_list.draw())
    with pytest.raises(ValueError, match="does not remember its picture, as it comes from a stream: pass image="):
        from_memory.draw()
    assert not differ(from_memory.draw(street), in_list.draw())
    with open(path, "rb") as file:
        from_file = naflex(file)
    assert not differ(from_file.draw(), in_list.draw())  # the file is closed; its bytes were read


def test_boxes_of_a_detector(street):
    detections = [{"label": "person", "score": 0.5, "box": {"xmin": 2, "ymin": 3, "xmax": 60, "ymax": 80}}]
    assert differ(draw_boxes(street, detections), draw_boxes(street, BOXES[:1]))
    assert differ(draw_boxes(np.asarray(street), BOXES), street)
    with pytest.raises(ValueError, match=r"boxes\[0\] is a result without a box"):
        draw_boxes(street, [{"attributes": {}}])
    with pytest.raises(TypeError, match=r"boxes is one result, expected a list .*: pass \[result\]"):
        draw_boxes(street, {"box": BOXES[0], "attributes": {}})

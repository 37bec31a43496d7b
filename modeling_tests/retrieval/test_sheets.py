"""Sheets of people who were found, and maps of queries and people."""

import numpy as np
import pytest
from PIL import Image

from modeling_tests.retrieval.test_gallery import INFO, make_people
from vlm_par_hf.errors import ParError
from vlm_par_hf.retrieval.gallery import Gallery
from vlm_par_hf.retrieval.sheets import draw_search, map_of_people, neighbour_map, open_person, principal_axes
from vlm_par_hf.visualization import search_sheet


@pytest.fixture
def gallery(tmp_path):
    Image.new("RGB", (40, 60), "red").save(tmp_path / "red.png")
    Image.new("RGB", (40, 60), "blue").save(tmp_path / "blue.png")
    people = make_people(3)
    people[0] |= {"path": str(tmp_path / "red.png"), "box": [10, 10, 30, 50]}
    people[1] |= {"path": str(tmp_path / "blue.png"), "box": [100, 100, 300, 500], "video": "street.mp4"}
    gallery = Gallery.create(tmp_path / "gallery", INFO)
    gallery.add(people)
    return gallery


def test_people_are_opened_as_they_were_read(gallery):
    found = {one["path"].rpartition("/")[2]: one for one in gallery.search("hat").people}
    assert open_person(found["red.png"]).size == (20, 40)
    assert open_person(found["blue.png"]).size == (40, 60)  # the box is that of the video's frame
    assert open_person(found["2.jpg"]) is None


def test_a_sheet_has_everybody_and_the_reasons(gallery, tmp_path):
    result = gallery.search("hat, red top")
    sheet = draw_search(result, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == sheet.size
    assert (np.asarray(sheet) == (255, 0, 0)).all(-1).sum() > 1000
    assert draw_search(gallery.search("hat", where="time > 100")).width > 100  # nobody
    with pytest.raises(ParError, match="expected an ending"):
        draw_search(result, tmp_path / "sheet.xyz")


def test_marks_differ():
    picture = Image.new("RGB", (20, 40))
    yes, no = (search_sheet([picture], [[(met, "Hat=yes", "90%")]], names=["1"]) for met in (True, False))
    assert yes.size == no.size and (np.asarray(yes) != np.asarray(no)).any()
    with pytest.raises(ParError, match="1 images, 0 reasons and 1 names"):
        search_sheet([picture], [], names=["1"])


def groups(count: int = 12):
    rng = np.random.default_rng(0)
    centres = np.eye(10)[:4] * 10
    return centres, [centre + rng.normal(size=(count, 10)) * 0.3 for centre in centres]


def test_maps_keep_groups_together():
    centres, people = groups()
    everything = np.concatenate([centres, *people])
    owner = np.concatenate([np.arange(4), np.repeat(np.arange(4), 12)])
    for points in (neighbour_map(everything), principal_axes(everything, 3)):
        distances = ((points[:, None] - points[None]) ** 2).sum(-1)
        np.fill_diagonal(distances, np.inf)
        assert (owner[distances.argmin(1)] == owner).all()
    np.testing.assert_array_equal(neighbour_map(everything), neighbour_map(everything))


def test_principal_axes_hold_the_variance():
    points = np.random.default_rng(0).normal(size=(50, 6)) * [5, 3, 1, 1, 1, 1]
    values = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(principal_axes(points).var(0, ddof=1), values[:2])


def test_a_map_is_drawn(tmp_path):
    centres, people = groups()
    map_of_people(centres, people, tmp_path / "map.png", names=["a", "b", "c", "d"])
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 800
    with pytest.raises(ParError, match="4 queries, 3 groups"):
        map_of_people(centres, people[:3], tmp_path / "map.png", names=["a", "b", "c", "d"])
    with pytest.raises(ParError, match="expected 4 to 2000"):
        neighbour_map(np.zeros((3, 2)))

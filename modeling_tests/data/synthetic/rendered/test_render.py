"""Pictures of rendered people: what must be true of every one of them."""

from dataclasses import replace

import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.bodies import load_bank
from vlm_par_hf.data.synthetic.rendered.people import RenderedPerson, Shot, Thing
from vlm_par_hf.data.synthetic.rendered.pose import pose_body
from vlm_par_hf.data.synthetic.rendered.render import render_picture


pytest.importorskip("numba")

SEED = 3
COVERED = ("torso_front", "torso_back", "sleeves", "upper", "lower")


def _picture(number, **changes):
    person = RenderedPerson.sample(SEED, number)
    shot = replace(Shot.sample(person, 0), height=128, others=(), occluder=None, zoom=0.95, shift=(0.0, 0.0))
    return render_picture(replace(person, **changes), shot)


def test_the_same_picture_for_the_same_numbers():
    person = RenderedPerson.sample(SEED, 1)
    shot = Shot.sample(person, 0)
    first, second = render_picture(person, shot), render_picture(person, shot)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.visible == second.visible and first.boxes == second.boxes and first.whole == second.whole
    other = render_picture(person, Shot.sample(person, 1))
    assert other.image.size != first.image.size or other.image.tobytes() != first.image.tobytes()


@pytest.mark.parametrize("age", ["child", "adult", "elderly"])
def test_clothes_cover_the_torso(age):
    """What of the trunk's skin the clothes leave free ("skin") is next to nothing, and painted as cloth besides."""
    people = (RenderedPerson.sample(SEED, number) for number in range(2000))
    numbers = [person.person_id for person in people if person.age == age][:25]
    for number in numbers:
        visible = _picture(number).visible
        assert visible.get("skin", 0) <= 0.04 * sum(visible.get(name, 0) for name in COVERED), number


def test_the_trunks_skin_has_the_color_of_cloth():
    from vlm_par_hf.data.synthetic.rendered.paint import Surface, paint

    person = RenderedPerson.sample(SEED, 4)
    points = np.array([[0, 0.2, 0.1], [0, -0.05, 0.1], [0.1, 0.4, 0.1]], np.float32)
    surface = Surface(points, np.full(3, -1, np.float32), np.zeros(3, int), ("skin",))
    paint(surface, person, np.random.default_rng(0))
    expected = np.array([person.upper.colors[0], (person.lower or person.upper).colors[0], person.upper.colors[0]])
    assert np.abs(surface.color - expected / 255).max() < 0.1


def test_a_box_holds_what_is_visible_and_the_picture_holds_the_box():
    picture = _picture(7)
    width, height = picture.size
    for name, (left, top, right, bottom) in picture.boxes.items():
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert 0 < picture.visible[name] <= (right - left) * (bottom - top)
    assert picture.boxes["head"][1] < picture.boxes["lower"][1]


def test_a_thing_is_counted_where_it_is_seen():
    person = replace(RenderedPerson.sample(SEED, 11), things={})
    pack = Thing("backpack", (200, 30, 30), (220, 220, 220))
    shot = replace(Shot.sample(person, 0), height=160, others=(), occluder=None, zoom=0.95, shift=(0.0, 0.0))
    with_pack = replace(person, things={"backpack": pack})
    back = render_picture(with_pack, replace(shot, azimuth=180.0))
    front = render_picture(with_pack, replace(shot, azimuth=0.0))
    assert "backpack" not in render_picture(person, shot).visible
    assert back.visible["backpack"] > 5 * front.visible["backpack"]
    assert 0.6 < back.visible["backpack"] / back.whole["backpack"] <= 1.3
    assert front.visible["backpack_straps"] > 0
    assert front.visible["face"] > 0 and back.visible.get("face", 0) == 0


def test_an_occluder_hides_and_a_crop_cuts():
    person = RenderedPerson.sample(SEED, 2)
    shot = replace(Shot.sample(person, 0), height=160, others=(), occluder=None, zoom=0.95, shift=(0.0, 0.0))
    whole = render_picture(person, shot)
    cut = render_picture(person, replace(shot, zoom=1.6, shift=(0.0, 0.3)))
    assert whole.visible["shoes"] > 0 and cut.visible.get("shoes", 0) == 0
    assert cut.whole["shoes"] > 0


@pytest.mark.parametrize("pose", ["standing", "walking", "running", "cycling"])
def test_bones_keep_their_lengths_in_every_pose(pose):
    bank = load_bank()
    person = RenderedPerson.sample(SEED, 5)
    body = bank.body(person.female, person.age, person.body)
    shot = replace(Shot.sample(person, 0), pose=pose)
    posed = pose_body(bank, body, person, shot, np.random.default_rng(0))
    rest = dict(zip(bank.bones, body.joints, strict=True))
    for side in ("left", "right"):
        for first, second in (("thigh", "shin"), ("shin", "foot"), ("upper_arm", "forearm"), ("forearm", "hand")):
            a, b = f"{side}_{first}", f"{side}_{second}"
            length = np.linalg.norm(posed.joints[a] - posed.joints[b])
            np.testing.assert_allclose(length, np.linalg.norm(rest[a] - rest[b]), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.det(posed.rotations), 1, rtol=1e-5)
    feet = min(posed.joints["left_foot"][1], posed.joints["right_foot"][1])
    assert 0.02 < feet < 0.4

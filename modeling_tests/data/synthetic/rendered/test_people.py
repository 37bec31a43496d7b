from collections import Counter

import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.people import RenderedPerson, Shot, logo_place, sample_tracklet, view_of


@pytest.fixture(scope="module")
def people():
    return [RenderedPerson.sample(3, number) for number in range(10_000)]


def _traits(people) -> dict[str, np.ndarray]:
    """Yes or no of what a label may tell of a person."""
    traits = {
        "female": [p.female for p in people],
        "child": [p.age == "child" for p in people],
        "elderly": [p.age == "elderly" for p in people],
        "beard": [p.beard for p in people],
        "dark_hair": [sum(p.hair) < 150 for p in people],
        "short_sleeves": [p.upper.sleeve < 0.6 for p in people],
        "trousers": [p.lower is not None and p.lower.kind == "trousers" for p in people],
        "skirt": [p.lower is None or p.lower.kind == "skirt" for p in people],
        "coat": [p.upper.kind == "coat" for p in people],
        "suit": [p.suit for p in people],
        "dark_top": [sum(p.upper.colors[0]) < 180 for p in people],
        "boots": [p.shoes.kind == "boots" for p in people],
    }
    for pattern in ("stripes", "logo", "plaid", "splice"):
        traits[pattern] = [p.upper.pattern == pattern for p in people]
    for thing in ("hat", "glasses", "mask", "backpack", "shoulder_bag", "handbag", "in_front", "umbrella", "cane"):
        traits[thing] = [thing in p.things for p in people]
    return {name: np.array(values, float) for name, values in traits.items()}


def test_numbers_decide_who_it_is():
    assert RenderedPerson.sample(1, 2) == RenderedPerson.sample(1, 2)
    assert RenderedPerson.sample(1, 2) != RenderedPerson.sample(2, 2)
    person = RenderedPerson.sample(1, 2)
    assert Shot.sample(person, 4, 1) == Shot.sample(person, 4, 1)
    assert len({Shot.sample(person, index, camera) for index in range(3) for camera in (0, 1)}) == 6


def test_build_and_skin_say_nothing_about_anything(people):
    body, tone = np.array([p.body for p in people]), np.array([sum(p.skin) for p in people], float)
    assert body.min() >= 0 and body.max() < 1
    assert abs(np.histogram(body, 10, (0, 1))[0] / len(people) - 0.1).max() < 0.01
    assert np.ptp(tone) > 450  # from dark to light
    bound = 3.9 / np.sqrt(len(people))  # of a correlation by chance, two-sided, over some sixty of them
    assert abs(np.corrcoef(body, tone)[0, 1]) < bound
    for name, values in _traits(people).items():
        for nature in (body, tone):
            assert abs(np.corrcoef(nature, values)[0, 1]) < bound, name


def test_what_depends_on_what_as_in_pa100k(people):
    traits = _traits(people)

    def share(name, *given):
        chosen = np.all([traits[g] > 0 if g[0] != "~" else traits[g[1:]] == 0 for g in given], axis=0)
        return traits[name][chosen].mean()

    # PA-100K's training labels: .456, .586, .709 (dresses count as skirts), .117.
    for name, expected in {"female": 0.456, "short_sleeves": 0.586, "trousers": 0.709, "skirt": 0.117}.items():
        assert traits[name].mean() == pytest.approx(expected, abs=0.03), name
    for name in ("coat", "boots", "stripes", "plaid", "splice", "hat", "in_front", "umbrella", "cane", "mask"):
        assert traits[name].mean() > 0.022, name  # hundreds of each in ten thousand pictures
    assert share("skirt", "~female") == 0 and share("skirt", "female") > 0.2
    assert share("coat", "female") > 3 * share("coat", "~female") and share("coat", "short_sleeves") == 0
    assert share("backpack", "child") > 0.5 > 0.1 > share("backpack", "elderly")
    assert share("shoulder_bag", "female") > 2 * share("shoulder_bag", "~female")
    assert share("boots", "coat") > 2 * share("boots", "~coat")
    assert share("cane", "elderly") > 0.2 and share("hat", "~female") > share("hat", "female")
    assert share("dark_hair", "elderly") < 0.25 < 0.5 < share("dark_hair", "~elderly")


def test_garments_and_hands_are_possible(people):
    for person in people[:3000]:
        assert (person.lower is None) == (person.upper.kind == "dress")
        for garment in (person.upper, person.lower):
            if garment is not None:
                assert 0 <= garment.sleeve <= 1 and 0 <= garment.fit <= 1 and 0.5 <= garment.scale <= 2
                assert all(0 <= value <= 255 for color in garment.colors for value in color)
        held = [
            person.things[name]
            for name in ("handbag", "suitcase", "umbrella", "phone", "cane")
            if name in person.things
        ]
        assert len({thing.side for thing in held}) == len(held) <= 2, "one thing in a hand"
        assert not ("in_front" in person.things and held)
        assert person.legs is None or person.lower is None or person.lower.kind != "trousers"
    assert {logo_place(p.upper) for p in people[:200]} == {"chest", "badge", "back"}


def test_shots_are_within_their_ranges():
    views = Counter()
    for number in range(1500):
        shot = Shot.sample(RenderedPerson.sample(5, number), 0, number % 2)
        views[view_of(shot)] += 1
        assert min(abs((shot.azimuth - border + 180) % 360 - 180) for border in (45, 135, 225, 315)) >= 3.9
        assert 0 <= shot.pitch <= 45 and 4 <= shot.distance <= 20 and 0 <= shot.phase < 1
        assert 0.25 <= shot.aspect <= 0.65 and 96 <= shot.height <= 256 and 0.7 < shot.zoom <= 1.7
        assert all(other >= 10_000_000 for other in shot.others)
    shares = {view: count / 1500 for view, count in views.items()}
    assert shares["front"] == pytest.approx(0.36, abs=0.04) and shares["left"] == pytest.approx(0.14, abs=0.03)


def test_poses_leave_the_hands_and_skirts_their_room():
    for number in range(400):
        person = RenderedPerson.sample(6, number)
        shot = Shot.sample(person, 1)
        if shot.pose == "cycling":
            assert person.lower is not None and person.lower.kind != "skirt" and "handbag" not in person.things
        if shot.pose == "running":
            assert person.age != "elderly" and not {"cane", "suitcase", "umbrella"} & set(person.things)


def test_a_tracklet_keeps_its_view_and_place():
    person = next(p for p in (RenderedPerson.sample(7, n) for n in range(50)) if not p.things)
    shots = sample_tracklet(person, 10, camera=1, track=2)
    assert len(shots) == 10 and len({shot.index for shot in shots}) == 10
    for name in ("azimuth", "pose", "light", "seed", "camera", "aspect", "height", "others", "occluder"):
        assert len({getattr(shot, name) for shot in shots}) == 1, name
    assert sample_tracklet(person, 10, camera=1, track=3)[0].seed != shots[0].seed
    assert shots == sample_tracklet(person, 10, camera=1, track=2)
    with pytest.raises(ValueError, match="num_frames is 0"):
        sample_tracklet(person, 0)
    with pytest.raises(ValueError, match="track is -1"):
        sample_tracklet(person, 8, track=-1)

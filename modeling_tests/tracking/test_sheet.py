"""The page of people: a row for each, and strips where answers changed."""

import numpy as np
from PIL import Image

from vlm_par_hf.tracking import contact_sheet


def person(number, timeline, first=1.0, last=5.0):
    answers = {name: {"label": labels[0], "score": 0.9, "probabilities": {}} for name, labels in timeline.items()}
    times = list(np.linspace(first, last, len(next(iter(timeline.values())))))
    return {
        "id": number, "attributes": answers, "timeline": timeline, "times": times, "first_time": first,
        "last_time": last,
    }  # fmt: skip


def test_a_row_per_person_and_a_strip_per_change():
    picture = Image.new("RGB", (40, 100), (200, 30, 30))
    steady = person(1, {"Hat": ["yes"] * 4, "Bag": ["no"] * 4})
    changing = person(2, {"Hat": ["yes", "no", "yes", None], "Bag": ["no"] * 4}, 0.0, 10.0)
    one, two = contact_sheet([steady], [picture]), contact_sheet([steady, changing], [picture] * 2, duration=10.0)
    assert two.width == one.width and two.height > 1.9 * one.height
    assert one.getpixel((20, 30)) == (200, 30, 30)
    # Of the second person the strip has two colours and a third for what makes no sense.
    strip = np.asarray(two)[one.height + 34, -552:-32]
    colours = {tuple(map(int, pixel)) for pixel in strip}
    assert {(0, 90, 140), (240, 190, 60), (150, 200, 180)} <= colours
    # Of the first one there is no strip, and the time when it was seen is the middle of the page's time.
    seen = (np.asarray(two)[24, -552:-32] == (112, 116, 122)).all(1)
    assert 0.25 < seen.mean() < 0.45 and not seen[:40].any() and not seen[-200:].any()


def test_nobody_and_many_changes():
    assert contact_sheet([], []).size[0] > 500
    timeline = {f"A{number}": ["yes", "no"] for number in range(12)}
    assert contact_sheet([person(1, timeline)], [Image.new("RGB", (1, 1))]).size[0] > 500

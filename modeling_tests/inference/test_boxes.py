"""Boxes of people: the forms they come in, rounding, clipping, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from vlm_par_hf.inference.boxes import BOX_FORMATS, EmptyBox, check_boxes, check_detector_label


def crops(boxes, size=(120, 90), **options):
    return [box.crop for box in check_boxes(boxes, size, **options)]


@pytest.mark.parametrize("form", [tuple, np.array, torch.tensor, pandas.Series, lambda box: iter(list(box))])
def test_forms_of_boxes(form):
    assert crops(form([[0, 0, 30, 80], [40, 10, 70, 90]])) == [(0, 0, 30, 80), (40, 10, 70, 90)]
    assert crops([form([1, 2, 3, 4])]) == [(1, 2, 3, 4)]
    named = {"ymax": 4, "xmin": 1, "xmax": 3, "ymin": 2}
    assert crops([named]) == [(1, 2, 3, 4)] and crops([]) == []


def test_boxes_in_the_order_of_their_container():
    boxes = pandas.Series([[0, 0, 1, 50], [0, 0, 2, 50], [0, 0, 3, 50]]).iloc[::-1]
    assert [box[2] for box in crops(boxes)] == [3, 2, 1]


def test_boxes_are_rounded_outwards_and_clipped():
    assert crops([[90.2, 5.5, 110, 60.1], [10.2, 10.2, 10.6, 10.4]]) == [(90, 5, 110, 61), (10, 10, 11, 11)]
    assert crops([[-20, -3.5, 400, 200]]) == [(0, 0, 120, 90)]
    assert crops([[119.9999, 0, 1e300, 5]]) == [(119, 0, 120, 5)]


@pytest.mark.parametrize(
    "box_format, box",
    [
        ("xyxy", [30, 18, 90, 72]),
        ("xywh", [30, 18, 60, 54]),
        ("cxcywh", [60, 45, 60, 54]),
        ("xyxyn", [0.25, 0.2, 0.75, 0.8]),
        ("xywhn", [0.25, 0.2, 0.5, 0.6]),
        ("cxcywhn", [0.5, 0.5, 0.5, 0.6]),
    ],
)
def test_one_box_in_every_format(box_format, box):
    assert crops([box], box_format=box_format) == [(30, 18, 90, 72)]
    assert crops(np.array([box], np.float32), box_format=box_format) == [(30, 18, 90, 72)]


def test_all_formats_are_tested_above():
    assert set(BOX_FORMATS) == {"xyxy", "xywh", "cxcywh", "xyxyn", "xywhn", "cxcywhn"}


def test_shares_that_are_no_numbers_of_the_machine_lie_on_their_pixels():
    """0.29 * 100 is 28.999999999999996, and 0.07 * 100 is 7.000000000000001."""
    assert crops([[0.29, 0.57, 0.58, 0.7]], (100, 100), box_format="xyxyn") == [(29, 57, 58, 70)]
    assert crops([[0, 0, 0.07, 0.14]], (100, 100), box_format="xyxyn") == [(0, 0, 7, 14)]


@pytest.mark.parametrize("box", [[0.1, 0.1, 0.6, 0.9], [0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0], [-0.02, 0.1, 0.6, 1.03]])
def test_shares_are_not_taken_for_pixels(box):
    for box_format in ("xyxy", "cxcywh", "xywh"):
        with pytest.raises(ValueError, match=rf"boxes\[1\] is .* are shares .* pass box_format='{box_format}n'"):
            check_boxes([[0, 0, 30, 80], box], (120, 90), box_format=box_format)
    assert check_boxes([[0, 0, 1, 1]], (1, 1)) and crops([[0, 0, 2, 2]]) == [(0, 0, 2, 2)]


def test_pixels_are_not_taken_for_shares():
    for box_format in ("xyxyn", "xywhn", "cxcywhn"):
        with pytest.raises(ValueError, match=f"which are pixels.*for pixels pass box_format='{box_format[:-1]}'"):
            check_boxes([[0, 0, 30, 80]], (120, 90), box_format=box_format)
    assert crops([[-0.05, 0.5, 0.5, 1.1]], box_format="xyxyn") == [(0, 45, 60, 90)]


def test_a_margin_is_a_share_of_the_box_and_ends_at_the_picture():
    (box,) = check_boxes([[20, 30, 60, 50]], (120, 90), box_margin=0.25)
    assert box.crop == (10, 25, 70, 55) and box.given == (20, 30, 60, 50)
    (box,) = check_boxes([[0.5, 0.5, 1, 1]], (120, 90), box_format="xyxyn", box_margin=0.1)
    assert box.crop == (54, 40, 120, 90) and box.given == (60, 45, 120, 90)
    with pytest.raises(EmptyBox, match="outside"):  # a margin does not bring a box into the picture
        check_boxes([[121, 0, 140, 50]], (120, 90), box_margin=1)


@pytest.mark.parametrize("margin", [-0.1, 11, float("nan"), "0.1", True, None])
def test_margins_that_are_refused(margin):
    with pytest.raises(ValueError, match="box_margin is .*, expected a share"):
        check_boxes([[0, 0, 10, 10]], (120, 90), box_margin=margin)


def test_names_of_corners_are_corners():
    named = {"xmin": 0.25, "ymin": 0, "xmax": 0.5, "ymax": 1}
    assert crops([named], box_format="xyxyn") == [(30, 0, 60, 90)]
    with pytest.raises(ValueError, match="names the corners xmin, .*, expected .*width, height"):
        check_boxes([named], (120, 90), box_format="xywhn")
    with pytest.raises(ValueError, match="box_format is 'voc', expected one of xyxy, xyxyn"):
        check_boxes([named], (120, 90), box_format="voc")


@pytest.mark.parametrize(
    "box, message",
    [
        ([130, 0, 140, 20], r"boxes\[1\] is \[130, 0, 140, 20\], which is outside.*width 120 and height 90"),
        ([-20, 0, 0, 20], r"boxes\[1\] is .* outside"),
        ([10, 10, 10, 40], r"boxes\[1\] is \[10, 10, 10, 40\], which is empty"),
        ([30, 10, 10, 40], r"boxes\[1\] is \[30, 10, 10, 40\], which is reversed.*width 120 and height 90"),
        ([0, 0, float("nan"), 5], r"boxes\[1\] is \[0, 0, nan, 5\], expected finite numbers"),
        ([0, 0, float("inf"), 5], r"boxes\[1\] .*expected finite numbers"),
        ([0, 0, 5], r"boxes\[1\] is \[0, 0, 5\], expected four numbers"),
        (7, r"boxes\[1\] is 7, expected four numbers"),
        (["a", 0, 5, 5], r"boxes\[1\] .*expected four numbers"),
        (["1", "2", "30", "40"], r"boxes\[1\] .*expected four numbers"),
        ("1234", r"boxes\[1\] .*expected four numbers"),
        (b"1234", r"boxes\[1\] .*expected four numbers"),
        ({0, 1, 5, 6}, r"boxes\[1\] .*expected four numbers"),
        ([True, 0, 5, 5], r"boxes\[1\] .*expected four numbers"),
        ([None, 0, 5, 5], r"boxes\[1\] .*expected four numbers"),
        ([0, 0, 10**400, 5], r"boxes\[1\] .*expected four numbers"),
    ],
)
def test_bad_boxes(box, message):
    with pytest.raises(ValueError, match=message):
        check_boxes([[0, 0, 10, 10], box], (120, 90))


@pytest.mark.parametrize(
    "boxes", ["street", {"xmin": 1}, 5, None, {(0, 0, 5, 5)}, pandas.DataFrame([[0, 0, 5, 5]], columns=list("abcd"))]
)
def test_what_is_no_list_of_boxes(boxes):
    with pytest.raises(TypeError, match="boxes is .*expected"):
        check_boxes(boxes, (120, 90))


def test_detectors_without_labels_are_trusted():
    check_detector_label(SimpleNamespace(model=None), "person")


def test_a_detector_must_have_the_label():
    config = SimpleNamespace(id2label={0: "Bicycle", 1: "Person"})
    detector = SimpleNamespace(model=SimpleNamespace(config=config))
    check_detector_label(detector, "person")
    with pytest.raises(ValueError, match=r"no label 'car', expected one of its own \(Bicycle, Person\)"):
        check_detector_label(detector, "car")

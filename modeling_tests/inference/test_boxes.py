"""Boxes of people: the forms they come in, rounding, clipping, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlm_par_hf.inference.boxes import check_boxes, check_detector_label


@pytest.mark.parametrize("form", [tuple, np.array, torch.tensor])
def test_forms_of_boxes(form):
    assert check_boxes(form([[0, 0, 30, 80], [40, 10, 70, 90]]), (120, 90)) == [(0, 0, 30, 80), (40, 10, 70, 90)]
    assert check_boxes([form([1, 2, 3, 4])], (120, 90)) == [(1, 2, 3, 4)]
    named = {"ymax": 4, "xmin": 1, "xmax": 3, "ymin": 2}
    assert check_boxes([named], (120, 90)) == [(1, 2, 3, 4)] and check_boxes([], (120, 90)) == []


def test_boxes_are_rounded_outwards_and_clipped():
    assert check_boxes([[90.2, 5.5, 110, 60.1], [10.2, 10.2, 10.6, 10.4]], (120, 90)) == [
        (90, 5, 110, 61), (10, 10, 11, 11),
    ]  # fmt: skip
    assert check_boxes([[-20, -3.5, 400, 200]], (120, 90)) == [(0, 0, 120, 90)]


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
    ],
)
def test_bad_boxes(box, message):
    with pytest.raises(ValueError, match=message):
        check_boxes([[0, 0, 10, 10], box], (120, 90))


@pytest.mark.parametrize("boxes", ["street", {"xmin": 1}, 5, None])
def test_what_is_no_list_of_boxes(boxes):
    with pytest.raises(TypeError, match="expected a list of boxes"):
        check_boxes(boxes, (120, 90))


def test_detectors_without_labels_are_trusted():
    check_detector_label(SimpleNamespace(model=None), "person")


def test_a_detector_must_have_the_label():
    config = SimpleNamespace(id2label={0: "Bicycle", 1: "Person"})
    detector = SimpleNamespace(model=SimpleNamespace(config=config))
    check_detector_label(detector, "person")
    with pytest.raises(ValueError, match=r"no label 'car', expected one of its own \(Bicycle, Person\)"):
        check_detector_label(detector, "car")

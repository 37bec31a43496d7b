import numpy as np
import pytest
from PIL import Image

from vlm_par_hf import visualization
from vlm_par_hf.labels.decisions import is_positive_answer
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.visualization import draw_boxes, explanation_grid, overlay_relevance, people_grid


@pytest.fixture
def schema():
    binary = [
        Attribute(name, f"is there a {name}?", prompts=(f"no {name}", f"a {name}")) for name in ("hat", "bag", "skirt")
    ]
    colour = Attribute("top", "what colour is the top?", labels=("red", "blue", "none"), prompts=("r", "b", "n"))
    return AttributeSchema([*binary, colour])


def picture(size=(64, 128), colour=(120, 130, 140)):
    return Image.new("RGB", size, colour)


def answers(schema, *labels):
    return {attribute.name: {"label": label, "score": 0.8} for attribute, label in zip(schema, labels)}


def test_overlay_colours_the_relevant_patch_and_leaves_the_rest():
    relevance = np.zeros((8, 4))
    relevance[2, 1] = 5.0
    result = np.asarray(overlay_relevance(picture(), relevance)).astype(int)
    change = np.abs(result - np.array([120, 130, 140])).sum(-1)
    row, column = np.unravel_index(change.argmax(), change.shape)
    assert 32 <= row < 48 and 16 <= column < 32
    assert change[80:].max() == 0


def test_overlay_is_independent_of_scale_and_offset():
    relevance = np.random.default_rng(0).random((16, 8)).astype(np.float32)
    first = np.asarray(overlay_relevance(picture(), relevance)).astype(int)
    second = np.asarray(overlay_relevance(picture(), 7.0 * relevance - 3.0)).astype(int)
    assert np.abs(first - second).max() <= 1


def test_overlay_of_uniform_relevance_is_the_picture():
    uniform = np.full((8, 4), 1 / 32) + np.random.default_rng(0).normal(0, 1e-9, (8, 4))
    assert np.array_equal(np.asarray(overlay_relevance(picture(), uniform)), np.asarray(picture()))


def test_overlay_takes_pictures_of_any_mode_and_size():
    for mode in ("L", "RGBA", "CMYK"):
        result = overlay_relevance(Image.new(mode, (1, 3)), np.eye(4))
        assert result.mode == "RGB" and result.size == (1, 3)


@pytest.mark.parametrize(
    "relevance, message",
    [
        (np.zeros(32), r"relevance has shape \(32,\)"),
        (np.zeros((0, 4)), r"relevance has shape \(0, 4\)"),
        (np.full((2, 2), np.nan), "relevance holds NaN"),
    ],
)
def test_overlay_refuses_other_maps(relevance, message):
    with pytest.raises(ValueError, match=message):
        overlay_relevance(picture(), relevance)


def test_overlay_refuses_an_opacity_outside_its_range():
    with pytest.raises(ValueError, match="opacity is 1.5"):
        overlay_relevance(picture(), np.eye(2), opacity=1.5)


def test_draw_boxes_draws_outlines_on_a_copy():
    image = picture((200, 100))
    drawn = np.asarray(draw_boxes(image, [[10, 20, 60, 90], [100, 20, 150, 90]]))
    assert np.array_equal(np.asarray(image), np.asarray(picture((200, 100))))
    first, second = drawn[50, 10], drawn[50, 100]
    assert (first != [120, 130, 140]).any() and (second != first).any()
    assert (drawn[50, 35] == [120, 130, 140]).all()


def test_draw_boxes_keeps_tags_inside_the_picture():
    boxes = [[0, 0, 30, 30], [180, 90, 200, 100], [195, 0, 200, 10]]
    bare = np.asarray(draw_boxes(picture((200, 100)), boxes, font_size=12)).astype(int)
    tagged = draw_boxes(picture((200, 100)), boxes, ["hat", ["hat", "blue top"], ""], font_size=12)
    assert tagged.size == (200, 100)
    change = np.abs(np.asarray(tagged).astype(int) - bare).sum(-1) > 0
    assert change[:16, :30].any() and change[60:90, 120:200].any()
    assert not change[:12, 190:].any()  # an empty label draws no tag


def test_draw_boxes_refuses_another_number_of_labels():
    with pytest.raises(ValueError, match="labels has 1 entries, expected one per box \\(2\\)"):
        draw_boxes(picture(), [[0, 0, 5, 5], [1, 1, 5, 5]], ["a"])


def test_positive_answers(schema):
    assert is_positive_answer("yes", schema["hat"]) and not is_positive_answer("no", schema["hat"])
    assert is_positive_answer("red", schema["top"]) and not is_positive_answer("none", schema["top"])
    sex = Attribute("sex", "?", labels=("male", "female"), prompts=("a man", "a woman"))
    assert is_positive_answer("female", sex) and not is_positive_answer("male", sex)
    assert is_positive_answer("blue") and not is_positive_answer("No")


def test_grid_shows_wrong_answers_and_grows_with_the_people(schema):
    right = people_grid([picture()], [answers(schema, "yes", "no", "no", "red")], [[1, 0, 0, 0]], schema)
    wrong = people_grid([picture()], [answers(schema, "yes", "no", "no", "red")], [[1, 1, 0, 1]], schema)
    tint = np.array([253, 237, 227])
    assert not (np.asarray(right) == tint).all(-1).any()
    assert (np.asarray(wrong) == tint).all(-1).any()
    six = people_grid([picture()] * 6, [answers(schema, "yes", "no", "no", "red")] * 6, columns=3)
    one = people_grid([picture()], [answers(schema, "yes", "no", "no", "red")])
    assert six.width > 2.5 * one.width and six.height > 1.8 * one.height


def test_grid_marks_differ_in_shape_not_only_in_colour(schema):
    prediction = [answers(schema, "yes", "no", "no", "red")]
    grey = [
        np.asarray(people_grid([picture()], prediction, [[truth, 0, 0, 0]], schema).convert("L")).astype(int)
        for truth in (1, 0, -100)
    ]
    smallest = [min(one.shape[axis] for one in grey) for axis in (0, 1)]
    grey = [one[: smallest[0], : smallest[1]] for one in grey]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(grey[first] - grey[second]) > 40).sum() > 20


def test_grid_takes_pipeline_results_odd_pictures_and_headings(schema):
    images = [Image.new("L", (1, 1)), picture((640, 40)), Image.new("RGBA", (30, 900))]
    results = [{"attributes": answers(schema, "no", "no", "no", "none")}] * 3
    sheet = people_grid(images, results, names=["a", "b", "c"], title="A title", note="A line under it")
    assert sheet.mode == "RGB" and sheet.width < 3000 and sheet.height < 2000


def test_grid_limits_the_lines_and_keeps_wrong_answers(schema):
    many = AttributeSchema([Attribute(f"a{i}", "?", prompts=("n", "y")) for i in range(40)])
    labels = np.ones((1, 40), dtype=np.int64)
    labels[0, 39] = 0
    prediction = [answers(many, *["yes"] * 40)]
    short = people_grid([picture()], prediction, labels, many, max_lines=5)
    long = people_grid([picture()], prediction, labels, many, max_lines=40)
    assert short.height < long.height
    assert (np.asarray(short) == np.array([253, 237, 227])).all(-1).any()


@pytest.mark.parametrize(
    "images, predictions, options, message",
    [
        (0, 0, {}, "images is empty"),
        (2, 1, {}, "predictions has 1 entries, expected one per image \\(2\\)"),
        (1, 1, {"names": ["a", "b"]}, "names has 2 entries"),
        (1, 1, {"labels": [[0, 0, 0, 0]]}, "labels were given without schema"),
        (1, 1, {"labels": [[0, 0]], "schema": True}, r"labels has shape \(1, 2\), expected \(1, 4\)"),
    ],
)
def test_grid_refuses_what_does_not_match(schema, images, predictions, options, message):
    if "schema" in options:
        options = {**options, "schema": schema}
    people = [answers(schema, "no", "no", "no", "red")] * predictions
    with pytest.raises(ValueError, match=message):
        people_grid([picture()] * images, people, **options)


def test_explanations_stand_in_a_row_per_person(schema):
    red, green = picture(colour=(250, 0, 0)), picture((30, 200), colour=(0, 250, 0))
    results = [
        {"attributes": answers(schema, "yes", "no", "no", "red"), "overlays": {"hat": red, "top": green}},
        {"attributes": {}, "overlays": {"hat": green}},
    ]
    sheet = np.asarray(explanation_grid([picture(), picture()], results, title="Why", note="a note"))
    red_at, green_at = (np.argwhere((sheet == colour).all(-1)) for colour in ([250, 0, 0], [0, 250, 0]))
    assert len(red_at) and len(green_at)
    upper = green_at[green_at[:, 0] < red_at[:, 0].max() + 1]
    assert upper[:, 1].min() > red_at[:, 1].max()  # the second overlay stands right of the first
    assert green_at[:, 0].max() > red_at[:, 0].max()  # and the second person below
    with pytest.raises(ValueError, match=r"results\[0\] has no overlays"):
        explanation_grid([picture()], [{"attributes": {}}])
    with pytest.raises(ValueError, match="results has 2 entries, expected one per image \\(1\\)"):
        explanation_grid([picture()], results)
    with pytest.raises(ValueError, match="images is empty"):
        explanation_grid([], [])


def test_what_is_left_open_is_counted_and_no_positive_answer(schema):
    left_open = {"label": "unknown", "score": None, "probabilities": {"no": 0.5, "yes": 0.5}, "set": ["no", "yes"]}
    low = {**left_open, "reason": "14 pixels high"}
    sure = {"label": "yes", "score": 0.9, "probabilities": {"no": 0.1, "yes": 0.9}}
    lines, footer, _ = visualization._card_lines({"Hat": left_open, "Bag": sure, "Age": left_open}, None, None, 14)
    assert lines == [(None, "Bag", "yes  90%")] and footer == "2 unknown"
    assert visualization._card_lines({"Hat": low, "Bag": low}, None, None, 14)[1] == "2 unknown: 14 pixels high"
    found = dict.fromkeys(schema.names, left_open) | {"bag": sure}
    _, _, summary = visualization._card_lines(found, np.array([1, 1, 0, 0]), schema, 14)
    assert summary == "1 of 1 right"
    assert visualization.tag_lines({"attributes": {"Hat": left_open, "Bag": sure}}) == ["Bag  90%"]
    assert visualization.tag_lines({"attributes": {"Hat": low, "Bag": low}}) == ["unknown: 14 pixels high"]
    grid = explanation_grid([picture()], [{"attributes": {"Hat": low}, "overlays": {"Hat": picture()}}])
    assert grid.width > 100


def test_boxes_of_one_number_have_one_colour():
    page, boxes = Image.new("RGB", (80, 40), (255, 255, 255)), [[5, 5, 25, 35], [40, 5, 60, 35]]

    def colours(numbers):
        drawn = draw_boxes(page, boxes, numbers=numbers)
        return [drawn.getpixel((x0, 20)) for x0, *_ in boxes]

    assert colours([3, 3])[0] == colours([3, 3])[1] == colours([1, 3])[1] != colours([1, 3])[0]
    assert colours(None) == colours([0, 1])

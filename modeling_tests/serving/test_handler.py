"""The handler answers what the pipeline answers, within limits, and a bad picture stays alone."""

import asyncio
import copy
import io
import threading

import pytest
import torch
from PIL import Image

from modeling_tests.services import picture, tiny_pipe
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.serving.handler import AttributeHandler, Limits, NoMeasures, PictureRequest
from vlm_par_hf.serving.refusals import ModelFault, Refusal


BOXES = [[0, 0, 12, 40], [6, 4, 24, 48], [2, 2, 20, 46]]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipe()


def use(pipe, work, limits=None, measures=None):
    """What `work(handler)` returns in an event loop."""

    async def main():
        handler = AttributeHandler(pipe, limits, measures)
        await handler.start()
        try:
            return await asyncio.wait_for(work(handler), 20)
        finally:
            await handler.stop()

    return asyncio.run(main())


def ask(pipe, pictures, options=None, limits=None):
    return use(pipe, lambda handler: handler.answer(pictures, options), limits)


def assert_same(found, wanted):
    """Answers are equal up to rounding: batches differ."""
    assert list(found["attributes"]) == list(wanted["attributes"])
    for name, answer in wanted["attributes"].items():
        own = found["attributes"][name]
        assert own["label"] == answer["label"]
        assert own["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)
    rest = [{key: value for key, value in one.items() if key != "attributes"} for one in (found, wanted)]
    assert rest[0] == rest[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attributes": ["Backpack", "Hat"], "threshold": 0.7},
        {"only_positive": True, "sensitive": False, "thresholds": {"Hat": 0.1}},
    ],
)
def test_answers_are_those_of_the_pipeline(pipe, options):
    pictures = [picture(seed) for seed in range(5)]
    found = ask(pipe, [PictureRequest(one) for one in pictures], options)
    for one, people in zip(pictures, found):
        (person,) = people
        assert_same(person, pipe(one, **options))


def test_people_in_boxes_are_those_of_the_pipeline(pipe):
    data = picture(7)
    ((*people,),) = ask(pipe, [PictureRequest(data, BOXES)], {"box_margin": 0.1})
    wanted = pipe(data, boxes=BOXES, box_margin=0.1)
    assert len(people) == len(wanted) == 3
    for own, one in zip(people, wanted):
        assert_same(own, one)


def test_more_people_than_a_batch_holds_come_in_their_order(pipe):
    data, boxes = picture(8), [[0, 0, 10 + one, 40] for one in range(11)]
    ((*people,),) = ask(pipe, [PictureRequest(data, boxes)], limits=Limits(max_batch=4))
    assert [one["box"] for one in people] == boxes


def test_requests_with_different_options_share_a_forward_pass(pipe):
    sizes = []

    class Sizes(NoMeasures):
        def batch(self, size):
            sizes.append(size)

    async def work(handler):
        sizes.clear()
        asked = [{"threshold": 0.2}, {"attributes": ["Hat"]}, {}, {"sensitive": False}]
        for options in asked:  # known from now on, so that they come at once
            await handler._check(options)
        return await asyncio.gather(*(handler.answer([PictureRequest(picture(1))], options) for options in asked))

    found = use(pipe, work, Limits(max_wait=2.0), Sizes())
    assert sizes == [4]
    shapes = [len(people[0]["attributes"]) for (people,) in found]
    assert shapes == [5, 1, 5, 4]


def test_attributes_in_words_and_relevance_have_passes_of_their_own(pipe):
    data = picture(3)
    options = {"attributes": ["Hat", "wearing a red scarf"], "explain": ["Hat"]}
    ((person,),) = ask(pipe, [PictureRequest(data)], options)
    wanted = pipe(data, **options, explain_as="relevance")
    assert_same({"attributes": person["attributes"]}, {"attributes": wanted["attributes"]})
    assert torch.allclose(
        torch.tensor(person["relevance"]["Hat"]), torch.tensor(wanted["relevance"]["Hat"]), atol=1e-5
    )


def test_a_bad_picture_stays_alone(pipe):
    pictures = [picture(0), b"no picture", picture(1)[:-200], b"", picture(2)]
    found = ask(pipe, [PictureRequest(one) for one in pictures] + [PictureRequest(picture(3), [[50, 50, 60, 60]])])
    refused = [one for one in found if isinstance(one, Refusal)]
    assert [isinstance(one, Refusal) for one in found] == [False, True, True, True, False, True]
    assert [one.status for one in refused] == [422] * 4
    for one, words in zip(refused, ("none of the formats", "truncated or damaged", "is empty", "outside")):
        assert words in str(one)
    assert_same(found[4][0], pipe(pictures[4]))


def one_detector(image, threshold):
    return [{"label": "person", "score": 0.9, "box": {"xmin": 2, "ymin": 2, "xmax": 20, "ymax": 44}}]


def test_a_detector_finds_people_where_no_boxes_are_given():
    pipe = tiny_pipe(detector=one_detector)
    data = picture(4)
    requests = [PictureRequest(data), PictureRequest(data, BOXES[:1]), PictureRequest(data, [])]
    detected, boxed, nobody = ask(pipe, requests)
    assert_same(detected[0], pipe(data)[0])
    assert detected[0]["score"] == 0.9
    assert [one["box"] for one in boxed] == BOXES[:1] and "score" not in boxed[0] and nobody == []
    ((whole,),) = ask(pipe, [PictureRequest(data)], {"detect": False})
    assert "box" not in whole


def test_a_detector_that_fails_is_found_before_the_first_request():
    def broken(image, threshold):
        raise RuntimeError("no weights")

    with pytest.raises(ModelFault, match="the detector fails on a plain grey picture: .*RuntimeError: no weights"):
        ask(tiny_pipe(detector=broken), [])


def test_a_model_that_fails_is_found_before_the_first_request():
    pipe = tiny_pipe("naflex")
    with torch.no_grad():
        next(iter(pipe.model.attribute_heads.parameters())).fill_(float("nan"))
    with pytest.raises(ModelFault, match="the model fails on a plain grey picture: the score of attribute"):
        ask(pipe, [])


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"attributes": ["Hatt"]}, "Hatt"),
        ({"threshold": 2.0}, "threshold"),
        ({"box_format": "abc"}, "box_format is 'abc'"),
        ({"abstain": 0.9}, "nothing was fitted"),
        ({"detect": True}, "started without a detector"),
        ({"explain": ["Shoes"]}, "explain names 'Shoes'"),
    ],
)
def test_options_that_are_refused(pipe, options, reason):
    with pytest.raises(Refusal, match=reason) as caught:
        ask(pipe, [PictureRequest(picture())], options)
    assert (caught.value.status, caught.value.code) == (422, "options")


def test_a_refusal_travels_between_processes():
    refusal = Refusal(429, "busy", "too much", retry_after=3)
    found = copy.copy(refusal)  # in the way in which pickle does it
    assert found is not refusal and (found.status, found.code, found.retry_after) == (429, "busy", 3)
    assert str(found) == "too much"


def bomb(side=4000):
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "request_, reason",
    [
        (PictureRequest(bomb()), "4000x4000 pixels, expected at most 1000000"),
        (PictureRequest(picture(), [[0, 0, 5, 5]] * 9), "9 people, expected at most 8"),
    ],
)
def test_what_is_too_large(pipe, request_, reason):
    (refusal,) = ask(pipe, [request_], limits=Limits(max_pixels=1_000_000, max_people=8))
    assert refusal.status == 413 and reason in str(refusal)


def test_too_many_pictures(pipe):
    with pytest.raises(Refusal, match="3 pictures were sent, expected at most 2"):
        ask(pipe, [PictureRequest(picture())] * 3, limits=Limits(max_pictures=2))


def test_too_much_in_work(pipe):
    async def work(handler):
        with handler.reserve(3) as take:
            with pytest.raises(Refusal, match="4 pictures are in work, of at most 4; ask again in 1 s") as caught:
                take(1)
                take(1)
            assert (caught.value.status, caught.value.retry_after) == (429, 1)
            assert handler.in_work == 4
        assert handler.in_work == 0

    use(pipe, work, Limits(max_in_work=4, max_pictures=4))


def test_what_takes_too_long_is_given_up(pipe):
    free = threading.Event()

    async def work(handler):
        handler.pipe.processor = slow
        try:
            with pytest.raises(Refusal, match=r"more than 0\.2 seconds") as caught:
                await handler.answer([PictureRequest(picture())])
        finally:
            free.set()
            handler.pipe.processor = processor
        assert caught.value.status == 503 and caught.value.retry_after >= 1
        people = await handler._answer_picture(PictureRequest(picture()), await handler._check({}))
        assert len(people) == 1  # the service goes on

    processor = pipe.processor

    def slow(**inputs):
        free.wait(5)
        return processor(**inputs)

    use(pipe, work, Limits(seconds=0.2))


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"max_batch": 0}, "max_batch is 0, expected a number above 0"),
        ({"max_wait": -1}, "max_wait is -1"),
        ({"max_pictures": 9, "max_in_work": 8}, "max_pictures is 9 and max_in_work is 8"),
    ],
)
def test_limits_that_make_no_sense(values, reason):
    with pytest.raises(ParValueError, match=reason):
        Limits(**values)


def test_options_are_checked_once_and_not_kept_without_end(pipe, monkeypatch):
    monkeypatch.setattr("vlm_par_hf.serving.handler._KEPT_OPTIONS", 3)
    read = []

    async def work(handler):
        original = handler._read_options
        handler._read_options = lambda options, text: (read.append(text), original(options, text))[1]
        for value in (0.1, 0.1, 0.2, 0.3, 0.1, 0.4, 0.1, 0.2):
            await handler._check({"threshold": value})
        assert len(handler._options) == 3

    use(pipe, work)
    assert [text[-4:-1] for text in read] == ["0.1", "0.2", "0.3", "0.4", "0.2"]

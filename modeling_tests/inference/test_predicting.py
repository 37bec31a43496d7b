"""The prediction loop that pipeline, annotation, evaluation and exports share."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_tests.tiny import (
    TINY_KINDS,
    randomize,
    tiny_focus_model,
    tiny_focus_processor,
    tiny_inputs,
    tiny_model,
    tiny_processor,
    tiny_schema,
)
from vlm_par_hf.inference.predicting import (
    collate_inputs,
    predict_batch,
    predict_logits,
    read_ahead,
)
from vlm_par_hf.training import compute_features


@pytest.fixture(scope="module")
def model():
    return randomize(tiny_model("naflex"))


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("naflex")


@pytest.mark.parametrize("kind", TINY_KINDS)
@pytest.mark.parametrize("explain", [False, True])
def test_a_batch_is_what_the_model_answers_and_explains(kind, explain):
    model, inputs = randomize(tiny_model(kind, attention_dropout=0.5)), tiny_inputs(kind)
    with torch.no_grad():
        logits, relevance = model(**inputs).logits, model.explain(**inputs)
    found = predict_batch(model, inputs, explain=explain)
    torch.testing.assert_close(found.pop("logits"), logits, atol=1e-6, rtol=1e-5)
    if explain:
        torch.testing.assert_close(found.pop("relevance"), relevance, atol=1e-6, rtol=1e-5)
        if kind != "fixed":
            assert torch.equal(found.pop("spatial_shapes"), inputs["spatial_shapes"])
    assert not found


def test_a_batch_is_cast_and_comes_back_as_float32(model):
    half, inputs = tiny_model("naflex").to(torch.bfloat16), tiny_inputs("naflex")
    seen = {}
    forward = half.forward

    def noting(**given):
        seen.update(given)
        return forward(**given)

    half.forward = noting
    logits = predict_batch(half, inputs)["logits"]
    assert logits.dtype == torch.float32 and logits.device.type == "cpu" and not logits.requires_grad
    assert seen["pixel_values"].dtype == torch.bfloat16
    assert seen["spatial_shapes"].dtype == torch.int64 and seen["pixel_attention_mask"].dtype == torch.int32
    assert inputs["pixel_values"].dtype == torch.float32, "the caller's inputs are as they were"


def test_logits_of_another_dtype_become_float32():
    class Half(torch.nn.Linear):
        device, dtype = torch.device("cpu"), torch.bfloat16
        config = SimpleNamespace(schema=tiny_schema())

        def forward(self, pixel_values):
            return SimpleNamespace(logits=pixel_values)

    found = predict_batch(Half(1, 1), {"pixel_values": torch.ones(2, 3, 2)})
    assert found["logits"].dtype == torch.float32


def test_the_tower_runs_once_for_answers_and_relevance(model, monkeypatch):
    runs, get_image_features = [], type(model).get_image_features

    def counting(self, *args, **kwargs):
        runs.append(1)
        return get_image_features(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "get_image_features", counting)
    predict_batch(model, tiny_inputs("naflex"), explain=True)
    assert len(runs) == 1


def test_attributes_of_a_call():
    model = randomize(tiny_focus_model("naflex"))
    asked = model.encode_attributes(["a red scarf", "a backpack"], tiny_focus_processor("naflex"))
    found = predict_batch(model, tiny_inputs("naflex"), attributes=asked, explain=True)
    assert found["logits"].shape[:2] == found["relevance"].shape[:2] == (3, 2)
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], model(**tiny_inputs("naflex"), attributes=asked).logits)


def test_logits_and_labels_in_the_order_of_the_split(model, processor, data):
    logits, labels = predict_logits(model, processor, data["test"], batch_size=7, progress=False)
    assert logits.shape == (20, len(tiny_schema()), 2) and logits.dtype == np.float32
    assert labels.tolist() == [list(row) for row in data["test"]["labels"]]
    one_by_one, _ = predict_logits(model, processor, data["test"], batch_size=1, progress=False)
    np.testing.assert_allclose(logits, one_by_one, atol=1e-4)
    features = compute_features(model, data["test"], processor, dtype=torch.float32, progress=False)
    np.testing.assert_allclose(predict_logits(model, processor, features, progress=False)[0], logits, atol=1e-4)


def test_the_model_is_left_in_the_mode_it_was_in(processor, data):
    model = tiny_model("naflex").train()
    predict_logits(model, processor, data["test"], progress=False)
    assert model.training


def test_an_empty_split_is_an_error(model, processor, data):
    with pytest.raises(ValueError, match="split is empty"):
        predict_logits(model, processor, data["test"].select([]), progress=False)


def test_collate_fills_shorter_patch_axes():
    items = [
        {"pixel_values": torch.ones(1, n, 4), "pixel_attention_mask": torch.ones(1, n, dtype=torch.int32)}
        for n in (3, 5)
    ]
    batch = collate_inputs(items)
    assert batch["pixel_values"].shape == (2, 5, 4) and batch["pixel_values"][0, 3:].sum() == 0
    assert batch["pixel_attention_mask"].sum(1).tolist() == [3, 5]


def test_inputs_of_one_length_are_only_joined():
    items = [{"pixel_values": torch.full((1, 3, 4, 4), float(n)), "flag": torch.tensor([n])} for n in range(3)]
    batch = collate_inputs(items)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1, 2] and batch["flag"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_come_in_order(threads):
    def work(number):
        time.sleep(0.001 * (7 - number))  # the later, the faster
        return number

    pool = ThreadPoolExecutor(threads) if threads else None
    tasks = ((1, lambda number=number: work(number)) for number in range(8))
    assert list(read_ahead(tasks, pool, 5)) == list(range(8))


def test_without_threads_a_task_is_done_when_it_is_asked_for():
    done = []
    results = read_ahead(((1, lambda n=n: done.append(n) or n) for n in range(5)), None, 3)
    assert not done and next(results) == 0 and done == [0]
    assert next(results) == 1 and done == [0, 1]


@pytest.mark.parametrize(("weight", "ahead", "expected"), [(1, 4, 4), (2, 4, 2), (3, 4, 2), (9, 4, 1)])
def test_what_is_under_way_is_bounded_by_its_weight(weight, ahead, expected):
    """The result that is handed out no longer counts, so as many tasks as before are under way beside it."""
    taken = []

    def tasks():
        for number in range(40):
            taken.append(number)
            yield weight, lambda number=number: number

    with ThreadPoolExecutor(2) as pool:
        for count, _ in enumerate(read_ahead(tasks(), pool, ahead)):
            assert len(taken) == min(40, count + expected)


def test_tasks_run_in_the_threads_and_at_the_same_time():
    both = threading.Barrier(2, timeout=20)

    def work():
        both.wait()  # returns only if two tasks run at once
        return threading.current_thread().name

    with ThreadPoolExecutor(2, thread_name_prefix="reader") as pool:
        names = list(read_ahead(((1, work) for _ in range(4)), pool, 2))
    assert all(name.startswith("reader") for name in names)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("place", ["task", "iterator"])
def test_an_error_comes_after_the_results_before_it(threads, place):
    def fail():
        raise ValueError("number 3")

    def tasks():
        for number in range(3):
            yield 1, lambda number=number: number
        if place == "iterator":
            fail()
        yield 1, fail

    results, found = read_ahead(tasks(), ThreadPoolExecutor(threads) if threads else None, 10), []
    with pytest.raises(ValueError, match="number 3"):
        for result in results:
            found.append(result)
    assert found == [0, 1, 2]


def test_the_image_is_named_by_its_place_in_the_split(model, processor, data, monkeypatch):
    real = type(model).forward
    seen = []

    def forward(self, **inputs):
        output = real(self, **inputs)
        seen.append(len(output.logits))
        if len(seen) == 2:
            output.logits[1, 0] = torch.nan
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    with pytest.raises(ValueError, match="'Hat', label 'no', is nan for image 8,"):
        predict_logits(model, processor, data["test"], batch_size=7, progress=False)


def test_a_score_that_is_not_finite_is_refused_and_named(model, processor):
    """A comparison with NaN is False, so it would be answered with "no"."""
    broken = copy.deepcopy(model)
    broken.attribute_heads.classifier_bias.data[1, 0] = torch.nan
    inputs = tiny_inputs("naflex", batch=2)
    with pytest.raises(ValueError, match="'Backpack', label 'no', is nan for image 0, expected a finite number"):
        predict_batch(broken, inputs)
    with pytest.raises(ValueError, match="'Backpack'.*image 'a.png'"):
        predict_batch(broken, inputs, names=["a.png", "b.png"])
    with torch.no_grad():
        output = broken(**inputs)
    with pytest.raises(ValueError, match="'Backpack', label 'no', is nan for image 0"):
        processor.post_process_attributes(output, broken.config.schema)
    logits = torch.zeros(2, 3, 2)
    logits[1, 2, 1] = torch.inf
    with pytest.raises(ValueError, match="'Female', label 'yes', is inf for image 1"):
        processor.post_process_attributes(logits, broken.config.schema)

"""Several frames of a person through the pipeline, by models of single pictures and by one that takes frames."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_tests.tiny import (
    randomize,
    tiny_model,
    tiny_processor,
    tiny_schema,
    tiny_vtf_model,
    tiny_vtf_processor,
)
from vlm_par_hf import PedestrianAttributesPipeline, Tracklet, TrackletDataset, load_par_dataset
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.inference.tracklets import AGGREGATES, aggregate_logits, frame_quality, predict_tracklets
from vlm_par_hf.labels.decisions import label_softmax


def frames_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (20, 12, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def pipe():
    return PedestrianAttributesPipeline(randomize(tiny_model("kway")), processor=tiny_processor("kway"))


@pytest.fixture(scope="module")
def vtf():
    return PedestrianAttributesPipeline(randomize(tiny_vtf_model("kway")), processor=tiny_vtf_processor("kway"))


def probabilities(result):
    return {name: one["probabilities"] for name, one in result["attributes"].items()}


def test_the_logits_of_a_tracklet_are_those_of_its_frames_together(pipe):
    frames, schema = frames_of(5), tiny_schema(kway=True)
    with torch.no_grad():
        logits = pipe.model(**pipe.processor(images=frames)).logits.numpy()
    for aggregate in AGGREGATES:
        found = pipe(Tracklet(frames), aggregate=aggregate)
        wanted = label_softmax(aggregate_logits(logits, schema, aggregate), schema)
        for row, one in zip(wanted, schema):
            given = list(found["attributes"][one.name]["probabilities"].values())
            assert given == pytest.approx(row[: one.num_labels].tolist(), abs=1e-5), (aggregate, one.name)
        assert found["num_frames"] == 5
    assert probabilities(pipe(Tracklet(frames))) == probabilities(pipe(Tracklet(frames), aggregate="mean_logits"))
    assert probabilities(pipe(Tracklet(frames[:1]))) == probabilities(pipe(frames[0]))
    np.testing.assert_allclose(aggregate_logits(logits, schema), logits.mean(0), rtol=1e-5)


def test_votes():
    schema = tiny_schema(kway=True)
    logits = np.zeros((5, 5, 4))
    logits[:3, 0, 1], logits[3:, 0, 1] = 0.1, -9.0  # three weak "yes", two sure "no"
    logits[:, 1, 1] = np.log([0.45 / 0.55] * 5)  # above the attribute's own threshold of 0.4
    logits[[0, 1, 2, 3, 4], 3, [2, 2, 1, 0, 2]] = 1.0
    found = label_softmax(aggregate_logits(logits, schema, "vote"), schema)
    assert found[0, 1] == pytest.approx(0.6, abs=1e-3) and found[1, 1] > 0.99
    assert found[3] == pytest.approx([0.2, 0.2, 0.6, 0.001], abs=2e-3)
    assert label_softmax(aggregate_logits(logits, schema), schema)[0, 1] < 0.1
    assert label_softmax(aggregate_logits(logits, schema, "vote", thresholds=0.5), schema)[1, 1] < 0.01


def test_the_majority_decides_whatever_the_thresholds_are(pipe):
    frames = frames_of(3)
    answers = [pipe(frame) for frame in frames]
    found = pipe(Tracklet(frames), aggregate="vote")
    for name, one in found["attributes"].items():
        labels = [answer["attributes"][name]["label"] for answer in answers]
        assert labels.count(one["label"]) >= 2 or len(set(labels)) == 3
    held = pipe(Tracklet(frames), aggregate="vote", threshold=0.0)
    assert all(one["label"] == "yes" for one in held["attributes"].values() if "yes" in one["probabilities"])


def test_quality_prefers_frames_that_agree():
    schema = tiny_schema()
    p = np.empty((5, 3, 2))
    p[..., 1] = [*[[0.9, 0.1, 0.9]] * 3, [0.5, 0.5, 0.5], [0.1, 0.9, 0.1]]
    p[..., 0] = 1 - p[..., 1]
    quality = frame_quality(p, schema)
    assert quality[0] == quality[1] == quality[2] == 1 > quality[3] > quality[4] > 0
    assert frame_quality(p[:1], schema).tolist() == [1] and frame_quality(p[:2], schema).tolist() == [1, 1]
    logits = np.log(p)
    logits = np.where(np.arange(2) == 0, 0.0, logits[..., 1:] - logits[..., :1])
    together = label_softmax(aggregate_logits(logits, schema, "quality"), schema)
    mean = label_softmax(aggregate_logits(logits, schema), schema)
    assert together[0, 1] == pytest.approx(0.9, abs=0.01) and mean[0, 1] < 0.8


def test_what_is_one_person_and_what_are_several(pipe, vtf, tmp_path):
    frames = frames_of(4)
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"frame{number + 8}.png")  # 8, 9, 10, 11: in the order of numbers
    for one in (pipe, vtf):
        wanted = one(Tracklet(frames))
        assert probabilities(one({"frames": frames})) == probabilities(wanted)
        assert probabilities(one({"frames": str(tmp_path)})) == probabilities(one(Tracklet(tmp_path)))
        assert probabilities(one(Tracklet(tmp_path)))["Hat"] == pytest.approx(probabilities(wanted)["Hat"], abs=1e-5)
        people = one([Tracklet(frames), {"frames": frames[:2]}], batch_size=2)
        assert isinstance(people, list) and [person["num_frames"] for person in people] == [4, 2]
        assert probabilities(people[0])["UpperColor"] == pytest.approx(probabilities(wanted)["UpperColor"], abs=1e-5)
        stream = one(iter([Tracklet(frames), Tracklet(frames[2:])]), batch_size=1)
        assert [person["num_frames"] for person in stream] == [4, 2]
        assert len(one(frames)) == 4 and "num_frames" not in one(frames)[0]  # a list is several people
        assert [len(person["attributes"]) for person in one(iter(frames))] == [5] * 4
        assert one(Tracklet(frames), num_frames=2)["num_frames"] == 2
        assert "Female" not in one(Tracklet(frames), sensitive=False)["attributes"]
        assert list(one(Tracklet(frames), attributes=["UpperColor", "Hat"])["attributes"]) == ["UpperColor", "Hat"]
    assert pipe(Tracklet(frames)).draw().size[1] > 20
    data = load_par_dataset("synthetic_tracklets", num_train=1, num_validation=1, num_test=2, length=2)["test"]
    assert [person["num_frames"] for person in vtf(TrackletDataset(data))] == [2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pipe, frames: pipe(frames, aggregate="vote"), "aggregate and num_frames are for the frames of one"),
        (
            lambda pipe, frames: pipe(Tracklet(frames), aggregate="max"),
            "aggregate is 'max', expected one of mean_logi",
        ),
        (lambda pipe, frames: pipe(Tracklet(frames), num_frames=0), "num_frames is 0, expected at least 1"),
        (lambda pipe, frames: pipe(Tracklet(frames), boxes=[[0, 0, 2, 2]]), "boxes or a detector were given with tr"),
        (lambda pipe, frames: pipe(Tracklet(frames), explain=True), "explain shows the patches of one picture"),
        (lambda pipe, frames: pipe([Tracklet(frames), frames[0]]), "a Image among tracklets, expected a Tracklet"),
        (lambda pipe, frames: pipe([Tracklet(frames), Tracklet([frames[0], b"x"])]), "tracklet 1, frame 1: image"),
        (lambda pipe, frames: Tracklet([]), "frames is empty"),
        (lambda pipe, frames: Tracklet("nowhere"), "nowhere is no folder"),
        (lambda pipe, frames: Tracklet(frames[0]), "frames is a Image, expected a list of pictures or a folder"),
    ],
)
def test_what_is_refused(pipe, call, message):
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        call(pipe, frames_of(3))


def test_what_was_answered_before_a_bad_frame_is_not_lost(pipe, vtf):
    frames = frames_of(2)
    for one in (pipe, vtf):
        stream = one(iter([Tracklet(frames), Tracklet(frames[:1]), Tracklet([frames[0], b"x"])]), batch_size=8)
        assert [next(stream)["num_frames"] for _ in range(2)] == [2, 1]
        with pytest.raises(ValueError, match="tracklet 2, frame 1: image"):
            next(stream)
        assert list(one(iter([Tracklet(frames)] * 3), batch_size=2))[2]["num_frames"] == 2


def test_a_model_that_takes_frames_has_no_aggregate(vtf):
    with pytest.raises(ValueError, match="VtfParModel takes all frames of a person at once"):
        vtf(Tracklet(frames_of(2)), aggregate="vote")


def test_logits_of_a_split_of_tracklets():
    data = load_par_dataset("synthetic_tracklets", num_train=1, num_validation=1, num_test=3, length=4)["test"]
    schema = data_schema(data)
    model = randomize(tiny_model("naflex", attributes=schema))
    per_frame, _ = predict_logits(model, tiny_processor(), data, progress=False)
    logits, labels = predict_tracklets(model, tiny_processor(), data, aggregate="vote", progress=False)
    assert logits.shape == (3, 29, schema.max_labels) and labels.tolist() == data["labels"][::4]
    for number in range(3):
        wanted = aggregate_logits(per_frame[4 * number : 4 * number + 4], schema, "vote")
        np.testing.assert_allclose(logits[number], wanted, atol=1e-4)
    half, _ = predict_tracklets(model, tiny_processor(), data, num_frames=2, progress=False)
    np.testing.assert_allclose(half[1], per_frame[[4, 6]].mean(0), atol=1e-4)
    vtf = tiny_vtf_model("naflex", attributes=schema, num_frames=3)
    found, _ = predict_tracklets(vtf, tiny_vtf_processor(), data, progress=False)
    again, same = predict_logits(vtf, tiny_vtf_processor(), data, progress=False)
    assert np.array_equal(found, again) and same.tolist() == labels.tolist()
    with pytest.raises(ValueError, match="takes all frames of a person at once"):
        predict_tracklets(vtf, tiny_vtf_processor(), data, aggregate="vote")


def data_schema(data):
    from vlm_par_hf import dataset_schema

    return dataset_schema(data)

"""Detectors in files: that of Intel on real people, and what is refused."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modeling_tests.videos import write_video
from vlm_par_hf.errors import ParError
from vlm_par_hf.inference.videos import Video
from vlm_par_hf.tracking.detection import OpenVinoDetector, is_file_of_boxes, open_file


pytest.importorskip("av")
DATA = Path(os.environ.get("PAR_DATA", "")).absolute()
NETWORK = DATA / "networks" / "pedestrian-detection-adas-0002.xml"


def ssd(path, labels=(1, 1), size=(32, 24)):
    """A network that finds two boxes in every picture: the form of SSD detectors, in a file."""
    ov = pytest.importorskip("openvino")
    rows = [[0, labels[0], 0.9, 0.1, 0.2, 0.3, 0.8], [0, labels[1], 0.4, 0.5, 0.2, 0.7, 0.9], [-1, 0, 0, 0, 0, 0, 0]]
    picture = ov.opset13.parameter([1, 3, size[1], size[0]], np.float32, name="data")
    nothing = ov.opset13.multiply(
        ov.opset13.reduce_mean(picture, ov.opset13.constant([0, 1, 2, 3]), False), np.float32(0)
    )
    found = ov.opset13.add(ov.opset13.constant(np.array([[rows]], np.float32)), nothing)
    ov.save_model(ov.Model([found], [picture], "ssd"), str(path), compress_to_fp16=False)
    return path


@pytest.fixture
def video(tmp_path):
    return Video(write_video(tmp_path / "a.mp4", [np.full((120, 200, 3), 90, np.uint8)]))


def test_boxes_of_an_openvino_file(tmp_path, video):
    detector = open_file(ssd(tmp_path / "net.xml"), video)
    boxes, scores = detector.find(next(video.frames()))
    np.testing.assert_allclose(boxes, [[20, 24, 60, 96], [100, 24, 140, 108]], atol=1e-4)
    np.testing.assert_allclose(scores, [0.9, 0.4], atol=1e-6)
    assert detector.tracks is None and len(detector.digest) == 128
    detector = open_file(tmp_path / "net.xml", video, threshold=0.5)
    assert len(detector.find(next(video.frames()))[0]) == 1


def test_several_labels_need_a_number(tmp_path, video):
    path, frame = ssd(tmp_path / "net.xml", labels=(1, 2)), next(video.frames())
    with pytest.raises(ParError, match="finds things of the labels 1, 2, and its file has no names"):
        open_file(path, video).find(frame)
    assert open_file(path, video, label="2").find(frame)[1].tolist() == pytest.approx([0.4])
    with pytest.raises(ParError, match="detector_label is 'person', expected a number"):
        open_file(path, video, label="person")


def test_what_is_no_detector_is_refused(tmp_path):
    ov = pytest.importorskip("openvino")
    one = ov.opset13.parameter([1, 4], np.float32)
    ov.save_model(ov.Model([ov.opset13.relu(one)], [one], "other"), str(tmp_path / "other.xml"))
    with pytest.raises(ParError, match=r"other.xml' takes .* expected one picture of a fixed size and detections"):
        OpenVinoDetector(tmp_path / "other.xml")
    (tmp_path / "other.bin").unlink()
    with pytest.raises(ParError, match="there is no file '.*other.bin'"):
        OpenVinoDetector(tmp_path / "other.xml")
    for name in ("text.xml", "text.bin"):
        (tmp_path / name).write_text("no network")
    with pytest.raises(ParError, match="text.xml' cannot be read by OpenVINO"):
        OpenVinoDetector(tmp_path / "text.xml")


def test_what_is_a_file():
    assert is_file_of_boxes("a.TXT") and is_file_of_boxes(Path("a/b.xml")) and not is_file_of_boxes("org/model")
    assert not is_file_of_boxes(lambda image: [])


@pytest.mark.skipif(not NETWORK.is_file(), reason="PAR_DATA has no networks")
def test_the_real_detector_finds_a_real_person(tmp_path):
    pytest.importorskip("openvino")
    picture = np.full((360, 640, 3), 110, np.uint8)
    crop = next(
        one
        for one in (Image.open(path) for path in sorted((DATA / "pa100k_mini").rglob("*.jpg"))[:200])
        if one.height > 200
    )
    crop = np.asarray(crop.convert("RGB").resize((90, 220)))
    picture[80:300, 300:390] = crop
    video = Video(write_video(tmp_path / "a.mp4", [picture]))
    boxes, scores = OpenVinoDetector(NETWORK).find(next(video.frames()))
    best = boxes[scores.argmax()]
    assert scores.max() > 0.5 and np.abs(best - [300, 80, 390, 300]).max() < 60

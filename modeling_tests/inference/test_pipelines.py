import io
import itertools
import logging
import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from tiny import TINY_KINDS, randomize, tiny_model, tiny_processor
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import vlm_par_hf
from vlm_par_hf.inference import pictures, pipelines
from vlm_par_hf.inference.boxes import check_detector_label
from vlm_par_hf.inference.pictures import TASK
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.inference.predicting import collate_inputs


def make_pipe(kind="naflex", **options):
    return PedestrianAttributesPipeline(
        model=randomize(tiny_model(kind)), processor=tiny_processor(kind), device="cpu", **options
    )


@pytest.fixture(scope="module", params=TINY_KINDS)
def pipe(request):
    return make_pipe(request.param)


@pytest.fixture(scope="module")
def naflex():
    return make_pipe("naflex")


def crop(seed=0, size=(24, 48)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def close(first, second, tolerance=1e-5):
    """Equal results, numbers up to rounding."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key], tolerance) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(close(a, b, tolerance) for a, b in zip(first, second))
    if isinstance(first, np.ndarray):
        return first.shape == second.shape and np.abs(first - second).max() <= tolerance
    if isinstance(first, float):
        return abs(first - second) <= tolerance
    if isinstance(first, Image.Image):
        return first.size == second.size and np.abs(np.asarray(first, int) - np.asarray(second, int)).max() <= 2
    return first == second


class TestOnePicture:
    def test_answers_as_model_and_processor_do(self, pipe):
        result = pipe(crop())
        assert set(result) == {"attributes"}
        with torch.no_grad():
            out = pipe.model(**pipe.processor(images=[crop()], return_tensors="pt"))
        (expected,) = pipe.processor.post_process_attributes(out, schema=pipe.model.config.schema)
        assert close(result["attributes"], expected)
        assert tuple(result["attributes"]) == pipe.model.config.schema.names

    def test_picture_matters(self, pipe):
        assert not close(pipe(crop(0)), pipe(Image.new("RGB", (24, 48))))

    def test_all_kinds_of_source_agree(self, pipe, tmp_path):
        image = crop()
        path = tmp_path / "crop.png"
        image.save(path)
        data = path.read_bytes()
        expected = pipe(image)
        array = np.asarray(image)
        tensor = torch.from_numpy(array.copy())
        sources = (str(path), path, data, bytearray(data), io.BytesIO(data), array, tensor, array / 255.0)
        for source in (*sources, {"image": image}, {"bytes": data, "path": None}, {"image": {"bytes": data}}):
            assert close(pipe(source), expected, 1e-4), type(source)

    def test_url(self, pipe, tmp_path):
        crop().save(tmp_path / "crop.png")
        (tmp_path / "page.html").write_text("<html>")
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.RequestHandlerClass.log_message = lambda *args: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            assert close(pipe(f"{address}/crop.png", timeout=5), pipe(crop()))
            with pytest.raises(ValueError, match="could not read http://.*missing.png: .*404"):
                pipe(f"{address}/missing.png")
            with pytest.raises(ValueError, match="page.html holds no picture"):
                pipe(f"{address}/page.html")
        finally:
            server.shutdown()
            server.server_close()

    def test_training_mode_neither_matters_nor_is_lost(self):
        pipe = PedestrianAttributesPipeline(
            model=randomize(tiny_model("naflex", attention_dropout=0.5)),
            processor=tiny_processor("naflex"),
            device=-1,
        )
        expected = pipe(crop())
        pipe.model.train()
        assert close(pipe(crop()), expected)
        assert pipe.model.training


class TestOptions:
    def test_only_positive(self, pipe):
        schema = pipe.model.config.schema
        everything, positive = pipe(crop())["attributes"], pipe(crop(), only_positive=True)["attributes"]
        for name, answer in everything.items():
            attribute = schema[name]
            says_no = answer["label"] == attribute.labels[0] if attribute.is_binary else answer["label"] == "none"
            assert (name in positive) == (not says_no)
        assert any(close(pipe(crop(seed))["attributes"], everything) is False for seed in (1, 2))

    def test_sensitive(self, pipe):
        schema = pipe.model.config.schema
        marked = {attribute.name for attribute in schema if attribute.sensitive}
        assert marked
        names = set(pipe(crop(), sensitive=False)["attributes"])
        assert names == set(pipe(crop())["attributes"]) - marked

    def test_options_of_the_pipeline_hold_until_a_call_overrides_them(self):
        pipe = make_pipe("naflex", only_positive=True, explain=True, batch_size=2)
        assert "overlays" in pipe(crop())
        result = pipe(crop(), only_positive=False, explain=False)
        assert set(result) == {"attributes"} and len(result["attributes"]) == len(pipe.model.config.schema)
        assert "overlays" in pipe(crop())

    def test_explain(self, pipe):
        name = pipe.model.config.schema.names[1]
        result = pipe(crop(), explain=[name])
        assert list(result["overlays"]) == [name]
        assert result["overlays"][name].size == (24, 48) and result["overlays"][name].mode == "RGB"
        assert close(result["attributes"], pipe(crop())["attributes"])
        assert close(pipe(crop(), explain=name), result)
        everything = pipe(crop(), explain=True, explain_as="relevance")
        assert list(everything["relevance"]) == list(everything["attributes"])
        relevance = everything["relevance"][name]
        assert relevance.dtype == np.float32 and relevance.ndim == 2 and np.isfinite(relevance).all()
        assert relevance.std() > 0

    def test_relevance_has_the_grid_of_the_picture(self, naflex):
        name = naflex.model.config.schema.names[0]
        tall = naflex(crop(size=(16, 64)), explain=name, explain_as="relevance")["relevance"][name]
        wide = naflex(crop(size=(64, 16)), explain=name, explain_as="relevance")["relevance"][name]
        assert tall.shape[0] > tall.shape[1] and wide.shape[0] < wide.shape[1]
        both = naflex([crop(size=(16, 64)), crop(size=(64, 16))], explain=name, explain_as="relevance", batch_size=2)
        assert close([one["relevance"][name] for one in both], [tall, wide])

    def test_what_sensitive_leaves_out_is_not_explained_either(self, pipe):
        schema = pipe.model.config.schema
        marked = next(attribute.name for attribute in schema if attribute.sensitive)
        refusal = f"explain names {marked!r}, which sensitive=False leaves out of the answer"
        with pytest.raises(ValueError, match=refusal):
            pipe(crop(), sensitive=False, explain=[marked])
        quiet = make_pipe("naflex", sensitive=False)
        with pytest.raises(ValueError, match=refusal):
            quiet(crop(), explain=marked)
        assert marked in quiet(crop(), explain=marked, sensitive=True)["overlays"]
        assert marked not in quiet(crop(), explain=True)["overlays"]

    def test_explain_with_every_fusion(self):
        for fusion in ("text_to_image", "image_to_text", "none"):
            model = randomize(tiny_model("naflex", fusion=fusion))
            pipe = PedestrianAttributesPipeline(model=model, processor=tiny_processor("naflex"), device="cpu")
            relevance = pipe(crop(), explain=True, explain_as="relevance")["relevance"]
            assert all(np.isfinite(one).all() for one in relevance.values()), fusion

    def test_bad_options(self, naflex):
        with pytest.raises(ValueError, match="explain names 'Hatt'"):
            naflex(crop(), explain=["Hatt"])
        with pytest.raises(ValueError, match="explain_as is 'picture', expected one of"):
            naflex(crop(), explain=True, explain_as="picture")
        with pytest.raises(TypeError, match="only_positiv'"):
            naflex(crop(), only_positiv=True)
        with pytest.raises(ValueError, match="batch_size is 0"):
            naflex([crop()], batch_size=0)
        with pytest.raises(ValueError, match="num_workers is -1"):
            naflex([crop()], num_workers=-1)
        with pytest.raises(ValueError, match="detector_threshold is 2"):
            naflex(crop(), detector_threshold=2)
        with pytest.raises(TypeError, match="detector is a str"):
            naflex(crop(), detector="facebook/detr")


class TestBoxes:
    street = crop(3, size=(120, 90))
    boxes = [[0, 0, 30, 80], [40, 10, 70, 90], [90.2, 5.5, 110, 60.1]]

    def test_equals_the_crops_in_order(self, pipe):
        results = pipe(self.street, boxes=self.boxes, batch_size=2)
        assert [result["box"] for result in results] == [[0, 0, 30, 80], [40, 10, 70, 90], [90, 5, 110, 61]]
        for result in results:
            assert list(result) == ["box", "attributes"]
            assert close(result["attributes"], pipe(self.street.crop(result["box"]))["attributes"])

    def test_forms_of_boxes(self, naflex):
        expected = naflex(self.street, boxes=self.boxes)
        named = [dict(zip(("xmin", "ymin", "xmax", "ymax"), box)) for box in self.boxes]
        for boxes in (tuple(map(tuple, self.boxes)), np.array(self.boxes), torch.tensor(self.boxes), named):
            assert close(naflex(self.street, boxes=boxes, batch_size=8), expected)
        assert close(naflex({"image": self.street, "boxes": self.boxes}), expected)

    def test_no_boxes(self, naflex):
        assert naflex(self.street, boxes=[]) == []
        assert naflex(self.street, boxes=np.zeros((0, 4))) == []
        assert naflex([self.street], boxes=[[]]) == [[]]

    def test_partly_outside_is_clipped(self, naflex):
        (result,) = naflex(self.street, boxes=[[-20, -3.5, 40, 200]])
        assert result["box"] == [0, 0, 40, 90]
        (thin,) = naflex(self.street, boxes=[[10.2, 10.2, 10.6, 10.4]])
        assert thin["box"] == [10, 10, 11, 11]

    def test_boxes_refer_to_the_upright_picture(self, naflex, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn clockwise
        path = tmp_path / "turned.png"
        self.street.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        assert close(naflex(str(path), boxes=self.boxes), naflex(self.street, boxes=self.boxes))

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
    def test_bad_boxes(self, naflex, box, message):
        with pytest.raises(ValueError, match=message):
            naflex(self.street, boxes=[[0, 0, 10, 10], box])

    def test_boxes_of_another_form(self, naflex):
        with pytest.raises(ValueError, match=r"boxes\[0\] is 0, expected four numbers"):
            naflex(self.street, boxes=[0, 0, 10, 10])
        with pytest.raises(TypeError, match="boxes is 5"):
            naflex(self.street, boxes=5)

    def test_several_pictures(self, pipe):
        pictures = [self.street, crop(4, size=(50, 50)), self.street]
        boxes = [self.boxes, [], [[0, 0, 50, 50]]]
        expected = [pipe(picture, boxes=some) for picture, some in zip(pictures, boxes)]
        for batch_size in (1, 2, 3, 16):
            assert close(pipe(pictures, boxes=boxes, batch_size=batch_size), expected)
            stream = pipe((picture for picture in pictures), boxes=iter(boxes), batch_size=batch_size)
            assert close(list(stream), expected)

    def test_another_number_of_lists(self, naflex):
        with pytest.raises(ValueError, match="boxes has 1 entries for 2 pictures"):
            naflex([crop(), crop()], boxes=[[]])
        with pytest.raises(ValueError, match="item 1: boxes ended before the pictures"):
            list(naflex((crop() for _ in range(2)), boxes=[[]]))
        with pytest.raises(ValueError, match=r"item 1: boxes\[0\] is .* outside"):
            naflex([crop(), crop()], boxes=[[], [[99, 0, 100, 10]]])

    def test_many_boxes_run_in_batches(self, naflex, monkeypatch):
        sizes = []
        forward = naflex.model.forward

        def counting(**inputs):
            sizes.append(len(inputs["pixel_values"]))
            return forward(**inputs)

        monkeypatch.setattr(naflex.model, "forward", counting)
        results = naflex(self.street, boxes=[[i, 0, i + 20, 60] for i in range(25)], batch_size=8)
        assert sizes == [8, 8, 8, 1]
        assert [result["box"][0] for result in results] == list(range(25))


class TestDetector:
    street = TestBoxes.street

    @staticmethod
    def detector(image, threshold):
        assert image.mode == "RGB"
        found = [
            ("car", 0.99, (0, 0, 50, 50)),
            ("person", 0.9, (-4, -2, 30, 80)),
            ("person", 0.2, (0, 0, 9, 9)),
            ("Person", 0.7, (40, 10, 70, 95)),
            ("person", 0.6, (50, 50, 50, 51)),
        ]
        return [
            {"label": label, "score": score, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box))}
            for label, score, box in found
            if score >= threshold or score < 0.5  # a careless detector
        ]

    def test_people_only(self, pipe):
        results = pipe(self.street, detector=self.detector)
        assert [result["box"] for result in results] == [[0, 0, 30, 80], [40, 10, 70, 90]]
        assert [result["score"] for result in results] == [0.9, 0.7]
        assert close(results[1]["attributes"], pipe(self.street.crop((40, 10, 70, 90)))["attributes"])

    def test_threshold_label_and_default(self, naflex):
        assert len(naflex(self.street, detector=self.detector, detector_threshold=0.1)) == 3
        assert len(naflex(self.street, detector=self.detector, detector_threshold=0.8)) == 1
        assert len(naflex(self.street, detector=self.detector, detector_label="car")) == 1
        pipe = make_pipe("naflex", detector=self.detector)
        assert len(pipe(self.street)) == 2
        assert len(pipe(self.street, boxes=[[0, 0, 5, 5]])) == 1

    def test_nobody_there(self, naflex):
        assert naflex(self.street, detector=lambda image, threshold: []) == []
        nobody = [[]] * 30
        assert naflex([self.street] * 30, detector=lambda image, threshold: [], batch_size=4) == nobody

    def test_object_detection_pipeline(self, naflex):
        from transformers import YolosConfig, YolosForObjectDetection
        from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

        config = YolosConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
            num_detection_tokens=5, id2label={0: "person", 1: "car"}, label2id={"person": 0, "car": 1},
        )  # fmt: skip
        torch.manual_seed(0)
        model = YolosForObjectDetection(config)
        with torch.no_grad():  # everything is a person
            model.class_labels_classifier.layers[-1].bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
        processor = YolosImageProcessorPil(size={"height": 32, "width": 32})
        detector = pipeline("object-detection", model=model, image_processor=processor, device="cpu")
        found = detector(self.street)
        assert len(found) == 5 and {one["label"] for one in found} == {"person"}
        first, second = naflex([self.street, self.street], detector=detector, batch_size=3)
        assert [one["score"] for one in first] == [one["score"] for one in found] and close(first, second)
        expected = naflex(self.street, boxes=[one["box"] for one in found])
        assert close([one["attributes"] for one in first], [one["attributes"] for one in expected])
        detector.model.config.id2label = {0: "bicycle", 1: "car"}
        with pytest.raises(
            ValueError, match="detector has no label 'person', expected one of its own \\(bicycle, car"
        ):
            naflex(self.street, detector=detector)

    def test_other_detectors(self, naflex):
        with pytest.raises(ValueError, match="item 0: detector returned 3, expected a dict"):
            naflex([self.street], detector=lambda image, threshold: [3])
        with pytest.raises(ValueError, match="both boxes and detector"):
            naflex(self.street, boxes=[], detector=self.detector)


class Rows(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class TestStreams:
    pictures = [crop(seed, size=(10 + 7 * seed, 60 - 5 * seed)) for seed in range(7)]

    def test_any_batch_size_gives_the_same(self, pipe):
        expected = [pipe(picture) for picture in self.pictures]
        for batch_size in (1, 2, 3, 7, 100):
            assert close(pipe(self.pictures, batch_size=batch_size), expected)

    def test_kinds_of_inputs(self, naflex):
        expected = naflex(self.pictures)
        rows = Rows([{"image": picture, "labels": [0]} for picture in self.pictures])
        assert isinstance(naflex(tuple(self.pictures)), list)
        streams = (
            (picture for picture in self.pictures),
            map(Image.Image.copy, self.pictures),
            KeyDataset(rows, "image"),
            rows,
        )
        for inputs in streams:
            stream = naflex(inputs, batch_size=3)
            assert not isinstance(stream, list) and close(list(stream), expected)
        assert len(naflex(rows)) == 7
        with pytest.raises(TypeError, match="no length"):
            len(naflex(picture for picture in self.pictures))

    def test_datasets(self, naflex):
        datasets = pytest.importorskip("datasets")
        dataset = datasets.Dataset.from_dict({"image": self.pictures, "other": list(range(7))})
        dataset = dataset.cast_column("image", datasets.Image())
        expected = naflex(self.pictures)
        undecoded = dataset.cast_column("image", datasets.Image(decode=False))
        for inputs in (
            dataset,
            KeyDataset(dataset, "image"),
            dataset["image"],
            dataset.to_iterable_dataset(),
            undecoded,
        ):
            assert close(list(naflex(inputs, batch_size=4)), expected)
        with pytest.raises(ValueError, match="dict with the keys train, test was given.*one split"):
            naflex(datasets.DatasetDict(train=dataset, test=dataset))

    def test_nothing(self, naflex):
        assert naflex([]) == []
        assert list(naflex(iter(()))) == []
        assert list(naflex(Rows([]))) == []

    @pytest.mark.parametrize("threads", [0, 1, 3])
    def test_memory_is_bounded(self, naflex, threads):
        taken = []

        def endless():
            for index in itertools.count():
                taken.append(index)
                yield self.pictures[0]

        stream = naflex(endless(), batch_size=4, num_workers=threads)
        assert not taken
        for count, _ in enumerate(itertools.islice(stream, 10), 1):
            # A batch that is answered, and one with an item per thread that is prepared; without threads none.
            assert len(taken) <= count + 4 + (4 + threads if threads else 0)

    def test_large_pictures_are_opened_a_few_ahead(self, naflex):
        taken = []

        def frames():
            for index in range(50):
                taken.append(index)
                yield {"image": self.pictures[0], "boxes": [[0, 0, 5, 5]] * 20}

        next(naflex(frames(), batch_size=16, num_workers=2))
        assert len(taken) <= 4  # not 16 + 2

    def test_empty_pictures_do_not_pile_up(self, naflex):
        taken = []

        def pictures():
            for index in range(200):
                taken.append(index)
                yield {"image": self.pictures[0], "boxes": [[0, 0, 5, 5]] if index == 0 else []}

        first = next(naflex(pictures(), batch_size=4, num_workers=2))
        assert len(first) == 1 and len(taken) <= 19

    @pytest.mark.parametrize("threads", [0, 1, 3, 20])
    def test_threads_change_nothing(self, pipe, tmp_path, threads):
        paths = []
        for index, picture in enumerate(self.pictures):
            paths.append(str(tmp_path / f"{index}.png"))
            picture.save(paths[-1])
        state = torch.get_rng_state()
        expected = [pipe(picture) for picture in self.pictures]
        for inputs in (paths, iter(paths), self.pictures, [Path(path).read_bytes() for path in paths]):
            assert close(list(pipe(inputs, num_workers=threads, batch_size=3)), expected)
        assert torch.equal(state, torch.get_rng_state())
        boxes = [[[0, 0, 8, 8], [1, 1, 9, 9]], [], *[[[0, 0, 4, 20 - index]] * index for index in range(5)]]
        expected = [pipe(picture, boxes=one) for picture, one in zip(self.pictures, boxes)]
        assert close(pipe(paths, boxes=boxes, num_workers=threads, batch_size=3), expected)
        with pytest.raises(FileNotFoundError, match=r"^item 1 \(.*gone.png\)"):
            pipe([paths[0], str(tmp_path / "gone.png")], num_workers=threads)

    def test_threads_open_while_the_model_answers(self, tmp_path, monkeypatch):
        pipe = make_pipe()
        crop().save(tmp_path / "crop.png")
        opened = []
        open_picture = pictures.open_picture

        def noted(source, timeout):
            opened.append(threading.current_thread().name)
            return open_picture(source, timeout)

        monkeypatch.setattr(pictures, "open_picture", noted)
        forward, answered = pipe.model.forward, []

        def waiting(pixel_values, **inputs):
            # The next four come in while this forward lasts; were they opened by its thread, they never would.
            deadline = time.monotonic() + 20
            while len(opened) < min(12, len(answered) + 8):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            answered.extend(pixel_values)
            return forward(pixel_values, **inputs)

        monkeypatch.setattr(pipe.model, "forward", waiting)
        pipe([str(tmp_path / "crop.png")] * 12, batch_size=4, num_workers=1)
        assert len(opened) == len(answered) == 12
        assert all(name.startswith(TASK) for name in opened)

    def test_the_caller_may_go_on_with_his_picture(self, naflex):
        colors = ["red", "green", "blue", "white", "black", "gray"]
        expected = [naflex(Image.new("RGB", (24, 48), color)) for color in colors]

        def one_canvas():
            canvas, array = Image.new("RGB", (24, 48)), np.zeros((48, 24, 3), np.uint8)
            for index, color in enumerate(colors):
                canvas.paste(color, (0, 0, 24, 48))
                array[:] = canvas
                yield canvas if index % 2 else array

        assert close(list(naflex(one_canvas(), batch_size=2, num_workers=2)), expected)

    def test_an_animation_frame_by_frame(self, naflex, tmp_path):
        frames = [crop(seed) for seed in range(4)]
        frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
        with Image.open(tmp_path / "film.png") as film:
            found = list(naflex(ImageSequence.Iterator(film), batch_size=2, num_workers=2))
        assert close(found, naflex(frames))

    def test_an_abandoned_stream_ends_its_threads(self, naflex):
        def readers():
            return [thread for thread in threading.enumerate() if thread.name.startswith(TASK)]

        def wait_for_none():
            deadline = time.monotonic() + 30
            while readers() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not readers()

        wait_for_none()  # those of other tests
        stream = naflex(itertools.repeat(self.pictures[0]), batch_size=2, num_workers=3)
        next(stream)
        assert readers()
        del stream
        wait_for_none()

    def test_an_image_column_is_decoded_by_threads(self, naflex, tmp_path):
        datasets = pytest.importorskip("datasets")
        (tmp_path / "bad.jpg").write_bytes(b"<html>404</html>")
        crop().save(tmp_path / "good.png")
        paths = [str(tmp_path / "good.png"), str(tmp_path / "bad.jpg")]
        dataset = datasets.Dataset.from_dict({"picture": paths}).cast_column("picture", datasets.Image())
        stream = naflex(KeyDataset(dataset, "picture"))
        assert close(next(stream), naflex(crop()))
        with pytest.raises(ValueError, match=r"item 1: image .*bad.jpg' is a web page, not an image"):
            next(stream)
        black = dataset.with_transform(lambda batch: {"image": [Image.new("RGB", (9, 9)) for _ in batch["picture"]]})
        assert close(next(naflex(black)), naflex(Image.new("RGB", (9, 9))))

    def test_an_error_names_the_item_and_comes_after_the_answers_before_it(self, naflex, tmp_path):
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"no picture")
        items = [*self.pictures[:3], str(bad), *self.pictures[3:]]
        with pytest.raises(ValueError, match=r"item 3 \(.*bad.jpg\): "):
            naflex(items, batch_size=2)
        stream = naflex(iter(items), batch_size=100)
        assert len(list(itertools.islice(stream, 3))) == 3
        with pytest.raises(ValueError, match=r"item 3 \(.*bad.jpg\): "):
            next(stream)
        with pytest.raises(TypeError, match="item 1: "):
            naflex([self.pictures[0], None])

    def test_a_data_set_that_fails_names_the_item(self, naflex):
        class Broken(Rows):
            def __getitem__(self, index):
                if index == 2:
                    raise OSError("cannot decode")
                return super().__getitem__(index)

        with pytest.raises(OSError, match="item 2: cannot decode"):
            list(naflex(Broken(self.pictures)))


def written(tmp_path, name, image, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


class TestBadInput:
    def test_odd_pictures_are_read(self, pipe, tmp_path):
        image = crop(5)
        odd = {
            "grey": written(tmp_path, "grey.png", image.convert("L")),
            "bilevel": written(tmp_path, "bilevel.png", image.convert("1")),
            "rgba": written(tmp_path, "rgba.png", image.convert("RGBA")),
            "cmyk": written(tmp_path, "cmyk.jpg", image.convert("CMYK")),
            "palette": written(tmp_path, "palette.gif", image.convert("P")),
            "16-bit": written(tmp_path, "deep.png", Image.fromarray(np.full((48, 24), 40000, dtype=np.uint16))),
            "animated": written(tmp_path, "film.gif", image, save_all=True, append_images=[crop(6)]),
            "pixel": written(tmp_path, "pixel.png", image.crop((0, 0, 1, 1))),
            "line": written(tmp_path, "line.png", crop(1, size=(1, 400))),
            "webp": written(tmp_path, "picture.webp", image),
        }
        alone = {name: pipe(str(path)) for name, path in odd.items()}
        for name, result in alone.items():
            scores = [answer["score"] for answer in result["attributes"].values()]
            assert np.isfinite(scores).all(), name
        together = pipe([str(path) for path in odd.values()], batch_size=4)
        assert close(together, list(alone.values()))
        assert close(alone["rgba"], pipe(image))

    def test_orientation_tag(self, pipe, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3
        turned = written(tmp_path, "turned.png", crop().transpose(Image.Transpose.ROTATE_180), exif=exif)
        assert close(pipe(turned), pipe(crop()))

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda p: written(p, "x.jpg", crop(size=(200, 200))).read_bytes()[:400], "truncated|cannot be read"),
            (lambda p: b"", "cannot be read"),
            (lambda p: np.full((8, 8, 3), np.nan), "NaN"),
            (lambda p: np.zeros((3, 64, 32), dtype=np.uint8), "channels"),
            (lambda p: np.zeros((2, 8, 8, 3), dtype=np.uint8), "expected one image"),
            (lambda p: np.zeros((0, 8, 3), dtype=np.uint8), "shape"),
            (lambda p: Image.new("L", (100_000, 1_000)), "expected at most"),
        ],
    )
    def test_unreadable_pictures_are_refused(self, naflex, tmp_path, make, message):
        source = make(tmp_path)
        with pytest.raises(ValueError, match=message):
            naflex(source)
        with pytest.raises(ValueError, match=f"item 1.*({message})"):
            naflex([crop(), source])

    def test_other_things(self, naflex, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
            naflex(str(tmp_path / "nowhere.jpg"))
        for thing in (3, None):
            with pytest.raises(TypeError, match=f"inputs is {thing}, expected a picture"):
                naflex(thing)
        with pytest.raises(ValueError, match="dict with the keys picture was given, expected the key 'image'"):
            naflex({"picture": crop()})
        with pytest.raises(ValueError, match="as an argument and in the dict"):
            naflex({"image": crop(), "boxes": []}, boxes=[])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_pipe("naflex").save_pretrained(folder)
    return folder


class TestLoadingAndSaving:
    def test_round_trip(self, pipe, tmp_path):
        pipe.save_pretrained(tmp_path)
        again = pipeline(TASK, model=str(tmp_path), device="cpu")
        assert isinstance(again, PedestrianAttributesPipeline)
        assert type(again.model) is type(pipe.model)
        assert close(again(crop()), pipe(crop()))
        assert (tmp_path / "processor_config.json").exists()
        assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
        assert not hasattr(pipe.model.config, "custom_pipelines")
        assert not (tmp_path / "pipelines.py").exists()

    def test_custom_pipelines_of_a_foreign_save_are_dropped(self, tmp_path):
        pipe = make_pipe()
        pipe.model.config.custom_pipelines = {TASK: {"impl": "pipelines.PedestrianAttributesPipeline"}}
        pipe.save_pretrained(tmp_path)
        assert close(pipeline(TASK, model=str(tmp_path), device="cpu")(crop()), pipe(crop()))

    def test_model_and_processor_in_memory(self, folder, naflex):
        model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        pipe = pipeline(TASK, model=model, processor=processor, device="cpu")
        assert pipe.processor is processor and close(pipe(crop()), naflex(crop()))
        with pytest.raises(Exception, match="Impossible to guess which processor"):
            pipeline(TASK, model=model)
        with pytest.raises(ValueError, match="processor is None, expected the processor of the model"):
            PedestrianAttributesPipeline(model=model)
        with pytest.raises(TypeError, match="processor is a .*, expected one with post_process_attributes"):
            PedestrianAttributesPipeline(model=model, processor=processor.tokenizer)
        with pytest.raises(TypeError, match="model is a Siglip2Model without attributes in its config"):
            PedestrianAttributesPipeline(model=model.vlm, processor=processor)

    def test_dtype(self, folder, naflex):
        assert pipeline(TASK, model=str(folder), device="cpu").model.dtype == torch.float32
        pipe = pipeline(TASK, model=str(folder), device="cpu", dtype=torch.bfloat16)
        assert pipe.model.dtype == torch.bfloat16
        name = pipe.model.config.schema.names[0]
        result = pipe([crop(0), crop(1)], batch_size=2, explain=name)
        assert result[0]["overlays"][name].size == (24, 48)
        expected = naflex(crop(0))["attributes"]
        for name, answer in result[0]["attributes"].items():
            assert all(
                abs(p - expected[name]["probabilities"][label]) < 0.1 for label, p in answer["probabilities"].items()
            )

    def test_without_a_model_the_embedded_one_is_used(self, folder, naflex, monkeypatch, caplog):
        monkeypatch.setattr(pipelines, "embedded_path", lambda kind: Path(folder))
        monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", {})
        pipelines.register_pipeline()
        with caplog.at_level(logging.WARNING, logger=pipelines.__name__):
            pipe = pipeline(TASK, device="cpu")
        assert "trained on drawn pedestrians" in caplog.text
        assert close(pipe(crop()), naflex(crop()))

    def test_heads_saved_without_their_backbone(self, tmp_path):
        backbone, heads = tmp_path / "backbone", tmp_path / "heads"
        full, processor = tiny_model("naflex"), tiny_processor("naflex")
        full.vlm.save_pretrained(backbone)
        processor.save_pretrained(backbone)
        model = vlm_par_hf.VlmParModel.from_backbone(
            str(backbone), attributes=full.config.schema, tokenizer=processor, num_fusion_heads=4, save_backbone=False
        )
        pipe = PedestrianAttributesPipeline(model=randomize(model).eval(), processor=processor, device="cpu")
        pipe.save_pretrained(heads)
        size = {folder: (folder / "model.safetensors").stat().st_size for folder in (backbone, heads)}
        assert size[heads] < size[backbone]
        assert close(pipeline(TASK, model=str(heads), device="cpu")(crop()), pipe(crop()))

    def test_other_models_do_not_warn(self, folder, caplog):
        with caplog.at_level(logging.WARNING, logger=pipelines.__name__):
            pipeline(TASK, model=str(folder), device="cpu")
        assert not caplog.records

    def test_registering_twice_is_silent(self, caplog):
        task = PIPELINE_REGISTRY.check_task(TASK)[1]
        assert task["impl"] is PedestrianAttributesPipeline
        pipelines.register_pipeline()
        assert PIPELINE_REGISTRY.check_task(TASK)[1] is task and not caplog.records


@pytest.mark.skipif("PAR_DATA" not in os.environ, reason="PAR_DATA names no folder with real images")
def test_real_photographs(naflex):
    paths = sorted(Path(os.environ["PAR_DATA"]).rglob("*.jpg"))[:40]
    assert len(paths) == 40
    results = naflex([str(path) for path in paths], batch_size=16)
    alone = [naflex(path) for path in paths[:5]]
    assert close(results[:5], alone) and len(results) == 40


def test_collate_fills_shorter_patch_axes():
    items = [
        {"pixel_values": torch.ones(1, n, 4), "pixel_attention_mask": torch.ones(1, n, dtype=torch.int32)}
        for n in (3, 5)
    ]
    batch = collate_inputs(items)
    assert batch["pixel_values"].shape == (2, 5, 4) and batch["pixel_values"][0, 3:].sum() == 0
    assert batch["pixel_attention_mask"].sum(1).tolist() == [3, 5]


def test_detectors_without_labels_are_trusted():
    check_detector_label(SimpleNamespace(model=None), "person")

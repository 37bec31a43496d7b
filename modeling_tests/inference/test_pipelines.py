"""The pipeline: answers, options, boxes, detectors, streams, loading and saving."""

import base64
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

import vlm_par_hf
from modeling_tests.crops import Rows, close, crop, make_pipe
from modeling_tests.labels.test_decisions import some_decisions
from modeling_tests.tiny import randomize, tiny_focus_model, tiny_focus_processor, tiny_model, tiny_processor
from vlm_par_hf import AttributeSchema
from vlm_par_hf.images import opening
from vlm_par_hf.inference import pipelines, trust
from vlm_par_hf.inference.pictures import TASK
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.visualization import people_grid


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

    def test_a_model_in_training_mode_is_put_in_evaluation_mode_once(self, monkeypatch):
        model, processor = randomize(tiny_model("naflex", attention_dropout=0.5)), tiny_processor("naflex")
        expected = PedestrianAttributesPipeline(model=model, processor=processor, device=-1)(crop())
        pipe = PedestrianAttributesPipeline(model=model.train(), processor=processor, device=-1)
        assert not any(module.training for module in model.modules())
        # Calls leave the mode alone: threads that share the pipeline would see each other's changes.
        monkeypatch.setattr(type(model), "train", lambda *args: pytest.fail("the mode was changed in a call"))
        with ThreadPoolExecutor(4) as pool:
            assert all(close(one, expected) for one in pool.map(lambda _: pipe(crop()), range(16)))


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
        with pytest.raises(TypeError, match=r"no option 'only_positiv', expected one of images, boxes, .*positive, "):
            naflex(crop(), only_positiv=True)
        with pytest.raises(ValueError, match="box_format is 'voc', expected one of xyxy"):
            naflex(crop(), box_format="voc")
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

    def test_formats_and_margin(self, naflex):
        width, height = self.street.size
        shares = [[x0 / width, y0 / height, x1 / width, y1 / height] for x0, y0, x1, y1 in self.boxes]
        expected = naflex(self.street, boxes=self.boxes)
        assert close(naflex(self.street, boxes=shares, box_format="xyxyn"), expected)
        assert close(make_pipe(box_format="xyxyn")(self.street, boxes=shares), expected)
        with pytest.raises(ValueError, match="are shares of the picture, not pixels.*box_format='xyxyn'"):
            naflex(self.street, boxes=shares)
        (wider,) = naflex(self.street, boxes=[[40, 10, 70, 90]], box_margin=0.1)
        assert list(wider) == ["box", "box_without_margin", "attributes"]
        assert wider["box"] == [37, 2, 73, 90] and wider["box_without_margin"] == [40, 10, 70, 90]
        assert close(wider["attributes"], naflex(self.street.crop((37, 2, 73, 90)))["attributes"])

    def test_boxes_of_a_reduced_picture_are_in_pixels_of_the_whole(self, naflex, tmp_path, monkeypatch):
        Image.fromarray(np.tile(np.asarray(self.street), (4, 4, 1))).save(tmp_path / "large.jpg", quality=95)
        monkeypatch.setattr(opening, "_LARGE_PIXELS", 50_000)
        small = opening.open_with_size(tmp_path / "large.jpg", one_person=False).image
        assert small.size == (240, 180)
        boxes = [[100, 31, 301, 360], [0, 0, 480, 360]]
        results = naflex(str(tmp_path / "large.jpg"), boxes=boxes)
        assert [result["box"] for result in results] == boxes
        crops = [small.crop((50, 15, 151, 180)), small]
        assert close([one["attributes"] for one in results], [naflex(one)["attributes"] for one in crops])
        seen = []

        def detector(image, threshold):
            seen.append(image.size)
            return [{"label": "person", "score": 0.9, "box": [50, 15, 151, 180]}]

        (found,) = naflex(str(tmp_path / "large.jpg"), detector=detector)
        assert seen == [(240, 180)] and found["box"] == [100, 30, 302, 360]

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

    @pytest.mark.parametrize(
        "score, box, message",
        [
            (0.9, [0.1, 0.1, 0.6, 0.9], "wrong box for detection 0: .*shares of the picture"),
            (0.9, {"xmin": 50, "ymin": 0, "xmax": 20, "ymax": 60}, "wrong box for detection 0: .*reversed"),
            (0.9, [0, 0, float("nan"), 60], "wrong box for detection 0: .*finite"),
            (float("nan"), [0, 0, 20, 60], "the score nan for detection 0"),
            ("high", [0, 0, 20, 60], "expected a dict with label, score and box"),
        ],
    )
    def test_wrong_detections_are_refused(self, naflex, score, box, message):
        with pytest.raises(ValueError, match=message):
            naflex(self.street, detector=lambda image, threshold: [{"label": "person", "score": score, "box": box}])

    def test_a_detection_without_pixels_is_left_out_with_a_warning(self, naflex, caplog):
        boxes = [[130, 0, 140, 60], [50, 50, 50, 51], [0, 0, 20, 60]]
        found = [{"label": "person", "score": 0.9, "box": box} for box in boxes]
        results = naflex([self.street], detector=lambda image, threshold: found)
        assert [one["box"] for one in results[0]] == [[0, 0, 20, 60]]
        assert "item 0: Detection 0 is left out: " in caplog.text and "Detection 1 is left out" in caplog.text

    def test_other_detectors(self, naflex):
        for found in (None, {"label": "person"}, "person"):
            with pytest.raises(TypeError, match="detector returned .*expected a list of dicts"):
                naflex(self.street, detector=lambda image, threshold, found=found: found)
        with pytest.raises(ValueError, match="item 0: detector returned 3, expected a dict"):
            naflex([self.street], detector=lambda image, threshold: [3])
        with pytest.raises(ValueError, match="both boxes and detector"):
            naflex(self.street, boxes=[], detector=self.detector)


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

    def test_containers_are_answered_in_their_own_order(self, naflex, tmp_path):
        """A Series that was sorted or filtered: `[0]` is the label 0, which stands anywhere or is not there."""
        paths = [str(tmp_path / f"{index}.png") for index in range(7)]
        for path, picture in zip(paths, self.pictures):
            picture.save(path)
        answers = naflex(self.pictures)
        series = pandas.Series(paths)
        data = [Path(path).read_bytes() for path in paths]
        turned = answers[::-1]
        for container, expected in (
            (series.iloc[::-1], turned),
            (series[3:], answers[3:]),
            (pandas.Index(paths)[::-1], turned),
            (np.array(paths)[::-1], turned),
            (np.array(paths, dtype=object), answers),
            (pyarrow.array(paths), answers),
            (pyarrow.chunked_array([paths[:2], paths[2:]]), answers),
            (pyarrow.array(data), answers),
            (dict(zip("gfedcba", paths)).values(), answers),
            (deque(paths[::-1]), turned),
        ):
            stream = naflex(container, batch_size=3)
            assert len(stream) == len(expected) and close(list(stream), expected), type(container)
        boxes = pandas.Series([[[0, 0, 5, 5 + index]] for index in range(7)]).iloc[::-1]
        found = naflex(series.iloc[::-1], boxes=boxes)
        assert [one["box"] for (one,) in found] == [[0, 0, 5, 5 + index] for index in reversed(range(7))]

    def test_containers_without_an_order_are_refused(self, naflex):
        for container, word in (
            ({"a.png"}, "is a set, which has no order"),
            (frozenset({"a.png"}), "is a frozenset"),
            (pandas.DataFrame({"image": ["a.png"]}), "is a pandas table"),
            (pyarrow.table({"image": ["a.png"]}), "is a pyarrow table"),
            (np.array([b"ab\0c"]), "is an array of dtype .S4, which cuts zero bytes"),
        ):
            with pytest.raises(TypeError, match=f"inputs {word}.*expected"):
                naflex(container)
        with pytest.raises(TypeError, match="boxes is .*expected a list"):
            naflex([crop()], boxes={"a.png": [[0, 0, 5, 5]]})

    def test_open_files_are_read_from_their_beginning(self, naflex, tmp_path):
        crop().save(tmp_path / "a.png")
        expected = naflex(crop())
        with open(tmp_path / "a.png", "rb") as file:
            Image.open(file).load()
            for _ in range(2):
                assert close(naflex(file), expected)
            file.seek(7)
            naflex([file])
            assert file.tell() == 7
        with pytest.raises(ValueError, match="the open file .*a.png' cannot be read: .*closed"):
            naflex(file)
        with (
            open(tmp_path / "a.png", encoding="latin-1") as text,
            pytest.raises(TypeError, match="gives str, expected bytes"),
        ):
            naflex(text)
        reader, writer = os.pipe()
        os.close(writer)
        with open(reader, "rb") as pipe, pytest.raises(ValueError, match="nothing left to read and cannot be rewound"):
            naflex(pipe)

    def test_base64_text(self, naflex, tmp_path):
        crop().save(tmp_path / "a.png")
        text = base64.b64encode((tmp_path / "a.png").read_bytes()).decode()
        for source in (text, f"data:image/png;base64,{text}"):
            assert close(naflex(source), naflex(crop())) and close(naflex([source]), [naflex(crop())])
        with pytest.raises(ValueError, match="expected") as caught:
            naflex(["A" * 40_000])
        assert len(str(caught.value)) < 600

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
        for make in (lambda: pipeline(TASK, model=model), lambda: PedestrianAttributesPipeline(model=model)):
            with pytest.raises(ValueError, match="processor is None, expected the processor of the model"):
                make()
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
        for module in (pipelines, trust):
            monkeypatch.setattr(module, "embedded_path", lambda kind: Path(folder))
        monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", {})
        pipelines.register_pipeline()
        with caplog.at_level(logging.WARNING, logger=pipelines.__name__):
            pipe = pipeline(TASK, device="cpu")
        assert "Small embedded model" in caplog.text and "vlm-par train" in caplog.text
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


def test_a_compiled_model_answers_as_the_model_itself(naflex):
    """torch's wrapper is of another class, and passes on what the pipeline asks of the model."""
    compiled = PedestrianAttributesPipeline(
        model=torch.compile(naflex.model, backend="eager"), processor=naflex.processor, device="cpu"
    )
    options = {"explain": ["Hat"], "explain_as": "relevance"}
    found, expected = compiled(crop(), **options), naflex(crop(), **options)
    assert close(found["attributes"], expected["attributes"])
    np.testing.assert_allclose(found["relevance"]["Hat"], expected["relevance"]["Hat"], atol=1e-5)


def shaded_crop(seed):
    """Crops that differ more than those of noise, so that all answers occur."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(np.uint8(rng.uniform(0, 1, (48, 24, 3)) * rng.uniform(0, 255, (48, 1, 3))))


@pytest.fixture(scope="module")
def fitted():
    """A pipeline over a model with fitted decisions: points for mA and f1, sets of Hat for 0.5 and 0.9."""
    model = randomize(tiny_model("kway"), 2, scale=3.0)
    model.config.set_decisions(some_decisions())
    model.schema = model.config.schema
    return PedestrianAttributesPipeline(model=model, processor=tiny_processor("kway"), device="cpu")


def with_rules(pipe, decisions=None):
    """The pipeline over a label space with a condition (no side without a hat) and a group (hat or backpack)."""
    model = randomize(tiny_model("kway"), 2, scale=3.0)
    rules = {"BagSide": {"requires": ("Hat", "yes")}, "Hat": {"group": "one"}, "Backpack": {"group": "one"}}
    model.config.set_schema(AttributeSchema(replace(one, **rules.get(one.name, {})) for one in model.config.schema))
    model.config.set_decisions(decisions)
    model.schema = model.config.schema
    return PedestrianAttributesPipeline(model=model, processor=pipe.processor, device="cpu")


class TestConsistency:
    CROPS = [shaded_crop(seed) for seed in range(24)]

    def test_what_makes_no_sense_is_none(self, fitted):
        pipe = with_rules(fitted, some_decisions())
        options = {"thresholds": {"Backpack": 0.2}}  # everybody has one
        alone, together = pipe(self.CROPS, consistent=False, **options), pipe(self.CROPS, **options)
        assert together == pipe(self.CROPS, consistent=True, **options)
        seen = set()
        for before, after in zip(alone, together):
            before, after = before["attributes"], after["attributes"]
            assert before["BagSide"]["label"] is not None
            if after["Hat"]["label"] == "no":
                assert after["BagSide"] == {**before["BagSide"], "label": None, "score": None}
            else:
                assert after["BagSide"] == before["BagSide"]
            # Of the two that exclude each other the one further above its threshold stays.
            yes = [before[name]["label"] == "yes" for name in ("Hat", "Backpack")]
            if all(yes):
                margins = [
                    np.log(p / (1 - p)) - np.log(t / (1 - t))
                    for p, t in (
                        (before[n]["probabilities"]["yes"], before[n]["threshold"]) for n in ("Hat", "Backpack")
                    )
                ]
                yes = [margins[0] > margins[1], margins[0] <= margins[1]]
                lost = after["Backpack" if yes[0] else "Hat"]
                assert lost["score"] == lost["probabilities"]["no"]
            assert [after[name]["label"] == "yes" for name in ("Hat", "Backpack")] == yes
            seen.add(
                (after["BagSide"]["label"] is None, before["Hat"]["label"] == before["Backpack"]["label"] == "yes")
            )
        assert {one for one, _ in seen} == {True, False} and {one for _, one in seen} == {True, False}

    def test_the_condition_holds_also_where_only_the_answer_is_asked_for(self, fitted):
        pipe = with_rules(fitted)
        whole, only = pipe(self.CROPS), pipe(self.CROPS, attributes=["BagSide"])
        assert [one["attributes"] for one in only] == [{"BagSide": one["attributes"]["BagSide"]} for one in whole]
        assert {one["attributes"]["BagSide"]["label"] is None for one in only} == {True, False}

    def test_without_condition_and_decisions_every_attribute_stands_alone(self, fitted):
        pipe = with_rules(fitted)
        schema = AttributeSchema(replace(one, requires=None) for one in pipe.model.config.schema)
        pipe.model.config.set_schema(schema)
        options = {"thresholds": {"Hat": 0.1, "Backpack": 0.0}}  # everybody has a backpack
        alone, together = pipe(self.CROPS, **options), pipe(self.CROPS, consistent=True, **options)
        assert alone == pipe(self.CROPS, consistent=False, **options)
        both = [one["attributes"]["Hat"]["label"] == "yes" for one in alone]
        assert [before != after for before, after in zip(alone, together)] == both and set(both) == {True, False}

    def test_a_condition_that_is_left_open_is_not_met(self, fitted):
        pipe = with_rules(fitted, some_decisions())
        seen = set()
        for one in pipe(self.CROPS, abstain=0.5):
            hat, side = one["attributes"]["Hat"], one["attributes"]["BagSide"]
            seen.add(hat["label"])
            if hat["label"] == "yes":
                assert side["label"] == "unknown" and len(side["set"]) == 3  # nothing was fitted for it
            else:
                assert (side["label"], side["score"], side["set"], side["reason"]) == (None, None, [], None)
        assert {"unknown", "yes"} <= seen
        low = pipe(crop(size=(10, 14)), abstain=0.5)["attributes"]
        assert low["BagSide"]["label"] is None and low["Hat"]["reason"] == "14 pixels high"

    def test_it_is_left_out_of_pictures(self, fitted):
        pipe = with_rules(fitted)
        for bare in self.CROPS:
            answer = pipe(bare)["attributes"]
            if answer["BagSide"]["label"] is None:
                break
        result = pipe(bare, explain=["BagSide", "Hat"])
        assert list(result["overlays"]) == ["Hat"] and result.draw(bare).height > 0
        assert "BagSide" not in pipe(bare, only_positive=True)["attributes"]
        boxes = pipe(bare, boxes=[[0, 0, bare.width, bare.height]])
        assert boxes[0]["attributes"]["BagSide"]["label"] is None and boxes.draw(bare).size == bare.size
        without = {name: one for name, one in answer.items() if name != "BagSide"}
        shown, expected = (people_grid([bare], [one]) for one in (answer, without))
        assert shown.tobytes() == expected.tobytes()

    def test_it_is_true_or_false(self, fitted):
        with pytest.raises(TypeError, match="consistent is 'requires', expected True or False"):
            fitted(crop(), consistent="requires")


class TestDecisions:
    CROPS = [shaded_crop(seed) for seed in range(24)]

    def test_thresholds_and_biases_are_those_in_use_or_those_asked_for(self, fitted):
        schema = fitted.model.config.schema
        colours = schema["UpperColor"].labels
        points = {None: ((0.2, 0.35), (0, 2, 0, -1)), "mA": ((0.2, 0.35), (0, 2, 0, -1)), "f1": ((0.4, 0.6), (0,) * 4)}
        for decide, (thresholds, biases) in points.items():
            for one in fitted(self.CROPS, decide=decide):
                answers = one["attributes"]
                for name, threshold in zip(("Hat", "Backpack"), thresholds):
                    assert answers[name]["threshold"] == threshold
                    assert (answers[name]["label"] == "yes") == (answers[name]["probabilities"]["yes"] > threshold)
                assert answers["Female"]["threshold"] == 0.5  # nothing was fitted for it
                p = np.array(list(answers["UpperColor"]["probabilities"].values()))
                assert answers["UpperColor"]["label"] == colours[np.argmax(np.log(p) + biases)]
        found = {
            decide: [one["attributes"]["UpperColor"]["label"] for one in fitted(self.CROPS, decide=decide)]
            for decide in points
        }
        assert found["mA"] == found[None] != found["f1"]

    def test_other_options_come_before_a_point(self, fitted):
        answers = fitted(crop(), decide="f1", thresholds={"Hat": 0.9})["attributes"]
        assert (answers["Hat"]["threshold"], answers["Backpack"]["threshold"]) == (0.9, 0.6)
        only = fitted(crop(), decide="f1", attributes=["Female", "Hat"])["attributes"]
        assert {name: one["threshold"] for name, one in only.items()} == {"Female": 0.5, "Hat": 0.4}

    def test_a_pipeline_keeps_its_point(self, fitted):
        pipe = PedestrianAttributesPipeline(fitted.model, fitted.processor, device="cpu", decide="f1", abstain=0.5)
        assert [one.threshold for one in pipe.label_space][:2] == [0.4, 0.6]
        assert close(pipe(crop()), fitted(crop(), decide="f1", abstain=0.5))
        assert close(pipe(crop(), decide="mA"), fitted(crop(), decide="mA", abstain=0.5))

    def test_what_is_not_sure_is_unknown(self, fitted):
        plain, found = fitted(self.CROPS), fitted(self.CROPS, abstain=0.5)
        seen = set()
        for before, after in zip(plain, found):
            old, new = before["attributes"]["Hat"], after["attributes"]["Hat"]
            yes = old["probabilities"]["yes"]
            possible = {"no"} if yes <= 0.3 else set()
            possible |= {"yes"} if 1 - yes <= 0.5 else set()
            possible |= {old["label"]}
            assert new["probabilities"] == old["probabilities"] and new["threshold"] == old["threshold"]
            if len(possible) == 1:
                assert new == {**old, "set": [old["label"]], "reason": None}
            else:
                assert (new["label"], new["score"], new["set"]) == ("unknown", None, ["no", "yes"])
            seen.add(new["label"])
            # Without fitted sets every label is possible.
            colour = after["attributes"]["UpperColor"]
            assert colour["label"] == "unknown" and len(colour["set"]) == 4
        assert "unknown" in seen and len(seen) > 1
        positive = fitted(self.CROPS, abstain=0.5, only_positive=True)
        assert not any(one["label"] == "unknown" for person in positive for one in person["attributes"].values())

    def test_low_people_are_not_answered_for(self, fitted):
        assert fitted(crop(size=(10, 14)))["attributes"]["Hat"]["label"] in ("no", "yes")
        low = fitted(crop(size=(10, 14)), abstain=0.5)["attributes"]
        assert all(one["label"] == "unknown" and one["reason"] == "14 pixels high" for one in low.values())
        assert low["BagSide"]["set"] == ["left", "right", "none"]
        picture = crop(size=(60, 90))
        boxes = [[0, 0, 10, 19], [0, 0, 40, 80], [5, 5, 15, 24]]
        people = fitted(picture, boxes=boxes, box_margin=0.3, abstain=0.5, batch_size=2)
        reasons = [one["attributes"]["UpperColor"].get("reason") for one in people]
        assert reasons == ["19 pixels high", None, "19 pixels high"]
        assert people.draw().size == picture.size and people[0].draw().height > 90

    def test_promises_that_there_are_not_are_said_once(self, fitted, caplog):
        pipe = PedestrianAttributesPipeline(fitted.model, fitted.processor, device="cpu")
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                pipe(crop(), abstain=0.9)
        assert caplog.text.count("promises nothing") == 1 and "fewer than 20 pictures" in caplog.text
        assert all(name in caplog.text for name in pipe.model.config.schema.names)

    def test_refusals(self, fitted, naflex):
        with pytest.raises(ValueError, match="decide is 'recall', expected a point .* one of 'mA', 'f1'"):
            fitted(crop(), decide="recall")
        with pytest.raises(ValueError, match="decide is 'mA', .* none: no points are stored with it"):
            naflex(crop(), decide="mA")
        for level in (0, 1, 90, True, "high"):
            with pytest.raises(ValueError, match="abstain is .*, expected a number between 0 and 1"):
                fitted(crop(), abstain=level)
        with pytest.raises(ValueError, match="expected at most 0.9: more was not fitted"):
            fitted(crop(), abstain=0.95)
        with pytest.raises(ValueError, match="abstain is 0.9, and nothing was fitted .*vlm-par calibrate"):
            naflex(crop(), abstain=0.9)

    def test_new_decisions_of_the_model_are_used_at_once(self):
        pipe = make_pipe("kway")
        assert pipe(crop())["attributes"]["Hat"]["threshold"] == 0.5
        pipe.model.config.set_decisions(some_decisions())
        assert pipe(crop())["attributes"]["Hat"]["threshold"] == 0.2
        pipe.model.config.set_decisions(some_decisions(), "f1")
        assert pipe(crop())["attributes"]["Hat"]["threshold"] == 0.4

    def test_a_folded_model_answers_the_same(self, fitted):
        folded = PedestrianAttributesPipeline(fitted.model.fold(), fitted.processor, device="cpu")
        for options in ({}, {"decide": "f1"}, {"abstain": 0.5}):
            assert close(folded(self.CROPS, **options), fitted(self.CROPS, **options), 1e-4)

    def test_a_text_with_the_name_of_an_attribute_has_none_of_its_decisions(self):
        model = randomize(tiny_focus_model("kway"), seed=3)
        model.config.set_decisions(some_decisions())
        pipe = PedestrianAttributesPipeline(model, tiny_focus_processor("kway"), device="cpu")
        asked = {"Hat": "a big hat", "UpperColor": ["in red", "in green", "in blue", "in black"]}
        answers = pipe(crop(), attributes=asked, decide="f1", abstain=0.5)["attributes"]
        assert answers["Hat"]["threshold"] == 0.5
        assert all(one["label"] == "unknown" for one in answers.values())  # no sets: everything is possible

"""People of folders, tables and lists into a gallery: what is read, read again, left out, and reported."""

import json
import os
import shutil

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf import Annotator
from vlm_par_hf.annotation import ImageList
from vlm_par_hf.annotation.on_ray import ReadForRay
from vlm_par_hf.errors import ParError
from vlm_par_hf.retrieval.encoding import PersonEncoder
from vlm_par_hf.retrieval.gallery import Gallery
from vlm_par_hf.retrieval.indexing import index_people, read_people
from vlm_par_hf.retrieval.modeling_retriever import AttributeRetriever, RetrieverConfig
from vlm_par_hf.retrieval.on_ray import EncodeForRay, runs, unpack
from vlm_par_hf.retrieval.queries import Query
from vlm_par_hf.retrieval.vectors import model_hash


def save_checkpoint(folder, seed: int = 0):
    model = randomize(tiny_model("naflex", seed=seed))
    model.save_pretrained(folder)
    tiny_processor("naflex").save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return PersonEncoder(checkpoint, batch_size=4)


def draw(path, seed: int, size=(16, 32)) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 2, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


@pytest.fixture
def crops(tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for i in range(6):
        draw(folder / f"{i}.png", i)
    return folder


def run(images, place, encoder, **options):
    return index_people(images, place, encoder=encoder, progress=False, **options)


def paths(place) -> list[str]:
    return sorted(os.path.basename(path) for path in Gallery.open(place).files()["path"])


def test_rows_are_what_the_annotator_answers(crops, encoder, checkpoint, tmp_path):
    report = run(crops, tmp_path / "gallery", encoder)
    assert (report["new"], report["added"], report["people"], report["broken"]) == (6, 6, 6, [])
    gallery = Gallery.open(tmp_path / "gallery", expected=encoder.info())
    answers = Annotator(checkpoint, batch_size=4)({"image": [str(crops / "2.png")]})["prediction"][0]["attributes"]
    found = gallery.search("hat", where="path LIKE '%2.png'", allow_sensitive=True).people[0]
    for name, answer in answers.items():
        assert found["attributes"][name]["label"] == answer["label"]
        assert found["attributes"][name]["score"] == pytest.approx(answer["score"], abs=1e-4)
    vector = encoder.embed([str(crops / "2.png")])[0]
    nearest = gallery.search(vector=vector, top=1).people[0]
    assert nearest["path"] == str(crops / "2.png") and nearest["score"] == pytest.approx(1, abs=1e-2)
    assert nearest["height"] == 32 and 0 < nearest["quality"] <= 1


def test_what_changed_since_is_reported_and_read_again(crops, encoder, tmp_path):
    place = tmp_path / "gallery"
    run(crops, place, encoder)
    assert run(crops, place, encoder)["unchanged"] == 6
    before = {one["path"]: one for one in Gallery.open(place).search("hat").people}
    (crops / "0.png").unlink()
    draw(crops / "1.png", 100)
    os.utime(crops / "2.png", ns=(1, 1))  # touched
    draw(crops / "6.png", 6)
    report = run(crops, place, encoder)
    assert (report["new"], report["changed"], report["unchanged"]) == (1, 1, 4)
    assert report["gone"] == [str(crops / "0.png")] and report["removed"] == 0
    after = {one["path"]: one for one in Gallery.open(place).search("hat").people}
    differing = [path for path in after if path in before and after[path]["score"] != before[path]["score"]]
    assert len(after) == 7 and differing == [str(crops / "1.png")]
    report = run(crops, place, encoder, remove_gone=True)
    assert (report["removed"], report["people"], report["added"]) == (1, 6, 0)


def test_copies_are_named_and_not_added_and_a_moved_file_is(crops, encoder, tmp_path):
    shutil.copy(crops / "3.png", crops / "copy.png")
    report = run(crops, tmp_path / "gallery", encoder)
    assert report["duplicates"] == [{"image": str(crops / "copy.png"), "same_as": str(crops / "3.png")}]
    assert report["people"] == 6
    (crops / "3.png").unlink()
    report = run(crops, tmp_path / "gallery", encoder, remove_gone=True)
    assert report["duplicates"] == [] and report["new"] == 1 and "copy.png" in paths(tmp_path / "gallery")


def test_broken_images_are_named_and_tried_again(crops, encoder, tmp_path):
    (crops / "7.png").write_bytes(b"no picture")
    report = run(crops, tmp_path / "gallery", encoder)
    assert [one["image"] for one in report["broken"]] == [str(crops / "7.png")] and report["people"] == 6
    draw(crops / "7.png", 7)
    assert run(crops, tmp_path / "gallery", encoder)["new"] == 1


def test_a_stopped_run_goes_on_behind_the_last_commit(crops, encoder, tmp_path, monkeypatch):
    def stop(self, chunk, answer=PersonEncoder.answer):
        if (tmp_path / "gallery").exists() and len(Gallery.open(tmp_path / "gallery")) >= 4:
            raise KeyboardInterrupt
        return answer(self, chunk)

    monkeypatch.setattr(PersonEncoder, "answer", stop)
    with pytest.raises(KeyboardInterrupt):
        run(crops, tmp_path / "gallery", encoder, people_per_commit=2)
    monkeypatch.undo()
    kept = len(paths(tmp_path / "gallery"))
    report = run(crops, tmp_path / "gallery", encoder)
    assert kept >= 4 and report["unchanged"] == kept and report["people"] == 6


def test_a_table_is_read_by_rows(crops, encoder, tmp_path):
    images = [{"bytes": (crops / f"{i}.png").read_bytes(), "path": None} for i in range(4)]
    table = tmp_path / "people.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), table)
    report = run(table, tmp_path / "gallery", encoder)
    assert report["people"] == 4
    found = Gallery.open(tmp_path / "gallery").search("hat", top=4).people
    assert sorted(one["row"] for one in found) == [0, 1, 2, 3] and found[0]["path"] == str(table)
    images[2] = {"bytes": (crops / "5.png").read_bytes(), "path": None}
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), table)
    report = run(table, tmp_path / "gallery", encoder)
    assert (report["changed"], report["unchanged"], report["people"]) == (1, 3, 4)


def test_people_in_boxes(crops, encoder, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x0,y0,x1,y1\n0.png,0,0,8,16\n0.png,8,8,16,32\n1.png,0,0,16,32\n")
    report = run(crops, tmp_path / "gallery", encoder, boxes=boxes)
    assert report["people"] == 3 and report["without_people"]["count"] == 4
    found = Gallery.open(tmp_path / "gallery").search("hat", where="path LIKE '%0.png'").people
    assert sorted((one["person"], one["box"]) for one in found) == [(0, [0, 0, 8, 16]), (1, [8, 8, 16, 32])]


class TestLists:
    def write(self, tmp_path, *lines):
        path = tmp_path / "people.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return path

    def test_of_tracks(self, crops, encoder, tmp_path):
        best = {"frame": 40, "time": 1.6, "box": [300, 20, 340, 120], "quality": 0.5}
        lines = self.write(
            tmp_path,
            {"id": 7, "video": "street.mp4", "image": "crops/0.png", "best": best, "attributes": {}},
            {"id": 9, "video": "street.mp4", "image": "crops/gone.png", "best": best, "attributes": {}},
        )
        report = run(lines, tmp_path / "gallery", encoder)
        assert report["broken"] == [{"image": "crops/gone.png", "error": "there is no such file"}]
        (one,) = Gallery.open(tmp_path / "gallery").search("hat").people
        assert (one["video"], one["frame"], one["time"], one["track"]) == ("street.mp4", 40, 1.6, "7")
        assert one["box"] == best["box"] and one["height"] == 32 and one["quality"] == 0.5

    def test_of_boxes(self, crops, encoder, tmp_path):
        lines = self.write(
            tmp_path,
            {"image": "crops/0.png", "box": [0, 0, 8, 16], "frame": 3},
            {"image": "crops/0.png", "box": [8, 8, 16, 32], "frame": 3},
        )
        assert run(lines, tmp_path / "gallery", encoder)["people"] == 2
        found = Gallery.open(tmp_path / "gallery").search("hat").people
        assert sorted(one["height"] for one in found) == [16, 24] and {one["frame"] for one in found} == {3}

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ([[1]], r"line 1 is \[1\], expected an object"),
            ([{"image": "../secret.png"}], "leads out of"),
            ([{"image": "crops/0.png"}, {"image": "crops/1.png", "box": [0, 0, 9, 9]}], "some lines have a box"),
            ([{"image": "crops/0.png"}, {"image": "crops/0.png"}], "twice, without boxes"),
            ([{"image": "nothing.png"}], "names no image that is there"),
        ],
    )
    def test_refuses(self, crops, tmp_path, lines, message):
        with pytest.raises(ParError, match=message):
            read_people(self.write(tmp_path, *lines))


def test_another_checkpoint_is_refused_naming_both(crops, encoder, checkpoint, tmp_path):
    run(crops, tmp_path / "gallery", encoder)
    save_checkpoint(tmp_path / "other", seed=3)
    with pytest.raises(ParError, match=r"built by the checkpoint '.*model' .* not by that of '.*other'"):
        run(crops, tmp_path / "gallery", PersonEncoder(tmp_path / "other"))


def test_the_gallery_is_no_place_of_pictures(crops, encoder):
    with pytest.raises(ParError):
        run(crops, crops / "gallery", encoder)


@pytest.fixture(scope="module")
def head(checkpoint, tmp_path_factory):
    recognizer = PersonEncoder(checkpoint).pipe.model
    config = RetrieverConfig(
        attributes=tiny_schema().to_list(), image_width=32, embedding_size=8, soft_weight=0.0, hard_weight=1.0,
        uses_probabilities=True, num_categories=1, recognizer=str(checkpoint),
        recognizer_hash=model_hash(recognizer),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("head") / "head"
    AttributeRetriever(config).save_pretrained(folder)
    return folder


class TestRetrievalHead:
    def test_its_vectors_are_those_of_people_and_queries(self, head, checkpoint, crops, tmp_path):
        encoder = PersonEncoder(head)
        assert encoder.model == str(checkpoint)
        run(crops, tmp_path / "gallery", encoder)
        gallery = Gallery.open(tmp_path / "gallery")
        assert gallery.info.embedding["source"] == "retriever" and gallery.info.embedding["size"] == 8
        query = Query.from_dict({"Hat": "yes"}, encoder.schema)
        vector = encoder.embed_query(query, "adapters_hard")
        expected = encoder.embed([str(crops / f"{i}.png") for i in range(6)]) @ vector
        found = gallery.search(query, vector=vector).people
        assert [one["path"] for one in found] == [str(crops / f"{i}.png") for i in np.argsort(-expected)]
        assert [one["why"][0]["condition"] for one in found] == ["Hat=yes"] * 6
        with pytest.raises(ParError, match="free text is compared with the vectors of a backbone"):
            encoder.embed_text("a red scarf")
        with pytest.raises(ParError, match="vectors of retriever .* not of image_embeds"):
            run(crops, tmp_path / "gallery", PersonEncoder(checkpoint))

    def test_of_another_recogniser_is_refused(self, head, tmp_path):
        save_checkpoint(tmp_path / "other", seed=3)
        with pytest.raises(ParError, match="has other weights"):
            PersonEncoder(head, recognizer=tmp_path / "other").info()
        with pytest.raises(ParError, match="is for a retrieval head"):
            PersonEncoder(tmp_path / "other", recognizer=head)


def test_words_are_compared_with_pictures(encoder, crops):
    vector = encoder.embed_text("a person with a red scarf")
    assert vector.shape == (encoder.info().embedding["size"],) and np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    with pytest.raises(ParError, match="the text says 'woman'"):
        encoder.embed_text("A woman in red")
    assert encoder.embed_text("A woman in red", allow_sensitive=True).shape == vector.shape
    with pytest.raises(ParError, match="needs a retrieval head"):
        encoder.embed_query(Query({"Hat": ("yes",)}))
    with pytest.raises(ParError, match="picture 0 cannot be read"):
        encoder.embed([str(crops / "none.png")])


def test_what_a_worker_of_ray_reads_is_the_same(crops, encoder):
    (crops / "6.png").write_bytes(b"no picture")
    images = ImageList(crops)
    segments = json.dumps(list(images.segments()))
    table = ReadForRay(images.columns, images.folder)({"segments": np.array([segments], dtype=object)})
    batch = {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}
    found = EncodeForRay(**encoder.arguments)(batch)
    assert list(found["index"]) == list(range(7)) and "6.png" in found["error"][6] and found["people"][6] is None
    expected = encoder.stream(encoder.batches([str(crops / f"{i}.png") for i in range(6)]))
    for text, (people, _) in zip(found["people"], expected):
        (one,) = map(unpack, json.loads(text))
        for name in ("probabilities", "embedding"):
            np.testing.assert_allclose(one[name], people[0][name], atol=1e-5)
        assert one["height"] == 32 and one["quality"] == pytest.approx(people[0]["quality"])
    assert list(runs([0, 1, 4, 6, 7])) == [(0, 2), (4, 5), (6, 8)]

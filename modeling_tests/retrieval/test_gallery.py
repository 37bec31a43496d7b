"""Galleries: storage, exact searches, refusals, and what survives when a process is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from vlm_par_hf.errors import ParError
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions, decide
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.retrieval import searching
from vlm_par_hf.retrieval.columns import column_names
from vlm_par_hf.retrieval.gallery import Gallery, GalleryInfo
from vlm_par_hf.retrieval.queries import Query
from vlm_par_hf.retrieval.scoring import l1, log_likelihood, matches


SCHEMA = AttributeSchema(
    [
        Attribute("Hat", "is there a hat?", prompts=("no hat", "a hat"), threshold=0.4),
        Attribute("Top", "which top?", ("red", "blue", "light grey"), ("red top", "blue top", "light grey top")),
        Attribute("Female", "a woman?", prompts=("a man", "a woman"), sensitive=True),
    ]
)
INFO = GalleryInfo(
    SCHEMA,
    "the-model",
    "a" * 32,
    "b" * 32,
    {"source": "image_embeds", "size": 8, "name": "m", "fingerprint": "a" * 32},
)


def make_people(count: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    mask = SCHEMA.label_mask()
    logits = np.where(mask, rng.normal(size=(count, *mask.shape)) * 2, -1e4)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).astype(np.float32)
    vectors = rng.normal(size=(count, 8)).astype(np.float32)
    return [
        {"path": f"/pictures/{i}.jpg", "probabilities": p[i], "embedding": vectors[i], "time": float(i)}
        for i in range(count)
    ]


@pytest.fixture
def gallery(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", INFO)
    people = make_people(300)
    gallery.add(people[:100])
    gallery.add(people[100:])
    return gallery


def probabilities(people) -> np.ndarray:
    return np.stack([one["probabilities"] for one in people])


def similarities(people, vector) -> np.ndarray:
    vectors = np.stack([one["embedding"] for one in people])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)
    return vectors @ (vector / np.linalg.norm(vector))


class TestSearch:
    @pytest.mark.parametrize(("score", "reference"), [(None, log_likelihood), ("l1", l1)])
    def test_ranks_as_the_scores_of_all_people_do(self, gallery, score, reference):
        people = make_people(300)
        query = Query.from_dict({"Hat": "yes", "Top": ["red", "light grey"]}, SCHEMA)
        expected = reference(query, probabilities(people), SCHEMA)
        found = gallery.search(query, top=10, score=score)
        order = np.argsort(-expected, kind="stable")[:10]
        assert [one["path"] for one in found.people] == [f"/pictures/{i}.jpg" for i in order]
        np.testing.assert_allclose([one["score"] for one in found.people], expected[order], rtol=1e-5)
        assert found.exact and found.counts["people"] == 300

    def test_filters_exactly_and_ranks_who_is_left(self, gallery):
        people = make_people(300)
        answers = decide(probabilities(people).astype(np.float64), SCHEMA)
        passing = np.flatnonzero((answers[:, 0] == 1) & (answers[:, 1] != 0) & (np.arange(300) < 150))
        vector = np.arange(8.0)
        found = gallery.search(vector=vector, filter="hat, Top!=red", where="time < 150", top=20)
        scores = similarities(people, vector)[passing]
        order = passing[np.argsort(-scores, kind="stable")][:20]
        assert [one["path"] for one in found.people] == [f"/pictures/{i}.jpg" for i in order]
        assert found.counts["passed"] == len(passing) and found.score == "similarity"

    def test_says_why(self, gallery):
        (best, *_) = gallery.search("hat, red top", top=3).people
        why = {one["condition"]: one for one in best["why"]}
        assert set(why) == {"Hat=yes", "Top=red"} and all(one["met"] for one in why.values())
        index = int(best["path"].removeprefix("/pictures/").removesuffix(".jpg"))
        assert why["Top=red"]["probability"] == pytest.approx(make_people(300)[index]["probabilities"][1, 0])
        assert best["attributes"]["Hat"]["label"] == "yes" and "Female" not in best["attributes"]
        assert "Female" in gallery.search("hat", top=1, allow_sensitive=True).people[0]["attributes"]
        assert json.loads(json.dumps(gallery.search("hat").to_dict()))["people"][0]["rank"] == 1

    def test_counts_of_conditions_are_those_of_the_answers(self, gallery):
        query = Query.from_dict({"Hat": "no", "Top": "blue"}, SCHEMA)
        met = matches(query, probabilities(make_people(300)), SCHEMA)
        counts = gallery.search(query).counts
        assert counts["conditions"] == {str(one): int(row.sum()) for one, row in met.items()}
        assert counts["all"] == int(np.logical_and.reduce(list(met.values())).sum())

    def test_more_than_there_are(self, gallery):
        assert len(gallery.search("hat", top=5000).people) == 300
        assert len(gallery.search(vector=np.ones(8), top=5000).people) == 300

    def test_nobody_passes_and_it_says_which_condition_excludes_how_many(self, tmp_path):
        gallery = Gallery.create(tmp_path / "gallery", INFO)
        assert gallery.search("hat").message == "the gallery is empty"
        assert gallery.search(vector=np.ones(8)).people == []
        people = make_people(4)
        for one, (hat, top) in zip(people, [(0.9, 0), (0.9, 0), (0.1, 1), (0.2, 0)]):
            one["probabilities"][0, :2] = 1 - hat, hat
            one["probabilities"][1] = np.eye(3)[top]
        gallery.add(people)
        found = gallery.search("hat", filter="hat, blue top")
        assert found.people == [] and found.message == (
            "nobody passes the filter: Hat=yes excludes 2 of 4 (1 of them meet all else); Top=blue excludes 3 of 4 "
            "(2 of them meet all else)"
        )
        found = gallery.search("hat, blue top")
        assert len(found.people) == 4 and found.message.startswith("nobody meets all of the query: Hat=yes excludes 2")
        assert "where='time > 99' leaves none" in gallery.search("hat", where="time > 99").message

    @pytest.mark.parametrize(
        ("search", "message"),
        [
            ({"query": "spaceship"}, "spaceship"),
            ({"query": "a woman"}, "marked sensitive"),
            ({"query": Query({"Female": ("yes",)})}, "marked sensitive"),
            ({"query": "hat", "filter": {"Female": "yes"}}, "marked sensitive"),
            ({"query": "hat", "where": "`Female_yes` > 0.5"}, "marked sensitive"),
            ({"query": "hat", "where": "nothing > 0.5"}, "where='nothing > 0.5' is refused"),
            ({"query": "hat", "top": 0}, "top=0: expected a whole number"),
            ({"query": "hat", "score": "cosine"}, "score='cosine': expected one of log_likelihood, l1"),
            ({"query": 3}, "query is 3, expected a Query, a dict or text"),
            ({}, "neither a query nor a vector"),
            ({"vector": np.ones(3)}, r"shape \(3,\), expected \(8,\)"),
            ({"vector": np.zeros(8)}, "0 everywhere"),
            ({"vector": np.ones(8), "score": "l1"}, "expected no score"),
        ],
    )
    def test_refuses(self, gallery, search, message):
        with pytest.raises(ParError, match=message):
            gallery.search(**search)

    def test_biases_that_were_fitted_decide(self, tmp_path):
        own = AttributeDecision(offset=(0.0, 0.0, 0.0), points={"mA": (0.0, 0.0, 50.0)})
        fitted = Decisions({"Top": own}, objective="mA").to_dict()
        for decisions, tops in ((None, 3), (fitted, 1)):
            gallery = Gallery.create(tmp_path / str(tops), replace(INFO, decisions=decisions))
            gallery.add(make_people(20))
            found = Gallery.open(gallery.place).search("light grey top", top=20)
            assert len({one["attributes"]["Top"]["label"] for one in found.people}) == tops
            assert (found.counts["all"] == 20) == (tops == 1)


class TestIndex:
    def test_finds_the_nearest_and_never_too_few(self, gallery, monkeypatch):
        vector = np.linspace(-1, 1, 8)
        exact = [one["path"] for one in gallery.search(vector=vector, top=5).people]
        filtered = [one["path"] for one in gallery.search(vector=vector, top=5, filter="hat, blue top").people]
        gallery.create_index(partitions=4)
        monkeypatch.setattr(searching, "_EXACT", 10)
        found = gallery.search(vector=vector, top=5)
        assert [one["path"] for one in found.people] == exact and not found.exact
        found = gallery.search(vector=vector, top=5, filter="hat, blue top")
        assert [one["path"] for one in found.people] == filtered
        # Those who pass are far from the vector: the index proposes none of them, and so all are compared.
        monkeypatch.setattr(searching, "_PROBES", 1)
        far = [one["path"] for one in gallery.search(vector=-vector, top=12).people]
        ids = ", ".join(f"'{path}'" for path in far)
        found = gallery.search(vector=vector, top=5, where=f"path IN ({ids})")
        assert len(found.people) == 5 and found.exact

    def test_new_people_are_found_beside_it(self, gallery, monkeypatch):
        gallery.create_index(partitions=4)
        monkeypatch.setattr(searching, "_EXACT", 10)
        vector = np.linspace(-3, 1, 8).astype(np.float32)
        gallery.add([{**make_people(1, seed=5)[0], "path": "/new.jpg", "embedding": vector}])
        assert gallery.search(vector=vector, top=1).people[0]["path"] == "/new.jpg"
        assert gallery.stats()["people_not_in_index"] == 1
        assert gallery.compact()["people_not_in_index"] == 0

    def test_refuses(self, tmp_path):
        gallery = Gallery.create(tmp_path / "gallery", INFO)
        with pytest.raises(ParError, match="0 people, expected at least 256"):
            gallery.create_index()
        with pytest.raises(ParError, match="kind='hnsw': expected one of ivf_flat, ivf_sq"):
            gallery.create_index("hnsw")


def test_what_does_not_fit_into_memory_is_read_again(gallery):
    vector = np.arange(8.0)
    small = Gallery.open(gallery.place, memory=1000)
    for search in ({"query": "hat, red top"}, {"vector": vector}, {"vector": vector, "filter": "hat"}):
        assert small.search(**search).people == gallery.search(**search).people
    assert sum(one.nbytes for one in small.columns._kept.values()) < 10_000 and "vectors" not in small.columns._kept


class TestAdd:
    def test_the_same_people_again_add_nothing(self, gallery):
        assert gallery.add(make_people(305)) == {"added": 5, "already_there": 300}
        assert Gallery.open(gallery.place).add(make_people(305)) == {"added": 0, "already_there": 305}
        assert len(gallery) == 305

    def test_columns_can_be_read_by_others(self, gallery):
        import lancedb

        table = lancedb.connect(gallery.place).open_table("people").search().limit(1).to_list()
        person = make_people(1)[0]
        assert table[0]["path"] == person["path"] and table[0]["model"] == "a" * 32
        names = column_names(SCHEMA)
        assert list(names.values()) == ["Hat_yes", "Top_red", "Top_blue", "Top_light_grey", "Female_yes"]
        assert table[0]["Top_light_grey"] == person["probabilities"][1, 2]
        flat = person["probabilities"][SCHEMA.label_mask()]
        wanted = np.array([0, 1, 1, 0, 0, 0, 0] + [0] * 7)  # a hat, a red top
        query = Query.from_dict({"Hat": "yes", "Top": "red"}, SCHEMA)
        expected = log_likelihood(query, flat[None], SCHEMA)[0]
        assert wanted @ np.float32(table[0]["log_likelihood"]) == pytest.approx(expected, abs=5e-3)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"embedding": np.ones(7)}, r"people\[1\]: embedding has shape \(7,\), expected \(8,\)"),
            ({"embedding": np.full(8, np.nan)}, "finite"),
            ({"probabilities": np.ones((2, 2))}, r"probabilities have shape \(2, 2\), expected \(3, 3\), or \(7,\)"),
            ({"probabilities": np.full(7, 1.5)}, "range from 1.5 to 1.5"),
            ({"colour": 3}, "unknown field 'colour'"),
            ({"model": "c" * 32}, "fingerprint 'cccc.*and the gallery .* by 'the-model'"),
        ],
    )
    def test_refuses_a_batch_as_a_whole(self, gallery, change, message):
        good, bad = make_people(302)[300:]
        with pytest.raises(ParError, match=message):
            gallery.add([good, {**bad, **change}])
        assert len(gallery) == 300

    def test_probabilities_of_all_labels_in_a_row(self, gallery):
        flat = make_people(1)[0]["probabilities"][SCHEMA.label_mask()]
        gallery.add([{"path": "flat.jpg", "probabilities": flat, "embedding": np.ones(8)}])
        found = gallery.search("hat", where="path = 'flat.jpg'").people[0]
        assert found["why"][0]["probability"] == pytest.approx(flat[1])

    def test_one_process_writes(self, gallery):
        with gallery.writing(), pytest.raises(ParError, match="another process is writing"):
            Gallery.open(gallery.place).add(make_people(1))


class TestDelete:
    def test_by_path_id_and_sql(self, gallery):
        first = gallery.search("hat", top=2).people
        assert gallery.delete(ids=[first[0]["id"]], paths=["/pictures/0.jpg", "it's not there"]) in (1, 2)
        assert gallery.delete("time >= 290") in (9, 10)
        assert first[0]["id"] not in [one["id"] for one in gallery.search("hat", top=400).people]
        people = len(gallery)
        assert gallery.stats()["people"] == people and gallery.compact()["fragments"] == 1
        assert len(gallery.search("hat", top=400).people) == people

    def test_refuses(self, gallery):
        with pytest.raises(ParError, match="name who is to be deleted"):
            gallery.delete()
        with pytest.raises(ParError, match=r"where='\(x = 1\)' is refused"):
            gallery.delete("x = 1")


class TestOpen:
    def test_nothing_there_makes_nothing(self, tmp_path):
        with pytest.raises(ParError, match="there is no gallery"):
            Gallery.open(tmp_path / "none")
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model": "other", "model_fingerprint": "c" * 32}, "'the-model' .*aaaaaaaaaaaa.*'other' .cccccccccccc"),
            ({"processor_fingerprint": "c" * 32}, "the image processor of 'the-model'"),
            (
                {"model": "other", "schema": AttributeSchema(list(SCHEMA)[:2])},
                "'the-model' with another label space than 'other' has: 'Female'",
            ),
            (
                {"embedding": {"source": "retriever", "size": 8, "name": "head", "fingerprint": "d" * 32}},
                "image_embeds 'm', 8 numbers .*retriever 'head'",
            ),
        ],
    )
    def test_another_model_is_refused_naming_both(self, gallery, change, message):
        other = replace(INFO, **change)
        for call in (
            lambda: Gallery.open(gallery.place, expected=other),
            lambda: Gallery.create(gallery.place, other),
        ):
            with pytest.raises(ParError, match=message):
                call()
        assert Gallery.create(gallery.place, INFO).info == INFO

    def test_other_folders_are_left_alone(self, tmp_path):
        (tmp_path / "letter.txt").write_text("dear")
        with pytest.raises(ParError, match=r"not empty and no gallery \('letter.txt'\)"):
            Gallery.create(tmp_path, INFO)
        assert os.listdir(tmp_path) == ["letter.txt"]

    def test_a_table_of_somebody_else(self, tmp_path):
        import lancedb

        lancedb.connect(tmp_path).create_table("people", data=[{"name": "x"}])
        with pytest.raises(ParError, match="was not made by this package"):
            Gallery.open(tmp_path)


WRITER = """
import sys
from modeling_tests.retrieval.test_gallery import Gallery, INFO, make_people
gallery = Gallery.open(sys.argv[1])
people = make_people(20_000)
for start in range(0, len(people), 50):
    gallery.add(people[start:start + 50])
    print(start + 50, flush=True)
"""


def _start_writer(place) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(place)]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize(
    "delays", [(0.013,), pytest.param((0.0, 0.004, 0.01, 0.03, 0.1), marks=pytest.mark.slow)], ids=["once", "often"]
)
def test_killed_in_the_middle_of_an_add_nothing_acknowledged_is_lost(tmp_path, delays):
    """Each time the writer is killed a little later, while this process reads."""
    place = tmp_path / "gallery"
    gallery = Gallery.create(place, INFO)
    reader = Gallery.open(place)
    people = make_people(20_000)
    acknowledged = 0
    for delay in delays:
        process = _start_writer(place)
        before = acknowledged
        while acknowledged < before + 250:
            acknowledged = int(process.stdout.readline())
            seen = reader.search("hat", top=5).counts["people"]
            assert seen >= acknowledged and seen % 50 == 0
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait()
        rows = Gallery.open(place).files()
        assert len(rows["id"]) >= acknowledged and len(set(rows["id"])) == len(rows["id"])
        assert len(rows["id"]) % 50 == 0, "half a batch"
    # Going on adds what is missing, once, and every number is whole.
    gallery.add(people[:3000])
    assert len(gallery) == max(3000, len(rows["id"]))
    found = gallery.search("red top", top=5, where="time < 3000").people
    query = Query.from_dict({"Top": "red"}, SCHEMA)
    best = np.argsort(-log_likelihood(query, probabilities(people[:3000]), SCHEMA), kind="stable")[:5]
    assert [one["path"] for one in found] == [f"/pictures/{i}.jpg" for i in best]

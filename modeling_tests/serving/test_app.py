"""The HTTP service: the three ways to ask, keys, URLs, limits, measures and logs."""

import asyncio
import json
import re
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modeling_tests.retrieval.test_gallery import INFO, make_people
from modeling_tests.services import Service, base64_text, picture
from modeling_tests.serving.test_handler import assert_same
from vlm_par_hf.images import downloading
from vlm_par_hf.retrieval.gallery import Gallery
from vlm_par_hf.serving.handler import Limits


BOXES = [[0, 0, 12, 40], [6, 4, 24, 48]]


def test_a_file_is_answered_as_by_the_pipeline(client, pipe):
    data = picture(0)
    answer = client.post("/v1/attributes", files={"file": ("any name.png", data)})
    assert answer.status_code == 200
    (person,) = answer.json()["people"]
    assert_same(person, pipe(data))


def test_options_and_boxes_in_a_form(client, pipe):
    data = picture(1)
    fields = {"boxes": json.dumps(BOXES), "attributes": ["Hat", "Backpack"], "threshold": "0.3", "sensitive": "true"}
    people = client.post("/v1/attributes", files={"file": data}, data=fields).json()["people"]
    for own, one in zip(people, pipe(data, boxes=BOXES, attributes=["Hat", "Backpack"], threshold=0.3), strict=True):
        assert_same(own, one)


def test_relevance_of_patches(client, pipe):
    data = picture(1)
    fields = {"attributes": '["Hat", "Backpack"]', "explain": "Hat"}
    (person,) = client.post("/v1/attributes", files={"file": data}, data=fields).json()["people"]
    wanted = pipe(data, explain=["Hat"], explain_as="relevance")["relevance"]["Hat"]
    assert list(person["relevance"]) == ["Hat"] and len(person["attributes"]) == 2
    assert person["relevance"]["Hat"] == [pytest.approx(row, abs=1e-5) for row in wanted.tolist()]


def test_base64_and_data_uris_in_json(client, pipe):
    data = picture(2)
    wanted = pipe(data, boxes=BOXES, only_positive=True)
    text = base64_text(data)
    wrapped = "\n".join(re.findall(".{1,76}", text))
    for image in (text, wrapped, f"data:image/png;base64,{text}"):
        asked = {"image": image, "boxes": BOXES, "only_positive": True}
        people = client.post("/v1/attributes", json=asked).json()["people"]
        for own, one in zip(people, wanted, strict=True):
            assert_same(own, one)


def test_base64_in_a_form(client, pipe):
    data = picture(2)
    answer = client.post("/v1/attributes", files={"image": (None, base64_text(data))})
    assert_same(answer.json()["people"][0], pipe(data))


def test_several_pictures_and_a_bad_one_among_them(client, pipe):
    data = [picture(3), picture(4)]
    images = [
        {"image": base64_text(data[0])}, {"image": "no base64!"}, {"image": base64_text(b"no picture")},
        {"image": base64_text(data[1]), "boxes": BOXES},
    ]  # fmt: skip
    answer = client.post("/v1/attributes", json={"images": images})
    first, second, third, fourth = answer.json()["results"]
    assert answer.status_code == 200 and second["code"] == third["code"] == "picture"
    assert second["error"].startswith("images[1] is no base64 text") and "none of the formats" in third["error"]
    assert_same(first["people"][0], pipe(data[0]))
    assert len(fourth["people"]) == 2
    files = [("file", one) for one in (data[0], b"no picture")]
    found = client.post("/v1/attributes", files=files).json()["results"]
    assert ["people" in one for one in found] == [True, False]
    nothing = client.post("/v1/attributes", json={"images": images[1:3]})
    assert nothing.status_code == 422 and [one["code"] for one in nothing.json()["results"]] == ["picture"] * 2


def test_clients_at_once_share_batches_and_get_their_own_answers(service, pipe):
    pictures = [picture(seed) for seed in range(24)]
    before = service.measures._registry.get_sample_value("vlm_par_batch_people_count")

    async def main():
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            asked = [client.post("/v1/attributes", files={"file": one}) for one in pictures]
            asked.insert(7, client.post("/v1/attributes", files={"file": b"no picture"}))
            return await asyncio.gather(*asked)

    answers = asyncio.run(main())
    assert answers.pop(7).status_code == 422
    for one, answer in zip(pictures, answers, strict=True):
        assert_same(answer.json()["people"][0], pipe(one))
    batches = service.measures._registry.get_sample_value("vlm_par_batch_people_count") - before
    assert batches < 24


@pytest.mark.parametrize(
    "asked, reason",
    [
        ({}, "the request: expected either image or images"),
        ({"image": "AAAA", "images": [{"image": "AAAA"}]}, "expected either image or images"),
        ({"images": []}, "images: List should have at least 1 item"),
        ({"images": [{"image": "AAAA"}], "boxes": BOXES}, "boxes stand beside image"),
        ({"image": 7}, "image: Input should be a valid string"),
        ({"image": "AAAA", "colour": 1}, "colour: Extra inputs are not permitted"),
        ({"image": "AAAA", "boxes": [[1, 2, 3]]}, "boxes.0: List should have at least 4 items"),
        ({"image": "AAAA", "threshold": "high"}, "threshold: Input should be a valid number"),
        ({"image": "data:text/html,hello"}, "image is a data URI of another form"),
        ({"images": [{"image": "AAAA"}] * 5}, "5 pictures were sent, expected at most 4"),
        ({"image": "AAAA", "attributes": ["Hatt"]}, "the model has 'Hat'"),
        ([], "the request: Input should be an object"),
    ],
)
def test_wrong_requests_say_what_is_wrong(client, asked, reason):
    answer = client.post("/v1/attributes", json=asked)
    assert answer.status_code in (413, 422) and reason in answer.json()["error"], answer.text
    assert "AAAA" not in answer.text


@pytest.mark.parametrize(
    "fields, files, reason",
    [
        ({"image": "AAAA"}, [picture()], "has both a file and a field with pictures"),
        ({"boxes": "[[0, 0, 5, 5]]"}, [picture(), picture()], "boxes with 2 files"),
        ({"threshold": ["0.1", "0.2"]}, [picture()], "the field 'threshold' is there twice"),
        ({"attributes": ["5", "Hat"]}, [picture()], "the field 'attributes' is there twice"),
        ({"attributes": "5"}, [picture()], "attributes: Input should be a valid list"),
        ({"threshold": "0.1"}, [], "expected either image or images"),
        ({"boxes": "[[5, 5, 0, 0]]"}, [picture()], "boxes[0] is [5.0, 5.0, 0.0, 0.0], which is reversed"),
    ],
)
def test_wrong_forms_say_what_is_wrong(client, fields, files, reason):
    parts = [("file", ("a.png", one)) for one in files] + [("nothing", (None, ""))] * (not files)
    if not files:
        parts = [("threshold", (None, "0.1"))]
        fields = {}
    answer = client.post("/v1/attributes", files=parts, data=fields)
    assert answer.status_code == 422 and reason in answer.json()["error"], answer.text


def test_other_methods_types_and_paths(client):
    assert client.get("/v1/attributes").status_code == 405
    answer = client.post("/v1/attribute", json={})
    assert answer.status_code == 404 and answer.json()["error"].startswith("POST /v1/attribute: Not Found")
    answer = client.post("/v1/attributes", content=picture(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 415 and "Content-Type is 'image/png', expected multipart" in answer.json()["error"]
    answer = client.post("/v1/attributes", json={}, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415 and "not compressed" in answer.json()["error"]


def test_urls_are_not_read_unless_the_service_was_started_so(client):
    answer = client.post("/v1/attributes", json={"image": "http://127.0.0.1:1/a.png"})
    assert answer.status_code == 422 and answer.json()["code"] == "url" and "--allow-urls" in answer.json()["error"]


def test_urls_never_lead_to_private_addresses(pipe, monkeypatch):
    with Service(pipe, allow_urls=True) as service, httpx.Client(base_url=service.url, timeout=20) as client:
        for host in (f"127.0.0.1:{service.port}", "[::1]", "169.254.169.254", "10.0.0.1", "localhost"):
            answer = client.post("/v1/attributes", json={"image": f"http://{host}/v2"})
            assert answer.status_code == 422 and "which is not public" in answer.json()["error"], host
        monkeypatch.setattr(downloading, "_request", lambda *_: (200, None, picture(9)))
        answer = client.post("/v1/attributes", json={"image": "https://example.org/a.png"})
        assert_same(answer.json()["people"][0], pipe(picture(9)))


def test_a_key(pipe):
    with Service(pipe, api_key="secret-1") as service, httpx.Client(base_url=service.url) as client:
        assert client.get("/v2/health/ready").status_code == client.get("/docs").status_code == 200
        for path in ("/metrics", "/v2/models/tiny", "/v1/attributes", "/nothing"):
            answer = client.get(path)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert client.get(path, headers={"Authorization": "Bearer secret-2"}).status_code == 401
            assert client.get(path, headers={"X-API-Key": "secrét".encode("latin-1")}).status_code == 401
        for headers in ({"Authorization": "Bearer secret-1"}, {"X-API-Key": "secret-1"}):
            answer = client.post("/v1/attributes", files={"file": picture()}, headers=headers)
            assert answer.status_code == 200


@pytest.fixture
def gallery(tmp_path):
    gallery = Gallery.create(tmp_path / "gallery", INFO)
    gallery.add(make_people(50))
    return gallery


def test_a_gallery_is_searched(pipe, gallery):
    with Service(pipe, gallery=gallery) as service, httpx.Client(base_url=service.url, timeout=20) as client:
        for asked in (
            {"query": "hat, red top", "top": 3},
            {"query": {"Top": "blue"}, "filter": "not hat", "score": "l1", "top": 5},
        ):
            found = client.post("/v1/search", json=asked).json()
            wanted = gallery.search(**asked).to_dict()
            assert len(found["people"]) == asked["top"] and found == json.loads(json.dumps(wanted))
            assert "Female" not in found["people"][0]["attributes"]
        for asked, reason in (
            ({"query": "Female"}, "sensitive"),
            ({"query": "hat", "top": 0}, "top: Input should be greater than or equal to 1"),
            ({"query": "hat", "where": "1 = 1"}, "where: Extra inputs are not permitted"),
            ({}, "query: Field required"),
            ({"query": "purple hat wobble"}, "query"),
        ):
            answer = client.post("/v1/search", json=asked)
            assert answer.status_code == 422 and reason in answer.json()["error"], answer.text
    with Service(pipe, gallery=gallery, allow_sensitive=True) as service:
        found = httpx.post(f"{service.url}/v1/search", json={"query": "Female", "top": 1}).json()
        assert "Female" in found["people"][0]["attributes"]


def test_without_a_gallery_there_is_no_search(client):
    assert client.post("/v1/search", json={"query": "hat"}).status_code == 404


def test_too_much_at_once_is_refused_with_the_time_to_wait(pipe):
    free = threading.Event()

    async def main(service):
        prepare = service.handler._prepare
        service.handler._prepare = lambda people: (free.wait(10), prepare(people))[1]
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            first = [asyncio.ensure_future(client.post("/v1/attributes", files={"file": picture()})) for _ in range(3)]
            while service.handler.in_work < 3:
                await asyncio.sleep(0.01)
            late = await client.post("/v1/attributes", files={"file": picture()})
            free.set()
            return late, await asyncio.gather(*first)

    with Service(pipe, Limits(max_in_work=3, max_pictures=3)) as service:
        try:
            late, first = asyncio.run(main(service))
        finally:
            free.set()
    assert late.status_code == 429 and int(late.headers["Retry-After"]) >= 1
    assert late.json() == {"error": "3 pictures are in work, of at most 3; ask again in 1 s", "code": "busy"}
    assert [one.status_code for one in first] == [200] * 3


def test_a_service_that_is_about_to_stop_says_so_and_still_answers(service, client):
    service.handler.is_ready = False
    try:
        answer = client.get("/v2/health/ready")
        assert answer.status_code == 503 and answer.headers["Connection"] == "close"
        assert client.get("/v2/health/live").status_code == 200
        assert client.post("/v1/attributes", files={"file": picture()}).status_code == 200
    finally:
        service.handler.is_ready = True
    assert client.get("/v2/health/ready").status_code == 200


def test_measures(client):
    client.post("/v1/attributes", files={"file": picture()})
    client.post("/v1/attributes", files={"file": b"no picture"})
    client.get("/nothing")
    text = client.get("/metrics").text
    found = {
        (one.name, *sorted(one.labels.values())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }
    assert found["vlm_par_request_seconds_count", "/v1/attributes", "200"] >= 1
    assert found["vlm_par_request_seconds_count", "/v1/attributes", "422"] >= 1
    assert found["vlm_par_request_seconds_count", "404", "other"] >= 1
    assert found["vlm_par_refused_total", "picture"] >= 1 and found["vlm_par_pictures_total",] >= 1
    assert found["vlm_par_batch_people_count",] >= 1 and found["vlm_par_people_total",] >= 1
    for stage in ("prepare", "wait", "model"):
        assert found["vlm_par_stage_seconds_count", stage] >= 1
    assert found["vlm_par_pictures_in_work",] == found["vlm_par_queue_people",] == found["vlm_par_faults_total",] == 0


def test_the_description_names_every_field(client):
    found = client.get("/openapi.json").json()
    post = found["paths"]["/v1/attributes"]["post"]
    body = post["requestBody"]["content"]
    assert {"image", "images", "boxes", "attributes", "abstain"} <= set(
        body["application/json"]["schema"]["properties"]
    )
    assert {"file", "boxes", "threshold"} <= set(body["multipart/form-data"]["schema"]["properties"])
    assert body["application/json"]["schema"]["examples"] and {"422", "429", "413"} <= set(post["responses"])
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(found)))
    assert references <= set(found["components"]["schemas"])
    assert client.get("/", follow_redirects=True).url.path == "/docs"


def test_logs_are_json_and_hold_nothing_of_a_picture(client, capfd, caplog):
    caplog.set_level("INFO", logger="vlm_par_hf.serving.app")
    data = picture(5)
    client.post("/v1/attributes", files={"file": ("secret name.png", data)}, headers={"X-Request-ID": "abc-1"})
    client.post("/v1/attributes", json={"image": base64_text(data)[:-3]}, headers={"X-Request-ID": "two words"})
    client.post("/v1/attributes?q=secret", json={"image": base64_text(b"secret")})
    err = capfd.readouterr().err
    first, second, third = (json.loads(line) for line in err.splitlines() if line.startswith("{"))
    assert first.items() >= {
        "event": "request", "id": "abc-1", "method": "POST", "route": "/v1/attributes", "status": 200, "pictures": 1,
        "people": 1,
    }.items()  # fmt: skip
    assert second["id"] != "two words" and third["code"] == "picture"
    assert "secret" not in err and base64_text(data)[:12] not in err and "secret" not in caplog.text


def test_a_fault_is_a_500_that_quotes_nothing(service, client, capfd, caplog, monkeypatch):
    caplog.set_level("INFO", logger="vlm_par_hf.serving.app")

    def broken(*_, **__):
        raise RuntimeError("secret")

    monkeypatch.setattr(service.handler.pipe, "_forward", broken)
    answer = client.post("/v1/attributes", files={"file": picture()})
    monkeypatch.undo()
    assert answer.status_code == 500 and answer.json()["code"] == "fault" and "secret" not in answer.text
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    (fault,) = [one for one in logged if one["event"] == "fault"]
    assert fault["error"] == "RuntimeError" and any("broken" in place for place in fault["places"])
    assert "secret" not in str(logged) and fault["id"] in answer.json()["error"]
    service.measures.faults.reset()
    assert client.post("/v1/attributes", files={"file": picture()}).status_code == 200

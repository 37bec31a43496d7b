"""The Open Inference Protocol v2, asked by a client that is written here from the protocol's text."""

import base64

import numpy as np
import pytest

from modeling_tests.services import base64_text, binary_infer, picture


INFER = "/v2/models/tiny/infer"


def wanted_arrays(pipe, pictures):
    people = [pipe(one)["attributes"] for one in pictures]
    probabilities = [[p for one in person.values() for p in one["probabilities"].values()] for person in people]
    return np.array(probabilities), [[one["label"] for one in person.values()] for person in people]


def test_health_and_metadata(client, pipe):
    for path in ("health/live", "health/ready", "models/tiny/ready", "models/tiny/versions/1/ready"):
        assert client.get(f"/v2/{path}").status_code == 200
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    found = client.get("/v2/models/tiny").json()
    assert found == client.get("/v2/models/tiny/versions/1").json()
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    schema = pipe.model.config.schema
    labels = sum(one.num_labels for one in schema)
    assert found["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, labels]},
        {"name": "decided", "datatype": "BYTES", "shape": [-1, len(schema)]},
    ]
    attributes = found["parameters"]["attributes"]
    assert [one["name"] for one in attributes] == list(schema.names)
    assert [one["labels"] for one in attributes] == [list(one.labels) for one in schema]
    assert attributes[0]["columns"] == [0, 2] and attributes[-1]["columns"][1] == labels
    assert attributes[1]["threshold"] == schema["Backpack"].threshold and "threshold" not in attributes[3]


def test_json_in_and_out(client, pipe):
    pictures = [picture(0), picture(1)]
    for data in ([base64_text(one) for one in pictures], [[base64_text(one)] for one in pictures]):
        tensor = {"name": "image", "datatype": "BYTES", "shape": list(np.shape(data)), "data": data}
        answer = client.post(INFER, json={"id": "9", "inputs": [tensor]}).json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "9")
        by_name = {one["name"]: one for one in answer["outputs"]}
        probabilities, decided = wanted_arrays(pipe, pictures)
        assert by_name["probabilities"]["datatype"] == "FP32"
        found = np.reshape(by_name["probabilities"]["data"], by_name["probabilities"]["shape"])
        assert np.allclose(found, probabilities, atol=1e-5)
        assert np.reshape(by_name["decided"]["data"], by_name["decided"]["shape"]).tolist() == decided


@pytest.mark.parametrize("binary", [(True, True), (True, False), (False, True), None])
def test_binary_in_and_out(client, pipe, binary):
    pictures = [picture(2), picture(3, kind="JPEG"), picture(4)]
    names = ("decided", "probabilities")  # the order of the request is that of the answer
    outputs = binary and [
        {"name": name, "parameters": {"binary_data": one}} for name, one in zip(names, binary)
    ]  # fmt: skip
    answer, arrays = binary_infer(client, INFER, pictures, outputs)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/octet-stream"
    probabilities, decided = wanted_arrays(pipe, pictures)
    assert np.allclose(arrays["probabilities"], probabilities, atol=1e-5)
    assert arrays["decided"].tolist() == decided
    assert list(arrays) == list(names if binary else reversed(names))


def test_one_output_of_two(client):
    _, arrays = binary_infer(client, INFER, [picture()], [{"name": "decided", "parameters": {"binary_data": True}}])
    assert list(arrays) == ["decided"]


def test_a_bad_picture_is_named(client):
    answer, _ = binary_infer(client, INFER, [picture(), b"no picture"])
    assert answer.status_code == 422 and answer.json()["error"].startswith("image 1: ")


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"name": "input"}, "the input is named 'input', expected 'image'"),
        ({"datatype": "FP32"}, "the datatype of image is 'FP32', expected 'BYTES'"),
        ({"shape": [2]}, "image has 1 elements, and its shape is [2]"),
        ({"shape": [1, 2]}, "the shape of image is [1, 2], expected [N]"),
        ({"shape": [-1]}, "the shape of image is [-1]"),
        ({"shape": "1"}, "the shape of image is '1'"),
        ({"parameters": {"binary_data_size": 3}}, "binary_data_size of image is 3, and"),
        ({"parameters": {}}, "and image names no binary_data_size"),
        ({"parameters": 7}, "parameters is 7, expected a JSON object"),
    ],
)
def test_wrong_tensors(client, changes, reason):
    answer, _ = binary_infer(client, INFER, [picture()], **changes)
    assert answer.status_code == 400 and reason in answer.json()["error"], answer.text


@pytest.mark.parametrize(
    "body, length, reason",
    [
        (b"{}", "3", "Inference-Header-Content-Length is '3', expected at most 2"),
        (b"{}", "-1", "Inference-Header-Content-Length is '-1'"),
        (b"{", None, "the request is not JSON"),
        (b"\xff", None, "the request is not JSON"),
        (b"[" * 5000, None, "nested too deeply"),
        (b"[]", None, "the request is a list, expected a JSON object"),
        (b"{}", None, "inputs is None, expected a list of one tensor"),
        (b'{"inputs": [], "outputs": [{"name": "logits"}]}', None, "there is no output 'logits'"),
        (b'{"inputs": [], "outputs": [7]}', None, "outputs is [7]"),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["?"]}]}',
            None,
            "the data of image is no base64 text",
        ),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [7]}]}',
            None,
            "the data of image is no list of texts",
        ),
        (
            b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], '
            b'"parameters": {"binary_data_size": 6}}]}\xff\xff\xff\xff12',
            "105",
            "the binary data of image ends in the middle of element 0",
        ),
    ],
)
def test_wrong_requests(client, body, length, reason):
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    answer = client.post(INFER, content=body, headers=headers)
    assert answer.status_code == 400 and reason in answer.json()["error"], answer.text


def test_other_models_and_too_many_pictures(client):
    for path in ("models/other", "models/tiny/versions/2", "models/other/ready"):
        answer = client.get(f"/v2/{path}")
        assert answer.status_code == 404 and "expected 'tiny', version 1" in answer.json()["error"]
    answer, _ = binary_infer(client, INFER, [picture()] * 5)
    assert answer.status_code == 413 and "5 pictures were sent, expected at most 4" in answer.json()["error"]
    assert base64.b64encode(b"x") not in answer.content

"""Pushing and loading against a Hub server of our own, each side in a fresh process, as at a user's.

The processes start once for the module: `publish` pushes everything, `load` loads it elsewhere, `without` is a user
who never imported the package. `hub_client.py` holds what they do.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from modeling_tests.hub_server import DROP, HubServer
from modeling_tests.tiny import tiny_model, tiny_processor


LARGE = 30_000  # bytes: the weights of a tiny model are a large file, as real ones are
SHIMS = {"configuration_vlm_par.py", "modeling_vlm_par.py", "processing_vlm_par.py"}
MODEL = SHIMS | {"README.md", "config.json", "model.safetensors"}
PROCESSOR = {"processor_config.json", "processing_vlm_par.py", "tokenizer.json", "tokenizer_config.json"}
FAILURES = {  # repository: (method, route, status, code), what the error says
    "unauthorised": (("POST", "commit", 401, None), "no valid token: run `hf auth login` or set HF_TOKEN"),
    "forbidden": (("POST", "preupload", 403, None), "the token may not write there"),
    "missing": (("POST", "preupload", 404, "RepoNotFound"), "no such repository or revision for this token"),
    "conflict": (("POST", "commit", 409, None), "something else changed the repository at the same time"),
    "broken": (("POST", "commit", 500, None), "the Hub has a problem: push again later"),
}


def run(part: str, folder: Path, hub: HubServer, **environment: str) -> dict:
    """Runs a part of `hub_client.py` in a process with an empty cache."""
    result = subprocess.run(
        [sys.executable, "-m", "modeling_tests.hub_client", part, str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **hub.environment(folder / f"home_{part}"), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=900,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-5000:]
    return json.loads((folder / f"{part}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(folder):
    backbone = folder / "backbone"
    processor = tiny_processor()
    for part in (tiny_model().vlm, processor.image_processor, processor.tokenizer):
        part.save_pretrained(backbone)
    with HubServer(folder / "contents", lfs_over=LARGE) as server:
        server.add("org/backbone", backbone)
        for name, ((method, route, status, code), _) in FAILURES.items():
            server.fail(method, f"/api/models/org/{name}/{route}/", status=status, code=code)
        server.fail("POST", "/api/models/org/busy/preupload/", status=503, times=1)
        server.fail("POST", "/api/models/org/dies/commit/", status=DROP, times=1)
        server.fail("PUT", "/lfs/org/large-refused/", status=403)
        server.fail("PUT", "/lfs/org/large/", status=DROP, after=1)
        yield server


@pytest.fixture(scope="module")
def published(hub, folder):
    return run("publish", folder, hub)


@pytest.fixture(scope="module")
def loaded(published, hub, folder):
    copy(hub, "org/heads", "org/heads-wrong", backbone_hash="0" * 64)
    copy(hub, "org/heads", "org/heads-lost", backbone_name="org/no-such-backbone")
    copy(hub, "org/full", "org/unreadable")
    hub.fail("HEAD", "/org/unreadable/", status=500)
    hub.fail("GET", "/org/unreadable/", status=500)
    copy(hub, "org/full", "org/half")
    hub.fail("GET", "/org/half/resolve/.*/model.safetensors", status=DROP)
    return run("load", folder, hub)


@pytest.fixture(scope="module")
def without(published, hub, folder):
    return run("without", folder, hub)


def copy(hub: HubServer, source: str, target: str, **config) -> None:
    tree = dict(hub.repos[source].commits[hub.repos[source].branches["main"]])
    changed = {**json.loads(hub.content(tree["config.json"])), **config}
    tree["config.json"] = hub.store(json.dumps(changed).encode())
    hub._commit(hub.create(target), "main", tree, "copy")


def close(first, second) -> None:
    np.testing.assert_allclose(np.array(first), np.array(second), atol=1e-4)


# Pushing


def test_a_push_holds_everything_that_loading_needs(hub, published):
    assert published["full"]["value"].startswith(f"{hub.url}/org/full/commit/")
    assert set(hub.files("org/full")) == MODEL | PROCESSOR
    assert set(hub.files("org/pipe")) == MODEL | PROCESSOR
    assert set(hub.files("org/saved")) == MODEL
    assert set(hub.files("user/processor-alone")) == PROCESSOR
    config = json.loads(hub.read("org/pipe", "config.json"))
    assert config["auto_map"]["AutoModel"] == "modeling_vlm_par.VlmParModel" and "custom_pipelines" not in config
    assert hub.unknown == []


def test_no_folder_of_this_machine_is_published(hub, published, folder):
    for name in hub.files("org/over-a-folder"):
        assert str(folder).encode() not in hub.read("org/over-a-folder", name), name
    assert published["its own configuration"] == str(folder / "backbone")  # here it is as it was
    both = [json.loads(hub.read(repo, "config.json")) for repo in ("org/over-a-folder", "org/pipe")]
    assert both[0] == {**both[1], "backbone_name": None}


def test_a_folded_model_is_pushed_whole_and_without_its_text_tower(hub, published):
    shims = {name.replace(".py", "_folded.py") for name in SHIMS}
    for repo in ("org/folded", "org/folded-pipe"):
        assert set(hub.files(repo)) == MODEL - SHIMS | shims | PROCESSOR
        assert b"text_model" not in hub.read(repo, "model.safetensors")
    card = hub.read("org/folded", "README.md").decode()
    assert "folded for inference" in card and "cannot be trained further" in card


def test_one_push_is_one_commit(hub, published):
    assert hub.repos["org/full"].messages == [
        "initial commit", "Upload VlmParModel", "Upload VlmParProcessor", "second version", "Upload VlmParModel"
    ]  # fmt: skip
    again = hub.repos["org/again"]
    first, second = (again.commits[commit]["model.safetensors"] for commit in list(again.commits)[1:])
    assert first != second and len(again.messages) == 3


def test_private_revision_and_pull_request(hub, published):
    assert hub.repos["org/secret"].private and hub.repos["org/trained"].private and not hub.repos["org/full"].private
    branches = hub.repos["org/full"].branches
    assert set(branches) == {"main", "v2", "refs/pr/1"}
    assert hub.read("org/full", "model.safetensors", "v2") != hub.read("org/full", "model.safetensors")
    assert hub.read("org/full", "model.safetensors", "v2") == hub.read("org/full", "model.safetensors", "refs/pr/1")


def test_heads_carry_no_backbone(hub, published):
    config = json.loads(hub.read("org/heads", "config.json"))
    assert config["backbone_name"] == "org/backbone" and len(config["backbone_hash"]) == 64
    assert b'"vlm.' not in hub.read("org/heads", "model.safetensors")
    refused = published["heads over a folder"]
    assert refused["error"] == "ParValueError" and "nobody else could load the heads" in refused["message"]
    assert "org/unloadable" not in hub.repos


@pytest.mark.parametrize("repo", ["org/full", "org/heads", "org/folded", "org/pipe", "org/saved", "org/trained"])
def test_every_push_has_a_card(hub, published, repo):
    card = ModelCard(hub.read(repo, "README.md").decode())
    assert "pedestrian-attributes" in card.data.tags and card.data.base_model == "org/backbone"
    assert f'model="{repo}"' in card.text and "## Not for" in card.text and "No results" in card.text
    assert ("my-tag" in card.data.tags) == (repo == "org/full")


def test_results_speak_for_the_weights_that_were_measured(hub, published):
    assert ModelCard(hub.read("org/measured", "README.md").decode()).data.eval_results[0].metric_value == 0.5
    repo = hub.repos["org/changed-since"]
    before, after = (hub.content(repo.commits[commit]["README.md"]).decode() for commit in list(repo.commits)[1:])
    assert "No results" in before and "model-index" not in before
    assert "model-index" in after  # given by hand


def test_the_trainer_writes_our_card_when_asked(hub, published):
    assert "| `max_steps` | `2` |" in hub.read("org/trained", "README.md").decode()
    plain = hub.read("org/trained-plainly", "README.md").decode()
    assert "generated_from_trainer" in plain and "## Not for" not in plain
    assert any(message.startswith("Training in progress") for message in hub.repos["org/trained"].messages)
    refused = published["trainer of heads over a folder"]
    assert refused["error"] == "ParValueError" and "nobody else could load the heads" in refused["message"]
    assert "nobody could load this" not in hub.repos["org/trained"].messages


@pytest.mark.parametrize("name", FAILURES)
def test_a_refusal_says_what_to_do_and_commits_nothing(hub, published, name):
    outcome = published[name]
    assert outcome["is_os_error"], outcome
    for expected in (f"uploading to 'org/{name}' failed", FAILURES[name][1], "Nothing was committed"):
        assert expected in outcome["message"]
    assert hub.files(f"org/{name}") == []


def test_a_connection_that_dies_leaves_no_half(hub, published):
    assert "the connection to the Hub broke" in published["dies"]["message"] and published["dies"]["is_os_error"]
    assert "push again" in published["dies"]["message"]
    assert hub.repos["org/dies"].messages == ["initial commit", "Upload VlmParModel"]  # the second attempt
    assert set(hub.files("org/dies")) == set(hub.files("org/busy")) == MODEL


def test_large_files_whose_upload_breaks(hub, published):
    refused, died = published["large refused"], published["large dies"]
    assert refused["is_os_error"] and died["is_os_error"], (refused, died)
    for text in ("uploading to 'org/large-refused' failed (403)", "the token may not write there", "Nothing was"):
        assert text in refused["message"]
    for text in ("uploading to 'org/large' failed", "connection to the Hub broke", "push again"):
        assert text in died["message"]
    assert hub.files("org/large-refused") == []
    # The second attempt: one commit, and what had arrived whole is not sent again.
    assert hub.repos["org/large"].messages[:2] == ["initial commit", "Upload VlmParModel"]
    shards = [name for name in hub.files("org/large") if name.endswith(".safetensors")]
    sent = [path.rpartition("/")[2] for path in hub.requests if path.startswith("PUT /lfs/org/large/")]
    large = {name for name in shards if len(hub.read("org/large", name)) > LARGE}
    assert len(large) > 2 and sent.count(sent[0]) == 1
    assert {hashlib.sha256(hub.read("org/large", name)).hexdigest() for name in large} <= set(sent)


def test_no_token(hub, published):
    assert "creating 'org/no-token' failed (401): no valid token" in published["no token"]["message"]
    assert "org/no-token" not in hub.repos


# Loading elsewhere


@pytest.mark.parametrize("name", ["heads-shards", "heads-fp16"])
def test_heads_in_other_files(hub, published, loaded, name):
    stems = {"heads-shards": "model-0000", "heads-fp16": "model.fp16.safetensors"}
    weights = [one for one in hub.files(f"org/{name}") if one.endswith(".safetensors")]
    assert all(one.startswith(stems[name]) for one in weights) and len(weights) > (name == "heads-shards")
    close(loaded[f"{name} logits"], published["heads logits"])


@pytest.mark.parametrize("name", ["adapter", "heads-lora"])
def test_adapters(hub, published, loaded, name):
    pytest.importorskip("peft", reason="needs the extra peft")
    files = {"adapter": {"adapter_config.json", "adapter_model.safetensors"}, "heads-lora": MODEL - {"README.md"}}
    assert files[name] <= set(hub.files(f"org/{name}"))
    assert ("config.json" in hub.files(f"org/{name}")) == (name == "heads-lora")
    assert loaded[f"{name} model"] == {"value": "VlmParModel"}
    close(loaded[f"{name} logits"], published[f"{name} logits"])


@pytest.mark.parametrize("name", ["full", "revision", "heads", "trained", "trained-plainly", "large", "folded"])
def test_a_fresh_process_gets_the_same_model(published, loaded, name):
    assert loaded[f"{name} model"] == {"value": "FoldedVlmParModel" if name == "folded" else "VlmParModel"}
    assert loaded[f"{name} processor"] == {"value": "VlmParProcessor"}
    close(loaded[f"{name} logits"], published[f"{name} logits"])


@pytest.mark.parametrize("form", ["", "folded "])
def test_a_fresh_process_gets_the_same_pipeline(published, loaded, form):
    assert loaded[f"{form}pipe"] == {"value": "PedestrianAttributesPipeline"}
    here, there = published["pipeline answer"]["attributes"], loaded[f"{form}pipeline answer"]["attributes"]
    assert list(here) == list(there)
    for name in here:
        assert here[name]["label"] == there[name]["label"]
        assert here[name]["probabilities"] == pytest.approx(there[name]["probabilities"], abs=1e-4)


def test_the_tag_of_a_card_names_the_pipeline(loaded):
    assert loaded["pipe by the tag of its card"] == {"value": "PedestrianAttributesPipeline"}
    assert loaded["answer without a task"] == loaded["pipeline answer"]


def test_private_needs_the_token(published, loaded):
    close(loaded["secret logits"], published["full logits"])
    assert loaded["load secret without token"]["is_os_error"]
    assert "org/secret" in loaded["load secret without token"]["message"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("heads-wrong", ["'org/backbone'", "backbone_hash", "0" * 64]),
        ("heads-lost", ["org/no-such-backbone"]),
        ("gone", ["org/gone"]),
        ("unreadable", ["couldn't connect to 'http://127.0.0.1"]),
        ("half", ["org/half"]),
        ("full", ["no-such-branch"]),
    ],
)
def test_a_bad_answer_names_the_repository(loaded, name, expected):
    outcome = loaded[f"load {name}"]
    assert outcome.get("error") == "ParValueError" or outcome.get("is_os_error"), outcome
    for text in expected:
        assert text in outcome["message"]


# Without the import


def test_without_the_import_nothing_wrong_is_loaded(without):
    for part in ("model", "processor", "folded"):
        assert without[part]["error"] == "ValueError"
        repo = "org/folded" if part == "folded" else "org/full"
        assert "trust_remote_code=True" in without[part]["message"] and repo in without[part]["message"]


def test_without_the_package_the_user_is_told_what_to_install(without):
    assert without["not installed"]["error"] == "ImportError"
    assert "pip install vlm_par_hf" in without["not installed"]["message"]
    assert without["not imported yet"] is True


def test_files_in_the_repository_import_the_package(published, without):
    assert without["module"] == "vlm_par_hf.models.vlm_par.modeling_vlm_par"
    assert without["trusted folded model"] == {"value": "FoldedVlmParModel"}
    assert without["trusted folded processor"] == {"value": "VlmParProcessor"}
    close(without["logits"], published["full logits"])

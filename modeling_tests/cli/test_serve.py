"""Options of `vlm-par serve`."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from vlm_par_hf.cli import main
from vlm_par_hf.cli.main import build_parser
from vlm_par_hf.cli.serve import _api_key, run
from vlm_par_hf.serving import running


ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(monkeypatch):
    """What `serve` is called with."""
    found = {}
    monkeypatch.setattr(running, "serve", lambda settings, **options: found.update(options, settings=settings))
    return found


def test_every_option_reaches_the_service(settings, tmp_path):
    key = tmp_path / "key"
    key.write_text("secret\n")
    assert main([
        "serve", "folder", "--host", "0.0.0.0", "--port", "81", "--workers", "3", "--name", "par", "--detector", "det",
        "--detector-label", "Person", "--detector-threshold", "0.4", "--device", "cpu", "--dtype", "auto",
        "--api-key-file", str(key), "--allow-urls", "--max-batch", "4", "--max-wait-ms", "2", "--max-in-work", "9",
        "--max-pictures", "5", "--max-people", "6", "--max-megabytes", "1.5", "--max-megapixels", "2", "--seconds",
        "7", "--drain", "3", "--gallery", "people", "--allow-sensitive",
    ]) == 0  # fmt: skip
    one = settings.pop("settings")
    assert settings == {"host": "0.0.0.0", "port": 81, "workers": 3}
    assert (one.checkpoint, one.name, one.device, one.dtype) == ("folder", "par", "cpu", "auto")
    assert (one.detector, one.detector_label, one.detector_threshold) == ("det", "Person", 0.4)
    assert (one.api_key, one.allow_urls, one.drain) == ("secret", True, 3.0)
    assert (one.gallery, one.allow_sensitive) == ("people", True)
    assert vars(one.limits) == {
        "max_bytes": 1_500_000, "max_pixels": 2_000_000, "max_pictures": 5, "max_people": 6, "seconds": 7.0,
        "max_in_work": 9, "max_batch": 4, "max_wait": 0.002,
    }  # fmt: skip


def test_defaults_are_those_of_the_service(settings):
    assert main(["serve"]) == 0
    assert settings.pop("settings") == running.ServiceSettings()
    assert settings == {"host": "127.0.0.1", "port": 8000, "workers": 1}


def test_keys(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("VLM_PAR_API_KEY", "of the environment")
    assert _api_key(None, None) == "of the environment" and _api_key("given", None) == "given"
    for arguments, reason in (
        (["--api-key", "a", "--api-key-file", "b"], "expected one of them"),
        (["--api-key-file", str(tmp_path / "none")], "there is no file"),
        (["--allow-sensitive"], "it needs --gallery"),
        (["--api-key", " "], "the API key is empty"),
        (["--api-key", "schlüssel"], "other signs than printable ASCII"),
    ):
        assert main(["serve", *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_the_dockerfile_starts_the_service_as_it_is():
    """No builder is at hand where tests run: what can be checked without one."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    words = json.loads(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    args = build_parser().parse_args([*words[1:], "/model"])
    assert words[0] == "vlm-par" and args.run is run and (args.host, args.checkpoint) == ("0.0.0.0", "/model")
    assert f"EXPOSE {args.port}" in text and f"127.0.0.1:{args.port}/v2/health/ready" in text
    last_stage = text[text.rindex("FROM ") :]
    assert re.search(r"^USER par$", last_stage, re.MULTILINE) and "useradd" in last_stage
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    lines = re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    assert copied == kept and all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied

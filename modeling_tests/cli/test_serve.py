"""Options of `vlm-par serve`."""

import pytest

from vlm_par_hf.cli import main
from vlm_par_hf.cli.serve import _api_key
from vlm_par_hf.serving import running


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

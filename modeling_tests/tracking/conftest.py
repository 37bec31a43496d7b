"""A tiny checkpoint, and a video of two people with the file of their boxes."""

import pytest
import transformers

from modeling_tests.image_folders import save_model
from modeling_tests.videos import walkers, write_tracks, write_video


_LOADED: dict = {}


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture(scope="session")
def street(tmp_path_factory):
    """The video of 30 frames, and its tracks."""
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("street")
    pictures, rows = walkers(30)
    return write_video(folder / "street.mp4", pictures), write_tracks(folder / "street.txt", rows)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch):
    """Pipelines of the same arguments are the same one: loading takes longer than these videos."""
    real = transformers.pipeline

    def pipeline(*names, **options):
        key = repr((names, sorted(options.items(), key=str)))
        if key not in _LOADED:
            _LOADED[key] = real(*names, **options)
        return _LOADED[key]

    monkeypatch.setattr(transformers, "pipeline", pipeline)

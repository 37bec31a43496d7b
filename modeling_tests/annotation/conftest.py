"""A tiny checkpoint, a folder of images, and a run that was stopped in it."""

from pathlib import Path

import pytest

from modeling_tests.image_folders import run, save_image, save_model
from vlm_par_hf.models.vlm_par import VlmParModel


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return str(folder)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty images: 1.png to 20.png."""
    for number in range(1, 21):
        save_image(tmp_path / "images" / f"{number}.png", number)
    return tmp_path / "images"


@pytest.fixture
def stopped(folder, model, tmp_path, monkeypatch):
    """A run that an error in the model ended after two parts of three."""
    real, calls = VlmParModel.forward, iter(range(100))

    def answer(self, *inputs, **named):
        if next(calls) == 6:
            raise RuntimeError("out of memory")
        return real(self, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(VlmParModel, "forward", answer)
        with pytest.raises(RuntimeError, match="out of memory"):
            run(folder, tmp_path / "out.jsonl", model)
    assert sorted(path.name for path in (tmp_path / "out.jsonl.partial").glob("part*")) == [
        "part-000000.jsonl",
        "part-000001.jsonl",
    ]
    return tmp_path / "out.jsonl"

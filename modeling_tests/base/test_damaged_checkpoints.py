"""Checkpoints that came in part, or as something else: every loader says which folder, and nothing half is loaded."""

import pytest
from transformers import AutoModel, AutoProcessor

from modeling_tests.tiny import tiny_model, tiny_processor


WEB_PAGE = b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab29\nsize 12345\n"  # cloned without LFS


@pytest.fixture(scope="module", params=["full", "folded", "heads"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "my-model"
    model = tiny_model()
    if request.param == "heads":
        model.vlm.save_pretrained(folder.with_name("backbone"))
        model.config.save_backbone, model.config.backbone_name = False, str(folder.with_name("backbone"))
    model = model.fold() if request.param == "folded" else model
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    assert AutoModel.from_pretrained(folder) is not None
    return folder


@pytest.fixture
def damage(checkpoint):
    """Replaces a file of the checkpoint; it is whole again after the test."""
    kept = {}

    def replace(name, content):
        path = checkpoint / name
        kept.setdefault(path, path.read_bytes())
        if content is None:
            path.unlink()
        else:
            path.write_bytes(kept[path][: len(kept[path]) // 2] if content == "half" else content)

    yield replace
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize("content", ["half", b"", WEB_PAGE, POINTER])
def test_weights(checkpoint, damage, content):
    damage("model.safetensors", content)
    with pytest.raises(ValueError, match=r"my-model: a file of weights is damaged .*downloaded or copied in part\?"):
        AutoModel.from_pretrained(checkpoint)


def test_no_weights(checkpoint, damage):
    damage("model.safetensors", None)
    with pytest.raises(OSError, match=r"model\.safetensors.*my-model|my-model.*model\.safetensors"):
        AutoModel.from_pretrained(checkpoint)


@pytest.mark.parametrize("content", ["half", b"", WEB_PAGE, POINTER, b'{"model_type": "caf\xe9"}'])
def test_configuration(checkpoint, damage, content):
    damage("config.json", content)
    with pytest.raises(OSError, match=r"my-model/config.json' is not a valid JSON file"):
        AutoModel.from_pretrained(checkpoint)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("content", ["half", WEB_PAGE])
def test_processor(checkpoint, damage, name, content):
    damage(name, content)
    with pytest.raises(
        (OSError, ValueError), match="my-model.*(cannot be read, it is damaged|is not a valid JSON file)"
    ):
        AutoProcessor.from_pretrained(checkpoint)

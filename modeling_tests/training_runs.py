"""Short trainings of a tiny model, and the comparison of their weights."""

import pytest
import torch
from transformers import TrainerCallback

from modeling_tests.tiny import save_backbone, tiny_focus_model, tiny_focus_processor, tiny_model, tiny_processor
from vlm_par_hf.training import TrainSettings, train


FOCUS = {"num_attention_heads": 4, "num_global_tokens": 2, "num_prompt_tokens": 2}
QUICK = {"epochs": 3, "batch_size": 8, "eval_batch_size": 16, "logging_steps": 2, "progress": False}
EXACT = {"atol": 1e-6, "rtol": 1e-5}


def run(data, folder, *, kind="naflex", model=None, **settings):
    own = ("resume", "overwrite", "delete_listed", "callbacks", "cache_features")
    options = {name: settings.pop(name) for name in own if name in settings}
    return train(
        data,
        folder,
        model=model or tiny_model(kind),
        processor=tiny_processor(kind),
        settings=TrainSettings(**{**QUICK, **settings}),
        **options,
    )


def heads(model):
    return {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("vlm.")}


def assert_same_weights(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, **(tolerance or EXACT), msg=lambda text, name=name: f"{name}: {text}"
        )


class Interrupt(TrainerCallback):
    """Ends a run by an exception: nothing after this step is written."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    start = tiny_model("naflex")
    frozen = {name: value.clone() for name, value in start.vlm.state_dict().items()}
    return run(data, folder, model=start), frozen


@pytest.fixture(scope="session")
def focus_backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("focus_backbone")
    save_backbone(folder, tiny_focus_model("naflex"), tiny_focus_processor("naflex"))
    return str(folder)

import json

import pytest

from vlm_par_hf.training import TrainSettings


def test_settings_are_plain_json():
    settings = TrainSettings(epochs=3, learning_rate=0.01)
    assert TrainSettings(**json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", 0, "at least 1"),
        ("learning_rate", 0.0, "above 0"),
        ("epochs", 0, "above 0"),
        ("max_steps", -2, "-1"),
        ("flip", 1.5, "probability"),
        ("pad", 0.6, "0 to 0.5"),
        ("weight_decay", -0.1, "0 or more"),
        ("schedule", "zigzag", "cosine"),
        ("metric_preset", "mine", "rethinking"),
    ],
)
def test_a_wrong_value_is_named(name, value, expected):
    with pytest.raises(ValueError, match=f"{name}={value!r}.*{expected}"):
        TrainSettings(**{name: value})


def test_differences_name_what_would_change_the_result():
    earlier = TrainSettings(seed=1, workers=0, report_to="none").to_dict()
    assert TrainSettings(seed=1, workers=4, report_to="wandb").differences(earlier) == []
    assert TrainSettings(seed=2).differences(earlier) == ["seed: 1 then, 2 now"]

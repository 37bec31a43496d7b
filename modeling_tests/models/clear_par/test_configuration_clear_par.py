"""What a configuration of CLEAR refuses, and what the two sets of choices are."""

import pytest
from transformers import AutoConfig

from modeling_tests.tiny import tiny_clear_config
from vlm_par_hf.models.clear_par import ClearParConfig


def test_the_two_sets_of_choices():
    paper, released, own = ClearParConfig.paper(), ClearParConfig.released(), ClearParConfig()
    assert (paper.casa, paper.swin_pooling, paper.fusion_projection) == ("paper", "flatten", "before")
    assert (released.casa, released.swin_pooling, released.fusion_projection) == ("code", "mean", "after")
    assert (own.casa, own.swin_pooling, own.fusion_projection, own.fusion) == ("fixed", "mean", "after", "cross")
    assert (paper.vit_config.num_hidden_layers, list(paper.swin_config.depths)) == (12, [2, 2, 6, 2])
    assert (released.vit_config.num_hidden_layers, list(released.swin_config.depths)) == (24, [2, 2, 18, 2])
    assert (paper.swin_config.window_size, released.swin_config.window_size) == (12, 7)
    assert paper.vit_width == paper.swin_width == released.swin_width == 1024 and own.image_width == 2048
    assert own.vit_config == paper.vit_config and own.swin_config == paper.swin_config
    assert ClearParConfig.paper(casa="fixed").casa == "fixed"
    with pytest.raises(ValueError, match="priors=None, expected"):
        from vlm_par_hf.base.losses import ParLoss

        ParLoss(tiny_clear_config().schema, **released.loss)


def test_round_trip(tmp_path):
    config = tiny_clear_config(casa="code", branches="swin")
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ClearParConfig and loaded.image_size == [32, 16]
    assert loaded.swin_config == config.swin_config and loaded.schema == config.schema
    assert (loaded.casa, loaded.branches) == ("code", "swin")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"casa": "channel"}, r"casa must be one of \('fixed', 'paper', 'code', 'none'\), got 'channel'"),
        ({"fusion": "none"}, "fusion must be one of"),
        ({"freeze": "vit"}, "freeze must be one of"),
        ({"num_fusion_heads": 5}, "num_fusion_heads must divide the width 32 of the branch of vit_config, got 5"),
        ({"num_fusion_heads": 16}, "num_fusion_heads must divide the width 24 of the branch of swin_config, got 16"),
        ({"attention_dropout": 1.0}, "attention_dropout must lie in"),
        ({"image_size": [256]}, "image_size must be height and width"),
        ({"image_size": [0, 128]}, "image_size must be height and width"),
        ({"image_size": [2, 2]}, "smaller than one patch of vit_config"),
        ({"vit_config": {"model_type": "swin"}}, "vit_config must be the configuration of a vit or dinov2 checkpoint"),
        ({"swin_config": {"depths": [2]}}, "swin_config must be the configuration of a swin .*needs its model_type"),
        (
            {"swin_config": {"model_type": "swin", "depths": [2, 2], "num_heads": [2]}},
            "must name the same 1 to 8 stag",
        ),
        (
            {"swin_config": {"model_type": "swin", "depths": [2], "num_heads": [5], "embed_dim": 24}},
            "num_heads must di",
        ),
        ({"vit_config": {"model_type": "vit", "hidden_size": 10**9}}, "hidden_size must be a whole number from 1 to"),
    ],
)
def test_values_that_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        tiny_clear_config(**change)


@pytest.mark.parametrize(
    ("branch", "change", "match"),
    [
        ("swin_config", {"window_size": 4096}, "window_size may be up to 64"),
        ("swin_config", {"depths": [400, 400]}, "depths 512 together, got 4 and 800"),
        ("swin_config", {"mlp_ratio": 1e9}, "mlp_ratio must lie between 0 and 64"),
        ("swin_config", {"drop_path_rate": 2.0}, r"swin_config: drop_path_rate must be a number in \[0, 1\), got 2.0"),
        ("swin_config", {"hidden_act": "none"}, "swin_config: hidden_act must be an activation"),
        ("vit_config", {"hidden_dropout_prob": -1.0}, "vit_config: hidden_dropout_prob must be a number"),
        ("vit_config", {"image_size": 3}, "vit_config: image_size must be at least one patch"),
    ],
)
def test_branches_that_could_not_be_built(branch, change, match):
    given = getattr(tiny_clear_config(), branch).to_dict() | change
    with pytest.raises(ValueError, match=match):
        tiny_clear_config(**{branch: given})


def test_the_lock_on_the_resolution_says_what_to_change():
    vit = {**tiny_clear_config().vit_config.to_dict(), "image_size": 32}
    with pytest.raises(ValueError, match=r"N x N weights.*1024 x 512.*N = 32,768.*smaller image_size.*casa='none'"):
        tiny_clear_config(image_size=[1024, 512], vit_config=vit)
    large = tiny_clear_config(image_size=[1024, 512], vit_config=vit, casa="none")
    assert large.swin_grids == [(256, 128), (128, 64)] and "image_size" in large.free_at_load
    with pytest.raises(ValueError, match="swin_pooling='flatten' at image_size 4096 x 4096.*swin_pooling='mean'"):
        tiny_clear_config(image_size=[4096, 4096], vit_config=vit, casa="none", swin_pooling="flatten")
    with pytest.raises(
        ValueError, match=r"positions for pictures of 32 x 16, and image_size is \[48, 24\].*set image_"
    ):
        tiny_clear_config(image_size=[48, 24])
    dino = {"model_type": "dinov2", "hidden_size": 32, "num_attention_heads": 2, "image_size": [32, 16]}
    with pytest.raises(ValueError, match="set an image_size of one number in vit_config"):
        tiny_clear_config(vit_config=dino)
    assert not tiny_clear_config(branches="vit").locks_resolution  # its table of positions is of the weights too
    assert tiny_clear_config(casa="none", swin_pooling="flatten").locks_resolution


def test_odd_grids_are_rounded_up():
    config = tiny_clear_config(image_size=[36, 20], vit_config={**tiny_clear_config().vit_config.to_dict(),
                                                                "image_size": [36, 20]})  # fmt: skip
    assert config.swin_grids == [(9, 5), (5, 3)]

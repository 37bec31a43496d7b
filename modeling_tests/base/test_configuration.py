"""The label space of a configuration: plain JSON, names of the labels, and errors that name the class."""

import json
import re

import pytest
from transformers import BertConfig

from modeling_tests.tiny import tiny_backbone_config, tiny_schema
from vlm_par_hf import FocusParConfig, FocusParModel, VlmParConfig, VlmParModel
from vlm_par_hf.base.configuration import BackboneConfig, LabelSpaceConfig
from vlm_par_hf.families import FAMILIES


CONFIGS = pytest.mark.parametrize(
    "config_class", [family.load()[0] for family in FAMILIES], ids=[family.config for family in FAMILIES]
)
BACKBONES = {
    "VlmParConfig": {"vlm_config": tiny_backbone_config("siglip2")},
    "FocusParConfig": {"vlm_config": tiny_backbone_config("clip")},
    "FoldedVlmParConfig": {"vision_config": tiny_backbone_config("siglip2").vision_config},
    "ClearParConfig": {},
    "VtfParConfig": {"vlm_config": tiny_backbone_config("siglip2")},
    "ExportedParConfig": {},
}


def build(config_class, **options):
    return config_class(**BACKBONES[config_class.__name__], **options)


@CONFIGS
def test_a_configuration_without_attributes_names_its_class(config_class):
    config = build(config_class)
    assert isinstance(config, LabelSpaceConfig) and config.attributes is None
    message = f"attributes is None: this {config_class.__name__} names no attributes, expected a schema or a list"
    with pytest.raises(ValueError, match=re.escape(message)):
        _ = config.schema


@CONFIGS
def test_the_label_space_is_plain_json_and_a_new_object_each_time(config_class):
    schema = tiny_schema(kway=True)
    for given in (schema, schema.to_list(), list(schema)):
        config = build(config_class, attributes=given)
        assert config.attributes == schema.to_list() == json.loads(json.dumps(config.attributes))
        assert config.schema == schema and config.schema is not config.schema


@CONFIGS
def test_names_of_labels_follow_from_the_attributes(config_class):
    names = ["Hat", "Backpack", "Female"]
    for options in ({}, {"num_labels": 7}, {"id2label": {0: "cat"}, "label2id": {"cat": 0}}):
        config = build(config_class, attributes=tiny_schema(), **options)
        assert config.id2label == dict(enumerate(names))
        assert config.label2id == {name: index for index, name in enumerate(names)}
        assert config.num_labels == 3


@CONFIGS
def test_a_saved_configuration_has_the_same_label_space(config_class, tmp_path):
    schema = tiny_schema(kway=True)
    build(config_class, attributes=schema).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["attributes"] == schema.to_list() and saved["model_type"] == config_class.model_type
    loaded = config_class.from_pretrained(tmp_path)
    assert loaded.schema == schema and loaded.id2label == dict(enumerate(schema.names))


@CONFIGS
@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ("Hat", TypeError, "attributes must be a list of Attribute or dict, got str"),
        ([], ValueError, "attributes must hold at least one attribute, got none"),
        ([7], TypeError, "an attribute must be an Attribute or a dict, got int: 7"),
    ],
)
def test_something_else_than_attributes_is_refused(config_class, attributes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build(config_class, attributes=attributes)


FAMILIES_OVER_BACKBONES = pytest.mark.parametrize(
    ("config_class", "names"),
    [(VlmParConfig, "siglip or siglip2"), (FocusParConfig, "clip, siglip or siglip2")],
)


@FAMILIES_OVER_BACKBONES
def test_an_allowed_backbone_passes_as_object_and_as_dict(config_class, names):
    assert issubclass(config_class, BackboneConfig)
    for kind in config_class.backbone_types:
        config = tiny_backbone_config(kind)
        for given in (config, config.to_dict()):
            assert config_class(vlm_config=given).vlm_config.model_type == kind
    assert config_class().vlm_config.model_type == config_class.default_backbone["model_type"]
    assert "image_size" not in config_class.default_backbone, "the class's own default was filled in"


@FAMILIES_OVER_BACKBONES
@pytest.mark.parametrize(
    ("given", "found"), [(BertConfig(), "'bert'"), ({"model_type": "blip"}, "'blip'"), ({"hidden_size": 3}, "None")]
)
def test_another_backbone_is_refused_by_name(config_class, names, given, found):
    message = (
        f"vlm_config must be the configuration of a {names} checkpoint (a dict needs its model_type), got "
        f"model_type {found}"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        config_class(vlm_config=given)


@FAMILIES_OVER_BACKBONES
def test_values_that_all_of_them_check(config_class, names):
    with pytest.raises(ValueError, match=r"attention_dropout must lie in \[0, 1\), got 1.0"):
        config_class(attention_dropout=1.0)
    backbone = tiny_backbone_config("siglip").to_dict()
    backbone["vision_config"]["vision_use_head"] = False
    with pytest.raises(ValueError, match="vision tower must have its pooling head"):
        config_class(vlm_config=backbone)


def nested(config, tower, **values):
    """The dict of a configuration with other values in one of its towers."""
    vlm = config.to_dict()["vlm_config"]
    vlm[tower].update(values)
    return vlm


@pytest.mark.parametrize("tower", ["text_config", "vision_config"])
@pytest.mark.parametrize("config_class", [VlmParConfig, FocusParConfig])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**18), ("hidden_size", 0), ("hidden_size", -8), ("intermediate_size", 2**40),
        ("num_attention_heads", 0), ("num_attention_heads", 5), ("hidden_act", "no such"), ("layer_norm_eps", -1.0),
        ("layer_norm_eps", float("nan")), ("attention_dropout", 1.5), ("num_hidden_layers", True),
    ],
)  # fmt: skip
def test_a_tower_that_cannot_be_built_is_refused(config_class, tower, field, value):
    """A configuration with 10**18 layers once hung the process that read it."""
    vlm = nested(build(config_class, attributes=tiny_schema()), tower, **{field: value})
    words = field.replace("num_", "(num_|number of )").replace("_", ".")
    with pytest.raises(ValueError, match=f"(?s)vlm.config.*{words}"):
        config_class(vlm_config=vlm, attributes=tiny_schema())


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        (VlmParConfig, {"question_input_ids": [["a"]]}), (VlmParConfig, {"question_input_ids": [[10**9]]}),
        (VlmParConfig, {"question_input_ids": [3]}), (VlmParConfig, {"prompt_input_ids": [[1]]}),
        (VlmParConfig, {"prompt_input_ids": [[[-1]]]}), (VlmParConfig, {"num_fusion_heads": 10**12}),
        (VlmParConfig, {"layer_norm_eps": 0.0}), (VlmParConfig, {"text_pad_token_id": 10**9}),
        (FocusParConfig, {"label_input_ids": [[[1.5]]]}), (FocusParConfig, {"prompt_start_ids": [1] * 99}),
        (FocusParConfig, {"num_global_tokens": 10**12}), (FocusParConfig, {"num_prompt_tokens": 64}),
        (FocusParConfig, {"prompt_regions": []}), (FocusParConfig, {"prompt_regions": [1]}),
    ],
)  # fmt: skip
def test_own_values_out_of_bounds_are_named(config_class, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        build(config_class, attributes=tiny_schema(), **values)


@pytest.mark.parametrize("name", ["question_input_ids", "prompt_input_ids"])
def test_token_ids_of_another_label_space_are_refused(name):
    texts = {"question_input_ids": [[1]] * 2, "prompt_input_ids": [[[1], [2]]] * 2}
    with pytest.raises(ValueError, match=r"one entry per attribute \(3\)"):
        VlmParModel(build(VlmParConfig, attributes=tiny_schema(), **{name: texts[name]}))
    with pytest.raises(ValueError, match="label_input_ids must hold one text per label"):
        FocusParModel(build(FocusParConfig, attributes=tiny_schema(), label_input_ids=[[[1], [2]]] * 2))

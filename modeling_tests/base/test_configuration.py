"""The label space of a configuration: plain JSON, names of the labels, and errors that name the class."""

import json
import re

import pytest
from transformers import CLIPConfig

from modeling_tests.tiny import tiny_backbone_config, tiny_schema
from vlm_par_hf.base.configuration import LabelSpaceConfig, check_backbone_type
from vlm_par_hf.families import FAMILIES


CONFIGS = pytest.mark.parametrize(
    "config_class", [family.load()[0] for family in FAMILIES], ids=[family.config for family in FAMILIES]
)
BACKBONES = {
    "VlmParConfig": {"vlm_config": tiny_backbone_config("siglip2")},
    "FocusParConfig": {"vlm_config": tiny_backbone_config("clip")},
    "FoldedVlmParConfig": {"vision_config": tiny_backbone_config("siglip2").vision_config},
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


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_an_allowed_backbone_passes_as_object_and_as_dict(kind):
    config = tiny_backbone_config(kind)
    check_backbone_type(config, ("siglip", "siglip2"))
    check_backbone_type(config.to_dict(), ("siglip", "siglip2"))


@pytest.mark.parametrize(
    ("given", "found"),
    [(CLIPConfig(), "'clip'"), ({"model_type": "bert"}, "'bert'"), ({"hidden_size": 3}, "None"), (None, "None")],
)
@pytest.mark.parametrize(
    ("allowed", "names"),
    [(("siglip", "siglip2"), "siglip or siglip2"), (("blip", "siglip", "siglip2"), "blip, siglip or siglip2")],
)
def test_another_backbone_is_refused_by_name(given, found, allowed, names):
    message = (
        f"vlm_config must be the configuration of a {names} checkpoint (a dict needs its model_type), got "
        f"model_type {found}"
    )
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        check_backbone_type(given, allowed)

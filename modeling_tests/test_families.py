"""The table of families agrees with the classes that it names, and reading it needs neither torch nor transformers."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from modeling_tests.test_floors import imports
from vlm_par_hf import auto, families
from vlm_par_hf.base.modeling import ParPreTrainedModel
from vlm_par_hf.base.processing import ParProcessor
from vlm_par_hf.families import FAMILIES, find_family, trainable_families


ROWS = pytest.mark.parametrize("family", FAMILIES, ids=[family.model_type for family in FAMILIES])
SOURCE = Path(families.__file__)


def defaults(config_class):
    """Field of a configuration -> its default."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def test_every_model_type_is_there_once():
    names = [family.model_type for family in FAMILIES]
    assert names and len(set(names)) == len(names)
    assert all(find_family(name).model_type == name for name in names)
    assert find_family("siglip2") is None
    assert trainable_families() == ("vlm_par", "focus_par", "clear_par", "vtf_par")


@ROWS
def test_every_row_loads_the_classes_that_it_names(family):
    config_class, model_class, processor_class = family.load()
    loaded = [one for one in (config_class, model_class, processor_class) if one is not None]
    assert [one.__name__ for one in loaded] == list(family.class_names)
    assert (processor_class is None) == (family.processor is None)
    assert config_class.model_type == family.model_type
    assert issubclass(model_class, ParPreTrainedModel) and model_class.config_class is config_class
    assert model_class.processor_class is processor_class
    if processor_class is not None:
        assert issubclass(processor_class, ParProcessor)


@ROWS
def test_what_can_be_trained_says_so(family):
    _, model_class, _ = family.load()
    assert model_class.supports_training == family.trainable
    assert bool(family.purpose) == family.trainable
    assert family.trainable or not family.train_options
    assert family.title


@ROWS
def test_options_of_training_are_fields_with_the_default_of_the_configuration(family):
    config_class = family.load()[0]
    fields = defaults(config_class)
    for option in family.train_options:
        assert option.name in fields, option.name
        default = option.choices[0] if option.choices else option.default
        assert default == fields[option.name] and type(default) is type(fields[option.name]), option.name
        assert len(set(option.choices)) == len(option.choices) != 1, option.name
        for choice in option.choices:
            assert getattr(config_class(**{option.name: choice}), option.name) == choice


@ROWS
def test_settings_on_a_card_are_fields_of_the_configuration(family):
    fields = defaults(family.load()[0])
    assert set(family.card_settings) <= set(fields)
    assert len(set(family.card_settings)) == len(family.card_settings)


def test_get_family_takes_only_what_can_be_trained():
    for name in trainable_families():
        assert auto.get_family(name) == find_family(name).load()
    with pytest.raises(ValueError, match="family='vlm_par_folded': expected one of vlm_par, focus_par"):
        auto.get_family("vlm_par_folded")
    with pytest.raises(ValueError, match="family='resnet': expected one of vlm_par, focus_par"):
        auto.get_family("resnet")


def test_the_table_imports_the_standard_library_only():
    found = {name.partition(".")[0] for _, name, _ in imports("families.py", SOURCE.read_text(encoding="utf-8"))}
    assert {"importlib", "dataclasses"} <= found <= sys.stdlib_module_names
    # Classes are named, not imported: by text in a call of the table's row.
    rows = [node for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert sum(getattr(row.func, "id", None) == "Family" for row in rows) == len(FAMILIES)


def test_reading_the_table_alone_loads_no_torch():
    """The file by itself, as `vlm_par_hf/__init__.py` loads more."""
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('families', {str(SOURCE)!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['families'] = module\n"
        "spec.loader.exec_module(module)\n"
        "print(module.trainable_families(), sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "('vlm_par', 'focus_par', 'clear_par', 'vtf_par') []"

import json
import re
import types

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.cli.main import main
from vlm_par_hf.hub.card_sections import training_section
from vlm_par_hf.hub.model_card import (
    build_model_card,
    eval_results_yaml,
    write_card_on_push,
    write_model_card,
)
from vlm_par_hf.hub.records import METRICS, convention_text, metric_text
from vlm_par_hf.labels.decisions import AttributeDecision, Decisions
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.metrics.attributes import METRIC_NAMES, ParMetrics
from vlm_par_hf.training import evaluate


def make_record(name="pa100k", split="test", images=10_000, *, schema=None, preset="rethinking", **data):
    """A record as `evaluate` writes it, from few images; `images` is only what the record says."""
    schema = schema or get_schema("pa100k")
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(40, len(schema), schema.max_labels))
    labels = np.stack([generator.integers(0, one.num_labels, 40) for one in schema], axis=1)
    return {
        "data": {"name": name, "split": split, "images": images, "synthetic": name == "synthetic", **data},
        "model": {"path": "x"},
        "preset": preset,
        "threshold": None,
        "note": "",
        **ParMetrics(schema, preset=preset).report((logits, labels), bootstrap=20),
        "resampled": "images",
        "command": "vlm-par evaluate /home/somebody/out pa100k --root '/data/PA 100K'",
        "versions": {"vlm_par_hf": "0.1.0", "torch": "2.13.0", "platform": "Linux-of-somebody"},
    }


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    config = {
        "model_type": "vlm_par",
        "attributes": get_schema("pa100k").to_list(),
        "backbone_name": "google/siglip2-base-patch16-naflex",
        "fusion": "text_to_image",
        "loss": {"kind": "ce_focal", "priors": [[0.5, 0.5]]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def test_metadata_is_read_back_by_the_hubs_library(checkpoint):
    record = make_record()
    card = ModelCard(str(build_model_card(checkpoint, record, name="org/my-model", license="mit", tags=["extra"])))
    data = card.data
    assert data.model_name == "my-model" and data.license == "mit" and data.library_name == "transformers"
    assert data.base_model == "google/siglip2-base-patch16-naflex"
    assert {"pedestrian-attributes", "image-classification", "vlm_par", "extra"} <= set(data.tags)
    assert data.pipeline_tag == "pedestrian-attributes"  # what pipeline(model=...) is to make of it
    results = {one.metric_type: one for one in data.eval_results}
    assert set(results) == set(METRIC_NAMES)
    mA = results["mA"]
    assert (mA.dataset_type, mA.dataset_name, mA.dataset_split) == ("pa100k", "PA-100K", "test")
    assert mA.metric_name == "mA (convention rethinking, threshold 0.5)"
    assert mA.metric_value == pytest.approx(record["metrics"]["mA"], abs=1e-6)
    assert mA.metric_args["interval"] == pytest.approx(record["intervals"]["mA"], abs=1e-6)
    assert mA.metric_args["resampled"] == "images" and mA.metric_args["confidence"] == 0.95


def test_every_metric_is_explained():
    assert set(METRIC_NAMES) <= set(METRICS)


def test_text_says_what_where_and_how(checkpoint):
    write_json(
        checkpoint / "run.json",
        {
            "settings": {"learning_rate": 0.001, "seed": 3},
            "data": {"name": "pa100k", "train_images": 80_000, "validation_images": 10_000},
            "command": "vlm-par train pa100k --root /data/PA-100K",
            "versions": {"torch": "2.13.0"},
        },
    )
    write_json(checkpoint / "training.json", {"validation_mA": 0.8123, "best_step": 10, "steps": 20})
    record = make_record(preset="vtb")
    text = build_model_card(checkpoint, record, name="org/my-model").text
    low, high = (f"{100 * bound:.2f}" for bound in record["intervals"]["mA"])
    for expected in (
        "### PA-100K, test: 10,000 images",
        "Convention vtb, threshold 0.45.",
        f"| `mA` | {100 * record['metrics']['mA']:.2f} | {low} to {high} |",
        'pipeline("pedestrian-attributes", model="org/my-model")',
        "80,000 training images",
        "best mA on the validation split (81.23%, step 10 of 20)",
        "| `learning_rate` | `0.001` |",
        "`vlm-par train pa100k --root PA-100K`",
        "`vlm-par evaluate out pa100k --root 'PA 100K'`",
        "## Intended use",
        "## Not for",
        "## Perceived gender and age",
        "`Female`",
    ):
        assert expected in text, expected
    for attribute in get_schema("pa100k"):
        assert f"| {attribute.name} | {attribute.question} | no, yes | {attribute.region or ''} |" in text
    for private in ("/home", "/data", "Linux-of-somebody", "priors"):
        assert private not in text, private
    assert "SYNTHETIC" not in text


def test_names_of_strangers_are_no_markup(checkpoint):
    """Everything in a card comes from files, which may be a stranger's."""
    evil = "<img src=x onerror=alert(1)> [click](https://evil.example) `x` | **y**"
    config = json.loads((checkpoint / "config.json").read_text())
    for one in config["attributes"]:
        one.update(question=evil, labels=["no", evil])
    config["attributes"][0]["name"] = evil
    config["attributes"][0]["sensitive"] = True
    write_json(checkpoint / "config.json", {**config, "fusion": evil, "alignment": "`"})
    write_json(
        checkpoint / "run.json",
        {"settings": {evil: evil}, "data": {"name": evil}, "command": f"train {evil}", "versions": {evil: evil}},
    )
    record = make_record(name=evil) | {"note": evil, "resampled": evil, "command": evil, "versions": {"x": evil}}
    record["attributes"][0]["name"] = evil
    text = build_model_card(checkpoint, record, name="org/model").text
    # Without what is escaped, and without code, where Markdown takes everything literally, no tag and no link is left.
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", re.sub(r"\\.", "", text))
    assert "<img" not in outside and "](" not in outside and "https://evil" not in outside
    assert all(
        line.count("|") - line.count("\\|") in (3, 4, 5, 6) for line in text.splitlines() if line.startswith("|")
    )


def test_a_card_without_results_says_so(checkpoint):
    card = build_model_card(checkpoint)
    assert card.data.eval_results is None and "model-index" not in str(card) and "model_name" not in str(card)
    assert "No results: no evaluation record came with this checkpoint" in card.text
    assert "How this checkpoint was trained is not recorded" in card.text
    assert 'model="organisation/name"' in card.text


def test_fitted_decisions_are_told(checkpoint):
    text = str(build_model_card(checkpoint, []))
    assert "Scores are not calibrated unless" in text
    config = json.loads((checkpoint / "config.json").read_text())
    entry = AttributeDecision(2.0, (0.0, 1.0), points={"mA": 0.2})
    for record, words in (
        ({"pictures": 300, "data": {"name": "my *camera*"}}, r"calibrated on 300 pictures of my \\\*camera\\\*, and"),
        ({"pictures": 9, "priors_only": True}, "calibrated on 9 pictures without labels, under the assumption"),
    ):
        config["decisions"] = Decisions({"Hat": entry}, "mA", record=record).to_dict()
        (checkpoint / "config.json").write_text(json.dumps(config))
        text = " ".join(str(build_model_card(checkpoint, [])).split())
        assert re.search(words, text) and "thresholds chosen for `mA`" in text, text


def test_a_card_of_another_family(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "focus_par", "num_global_tokens": 8, "text_template": "{prompt}"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    text = str(build_model_card(checkpoint))
    assert "FOCUS (An et al., 2025)" in text and "named at call time" in text and "focus_par" in text
    assert "| `num_global_tokens` | `8` |" in text


def test_a_card_over_two_backbones(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"model_type": "clear_par", "backbone_name": "org/vit+org/swin", "casa": "fixed"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    card = build_model_card(checkpoint)
    assert card.data.base_model == ["org/vit", "org/swin"]
    assert "Backbone: `org/vit` and `org/swin`." in card.text and "| `casa` | `fixed` |" in card.text
    config["backbone_name"] = "org/vit+/home/somebody/swin"
    (checkpoint / "config.json").write_text(json.dumps(config))
    card = build_model_card(checkpoint)
    assert card.data.base_model is None and "/home" not in str(card)


def test_synthetic_results_are_called_synthetic(checkpoint):
    record = make_record("synthetic", images=40, note="SYNTHETIC drawings")
    card = build_model_card(checkpoint, record)
    assert "> **SYNTHETIC.**" in card.text
    assert {one.dataset_name for one in card.data.eval_results} == {"SYNTHETIC drawings of pedestrians"}
    assert eval_results_yaml([record], {"synthetic": "org/drawings"}) is None


@pytest.mark.parametrize("changes", [{"images": 400}, {"images": 9_990, "skipped_images": 10}])
def test_part_of_a_test_split_is_not_the_test_split(checkpoint, changes):
    record = make_record(**changes)
    card = build_model_card(checkpoint, record)
    assert {one.dataset_name for one in card.data.eval_results} == {"part of PA-100K"}
    assert f"### part of PA-100K, test: {changes['images']:,} images" in card.text
    assert eval_results_yaml([record], {"pa100k": "org/pa100k"}) is None
    both = ModelCard(str(build_model_card(checkpoint, [make_record(), record]))).data.eval_results
    assert [one.dataset_name for one in both if one.metric_type == "mA"] == ["PA-100K", "part of PA-100K"]


def test_other_splits_are_told_but_are_no_results(checkpoint):
    card = build_model_card(checkpoint, make_record(split="validation"))
    assert card.data.eval_results is None
    assert "### PA-100K, validation: 10,000 images" in card.text


def test_eval_results_file(checkpoint):
    records = [make_record(), make_record("org/own-data", images=40)]
    written = write_model_card(checkpoint, records, dataset_ids={"pa100k": "hub/pa100k"})
    assert [path.relative_to(checkpoint).as_posix() for path in written] == [
        "README.md", ".eval_results/vlm-par-hf.yaml"
    ]  # fmt: skip
    entries = parse_eval_result_entries(yaml.safe_load(written[1].read_text()))
    assert {one.dataset_id for one in entries} == {"hub/pa100k", "org/own-data"}
    (mA,) = [one for one in entries if one.dataset_id == "hub/pa100k" and one.task_id == "test_mA_rethinking"]
    assert mA.value == pytest.approx(records[0]["metrics"]["mA"], abs=1e-6)
    assert re.search(r"convention rethinking, threshold 0.5; 95% bootstrap interval over images 0\.\d{4} to", mA.notes)
    # PA-100K has no id of its own: without one given, its results stay in the card alone.
    assert eval_results_yaml(records[:1]) is None


def test_undefined_values_are_left_out_of_the_metadata(checkpoint):
    record = make_record()
    record["metrics"]["label_f1_macro"] = None
    record["intervals"] = {}
    card = build_model_card(checkpoint, record)
    assert "label_f1_macro" not in {one.metric_type for one in card.data.eval_results}
    assert "| `label_f1_macro` | undefined |" in card.text and "No intervals." in card.text


def test_attributes_that_cannot_be_ranked_are_named(checkpoint):
    record = make_record()
    low, high = (f"{100 * bound:.2f}" for bound in record["intervals"]["auc_macro"])
    text = build_model_card(checkpoint, record).text
    value = f"{100 * record['metrics']['auc_macro']:.2f}"
    assert f"| `auc_macro` | {value} | {low} to {high} | mean over attributes of the area under the ROC curve" in text
    assert "are over" not in text
    record["ranked"] = {"attributes": 1, "left_out": ["Hat", "Bag"]}
    assert "are over 1 of 3 attributes; of the others one label occurs at most: Hat, Bag." in build_model_card(
        checkpoint, record
    ).text.replace("\\", "")


def make_slices(**changes):
    def row(name, people, mA):
        metrics = {"mA": mA, "plain_accuracy": 0.9, "instance_f1_harmonic": 0.8, "auc_macro": None}
        return {"slice": name, "people": people, "images": people, "metrics": metrics, "intervals": {"mA": [0.5, 0.9]}}

    ends = [{"slice": name, "recall": recall, "people": 40} for name, recall in (("ol|d", 0.5), ("young", 0.75))]
    slicing = {
        "name": "Age", "compared": ["Hat", "Bag"], "all": row(None, 1240, 0.7), "unknown": 2,
        "slices": [row("young", 1200, 0.72), row("ol|d", 40, 0.61)], "not_shown": {"child": 7},
        "worst": {"slice": "ol|d", "best": "young", "difference": 0.11, "interval": [0.02, 0.2]},
        "gaps": [{"attribute": "Hat", "label": "yes", "lowest": ends[0], "highest": ends[1], "difference": 0.25,
                  "interval": [0.1, 0.4]}],
    }  # fmt: skip
    return {"min_people": 30, "people": "persons", "by": [slicing | changes]}


def test_slices_of_people_are_shown(checkpoint):
    text = build_model_card(checkpoint, make_record() | {"slices": make_slices()}).text
    plain = text.replace("\\", "")
    assert "#### Who is served how well" in text and "| ol|d |" not in text
    assert "| young | 1,200 | 72.00 | 90.00 | 80.00 | undefined | 50.00 to 90.00 |" in text
    for sentence in (
        "Not shown, fewer than 30 persons: child (7).",
        "Over 2 attributes, whose labels occur in all slices.",
        "Worst is ol|d, 11.0 points of mA below young (2.0 to 20.0).",
        "Largest gaps in true-positive rates, of 1: Hat 25.0 (10.0 to 40.0) between ol|d (50.0) and young (75.0).",
    ):
        assert sentence in plain, sentence
    alone = make_slices(worst=None, gaps=[], slices=[], all=None, not_shown={"young": 3})
    plain = build_model_card(checkpoint, make_record() | {"slices": alone}).text.replace("\\", "")
    assert "fewer than 30 persons: young (3). Nothing can be compared." in plain


def test_a_result_on_some_attributes_is_no_result_on_the_data_set(checkpoint):
    space = {"attributes": {"hs-Hat": "Hat", "Bag": "Bag"}, "matched_by_name_alone": ["Bag"], "zero_shot": [],
             "left_out": ["Boots"]}  # fmt: skip
    card = build_model_card(checkpoint, make_record() | {"label_space": space})
    plain = card.text.replace("\\", "")
    assert "measured are 2 attributes that both have: hs-Hat (Hat), Bag." in plain and "Left out: Boots." in plain
    assert "Matched by their name alone, although they ask another question: Bag." in plain
    assert {one.dataset_name for one in card.data.eval_results} == {"26 attributes of PA-100K"}
    assert eval_results_yaml([make_record() | {"label_space": space}], {"pa100k": "org/pa100k"}) is None


@pytest.mark.parametrize("backbone", [None, "embedded", "/home/somebody/backbone"])
def test_only_a_repository_is_a_base_model(checkpoint, backbone):
    config = json.loads((checkpoint / "config.json").read_text())
    write_json(checkpoint / "config.json", {**config, "backbone_name": backbone})
    card = build_model_card(checkpoint)
    assert card.data.base_model is None and "/home" not in str(card)
    assert ("drawn and rendered pedestrians, with" in card.text) == (backbone == "embedded")


def test_bad_input_is_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint='.*nowhere' has no config\.json"):
        build_model_card(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"metrics='.*absent\.json': no such file"):
        build_model_card(checkpoint, tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"metrics='.*broken\.json' is no JSON file"):
        (tmp_path / "broken.json").write_text("{")
        build_model_card(checkpoint, tmp_path / "broken.json")
    with pytest.raises(ValueError, match=r"lacks 'data\.split', expected a record"):
        build_model_card(checkpoint, write_json(tmp_path / "other.json", {"data": {"name": "x"}, "metrics": {}}))
    with pytest.raises(ValueError, match=r"lacks 'data', expected a record"):
        build_model_card(checkpoint, write_json(tmp_path / "list.json", [1]))
    (checkpoint / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"README\.md' exists and may have been edited"):
        write_model_card(checkpoint)
    write_json(checkpoint / "config.json", {"model_type": "bert"})
    with pytest.raises(ValueError, match=r"config\.json names no attributes"):
        build_model_card(checkpoint)


def test_a_real_checkpoint_and_its_evaluation(tmp_path, capsys):
    """`vlm-par card` over what `evaluate` wrote into the checkpoint folder."""
    folder = tmp_path / "checkpoint"
    randomize(tiny_model("kway")).save_pretrained(folder)
    tiny_processor("kway").save_pretrained(folder)
    data = build_data(tiny_schema(kway=True), {"test": 20})
    record = evaluate(
        folder, data, output_dir=folder / "evaluation_bands_test", min_positives=2, by_person=True, bootstrap=20,
        progress=False, command=["vlm-par", "evaluate"],
    )  # fmt: skip
    assert main(["card", str(folder), "--name", "org/tiny", "--license", "mit"]) == 0
    assert "written: " in capsys.readouterr().out
    card = ModelCard.load(folder / "README.md")
    assert {one.metric_type for one in card.data.eval_results} == set(record["metrics"])
    assert "bootstrap over persons" in card.text and "| UpperColor | what color" in card.text
    assert main(["card", str(folder)]) == 2
    assert "may have been edited" in capsys.readouterr().err
    assert main(["card", str(folder), "--overwrite", "--dataset-id", "bands"]) == 2
    assert "dataset_id='bands': expected NAME=ORG/NAME" in capsys.readouterr().err


def test_a_trainer_gets_the_card_once(checkpoint):
    class Arguments(types.SimpleNamespace):
        def to_dict(self):
            return {"learning_rate": 0.01, "output_dir": "/home/somebody"}

    trainer = types.SimpleNamespace(
        args=Arguments(output_dir=str(checkpoint), hub_model_id=None, push_to_hub=False),
        model=tiny_model(),
        hub_model_id="org/trained",
        is_world_process_zero=lambda: True,
    )
    write_card_on_push(trainer, make_record())
    trainer.create_model_card(model_name="trained", tags="one")
    text = (checkpoint / "README.md").read_text()
    assert "# org/trained" in text and "- one" in text and "| `learning_rate` | `0.01` |" in text
    assert "/home" not in text
    (checkpoint / "README.md").write_text("edited")
    trainer.create_model_card(model_name="trained")
    assert (checkpoint / "README.md").read_text() == "edited"

    # Heads over a folder of this machine: refused before the upload, or before the training that would upload them.
    trainer.model.config.save_backbone, trainer.model.config.backbone_name = False, str(checkpoint)
    with pytest.raises(ValueError, match="nobody else could load the heads"):
        trainer.create_model_card(model_name="trained")
    trainer.args.push_to_hub = True
    with pytest.raises(ValueError, match="nobody else could load the heads"):
        write_card_on_push(trainer)


@pytest.mark.parametrize(("name", "expected"), [("org/my-people", ["org/my-people"]), ("pa100k", None)])
def test_a_data_set_of_the_hub_is_named_in_the_metadata(checkpoint, name, expected):
    write_json(checkpoint / "run.json", {"data": {"name": name, "train_images": 7}})
    card = ModelCard(str(build_model_card(checkpoint, [])))
    assert card.data.datasets == expected and f"Data: {'PA-100K' if expected is None else name}, 7" in card.text


def test_metrics_of_own_answers_are_explained():
    record = {"preset": "rethinking", "convention": {"threshold": 0.5}}
    assert metric_text("mA_fitted") == f"{metric_text('mA')}; by fitted thresholds"
    assert metric_text("mine_fitted") == metric_text("mine") == ""
    assert convention_text(record, "mA") == "convention rethinking, threshold 0.5"
    assert convention_text(record, "mA_fitted") == "convention rethinking, fitted thresholds"


def test_the_card_says_what_chose_the_weights():
    training = {"result": {"validation_mA": 0.5, "best_step": 3, "steps": 4, "selected_by": "auc_macro"}}
    text = training_section({"model_type": "vlm_par"}, training)
    assert "best auc_macro on the validation split (mA 50.00%, step 3 of 4)" in text
    training["result"].pop("selected_by")
    text = training_section({"model_type": "vlm_par"}, training)
    assert "best mA on the validation split (50.00%, step 3 of 4)" in text

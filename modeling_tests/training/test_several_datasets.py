"""One training on several data sets: what is drawn, recorded, continued and measured."""

import json

import numpy as np
import pytest
from transformers import AutoProcessor

from modeling_tests.bands import build_data
from modeling_tests.tiny import tiny_model, tiny_processor, tiny_schema
from modeling_tests.training_runs import QUICK, Interrupt, assert_same_weights, heads
from vlm_par_hf.data import TemperatureSampler, dataset_schema, unite_datasets
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.training import TrainSettings, evaluate, train
from vlm_par_hf.training.provenance import check_same_division, load_data


OTHER = AttributeSchema(
    [
        tiny_schema()["Hat"],
        Attribute("Shoes", "which shoes?", ("low", "boots", "none"), ("low shoes", "boots", "no shoes")),
    ]
)


@pytest.fixture(scope="module")
def both():
    return unite_datasets(
        {"many": build_data(tiny_schema()), "few": build_data(OTHER, {"train": 6, "validation": 12})}
    )


def run(both, folder, *, callbacks=(), resume=False, **settings):
    model, processor = tiny_model("naflex", attributes=dataset_schema(both).to_list()), tiny_processor("naflex")
    return train(
        both, folder, model=model, processor=processor, settings=TrainSettings(**{**QUICK, **settings}),
        callbacks=callbacks, resume=resume,
    )  # fmt: skip


def test_a_cut_run_on_two_data_sets_continues_as_if_it_had_not_been(both, tmp_path):
    settings = {"eval_steps": 3, "epochs": 2}  # 7 steps per epoch: cut within the second one
    whole = run(both, tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        run(both, tmp_path / "cut", callbacks=[Interrupt(10)], **settings)
    continued = run(both, tmp_path / "cut", resume=True, **settings)
    assert continued.steps == whole.steps == 14
    assert_same_weights(heads(continued.model), heads(whole.model), atol=0, rtol=0)
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    few = 6**0.5 / (6**0.5 + 48**0.5)
    assert record["data"]["name"] == "many+few"
    assert record["data"]["sources"]["few"] == {"train_images": 6, "share": pytest.approx(few, abs=1e-4)}
    with pytest.raises(ValueError, match=r"sampling_temperature: 2.0 then, 5.0 now"):
        run(both, tmp_path / "cut", resume=True, sampling_temperature=5.0, **settings)


@pytest.mark.parametrize("precompute", [False, True])
def test_every_epoch_draws_as_the_temperature_says(both, tmp_path, monkeypatch, precompute):
    orders, real = [], TemperatureSampler.__iter__

    def draw(self):
        order = list(real(self))
        orders.append((self.epoch, order))
        return iter(order)

    monkeypatch.setattr(TemperatureSampler, "__iter__", draw)
    settings = {"sampling_temperature": 1e6, "eval_steps": 100, "precompute_features": precompute}
    result = run(both, tmp_path / "run", batch_size=27, epochs=3, **settings)
    assert result.steps == 6 and [epoch for epoch, _ in orders] == [0, 1, 2]
    drawn = np.array([order for _, order in orders])
    assert (drawn >= 48).mean() == pytest.approx(0.5, abs=0.12)  # the last 6 rows are of the small one
    assert len({tuple(order) for order in drawn.tolist()}) == 3


def test_each_is_measured_by_itself(both, tmp_path):
    result = run(both, tmp_path / "run", max_steps=2)
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    options = {"split": "validation", "processor": processor, "bootstrap": 0, "progress": False}
    record = evaluate(result.model, both, output_dir=tmp_path / "out", **options)
    many, few = record["sources"]
    assert (many["name"], many["images"], many["attributes"]) == ("many", 24, 3)
    assert (few["name"], few["images"], few["attributes"]) == ("few", 12, 2)
    rows = [index for index, name in enumerate(both["validation"]["dataset"]) if name == "few"]
    alone = evaluate(result.model, {"validation": both["validation"].select(rows)}, **options)
    assert "sources" not in alone
    assert few["metrics"] == alone["metrics"] and few["metrics"]["mA_fitted"] != record["metrics"]["mA_fitted"]
    assert "| few | 12 | 2 |" in (tmp_path / "out" / "attributes.md").read_text()


def test_names_roots_and_options(tmp_path):
    sizes = {"num_train": 6, "num_validation": 4, "num_test": 4}
    folder = tmp_path / "mine"
    folder.mkdir()
    OTHER.to_json(folder / "schema.json")
    lines = ["image,split,Hat,Shoes"]
    for split, rows in build_data(OTHER, {"train": 3, "validation": 2}, unknown=0).items():
        for row in rows:
            row["image"].save(folder / row["image_id"])
            lines.append(f"{row['image_id']},{split},{row['labels'][0]},{row['labels'][1]}")
    (folder / "labels.csv").write_text("\n".join(lines).replace(",0,", ",-1,") + "\n")
    options = {**sizes, "negative": "-1", "seed": 3}
    data = load_data("folder+synthetic", root=[str(folder), "-"], options=options)
    assert {name: len(split) for name, split in data.items()} == {"train": 9, "validation": 6, "test": 4}
    assert dataset_schema(data).names[:2] == ("Hat", "Shoes")
    notes = json.loads(data["train"].info.description)
    assert notes["name"] == "folder+synthetic" and notes["options"]["synthetic"]["num_train"] == 6
    twice = load_data("folder+folder", root=[folder, folder], options={"negative": "-1"})
    assert set(twice["train"]["dataset"]) == {"folder", "folder-2"} and len(dataset_schema(twice)) == 2
    for name, root, given, message in (
        ("folder+synthetic", [folder], {}, "1 folders for the 2 data sets .*expected one for each, in their order, -"),
        ("folder+synthetic", folder, {}, "1 folders for the 2 data sets"),
        ("folder+", [folder, None], {}, "expected names with \\+ between them"),
        ("synthetic", [folder, folder], {}, "root holds 2 folders, expected one for the data set 'synthetic'"),
        ("synthetic+nothing", None, {}, "name is 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_data(name, root=root, options={**sizes, **given})
    with pytest.raises(TypeError, match="none of the data sets 'folder\\+synthetic' has the option 'revision'"):
        load_data("folder+synthetic", root=[folder, None], options={"revision": "main"})
    with pytest.raises(ValueError, match="schema was given for the 2 data sets"):
        load_data("folder+synthetic", root=[folder, None], schema=OTHER)
    # One name with two meanings cannot share a column.
    clash = AttributeSchema([Attribute("Hat", "of what color?", ("red", "blue", "none"), ("red", "blue", "none"))])
    with pytest.raises(ValueError, match="'b' has an attribute 'Hat', which is another one"):
        unite_datasets({"a": build_data(OTHER, {"train": 2}), "b": build_data(clash, {"train": 2})})


def test_a_temperature_for_one_data_set_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match="sampling_temperature=3.0 for 'bands', which is one data set"):
        train(
            data, tmp_path / "run", model=tiny_model("naflex"), processor=tiny_processor("naflex"),
            settings=TrainSettings(**{**QUICK, "sampling_temperature": 3.0}),
        )  # fmt: skip
    with pytest.raises(ValueError, match="sampling_temperature=0.5: expected 1 or more"):
        TrainSettings(sampling_temperature=0.5)


def test_one_of_several_is_not_measured_on_what_was_trained_on(tmp_path):
    record = {"data": {"name": "peta35+synthetic", "options": {"peta35": {"partition": 1}, "partition": 1}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_same_division(str(tmp_path), "peta35", {"partition": 1})
    check_same_division(str(tmp_path), "pa100k", {"partition": 0})
    check_same_division(str(tmp_path), "peta35+pa100k", {"peta35": {"partition": 1}, "pa100k": {}})
    for name, options in (("peta35", {"partition": 2}), ("synthetic+peta35", {"peta35": {"partition": 2}})):
        with pytest.raises(ValueError, match="'peta35' is divided differently .*partition: 1 in training, 2 now"):
            check_same_division(str(tmp_path), name, options)

"""Files of a run: columns of a table, and earlier work that is compared, kept or refused."""

import logging
import os
from pathlib import Path

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch

from modeling_tests.image_folders import names, read, run, save_image, save_model
from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.annotation import ImageList
from vlm_par_hf.annotation.annotator import check_finite, to_json
from vlm_par_hf.annotation.results import lock_parts


def test_tables(folder, model, tmp_path):
    run(folder, tmp_path / "out.jsonl", model)
    run(folder, tmp_path / "out.parquet", model)
    run(folder, tmp_path / "out.csv", model)
    rows = read(tmp_path / "out.jsonl")
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    columns = ["image"]
    for one in tiny_schema(kway=True):
        labels = ["yes"] if one.is_binary else one.labels
        columns += [one.name, f"{one.name}_score", *(f"{one.name}_{label}" for label in labels)]
        assert table[one.name].to_pylist() == [row["attributes"][one.name]["label"] for row in rows]
        scores = np.float32([row["attributes"][one.name]["score"] for row in rows])
        np.testing.assert_array_equal(table[f"{one.name}_score"].to_numpy(), scores)
        for label in labels:
            expected = np.float32([row["attributes"][one.name]["probabilities"][label] for row in rows])
            np.testing.assert_array_equal(table[f"{one.name}_{label}"].to_numpy(), expected)
    assert table.column_names == columns
    assert table["image"].to_pylist() == [row["image"] for row in rows]
    read_back = pandas.read_csv(tmp_path / "out.csv", dtype=dict.fromkeys(columns[2:4], np.float32))
    expected = table.to_pandas()
    assert list(read_back) == columns and (read_back[columns[2]] == expected[columns[2]]).all()
    pandas.testing.assert_frame_equal(read_back, expected, check_dtype=False, rtol=1e-6)
    run(folder, tmp_path / "some.parquet", model, only_positive=True, sensitive=False)
    some = pyarrow.parquet.read_table(tmp_path / "some.parquet")
    assert set(table.column_names) - set(some.column_names) == {"Female", "Female_score", "Female_yes"}
    for name in ("Hat", "Backpack"):
        assert some[name].to_pylist() == [one if one == "yes" else None for one in table[name].to_pylist()]
        assert some[f"{name}_score"].null_count == table[name].to_pylist().count("no")
    assert 0 < table["Hat"].to_pylist().count("no") < 20


def test_a_csv_holds_no_formulas(model, tmp_path, monkeypatch):
    save_image(tmp_path / "=1+1.png", 0)
    monkeypatch.chdir(tmp_path)
    run("=1+1.png", "out.csv", model, only_positive=True)
    assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith("'=1+1.png,")


def test_columns_of_one_name_are_refused_before_the_work(folder, tmp_path):
    schema = [{"name": name, "question": "?", "prompts": ["no", "yes"]} for name in ("Hat", "Hat_score")]
    tiny_model("naflex", attributes=schema).save_pretrained(tmp_path / "model")
    tiny_processor("naflex").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="two columns of the output are called 'Hat_score': write .jsonl instead"):
        run(folder, tmp_path / "out.parquet", str(tmp_path / "model"))


def test_a_run_over_other_images_is_refused_with_the_differences(stopped, folder, model):
    save_image(folder / "21.png", 21)
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes(b"something else")
    kept = sorted(os.listdir(f"{stopped}.partial"))
    expected = (
        r"out.jsonl.partial' holds the work of another run: the images differ \(20 then, 20 now\): "
        r"1 added, the first '.*/21.png'; 1 removed, the first '.*/2.png'; 1 changed, the first '.*/3.png'; name"
    )
    with pytest.raises(ValueError, match=expected):
        run(folder, stopped, model)
    assert sorted(os.listdir(f"{stopped}.partial")) == kept
    with pytest.raises(ValueError, match="they are in another order"):
        for number, name in ((2, "2.png"), (3, "3.png")):
            save_image(folder / name, number)
        (folder / "21.png").unlink()
        listing = Path(f"{stopped}.partial") / "inputs.jsonl"
        listing.write_text(ImageList(folder).listing())
        run([folder / "2.png", folder / "1.png", *names(ImageList(folder))[2:]], stopped, model)
    report = run(folder, stopped, model, overwrite=True)
    assert report["predictions"] == 20 and not Path(f"{stopped}.partial").exists()


def test_a_run_with_other_options_or_another_model_is_refused(stopped, folder, model, tmp_path):
    changed = "only_positive was False and is True; sensitive was True and is False; attributes was"
    with pytest.raises(ValueError, match=changed):
        run(folder, stopped, model, only_positive=True, sensitive=False)
    save_model(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match="the model differs"):
        run(folder, stopped, str(tmp_path / "other"))
    run(folder, stopped, model)


def test_a_finished_output_is_left_alone(folder, model, tmp_path, caplog):
    out = tmp_path / "out.jsonl"
    report = run(folder, out, model)
    changed = out.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        assert run(folder, out, model) == report
    assert out.stat().st_mtime_ns == changed and "was finished before" in caplog.text
    with pytest.raises(ValueError, match=r"out='.*out.jsonl' is the work of another run: sensitive was True"):
        run(folder, out, model, sensitive=False)
    assert run(folder, out, model, sensitive=False, overwrite=True)["run"]["sensitive"] is False
    (tmp_path / "mine.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="mine.jsonl' exists, and no report says what it is"):
        run(folder, tmp_path / "mine.jsonl", model)
    assert (tmp_path / "mine.jsonl").read_text() == "mine" and not (tmp_path / "mine.jsonl.partial").exists()


def test_two_processes_do_not_write_one_output(folder, model, tmp_path):
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    with lock_parts(partial, out):
        with pytest.raises(ValueError, match=r"'.*out.jsonl': another process is writing it"):
            run(folder, out, model)
        assert partial.exists()
    run(folder, out, model)


DAMAGE = {
    "a line is missing": lambda data: b"".join(data.splitlines(keepends=True)[:-1]),
    "a line is there twice": lambda data: data + data.splitlines(keepends=True)[-1],
    "a label is another": lambda data: data.replace(b'"label": "no"', b'"label": "yes"', 1),
    "a bit is another": lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
    "it is empty": lambda data: b"",
    "it is of another part": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_part_is_answered_again(stopped, folder, model, tmp_path, caplog, damage):
    run(folder, tmp_path / "whole.jsonl", model)
    part, other = (Path(f"{stopped}.partial") / f"part-00000{number}.jsonl" for number in (1, 0))
    data = part.read_bytes() if DAMAGE[damage] else other.read_bytes()
    changed = DAMAGE[damage](data) if DAMAGE[damage] else data
    assert changed != part.read_bytes()
    part.write_bytes(changed)
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        run(folder, stopped, model)
    assert "part-000001.jsonl is not as it was written" in caplog.text and "8 of 20 images" in caplog.text
    assert stopped.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_foreign_files_in_the_folder_of_parts_stay(stopped, folder, model, tmp_path):
    partial = Path(f"{stopped}.partial")
    (partial / "notes.md").write_text("mine")
    run(folder, stopped, model, only_positive=True, overwrite=True)
    assert [path.name for path in partial.iterdir()] == ["notes.md"]
    # A folder of that name that no run wrote.
    other = tmp_path / "other.jsonl.partial"
    other.mkdir()
    (other / "part-000000.jsonl").write_text("mine")
    for options in ({}, {"overwrite": True, "delete_listed": True}):
        with pytest.raises(FileExistsError, match="holds 'part-000000.jsonl', and no run.json that says of which run"):
            run(folder, tmp_path / "other.jsonl", model, **options)
    (tmp_path / "linked.jsonl.partial").symlink_to(other)
    with pytest.raises(OSError, match="linked.jsonl.partial' is a link to '.*other.jsonl.partial'"):
        run(folder, tmp_path / "linked.jsonl", model, overwrite=True)
    assert [path.read_text() for path in other.iterdir()] == ["mine"]


def test_an_output_that_no_run_wrote_is_replaced_on_a_second_word(folder, model, tmp_path):
    out = tmp_path / "out.jsonl"
    run(folder, out, model)
    run(folder, tmp_path / "out.parquet", model)  # shares the report
    run(folder, out, model, only_positive=True, overwrite=True)
    out.write_text("mine")
    with pytest.raises(ValueError, match="out.jsonl' was changed since it was written"):
        run(folder, out, model, only_positive=True)
    with pytest.raises(FileExistsError, match="out.jsonl': not as a run of this package wrote it.*--delete-listed"):
        run(folder, out, model, overwrite=True)
    assert out.read_text() == "mine"
    run(folder, out, model, overwrite=True, delete_listed=True)
    assert len(read(out)) == 20


def test_the_output_stays_out_of_the_inputs(folder, model, tmp_path):
    run(folder, tmp_path / "out.jsonl", model)
    with pytest.raises(ValueError, match="lies inside images '.*images', which is only read"):
        run(folder, folder / "out.jsonl", model)
    table = tmp_path / "in.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"image": [(folder / "1.png").read_bytes()]}), table)
    before = table.read_bytes()
    with pytest.raises(ValueError, match=r"is images\[1\] '.*in.parquet'"):
        run([folder / "2.png", table], table, model, overwrite=True, delete_listed=True)
    assert table.read_bytes() == before


def test_scores_that_are_no_numbers_are_not_written(folder, tmp_path):
    model = randomize(tiny_model("kway"), 2, scale=2.0)
    broken = next(iter(model.attribute_heads.parameters()))
    with torch.no_grad():
        broken.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    tiny_processor("naflex").save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="the score of attribute 'Hat'.* is nan for image '.*/images/1.png'"):
        run(folder, tmp_path / "out.jsonl", str(tmp_path / "model"))
    assert not (tmp_path / "out.jsonl").exists()


def test_an_answer_that_is_no_number_names_attribute_and_image():
    answer = {"attributes": {"Hat": {"label": "no", "score": float("nan"), "probabilities": {"no": float("nan")}}}}
    with pytest.raises(ValueError, match="the score of attribute 'Hat' for image 'a.png' is nan"):
        check_finite([answer], "image 'a.png'")
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        to_json(float("inf"))

import json
import sys

import numpy as np
import pytest
import torch

from vlm_par_hf.embedded import distillation
from vlm_par_hf.embedded.distillation import (
    add_targets,
    fit_statistics,
    group_views,
    on_grid,
    rarity,
    save_arrays,
)
from vlm_par_hf.embedded.views import Pictures, draw_pictures
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("synthetic")


class ColorTeacher:
    """Patch features: 160 fixed random mixtures of mean colors; pooled features: their means."""

    def __call__(self, pixels):
        values = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        values = torch.nn.functional.adaptive_avg_pool2d(values, (16, 8))
        mixture = torch.randn(160, 3, generator=torch.Generator().manual_seed(0))
        patches = torch.einsum("dc,bcij->bdij", mixture, values).relu()
        return patches.numpy(), patches.mean((2, 3)).numpy()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in {
        "GROUP": 8, "HELD_OUT_GROUPS": 1, "HELD_OUT_PICTURES": 10, "STATISTICS_GROUPS": 2, "COMPONENTS": 4
    }.items():  # fmt: skip
        monkeypatch.setattr(distillation, name, value)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return Pictures(*draw_pictures(40, tmp_path_factory.mktemp("drawings")), SCHEMA)


def test_rare_labels_are_shown_more_often():
    labels = np.array([[0], [0], [0], [1], [-100]])
    assert rarity(labels, [2]).tolist() == pytest.approx([1.667**0.5, 1.667**0.5, 1.667**0.5, 5**0.5, 1], abs=1e-3)


def test_groups_are_functions_of_their_number_and_the_first_shows_other_pictures(pictures):
    first, again, other = group_views(pictures, 3), group_views(pictures, 3), group_views(pictures, 4)
    assert all((first[key] == again[key]).all() for key in first)
    assert first["pixels"].shape != other["pixels"].shape or (first["pixels"] != other["pixels"]).any()
    assert first["pixels"].shape[1:] == (first["grid"][0] * 16, first["grid"][1] * 16, 3)
    assert ((first["labels"] == -100).all(1)).sum() == 2, "a quarter are mixtures"
    assert (group_views(pictures, 0)["index"] < 10).all()
    assert all((group_views(pictures, number)["index"] >= 10).all() for number in range(1, 6))


def test_pairs_show_each_person_twice(pictures):
    persons = np.arange(40) // 2
    group = group_views(Pictures(pictures.images, pictures.labels, SCHEMA, persons), 3, pairs=True)
    assert (group["persons"] == -1).sum() == 2, "a mixture shows no single person"
    assert (persons[group["index"]].reshape(-1, 2)[:, 0] == persons[group["index"]].reshape(-1, 2)[:, 1]).all()
    assert len(set(group["index"])) == 8
    told = group["persons"] >= 0
    assert (group["persons"][told] == persons[group["index"]][told]).all()
    with pytest.raises(ValueError, match="not known who"):
        group_views(pictures, 3, pairs=True)
    lonely = np.arange(40)
    lonely[39] = 38
    with pytest.raises(ValueError, match="non-zero"):
        group_views(Pictures(pictures.images, pictures.labels, SCHEMA, lonely), 3, pairs=True)


def test_patch_features_on_the_grid_of_a_view():
    patches = np.arange(128, dtype=np.float32).reshape(1, 1, 16, 8)
    assert on_grid(patches, (16, 8)).flatten().tolist() == patches.flatten().tolist()
    smaller = on_grid(patches, (14, 5))
    assert smaller.shape == (1, 70, 1)
    assert smaller.mean() == pytest.approx(patches.mean(), rel=0.01)


def test_targets_are_standardised(pictures):
    teacher = ColorTeacher()
    statistics = fit_statistics(pictures, teacher)
    groups = [group_views(pictures, number) for number in (1, 2)]
    for group in groups:
        add_targets(group, teacher, statistics)
    pooled = np.concatenate([group["pooled"] for group in groups]).astype(np.float64)
    assert pooled.shape == (16, 160)
    assert np.abs(pooled.mean(0)).max() < 0.01
    assert pooled.std(0)[pooled.std(0) > 0.01] == pytest.approx(1, abs=0.01)
    tokens = np.concatenate([group["patches"].reshape(-1, 4) for group in groups]).astype(np.float64)
    assert groups[0]["patches"].shape == (8, groups[0]["grid"].prod(), 4)
    assert tokens.var(0).sum() == pytest.approx(1, rel=0.5), "a view has fewer patches, each a mean of several"
    assert tokens[:, 0].var() > tokens[:, 2:].var(0).max(), "the leading components come first"


def test_a_file_is_complete_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_arrays(path, {"x": np.arange(3)})
    assert np.load(path)["x"].tolist() == [0, 1, 2]
    monkeypatch.setattr(np, "savez", lambda file, **arrays: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_arrays(tmp_path / "b.npz", {"x": np.arange(3)})
    assert not (tmp_path / "b.npz").exists()


def test_the_program_makes_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "Teacher", lambda path: ColorTeacher())
    arguments = ["", "--drawings", "40", "--network", "x.xml", "--work", str(tmp_path), "--groups", "3"]
    monkeypatch.setattr(sys, "argv", arguments)
    distillation.main()
    folder = tmp_path / "views" / "synthetic"
    assert json.loads((folder / "source.json").read_text()) == {"schema": "synthetic", "pictures": 40}
    files = sorted(folder.glob("*.npz"))
    assert [file.stem for file in files] == ["000000", "000001", "000002"]
    times = [file.stat().st_mtime_ns for file in files]
    kept = dict(np.load(files[1]))
    files[1].unlink()
    distillation.main()
    again = np.load(files[1])
    assert all((again[key] == kept[key]).all() for key in kept)
    assert [files[k].stat().st_mtime_ns for k in (0, 2)] == [times[0], times[2]]

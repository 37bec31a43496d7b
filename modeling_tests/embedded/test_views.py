import io

import numpy as np
import pytest
from PIL import Image

from vlm_par_hf.embedded.views import (
    GRIDS,
    PATCH,
    Pictures,
    View,
    disturb,
    draw_pictures,
    group_grid,
    make_view,
    mix_views,
    read_parquet,
)
from vlm_par_hf.labels.tables import get_schema


SCHEMA = get_schema("synthetic")


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_grids_are_drawn_in_their_shares_and_have_at_most_72_patches():
    assert sum(GRIDS.values()) == pytest.approx(1)
    assert all(rows * columns <= 72 for rows, columns in GRIDS)
    rng = np.random.default_rng(0)
    drawn = [group_grid(rng) for _ in range(300)]
    assert abs(drawn.count((14, 5)) / 300 - GRIDS[14, 5]) < 0.1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [(96, 192), (40, 160), (150, 100)])
def test_a_view_has_the_size_of_its_grid(grid, size):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(noise(size[1], size[0]))
    view = make_view(picture, np.zeros(len(SCHEMA), np.int64), SCHEMA, grid, rng)
    assert view.pixels.shape == (grid[0] * PATCH, grid[1] * PATCH, 3)
    assert view.pixels.dtype == np.uint8


def test_a_flip_flips_the_labels_as_well():
    labels = np.zeros(len(SCHEMA), np.int64)
    side = SCHEMA.index("View")
    labels[side] = SCHEMA["View"].labels.index("left")
    mirrored = SCHEMA.mirror_labels(labels[None])[0]
    assert mirrored[side] != labels[side]
    pixels = np.zeros((192, 96, 3), np.uint8)
    pixels[:, :48] = 255  # the left half is light
    for seed in range(8):
        view = make_view(Image.fromarray(pixels), labels, SCHEMA, (14, 5), np.random.default_rng(seed))
        flipped = view.pixels[:, 0].mean() < view.pixels[:, -1].mean()
        assert (view.labels == (mirrored if flipped else labels)).all()


def test_the_labels_of_a_mixture_are_unknown():
    one, other = (View(np.full((64, 32, 3), level, np.uint8), np.zeros(4, np.int64)) for level in (0, 200))
    for seed in range(6):
        mixed = mix_views(one, other, -100, np.random.default_rng(seed))
        assert (mixed.labels == -100).all()
        assert 0 < mixed.pixels.mean() < 200
    assert one.pixels.max() == 0


def test_disturbed_pixels_keep_their_shape_and_depend_on_the_seed_alone():
    pixels = noise(208, 80)
    kept = pixels.copy()
    results = [disturb(pixels, np.random.default_rng(seed)) for seed in range(20)]
    assert all(result.shape == pixels.shape and result.dtype == np.uint8 for result in results)
    assert (disturb(pixels, np.random.default_rng(3)) == results[3]).all()
    assert (pixels == kept).all()


def test_drawings_are_drawn_once(tmp_path):
    pictures, labels = draw_pictures(4, tmp_path)
    assert pictures.shape == (4, 192, 96, 3)
    assert labels.shape == (4, len(SCHEMA))
    (tmp_path / "pictures_4.npy").touch()
    again, _ = draw_pictures(4, tmp_path)
    assert (again == pictures).all()


def test_pictures_of_parquet_files(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    files = []
    for level in (0, 255):
        file = io.BytesIO()
        Image.new("RGB", (20, 50), (level,) * 3).save(file, "PNG")
        files.append(file.getvalue())
    labels = np.zeros((2, len(SCHEMA)), int).tolist()
    table = (
        pa.table({"image": [files[0]], "labels": labels[:1]}),
        pa.table({"image": [{"bytes": files[1], "path": None}], "labels": labels[1:]}),
    )
    for number, part in enumerate(table):
        pq.write_table(part, tmp_path / f"{number}.parquet")
    pictures = read_parquet(list(tmp_path.glob("*.parquet")), SCHEMA)
    assert isinstance(pictures, Pictures)
    assert pictures.labels.shape == (2, len(SCHEMA))
    assert [pictures.read(i).getpixel((3, 3))[0] for i in range(2)] == [0, 255]
    assert pictures.read(0).size == (20, 50)
    assert pictures.persons is None

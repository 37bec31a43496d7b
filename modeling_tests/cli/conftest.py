"""What a user of the commands has: images with labels, a backbone, and a checkpoint trained from them."""

import pytest

from modeling_tests.bands import build_data
from modeling_tests.tiny import save_backbone, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.cli.main import main


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """What a user has: a folder of images with labels.csv and schema.json, and a backbone folder."""
    root = tmp_path_factory.mktemp("cli")
    data, backbone = root / "data", root / "backbone"
    data.mkdir()
    schema = tiny_schema()
    schema.to_json(data / "schema.json")
    lines = [",".join(["image", "split", "person_id", *schema.names])]
    for split, rows in build_data(schema, {"train": 24, "validation": 12, "test": 12}).items():
        for row in rows:
            row["image"].save(data / row["image_id"])
            labels = ["" if label < 0 else str(label) for label in row["labels"]]
            lines.append(",".join([row["image_id"], split, f"{split}{row['person_id']}", *labels]))
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    save_backbone(backbone, tiny_model("naflex"), tiny_processor("naflex"))
    return {"data": str(data), "backbone": str(backbone)}


@pytest.fixture(scope="session")
def checkpoint(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "checkpoint"
    status = main(
        ["train", "folder", "--root", files["data"], "--backbone", files["backbone"], "--out", str(out), "--epochs",
         "2", "--batch-size", "8", "--no-progress", "--precompute-features", "--fusion", "text_to_image"]
    )  # fmt: skip
    assert status == 0
    return out

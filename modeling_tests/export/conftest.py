"""Each tiny model is traced and exported once for all tests here."""

from dataclasses import replace

import pytest

from modeling_tests.exports import noise_images
from modeling_tests.tiny import randomize, tiny_model, tiny_processor
from vlm_par_hf.export import exporting, picture
from vlm_par_hf.export.exporting import export_model
from vlm_par_hf.labels.schema import AttributeSchema


TRACED = {}


@pytest.fixture(scope="module", autouse=True)
def _each_model_is_traced_once():
    """Tracing takes seconds even for a tiny model; ONNX and OpenVINO, float32 and int8 all start from its result."""
    write = exporting.write_onnx

    def write_once(graph, probe, output_names, path):
        weights = tuple(float(one.double().sum()) for one in graph.state_dict().values())
        thresholds = tuple((one.threshold, one.group, one.requires) for one in graph.schema)
        key = (graph.has_fixed_grid, tuple(probe), str(graph.decisions), thresholds, *weights)
        if key not in TRACED:
            names = write(graph, probe, output_names, path)
            TRACED[key] = names, path.read_bytes()
        names, data = TRACED[key]
        path.write_bytes(data)
        return names

    with pytest.MonkeyPatch.context() as patch:
        for module in (exporting, picture):
            patch.setattr(module, "write_onnx", write_once)
        yield


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Per format and kind of tiny model: the model, the record and the folder; written once."""
    done = {}

    def make(to="onnx", kind="kway", precision="float32", patch_grid=None, decisions=None, **config):
        if kind == "kway" and patch_grid is None:
            config = {"fusion": "image_to_text", **config}
        key = (to, kind, precision, patch_grid, str(decisions), *sorted(config.items()))
        if key not in done:
            model = randomize(tiny_model(kind, **config))
            if decisions is not None:  # and rules: a side needs a backpack, and nobody has hat and backpack
                rules = {
                    "BagSide": {"requires": ("Backpack", "yes")},
                    "Hat": {"group": "g"},
                    "Backpack": {"group": "g"},
                }
                model.config.set_schema(
                    AttributeSchema(replace(one, **rules.get(one.name, {})) for one in model.config.schema)
                )
                model.config.set_decisions(decisions)
            folder = tmp_path_factory.mktemp("exported") / "model"
            record = export_model(
                model,
                folder,
                to=to,
                precision=precision,
                processor=tiny_processor(kind),
                patch_grid=patch_grid,
                calibration_images=noise_images(8, seed=1) if precision == "int8" else None,
                compared_images=noise_images(12),
                images_from="noise",
            )
            done[key] = model, record, folder
        return done[key]

    return make

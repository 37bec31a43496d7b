"""The computation that is exported: the folded model with NaFlex embeddings that an exporter can follow, and what its
configuration makes of the scores."""

import copy

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlm_par_hf.base.decisions import Calibration, decide, label_probabilities, make_consistent
from vlm_par_hf.labels.consistency import is_consistent_unasked
from vlm_par_hf.labels.decisions import Decisions
from vlm_par_hf.upstream import NaflexEmbeddings, naflex_embeddings


__all__ = ["OUTPUT_NAMES", "ExportGraph", "is_naflex"]

OUTPUT_NAMES = ("logits", "decided", "probabilities", "image_embeds")  # the last one only if the model has it


class _AnyGrid(nn.Module):
    """NaFlex embeddings for images of any patch grid in one batch, without a loop over images.

    Resizing with antialias is linear and works on rows and columns separately. So the position embedding of row y and
    column x is `sum_ij R_h[y, i] R_w[x, j] P[i, j]` for an image of h rows and w columns. `matrices` holds `R_n` for
    every n.
    """

    def __init__(self, embeddings: NaflexEmbeddings, num_patches: int) -> None:
        super().__init__()
        side = len(embeddings.positions)
        self.num_patches = num_patches
        self.patch_embedding = embeddings.patch_embedding
        self.positions = nn.Parameter(embeddings.positions.flatten(0, 1).clone())  # (side**2, D)
        matrices = torch.zeros(num_patches + 1, num_patches, side)
        unit = torch.eye(side)[None, None]
        for size in range(1, num_patches + 1):
            matrices[size, :size] = F.interpolate(unit, (size, side), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("matrices", matrices.flatten(0, 1))

    def forward(self, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
        patch = torch.arange(self.num_patches)[None]
        rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
        vertical = self.matrices[rows * self.num_patches + patch // columns]  # (B, N, side)
        horizontal = self.matrices[columns * self.num_patches + patch % columns]
        weight = (vertical[..., None] * horizontal[:, :, None]).flatten(2)
        return self.patch_embedding(pixel_values) + weight @ self.positions


class _FixedGrid(nn.Module):
    """NaFlex embeddings for images that all have the same patch grid: the position embedding is a constant."""

    def __init__(self, embeddings: NaflexEmbeddings, patch_grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embedding = embeddings.patch_embedding
        self.register_buffer("positions", embeddings.resized_positions(*patch_grid))

    def forward(self, pixel_values: torch.Tensor, spatial_shapes: torch.Tensor) -> torch.Tensor:
        return self.patch_embedding(pixel_values) + self.positions


class ExportGraph(nn.Module):
    """The computation that is exported: from pixels to the outputs `OUTPUT_NAMES`.

    `logits` are those of the heads. `decided` and `probabilities` are the answers and the calibrated probabilities
    under the decisions and thresholds that the model has now, for programs that know nothing of them; -100 where the
    pipeline gives no answer (`consistent`).

    Args:
        model: a folded model; it is copied.
        num_patches: patches per NaFlex image; None for a model of fixed resolution.
        patch_grid: rows and columns of patches of every image; None: each image has its own.
    """

    def __init__(self, model: PreTrainedModel, num_patches: int | None, patch_grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).float()
        # torch's fused attention would export a guard against images without patches: a tenth of the time in int8.
        self.model.set_attn_implementation("eager")
        self.schema, given = model.config.schema, model.config.decisions
        self.decisions = None if given is None else Decisions.from_dict(given)
        self.calibration = None if given is None else Calibration(self.decisions, self.schema)
        self.model.config.decisions = None
        self.has_fixed_grid = patch_grid is not None
        for parent in list(self.model.modules()):
            for name, module in list(parent.named_children()):
                parts = naflex_embeddings(module)
                if parts is not None:
                    new = _FixedGrid(parts, patch_grid) if self.has_fixed_grid else _AnyGrid(parts, num_patches)
                    setattr(parent, name, new)
        self.eval()

    def forward(self, pixel_values, pixel_attention_mask=None, spatial_shapes=None) -> tuple[torch.Tensor, ...]:
        inputs = {}
        if spatial_shapes is not None:
            inputs = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        elif self.has_fixed_grid:
            # The model requires it, though the fixed grid does not use it.
            inputs = {"spatial_shapes": pixel_values.new_zeros(pixel_values.shape[0], 2, dtype=torch.int64)}
        outputs = self.model(pixel_values, **inputs)
        logits = outputs.logits if self.calibration is None else self.calibration(outputs.logits)
        probabilities = label_probabilities(logits, self.schema)
        decided = decide(probabilities, self.schema, self.decisions)
        if is_consistent_unasked(self.schema, self.decisions):
            decided = make_consistent(decided, probabilities, self.schema)
        found = (outputs.logits, decided, probabilities, outputs.image_embeds)
        return tuple(output for output in found if output is not None)


def is_naflex(model: PreTrainedModel) -> bool:
    """Whether the model's vision tower takes images of any patch grid."""
    return any(naflex_embeddings(module) is not None for module in model.modules())

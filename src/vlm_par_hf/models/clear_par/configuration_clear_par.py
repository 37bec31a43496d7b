"""Configuration of CLEAR."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from vlm_par_hf.base.configuration import (
    LabelSpaceConfig,
    check_dtype,
    check_own_number,
    check_sizes,
    check_tower,
)
from vlm_par_hf.errors import ParValueError, unreadable
from vlm_par_hf.upstream import SubConfigSpec


__all__ = ["FRESH", "ClearParConfig", "check_image_size", "split_names", "split_revisions"]

IMAGE_SIZE = (256, 128)
BRANCHES = ("both", "vit", "swin")
CASA = ("fixed", "paper", "code", "none")
POOLINGS = ("mean", "flatten")
FUSIONS = ("cross", "concat")
PROJECTIONS = ("after", "before")
FREEZES = ("none", "both", "last_stages")
VIT_TYPES = ("vit", "dinov2")
LARGEST_SIDE = 4_096
LARGEST_GRID = 8_192  # tokens of a stage; channel-aware attention before it holds matrices of their number squared
LARGEST_WINDOW = 64  # its table of positions has the fourth power of entries
LARGEST_DEPTH = 512  # as that of other towers
LARGEST_RATIO = 64
SHARES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "layer_norm_eps")
LARGEST_FLATTENED = 1 << 27  # weights of the linear layer over all tokens of the last stage


def _vit(width: int, layers: int, heads: int, patch: int) -> dict[str, Any]:
    return {
        "model_type": "vit",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "patch_size": patch,
        "image_size": list(IMAGE_SIZE),
    }


def _swin(width: int, depths: list[int], heads: list[int], window: int, patch: int = 4) -> dict[str, Any]:
    return {
        "model_type": "swin",
        "embed_dim": width,
        "depths": depths,
        "num_heads": heads,
        "window_size": window,
        "patch_size": patch,
        "image_size": list(IMAGE_SIZE),
    }


# Branches with random weights, by the name that stands for them in place of repositories.
FRESH = {
    "fresh-tiny": {
        "vit_config": _vit(128, 4, 4, 16),
        "swin_config": _swin(32, [1, 2, 1], [2, 4, 8], 4, patch=8),
    },
    "fresh-small": {
        "vit_config": _vit(384, 12, 6, 16),
        "swin_config": _swin(48, [2, 2, 2, 2], [2, 4, 8, 16], 8),
    },
    "fresh-paper": {
        "vit_config": _vit(1024, 12, 16, 14),
        "swin_config": _swin(128, [2, 2, 6, 2], [4, 8, 16, 32], 12),
    },
    "fresh-released": {
        "vit_config": _vit(1024, 24, 16, 14),
        "swin_config": _swin(128, [2, 2, 18, 2], [4, 8, 16, 32], 7),
    },
}


@strict
class ClearParConfig(LabelSpaceConfig, PreTrainedConfig):
    """Configuration of `ClearParModel`.

    The paper contradicts itself, and the code that its authors released (as C2T-Net, recognition only) differs from
    it. Where a choice has several readings, its values are named here: the default is ours, `paper()` takes what is
    printed where that can be computed, `released()` what the code does.

    Args:
        vit_config: configuration of the ViT branch, an object or its dict: `vit` or `dinov2`. None: the paper's, 12
            layers of width 1024 over patches of 14 pixels (the released code has 24).
        swin_config: configuration of the Swin branch: `swin`. None: the paper's, depths 2, 2, 6, 2 and windows of 12
            (the released code: 2, 2, 18, 2 and 7).
        attributes: the label space, an `AttributeSchema` or a list of dicts; stored as plain JSON. `config.schema` is
            the object. The order of the attributes is the order of the logits.
        image_size: height and width of the pictures. The channel-aware attention and `swin_pooling="flatten"` hold
            matrices over positions, so with them the size cannot be changed once a model is trained.
        branches: `"both"`, or for an ablation `"vit"` or `"swin"` alone, then without fusion.
        casa: the channel-aware self-attention before each Swin stage (equation 2).
            `"fixed"`: channels attend to channels, weights times values.
            `"paper"`: what is printed. There the weights are tokens x tokens (so it is no attention over channels) and
            multiply the input itself; the values of the same equation are never used and do not exist here.
            `"code"`: as `"fixed"`, but the result is transposed and read back in the old shape, which mixes channels
            and positions.
            `"none"`: left out.
        swin_pooling: the vector of the Swin branch. `"mean"`: of its last tokens (the released code); `"flatten"`: all
            of them through one linear layer (equation 1).
        fusion: `"cross"`: each branch's vector attends to the other's tokens (SVCF and VSCF, equation 3); `"concat"`:
            the vectors as they are.
        fusion_projection: `"after"`: z + (attention W) as in the released code, `"before"`: (z W1 + attention) W2, the
            form of equation 3. That equation adds the tokens in place of z, a shape that does not fit the result.
        num_fusion_heads: of the cross-attention (8 in the released code); divides the width of both branches.
        attention_dropout: dropout on the weights of the channel-aware attention, in training.
        layer_norm_eps: of the two independent LayerNorms (equation 4).
        freeze: what is frozen when a model is built or loaded. `"none"` (the paper); `"both"`: both branches;
            `"last_stages"`: both, but the last stage of the Swin, the last quarter of the layers of the ViT and their
            last LayerNorms. What is not in a pretrained branch (channel-aware attention, fusion, classifier) always
            trains. Afterwards `requires_grad` is the user's; a branch of which nothing trains stays in eval mode under
            `model.train()`.
        backbone_name, backbone_revision: where the branches came from, as `ClearParModel.from_backbone` takes them.
        loss: keyword settings of `ParLoss`.
        decisions: what was fitted for the answers (`vlm_par_hf.calibration`), `Decisions` or its dict; stored as
            plain JSON. The model then gives calibrated logits. `config.set_decisions` also sets thresholds.

    Raises:
        ValueError: a value is not allowed, or the values do not fit each other; names the argument and what to change.
        TypeError: `attributes` is not a list of attributes.
    """

    model_type = "clear_par"
    sub_configs_defaults = {
        "vit_config": SubConfigSpec(config_class=AutoConfig, model_type="vit"),
        "swin_config": SubConfigSpec(config_class=AutoConfig, model_type="swin"),
    }
    keys_to_ignore_at_inference = ["image_embeds", "attentions", "hidden_states"]

    vit_config: PreTrainedConfig | dict | None = None
    swin_config: PreTrainedConfig | dict | None = None
    attributes: Any = None
    image_size: list | tuple = IMAGE_SIZE
    branches: str = "both"
    casa: str = "fixed"
    swin_pooling: str = "mean"
    fusion: str = "cross"
    fusion_projection: str = "after"
    num_fusion_heads: int = 8
    attention_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    freeze: str = "none"
    backbone_name: str | None = None
    backbone_revision: str | None = None
    loss: dict | None = None
    decisions: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name, types in (("vit_config", VIT_TYPES), ("swin_config", ("swin",))):
            if getattr(self, name) is None:
                setattr(self, name, copy.deepcopy(FRESH["fresh-paper"][name]))
            given = getattr(self, name)
            model_type = given.get("model_type") if isinstance(given, dict) else given.model_type
            if model_type not in types:
                raise ParValueError(
                    f"{name} must be the configuration of a {' or '.join(types)} checkpoint (a dict needs its "
                    f"model_type), got model_type {model_type!r:.40}"
                )
            check_sizes(name, given)  # before transformers computes with them
        self._take_attributes(kwargs)
        self.loss = dict(self.loss or {})
        with unreadable(type(self).__name__, "vit_config or swin_config"):
            super().__post_init__(**kwargs)
        check_dtype(type(self).__name__, self)
        self.image_size = list(check_image_size(self.image_size))
        for name, choices in (
            ("branches", BRANCHES), ("casa", CASA), ("swin_pooling", POOLINGS), ("fusion", FUSIONS),
            ("fusion_projection", PROJECTIONS), ("freeze", FREEZES),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ParValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r:.40}")
        check_own_number("num_fusion_heads", self.num_fusion_heads, 1)
        if not 0.0 <= self.attention_dropout < 1.0:
            raise ParValueError(f"attention_dropout must lie in [0, 1), got {self.attention_dropout}")
        if not 0 < self.layer_norm_eps < 1:
            raise ParValueError(f"layer_norm_eps must lie between 0 and 1, got {self.layer_norm_eps!r:.40}")
        if self.uses_vit:
            self._check_vit()
        if self.uses_swin:
            self._check_swin()
        if self.crosses:
            for name, width in (("vit_config", self.vit_width), ("swin_config", self.swin_width)):
                if width % self.num_fusion_heads:
                    raise ParValueError(
                        f"num_fusion_heads must divide the width {width} of the branch of {name}, got "
                        f"{self.num_fusion_heads}"
                    )

    def _check_vit(self) -> None:
        vit = self.vit_config
        check_tower("vit_config", vit)
        _check_shares("vit_config", vit)
        if self.image_size[0] < vit.patch_size or self.image_size[1] < vit.patch_size:
            raise ParValueError(
                f"image_size {self.image_size} is smaller than one patch of vit_config ({vit.patch_size} pixels)"
            )
        self._check_positions("vit_config", always_resizes=vit.model_type == "dinov2")

    def _check_swin(self) -> None:
        swin = self.swin_config
        check_sizes(
            "swin_config", {name: getattr(swin, name) for name in ("image_size", "patch_size", "num_channels")}
        )
        check_dtype("swin_config", swin)
        if swin.hidden_act not in ACT2FN:
            raise ParValueError(
                f"swin_config: hidden_act must be an activation of transformers, got {swin.hidden_act!r:.40}"
            )
        depths, heads = list(swin.depths), list(swin.num_heads)
        if not 1 <= len(depths) == len(heads) <= 8:
            raise ParValueError(
                f"swin_config: depths and num_heads must name the same 1 to 8 stages, got {depths!r:.80} and "
                f"{heads!r:.80}"
            )
        for name, values in (("depths", depths), ("num_heads", heads), ("embed_dim", [swin.embed_dim])):
            for value in values:
                check_own_number(f"swin_config: {name}", value, 1)
        check_own_number("swin_config: window_size", swin.window_size, 1)
        if swin.window_size > LARGEST_WINDOW or sum(depths) > LARGEST_DEPTH:
            raise ParValueError(
                f"swin_config: window_size may be up to {LARGEST_WINDOW} and depths {LARGEST_DEPTH} together, got "
                f"{swin.window_size} and {sum(depths)}"
            )
        if isinstance(swin.mlp_ratio, bool) or not 0 < swin.mlp_ratio <= LARGEST_RATIO:
            raise ParValueError(
                f"swin_config: mlp_ratio must lie between 0 and {LARGEST_RATIO}, got {swin.mlp_ratio!r:.40}"
            )
        _check_shares("swin_config", swin)
        for stage, number in enumerate(heads):
            width = swin.embed_dim * 2**stage
            if width % number:
                raise ParValueError(
                    f"swin_config: num_heads must divide the width {width} of stage {stage + 1}, got {number}"
                )
        if swin.use_absolute_embeddings:
            self._check_positions("swin_config")
        grids = self.swin_grids
        size = " x ".join(map(str, self.image_size))
        rows, columns = grids[0]
        if self.casa != "none" and rows * columns > LARGEST_GRID:
            N = rows * columns
            raise ParValueError(
                f"casa={self.casa!r} holds matrices of N x N weights for the N tokens before each stage, and at "
                f"image_size {size} the first stage has N = {N:,}, more than {LARGEST_GRID:,}: set a smaller "
                f"image_size (256 x 128 has 2,048 with patches of 4), a larger swin_config.patch_size, or casa='none'"
            )
        rows, columns = grids[-1]
        if self.swin_pooling == "flatten" and rows * columns * self.swin_width**2 > LARGEST_FLATTENED:
            raise ParValueError(
                f"swin_pooling='flatten' at image_size {size} would be a linear layer from {rows * columns:,} tokens "
                f"of width {self.swin_width:,}: set a smaller image_size, or swin_pooling='mean'"
            )

    def _check_positions(self, name: str, *, always_resizes: bool = False) -> None:
        """Refuses a table of positions that is not square and would have to be resized: transformers cannot."""
        size, patch = getattr(self, name).image_size, getattr(self, name).patch_size
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < patch:
            raise ParValueError(
                f"{name}: image_size must be at least one patch ({patch} pixels) for a table of positions, got {size}"
            )
        if height == width or ([height, width] == self.image_size and not always_resizes):
            return
        way = f"an image_size of one number in {name}" if always_resizes else f"image_size={[height, width]}"
        raise ParValueError(
            f"{name} has a table of positions for pictures of {height} x {width}, and image_size is "
            f"{self.image_size}: transformers resizes square tables only; set {way}"
        )

    # What follows from the fields

    @property
    def uses_vit(self) -> bool:
        """Whether there is a ViT branch."""
        return self.branches != "swin"

    @property
    def uses_swin(self) -> bool:
        """Whether there is a Swin branch."""
        return self.branches != "vit"

    @property
    def crosses(self) -> bool:
        """Whether the branches attend to each other."""
        return self.branches == "both" and self.fusion == "cross"

    @property
    def vit_width(self) -> int:
        """Width of the ViT branch."""
        return self.vit_config.hidden_size

    @property
    def swin_width(self) -> int:
        """Width of the Swin branch after its last stage."""
        return self.swin_config.embed_dim * 2 ** (len(self.swin_config.depths) - 1)

    @property
    def image_width(self) -> int:
        """Width of a picture's vector, `ParOutput.image_embeds`: that of the branches together."""
        return self.uses_swin * self.swin_width + self.uses_vit * self.vit_width

    @property
    def swin_grids(self) -> list[tuple[int, int]]:
        """Rows and columns of the tokens before each stage of the Swin branch."""
        rows, columns = (math.ceil(side / self.swin_config.patch_size) for side in self.image_size)
        grids = [(rows, columns)]
        for _ in self.swin_config.depths[1:]:
            rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
            grids.append((rows, columns))
        return grids

    @property
    def locks_resolution(self) -> bool:
        """Whether weights belong to `image_size` alone."""
        return self.uses_swin and (self.casa != "none" or self.swin_pooling == "flatten")

    @property
    def free_at_load(self) -> tuple[str, ...]:
        """Fields that may differ from the saved ones when a checkpoint is loaded."""
        free = (*LabelSpaceConfig.free_at_load, "attention_dropout", "freeze")
        return free if self.locks_resolution else (*free, "image_size")

    # Whole sets of choices

    @classmethod
    def paper(cls, **kwargs: Any) -> "ClearParConfig":
        """Every choice as it is printed in the paper; keywords override.

        Widths of 1024 in both branches, of 12 layers and of depths 2, 2, 6, 2 with windows of 12; equations 1 to 3 as
        far as their shapes fit; plain binary cross-entropy (equation 6). The vectors are concatenated (equation 5);
        equation 1 says "Mean". The number of heads of the cross-attention is not stated.
        """
        choices = {
            **copy.deepcopy(FRESH["fresh-paper"]),
            "casa": "paper",
            "swin_pooling": "flatten",
            "fusion": "cross",
            "fusion_projection": "before",
            "freeze": "none",
            "loss": {"kind": "ce", "label_smoothing": 0.0, "reduction": "mean"},
        }
        return cls(**{**choices, **kwargs})

    @classmethod
    def released(cls, **kwargs: Any) -> "ClearParConfig":
        """Every choice as in the code that the authors released; keywords override.

        24 layers, depths 2, 2, 18, 2 with windows of 7; the result of the channel-aware attention is scrambled; the
        loss is weighted by exp(1 - share of the label), summed over attributes, and needs the shares of the training
        split (`loss={"priors": ...}`, which `vlm-par train` fills in).
        """
        choices = {
            **copy.deepcopy(FRESH["fresh-released"]),
            "casa": "code",
            "swin_pooling": "mean",
            "fusion": "cross",
            "fusion_projection": "after",
            "freeze": "none",
            "loss": {"kind": "weighted_bce", "reduction": "sum"},
        }
        return cls(**{**choices, **kwargs})


def _check_shares(where: str, tower: PreTrainedConfig) -> None:
    for name in SHARES:
        value = getattr(tower, name, 0.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise ParValueError(f"{where}: {name} must be a number in [0, 1), got {value!r:.40}")


def check_image_size(size: Any) -> tuple[int, int]:
    """Height and width of pictures.

    Raises:
        ValueError: not two whole numbers from 1 to 4,096.
    """
    sides = tuple(size) if isinstance(size, (list, tuple)) else ()
    if len(sides) != 2 or not all(
        isinstance(one, int) and not isinstance(one, bool) and 1 <= one <= LARGEST_SIDE for one in sides
    ):
        raise ParValueError(
            f"image_size must be height and width, two whole numbers from 1 to {LARGEST_SIDE:,}, got {size!r:.60}"
        )
    return sides


def split_names(name: str | Path, branches: str = "both") -> dict[str, str]:
    """The repositories or folders of the branches: `"VIT+SWIN"`, or one name for a single branch.

    Args:
        name: what `from_backbone` was given.
        branches: as in the configuration.

    Returns:
        `{"vit": name, "swin": name}`; folders as absolute paths. Empty for the name of fresh branches.

    Raises:
        ValueError: another number of names.
    """
    name = str(name)
    if name in FRESH:
        return {}
    keys = ("vit", "swin") if branches == "both" else (branches,)
    parts = [name] if len(keys) == 1 else name.split("+")
    if len(parts) != len(keys) or not all(parts):
        raise ParValueError(
            f"backbone {name!r:.200}: expected a ViT or DINOv2 and a Swin with a plus between them, such as "
            f"facebook/dinov2-large+microsoft/swin-base-patch4-window7-224, or one of {', '.join(FRESH)} for branches "
            "with random weights"
        )
    return {key: str(Path(one).resolve()) if Path(one).is_dir() else one for key, one in zip(keys, parts)}


def split_revisions(revision: str | None, names: Sequence[str]) -> dict[str, str]:
    """The revision of each branch, in the form of the names: `"REVISION+REVISION"`.

    Raises:
        ValueError: another number of revisions.
    """
    if revision is None:
        return {}
    parts = revision.split("+") if len(names) > 1 else [revision]
    if len(parts) != len(names):
        raise ParValueError(
            f"revision {revision!r:.100}: expected one for each branch ({', '.join(names) or 'none'}), with a plus "
            "between them"
        )
    return dict(zip(names, parts))

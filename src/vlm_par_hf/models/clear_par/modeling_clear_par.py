"""CLEAR: cross-transformers for person attribute recognition and retrieval (Bui et al., 2024); here the recognition.

A ViT and a Swin look at the same picture. Before each stage of the Swin its channels attend to each other (CASA,
equation 2); at the end the vector of each branch attends to the tokens of the other (SVCF and VSCF, equation 3). Each
vector has its own LayerNorm (equation 4), and one linear layer over both gives the scores (equation 5).

The paper contradicts itself in places, and the released code (C2T-Net, by the same authors) differs from it. What we
read where, and the fields of `ClearParConfig` that choose:

- The attention of equation 2 is printed as (hw x hw), which mixes positions, not channels, and leaves its values
  unused; the code attends C x C and uses them, but scrambles the result (`casa`).
- The Swin vector is all tokens through one linear layer in equation 1, and their mean in the code (`swin_pooling`).
- The residual connection of equation 3 is printed around the concatenated tokens, whose shape is not that of the
  result. It is taken around the vector (`fusion_projection`).
- Equation 1 ends with the mean of both vectors, equation 5 with their concatenation: it is the concatenation.
- The width of the cross-attention is 768 in one place; with branches of 1024 and a residual connection it is theirs.
  Branches of different widths are aligned by a linear layer.
- Equation 3 counts h w + 1 tokens: the vector and the patches. So the class token of the ViT is not among the keys of
  SVCF; it is the vector of VSCF.

A binary attribute has one score z, written as the pair (0, z), so that a softmax over labels is a sigmoid of z. An
attribute of K > 2 labels has K.

Letters: B people, N patches or tokens, D width of the ViT, E width of the Swin, A attributes, C labels, H heads.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils import can_return_tuple

from vlm_par_hf.base.adapters import group_parameters
from vlm_par_hf.base.classifiers import AttributeClassifier
from vlm_par_hf.base.modeling import HUB_KEYS, ParPreTrainedModel, loading_weights
from vlm_par_hf.base.outputs import ParOutput
from vlm_par_hf.errors import ParValueError, check_folder
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import (
    build_branch,
    last_stages,
    load_branch,
    names_in_memory,
    run_swin,
    run_vit,
    unused_parameters,
)

from .configuration_clear_par import FRESH, ClearParConfig, split_names, split_revisions
from .fusion_clear_par import ChannelAttention, CrossFusion
from .processing_clear_par import ClearParProcessor


__all__ = ["ClearParModel"]

logger = logging.getLogger(__name__)

NOT_INPUTS = ("input_ids", "patch_embeds", "image_embeds", "patch_mask", "attributes")


class ClearParModel(ParPreTrainedModel):
    """The cross-transformers of CLEAR. The logits are float32 whatever the dtype of the model.

    `ParOutput.image_embeds` is the vector of a picture that the classifier reads: `(B, E + D)`, that of the Swin first
    (2048 with the paper's widths).

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    config_class = ClearParConfig
    processor_class = ClearParProcessor
    supports_gradient_checkpointing = True
    not_quantized = ("patch_embeddings",)  # run_swin converts pixels to the dtype of its weights

    def __init__(self, config: ClearParConfig) -> None:
        super().__init__(config)
        if config.uses_vit:
            self.vit = build_branch(config.vit_config)
            self.vit_norm = nn.LayerNorm(config.vit_width, eps=config.layer_norm_eps)
        if config.uses_swin:
            self.swin = build_branch(config.swin_config)
            self.swin_norm = nn.LayerNorm(config.swin_width, eps=config.layer_norm_eps)
            grids = config.swin_grids
            self.casa = nn.ModuleList(
                nn.Identity()
                if config.casa == "none"
                else ChannelAttention(rows * columns, config.casa, config.attention_dropout)
                for rows, columns in grids
            )
            if config.swin_pooling == "flatten":
                self.swin_pool = nn.Linear(grids[-1][0] * grids[-1][1] * config.swin_width, config.swin_width)
        if config.crosses:
            heads, projection = config.num_fusion_heads, config.fusion_projection
            self.svcf = CrossFusion(config.swin_width, config.vit_width, heads, projection)
            self.vscf = CrossFusion(config.vit_width, config.swin_width, heads, projection)
        self.classifier = AttributeClassifier(config.image_width, self.schema)
        self.post_init()
        self._freeze()

    # Building and freezing

    @property
    def branches(self) -> list[nn.Module]:
        """The pretrained parts: ViT and Swin, as far as they are there."""
        return [getattr(self, name) for name in ("vit", "swin") if hasattr(self, name)]

    @classmethod
    def from_backbone(
        cls, name: str | Path, *, attributes: Any, revision: str | None = None, **kwargs: Any
    ) -> "ClearParModel":
        """A fresh model over pretrained branches, or over branches with random weights.

        Args:
            name: the repositories or folders of a ViT or DINOv2 and of a Swin, with a plus between them:
                `"facebook/dinov2-large+microsoft/swin-base-patch4-window7-224"`; with `branches="vit"` or `"swin"` one
                of them. Or `"fresh-tiny"`, `"fresh-small"`, `"fresh-paper"` or `"fresh-released"`: branches of that
                size with random weights, which all have to be trained.
            attributes: `AttributeSchema` or list of dicts.
            revision: of the repositories, in the same form.
            kwargs: fields of the configuration; all others go to `from_pretrained` (`dtype`, `token`, ...).

        Raises:
            ValueError: another number of names, a checkpoint of another kind or one that lacks weights, or random
                branches that are to be frozen.
            OSError: a folder, a repository or a file does not exist.
        """
        settings = cls._take_settings(kwargs)
        names = split_names(name, settings.get("branches", "both"))
        revisions = split_revisions(revision, list(names))
        if not names:
            sizes = FRESH[str(name)]
            config = cls.config_class(attributes=attributes, backbone_name=str(name), **{**sizes, **settings})
            if config.freeze != "none":
                raise ParValueError(
                    f"freeze={config.freeze!r}, but the branches of {name!r} have random weights: name pretrained "
                    "ones, or set freeze='none'"
                )
            return cls._from_config(config, **{key: one for key, one in kwargs.items() if key not in HUB_KEYS}).eval()
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        state: dict[str, torch.Tensor] = {}
        for branch, one in names.items():
            settings[f"{branch}_config"], tensors = cls._load_branch(
                branch, one, {**hub, "revision": revisions.get(branch, "main")}, settings
            )
            state.update(tensors)
        config = cls.config_class(
            attributes=attributes, backbone_revision=revision,
            **{"backbone_name": "+".join(names.values()), **settings},
        )  # fmt: skip
        options = {key: one for key, one in kwargs.items() if key not in HUB_KEYS}
        with loading_weights(name):
            model, _ = cls._from_pretrained(None, config=config, state_dict=state, **options)
        model.config._name_or_path = model.name_or_path = ""
        return model

    @classmethod
    def _load_branch(
        cls, branch: str, name: str, hub: dict[str, Any], settings: dict[str, Any]
    ) -> tuple[Any, dict[str, torch.Tensor]]:
        """Configuration and tensors of a pretrained branch, the tensors under their names in this model."""
        check_folder(name, f"the {branch} branch")
        config = AutoConfig.from_pretrained(name, **hub)
        config.name_or_path = ""  # keeps local paths out of saved checkpoints
        # Refuses checkpoints of other kinds with the message of the configuration, before their weights are read.
        cls.config_class(**{**settings, f"{branch}_config": config, "branches": branch})
        with loading_weights(name) as report:
            try:
                model, missing = load_branch(name, config, **hub)
            except RuntimeError as error:
                raise ParValueError(f"{name} does not fit its own configuration: {error} {report}") from error
        if missing:
            raise ParValueError(f"{name} lacks {len(missing)} tensors of the branch, the first is {min(missing)!r}")
        return config, {f"{branch}.{key}": tensor for key, tensor in model.state_dict().items()}

    @classmethod
    def _creation_hint(cls) -> str:
        return f"; to start from branches, call {cls.__name__}.from_backbone('VIT+SWIN', attributes=...)"

    def _freeze(self) -> None:
        for branch in self.branches:
            branch.requires_grad_(self.config.freeze == "none")
            if self.config.freeze == "last_stages":
                for module in last_stages(branch):
                    module.requires_grad_(True)
            for parameter in unused_parameters(branch):
                parameter.requires_grad_(False)
        self.train(self.training)  # because the mode of the branches follows from what trains

    def train(self, mode: bool = True) -> Self:
        """As `torch.nn.Module.train`, but a branch of which no parameter trains stays in eval mode."""
        super().train(mode)
        for branch in self.branches if mode else ():
            if not any(parameter.requires_grad for parameter in branch.parameters()):
                branch.eval()
        return self

    @property
    def trains_vision_tower(self) -> bool:
        return any(parameter.requires_grad for branch in self.branches for parameter in branch.parameters())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As `torch.nn.Module.load_state_dict`; takes tensors under the names of a saved checkpoint too."""
        if state_dict.keys() - self.state_dict().keys():
            state_dict = names_in_memory(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def get_input_embeddings(self) -> nn.Module:
        return self.branches[0].get_input_embeddings()

    def _exchange_attributes(self, schema: AttributeSchema, processor: Any) -> None:
        """Attributes of equal name and labels keep their rows of the classifier, the others get fresh ones."""
        before, old = self.schema, self.classifier
        self._set_label_space(schema)
        new = AttributeClassifier(self.config.image_width, schema)
        with torch.no_grad():
            new.init_parameters()
            new.to(old.weight.device)
            names = new.take_rows(old)
        self.classifier = new
        logger.warning(
            "The label space is exchanged. Scores kept: %s. Fresh, to be trained: %s. Left out: %s.",
            *(
                ", ".join(one) or "none"
                for one in (
                    names,
                    [name for name in schema.names if name not in names],
                    [name for name in before.names if name not in names],
                )
            ),
        )

    # Answers

    def _look(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """The vector of each picture `(B, E + D)`, and the attention of SVCF and VSCF (empty without them)."""
        vectors, attentions = [], ()
        if self.config.uses_vit:
            states = run_vit(self.vit, pixel_values)
            vit, patches = states[:, 0], states[:, 1:]
        if self.config.uses_swin:
            tokens = run_swin(self.swin, pixel_values, self.casa)
            swin = tokens.mean(1) if self.config.swin_pooling == "mean" else self.swin_pool(tokens.flatten(1))
        if self.config.crosses:
            (swin, from_swin), (vit, from_vit) = self.svcf(swin, patches), self.vscf(vit, tokens)
            attentions = (from_swin, from_vit)
        if self.config.uses_swin:
            vectors.append(self.swin_norm(swin))
        if self.config.uses_vit:
            vectors.append(self.vit_norm(vit))
        return torch.cat(vectors, -1), attentions

    def _check_pictures(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        if pixel_values is None:
            raise ParValueError("pixel_values is None, expected pictures: this model has no other input")
        size = tuple(self.config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[-2:]) != size:
            way = (
                f"casa={self.config.casa!r} and swin_pooling={self.config.swin_pooling!r} hold weights for these "
                "positions, so another image_size needs a new model (or casa='none', swin_pooling='mean')"
                if self.config.locks_resolution
                else "or load it with image_size=[height, width]"
            )
            raise ParValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (B, 3, {size[0]}, {size[1]}), the "
                f"image_size of this model: set processor.image_processor.size to it; {way}"
            )
        return pixel_values.to(self.dtype)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        output_attentions: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> ParOutput:
        """Scores every attribute of every person.

        Args:
            pixel_values: `(B, 3, height, width)` of `config.image_size`.
            labels: int64 `(B, A)`, class index per attribute, -100 = unknown; gives the loss.
            output_attentions: whether to return the attention between the branches.
            num_items_in_batch: number of known labels of the whole optimizer step; `Trainer` passes it.
            kwargs: ignored, but other inputs and `output_hidden_states` are refused.

        Returns:
            `ParOutput`; `attentions` is a pair, float32: of the Swin vector over itself and the patches of the ViT
            (SVCF), `(B, H, 1 + N)`, and of the class token over itself and the tokens of the Swin (VSCF).

        Raises:
            ValueError: wrong or missing inputs, or attentions of a model that has no cross-attention.
        """
        given = [name for name in NOT_INPUTS if kwargs.get(name) is not None]
        if given:
            raise ParValueError(
                f"{', '.join(given)}: expected pixel_values, the only input of a {type(self).__name__}"
            )
        if kwargs.get("output_hidden_states"):
            raise ParValueError(
                "output_hidden_states is True: this model has two branches; ask one of them, "
                "model.vit(pixel_values, output_hidden_states=True).hidden_states"
            )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_attentions and not self.config.crosses:
            raise ParValueError(
                f"output_attentions is True, but with branches={self.config.branches!r} and "
                f"fusion={self.config.fusion!r} there is no attention between the branches"
            )
        vectors, attentions = self._look(self._check_pictures(pixel_values))
        logits = self.classifier(vectors)
        loss = None if labels is None else self.loss_module(logits, labels, num_items_in_batch)
        if labels is None:
            self._guard_padding(logits)
        return ParOutput(
            loss=loss,
            logits=self._calibrated(logits),
            image_embeds=vectors,
            attentions=attentions if output_attentions else None,
        )

    # Starting values and optimisation

    @property
    def starts_from_priors(self) -> bool:
        return True

    @torch.no_grad()
    def init_bias_from_priors(self, priors: Sequence[Sequence[float]]) -> None:
        """Sets the classifier's bias so that, without its weights, it gives each label its share.

        Args:
            priors: per attribute the share of each label in the training split.

        Raises:
            ValueError: wrong number of attributes or labels, or a share outside 0..1.
        """
        self.classifier.bias.copy_(self.classifier.prior_scores(priors))

    def parameter_groups(
        self,
        learning_rate: float,
        fusion_learning_rate: float | None = None,
        *,
        backbone_learning_rate: float = 1e-5,
        adapter_learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
    ) -> list[dict[str, Any]]:
        """Every trainable parameter exactly once, grouped for an optimizer such as AdamW.

        Args:
            learning_rate: of the classifier.
            fusion_learning_rate: of both kinds of attention, of pooling and LayerNorms, and of branches that started
                with random weights. None takes 0.128 / the larger width of the branches.
            backbone_learning_rate: of pretrained branches. The paper trains all parts at 1e-5.
            adapter_learning_rate: of adapters of peft.
            weight_decay: of matrices; vectors have none.
        """
        if fusion_learning_rate is None:
            widths = [self.config.vit_width] * self.config.uses_vit + [self.config.swin_width] * self.config.uses_swin
            fusion_learning_rate = 0.128 / max(widths)
        fresh = self.config.backbone_name in (None, *FRESH)
        rates = {
            "classifier": learning_rate,
            "fusion": fusion_learning_rate,
            "branches": fusion_learning_rate if fresh else backbone_learning_rate,
            "adapter": adapter_learning_rate,
        }
        branches = {"classifier": "classifier", "vit": "branches", "swin": "branches"}

        def part_of(name: str, parameter: nn.Parameter) -> tuple[str, bool]:
            return branches.get(name.partition(".")[0], "fusion"), parameter.ndim >= 2

        return group_parameters(self, part_of, rates, weight_decay)

"""The table of model families. A new family needs a folder, one row here, and tests.

The table is read by `vlm_par_hf` (public names), `auto` (registration with transformers), the command line, model
cards and the contract tests. It holds only the names of classes, which `Family.load` imports, so it needs no torch.
"""

import importlib
from dataclasses import dataclass


__all__ = ["FAMILIES", "Family", "TrainOption", "find_family", "trainable_families"]


@dataclass(frozen=True, kw_only=True)
class TrainOption:
    """A field of a family's configuration for which `vlm-par train` has a flag.

    Attributes:
        name: of the field. The flag is `--name`.
        choices: the allowed values, first the default of the configuration; empty for a number or a yes or no.
        default: the default of the configuration, where there are no choices.
        help: what the field says, where the choices do not.
    """

    name: str
    choices: tuple[str, ...] = ()
    default: int | bool | None = None
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table: a kind of checkpoint.

    Attributes:
        model_type: as in `config.json`.
        title: its name in model cards.
        module: the module with its classes, without `vlm_par_hf.` in front.
        config, model: names of the configuration and model classes.
        processor: name of the processor class; None: its checkpoints carry the processor of another family.
        trainable: whether `vlm-par train --family` offers it.
        purpose: its description in the help of `--family`.
        default_backbone: what `vlm-par train` builds it over where no backbone is named.
        train_options: flags of `vlm-par train` for this family only.
        card_input: what it answers from, for the first sentence of a model card.
        card_settings: fields of its configuration that a model card lists.
        card_limits: sentences for the section "Limits" of a model card.
    """

    model_type: str
    title: str
    module: str
    config: str
    model: str
    processor: str | None
    trainable: bool = False
    purpose: str = ""
    default_backbone: str = "embedded"
    train_options: tuple[TrainOption, ...] = ()
    card_input: str = "one image of that person"
    card_settings: tuple[str, ...] = ()
    card_limits: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The public class names of the family."""
        return tuple(name for name in (self.config, self.model, self.processor) if name is not None)

    def load(self) -> tuple[type, type, type | None]:
        """Imports and returns configuration, model and processor class."""
        module = importlib.import_module(f"vlm_par_hf.{self.module}")
        processor_class = None if self.processor is None else getattr(module, self.processor)
        return getattr(module, self.config), getattr(module, self.model), processor_class


FAMILIES = (
    Family(
        model_type="vlm_par",
        title="VLM-PAR (Sellam et al., 2025)",
        module="models.vlm_par",
        config="VlmParConfig",
        model="VlmParModel",
        processor="VlmParProcessor",
        trainable=True,
        purpose="the best on the attributes of the data set",
        train_options=(
            TrainOption(name="fusion", choices=("text_to_image", "image_to_text", "none")),
            TrainOption(name="alignment", choices=("logit", "none")),
            TrainOption(
                name="pooled_classifier", default=True, help="a linear classifier on the tower's own pooled output too"
            ),
            TrainOption(name="num_question_prompts", default=0, help="learnable vectors in each question"),
        ),
        card_settings=("fusion", "alignment", "pooled_classifier", "question_tokens", "freeze_backbone"),
    ),
    Family(
        model_type="vlm_par_folded",
        title="VLM-PAR (Sellam et al., 2025), folded for inference",
        module="models.vlm_par",
        config="FoldedVlmParConfig",
        model="FoldedVlmParModel",
        processor="VlmParProcessor",
        card_settings=("fusion", "alignment", "pooled_classifier"),
        card_limits=("For answers only: it has no text tower and cannot be trained further.",),
    ),
    Family(
        model_type="focus_par",
        title="FOCUS (An et al., 2025)",
        module="models.focus_par",
        config="FocusParConfig",
        model="FocusParModel",
        processor="FocusParProcessor",
        trainable=True,
        purpose="also answers for attributes named later",
        card_settings=(
            "freeze_backbone",
            "num_global_tokens",
            "num_local_tokens",
            "num_prompt_tokens",
            "text_template",
        ),
        card_limits=(
            'It also answers for attributes named at call time, `pipe(image, attributes=["wearing a red scarf"])`: '
            "these were not measured here; yes or no is decided at the threshold that is usual for the fitted ones.",
        ),
    ),
    Family(
        model_type="clear_par",
        title="CLEAR (Bui et al., 2024), recognition",
        module="models.clear_par",
        config="ClearParConfig",
        model="ClearParModel",
        processor="ClearParProcessor",
        trainable=True,
        purpose="a ViT and a Swin, trained as a whole",
        default_backbone="fresh-tiny",
        train_options=(
            TrainOption(name="branches", choices=("both", "vit", "swin")),
            TrainOption(name="casa", choices=("fixed", "paper", "code", "none")),
            TrainOption(name="swin_pooling", choices=("mean", "flatten")),
            TrainOption(name="fusion", choices=("cross", "concat")),
            TrainOption(name="fusion_projection", choices=("after", "before")),
            TrainOption(name="freeze", choices=("none", "both", "last_stages")),
        ),
        card_settings=("branches", "casa", "swin_pooling", "fusion", "fusion_projection", "freeze", "image_size"),
        card_limits=("It takes pictures of one size, to which the processor resizes them whatever their shape is.",),
    ),
    Family(
        model_type="vtf_par",
        title="VTF (Zhu et al., 2023)",
        module="models.vtf_par",
        config="VtfParConfig",
        model="VtfParModel",
        processor="VtfParProcessor",
        trainable=True,
        purpose="several frames of a person at once",
        train_options=(
            TrainOption(name="temporal", choices=("quality", "attention", "mean")),
            TrainOption(name="num_frames", default=6, help="frames of a tracklet per forward pass"),
            TrainOption(
                name="pooled_classifier", default=True, help="a linear classifier on the tower's own pooled output too"
            ),
            TrainOption(name="logit_norm", choices=("none", "batch")),
        ),
        card_input="several frames of that person, or one image",
        card_settings=(
            "temporal",
            "num_frames",
            "fusion_width",
            "num_fusion_layers",
            "pooled_classifier",
            "text_template",
            "logit_norm",
        ),
        card_limits=(
            "It answers for a tracklet, the frames of one person in a row (`pipe(vlm_par_hf.Tracklet(frames))`); a "
            "picture is a tracklet of one frame.",
        ),
    ),
    Family(
        model_type="par_exported",
        title="par_exported",
        module="export.exported",
        config="ExportedParConfig",
        model="ExportedParModel",
        processor=None,
    ),
)


def find_family(model_type: str) -> Family | None:
    """The row of a `model_type`; None if there is none."""
    return next((one for one in FAMILIES if one.model_type == model_type), None)


def trainable_families() -> tuple[str, ...]:
    """The `model_type` of every family that can be trained."""
    return tuple(one.model_type for one in FAMILIES if one.trainable)

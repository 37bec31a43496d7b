"""The heads of VLM-PAR: fusion block and classifier of every attribute (equations 9-13).

The text is constant, so every product of equation 9 that contains the text consists of parameters and constants only.
`AttributeHeads` holds the parameters and computes these products, called constants below; `FoldedHeads` holds only the
constants. Both compute the logits in the same method, `apply_constants`, so a folded model cannot differ from the
model that it was made from.

The algebra, without approximation. F are the patches, K and V keys and values of the question's tokens, alpha the
attention probabilities, q the query of the question:

- image to text: scores = F M with `M = W_Q K^T / sqrt(E)` (D x HT), and the fused patches are `F + alpha U` with
  `U = V W_O` (HT x D). Mean and variance of LayerNorm follow from inner products with the centred U and its Gram
  matrix, so the mean over patches is `sum_n w_n F_n + (sum_n w_n alpha_n) U` with `w_n = 1 / (N sigma_n)`: there is
  no tensor of (patches x width) per attribute.
- text to image: scores = F k with `k = W_K q / sqrt(E)` per head (D), one pooled patch vector per head, then W_V and
  W_O.
- The affine part of LayerNorm, the standardisation of the pooled vector and the classifier are one matrix (D x C) and
  one constant per label; so are the standardisation of the tower's own pooled output and its classifier. Gate and
  scale of stage 1 are multiplied into the prompts.

Letters: B people, N patches, A attributes, C labels, H heads, T question tokens, D vision width, E = D / H.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vlm_par_hf.base.numerics import NO_LABEL_LOGIT, no_autocast, wide
from vlm_par_hf.upstream import init


__all__ = ["AttributeHeads", "FoldedHeads", "HeadsOutput"]

CHUNK_ELEMENTS = 1 << 22  # at most so many attention probabilities of image_to_text are in memory at a time


class HeadsOutput(NamedTuple):
    """The output of the heads.

    Args:
        logits: float32 `(B, A, C)`, both stages; -1e4 past an attribute's own labels.
        pooled: float32 `(B, A, D)`, the mean over patches of LayerNorm without its affine part.
        attentions: None unless asked for; float32 as in `ParOutput`. Always None without fusion.
        evidence: None unless asked for; float32 `(B, A, N, C)`, what each patch adds to the stage-2 logits. With the
            variances of LayerNorm held fixed, the stage-2 logits are its sum over N plus a constant per label.
    """

    logits: torch.Tensor
    pooled: torch.Tensor
    attentions: torch.Tensor | None = None
    evidence: torch.Tensor | None = None


class _Heads(nn.Module):
    """Computes logits from patches and constants.

    Constants, by name:

    - `direction` `(A, D, C)` and `label_bias` `(A, C)`: the classifier of the pooled vector.
    - `image_direction` `(A, D, C)`, with `pooled_classifier` only: the classifier of the tower's own pooled output.
      Its constant is part of `label_bias`.
    - `prompts` `(A, C, D)`, with alignment only: unit vectors times gate and scale. Gate times the backbone's bias is
      part of `label_bias`.
    - text_to_image: `keys` `(A * H, D)`, `value` `(A * H, D, E)`, `output` `(A, D, D)`.
    - image_to_text: `keys` and `answers` `(rows, D)`, that is M and the centred U, and `gram` (flat), the Gram matrix
      of each attribute's answers. Questions differ in length, and no padding is stored: the attributes are sorted by
      the length of their question (`_packed_order`). Each row belongs to one attribute, head and token; the token
      index runs fastest.
    """

    def __init__(
        self,
        num_labels: Sequence[int],
        width: int,
        *,
        fusion: str,
        alignment: str,
        pooled_classifier: bool,
        num_heads: int,
        dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.num_labels = tuple(num_labels)
        self.width = width
        self.fusion = fusion
        self.alignment = alignment
        self.pooled_classifier = pooled_classifier
        self.num_heads = num_heads
        self.dropout = dropout
        self.eps = eps
        self.register_buffer("label_mask", self._label_mask(), persistent=False)
        self.question_lengths: tuple[int, ...] = ()

    def _label_mask(self) -> torch.Tensor:
        return torch.arange(max(self.num_labels))[None, :] < torch.tensor(self.num_labels)[:, None]

    def init_label_mask(self) -> None:
        init.copy_(self.label_mask, self._label_mask())

    def _packed_order(self) -> list[int]:
        """The attributes in the order in which image_to_text stores them: by the length of the question."""
        return sorted(range(len(self.num_labels)), key=self.question_lengths.__getitem__)

    def _lengths_and_counts(self) -> list[tuple[int, int]]:
        """(T, number of attributes with a question of T tokens), in increasing T."""
        lengths = [self.question_lengths[attribute] for attribute in self._packed_order()]
        return [(T, lengths.count(T)) for T in sorted(set(lengths))]

    def apply_constants(
        self,
        constants: Mapping[str, torch.Tensor],
        patch_embeds: torch.Tensor,
        patch_mask: torch.Tensor,
        image_embeds: torch.Tensor | None = None,
        *,
        output_attentions: bool = False,
        output_evidence: bool = False,
    ) -> HeadsOutput:
        """Logits of every attribute (VLM-PAR, equations 9-13, and the alignment of stage 1).

        Args:
            constants: as above.
            patch_embeds: `(B, N, D)`; values at padding are ignored.
            patch_mask: bool `(B, N)`.
            image_embeds: `(B, D)`; with `alignment="logit"` or `pooled_classifier` only.
            output_attentions, output_evidence: whether to return them; they need additional memory.
        """
        patches = torch.where(patch_mask[..., None], patch_embeds, 0)
        count = patch_mask.sum(1).clamp_min(1)
        pool = getattr(self, f"_pool_{self.fusion}")
        pooled, attentions, evidence = pool(constants, patches, patch_mask, count, output_attentions, output_evidence)
        with no_autocast(patches):
            logits = torch.einsum("bad,adc->bac", pooled, wide(constants["direction"])) + wide(constants["label_bias"])
            if self.pooled_classifier:
                logits = logits + torch.einsum("bd,adc->bac", wide(image_embeds), wide(constants["image_direction"]))
            if self.alignment == "logit":
                image = F.normalize(wide(image_embeds), dim=-1)
                logits = logits + torch.einsum("be,ace->bac", image, wide(constants["prompts"]))
        return HeadsOutput(torch.where(self.label_mask, logits, NO_LABEL_LOGIT), pooled, attentions, evidence)

    # Each `_pool_<fusion>` returns pooled, attentions and evidence of `HeadsOutput`; `count` `(B,)` is the number of
    # patches of each person. `apply_constants` picks the method by its name.

    def _pool_none(self, constants, patches, patch_mask, count, output_attentions, output_evidence):
        patches = wide(patches)
        weight = torch.where(patch_mask, self._inverse_std(_energy(patches)) / count[:, None], 0)
        with no_autocast(patches):
            pooled = _centre(torch.einsum("bn,bnd->bd", weight, patches))[:, None]
            evidence = None
            if output_evidence:
                own = torch.einsum("bnd,adc->banc", _centre(patches), wide(constants["direction"]))
                evidence = own * weight[:, None, :, None]
        return pooled.expand(-1, len(self.num_labels), -1), None, evidence

    def _pool_text_to_image(self, constants, patches, patch_mask, count, output_attentions, output_evidence):
        keys, value, output = constants["keys"], constants["value"], constants["output"]
        patches = patches.to(keys.dtype)
        B, N, D = patches.shape
        A, H, E = len(self.num_labels), self.num_heads, D // self.num_heads
        scores = wide(keys @ patches.mT)  # (B, A * H, N)
        lowest = torch.finfo(scores.dtype).min
        probabilities = scores.masked_fill(~patch_mask[:, None], lowest).softmax(-1)
        dropped = F.dropout(probabilities, self.dropout, self.training)
        attended = dropped.to(patches.dtype) @ patches  # (B, A * H, D)
        heads = torch.bmm(attended.transpose(0, 1), value)  # (A * H, B, E)
        heads = heads.view(A, H, B, E).transpose(1, 2).reshape(A, B, D)
        answer = wide(torch.bmm(heads, output)).transpose(0, 1)
        mean = wide(patches).sum(1) / count[:, None]
        fused = _centre(answer + mean[:, None])
        inverse_std = self._inverse_std(fused.square().sum(-1))  # (B, A)
        evidence = None
        if output_evidence:
            with no_autocast(patches):
                direction = _centre(wide(constants["direction"]), 1)
                weight = inverse_std / count[:, None]
                own = torch.einsum("bnd,adc->banc", wide(patches), direction) * weight[..., None, None]
                back = torch.einsum("ade,aec->adc", wide(output), direction).view(A, H, E, -1)
                back = torch.einsum("ahde,ahec->ahdc", wide(value).view(A, H, D, E), back)
                seen = torch.einsum("bnd,ahdc->bahnc", wide(patches), back)
                seen = (seen * dropped.view(B, A, H, N, 1)).sum(2) * inverse_std[..., None, None]
                evidence = own + seen
        attentions = probabilities.view(B, A, H, N) if output_attentions else None
        return fused * inverse_std[..., None], attentions, evidence

    def _pool_image_to_text(self, constants, patches, patch_mask, count, output_attentions, output_evidence):
        keys, answers = constants["keys"], constants["answers"]
        patches = patches.to(keys.dtype)
        B, N, _ = patches.shape
        wide_patches = wide(patches)
        energy = _energy(wide_patches).flatten()
        share = (patch_mask.to(energy.dtype) / count[:, None]).flatten()
        dtype = _product_dtype(patches)
        flat, keys, answers = patches.flatten(0, 1).to(dtype), keys.to(dtype), answers.to(dtype)
        dropout = self.dropout if self.training else 0.0
        wants_all = output_attentions or output_evidence
        packed = []
        with no_autocast(patches):
            for own_keys, own_answers, gram in self._chunks(keys, answers, constants["gram"], B * N):
                weight, mixture, probabilities = _fuse_image_to_text(
                    flat, energy, share, own_keys, own_answers, gram, self.num_heads, B, self.eps, dropout
                )
                parts = [weight.unflatten(1, (B, N)), mixture.mT @ wide(own_answers)]
                if wants_all:
                    parts += [probabilities.view(len(weight), self.num_heads, -1, B, N), own_answers]
                packed += zip(*(part.unbind(0) for part in parts))
            order = self._packed_order()
            weight, answer_sums, *details = zip(*(packed[order.index(attribute)] for attribute in range(len(order))))
            weight = torch.stack(weight, 1)  # (B, A, N)
            pooled = _centre(weight @ wide_patches) + torch.stack(answer_sums, 1)
            attentions = evidence = None
            if output_attentions:
                T = max(self.question_lengths)
                padded = [F.pad(one, (0, 0, 0, 0, 0, T - one.shape[1])) for one in details[0]]  # (H, T, B, N)
                attentions = torch.stack(padded).permute(3, 0, 1, 4, 2)
            if output_evidence:
                direction = wide(constants["direction"])
                own = torch.einsum("bnd,adc->banc", _centre(wide_patches), direction)
                words = [
                    torch.einsum("ibn,ic->bnc", probabilities.flatten(0, 1), wide(own_answers) @ towards)
                    for probabilities, own_answers, towards in zip(*details, direction)
                ]
                evidence = (own + torch.stack(words, 1)) * weight[..., None]
        return pooled, attentions, evidence

    def _chunks(self, keys, answers, gram, patches: int) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yields keys and answers `(k, HT, D)` and gram `(k, HT, HT)` of k attributes with questions of equal
        length."""
        row = place = 0
        for T, attributes in self._lengths_and_counts():
            HT = self.num_heads * T
            # All attributes at once under a compiler, which fuses operations by itself. A chunk size that depends on
            # the number of patches would also fix that number in the compiled or exported graph.
            is_traced = torch.compiler.is_compiling() or isinstance(patches, torch.SymInt)
            size = attributes if is_traced else max(1, CHUNK_ELEMENTS // (HT * patches))
            while attributes:
                k = min(size, attributes)
                rows, places = slice(row, row + k * HT), slice(place, place + k * HT * HT)
                own_keys, own_answers = (one[rows].unflatten(0, (k, HT)) for one in (keys, answers))
                yield own_keys, own_answers, gram[places].view(k, HT, HT)
                row, place, attributes = rows.stop, places.stop, attributes - k

    def _inverse_std(self, square_sum: torch.Tensor) -> torch.Tensor:
        return torch.rsqrt(square_sum / self.width + self.eps)


def _fuse_image_to_text(patches, energy, share, keys, answers, gram, num_heads, people, eps, dropout):
    """LayerNorm weight of each patch and attention-weighted sums per person, for k attributes with equally long
    questions.

    Patches are the last axis of every tensor, so that softmax and sums over words are vectorised over patches. For the
    backward pass, two tensors of size (words x patches) are stored: the probabilities and their factor in the
    variance.

    Args:
        patches: `(BN, D)`.
        energy: `(BN,)`, squared length of each centred patch.
        share: `(BN,)`, 1 / number of patches of its person; 0 at padding.
        keys, answers: `(k, HT, D)`, the answers centred; gram: `(k, HT, HT)`.
        num_heads, people: H and B.
        eps: of LayerNorm.
        dropout: on the probabilities.

    Returns:
        weight `(k, BN)` is `share / sigma`; mixture `(k, HT, B)`, the weighted sum of the probabilities over the
        patches of each person; the probabilities `(k, HT, BN)` before dropout.
    """
    k, HT, D = keys.shape
    scores = wide(keys @ patches.mT).view(k, num_heads, -1, patches.shape[0])
    probabilities = scores.softmax(2).view(k, HT, -1)
    dropped = F.dropout(probabilities, dropout) if dropout else probabilities
    # The answers are centred, so patches and centred patches have the same product with them.
    cross = wide(answers @ patches.mT).baddbmm_(wide(gram), dropped, alpha=0.5)
    total = energy + 2 * (dropped * cross).sum(1)
    # Clamp: rounding can make a sum of squares near 0 negative.
    weight = torch.rsqrt(total.clamp_min(0) / D + eps) * share
    mixture = (dropped * weight[:, None]).view(k, HT, people, -1).sum(-1)
    return weight, mixture, probabilities


class AttributeHeads(_Heads):
    """The parameters of all heads, stacked along the attributes.

    A fresh fusion block does not change the result. text_to_image: `query` is 0, so attention is uniform, and `value`
    and `output` are identities, so the block adds the mean patch to the mean patch; LayerNorm removes the factor 2.
    image_to_text: `output` is 0. Both classifiers and the gates of stage 1 are 0 as well. Gradients reach `query`
        (text_to_image) or `output`
    (image_to_text) after the first step of the classifier, and all other parameters after the next step.

    The mean and standard deviation of the pooled vector (`pooled_mean`, `pooled_std`) and of the tower's own pooled
    output (`image_mean`, `image_std`) are 0 and 1 until `restandardise` sets them.

    Args:
        num_labels: number of labels of each attribute.
        width: D, of the vision tower.
        text_width: of the text tower's states.
        fusion, alignment, pooled_classifier, num_heads, dropout, eps: as in `VlmParConfig`.
    """

    def __init__(self, num_labels: Sequence[int], width: int, text_width: int, **settings) -> None:
        super().__init__(num_labels, width, **settings)
        A, C = self.label_mask.shape
        if self.fusion != "none":
            asks, answers = (text_width, width) if self.fusion == "text_to_image" else (width, text_width)
            self.query = nn.Parameter(torch.empty(A, asks, width))
            self.key = nn.Parameter(torch.empty(A, answers, width))
            self.value = nn.Parameter(torch.empty(A, answers, width))
            self.output = nn.Parameter(torch.empty(A, width, width))
        self.norm_weight = nn.Parameter(torch.empty(A, width))
        self.norm_bias = nn.Parameter(torch.empty(A, width))
        self.classifier_weight = nn.Parameter(torch.empty(A, width, C))
        self.classifier_bias = nn.Parameter(torch.empty(A, C))
        if self.alignment == "logit":
            self.gate = nn.Parameter(torch.empty(A))
        self.register_buffer("pooled_mean", torch.zeros(width))
        self.register_buffer("pooled_std", torch.ones(width))
        if self.pooled_classifier:
            self.image_classifier_weight = nn.Parameter(torch.empty(A, width, C))
            self.register_buffer("image_mean", torch.zeros(width))
            self.register_buffer("image_std", torch.ones(width))

    def init_parameters(self) -> None:
        """Sets the initial values; leaves parameters alone that a checkpoint has filled."""
        if self.fusion == "text_to_image":
            init.zeros_(self.query)
            self._init_projection(self.key)
            for projection in (self.value, self.output):
                init.copy_(projection, torch.eye(self.width).expand_as(projection))
        elif self.fusion == "image_to_text":
            for projection in (self.query, self.key, self.value):
                self._init_projection(projection)
            init.zeros_(self.output)
        init.ones_(self.norm_weight)
        init.zeros_(self.norm_bias)
        init.zeros_(self.classifier_weight)
        init.zeros_(self.classifier_bias)
        if self.alignment == "logit":
            init.zeros_(self.gate)
        init.zeros_(self.pooled_mean)
        init.ones_(self.pooled_std)
        if self.pooled_classifier:
            init.zeros_(self.image_classifier_weight)
            init.zeros_(self.image_mean)
            init.ones_(self.image_std)
        self.init_label_mask()

    @staticmethod
    def _init_projection(projection: torch.Tensor) -> None:
        # Xavier for the (inputs, outputs) matrix of each attribute; the first axis only stacks them.
        bound = (6.0 / (projection.shape[1] + projection.shape[2])) ** 0.5
        init.uniform_(projection, -bound, bound)

    def restandardise(self, kind: str, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Sets the statistics by which a classifier's input is standardised, and changes its weights so that no logit
        changes.

        Args:
            kind: `"pooled"`, the pooled vector of the fusion, or `"image"`, the tower's own pooled output.
            mean, std: float64 `(D,)`.
        """
        parameter = self.classifier_weight if kind == "pooled" else self.image_classifier_weight
        old_mean, old_std = getattr(self, f"{kind}_mean"), getattr(self, f"{kind}_std")
        weight = parameter.double()
        shift = (mean - old_mean.double()) / old_std.double()
        self.classifier_bias += torch.einsum("d,adc->ac", shift, weight).to(self.classifier_bias.dtype)
        parameter.copy_(weight * (std / old_std.double())[:, None])
        old_mean.copy_(mean)
        old_std.copy_(std)

    def compute_constants(
        self,
        states: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        prompts: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The constants of `apply_constants`, with gradients where they are enabled.

        Args:
            states: `(A, T, text_width)` states of the questions; not without fusion.
            mask: bool `(A, T)`, True for tokens that count: the first `question_lengths` of each attribute.
            prompts: `(A, C, D)` embeddings of the labels' prompts, 0 past an attribute's own labels; with alignment
                only.
            scale, bias: of the backbone's logits: exp(scale) * cosine + bias; with alignment only.

        Returns:
            Constants by name. `direction`, `image_direction`, `label_bias`, `prompts` and `gram` are float32 (float64
            stays float64); the others have the dtype of the parameters.
        """
        with no_autocast(self.norm_weight):
            classifier = wide(self.classifier_weight)
            std = wide(self.pooled_std)
            constants = {
                "direction": (wide(self.norm_weight) / std)[..., None] * classifier,
                "label_bias": wide(self.classifier_bias)
                + torch.einsum("ad,adc->ac", (wide(self.norm_bias) - wide(self.pooled_mean)) / std, classifier),
            }
            if self.pooled_classifier:
                direction = wide(self.image_classifier_weight) / wide(self.image_std)[:, None]
                shift = torch.einsum("d,adc->ac", wide(self.image_mean), direction)
                constants["image_direction"] = direction
                constants["label_bias"] = constants["label_bias"] - shift
            if self.alignment == "logit":
                gate = wide(self.gate)[:, None]
                constants["prompts"] = F.normalize(wide(prompts), dim=-1) * (gate * wide(scale).exp())[..., None]
                constants["label_bias"] = constants["label_bias"] + gate * wide(bias)
            if self.fusion == "text_to_image":
                constants.update(self._text_to_image_constants(states, mask))
            elif self.fusion == "image_to_text":
                constants.update(self._image_to_text_constants(states))
        return constants

    def _text_to_image_constants(self, states, mask):
        A, H, D, E = len(self.num_labels), self.num_heads, self.width, self.width // self.num_heads
        states = states.to(self.query.dtype)
        weight = mask.to(states.dtype) / mask.sum(1, keepdim=True)
        question = torch.einsum("at,atd->ad", weight, states)
        queries = torch.einsum("ad,ade->ae", question, self.query).view(A, H, E) * E**-0.5
        keys = torch.einsum("adhe,ahe->ahd", self.key.view(A, D, H, E), queries)
        value = self.value.view(A, D, H, E).transpose(1, 2).reshape(A * H, D, E)
        return {"keys": keys.flatten(0, 1), "value": value, "output": self.output}

    def _image_to_text_constants(self, states):
        states = states.to(self.query.dtype)
        A, T, _ = states.shape
        H, D, E = self.num_heads, self.width, self.width // self.num_heads
        keys = torch.einsum("atd,ade->ate", states, self.key).view(A, T, H, E) * E**-0.5
        values = torch.einsum("atd,ade->ate", states, self.value).view(A, T, H, E)
        keys = torch.einsum("adhe,athe->ahtd", self.query.view(A, D, H, E), keys)
        answers = torch.einsum("athe,ahed->ahtd", values, self.output.view(A, H, E, D))
        answers = answers - answers.mean(-1, keepdim=True)
        packed = {}
        for name, rows in (("keys", keys), ("answers", answers)):
            rows = rows.unbind(0)
            packed[name] = [rows[one][:, : self.question_lengths[one]].flatten(0, 1) for one in self._packed_order()]
        gram = [wide(rows) @ wide(rows).mT for rows in packed["answers"]]
        return {
            **{name: torch.cat(rows) for name, rows in packed.items()},
            "gram": torch.cat([x.flatten() for x in gram]),
        }


class FoldedHeads(_Heads):
    """Heads that hold only the constants, as buffers. They cannot be trained.

    Args:
        question_lengths: number of tokens of each attribute's question; used with image_to_text only.
        num_labels, width, fusion, alignment, pooled_classifier, num_heads, eps: as in `AttributeHeads`.
    """

    def __init__(self, num_labels: Sequence[int], width: int, question_lengths: Sequence[int], **settings) -> None:
        super().__init__(num_labels, width, dropout=0.0, **settings)
        self.question_lengths = tuple(question_lengths)
        A, C = self.label_mask.shape
        shapes = {"direction": (A, width, C), "label_bias": (A, C)}
        if self.pooled_classifier:
            shapes["image_direction"] = (A, width, C)
        if self.alignment == "logit":
            shapes["prompts"] = (A, C, width)
        if self.fusion == "text_to_image":
            rows = A * self.num_heads
            shapes.update(keys=(rows, width), value=(rows, width, width // self.num_heads), output=(A, width, width))
        elif self.fusion == "image_to_text":
            rows = [self.num_heads * T for T in self.question_lengths]
            shapes.update(keys=(sum(rows), width), answers=(sum(rows), width), gram=(sum(row**2 for row in rows),))
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            self.register_buffer(name, torch.empty(shape))

    def init_parameters(self) -> None:
        """Zeros, unless a checkpoint has filled the buffers."""
        self.init_label_mask()
        for name in self.names:
            init.zeros_(getattr(self, name))

    def constants(self) -> dict[str, torch.Tensor]:
        """The constants that `apply_constants` takes."""
        return {name: getattr(self, name) for name in self.names}


def _centre(tensor: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return tensor - tensor.mean(dim, keepdim=True)


def _energy(patches: torch.Tensor) -> torch.Tensor:
    """Squared length of each centred patch."""
    return _centre(patches).square().sum(-1)  # on a CPU several times faster than `torch.var`


def _product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype in which a matrix product with this tensor runs under the current autocast setting."""
    device = tensor.device.type
    casts = device != "meta" and torch.is_autocast_enabled(device) and tensor.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else tensor.dtype

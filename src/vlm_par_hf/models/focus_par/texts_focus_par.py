"""The texts of FOCUS: one embedding per label of a label space, and the cross-attention from texts to mix tokens.

Letters: B people, K tokens of a picture, A attributes, C labels, Z texts (all labels of all attributes), H heads,
E width of the space in which pictures and texts are compared.
"""

import itertools
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from vlm_par_hf.base.numerics import no_autocast, wide
from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.texts import split_words
from vlm_par_hf.upstream import TOWERS, init

from .configuration_focus_par import FocusParConfig
from .processing_focus_par import FocusParProcessor


__all__ = ["AttributeGuidedExtraction", "AttributeTexts", "TextReader", "TextTable", "unit_rms"]

SMALLEST_SQUARE = 1e-12  # lower bound for the squared length of an attention result, which is divided by
TEXTS_AT_ONCE = 64  # in one pass of the text tower


@dataclass(eq=False)
class AttributeTexts:
    """An encoded label space for `FocusParModel.forward(attributes=...)`, made by `encode_attributes`.

    Args:
        schema: the label space.
        embeds: `(Z, E)`, the embedding of each label's text.
        queries: `(H, Z, E / H)`, its queries in the cross-attention to the mix tokens.
        slots: int64 `(Z,)`, the position of its logit in a flat row of A * C.
        attribute: int64 `(Z,)`, the position of its attribute.
        gain: float32 `(A,)` and offset float32 `(Z,)`: logit = gain * similarity + offset.
    """

    schema: AttributeSchema
    embeds: torch.Tensor
    queries: torch.Tensor
    slots: torch.Tensor
    attribute: torch.Tensor
    gain: torch.Tensor
    offset: torch.Tensor

    @property
    def explained(self) -> tuple[str, ...]:
        """The attributes that `explain` has a relevance for: all of them."""
        return self.schema.names

    def to(self, device: torch.device) -> "AttributeTexts":
        moved = {one.name: getattr(self, one.name).to(device) for one in fields(self) if one.name != "schema"}
        return replace(self, **moved)

    def by_label(self, values: torch.Tensor, fill: float) -> torch.Tensor:
        """Rearranges one column per text `(B, Z, ...)` into attributes and labels `(B, A, C, ...)`.

        Args:
            values: `(B, Z, ...)`.
            fill: the value past an attribute's own labels.
        """
        A, C = len(self.schema), self.schema.max_labels
        table = values.new_full((len(values), A * C, *values.shape[2:]), fill)
        return table.index_copy(1, self.slots, values).unflatten(1, (A, C))


def unit_rms(tensor: torch.Tensor) -> torch.Tensor:
    """Scales vectors to root mean square 1; computed in float32, returned in the dtype of `tensor`."""
    return (F.normalize(wide(tensor), dim=-1) * tensor.shape[-1] ** 0.5).to(tensor.dtype)


class TextTable(NamedTuple):
    """A tokenized label space, as tensors on one device.

    Attributes:
        tokens: int64 `(Z, L)`, token ids of each text, padded.
        last: int64 `(Z,)`, the position at which a text is pooled; positions count the learnable vectors too.
        shares: float32 `(Z, sets)`, the weight of each set of learnable vectors in those of a text.
        slots, attribute: as in `AttributeTexts`.
    """

    tokens: torch.Tensor
    last: torch.Tensor
    shares: torch.Tensor
    slots: torch.Tensor
    attribute: torch.Tensor


class TextReader:
    """Turns label spaces into texts, token ids and embeddings. It holds no tensors.

    Args:
        config: of the model. Its fields are read at each call, because tokenizing changes some of them.
    """

    def __init__(self, config: FocusParConfig) -> None:
        self.config = config
        self.towers = TOWERS[config.vlm_config.model_type]

    @property
    def max_tokens(self) -> int:
        """The largest number of tokens of a text, so that text and learnable vectors fit into the text tower."""
        return self.config.vlm_config.text_config.max_position_embeddings - self.config.num_prompt_tokens

    @property
    def replaces_padding(self) -> bool:
        """Whether the learnable vectors replace padding just before the last position, where SigLIP pools."""
        return self.config.prompt_init == "words" and self.towers.pools_last_place

    def label_texts(self, schema: AttributeSchema) -> list[list[str]]:
        """The text of each label of each attribute, by `config.text_template`."""
        return [
            [
                self.config.text_template.format(
                    region=attribute.region or "person",
                    category=split_words(attribute.name),
                    label=label,
                    prompt=prompt,
                )
                for label, prompt in zip(attribute.labels, attribute.prompts)
            ]
            for attribute in schema
        ]

    def find_shared_start(self, schema: AttributeSchema, processor: FocusParProcessor) -> list[int]:
        """The first tokens that all texts share, at most as many as there are learnable vectors to replace them."""
        if self.replaces_padding:
            return []
        texts = [text for one in self.label_texts(schema) for text in one]
        columns = zip(*(ids[1 : 1 + self.config.num_prompt_tokens] for ids in processor.encode_texts(texts)))
        return [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]

    def tokenize(self, schema: AttributeSchema, processor: FocusParProcessor) -> list[list[list[int]]]:
        """Token ids of the text of each label of each attribute, without padding and without the shared start.

        Raises:
            ValueError: a text has more than `max_tokens` tokens.
        """
        limit = self.max_tokens
        ids = []
        for attribute, texts in zip(schema, self.label_texts(schema)):
            # Allow one token more than fits, so that a text that is too long is noticed and not cut.
            found = processor.encode_texts(texts, limit + 1 + len(self.config.prompt_start_ids or ()))
            ids.append([self._without_start(one) for one in found])
            for text, one in zip(texts, ids[-1]):
                if len(one) > limit:
                    raise ParValueError(
                        f"attribute {attribute.name!r}: the text {text[:60]!r}... has more than {limit} tokens, the "
                        f"most that the text tower holds beside {self.config.num_prompt_tokens} learnable vectors"
                    )
        return ids

    def _without_start(self, ids: list[int]) -> list[int]:
        """The tokens of a text without the shared first words, which the learnable vectors replace. A text that begins
        otherwise is returned as it is."""
        words = self.config.prompt_start_ids or []
        start = self.towers.num_start_tokens
        if ids[start : start + len(words)] != words:
            return ids
        return ids[:start] + ids[start + len(words) :]

    def build_table(self, schema: AttributeSchema, ids: list[list[list[int]]], device: torch.device) -> TextTable:
        """The tensors of a label space, from its token ids as `tokenize` returns them."""
        flat = [one for attribute in ids for one in attribute]
        # A text that is pooled at its own last token does not depend on what follows (CLIP's text tower is causal), so
        # padding to the longest text is enough.
        pools_last_place = self.towers.pools_last_place
        length = self.max_tokens if pools_last_place else max(len(one) for one in flat)
        padding = self.config.text_pad_token_id
        C = schema.max_labels
        table = TextTable(
            tokens=torch.tensor([one + [padding] * (length - len(one)) for one in flat]),
            last=torch.tensor(
                [(length if pools_last_place else len(one)) - 1 + self.config.num_prompt_tokens for one in flat]
            ),
            shares=self._prompt_shares(schema),
            slots=torch.tensor([a * C + k for a, one in enumerate(schema) for k in range(one.num_labels)]),
            attribute=torch.tensor([a for a, one in enumerate(schema) for _ in one.labels]),
        )
        return TextTable(*(one.to(device) for one in table))

    def _prompt_shares(self, schema: AttributeSchema) -> torch.Tensor:
        """`(Z, sets)`: 1 for the attribute's own set of learnable vectors, else equal shares of those of its region,
        else of all."""
        if self.config.prompts_per == "attribute":
            names, regions = zip(*self.config.prompt_attributes)
        else:
            names, regions = [None] * self.config.num_prompt_sets, self.config.prompt_regions
        rows = []
        for one in schema:
            chosen = [name == one.name for name in names]
            if not any(chosen):
                chosen = [region is not None and region == one.region for region in regions]
            if not any(chosen):
                chosen = [True] * len(regions)
            rows += [[mine / sum(chosen) for mine in chosen]] * one.num_labels
        return torch.tensor(rows, dtype=torch.float32)

    def encode(
        self, vlm: PreTrainedModel, prompts: torch.Tensor, table: TextTable, *, in_parts: bool = True
    ) -> torch.Tensor:
        """Embeddings `(Z, E)` of texts with their learnable vectors, from the frozen text tower.

        Args:
            vlm: the backbone.
            prompts: `(sets, m, width)`, the learnable vectors of each region or attribute.
            table: of the label space.
            in_parts: encode some texts at a time to save memory. This saves nothing when gradients are needed, because
                then the states of all texts are stored anyway.
        """
        tensors = (table.tokens, table.last, table.shares)
        if not in_parts:
            return self._encode_part(vlm, prompts, *tensors)
        parts = zip(*(one.split(TEXTS_AT_ONCE) for one in tensors))
        return torch.cat([self._encode_part(vlm, prompts, *part) for part in parts])

    def _encode_part(self, vlm, prompts, tokens, last, shares):
        words = self.towers.embed_words(vlm, tokens)
        if self.config.num_prompt_tokens:
            vectors = torch.einsum("zr,rmw->zmw", shares.to(prompts.dtype), prompts).to(words.dtype)
            # After the start token, in front of the text; or, in place of padding, before the last position.
            start = words.shape[1] - 1 if self.replaces_padding else self.towers.num_start_tokens
            words = torch.cat([words[:, :start], vectors, words[:, start:]], 1)
        return self.towers.encode_words(vlm, words, last)

    def start_of_prompts(self, vlm: PreTrainedModel, prompts: torch.Tensor) -> torch.Tensor:
        """Initial values of the learnable vectors: the embeddings of what they replace (`config.prompt_init`), or
        random ones."""
        vocabulary = self.towers.word_table(vlm)
        if self.config.prompt_start_ids is None:
            return torch.randn_like(prompts) * vocabulary.float().std()
        if self.replaces_padding:
            return vocabulary[self.config.text_pad_token_id].expand_as(prompts)
        # If fewer words are shared than there are vectors, the first vectors start as the token that ends a text,
        # which has no meaning of its own.
        missing = self.config.num_prompt_tokens - len(self.config.prompt_start_ids)
        ends = self.config.label_input_ids[0][0][-1:] * missing
        return vocabulary[[*ends, *self.config.prompt_start_ids]].expand_as(prompts)


class AttributeGuidedExtraction(nn.Module):
    """Cross-attention from texts to the tokens of a picture (FOCUS, equation 5), without biases and residual.

    Value and output projections start as identities, so at first the result for a text is a weighted mean of the
    tokens.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Parameter(torch.empty(width, width)))

    def init_parameters(self) -> None:
        for projection in (self.query, self.key):
            init.xavier_uniform_(projection)
        for projection in (self.value, self.output):
            init.copy_(projection, torch.eye(len(projection)))

    def ask(self, texts: torch.Tensor) -> torch.Tensor:
        """Queries `(H, Z, E / H)` of texts `(Z, E)`. They do not depend on the picture."""
        queries = unit_rms(texts).to(self.query.dtype) @ self.query
        return queries.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

    def forward(
        self, queries: torch.Tensor, texts: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compares each text with the result of its attention to the tokens of each picture.

        The attention result of a text is a sum of H * K vectors, one per head and token, weighted by the attention. If
        H * K <= E, the cosine is computed from inner products of these vectors, and the results `(B, Z, E)` themselves
        are never computed. So hundreds of texts need little time and memory.

        Args:
            queries: `(H, Z, E / H)`, from `ask`.
            texts: `(Z, E)`.
            tokens: `(B, K, E)`.
            mask: bool `(B, K)`, False for tokens that are padding; None: there is no padding.

        Returns:
            Cosine of each text and its attention result, float32 `(B, Z)`, and the attention, float32 `(B, H, Z, K)`.
        """
        B, K, E = tokens.shape
        H = self.num_heads
        tokens = tokens.to(self.key.dtype)
        keys = (tokens @ self.key).view(B, K, H, E // H).transpose(1, 2)
        values = (tokens @ self.value).view(B, K, H, E // H).transpose(1, 2)
        scores = wide(queries @ keys.mT) * (E // H) ** -0.5  # (B, H, Z, K)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        attention = scores.softmax(-1)
        weights = F.dropout(attention, self.dropout, self.training)
        with no_autocast(tokens):
            unit, values = F.normalize(wide(texts), dim=-1), values.to(self.output.dtype)
            if H * K > E:
                result = (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2) @ self.output
                return torch.einsum("bze,ze->bz", F.normalize(wide(result), dim=-1), unit), attention
            parts = wide(values @ self.output.view(H, E // H, E)).flatten(1, 2)  # (B, H * K, E)
            weights = weights.transpose(1, 2).flatten(2)  # (B, Z, H * K)
            product = (weights * (unit @ parts.mT)).sum(-1)
            square = (weights @ (parts @ parts.mT) * weights).sum(-1)
            return product * square.clamp_min(SMALLEST_SQUARE).rsqrt(), attention

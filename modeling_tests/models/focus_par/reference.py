"""FOCUS as its paper writes it: one sequence of patches and mix tokens under a mask, loops over people and texts."""

import torch
from torch.nn import functional as F


def reference_mix_tokens(model, inputs):
    """Mix tokens `(B, K, E)` in the space of the texts: one sequence with the patches through transformers' own
    layers, under the mask of equations 2 and 3."""
    kind = model.config.vlm_config.model_type
    tower = model.vlm.vision_model
    if kind == "siglip2":
        hidden = tower.embeddings(inputs["pixel_values"], inputs["spatial_shapes"])
    else:
        hidden = tower.embeddings(inputs["pixel_values"])
    tokens = model.mix_tokens.expand(len(hidden), -1, -1)
    if kind == "clip":
        hidden, tokens = tower.pre_layrnorm(hidden), tower.pre_layrnorm(tokens)
    first = int(kind == "clip")  # the class token is seen by patches and by itself, never by mix tokens
    length = hidden.shape[1]
    found = []
    for b in range(len(hidden)):
        if kind == "siglip2":
            patches = [n for n in range(length) if inputs["pixel_attention_mask"][b, n]]
        else:
            patches = list(range(first, length))
        sees = torch.zeros(length + tokens.shape[1], length + tokens.shape[1], dtype=torch.bool)
        for row in range(length):
            for column in [*range(first), *patches]:
                sees[row, column] = True
        for k in range(tokens.shape[1]):
            for place, column in enumerate(patches):
                if k < model.config.num_global_tokens:
                    sees[length + k, column] = True
                else:
                    r = model.config.num_regions
                    region = (k - model.config.num_global_tokens) % r
                    # Patch n is the part [n, n + 1) of the picture; region i the part [i, i + 1) * n / r.
                    overlaps = place < (region + 1) * len(patches) / r and place + 1 > region * len(patches) / r
                    sees[length + k, column] = overlaps
        state = torch.cat([hidden[b : b + 1], tokens[b : b + 1]], 1)
        mask = torch.zeros(sees.shape, dtype=state.dtype).masked_fill(~sees, torch.finfo(state.dtype).min)
        for layer in tower.encoder.layers:
            state = layer(state, mask[None, None])
            state = state[0] if isinstance(state, tuple) else state
        state = tower.post_layernorm(state[0])
        if kind == "clip":
            projected = [model.vlm.visual_projection(token) for token in state[length:]]
        else:
            head, projected = tower.head, []
            for k, token in enumerate(state[length:]):
                query = (head.probe[0, 0] + model.probe_share[k] * token)[None, None]
                seen = state[None, :length][:, sees[length + k, :length]]
                pooled = head.attention(query, seen, seen)[0][0, 0]
                projected.append(pooled + head.mlp(head.layernorm(pooled)))
        found.append(torch.stack([one / one.norm() * len(one) ** 0.5 for one in projected]))
    return torch.stack(found)


def reference_scores(model, texts, tokens):
    """Scores `(B, Z)` and attention `(B, Z, K)`, mean over heads, of normalised texts and tokens (equation 5)."""
    block = model.extraction
    E, H = texts.shape[1], block.num_heads
    scores, maps = [], []
    for b in range(len(tokens)):
        row, row_maps = [], []
        for text in texts:
            query = text / text.norm() * E**0.5 @ block.query
            keys, values = tokens[b] @ block.key, tokens[b] @ block.value
            answers, looked = [], []
            for h in range(H):
                part = slice(h * E // H, (h + 1) * E // H)
                looked.append((keys[:, part] @ query[part] / (E // H) ** 0.5).softmax(0))
                answers.append(looked[-1] @ values[:, part])
            found = torch.cat(answers) @ block.output
            row.append(F.cosine_similarity(found, text, dim=0) * model.vlm.logit_scale.exp())
            row_maps.append(torch.stack(looked).mean(0))
        scores.append(torch.stack([one.reshape(()) for one in row]))
        maps.append(torch.stack(row_maps))
    return torch.stack(scores), torch.stack(maps)


def reference_similarity_loss(tokens):
    B, K, _ = tokens.shape
    total = 0.0
    for b in range(B):
        for i in range(K):
            for j in range(K):
                s = F.cosine_similarity(tokens[b, i], tokens[b, j], dim=0).clamp(1e-6, 1 - 1e-6)
                total = total - (s.log() if i == j else (1 - s).log())
    return total / (B * K * K)


def reference_region_loss(maps, regions):
    total, pairs = 0.0, 0
    for one in maps:
        for i, mine in enumerate(regions):
            for j, theirs in enumerate(regions):
                if mine is None or theirs is None:
                    continue
                s = F.cosine_similarity(one[i], one[j], dim=0).clamp(1e-6, 1 - 1e-6)
                total = total - (s.log() if mine == theirs else (1 - s).log())
                pairs += 1
    return total / pairs


def reference_many_to_many(logits, state, group, weight=None):
    """`state` says +1 positive, -1 negative, 0 unknown."""
    rows = []
    for r in range(len(logits)):
        terms = []
        for p in range(logits.shape[1]):
            if state[r][p] != 1:
                continue
            rivals = [n for n in range(logits.shape[1]) if state[r][n] == -1 and group[n] == group[p]]
            competing = torch.stack([logits[r, p], *(logits[r, n] for n in rivals)])
            term = -competing.log_softmax(0)[0]
            terms.append(term if weight is None else term * weight[r][p])
        if terms:
            rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows)

"""VTF in plain loops over people, frames, texts and heads, from the weights of a model."""

import math

import torch


def logits_of(model, tokens, pooled, mask, frame_mask):
    """Nested lists `[person][attribute][label]` from tokens `(B, T, N, D)`, pooled outputs `(B, T, D)` and masks."""
    return [
        _scores_of_person(model, *(one[person] for one in (tokens, pooled, mask, frame_mask)))
        for person in range(len(tokens))
    ]


def _scores_of_person(model, tokens, pooled, mask, frame_mask):
    config = model.config
    frames = [t for t in range(len(tokens)) if frame_mask[t]]
    Z = len(model.text_embeds)
    if config.temporal == "attention":
        states = [_fuse(model, [tokens[t, n] for n in range(tokens.shape[1]) if mask[t, n]]) for t in frames]
        weights = [_weights(model.frame_weights, [states[i][z] for i in range(len(frames))]) for z in range(Z)]
        texts = [_finish(model, sum(weights[z][i] * states[i][z] for i in range(len(frames)))) for z in range(Z)]
    else:
        shares = [1 / len(frames)] * len(frames)
        if config.temporal == "quality":
            shares = _weights(model.frame_weights, [pooled[t] for t in frames])
        merged = []
        for n in range(tokens.shape[1]):
            seen = [i for i, t in enumerate(frames) if mask[t, n]]
            if seen:
                total = sum(shares[i] for i in seen)
                merged.append(sum(shares[i] / total * tokens[frames[i], n] for i in seen))
        texts = [_finish(model, one) for one in _fuse(model, merged)]
        weights = [shares] * Z
    scores = []
    for z in range(Z):
        score = float(model.classifier.weight[z] @ texts[z])
        if model.classifier.bias is not None:
            score += float(model.classifier.bias[z])
        if config.pooled_classifier:
            head = model.pooled_classifier
            for i, t in enumerate(frames):
                unit = (pooled[t] - model.pooled_mean) / model.pooled_std
                own = float(head.weight[z] @ unit) + (0.0 if head.bias is None else float(head.bias[z]))
                score += float(weights[z][i]) * own
        if config.logit_norm == "batch":
            norm = model.score_norm
            unit = (score - float(norm.running_mean[z])) / math.sqrt(float(norm.running_var[z]) + norm.eps)
            score = unit * float(norm.weight[z]) + float(norm.bias[z])
        scores.append(score)
    found, start = [], 0
    for one in model.schema:
        count = 1 if one.is_binary else one.num_labels
        own = scores[start : start + count]
        found.append([0.0, *own] if one.is_binary else own)
        start += count
    return found


def _norm(module, vector):
    mean = vector.mean()
    variance = ((vector - mean) ** 2).mean()
    return (vector - mean) / torch.sqrt(variance + module.eps) * module.weight + module.bias


def _fuse(model, tokens):
    """What stands at the places of the texts after the attention of the last block: a list of vectors."""
    places = [model.project_texts(text) for text in model.text_embeds]
    Z = len(places)
    places += [model.project_frames(token) for token in tokens]
    for block in model.blocks:
        normed = [_norm(block.attention_norm, one) for one in places]
        queries = [block.query(one) for one in normed]
        both = [block.key_value(one) for one in normed]
        width = len(queries[0])
        keys, values = [one[:width] for one in both], [one[width:] for one in both]
        size = width // block.num_heads
        after = []
        for place, query in zip(places, queries):
            parts = []
            for head in range(block.num_heads):
                part = slice(head * size, (head + 1) * size)
                scores = torch.stack([query[part] @ key[part] / math.sqrt(size) for key in keys])
                parts.append(sum(share * value[part] for share, value in zip(scores.softmax(0), values)))
            after.append(place + block.output(torch.cat(parts)))
        places = after
        if block is not model.blocks[-1]:
            places = [place + block.mlp(_norm(block.mlp_norm, place)) for place in places]
    return places[:Z]


def _finish(model, place):
    block = model.blocks[-1]
    return _norm(model.norm, place + block.mlp(_norm(block.mlp_norm, place)))


def _weights(module, vectors):
    unit = [_norm(module.norm, one) for one in vectors]
    mean = sum(unit) / len(unit)
    hidden = [torch.nn.functional.gelu(module.hidden(torch.cat([one, one - mean]))) for one in unit]
    return torch.stack([module.score @ one for one in hidden]).softmax(0).tolist()

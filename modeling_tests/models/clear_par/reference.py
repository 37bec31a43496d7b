"""CLEAR by its equations, in plain loops over float64 numbers; slow and easy to check against the paper."""

import math

import torch


__all__ = ["binary_cross_entropy", "channel_attention", "cross_fusion", "layer_norm", "logits_of"]


def linear(layer, row):
    """`layer` applied to a list of numbers."""
    weight = layer.weight.tolist()
    bias = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    return [sum(w * x for w, x in zip(ws, row)) + b for ws, b in zip(weight, bias)]


def softmax(scores):
    highest = max(scores)
    parts = [math.exp(one - highest) for one in scores]
    return [one / sum(parts) for one in parts]


def dot(left, right):
    return sum(x * y for x, y in zip(left, right))


def channel_attention(module, tokens):
    """Equation 2 for one picture: `tokens` is a list of N rows of C numbers."""
    N, C = len(tokens), len(tokens[0])
    channels = [[tokens[n][c] for n in range(N)] for c in range(C)]  # C rows of N
    query = [linear(module.query, row) for row in channels]
    key = [linear(module.key, row) for row in channels]
    if module.kind == "paper":  # as printed: tokens attend to tokens, and the values are the input
        result = []
        for n in range(N):
            weights = softmax([sum(query[c][n] * key[c][m] for c in range(C)) / math.sqrt(C) for m in range(N)])
            result.append([tokens[n][c] + sum(weights[m] * tokens[m][c] for m in range(N)) for c in range(C)])
        return result
    value = [linear(module.value, row) for row in channels]
    attended = []  # C rows of N
    for c in range(C):
        weights = softmax([dot(query[c], key[d]) / math.sqrt(N) for d in range(C)])
        attended.append([sum(weights[d] * value[d][n] for d in range(C)) for n in range(N)])
    if module.kind == "code":  # written token after token, read channel after channel
        flat = [attended[c][n] for n in range(N) for c in range(C)]
        attended = [flat[c * N : (c + 1) * N] for c in range(C)]
    return [[tokens[n][c] + attended[c][n] for c in range(C)] for n in range(N)]


def cross_fusion(module, vector, tokens):
    """Equation 3 for one picture: a vector and the tokens of the other branch."""
    aligned = vector if isinstance(module.align, torch.nn.Identity) else linear(module.align, vector)
    everything = [aligned, *tokens]
    query = linear(module.query, aligned)
    keys = [linear(module.key, row) for row in everything]
    values = [linear(module.value, row) for row in everything]
    size = len(aligned) // module.num_heads
    result = []
    for head in range(module.num_heads):
        part = slice(head * size, (head + 1) * size)
        weights = softmax([dot(query[part], key[part]) / math.sqrt(size) for key in keys])
        result += [sum(w * value[i] for w, value in zip(weights, values)) for i in range(part.start, part.stop)]
    if module.projection == "before":
        return linear(module.output, [x + y for x, y in zip(aligned, result)])
    return [x + y for x, y in zip(vector, linear(module.output, result))]


def layer_norm(module, row):
    """Equation 4."""
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    scale, shift = module.weight.tolist(), module.bias.tolist()
    return [(x - mean) / math.sqrt(variance + module.eps) * a + b for x, a, b in zip(row, scale, shift)]


def swin_tokens(model, pixel_values):
    """The Swin branch of equation 1: `(B, N, E)` after the last LayerNorm."""
    swin = model.swin
    states, grid = swin.embeddings(pixel_values)
    for casa, stage in zip(model.casa, swin.encoder.layers):
        if not isinstance(casa, torch.nn.Identity):
            states = torch.tensor([channel_attention(casa, one) for one in states.tolist()], dtype=states.dtype)
        states = stage(states, grid, always_partition=True)[0]
        grid = (math.ceil(grid[0] / 2), math.ceil(grid[1] / 2))
    return swin.layernorm(states)


@torch.no_grad()
def logits_of(model, pixel_values):
    """Equations 1 to 5 for a float64 model: per person, per attribute, the scores of its labels as a list."""
    config, answers = model.config, []
    for pixels in pixel_values:
        parts = []
        if config.uses_vit:
            states = model.vit(pixels[None]).last_hidden_state[0].tolist()
            vit, patches = states[0], states[1:]
        if config.uses_swin:
            tokens = swin_tokens(model, pixels[None])[0].tolist()
            swin = [sum(column) / len(tokens) for column in zip(*tokens)]
            if config.swin_pooling == "flatten":
                swin = linear(model.swin_pool, [x for row in tokens for x in row])
        if config.crosses:
            swin, vit = cross_fusion(model.svcf, swin, patches), cross_fusion(model.vscf, vit, tokens)
        if config.uses_swin:
            parts += layer_norm(model.swin_norm, swin)
        if config.uses_vit:
            parts += layer_norm(model.vit_norm, vit)
        scores = iter(linear(model.classifier, parts))
        answers.append(
            [[0.0, next(scores)] if one.is_binary else [next(scores) for _ in one.labels] for one in model.schema]
        )
    return answers


def binary_cross_entropy(answers, labels):
    """Equation 6, mean over people and attributes, from the scores of binary attributes."""
    total = count = 0
    for scores, truths in zip(answers, labels):
        for (_, z), y in zip(scores, truths):
            p = 1 / (1 + math.exp(-z))
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
            count += 1
    return total / count

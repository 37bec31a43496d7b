"""Equations 9-16 of VLM-PAR as they stand: a loop over people, attributes and heads, nothing folded."""

import torch


def reference_logits(model, patch_embeds, image_embeds, patch_mask):
    """Logits (B, A, C) of `model` in the dtype of its parameters; -1e4 past an attribute's own labels."""
    heads = model.attribute_heads
    schema, config = model.schema, model.config
    D, H = heads.width, heads.num_heads
    E = D // H
    states = model._read_questions() if config.num_question_prompts else getattr(model, "question_states", None)
    rows = []
    for b in range(len(patch_embeds)):
        patches = patch_embeds[b][patch_mask[b]]  # (N, D)
        row = []
        for i, attribute in enumerate(schema):
            if config.fusion == "none":
                fused = patches
            else:
                question = states[i][model.question_mask[i]]  # (T, text width)
                if config.fusion == "image_to_text":
                    asks, answers = patches, question
                else:
                    asks, answers = question.mean(0, keepdim=True), patches
                Q, K, V = asks @ heads.query[i], answers @ heads.key[i], answers @ heads.value[i]  # equation 9
                found = []
                for h in range(H):
                    part = slice(h * E, (h + 1) * E)
                    scores = Q[:, part] @ K[:, part].T / E**0.5
                    found.append(scores.softmax(-1) @ V[:, part])  # equation 10
                a = torch.cat(found, -1) @ heads.output[i]  # equation 11
                residual = patches if config.fusion == "image_to_text" else patches.mean(0, keepdim=True)
                fused = a + residual
            h = torch.nn.functional.layer_norm(  # equation 12
                fused, (D,), heads.norm_weight[i], heads.norm_bias[i], config.layer_norm_eps
            )
            pooled = (h.mean(0) - heads.pooled_mean) / heads.pooled_std
            K_i = attribute.num_labels
            z = pooled @ heads.classifier_weight[i, :, :K_i] + heads.classifier_bias[i, :K_i]  # equation 13
            if config.pooled_classifier:
                image = (image_embeds[b] - heads.image_mean) / heads.image_std
                z = z + image @ heads.image_classifier_weight[i, :, :K_i]
            if config.alignment == "logit":
                image = image_embeds[b] / image_embeds[b].norm()
                prompts = model.prompt_embeds[i, :K_i]
                prompts = prompts / prompts.norm(dim=-1, keepdim=True)
                zero_shot = (prompts @ image) * model.vlm.logit_scale.exp() + model.vlm.logit_bias
                z = z + heads.gate[i] * zero_shot
            row.append(torch.cat([z, z.new_full((schema.max_labels - K_i,), -1e4)]))
        rows.append(torch.stack(row))
    return torch.stack(rows)

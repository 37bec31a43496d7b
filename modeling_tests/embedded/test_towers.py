import numpy as np
import torch

from vlm_par_hf.embedded.towers import build_model, patch_values, run_vision, sine_positions


def test_patches_are_those_of_the_image_processor():
    from PIL import Image
    from transformers import Siglip2ImageProcessorPil

    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
    processor = Siglip2ImageProcessorPil(max_num_patches=8, patch_size=16)
    wanted = processor([Image.fromarray(one) for one in pixels], return_tensors="pt")
    assert wanted["spatial_shapes"].tolist() == [[4, 2]] * 2
    torch.testing.assert_close(patch_values(pixels, (4, 2)), wanted["pixel_values"])


def test_the_tower_as_trained_is_the_tower_as_used():
    torch.manual_seed(0)
    model = build_model(300, width=32, depth=1).eval()
    values = patch_values(np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8), (4, 2))
    pooled, patches = run_vision(model, values, (4, 2))
    output = model.get_image_features(
        pixel_values=values, pixel_attention_mask=torch.ones(2, 8), spatial_shapes=torch.tensor([[4, 2]] * 2)
    )
    torch.testing.assert_close(pooled, output.pooler_output)
    torch.testing.assert_close(patches, output.last_hidden_state)


def test_a_tower_that_is_shown_some_patches():
    torch.manual_seed(0)
    model = build_model(300, width=32, depth=1).eval()
    values = torch.randn(2, 8, 768)
    everything = run_vision(model, values, (4, 2))
    order = torch.tensor([[7, 1, 0, 2, 3, 4, 5, 6]] * 2)
    pooled, patches = run_vision(model, values, (4, 2), kept=order)
    torch.testing.assert_close(pooled, everything[0])
    torch.testing.assert_close(patches, everything[1][:, order[0]])
    assert run_vision(model, values, (4, 2), kept=order[:, :3])[1].shape == (2, 3, 32)


def test_queries_and_keys_start_near_the_identity():
    torch.manual_seed(0)
    attention = build_model(300, width=64, depth=1).vision_model.encoder.layers[0].self_attn
    product = attention.q_proj.weight[:32].T @ attention.k_proj.weight[:32]
    assert product.diagonal().mean() > 5 * product.fill_diagonal_(0).abs().mean()
    product = attention.out_proj.weight @ attention.v_proj.weight
    assert -0.6 < product.diagonal().mean() < -0.2


def test_positions_differ():
    positions = sine_positions(12, 64)
    assert positions.shape == (144, 64)
    distances = torch.cdist(positions, positions).fill_diagonal_(9)
    assert distances.min() > 0.3

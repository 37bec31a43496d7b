import numpy as np
import torch

from vlm_par_hf.embedded.texts import build_targets, build_tokenizer, sample_texts, sigmoid_loss, tokenize
from vlm_par_hf.embedded.towers import build_model
from vlm_par_hf.labels.tables import get_schema


def test_texts_say_what_the_labels_say():
    schema = get_schema("pa100k")  # has no captions of its own
    labels = np.zeros((40, len(schema)), np.int64)
    labels[:, schema.index("Female")] = 1
    labels[0, 1:] = -100
    texts, mentioned = sample_texts(labels, schema, np.random.default_rng(0))
    assert (mentioned.sum(1) == 1).all()
    for text, row, said in zip(texts, labels, mentioned, strict=True):
        attribute = schema[int(said.argmax())]
        label = row[said.argmax()]
        assert label >= 0
        assert text in {
            attribute.prompts[label].lower(), f"{attribute.question} {attribute.labels[label]}".lower(),
        }  # fmt: skip
    drawn = get_schema("synthetic")
    texts, mentioned = sample_texts(np.zeros((40, len(drawn)), np.int64), drawn, np.random.default_rng(0))
    assert (mentioned.sum(1) > 1).any(), "captions tell several attributes"


def test_a_text_is_true_false_or_undecided():
    labels = np.array([[1, 0], [1, 1], [-100, 1]])
    mentioned = np.array([[True, False], [True, True], [False, True]])
    targets, mask = build_targets(labels, mentioned)
    # Text 0 says "1" of the first attribute, text 1 says "1, 1", text 2 says "1" of the second.
    assert targets.tolist() == [[1, 1, -1], [-1, 1, -1], [-1, 1, 1]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]


def test_sigmoid_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    model = build_model(300, width=32, depth=1)
    images, texts = torch.randn(3, 8), torch.randn(2, 8)
    targets = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    total = 0.0
    for i in range(2):
        for j in range(3):
            cosine = torch.cosine_similarity(texts[i], images[j], dim=0)
            logit = cosine * model.logit_scale.exp() + model.logit_bias
            total -= mask[i, j] * torch.log(torch.sigmoid(targets[i, j] * logit))
    torch.testing.assert_close(sigmoid_loss(images, texts, model, targets, mask)[()], (total / 2)[0])


def test_the_tokenizer_ends_texts_and_pads_them():
    tokenizer = build_tokenizer(400)
    ids = tokenize(tokenizer, ["a person", "A PERSON wearing a hat"])
    assert ids.shape == (2, 64)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == "a person"
    assert (ids[0] == tokenizer.eos_token_id).sum() == 1
    assert ids.max() < 400

"""The retrieval head: its loss and similarity beside plain loops, shapes, saving, and what is refused."""

import math
import re

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

import vlm_par_hf  # noqa: F401  (registers the head)
from modeling_tests.tiny import tiny_clear_model, tiny_clear_processor, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.errors import ParError
from vlm_par_hf.retrieval.configuration_retriever import RetrieverConfig
from vlm_par_hf.retrieval.modeling_retriever import AttributeRetriever, margin_loss
from vlm_par_hf.retrieval.queries import Query
from vlm_par_hf.retrieval.scoring import label_weights, weights_of_labels
from vlm_par_hf.retrieval.templates import find_template
from vlm_par_hf.retrieval.texts import BackboneTexts, encode_free_text


SCHEMA = tiny_schema(kway=True)
CATEGORIES = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 2, 1], [1, 1, 1, 3, 2], [0, 1, -100, 1, 0]])
NUM_LABELS = sum(SCHEMA.num_labels)


@pytest.fixture(scope="module")
def encoder():
    return BackboneTexts(tiny_model("kway"), tiny_processor())


def tiny_retriever(encoder=None, **settings):
    config = {"image_width": 6, "embedding_size": 8, "text_width": 32, "text_length": 64, "num_categories": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        retriever = AttributeRetriever(RetrieverConfig(attributes=SCHEMA, **{**config, **settings})).eval()
    retriever.categories.copy_(torch.from_numpy(CATEGORIES))
    if encoder is not None:
        retriever.set_text_encoder(encoder)
    return retriever


def inputs(count=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=random)


def angle(a, b):
    a, b = torch.as_tensor(a).tolist(), torch.as_tensor(b).tolist()
    dot = sum(x * y for x, y in zip(a, b))
    return math.acos(dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b)))


def loss_by_loop(people, queries, target, scale, margin, ignored=None):
    """Equation 8, with the margin on the positive query only."""
    total = 0.0
    for row, person in enumerate(people):
        terms = []
        for k, query in enumerate(queries):
            if k != target[row] and ignored is not None and ignored[row][k]:
                continue
            terms.append((k, scale * math.cos(angle(person, query) + (margin if k == target[row] else 0))))
        positive = dict(terms)[int(target[row])]
        total -= positive - math.log(sum(math.exp(value) for _, value in terms))
    return total / len(people)


class TestLoss:
    def test_margin_loss_is_the_loop(self):
        random = torch.Generator().manual_seed(1)
        people, queries = (torch.nn.functional.normalize(torch.randn(n, 4, generator=random), dim=-1) for n in (5, 3))
        target, ignored = torch.tensor([0, 1, 2, 2, 0]), torch.rand(5, 3, generator=random) < 0.4
        for skipped in (None, ignored):
            found = margin_loss(people, queries, target, scale=12.0, margin=0.2, ignored=skipped)
            assert float(found) == pytest.approx(loss_by_loop(people, queries, target, 12, 0.2, skipped), rel=1e-5)

    def test_the_whole_loss_is_equation_10(self, encoder):
        retriever, labels = tiny_retriever(encoder), torch.from_numpy(CATEGORIES)[[1, 0, 2, 3]]
        found = retriever(inputs(), labels=labels).loss
        vectors = retriever.visual_adapter(inputs())
        # The fourth category does not know the third attribute; nobody else agrees with it in the others.
        weights = torch.from_numpy(weights_of_labels(CATEGORIES, SCHEMA))
        hard = retriever.hard_adapter(weights)
        words = retriever.template.weights(weights.numpy())
        slots = [word.slot for word in retriever.template.words]
        soft = []
        for row in words:
            filled = torch.zeros(len(SCHEMA), 32)
            for share, slot, vector in zip(row, slots, retriever.word_embeds):
                filled[slot] += float(share) * vector
            soft.append(retriever.soft_adapter(filled.flatten()))
        halves = vectors[:, :4], vectors[:, 4:]
        expected = sum(
            weight * loss_by_loop(half, queries, [1, 0, 2, 3], 12, 0.2)
            for weight, half, queries in ((0.3, halves[0], hard), (0.7, halves[1], soft))
        )
        assert float(found) == pytest.approx(expected, rel=1e-4)

    def test_open_attributes_merge_categories(self, encoder):
        retriever, labels = tiny_retriever(encoder), torch.from_numpy(CATEGORIES)[[1, 2]]
        opened = torch.tensor([False, True, True, True, True])  # only the first is asked: both people are one category
        found = float(retriever(inputs(2), labels=labels, open_attributes=opened).loss.detach())
        both = torch.from_numpy(np.where(opened.numpy(), -100, CATEGORIES[:2]))
        vectors = retriever.visual_adapter(inputs(2))
        asked = torch.from_numpy(weights_of_labels(both.numpy(), SCHEMA))
        expected = 0.3 * loss_by_loop(vectors[:, :4], retriever.hard_adapter(asked), [1, 1], 12, 0.2)
        expected += 0.7 * loss_by_loop(vectors[:, 4:], retriever._ask(asked, "soft"), [1, 1], 12, 0.2)
        assert found == pytest.approx(expected, rel=1e-4)

    def test_people_of_no_category_are_refused(self, encoder):
        with pytest.raises(ValueError, match="row 1 are no category"):
            tiny_retriever(encoder)(inputs(2), labels=torch.tensor([CATEGORIES[0].tolist(), [1] * 5]))

    def test_gradients_reach_every_parameter(self, encoder):
        retriever = tiny_retriever(encoder)
        retriever(inputs(), labels=torch.from_numpy(CATEGORIES)).loss.backward()
        assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in retriever.parameters())


class TestSimilarity:
    def test_it_is_the_mean_of_two_cosines(self, encoder):
        retriever = tiny_retriever(encoder)
        queries = [Query.from_dict({"Hat": "yes", "UpperColor": ["red", "blue"]}, SCHEMA)]
        people = retriever.embed_images(inputs())
        asked = {part: retriever.embed_queries(queries, part=part) for part in ("both", "hard", "soft")}
        vectors, weights = retriever.visual_adapter(inputs()), torch.from_numpy(label_weights(queries, SCHEMA))
        for row in range(4):
            cosines = [
                math.cos(angle(vectors[row, :4], retriever.hard_adapter(weights)[0])),
                math.cos(angle(vectors[row, 4:], retriever._ask_slots(weights)[0])),
            ]
            assert float(people[row] @ asked["both"][0]) == pytest.approx(sum(cosines) / 2, abs=1e-5)
            assert float(people[row] @ asked["hard"][0]) == pytest.approx(cosines[0] / 2**0.5, abs=1e-5)
            assert float(people[row] @ asked["soft"][0]) == pytest.approx(cosines[1] / 2**0.5, abs=1e-5)
        assert people.shape == (4, 8) and torch.allclose(people.norm(dim=1), torch.ones(4))

    def test_queries_and_their_label_vectors_are_one(self, encoder):
        retriever = tiny_retriever(encoder)
        vectors = CATEGORIES[1:3]
        queries = [Query.from_labels(row, SCHEMA) for row in vectors]
        torch.testing.assert_close(retriever.embed_queries(queries), retriever.embed_queries(vectors))

    def test_probabilities_are_a_part_of_the_vector(self, encoder):
        retriever = tiny_retriever(encoder, uses_probabilities=True)
        mask = SCHEMA.label_mask()
        probabilities = np.where(mask, 1 / mask.sum(1, keepdims=True), 0)[None].repeat(4, 0)
        flat = probabilities[:, mask]
        torch.testing.assert_close(
            retriever.embed_images(inputs(), probabilities), retriever.embed_images(inputs().numpy(), flat)
        )
        assert not torch.equal(retriever.embed_images(inputs(), flat), retriever.embed_images(inputs(), 1 - flat))
        with pytest.raises(ValueError, match="probabilities is None"):
            retriever.embed_images(inputs())
        with pytest.raises(ValueError, match="probabilities have shape"):
            retriever.embed_images(inputs(), flat[:, 1:])

    def test_inputs_are_standardised(self, encoder):
        retriever = tiny_retriever(encoder)
        plain = retriever.embed_images(inputs())
        retriever.fit_inputs(inputs() * 3 + 5)
        scaled = retriever.embed_images(inputs() * 3 + 5)
        retriever.fit_inputs(inputs())
        torch.testing.assert_close(scaled, retriever.embed_images(inputs()))
        assert not torch.allclose(scaled, plain)


class TestTextForms:
    def test_each_form_gives_queries(self, encoder):
        found = {}
        for form, width in (("slots", 32), ("words", 24), ("flatten", 24)):
            settings = {"text_form": form, "text_width": width, "template": "prompts"}
            retriever = tiny_retriever(encoder, **settings, **({"num_categories": 4}))
            found[form] = retriever.embed_queries(CATEGORIES[:2], part="soft")
            assert found[form].shape == (2, 8) and not torch.allclose(found[form][0], found[form][1])

    def test_flatten_needs_its_encoder_and_room(self, encoder):
        retriever = tiny_retriever(text_form="flatten", text_width=24)
        with pytest.raises(ValueError, match="has no text encoder"):
            retriever.embed_queries(CATEGORIES[:1])
        retriever = tiny_retriever(encoder, text_form="flatten", text_width=24, text_length=4)
        with pytest.raises(ValueError, match="text_length=4"):
            retriever.embed_queries(CATEGORIES[:1])

    def test_another_width_is_refused(self, encoder):
        with pytest.raises(ValueError, match="text_width=16, and the encoder gives 32"):
            tiny_retriever(encoder, text_width=16)

    def test_a_recogniser_without_texts(self):
        with pytest.raises(ValueError, match="has no text tower"):
            BackboneTexts(tiny_clear_model(), tiny_clear_processor())

    def test_free_text_is_of_unit_length(self):
        model = tiny_model("kway")
        found = encode_free_text(["a red hat", "nobody"], model, tiny_processor())
        assert found.shape == (2, 32) and torch.allclose(found.norm(dim=1), torch.ones(2))
        with pytest.raises(ValueError, match="empty text"):
            encode_free_text(["  "], model, tiny_processor())


class TestParts:
    @pytest.mark.parametrize(("weights", "parts"), [((0.3, 0.0), ("hard",)), ((0.0, 0.7), ("soft",))])
    def test_one_kind_of_query_alone(self, encoder, weights, parts):
        retriever = tiny_retriever(encoder, hard_weight=weights[0], soft_weight=weights[1])
        assert retriever.parts == parts
        assert retriever(inputs(), labels=torch.from_numpy(CATEGORIES)).loss > 0
        with pytest.raises(ValueError, match="was trained for"):
            retriever.embed_queries(CATEGORIES[:1], part="both")


class TestSaving:
    def test_round_trip(self, encoder, tmp_path):
        retriever = tiny_retriever(encoder)
        retriever.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path)
        assert type(loaded) is AttributeRetriever and not loaded.training
        assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
        torch.testing.assert_close(loaded.embed_queries(CATEGORIES), retriever.embed_queries(CATEGORIES))
        torch.testing.assert_close(loaded.embed_images(inputs()), retriever.embed_images(inputs()))
        assert (tmp_path / "modeling_par_retriever.py").is_file() and (tmp_path / "model.safetensors").is_file()
        assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]

    def test_another_model_is_refused(self, tmp_path):
        tiny_model().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="holds a 'vlm_par' model, expected 'par_retriever'"):
            AttributeRetriever.from_pretrained(tmp_path)
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            AttributeRetriever.from_pretrained(tmp_path / "none")

    def test_missing_tensors_are_named(self, encoder, tmp_path):
        tiny_retriever(encoder, hard_weight=0.0).save_pretrained(tmp_path)
        text = (tmp_path / "config.json").read_text()
        (tmp_path / "config.json").write_text(text.replace('"hard_weight": 0.0', '"hard_weight": 0.3'))
        with pytest.raises(ValueError, match="lacks 6 tensors"):
            AttributeRetriever.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embedding_size": 7}, "must be even"),
        ({"text_form": "mean"}, "expected one of slots"),
        ({"template": "mine"}, "expected one of None, prompts, paper"),
        ({"image_width": 0}, "image_width must be a whole number"),
        ({"scale": 0}, "scale must be a number from 0.001"),
        ({"hard_weight": 0, "soft_weight": 0}, "nothing to train"),
        ({"num_categories": -1}, "num_categories must be"),
        ({"attributes": None}, "attributes is None"),
        ({"template": "paper"}, "the paper has sentences for the attributes of"),
    ],
)
def test_refused_settings(settings, words):
    with pytest.raises(ParError, match=re.escape(words)):
        AttributeRetriever(RetrieverConfig(**{"attributes": SCHEMA, **settings}))


def test_image_vectors_of_another_recogniser(encoder):
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(B, 6\)"):
        tiny_retriever(encoder).embed_images(np.zeros((2, 5)))


class TestTemplates:
    def test_slots_add_up_and_open_ones_are_empty(self):
        template = find_template(SCHEMA)
        weights = template.weights(label_weights([Query.from_dict({"UpperColor": ["red", "blue"]}, SCHEMA)], SCHEMA))
        filled = {template.words[w].text: float(weights[0, w]) for w in np.flatnonzero(weights[0])}
        assert filled == {"a person in red upper clothes": 0.5, "a person in blue upper clothes": 0.5}

    def test_the_sentence_of_the_paper(self):
        from vlm_par_hf.labels.tables import get_schema

        schema = get_schema("pa100k")
        template = find_template(schema)
        query = Query.parse("hat, glasses, no backpack, trousers, back", schema)
        (sentence,) = template.sentences(label_weights([query], schema))
        assert sentence == (
            "this is a photo of taken from back, is dressed in trousers is wearing hat and glasses, and no backpack"
        ).replace("is dressed in ", "")
        assert find_template(schema, "prompts").name == "prompts"
        assert find_template(get_schema("rendered")).name == "prompts"

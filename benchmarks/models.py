"""The models that the benchmarks of speed measure: base size, random weights, any number of attributes.

The size is that of google/siglip2-base-patch16-naflex. Speed does not depend on the values of the weights, so nothing
is downloaded.
"""

import torch

from vlm_par_hf import AttributeSchema, VlmParConfig, VlmParModel, get_schema


LONGEST_QUESTION = 11  # token ids; with the last position 12 states
WORDS = ("a", "long", "dark", "coat", "today")


def numbered_schema(count: int) -> AttributeSchema:
    """`count` binary attributes with questions of realistic length."""
    return AttributeSchema(
        [
            {
                "name": f"Attribute{number}",
                "question": "is the person wearing " + " ".join(WORDS[: 1 + number % 5]),
                "prompts": [f"a person without thing {number}", f"a person with thing {number}"],
            }
            for number in range(count)
        ]
    )


def schema_of(count: int) -> AttributeSchema:
    """PA-100K's own schema for 26 attributes, a numbered one for any other count."""
    return get_schema("pa100k") if count == 26 else numbered_schema(count)


def base_model(
    schema: AttributeSchema, fusion: str, alignment: str = "none", question_length: int | None = None
) -> VlmParModel:
    """A base-size model with random weights.

    Token ids are made up, because offline there is no tokenizer. A question has `question_length` of them; without
    that, its number of words plus two, at most `LONGEST_QUESTION`.
    """
    torch.manual_seed(0)
    lengths = [question_length or min(LONGEST_QUESTION, len(question.split()) + 2) for question in schema.questions]
    config = VlmParConfig(
        attributes=schema,
        fusion=fusion,
        alignment=alignment,
        pooled_classifier=alignment != "none",  # the plain form that is compared has neither
        question_input_ids=[[5 + (7 * row + i) % 900 for i in range(n)] for row, n in enumerate(lengths)],
        prompt_input_ids=[[[5 + (3 * row + i) % 900 for i in range(9)] for _ in one.prompts]
                          for row, one in enumerate(schema)],
    )  # fmt: skip
    model = VlmParModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.attribute_heads.named_parameters():
            if name.startswith("norm"):
                continue
            parameter.normal_(std=0.03)
    model.encode_questions()
    return model

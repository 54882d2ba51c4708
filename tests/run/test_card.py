"""The model card: what it says of a run, and what it keeps to itself."""

import json
from dataclasses import asdict, replace

import yaml

from mbs_ray.run.card import DENSE_FORMAT, PACKED_FORMAT, CardFacts, EvaluationScores, model_card

FACTS = CardFacts(
    model="bloom-560m",
    base_model="bigscience/bloom-560m",
    languages=["en", "no", "zh-Hans", "zh-Hant", "sw"],
    method={"name": "gptq", "bits": 4, "group_size": 32, "symmetric": False, "block_size": None},
    sampling={"name": "temperature", "alpha": 0.3},
    allocation={"sw": 2, "en": 1200},
    sequence_length=2048,
    seed=7,
    calibration="0123abcd",
    evaluation=[
        EvaluationScores(
            "udhr",
            {"sw": (20.0, 40.0), "en": (10.0, 20.0)},
            {"sw": (1.0, 1.25), "en": (0.5, 0.75)},
            {"sw": (38.5, 41.25)},
            {"sw": (1.9, 2.1), "geomean": (1.95, 2.0625)},
        ),
        EvaluationScores("held-out", {"en": (8.0, 9.0)}, {"en": (0.4, 0.5)}),
    ],
    version="0.1.0",
)


def front_matter(card: str) -> dict:
    _, matter, _ = card.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_front_matter_is_yaml_with_hub_language_codes_base_model_and_tags() -> None:
    matter = front_matter(model_card(FACTS, PACKED_FORMAT))
    assert matter["language"] == ["en", "no", "zh", "sw"]
    assert matter["base_model"] == "bigscience/bloom-560m"
    assert {"gptq", "compressed-tensors", "mbs_ray"} <= set(matter["tags"])
    assert "base_model" not in front_matter(model_card(replace(FACTS, base_model=None), DENSE_FORMAT))


def test_the_card_says_how_the_checkpoint_was_made_and_what_every_language_lost() -> None:
    card = model_card(FACTS, DENSE_FORMAT)
    lines = card.splitlines()
    assert "- method: gptq: bits 4, group_size 32, symmetric False" in lines
    assert "- sampling: temperature: alpha 0.3" in lines
    assert "- calibration: 1,202 segments of 2,048 tokens, seed 7, fingerprint `0123abcd`" in lines
    assert lines.index("| en | 1,200 |") + 1 == lines.index("| sw | 2 |")
    assert lines.index("| en | 10.000 | 20.000 | 2.000 | 0.5000 | 0.7500 |") + 1 == lines.index(
        "| sw | 20.000 | 40.000 (38.500 … 41.250) | 2.000 (1.900 … 2.100) | 1.0000 | 1.2500 |"
    )
    assert "Geometric mean of the increase: 2.000 (1.950 … 2.062)." in card
    udhr, held_out = card.split("## Perplexity: ")[1:]
    assert "95 % intervals" in udhr and "95 % intervals" not in held_out
    assert card.index("## Perplexity: udhr") < card.index("## Perplexity: held-out")
    assert "- made with mbs_ray 0.1.0" in lines


def test_groups_of_languages_have_means_of_their_own() -> None:
    udhr = replace(FACTS.evaluation[0], increase_interval={"low-share": (1.95, 2.0625)})
    grouped = replace(FACTS, groups={"latin": ["en", "sw"], "low-share": ["sw"]}, evaluation=[udhr])
    lines = model_card(grouped, DENSE_FORMAT).splitlines()
    assert "- languages in Latin script: 2.000" in lines
    assert "- languages with less than 1 % of the training data: 2.000 (1.950 … 2.062)" in lines
    assert "by group" not in model_card(FACTS, DENSE_FORMAT)
    assert CardFacts.from_json(json.loads(json.dumps(asdict(grouped)))).groups == grouped.groups


def test_a_fitted_run_says_so_and_no_other() -> None:
    assert "- linears fitted to the dense model: strength auto" in model_card(
        replace(FACTS, fit_to="auto"), DENSE_FORMAT
    )
    assert "fitted" not in model_card(FACTS, DENSE_FORMAT)


def test_who_reads_the_packed_form_is_told_how() -> None:
    card = model_card(FACTS, PACKED_FORMAT, "vllm")
    assert "vllm serve" in card and "from_pretrained" not in card
    assert "compressed-tensors`" in model_card(FACTS, PACKED_FORMAT)


def test_how_to_load_is_three_lines_that_python_takes() -> None:
    for form in (DENSE_FORMAT, PACKED_FORMAT):
        code = model_card(FACTS, form).split("```python\n")[1].split("```")[0]
        assert len(code.splitlines()) == 3
        compile(code, "card", "exec")


def test_facts_that_went_through_json_give_the_same_card() -> None:
    stored = CardFacts.from_json(json.loads(json.dumps(asdict(FACTS), sort_keys=True)))
    for form in (DENSE_FORMAT, PACKED_FORMAT):
        assert model_card(stored, form) == model_card(FACTS, form)


def test_a_run_without_evaluation_has_a_card_without_perplexities() -> None:
    assert "erplexity" not in model_card(replace(FACTS, evaluation=[]), DENSE_FORMAT)


def test_segments_for_starved_experts_are_counted_by_language_and_not_told_where_there_are_none() -> None:
    line = "- for experts that too few tokens reach, 3 of the segments: en 1, sw 2"
    assert line in model_card(replace(FACTS, top_up={"sw": 2, "en": 1}), DENSE_FORMAT).splitlines()
    assert "experts" not in model_card(FACTS, DENSE_FORMAT)
    assert model_card(replace(FACTS, top_up={}), DENSE_FORMAT) == model_card(FACTS, DENSE_FORMAT)

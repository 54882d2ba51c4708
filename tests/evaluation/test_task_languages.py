"""Languages of tasks: what is read from every multilingual name of lm-eval, against the data set that it opens."""

import re
from collections.abc import Iterator
from pathlib import Path

import langcodes
import pytest
from lm_eval import tasks as harness

from mbs_ray.evaluation.task_languages import UNDETERMINED, task_language

#: Folders of lm-eval whose tasks each have one language, which is the name of its data set.
FAMILIES = (
    "afrimgsm", "afrimmlu", "afrixnli", "afrobench", "arc_mt", "belebele", "copal_id", "crows_pairs", "eus_exams",
    "global_mmlu", "global_piqa", "include", "lambada_multilingual", "mela", "mgsm", "mmlu_prox", "multiblimp", "okapi",
    "openai-mmmlu", "paws-x", "truthfulqa-multi", "xcopa", "xnli", "xquad", "xstorycloze", "xwinograd",
)  # fmt: skip
#: What data sets call otherwise than BCP 47 does.
OTHERWISE = {
    "zh": "zh-Hans",
    "jp": "ja",
    "ara": "ar",
    "chinese": "zh-Hans",
    "north macedonian": "mk",
    "swa": "sw",
    "pidgin": "pcm",
}
#: Of a translation, which has two languages.
TRANSLATION = re.compile(r"_[a-z]{2,3}(_[A-Z][a-z]{3})?-[a-z]{2,3}(_|$)")


@pytest.fixture(scope="module")
def entries() -> list[tuple[str, str, str]]:
    """Folder, name and data set of every task of the package."""
    root, manager = Path(harness.__file__).parent, harness.TaskManager()
    return [
        (Path(entry.yaml_path).relative_to(root).parts[0], name, str((entry.cfg or {}).get("dataset_name") or ""))
        for name, entry in manager.task_index.items()
        if str(entry.kind).endswith("TASK") and entry.yaml_path is not None
    ]


def told(data_set: str) -> str | None:
    """The language that a data set's name says, by the rules of BCP 47 alone; None where it says none."""
    if not data_set:
        return None
    name = data_set.removesuffix("_multiple_choice").split(".")[-1].lower()
    if name in OTHERWISE:
        return OTHERWISE[name]
    if re.fullmatch(r"[a-z]{4,}( [a-z]+)?", name):
        return str(langcodes.find(name, "en"))
    code, *rest = name.split("_")
    script = rest[0].title() if rest and len(rest[0]) == 4 else ""
    if OTHERWISE.get(code) and not script:
        return OTHERWISE[code]
    language = langcodes.Language.get(f"{code}-{script}" if script else code).prefer_macrolanguage()
    return str(language.simplify_script())


def alike(name: str, one: str, other: str) -> bool:
    """Whether two codes are one language, and in one script where the task's name has one."""
    tags = [langcodes.Language.get(code).prefer_macrolanguage().maximize() for code in (one, other)]
    scripts = [(tag.script or "").replace("Kore", "Hang") for tag in tags]
    return tags[0].language == tags[1].language and (scripts[0] == scripts[1] or scripts[1].lower() not in name.lower())


def told_apart(entries: list[tuple[str, str, str]]) -> Iterator[tuple[str, str]]:
    for folder, name, data_set in entries:
        if folder in FAMILIES and not TRANSLATION.search(name) and (language := told(data_set)) is not None:
            yield name, language


def test_every_multilingual_task_of_the_harness_has_the_language_of_its_data(
    entries: list[tuple[str, str, str]],
) -> None:
    read = [(name, task_language(name).language, language) for name, language in told_apart(entries)]
    assert len(read) > 7000
    assert [one for one in read if not alike(*one)] == []
    assert {folder for folder, *one in entries if list(told_apart([(folder, *one)]))} == set(FAMILIES)


def test_no_two_tasks_of_the_harness_are_read_alike(entries: list[tuple[str, str, str]]) -> None:
    names = [name for _, name, _ in entries]
    assert len({task_language(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("global_mmlu_full_yo_college_biology", ("global_mmlu_full", "yo", "college_biology")),
        ("include_base_44_north_macedonian_few_shot_en_stem", ("include_base_44_few_shot_en", "mk", "stem")),
        ("include_base_44_chinese_driving_license", ("include_base_44", "zh-Hans", "driving_license")),
        ("global_piqa_parallel_cloze_spa_latn_mexi", ("global_piqa_parallel_cloze", "es", "mexi")),
        ("global_piqa_nonparallel_cloze_srp_latn", ("global_piqa_nonparallel_cloze", "sr-Latn", "")),
        ("multiblimp_hbs", ("multiblimp", "sr-Latn", "")),
        ("afrixnli_yor_prompt_1", ("afrixnli_prompt_1", "yo", "")),
        ("afrixnli_native_direct_yor", ("afrixnli_native_direct", "yo", "")),
        ("truthfulqa_ar_mc1", ("truthfulqa_mc1", "ar", "")),
        ("mmmlu_zh_cn_anatomy", ("mmmlu", "zh-Hans", "anatomy")),
        ("belebele_npi_Deva", ("belebele", "ne", "")),
        ("belebele_ory_Orya", ("belebele", "or", "")),
        ("belebele_arz_Arab", ("belebele", "arz", "")),
        ("xnli_va", ("xnli", "ca-valencia", "")),
        ("AraDiCE_piqa_lev", ("AraDiCE_piqa", "apc", "")),
        ("kmmlu_law", ("kmmlu_law", "ko", "")),
        ("csatqa_gr", ("csatqa_gr", "ko", "")),
        ("zhoblimp_causative_shi_ba", ("zhoblimp_causative_shi_ba", "zh-Hans", "")),
        ("indicparam_sanskrit_mix", ("indicparam", "sa", "mix")),
        ("eus_exams_es_opebilbao", ("eus_exams", "es", "opebilbao")),
        ("commonsense_qa", ("commonsense_qa", UNDETERMINED, "")),
        ("ethics_cm", ("ethics_cm", UNDETERMINED, "")),
        ("infinitebench_code_run", ("infinitebench_code_run", UNDETERMINED, "")),
        ("noridiom_nno_p0", ("noridiom_p0", "nn", "")),
        ("flores_ban_Latn-eng_Latn_prompt_3", ("flores_ban_Latn-eng_Latn_prompt_3", UNDETERMINED, "")),
        ("hellaswag", ("hellaswag", UNDETERMINED, "")),
        ("social_iqa", ("social_iqa", UNDETERMINED, "")),
        ("mmlu_abstract_algebra_generative", ("mmlu_abstract_algebra_generative", UNDETERMINED, "")),
    ],
)
def test_names_are_taken_apart(name: str, read: tuple[str, str, str]) -> None:
    assert task_language(name) == read

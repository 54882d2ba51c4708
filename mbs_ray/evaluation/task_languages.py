"""The language of a task of lm-evaluation-harness, read from its name.

Most names end in a code (``xnli_zh``, ``belebele_swh_Latn``). Families that write it elsewhere, or an English name
instead, have a pattern here; those in one language have its code by how their names begin. Patterns were made from the
task list of lm-eval 0.4.13, and a test compares what they read with the data sets that the package names.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from mbs_ray.languages.codes import is_registered, language_of_name, shortest_code
from mbs_ray.languages.facts import LANGUAGES

#: Of a task whose name tells no language: ISO 639's code for that.
UNDETERMINED = "und"


class TaskName(NamedTuple):
    """The parts of a task's name: ``include_base_44_basque_stem`` is ``include_base_44``, ``eu``, part ``stem``.

    Parts of one task in one language are one result, weighed by their documents, as in the harness's own groups.
    """

    task: str
    language: str
    part: str = ""


_NAME = r"(?P<name>[a-z]+(?:_[a-z]+)?)"
#: ``code``, ``own`` or ``name`` gives the language; ``task`` and ``rest`` make the task, ``part`` is one of its parts.
_FAMILIES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?P<task>global_mmlu(_full)?|mmlu_prox(_lite)?)_(?P<code>[a-z]{2,3})_(?P<part>.+)",
        # The second two letters are the country of the translators.
        r"(?P<task>mmmlu)_(?P<code>[a-z]{2})_[a-z]{2}_(?P<part>.+)",
        rf"(?P<task>include_base_44)_{_NAME}(?P<rest>_few_shot_(en|og))?_(?P<part>applied_science|arts_humanities|"
        r"business_commerce|driving_license|health_oriented_education|professional_certification|social_science|stem|"
        r"marine_license|medical_license|general_knowledge)",
        # A place may follow: Spanish of Mexico, Peru and Spain.
        r"(?P<task>global_piqa_(non)?parallel_(cloze|generation))_(?P<code>[a-z]{3})_(?P<script>[a-z]{4})"
        r"(_(?P<part>[a-z]{4}))?",
        r"(?P<task>multiblimp|mela)_(?P<code>[a-z]{2,3})",
        r"(?P<task>mmlu)_(?P<code>[a-z]{2})(?P<rest>_llama)_(?P<part>.+)",
        r"(?P<task>truthfulqa|arc)_(?P<code>[a-z]{2})(?P<rest>_(mc1|mc2|gen|challenge|easy))",
        r"(?P<task>xnli|mgsm_direct|paws)_(?P<code>es)(?P<rest>_spanish_bench)",
        r"(?P<task>xnli)_(?P<code>eu)(?P<rest>_(native|mt))",
        r"(?P<task>crows_pairs)_(?P<name>english|french)(?P<rest>_.+)?",
        r"(?P<task>bhs)__(?P<name>basque|hindi|swahili)__(?P<part>.+)",
        r"(?P<task>toksuite)_(?P<name>chinese|english|farsi|italian|turkish)(?P<rest>_.+)",
        r"(?P<task>indicparam)_(?P<name>[a-z]+)(_(?P<part>mix))?",
        r"(?P<task>eus_exams)_(?P<code>es|eu)_(?P<part>.+)",
        r"(?P<task>copal)_(?P<code>id)(?P<rest>_(colloquial|standard))",
        r"(?P<task>pisa)_((?P<own>ch)|(?P<code>[a-z]{2}))(?P<rest>_llm_judged)?",
        r"(?P<task>bertaqa)_(?P<code>en)(?P<rest>_mt_.+)",
        r"(?P<task>careqa)_(?P<code>en)(?P<rest>_.+)",
        r"(?P<task>nor\w+|nrk_quiz_qa)_(?P<code>nno|nob)(?P<rest>_p\d)",
        rf"(?P<task>xlsum)_{_NAME}(?P<rest>_prompt_\d+)",
        # All of AfroBench; translations, of two languages, have none.
        r"(?P<task>[\w-]+?)_(?P<code>[a-z]{2,3})(?P<rest>_prompt_\d+)",
        r"(?P<task>afri(xnli|mmlu|mgsm)\w*?)_(?P<code>[a-z]{3})",
        r"(?P<task>AraDiCE_.+)_((?P<own>egy|lev|msa|gulf)|(?P<code>eng))",
    )
)
#: Benchmarks in one language, by the beginning of their tasks' names.
_ONE_LANGUAGE = {
    "aclue_|ceval-|cmmlu_|zhoblimp_": "zh-Hans",
    "tmlu_|tmmluplus_": "zh-Hant",
    "kmmlu_|kobest_|kbl_|haerae_|csatqa_|click_|kormedmcqa_|hrm8k_(?!.*_en$)": "ko",
    "arabicmmlu_|aexams_|arabic_leaderboard_|arabic_mt_|arab_culture_": "ar",
    "egymmlu_|egyhellaswag": "arz",
    "darijammlu_|darijahellaswag|darija_": "ary",
    "greekmmlu_": "el",
    "turkishmmlu_|turblimp_": "tr",
    "french_bench_(?!.*perplexity)|histoires_morales": "fr",
    "eus_|bec2016eu|bhtc_v2|epec_koref_bin|qnlieu|vaxx_stance|wiceu": "eu",
    "ja_leaderboard_|jfinqa_": "ja",
    "evalita-": "it",
    "polemo2_": "pl",
    "icelandic_winogrande": "is",
    "bangla_": "bn",
    "blimp_nl__": "nl",
    "catalanqa|catcola|cieacova_|coqcat|parafraseja|teca$|terretaqa|cabbq_|cabreu_": "ca",
    "esbbq_|escola$": "es",
    "galcola$": "gl",
    "assin2?_": "pt",
    "norbelebele_|norec_|norquad_|ncb$|ask_gec_": "nb",
    "agieval_(jec_qa|gaokao)_": "zh-Hans",
    # Of which some names end like a code.
    "infinitebench_(?!.*_zh)|ethics_": UNDETERMINED,
    "matreshka_|ru_entity_|ru_relation_|ru_babilong_|librusec_": "ru",
    "mmlu_.+_spanish$|mmlu_redux_spanish$": "es",
}
#: Codes that tasks write otherwise than BCP 47: xwinograd_jp, xnli_va; zh without a script is the simplified one.
_OTHER_CODES = {"zh": "zh-Hans", "zho": "zh-Hans", "jp": "ja", "swa": "sw", "va": "ca-valencia"}
#: Those of one family, which are other languages elsewhere.
_OWN_CODES = {"egy": "arz", "lev": "apc", "msa": "ar", "gulf": "afb", "ch": "zh-Hans"}
_OTHER_NAMES = {
    "farsi": "fa",
    "pidgin": "pcm",
    "oriya": "or",
    "north_macedonian": "mk",
    "chinese": "zh-Hans",
}


@lru_cache(maxsize=4096)
def task_language(name: str) -> TaskName:
    """Read a task's name in lm-eval: ``xnli_zh`` → (``xnli``, ``zh-Hans``).

    A language that is not in our table has the code of BCP 47 (``xcopa_qu``, ``belebele_deu_Latn`` → ``de``); a name
    without one is of language ``und``. Three letters at the end are a language where the table or a script says so.
    """
    for pattern in _FAMILIES:
        if (found := pattern.fullmatch(name)) is not None:
            parts = found.groupdict(default="")
            language = _OWN_CODES.get(parts.get("own", ""))
            if parts.get("name"):
                language = _named(parts["name"])
            elif language is None:
                language = _coded(parts["code"], parts.get("script", ""))
            if language is not None:
                return TaskName(parts["task"] + parts.get("rest", ""), language, parts.get("part", ""))
    for beginning, language in _ONE_LANGUAGE.items():
        if re.match(beginning, name):
            return TaskName(name, language)
    found = re.fullmatch(r"(?P<task>.+?)_(?P<code>[a-z]{2,3})(_(?P<script>[A-Z][a-z]{3}))?", name)
    if found is not None:
        code, script = found["code"], found["script"] or ""
        language = _in_table(code, script)
        if language is None and (script or (len(code) == 2 and is_registered(code))):
            language = _coded(code, script)
        if language is not None:
            return TaskName(found["task"], language)
    return TaskName(name, UNDETERMINED)


def _coded(code: str, script: str) -> str | None:
    """Return the language of a code of two or three letters and maybe a script."""
    known = _in_table(code, script.title())
    return known or shortest_code(f"{code}-{script.title()}" if script else code)


def _named(name: str) -> str | None:
    return _OTHER_NAMES.get(name) or language_of_name(name.replace("_", " "))


def _in_table(code: str, script: str) -> str | None:
    if not script:
        by_code = {one.iso639_3: one.code for one in reversed(list(LANGUAGES.values()))}
        return code if code in LANGUAGES else _OTHER_CODES.get(code, by_code.get(code))
    for one in LANGUAGES.values():
        if one.script == script and (one.iso639_3 == code or (code == "zho" and one.iso639_3 == "cmn")):
            return one.code
    return None

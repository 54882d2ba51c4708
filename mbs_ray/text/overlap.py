"""No model is evaluated on what it was calibrated on."""

from mbs_ray.errors import InputError
from mbs_ray.text.segment_file import SegmentSet


def refuse_overlap(name: str, evaluation: SegmentSet, calibration: SegmentSet) -> None:
    """Raise :class:`InputError` where a document has tokens in both sets of segments, in one language.

    A document is known by its text, wherever it is read from; a segment may hold parts of several. Blank ones are no
    text that could be shared. ``name`` is that of the evaluation set.
    """
    known = {
        language: {source.digest for source in sources if not source.blank}
        for language, sources in calibration.sources().items()
    }
    shared = {}
    for language, sources in evaluation.sources().items():
        # One text may stand in several documents.
        own = {source.digest: source for source in sources if not source.blank}
        both = [source for digest, source in own.items() if digest in known.get(language, ())]
        if both:
            shared[language] = len(own), both
    if not shared:
        return
    language, (count, both) = next(iter(shared.items()))
    others = f", and so do languages {', '.join(list(shared)[1:])}" if len(shared) > 1 else ""
    raise InputError(
        f"evaluation.{name}: language {language!r} shares {len(both)} of its {count} documents with the calibration "
        f"text{others}; one is {both[0].label}: {both[0].beginning!r}; evaluate on other text, or take these documents "
        "out of one of the two corpora"
    )

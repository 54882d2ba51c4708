"""What the tokenizer of a model puts before every segment, in words."""

from pathlib import Path

from mbs_ray.errors import InputError
from mbs_ray.text.tokenization import DocumentTokenizer


def begin_sentence(model: str) -> str | None:
    """What each segment of a model in a local folder begins with; None where that is nothing, or the model is not here.

    A tokenizer that cannot be loaded is told of in the same place: an allocation does not need it.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return None
    try:
        tokenizer = DocumentTokenizer(str(folder))
        begin = tokenizer.begin
    except InputError as error:
        return f"with what segments begin is not known: {error}"
    if not begin:
        return None
    named = " ".join(f"{tokenizer.tokenizer.convert_ids_to_tokens(one)} ({one})" for one in begin)
    return f"every segment begins with {named}, as the tokenizer begins a text: read by the model, not scored, no bytes"

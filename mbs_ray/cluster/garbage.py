"""How often Python looks for garbage in processes of ours: torch and transformers leave it much to look through."""

import atexit
import gc

#: Python's own is 700.
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def collect_garbage_rarely() -> None:
    """Have Python collect garbage more rarely, and not at the end of the process.

    Imports make hundreds of thousands of objects that stay. Looking through them again and again takes a third of the
    time that importing does, and at the end once more a second.
    """
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    atexit.register(gc.freeze)

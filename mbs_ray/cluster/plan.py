"""What is settled before a job starts."""


def auto_microbatch(sequence_length: int, tokens: int = 4096) -> int:
    """Segments in one forward: about ``tokens`` tokens."""
    return max(1, tokens // sequence_length)

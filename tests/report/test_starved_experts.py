"""What the report page says of starved experts."""

import pandas as pd

from mbs_ray.report.starved_experts import StarvedExperts, starved_experts


def rows(block: int, tokens: list[list[int]], borrowed: list[float]) -> list[dict[str, object]]:
    return [
        {
            "block": block,
            "mixture": "mlp.experts",
            "expert": expert,
            "language": language,
            "tokens": count,
            "borrowed": borrowed[expert],
        }
        for language, counts in zip(("en", "sw"), tokens, strict=True)
        for expert, count in enumerate(counts)
    ]


def test_starved_experts_are_listed_by_block_with_what_they_borrowed() -> None:
    table = pd.DataFrame(
        [
            *rows(11, [[5, 0, 9], [0, 0, 9]], [0.25, 1.0, 0.0]),
            *rows(2, [[5, 1, 9], [0, 0, 9]], [0.25, 0.75, 0.0]),
            *rows(3, [[50, 10, 9], [1, 2, 9]], [0.0, 0.0, 0.0]),
        ]
    )
    assert starved_experts(table) == [
        StarvedExperts(2, "mlp.experts", "0 (25%), 1 (75%)", ""),
        StarvedExperts(11, "mlp.experts", "0 (25%)", "1"),
    ]


def test_where_none_is_starved_there_is_no_list() -> None:
    assert starved_experts(pd.DataFrame(rows(0, [[5, 5], [5, 5]], [0.0, 0.0]))) == []

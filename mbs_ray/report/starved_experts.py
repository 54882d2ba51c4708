"""The section of the report page on experts: where the tokens of each language go, and who was starved."""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class StarvedExperts:
    """Experts of one block that borrowed from all tokens, with the share borrowed, and those without a token."""

    block: int
    mixture: str
    starved: str
    unreached: str


def starved_experts(table: pd.DataFrame) -> list[StarvedExperts]:
    """List the starved experts of each block that has any; ``table`` is that of ``experts.parquet``."""
    found = []
    for block in sorted(table["block"].unique()):
        of_block = table[table["block"] == block]
        for mixture in sorted(of_block["mixture"].unique()):
            own = of_block[of_block["mixture"] == mixture]
            experts = own.groupby("expert").agg(tokens=("tokens", "sum"), borrowed=("borrowed", "max"))
            reached = experts[(experts["borrowed"] > 0) & (experts["tokens"] > 0)]
            shares = ", ".join(f"{number} ({share:.0%})" for number, share in reached["borrowed"].items())
            unreached = ", ".join(str(number) for number in experts.index[experts["tokens"] == 0])
            if shares or unreached:
                found.append(StarvedExperts(int(block), str(mixture), shares, unreached))
    return found

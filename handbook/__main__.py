"""Write the pages and pictures of docs/ that are made from the code: ``make docs``."""

from collections.abc import Callable, Mapping
from pathlib import Path

from handbook.command_line import command_line
from handbook.pictures import data_way, increase_bars, read_increases
from handbook.sweep_file import sweep_file
from mbs_ray.report.figures.canvas import save_figure

DOCS = Path(__file__).parents[1] / "docs"
PAGES: Mapping[str, Callable[[], str]] = {"sweep-file.md": sweep_file, "cli.md": command_line}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
    save_figure(increase_bars(read_increases(DOCS / "results" / "demo.md")), DOCS / "images" / "increase.png")
    save_figure(data_way(), DOCS / "images" / "data-way.png")
    print(f"written: {', '.join(PAGES)} and two pictures in {DOCS}")


if __name__ == "__main__":
    main()

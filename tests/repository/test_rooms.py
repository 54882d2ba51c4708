"""The house: which room may import which, one name for one module, short files, a docstring at every door."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mbs_ray"
FOUNDATIONS = {"errors", "files"}
#: Which rooms a room imports, besides the foundations and itself; the picture in CONTRIBUTING is this table.
MAY_IMPORT = {
    "languages": set(),
    "methods": set(),
    "model": set(),
    "text": {"languages"},
    "compression": {"methods", "model"},
    "evaluation": {"text", "model", "methods", "languages"},
    "run": {"text", "model", "methods", "languages"},
    "cluster": {"evaluation", "run", "compression", "text", "model", "methods"},
    "report": {"evaluation", "run", "languages"},
    "tracking": {"report", "evaluation", "run", "compression", "text", "model"},
    "plan": {"cluster", "evaluation", "run", "compression", "text", "model", "methods", "languages"},
    "driver": {
        "plan", "tracking", "report", "cluster", "evaluation", "run", "compression", "text", "model", "methods",
        "languages",
    },
    "cli": {"driver", "plan", "tracking", "report", "cluster", "evaluation", "run", "model", "languages"},
}  # fmt: skip
#: What a room does without, whoever else it imports.
NEVER = {
    "languages": {"torch", "ray", "transformers", "mlflow"},
    "methods": {"ray", "transformers", "mlflow", "numpy"},
    "model": {"ray", "mlflow"},
    "compression": {"ray", "mlflow"},
    "evaluation": {"ray", "mlflow"},
    "run": {"ray", "mlflow"},
    "report": {"ray", "mlflow", "torch", "transformers"},
    "tracking": {"torch", "transformers"},
    "cluster": {"mlflow"},
}
LONGEST_FILE = 300


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            found.add(node.module)
    return found


def modules(room: str) -> list[Path]:
    return sorted((PACKAGE / room).rglob("*.py"))


def test_the_rooms_at_the_top_are_those_of_the_table() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders == set(MAY_IMPORT)
    assert {path.stem for path in PACKAGE.glob("*.py")} == FOUNDATIONS | {"__init__"}


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    allowed = MAY_IMPORT[room] | FOUNDATIONS | {room}
    for path in modules(room):
        for name in imports(path):
            package, _, rest = name.partition(".")
            assert package not in NEVER.get(room, ()), f"{path} imports {name}"
            if package == "mbs_ray" and rest:
                assert rest.partition(".")[0] in allowed, f"{path} imports {name}"


def test_the_table_has_no_circle() -> None:
    floors: dict[str, int] = {}
    left = dict(MAY_IMPORT)
    while left:
        lowest = {room for room, below in left.items() if below <= floors.keys()}
        assert lowest, f"a circle among {', '.join(left)}"
        for room in lowest:
            floors[room] = 2 + max((floors[one] - 1 for one in left.pop(room)), default=0)
    assert max(floors.values()) <= 8


def test_the_foundations_import_no_room() -> None:
    for name in FOUNDATIONS:
        rooms = {one.partition(".")[2] for one in imports(PACKAGE / f"{name}.py") if one.startswith("mbs_ray")}
        assert rooms <= {"errors"}


def test_the_name_of_a_module_occurs_once() -> None:
    names = [path.stem for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")]
    rooms = [path.parent.name for path in PACKAGE.glob("*/**/__init__.py")]
    everything = names + rooms
    assert {name for name in everything if everything.count(name) > 1} == set()


def test_no_file_has_more_than_one_job() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path): count for path, count in lines.items() if count > LONGEST_FILE} == {}


def test_every_room_says_at_its_door_what_it_is_for() -> None:
    for door in PACKAGE.rglob("__init__.py"):
        said = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8")))
        assert said, door
        if door.parent.parent == PACKAGE:
            assert "Begin with" in said, f"{door} does not say where to begin reading"


def test_contributing_shows_the_same_rooms() -> None:
    lines = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    table = {
        room.strip("`"): set() if below == "nothing" else set(below.split(", "))
        for rooms, below in rows
        for room in rooms.split(", ")
    }
    assert table == MAY_IMPORT

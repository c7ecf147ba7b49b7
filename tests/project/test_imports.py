"""Imports go one way: a folder imports only from folders below it, and no module imports itself through others."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
# From the ground up; rooms on one line stand side by side.
FLOORS = (
    {"errors"},
    {"show"},
    {"theory"},
    {"kernels", "proofs"},
    {"models", "families"},
    {"checkpoints"},
    {"certificate"},
    {"audit"},
    {"atlas"},
    {"verification"},
    {"surgery", "explore"},
    {"training"},
    {"reproduce", "benchmarks"},
    {"cli"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
# proofs/ and kernels/ lie at the top for the reader and are installed inside the package.
TOPS = {"minibeft": ROOT / "minibeft", "minibeft.proofs": ROOT / "proofs", "minibeft.kernels": ROOT / "kernels"}


def modules() -> dict[str, Path]:
    """Every module by its name; those that start a program (__main__) belong to no room."""
    found = {}
    for package, folder in TOPS.items():
        for file in sorted(folder.rglob("*.py")):
            inside = file.relative_to(folder).with_suffix("")
            if file.is_symlink() or (package == "minibeft" and inside.parts[0] in ("proofs", "kernels")):
                continue
            parts = [part for part in inside.parts if part != "__init__"]
            if parts[-1:] != ["__main__"]:
                found[".".join([package, *parts])] = file
    return found


def is_start(node: ast.stmt) -> bool:
    """if __name__ == "__main__", or imports for the type checker alone."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")


def imports(file: Path, known: dict[str, Path]) -> set[str]:
    """The modules of minibeft that this one imports, in functions too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = [node for top in tree.body if not is_start(top) for node in ast.walk(top)]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{a.name}") in known else node.module for a in node.names}
    return {name for name in found if name.split(".")[0] == "minibeft"}


def room(module: str) -> str:
    return module.split(".")[1]


def test_nothing_lies_loose():
    """Beside the rooms there are only the front, the program and the error."""
    assert {file.name for file in (ROOT / "minibeft").glob("*.py")} == {"__init__.py", "__main__.py", "errors.py"}
    assert (ROOT / "minibeft" / "py.typed").exists()
    assert {room(name) for name in modules() if name != "minibeft"} == set(LEVEL)


def test_rooms_import_from_rooms_below():
    known = modules()
    wrong = [
        f"{name} imports {other}"
        for name, file in known.items()
        if name != "minibeft"
        for other in imports(file, known)
        if other != "minibeft" and room(other) != room(name) and LEVEL[room(other)] > LEVEL[room(name)]
    ]
    assert wrong == []


def test_rooms_side_by_side_but_one_pair_do_not_know_each_other():
    """Families describe models, and the biases of a model ask its family for its head."""
    known = modules()
    pairs = {
        (room(name), room(other))
        for name, file in known.items()
        if name != "minibeft"
        for other in imports(file, known)
        if other != "minibeft" and room(other) != room(name) and LEVEL[room(other)] == LEVEL[room(name)]
    }
    assert pairs <= {("models", "families"), ("families", "models")}


def test_no_module_imports_itself_through_others():
    known = modules()
    TopologicalSorter({name: imports(file, known) for name, file in known.items()}).prepare()  # raises CycleError


def test_a_wrong_arrow_is_seen(tmp_path):
    """Negative twin, in a function too."""
    (tmp_path / "wrong.py").write_text("def f():\n    from minibeft.cli.console import err\n    return err\n")
    assert imports(tmp_path / "wrong.py", modules()) == {"minibeft.cli.console"}
    assert LEVEL["cli"] > LEVEL["theory"]

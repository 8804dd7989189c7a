"""The structure of the package: the order of imports, names, and what importing must not do."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}
# Each set may import the sets before it, and packages of one set do not import each other.
FLOORS = (
    {"errors", "interrupts", "version"},
    {"regular"},
    {"diffusion", "pictures", "web"},
    {"networks"},
    {"conditioning"},
    {"formats"},
    {"datasets"},
    {"recipe"},
    {"adapters"},
    {"engines"},
    {"latent"},
    {"generation"},
    {"pipeline", "video"},
    {"evaluation", "explain", "lab"},
    {"training"},
    {"report"},
    {"cli"},
)
# Packages with further restrictions.
ONLY = {
    "diffusion": {"errors"},
    "pictures": {"errors", "regular"},
    "datasets": {"errors", "regular", "pictures", "formats"},
}
OPTIONAL = {
    *("accelerate", "av", "diffusers", "emoji", "h5py", "huggingface_hub", "matplotlib"),
    *("openvino", "peft", "pyarrow", "tensorboard", "torchao", "transformers"),
}
PROBES = {"sys.argv", "torch.cuda", "torch.backends", "torch.accelerator", "torch.set_num_threads"}
LONGEST = 400  # lines


def floor(name: str) -> int:
    return next(level for level, rooms in enumerate(FLOORS) if name in rooms)


def room(module: str) -> str:
    """The part of the house: undust.formats.folder -> formats; "" for undust itself."""
    return module.partition("undust.")[2].split(".")[0]


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by the whole name"
            assert node.module
            # `from undust import pipeline` imports a module, `from undust import load` a function.
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else str(node.module) for name in names)


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: of functions the defaults and decorators."""
    yield node
    inside: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        inside = [*node.decorator_list, node.args]
    elif isinstance(node, ast.Lambda):
        inside = [node.args]
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        inside = list(node.orelse)
    for child in inside:
        yield from run_at_import(child)


def in_a_new_process(code: str) -> str:
    """What `code` prints, run with nothing imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_packages_have_a_level():
    rooms = {room(module) for module in MODULES} - {"", "__main__"}
    assert rooms <= set.union(*FLOORS)


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) not in ("", "__main__")])
def test_imports_point_down(module: str):
    here = room(module)
    wrong: list[str] = []
    for name in imports(MODULES[module]):
        if name.split(".")[0] != "undust" or room(name) in ("", here):
            continue
        if floor(room(name)) >= floor(here) or room(name) not in ONLY.get(here, {room(name)}):
            wrong.append(name)
    assert not wrong, f"{module} imports {wrong}"


def test_no_files_import_one_another_in_a_circle():
    """Imports for types alone count too."""
    graph = {
        module: {name for name in imports(path) if name in MODULES and name != module}
        for module, path in MODULES.items()
    }

    def reached(module: str) -> set[str]:
        found: set[str] = set()
        waiting = [*graph[module]]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                waiting += graph[name]
        return found

    assert {module for module in graph if module in reached(module)} == set()


@pytest.mark.parametrize("module", [name for name in MODULES if room(name) == "diffusion"])
def test_the_mathematics_needs_torch_alone(module: str):
    roots = {name.split(".")[0] for name in imports(MODULES[module])}
    assert roots <= {"torch", "undust", *sys.stdlib_module_names}


def test_errors_import_nothing():
    roots = {name.split(".")[0] for name in imports(MODULES["undust.errors"])}
    assert roots <= sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_imported_where_they_are_used(module: str):
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    wrong: list[str] = []
    for node in run_at_import(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        wrong += [name for name in names if OPTIONAL & set(name.split("."))]
    assert not wrong, f"{module} imports {wrong} at its top"


@pytest.mark.parametrize("module", MODULES)
def test_importing_probes_neither_arguments_nor_devices(module: str):
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    attributes = [node for node in run_at_import(tree) if isinstance(node, ast.Attribute)]
    wrong = PROBES & {ast.unparse(node) for node in attributes}
    assert not wrong, f"{module} looks at {wrong} at import"


@pytest.mark.parametrize("module", ["undust", "undust.errors", "undust.cli"])
def test_importing_is_light(module: str):
    heavy = {"torch", "numpy", "safetensors", "tokenizers", "PIL"}
    code = f"import sys, {module}; print(*({heavy!r} & set(sys.modules)))"
    assert in_a_new_process(code).split() == []


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"undust.regular"}))
def test_files_are_read_through_one_function(module: str):
    """Any other waits for ever where a pipe lies in the place of a file."""
    calls = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8")))
        if isinstance(node, ast.Call)
    ]
    wrong = [
        ast.unparse(call)
        for call in calls
        if (
            re.search(r"\bread_(text|bytes)$", method := ast.unparse(call.func))
            and isinstance(call.func, ast.Attribute)
        )
        or re.search(r"^(shutil\.copy\w*|tomllib\.load|open)$", method)
        or (method == "Image.open" and "path" in ast.unparse(call.args[0]))
        or (method.endswith("path.open") and "'rb'" in ast.unparse(call))
    ]
    assert not wrong, f"{module}: open_regular, read_text and read_bytes of undust.regular do that"


def test_help_does_not_import_torch():
    code = """
import sys
from undust.cli import main
sys.argv = ["undust", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("torch" in sys.modules, file=sys.stdout)
"""
    printed = in_a_new_process(code)
    assert "generate" in printed
    assert printed.split()[-1] == "False"


def test_a_class_name_has_one_meaning():
    modules: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules.setdefault(node.name, []).append(module)
    assert [name for name, places in modules.items() if len(places) > 1] == []


def test_a_function_imported_by_its_name_is_the_only_one_so_imported():
    """Several modules may have a `read`: then it is called by its module, `peft_config.read`."""
    functions = {
        (module, node.name)
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    modules: dict[str, set[str]] = {}
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (str(node.module), alias.name) in functions:
                        modules.setdefault(alias.name, set()).add(str(node.module))
    assert [name for name, places in modules.items() if len(places) > 1] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_file_can_be_read_in_one_sitting(module: str):
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= LONGEST

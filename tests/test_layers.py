"""The floors of the package: arrows run one way, heavy imports stand where the design puts them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ensemblekit

PACKAGE = Path(ensemblekit.__file__).parent

FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "foreign"}),
    frozenset({"intake", "results", "scaling"}),
    frozenset({"source", "engine", "jit", "files", "parts", "provenance"}),
    frozenset({"source_views"}),
    frozenset({"averaging", "store"}),
    frozenset({"neural", "md", "rom", "testing", "statistics", "lineages"}),
    frozenset({"plot"}),
    frozenset({"tour"}),
    frozenset({"cli", "__main__"}),
)
"""From the ground up. A part imports from its own folder and from floors below, never from a neighbour."""

ABOVE_THE_PUBLIC_FACE = FLOORS[-2] | FLOORS[-1]
"""Parts that may use the package as its users do: ``import ensemblekit as ek``."""

CORE = FLOORS[0] | FLOORS[1] | FLOORS[2] | FLOORS[3] | FLOORS[4] | {"statistics", "lineages"}
"""What ``ensemblekit/__init__.py`` may import."""

ONLY_IN = {
    "numba": {"jit.py"},
    "h5py": {"store/creation.py", "store/datasets.py", "store/guarded.py", "store/hdf5.py", "store/attributes.py",
             "store/file_check.py", "store/vtkhdf.py"},     # the last for virtual datasets
}
"""Packages that a few files know about, wherever in the file they import them."""

INSIDE_FUNCTIONS = {"torch", "MDAnalysis", "dask", "distributed", "matplotlib", "scipy.stats", "hdf5plugin", "sklearn",
                    "pyvista", "pandas", "xarray", "h5netcdf", "zarr", "cftime", "pint", "cclib", "gemmi"}
"""Packages that are imported only where they are used, so that an import of the core stays quick."""

AT_HOME = {"torch": "neural/", "MDAnalysis": "md/"}
"""The front-end that cannot do without the package may import it at its top."""


class Import(NamedTuple):
    """One import statement: who imports what, and whether it runs when the module is imported."""

    file: str
    line: int
    module: str
    at_import: bool


def part(module: str) -> str:
    """``ensemblekit.averaging.run`` -> "averaging"; ``ensemblekit.engine_dask`` -> "engine"; ``ensemblekit`` -> ""."""
    name = [*module.split("."), ""][1]
    return name if name.startswith("__") else name.partition("_")[0]


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """(file, its tree) of every file under `root`."""
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text("utf-8"))


@functools.cache
def of_the_package_by_kind() -> dict[type, list[tuple[str, ast.AST]]]:
    """(file, node) of every call and function of the package, files and nodes in order: all is read once for all the rules."""
    nodes: dict[type, list[tuple[str, ast.AST]]] = {ast.Call: [], ast.FunctionDef: []}
    for file, tree in modules(PACKAGE):
        for node in ast.walk(tree):
            if type(node) in nodes:
                nodes[type(node)].append((file, node))
    return nodes


def imports(root: Path = PACKAGE) -> Iterator[Import]:
    """Every import of every file under `root`, those inside functions included, with absolute names."""
    for file, tree in modules(root):
        yield from _imports(tree, file, [root.name, *Path(file).with_suffix("").parts], at_import=True)


@functools.cache
def of_the_package() -> list[Import]:
    return list(imports())


def _imports(node: ast.AST, file: str, here: list[str], at_import: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, at_import)
        elif isinstance(child, ast.ImportFrom):
            base = ".".join(here[: -child.level]) if child.level else ""
            module = ".".join(filter(None, [base, child.module]))
            for alias in child.names:
                # `from ensemblekit import store` imports the part "store", `from ensemblekit.store import x` too
                yield Import(file, child.lineno, f"{module}.{alias.name}", at_import)
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types_only(child)
        yield from _imports(child, file, here, at_import and not inside)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING"


def _last_name(node: ast.AST) -> str:
    """``c`` of ``a.b.c``; "" for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def breaches(arrows: list[Import]) -> list[str]:
    """What breaks the rules, one readable line each."""
    floor = {name: k for k, names in enumerate(FLOORS) for name in names}
    bad = []
    for at in arrows:
        who = part("ensemblekit." + at.file.removesuffix(".py").replace("/", "."))
        where = f"{at.file}:{at.line} imports {at.module}"
        if is_of(at.module, "ensemblekit"):
            what = part(at.module)
            is_part = what in floor
            if who == "__init__":
                if is_part and what not in CORE:
                    bad.append(f"{where}: the public face imports no front-end")
            elif who not in floor:
                bad.append(f"{where}: {who!r} stands on no floor; give it one in FLOORS")
            elif not is_part:
                if who not in ABOVE_THE_PUBLIC_FACE and what != "__version__":
                    bad.append(f"{where}: import it from the file that defines it")
            elif what != who and floor[what] >= floor[who] and not (who == "__main__" and what == "cli"):
                bad.append(f"{where}: {who!r} (floor {floor[who]}) must not know {what!r} (floor {floor[what]})")
            name = at.module.split(".")
            if at.at_import and any(p.startswith("kernels") for p in name) and "kernels" not in Path(at.file).name:
                bad.append(f"{where}: kernels are imported inside the function that uses them")
        for package, files in ONLY_IN.items():
            if is_of(at.module, package) and at.file not in files:
                bad.append(f"{where}: only {', '.join(sorted(files))} may")
        for package in INSIDE_FUNCTIONS:
            home = AT_HOME.get(package)
            if at.at_import and is_of(at.module, package) and not (home and at.file.startswith(home)):
                bad.append(f"{where}: import {package} inside the function that uses it")
    return bad


def test_arrows_run_one_way() -> None:
    arrows = of_the_package()
    assert len({at.file for at in arrows}) > 5     # it really read the package
    assert breaches(arrows) == []


def test_bars_are_those_of_one_library() -> None:
    bars = [at for at in of_the_package() if is_of(at.module, "tqdm") or is_of(at.module, "rich.progress")]
    assert len(bars) >= 4
    assert [f"{at.file}:{at.line} {at.module}" for at in bars if at.module != "tqdm.auto.tqdm"] == []  # which knows notebooks


OPEN = ("rom/",)
"""Folders whose files know each other one way only: no circle of imports, those inside functions and for types included."""


def circles(arrows: list[Import], folder: str) -> list[list[str]]:
    """Files of a folder that reach themselves through what they import, each with all it meets on the way."""
    files = {at.file for at in arrows if at.file.startswith(folder)}
    modules = {"ensemblekit." + file.removesuffix(".py").replace("/", "."): file for file in files}
    knows = {file: {modules[name] for at in arrows if at.file == file for name in (at.module, at.module.rpartition(".")[0])
                    if name in modules} - {file} for file in files}

    def reached(file: str) -> set[str]:
        seen: set[str] = set()
        ahead = set(knows[file])
        while ahead:
            one = ahead.pop()
            seen.add(one)
            ahead |= knows[one] - seen
        return seen

    reach = {file: reached(file) for file in files}
    return [sorted(other for other in reach[file] if file in reach[other]) for file in sorted(files) if file in reach[file]]


@pytest.mark.parametrize("folder", OPEN)
def test_no_circle(folder: str) -> None:
    assert circles(of_the_package(), folder) == []


def test_a_circle_is_seen(tmp_path: Path) -> None:
    home = tmp_path / "ensemblekit" / "rom"
    home.mkdir(parents=True)
    (home / "a.py").write_text("def f():\n    from ensemblekit.rom.b import g")
    (home / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ensemblekit.rom import c")
    (home / "c.py").write_text("import ensemblekit.rom.a")
    arrows = list(imports(tmp_path / "ensemblekit"))
    assert circles(arrows, "rom/") == [["rom/a.py", "rom/b.py", "rom/c.py"]] * 3
    assert circles([at for at in arrows if at.file != "rom/c.py"], "rom/") == []


@pytest.mark.parametrize(("file", "line", "why"), [
    ("store/blocks.py", "from ensemblekit.averaging.run import reduce", "must not know 'averaging'"),
    ("averaging/run.py", "def f():\n    import ensemblekit.store.hdf5", "must not know 'store'"),
    ("md/average.py", "from ensemblekit.rom.pod import Pod", "must not know 'rom'"),
    ("md/average.py", "from ..rom import pod", "must not know 'rom'"),
    ("engine.py", "from ensemblekit.source import Block", "must not know 'source'"),
    ("errors.py", "from ensemblekit import engine", "must not know 'engine'"),
    ("averaging/estimate.py", "from ensemblekit.plot import estimate", "must not know 'plot'"),
    ("averaging/moments.py", "import ensemblekit as ek", "from the file that defines it"),
    ("averaging/moments.py", "from ensemblekit.averaging.kernels import add", "inside the function"),
    ("averaging/moments.py", "import numba", "only jit.py may"),
    ("rom/pod.py", "def f():\n    import h5py", "only store/attributes.py, store/creation.py, "
     "store/datasets.py, store/file_check.py, store/guarded.py, store/hdf5.py, store/vtkhdf.py may"),
    ("averaging/correlation.py", "from scipy import stats", "import scipy.stats inside"),
    ("source.py", "import torch", "import torch inside"),
    ("__init__.py", "from ensemblekit.md import average", "no front-end"),
    ("helpers.py", "from ensemblekit.errors import InputError", "stands on no floor"),
])
def test_each_rule_sees_its_breach(tmp_path: Path, file: str, line: str, why: str) -> None:
    path = tmp_path / "ensemblekit" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    messages = breaches(list(imports(tmp_path / "ensemblekit")))
    assert len(messages) == 1
    assert why in messages[0]


@pytest.mark.parametrize(("file", "line"), [
    ("averaging/moments.py", "def f():\n    from ensemblekit.averaging import kernels"),
    ("averaging/kernels.py", "from ensemblekit.jit import kernel"),
    ("engine_dask.py", "from ensemblekit.engine import ordered"),
    ("cli/average.py", "import ensemblekit as ek"),
    ("source.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
    ("neural/recorder.py", "import torch"),
])
def test_what_is_allowed_is_allowed(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / "ensemblekit" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    assert breaches(list(imports(tmp_path / "ensemblekit"))) == []


def extras_named() -> Iterator[tuple[str, str]]:
    """Where a MissingExtraError is raised (or `package` may raise one), and the extra that it names."""
    for file, node in of_the_package_by_kind()[ast.Call]:
        if _last_name(node.func) == "MissingExtraError" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            yield f"{file}:{node.lineno}", node.args[1].value


def test_every_missing_extra_names_one_that_exists() -> None:
    import tomllib

    file = PACKAGE.parent / "pyproject.toml"
    if not file.exists():
        pytest.skip("an installed package has no pyproject.toml")
    extras = tomllib.loads(file.read_text("utf-8"))["project"]["optional-dependencies"]
    named = list(extras_named())
    assert len(named) >= 15
    assert [where for where, extra in named if extra not in extras] == []
    inside = {name for needs in extras.values() for need in needs if need.startswith("ensemblekit[")
              for name in need.removeprefix("ensemblekit[").rstrip("]").split(",")}
    assert inside <= set(extras)


# -- names asked for by text ---------------------------------------------------------------------------------------

FOREIGN = {
    ("engine.py", "__qualname__"): "any function or object that is to be pickled",
    ("engine_processes.py", "SIGKILL"): "signal, which has none on Windows",
    ("files.py", "st_blocks"): "os.stat_result, which has none on Windows",
    ("intake.py", "_data"): "Variable of xarray",
    ("intake.py", "_in_memory"): "Variable of xarray",
    ("intake_tables.py", "tz"): "DatetimeIndex of pandas",
    ("md/functions.py", "_trajectory"): "AnalysisBase of MDAnalysis",
    ("md/parts.py", "_offsets"): "readers of MDAnalysis with an index of their own",
    ("md/parts.py", "_ts_kwargs"): "readers of MDAnalysis",
    ("md/parts.py", "filename"): "readers of MDAnalysis, one of frames in memory",
    ("md/parts.py", "has_time"): "readers of MDAnalysis, of Amber's NetCDF",
    ("md/parts.py", "readers"): "ChainReader of MDAnalysis",
    ("md/parts.py", "timed"): "readers of MDAnalysis, H5MD's here",
    ("md/topology.py", "is_guessed"): "TopologyAttr of MDAnalysis, from 2.8 on",
    ("md/topology.py", "values"): "TopologyAttr of MDAnalysis",
    ("neural/batches.py", "_fields"): "NamedTuple of a loader",
    ("neural/batches.py", "batch_sampler"): "torch DataLoader, or one like it",
    ("neural/batches.py", "dataset"): "torch DataLoader, or one like it",
    ("neural/batches.py", "logits"): "ModelOutput of transformers, and others that name their logits",
    ("neural/batches.py", "sampler"): "torch DataLoader and BatchSampler, or ones like them",
    ("neural/fit.py", "__name__"): "any function of a loss",
    ("neural/fit.py", "batch_size"): "torch DataLoader, or one like it",
    ("neural/lightning.py", "fast_dev_run"): "Trainer of Lightning",
    ("neural/lightning.py", "optimizers"): "Trainer of Lightning",
    ("neural/lightning.py", "precision_plugin"): "Trainer of Lightning",
    ("neural/lightning.py", "scaler"): "precision plugin of Lightning",
    ("neural/resume.py", "_sampler_iter"): "iterator of torch DataLoader",
    ("neural/resume.py", "generator"): "torch samplers and DataLoader",
    ("neural/resume.py", "set_epoch"): "torch DistributedSampler, and loaders of Accelerate",
    ("neural/schedules_of.py", "last_epoch"): "torch LRScheduler, and ReduceLROnPlateau",
    ("neural/schedules_of.py", "optimizer"): "anything given as a schedule",
    ("neural/schedules_of.py", "scheduler"): "AcceleratedScheduler",
    ("neural/step_watch.py", "found_inf"): "fused optimizers of torch",
    ("neural/step_watch.py", "step"): "GradScaler, or what stands for one (DeepSpeed's has none)",
    ("neural/training.py", "ignore_index"): "losses of torch",
    ("neural/weight_average.py", "_metadata"): "OrderedDict of torch's state_dict",
    ("rom/decompose/streaming.py", "refresh"): "a source that grows: a store, or someone's own",
    ("rom/readers/vtk_data.py", "alert"): "events of pyvista",
    ("rom/readers/vtk_data.py", "set_active_time_point"): "readers of pyvista that know times",
    ("rom/readers/vtk_data.py", "vtkCellTypeUtilities"): "VTK from 9.6 on",
    ("source_protocol.py", "caveat"): "a source of someone's own",
    ("source_protocol.py", "labels"): "a source of someone's own",
    ("source_protocol.py", "mesh"): "a source of someone's own",
    ("source_protocol.py", "ordered"): "a source of someone's own",
    ("source_protocol.py", "provenance"): "a source of someone's own",
    ("source_protocol.py", "times"): "a source of someone's own",
    ("source_protocol.py", "weights"): "a source of someone's own",
    ("provenance.py", "__version__"): "any package",
    ("provenance.py", "shape"): "arrays of any library",
    ("store/blocks.py", "MADV_DONTNEED"): "mmap, which has none outside Linux",
    ("store/blocks.py", "MADV_WILLNEED"): "mmap, which has none outside Linux",
    ("store/locks.py", "F_OFD_SETLK"): "fcntl, which has none outside Linux",
    ("store/segments.py", "F_FULLFSYNC"): "fcntl of macOS",
}
"""(file, name) -> the type from elsewhere that `getattr` or `hasattr` asks for it. Our own types have protocols instead."""

AT_MOST = 60
"""Questions of this kind in the whole package."""


def asked_for() -> Iterator[tuple[str, str]]:
    """(file, name) of every `getattr` and `hasattr` with a name that stands in the code."""
    for file, node in of_the_package_by_kind()[ast.Call]:
        if _last_name(node.func) in ("getattr", "hasattr") and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            yield file, str(node.args[1].value)


def test_only_types_from_elsewhere_are_asked_what_they_have() -> None:
    asked = list(asked_for())
    assert set(asked) - FOREIGN.keys() == set(), "say in FOREIGN whose attribute it is, or give our own type a protocol"
    assert FOREIGN.keys() - set(asked) == set(), "nobody asks for these any more"
    assert len(asked) <= AT_MOST


# -- the size of things ----------------------------------------------------------------------------------------------------

LONGEST = 60
"""Lines of a function, its docstring included; kernels apart, which are one loop."""
MOST_BY_PLACE = 6
"""Parameters of a function that are told apart by their place; the others are given by name."""


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """(file, function) of all functions and methods, kernels apart."""
    for file, node in of_the_package_by_kind()[ast.FunctionDef]:
        if "kernels" not in Path(file).name:
            yield file, node


def test_functions_are_short() -> None:
    assert [f"{file}: {node.name}, {lines} lines" for file, node in functions()
            if (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST] == []


def test_few_parameters_go_by_place() -> None:
    """Of what anyone may call: private functions, and the verbs of the shell that typer calls by name, apart."""
    places = ((file, node.name, [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")])
              for file, node in functions() if not node.name.startswith("_") and not file.startswith("cli/"))
    assert [f"{file}: {name} has {len(some)}" for file, name, some in places if len(some) > MOST_BY_PLACE] == []


def test_few_settings_of_an_observable_go_by_place() -> None:
    pytest.importorskip("MDAnalysis")
    import inspect

    from ensemblekit import md
    from ensemblekit.md.observables.base import Observable

    kinds = [kind for kind in vars(md).values()
             if isinstance(kind, type) and isinstance(kind, Observable) and kind is not Observable]
    assert len(kinds) > 20
    by_place = {kind.__name__: sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in inspect.signature(kind).parameters.values())
                for kind in kinds}
    assert {name: n for name, n in by_place.items() if n > MOST_BY_PLACE} == {}


MOST_LINES = 450
"""Of a file."""
LONG = {"neural/recorder.py", "rom/basis.py", "store/store.py"}
"""Files that are longer, each with its reason in the second paragraph of its docstring."""


def test_files_are_short() -> None:
    longer = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")
              if path.read_text("utf-8").count("\n") > MOST_LINES}
    assert longer == LONG
    for file in LONG:
        assert "onger than most files here" in " ".join(
            str(ast.get_docstring(ast.parse((PACKAGE / file).read_text("utf-8")))).split())

"""Files of conformer ensembles: all models of mmCIF and PDB (plain, .gz, in a tar.gz, listed in an .ens), and their weights.

mmCIF and PDB are read with gemmi. Chains, residue numbers and names of atoms are the author's.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ensemblekit.errors import InputError, MissingExtraError, one_line
from ensemblekit.files import check_input, most_bytes
from ensemblekit.md.elements import MASSES
from ensemblekit.md.topology import Topology
from ensemblekit.parts import natural_key

KEY = ("chain", "number", "insertion", "residue", "atom")
"""What an atom is told apart by, in every model."""
WEIGHT_REMARK = re.compile(r"^REMARK\s+99\s+MODEL\s+(\d+)\s+WEIGHT\s+(\S+)\s*$", re.MULTILINE)
CALCULATED = re.compile(r"^REMARK 210\s+CONFORMERS, NUMBER CALCULATED\s*:\s*(\d+)", re.MULTILINE)
SHOWN = 3


@dataclass(frozen=True, eq=False)
class Models:
    """The models of one file or several: one topology, positions of each."""

    positions: np.ndarray
    """(models, atoms, 3), angstrom."""
    topology: Topology
    weights: np.ndarray | None
    """(models,) as the files have them; None where they say nothing of weights."""
    calculated: int = 0
    """How many conformers the authors calculated, of which these are some; 0 where it is not known."""
    notes: tuple[str, ...] = ()
    """What was left out or assumed."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What a file of ours says of how it came about."""


def gemmi_of() -> Any:
    """The package that reads mmCIF and PDB."""
    try:
        import gemmi
    except ImportError as error:
        raise MissingExtraError("gemmi", "md") from error
    return gemmi


def read_models(paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, common: bool = False) -> Models:
    """All models of a file, or of several files one after the other.

    common: keep the atoms that all models have, in the order of the first.

    Raises InputError where a file cannot be read, has no atoms, or models differ in their atoms (and `common` is not given).
    """
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise InputError("an ensemble is read from a file (.cif, .pdb, .tar.gz, .ens) or a list of files; got an empty list")
    texts: list[tuple[str, str]] = []
    listed: list[np.ndarray] = []
    for path in several:
        some, weights = _texts(os.fspath(path))
        texts += some
        if weights is not None:
            listed.append(weights)
    parts = [_parsed(name, text) for name, text in texts]
    return _together(parts, [name for name, _ in texts], listed, common)


def _texts(path: str) -> tuple[list[tuple[str, str]], np.ndarray | None]:
    """(name, text) of the structure files behind a path, and weights that stand in a file beside them or list them."""
    check_input(path)
    name = os.path.basename(path)
    lower = name.lower()
    if lower.endswith((".tar.gz", ".tgz", ".tar")):
        return _of_archive(path)
    if lower.endswith(".ens"):
        return _of_list(path)
    raw = _bytes(path)
    beside = f"{path}.weights.csv" if os.path.exists(f"{path}.weights.csv") else f"{_stem(path)}.weights.csv"
    weights = read_weights(beside) if os.path.exists(beside) else None
    return [(name, raw.decode("utf-8", "replace"))], weights


def _stem(path: str) -> str:
    """A path without .gz and the suffix before it."""
    base = path[:-3] if path.lower().endswith(".gz") else path
    return os.path.splitext(base)[0]


def _bytes(path: str) -> bytes:
    """What a file holds, unpacked where it is .gz; InputError where it unpacks to more than its own bytes can be."""
    most = most_bytes(path)
    try:
        with (gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")) as file:
            raw = file.read(most + 1)
    except (OSError, EOFError) as error:
        raise InputError(f"{os.path.basename(path)} cannot be read: {one_line(error)}") from error
    if len(raw) > most:
        raise InputError(f"{os.path.basename(path)} unpacks to more than {most >> 20} MiB; unpack it first")
    return raw


def _of_archive(path: str) -> tuple[list[tuple[str, str]], np.ndarray | None]:
    """Structures and weights of a tar archive; nothing is written to disk."""
    texts, weights, left = [], None, most_bytes(path)
    try:
        with tarfile.open(path) as archive:
            for member in sorted((m for m in archive if m.isfile()), key=lambda m: natural_key(m.name)):
                name = os.path.basename(member.name)
                lower = name.lower().removesuffix(".gz")
                if not lower.endswith((".pdb", ".ent", ".cif", ".csv", ".dat", ".txt")) or name.startswith("."):
                    continue
                left -= member.size
                file = archive.extractfile(member)
                if left < 0 or file is None:
                    raise InputError(f"{os.path.basename(path)} holds more than can stand in it; unpack it first")
                raw = file.read()
                if name.lower().endswith(".gz"):
                    with gzip.open(io.BytesIO(raw)) as packed:
                        raw = packed.read(left + 1)
                    left -= len(raw)
                text = raw.decode("utf-8", "replace")
                if lower.endswith((".pdb", ".ent", ".cif")):
                    texts.append((name.removesuffix(".gz"), text))
                elif "weight" in lower:
                    weights = _weights_of(text, name)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(f"{os.path.basename(path)} is no archive that can be read: {one_line(error)}") from error
    if not texts:
        raise InputError(f"{os.path.basename(path)} holds no structure: .pdb or .cif files are looked for")
    return texts, weights


def _of_list(path: str) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The files that an .ens names with their weights, a line each; % begins a comment."""
    texts: list[tuple[str, str]] = []
    weights = []
    for number, line in enumerate(_bytes(path).decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("%")[0].split()
        if not words:
            continue
        try:
            name, weight = words[0], float(words[1]) if len(words) > 1 else 1.0
        except ValueError as error:
            raise InputError(f"{os.path.basename(path)}, line {number}: a file and its weight, please; got {line!r}") from error
        member = os.path.join(os.path.dirname(path), name)
        member = next((member + end for end in ("", ".pdb", ".cif") if os.path.isfile(member + end)), member)
        some, _ = _texts(member)
        texts += some
        weights.append(weight)
    if not texts:
        raise InputError(f"{os.path.basename(path)} names no files")
    return texts, np.array(weights)


def read_weights(path: str | os.PathLike[str]) -> np.ndarray:
    """Weights of models from a table: the last column, or that named "weight"; lines of # and a head are passed over."""
    check_input(path)
    return _weights_of(_bytes(os.fspath(path)).decode("utf-8", "replace"), os.path.basename(os.fspath(path)))


def _weights_of(text: str, name: str) -> np.ndarray:
    column, weights = -1, []
    for line in text.splitlines():
        words = [word.strip() for word in re.split(r"[,\s]+", line.partition("#")[0].strip()) if word.strip()]
        if not words:
            continue
        try:
            weights.append(float(words[column]))
        except (ValueError, IndexError) as error:
            lower = [word.lower() for word in words]
            if weights or "weight" not in lower:
                raise InputError(f"{name}: a weight a line is wanted (head model,weight); got {line!r}") from error
            column = lower.index("weight")
    if not weights:
        raise InputError(f"{name} holds no weights")
    return np.array(weights)


@dataclass(frozen=True, eq=False)
class _Part:
    """The models of one text, each with atoms of its own."""

    keys: list[np.ndarray]
    positions: list[np.ndarray]
    first: dict[str, np.ndarray]
    """Columns of the first model: name -> (atoms,)."""
    weights: np.ndarray | None
    calculated: int
    dropped: int
    """Atoms of further alternative locations."""
    provenance: Mapping[str, Any]


def _parsed(name: str, text: str) -> _Part:
    gemmi = gemmi_of()
    lower = name.lower().removesuffix(".gz")
    block = None
    try:
        if lower.endswith((".cif", ".mmcif")):
            block = gemmi.cif.read_string(text)[0]
            structure = gemmi.make_structure_from_block(block)
        else:
            structure = gemmi.read_pdb_string(text)
    except Exception as error:      # its parser raises what it trips over
        raise InputError(f"{name} is no structure that can be read: {one_line(error)}. Ensembles are read from .cif, .pdb "
                         "(also .gz), .tar.gz and .ens") from error
    flat = gemmi.FlatStructure(structure)
    if not len(flat.pos):
        raise InputError(f"{name} has no atoms")
    columns = {"chain": _words(flat.chain_ids), "number": np.array(flat.resnums, np.int64), "insertion": _letters(flat.icodes),
               "residue": _words(flat.residue_names), "atom": _words(flat.atom_names), "alternative": _letters(flat.altlocs),
               "element": flat.element_names.astype(str), "mass": np.array(flat.element_weights, np.float64),
               "occupancy": np.array(flat.occ, np.float64), "b": np.array(flat.b_iso, np.float64)}
    positions, model = np.array(flat.pos, np.float64), np.array(flat.model_num)
    if not np.isfinite(positions).all():
        raise InputError(f"{name}: atom {int(np.argmax(~np.isfinite(positions).all(axis=1))) + 1} has no position")
    keys = np.array(list(zip(*(columns[one] for one in KEY), strict=True)), dtype=[
        (one, columns[one].dtype) for one in KEY])
    kept = _first_locations(keys, model, columns["alternative"])
    keys, positions, model = keys[kept], positions[kept], model[kept]
    edges = np.concatenate([[0], np.flatnonzero(np.diff(model)) + 1, [len(model)]])
    spans = list(pairwise(edges))
    numbers = [int(model[a]) for a, _ in spans]
    weights, calculated, made = (_of_block(block, numbers, name) if block is not None else _of_remarks(text, numbers, name))
    first = slice(*spans[0])
    return _Part([keys[a:b] for a, b in spans], [positions[a:b] for a, b in spans],
                 {one: values[kept][first] for one, values in columns.items()}, weights, calculated, int((~kept).sum()), made)


def _words(x: np.ndarray) -> np.ndarray:
    """(n, 8) bytes as (n,) text."""
    raw = np.ascontiguousarray(x)
    return raw.view(f"S{raw.shape[1]}").ravel().astype(str)


def _letters(x: Any) -> np.ndarray:
    """(n,) characters by their codes, 0 and a blank for none."""
    codes = np.asarray(x)
    if codes.dtype.kind not in "iu":
        return np.char.strip(codes.astype(str))
    return np.char.strip(np.where(codes == 0, ord(" "), codes).astype(np.uint32).view("U1"))


def _first_locations(keys: np.ndarray, model: np.ndarray, alternative: np.ndarray) -> np.ndarray:
    """Which atoms stay, (n,): of alternative locations of one atom of a model the one that stands first."""
    kept = np.ones(len(keys), bool)
    some = np.flatnonzero(alternative != "")
    if len(some):
        seen = set()
        for k in some:
            one = (int(model[k]), *keys[k].item()[:3], str(keys[k]["atom"]))
            kept[k] = one not in seen
            seen.add(one)
    return kept


def _of_block(block: Any, numbers: Sequence[int], name: str) -> tuple[np.ndarray | None, int, Mapping[str, Any]]:
    """Weights, how many conformers were calculated, and provenance, as a block of mmCIF says."""
    def table(category: str, tags: Sequence[str]) -> Iterator[list[str]]:
        for row in block.find(category, list(tags)):
            yield [row.str(k) for k in range(len(tags))]

    calculated = block.find_value("_pdbx_nmr_ensemble.conformers_calculated_total_number")
    count = int(calculated) if calculated and calculated.isdigit() else 0
    record = block.find_pair("_ensemblekit_provenance.json")
    try:
        made = json.loads(gemmi_of().cif.as_string(record[1])) if record else {}
    except ValueError:
        made = {}
    own = dict(table("_ensemblekit_conformer.", ("model", "weight")))
    if own:
        return _numbers([own.get(str(k)) for k in numbers], name), count, made
    fractions = dict(table("_ihm_multi_state_modeling.", ("state_id", "population_fraction")))
    if not fractions:
        return None, count, made
    state_of = {group: state for state, group in table("_ihm_multi_state_model_group_link.", ("state_id", "group_id"))}
    group_of = {model: group for group, model in table("_ihm_model_group_link.", ("group_id", "model_id"))}
    states = [state_of.get(group_of.get(str(k), "")) for k in numbers]
    values = _numbers([fractions.get(state or "") for state in states], name)
    return values / np.array([states.count(state) for state in states]), count, made


def _numbers(words: Sequence[str | None], name: str) -> np.ndarray:
    try:
        return np.array([float(word) if word is not None else np.nan for word in words])
    except ValueError as error:
        raise InputError(f"{name}: a weight of a model is no number: {error}") from error


def _of_remarks(text: str, numbers: Sequence[int], name: str) -> tuple[np.ndarray | None, int, Mapping[str, Any]]:
    head = text[:max(text.find("\nATOM"), text.find("\nMODEL"), 0) or len(text)]
    calculated = CALCULATED.search(head)
    own = dict(WEIGHT_REMARK.findall(head))
    return (_numbers([own.get(str(k)) for k in numbers], name) if own else None,
            int(calculated[1]) if calculated else 0, {})


def _together(parts: Sequence[_Part], names: Sequence[str], listed: Sequence[np.ndarray], common: bool) -> Models:
    keys = [one for part in parts for one in part.keys]
    owner = [name for part, name in zip(parts, names, strict=True) for _ in part.keys]
    positions = [one for part in parts for one in part.positions]
    first = keys[0]
    notes = []
    if dropped := sum(part.dropped for part in parts):
        notes.append(f"{dropped} atoms of further alternative locations were left out; the first of each was taken")
    if any(len(one) != len(first) or (one != first).any() for one in keys):
        if not common:
            raise InputError(_difference(keys, owner))
        held = set(map(tuple, first.tolist()))
        for one in keys[1:]:
            held &= set(map(tuple, one.tolist()))
        if not held:
            raise InputError("the models have no atom in common")
        places = []
        for one in keys:
            at = {tuple(key): k for k, key in enumerate(one.tolist())}
            places.append(np.array([at[key] for key in map(tuple, first.tolist()) if key in held]))
        positions = [x[at] for x, at in zip(positions, places, strict=True)]
        notes.append(f"the {len(held)} atoms that all models have were kept, of {max(map(len, keys))}")
        columns = {name: values[places[0]] for name, values in parts[0].first.items()}
    else:
        columns = parts[0].first
    given = [part.weights for part in parts]
    weights = np.concatenate([one for one in given if one is not None]) if all(one is not None for one in given) else None
    if weights is None and listed:
        weights = np.concatenate(listed)
    return Models(np.array(positions), topology_of_columns(columns), weights, max(part.calculated for part in parts),
                  tuple(notes), parts[0].provenance)


def _difference(keys: Sequence[np.ndarray], owner: Sequence[str]) -> str:
    first = keys[0]
    which = next(k for k, one in enumerate(keys) if len(one) != len(first) or (one != first).any())
    other = keys[which]
    both = min(len(first), len(other))
    apart = np.flatnonzero(first[:both] != other[:both])
    at = int(apart[0]) if len(apart) else both

    def said(one: np.ndarray) -> str:
        if at >= len(one):
            return "none"
        chain, number, insertion, residue, atom = one[at].item()
        return f"{atom} of {residue} {number}{insertion}{' in chain ' + chain if chain else ''}"

    return (f"model {which} ({owner[which]}) has other atoms than model 0 ({owner[0]}): {len(other)} and {len(first)}, and the "
            f"first that differs, atom {at + 1}, is {said(other)} and {said(first)}. An ensemble is of one molecule; "
            "common=True keeps the atoms that all models have")


def topology_of_columns(columns: Mapping[str, np.ndarray]) -> Topology:
    """The topology of atoms with chain, number, insertion, residue, atom, element, mass, occupancy and b, one row each."""
    def changes(*names: str) -> np.ndarray:
        differs = np.zeros(len(columns["atom"]), bool)
        for name in names:
            differs[1:] |= columns[name][1:] != columns[name][:-1]
        return differs

    residue_of = np.cumsum(changes("chain", "number", "insertion", "residue"))
    start = np.unique(residue_of, return_index=True)[1]
    chains = columns["chain"][start]
    order = {chain: k for k, chain in enumerate(dict.fromkeys(chains.tolist()))}

    def text(values: np.ndarray) -> np.ndarray:
        return values.astype(str).astype(object)

    elements = np.char.capitalize(columns["element"].astype(str))
    return Topology({"names": text(columns["atom"]), "elements": text(elements), "types": text(elements),
                     "masses": np.array([MASSES.get(e, m) for e, m in
                                         zip(elements.tolist(), columns["mass"].tolist(), strict=True)]),
                     "chainIDs": text(columns["chain"]),
                     "altLocs": text(columns["alternative"]), "occupancies": columns["occupancy"], "tempfactors": columns["b"]},
                    {"resids": columns["number"][start].astype(np.int64), "resnames": text(columns["residue"][start]),
                     "icodes": text(columns["insertion"][start])},
                    {"segids": np.array(list(order), object)}, residue_of.astype(np.int64),
                    np.array([order[chain] for chain in chains.tolist()], np.int64))


__all__ = ["Models", "read_models", "read_weights"]

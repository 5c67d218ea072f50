"""Writing conformer ensembles: mmCIF with weights where the wwPDB has a place for them, PDB with a table of them beside it."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ensemblekit.errors import InputError
from ensemblekit.files import replacing
from ensemblekit.md.ensemble_files import gemmi_of
from ensemblekit.md.topology import Topology

PDB_ATOMS = 99_999
PDB_LOW, PDB_HIGH = -999.999, 9999.999


def write_models(path: str | os.PathLike[str], positions: np.ndarray, topology: Topology, weights: np.ndarray | None, *,
                 title: str = "", authors: Sequence[str] = (), provenance: Mapping[str, Any] | None = None,
                 calculated: int = 0) -> str:
    """Models (n, atoms, 3) as .cif, .pdb (either .gz) or .tar.gz; returns the path. Whole or not at all.

    weights: (n,), adding up to 1; None: nothing is said of them. Beside a .pdb with weights stands <name>.weights.csv.

    Raises InputError for another suffix, or what PDB has no columns for.
    """
    target = os.fspath(path)
    lower = target.lower()
    facts: dict[str, Any] = {"title": title, "authors": tuple(authors), "provenance": dict(provenance or {}),
                             "calculated": calculated}
    if lower.endswith((".cif", ".cif.gz")):
        return _written(target, _cif(positions, topology, weights, **facts))
    if lower.endswith((".tar.gz", ".tgz")):
        stem = os.path.basename(target).removesuffix(".tar.gz").removesuffix(".tgz")
        files = {f"{stem}.pdb": "".join(_pdb(positions, topology, weights, **facts))}
        if weights is not None:
            files[f"{stem}.weights.csv"] = _table(weights)
        with replacing(target, follow=True) as temporary, open(temporary, "wb") as file:
            file.write(_archive(files))
        return target
    if not lower.endswith((".pdb", ".pdb.gz")):
        raise InputError(f"ensembles are written as .cif, .pdb (also .gz) or .tar.gz; got {os.path.basename(target)!r}")
    lines = list(_pdb(positions, topology, weights, **facts))       # refuses before anything is written
    _written(target, lines)
    beside = f"{os.path.splitext(target.removesuffix('.gz'))[0]}.weights.csv"
    if weights is not None:
        _written(beside, [_table(weights)])
    elif os.path.exists(beside):        # of another ensemble: it would be read as that of this one
        raise InputError(f"{os.path.basename(beside)} stands beside {os.path.basename(target)} and these have no weights: "
                         "remove it, or it is taken for theirs")
    return target


def _written(target: str, lines: Sequence[str] | Iterator[str]) -> str:
    with replacing(target, follow=True) as temporary:
        if target.lower().endswith(".gz"):
            with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed:
                for line in lines:
                    packed.write(line.encode())
        else:
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
    return target


def _archive(files: Mapping[str, str]) -> bytes:
    """A tar.gz of these files, the same bytes whenever it is made."""
    held = io.BytesIO()
    with gzip.GzipFile("", "wb", fileobj=held, mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return held.getvalue()


def _table(weights: np.ndarray) -> str:
    return "model,weight\n" + "".join(f"{k},{float(w)!r}\n" for k, w in enumerate(weights, 1))


def _atoms(topology: Topology) -> list[tuple[str, ...]]:
    """(element, atom, residue, chain, number, insertion) of each atom, in words."""
    def column(name: str) -> np.ndarray:
        return topology.atoms.get(name, np.full(len(topology), "", object))

    icodes = topology.residues.get("icodes", np.full(len(topology.segment_of), "", object))[topology.residue_of]
    chains = column("chainIDs")
    if not any(map(str, chains)):
        chains = topology.segids
    return [(str(e), str(a), str(r), str(c).strip() or "A", str(int(n)), str(i).strip()) for e, a, r, c, n, i in zip(
        column("elements"), topology.names, topology.resnames, chains, topology.resids, icodes, strict=True)]


def _cif(positions: np.ndarray, topology: Topology, weights: np.ndarray | None, *, title: str, authors: Sequence[str],
         provenance: Mapping[str, Any], calculated: int) -> Iterator[str]:
    quote = _quote
    atoms = _atoms(topology)
    n = len(positions)
    yield "data_ensemble\n#\n_entry.id ensemble\n"
    if title:
        yield f"_struct.entry_id ensemble\n_struct.title {quote(title)}\n"
    if authors:
        yield from _loop("_audit_author", ("name", "pdbx_ordinal"), ([quote(one), str(k)] for k, one in enumerate(authors, 1)))
    yield from _loop("_software", ("pdbx_ordinal", "name", "classification"), [["1", "ensemblekit", "refinement"]])
    yield (f"_pdbx_nmr_ensemble.entry_id ensemble\n_pdbx_nmr_ensemble.conformers_calculated_total_number {calculated or '?'}\n"
           f"_pdbx_nmr_ensemble.conformers_submitted_total_number {n}\n#\n")
    chains = list(dict.fromkeys(atom[3] for atom in atoms))
    yield from _loop("_entity", ("id", "type"), ([str(k), "non-polymer"] for k in range(1, len(chains) + 1)))
    yield from _loop("_struct_asym", ("id", "entity_id"), ([quote(chain), str(k)] for k, chain in enumerate(chains, 1)))
    if weights is not None:
        models = [str(k) for k in range(1, n + 1)]
        words = [repr(float(w)) for w in weights]
        yield from _loop("_ihm_model_list", ("model_id", "model_name", "assembly_id", "protocol_id", "representation_id"),
                         ([k, f"conformer_{k}", ".", ".", "."] for k in models))
        yield from _loop("_ihm_model_group", ("id", "name", "details"), ([k, f"conformer_{k}", "."] for k in models))
        yield from _loop("_ihm_model_group_link", ("group_id", "model_id"), ([k, k] for k in models))
        yield from _loop("_ihm_multi_state_modeling", ("state_id", "state_group_id", "population_fraction", "state_type",
                                                       "state_name", "experiment_type", "details"),
                         ([k, "1", word, ".", f"conformer_{k}", ".", "."] for k, word in zip(models, words, strict=True)))
        yield from _loop("_ihm_multi_state_model_group_link", ("state_id", "group_id"), ([k, k] for k in models))
        yield from _loop("_ensemblekit_conformer", ("model", "weight"), zip(models, words, strict=True))
    if provenance:
        yield f"_ensemblekit_provenance.json {quote(json.dumps(provenance, sort_keys=True))}\n#\n"
    entity = {chain: str(k) for k, chain in enumerate(chains, 1)}
    heads, tails = [], []
    for element, atom, residue, chain, number, insertion in atoms:
        heads.append(f"{quote(element.upper() or 'X')} {quote(atom)} . {quote(residue)} {quote(chain)} {entity[chain]} . "
                     f"{insertion or '?'}")
        tails.append(f"1.00 0.00 ? {number} {quote(residue)} {quote(chain)} {quote(atom)}")
    yield "loop_\n" + "".join(f"_atom_site.{tag}\n" for tag in (
        "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id", "label_entity_id",
        "label_seq_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy", "B_iso_or_equiv",
        "pdbx_formal_charge", "auth_seq_id", "auth_comp_id", "auth_asym_id", "auth_atom_id", "pdbx_PDB_model_num"))
    serial = 0
    for model, x in enumerate(positions, 1):
        lines = []
        for head, tail, (a, b, c) in zip(heads, tails, x.tolist(), strict=True):
            serial += 1
            lines.append(f"ATOM {serial} {head} {a:.3f} {b:.3f} {c:.3f} {tail} {model}\n")
        yield "".join(lines)
    yield "#\n"


def _quote(text: str) -> str:
    """A value of mmCIF; one that holds both quotes stands between lines of its own."""
    quoted = str(gemmi_of().cif.quote(text))
    return f"\n{quoted}\n" if quoted.startswith(";") else quoted


def _loop(category: str, tags: Sequence[str], rows: Any) -> Iterator[str]:
    yield "loop_\n" + "".join(f"{category}.{tag}\n" for tag in tags)
    yield "".join(" ".join(row) + "\n" for row in rows)
    yield "#\n"


def _pdb(positions: np.ndarray, topology: Topology, weights: np.ndarray | None, *, title: str, authors: Sequence[str],
         provenance: Mapping[str, Any], calculated: int) -> Iterator[str]:
    del provenance       # PDB has no place for it
    atoms = _atoms(topology)
    _check_columns(positions, atoms)
    for k, a in enumerate(range(0, len(title), 70), 1):
        yield f"TITLE   {k if k > 1 else '':>2}{title[a:a + 70]:<70}".rstrip() + "\n"
    if authors:
        yield f"AUTHOR    {','.join(authors)}"[:80].rstrip() + "\n"
    if calculated:
        yield f"REMARK 210  CONFORMERS, NUMBER CALCULATED   : {calculated}\n"
    if weights is not None:
        yield "REMARK  99\nREMARK  99 STATISTICAL WEIGHTS OF THE MODELS\n"
        yield "".join(f"REMARK  99 MODEL {k} WEIGHT {float(w)!r}\n" for k, w in enumerate(weights, 1))
    heads, tails = [], []
    for serial, (element, atom, residue, chain, number, insertion) in enumerate(atoms, 1):
        name = f" {atom:<3}" if len(atom) < 4 and len(element) < 2 else f"{atom:<4}"
        heads.append(f"ATOM  {serial:>5} {name} {residue:>3} {chain}{number:>4}{insertion or ' '}   ")
        tails.append(f"  1.00  0.00          {element.upper():>2}\n")
    for model, x in enumerate(positions, 1):
        yield f"MODEL     {model:>4}\n"
        yield "".join(f"{head}{a:8.3f}{b:8.3f}{c:8.3f}{tail}"
                      for head, tail, (a, b, c) in zip(heads, tails, x.tolist(), strict=True))
        yield "ENDMDL\n"
    yield "END\n"


def _check_columns(positions: np.ndarray, atoms: Sequence[tuple[str, ...]]) -> None:
    """Refuse what the columns of PDB do not hold."""
    def refuse(what: str) -> InputError:
        return InputError(f"{what}, and PDB has no columns for it: write .cif")

    if len(atoms) > PDB_ATOMS:
        raise refuse(f"there are {len(atoms)} atoms")
    if len(positions) > 9999:
        raise refuse(f"there are {len(positions)} models")
    if positions.min() < PDB_LOW or positions.max() > PDB_HIGH:
        raise refuse(f"coordinates run from {positions.min():.0f} to {positions.max():.0f} angstrom")
    for _, atom, residue, chain, number, insertion in atoms:
        if len(atom) > 4 or len(residue) > 3 or len(chain) > 1 or len(number) > 4 or len(insertion) > 1:
            raise refuse(f"there is an atom {atom} of {residue} {number} in chain {chain}")


__all__ = ["write_models"]

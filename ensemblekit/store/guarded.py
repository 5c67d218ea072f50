"""HDF5 files as a stranger's file may be read: nothing outside the file, and nothing that its real bytes do not justify.

Files come from downloads. What they say of themselves (links, sizes, sources of virtual datasets) is looked at before
libhdf5 acts on it, and whatever goes wrong leaves by one door, as a StoreError of one line.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from ensemblekit.errors import EnsemblekitError, MissingExtraError, StoreError, one_line
from ensemblekit.files import DENSEST, FREE_BYTES, real_bytes, why_unreadable
from ensemblekit.store.filters import missing_filter
from ensemblekit.store.metadata import LARGEST_HEAP, Metadata, metadata_of

DENSEST_ROWS = 1 << 16
"""The same where rows are read piece by piece, which takes time and no memory: zstd packs 128 KiB of zeros in four bytes."""
STEPS_AT_LEAST = 1 << 16
"""Links and chunks that are walked in a file of any size."""
DEEPEST = 16
"""Links that lead to links, and virtual datasets of virtual datasets."""
MOST_GROUPS = 16
"""Groups of a file that are kept open while it is looked at."""
LONGEST_NAME = 200

Key = int | slice | Sequence[int] | np.ndarray | tuple[Any, ...]
"""How a dataset is indexed, as in h5py."""
ODD = (OSError, LookupError, ValueError, TypeError, ArithmeticError, MemoryError, RuntimeError, AttributeError,
       AssertionError, SystemError, EOFError, struct.error)
"""What h5py, libhdf5 and numpy raise where a file is not as it should be (UnicodeError is a ValueError, RecursionError
a RuntimeError)."""


@contextmanager
def door(look: Look) -> Iterator[None]:
    """Whatever goes wrong while a file is looked at leaves as a StoreError that names the file and the object."""
    try:
        yield
    except EnsemblekitError:
        raise
    except ODD as error:
        what = f" {look.at!r}" if look.at else ""
        raise StoreError(f"{look.path}:{what} cannot be read ({type(error).__name__}: {one_line(error)}). The file is damaged "
                         "or not what it says") from error


@contextmanager
def record(path: object, what: str) -> Iterator[None]:
    """Whatever goes wrong while a result in a file is put together again leaves as a StoreError that names both."""
    try:
        yield
    except EnsemblekitError:
        raise
    except ODD as error:
        raise StoreError(f"{path}: the {what} in it cannot be read ({type(error).__name__}: {one_line(error)}). The file is "
                         "damaged or not what it says") from error


class Look:
    """What is known of one file while it is open: its real size, what was spent, and the object looked at."""

    def __init__(self, path: str, external: bool = False):
        stat = os.stat(path)
        why = why_unreadable(path)
        if why:
            raise StoreError(f"{path} {why}")
        self.path, self.external = path, external
        self.size, self.real = stat.st_size, real_bytes(stat)
        self.asked = False
        """What is read now was asked for by whoever uses the file, by its rows, not by the file: as much as they like."""
        self.at = ""
        self.steps = STEPS_AT_LEAST + self.real
        self.free = FREE_BYTES
        self.sources: set[str] = set()
        """Datasets of the file that virtual ones take their values from, looked at already."""
        self.groups: dict[tuple[bytes, ...], Any] = {}
        """Groups that were found, by their names from the root."""
        self.metadata: Metadata | None = None
        """HDF5's structures in the file, where they can be looked at; not with `external`, as they may be another file's."""

    def step(self) -> None:
        """One more link or chunk. Raises StoreError where there are more than the file's bytes can hold."""
        self.steps -= 1
        if self.steps < 0:
            raise StoreError(f"{self.path}: {self.at!r} has more parts than {self.real} bytes can hold; it is not read")

    def nearest(self, file: h5py.h5f.FileID, parts: list[bytes]) -> tuple[tuple[bytes, ...], Any]:
        """The group above the last of `parts` that is known, as names from the root and open; the root where none is."""
        for n in range(len(parts) - 1, 0, -1):
            group = self.groups.get(tuple(parts[:n]))
            if group is not None and group.valid:
                return tuple(parts[:n]), group
        root = self.groups.get(())
        if root is None or not root.valid:
            root = self.groups[()] = h5py.h5g.open(file, b"/")
        return (), root

    def keep(self, path: tuple[bytes, ...], group: h5py.h5g.GroupID) -> None:
        """Remember a group that was found at these names from the root, as most objects have neighbours."""
        if len(self.groups) >= MOST_GROUPS:
            self.groups.clear()
        self.groups[path] = group

    def outside(self, name: str, where: object) -> StoreError:
        return StoreError(f"{self.path}: {one_line(name)[:LONGEST_NAME]!r} points to another file, {one_line(where)!r}. "
                          "Nothing outside a file is read unless you trust it and pass external=True")

    def check_some(self, nbytes: int, what: str) -> None:
        """Raise StoreError where a part of the file is larger than all of its bytes can be, unpacked."""
        if nbytes > max(FREE_BYTES, self.real * DENSEST) and not (self.external or self.asked):
            raise StoreError(f"{self.path}: {one_line(what)[:LONGEST_NAME]!r} asks for {nbytes} bytes, where the file has "
                             f"{self.real}; they are not read")

    def check_size(self, d: h5py.Dataset, densest: int = DENSEST) -> None:
        """Raise StoreError where all values of a dataset are more than its bytes in the file can be.

        Arguments:
            densest: times that a filter may unpack them.
        """
        nbytes = math.prod(d.shape or ()) * d.dtype.itemsize
        if nbytes <= self.free // 8:
            self.free -= nbytes
            return
        how = d.id.get_create_plist()
        if how.get_layout() == h5py.h5d.VIRTUAL or (self.external and how.get_external_count()):
            stored = self.size if not self.external else nbytes
        else:
            stored = min(d.id.get_storage_size(), self.size)
        if nbytes > stored * (densest if how.get_nfilters() else 1) or (nbytes > self.real * densest and not self.external):
            self.free -= nbytes
            if self.free < 0:
                raise StoreError(f"{self.path}: {one_line(d.name)!r} says it has {nbytes} bytes (shape {d.shape}), where "
                                 f"{stored} stand in the file; it is not read as a whole")


def find(look: Look, start: h5py.h5g.GroupID | h5py.h5f.FileID, name: bytes, seen: tuple[bytes, ...] = ()) -> Any:
    """The object of that name, link by link. Raises KeyError where there is none, StoreError where it is outside.

    Arguments:
        start: a group, or the file for its root.
    """
    here = h5py.h5i.get_file_id(start) if name.startswith(b"/") else start
    look.at = name.decode("utf-8", "replace")[:LONGEST_NAME]
    elsewhere = True
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    path: tuple[bytes, ...] | None = None
    if isinstance(here, h5py.h5f.FileID):
        path, here = look.nearest(here, parts)
    for part in parts[len(path or ()):]:
        look.step()
        if not isinstance(here, h5py.h5g.GroupID):
            raise KeyError(f"there is no {look.at!r}")
        try:
            info = here.links.get_info(part)
        except (KeyError, RuntimeError):
            if here.links.exists(part):     # and yet it cannot be read
                raise
            raise KeyError(f"there is no {look.at!r}") from None
        kind = info.type
        if kind == h5py.h5l.TYPE_SOFT:
            if len(seen) >= DEEPEST:
                raise StoreError(f"{look.path}: {look.at!r} is a link that leads to links without end")
            here = find(look, here, here.links.get_val(part), (*seen, name))
        elif kind == h5py.h5l.TYPE_HARD or look.external:
            elsewhere = look.metadata is None or look.metadata.check_object(info.u)
            here = h5py.h5o.open(here, part)
        else:
            where = here.links.get_val(part)[0] if kind == h5py.h5l.TYPE_EXTERNAL else b"by a link of unknown kind"
            raise look.outside(name.decode("utf-8", "replace"), where.decode("utf-8", "replace"))
        if path is not None:
            path = (*path, part)
            if isinstance(here, h5py.h5g.GroupID):
                look.keep(path, here)
    if elsewhere and isinstance(here, h5py.h5d.DatasetID):
        check_sources(look, here, name, seen)
    return here


def check_sources(look: Look, d: h5py.h5d.DatasetID, name: bytes, seen: tuple[bytes, ...] = ()) -> None:
    """Raise StoreError where a dataset's values stand in another file, or are made of themselves."""
    how = d.get_create_plist()
    if how.get_layout() != h5py.h5d.VIRTUAL:
        if how.get_external_count() and not look.external:
            raise look.outside(name.decode("utf-8", "replace"), how.get_external(0)[0].decode("utf-8", "replace"))
        return
    if len(seen) >= DEEPEST:
        raise StoreError(f"{look.path}: {look.at!r} is a virtual dataset made of virtual datasets without end")
    sources = set()
    for k in range(how.get_virtual_count()):
        look.step()
        sources.add((how.get_virtual_filename(k), how.get_virtual_dsetname(k)))
    for file, source in sources:
        if any("%" in one.replace("%%", "") for one in (file, source)) and not look.external:   # made as the dataset grows
            raise look.outside(name.decode("utf-8", "replace"), f"{file} {source}")
        file, source = file.replace("%%", "%"), source.replace("%%", "%")
        if file == ".":
            if source in look.sources:
                continue
            try:
                find(look, d, _absolute(source), (*seen, name))
            except KeyError:
                pass        # its rows are fill values
            look.sources.add(source)
        elif look.external:
            continue
        elif _is_of_its_store(look.path, file):
            _check_beside(look, file, source, (*seen, name))
        else:
            raise look.outside(name.decode("utf-8", "replace"), file)


def literal(name: str) -> str:
    """A name as the source of a virtual dataset, where a % begins what stands for a number."""
    return name.replace("%", "%%")


def _absolute(name: str) -> bytes:
    return b"/" + name.encode().lstrip(b"/")


def _is_of_its_store(path: str, file: str) -> bool:
    """Whether a view that `store.publish` made (run.view.vtkhdf) points to a file of its store beside it (run.h5)."""
    stem, view, _ = os.path.basename(path).partition(".view.")
    beside = os.path.join(os.path.dirname(os.path.abspath(path)), file)
    return bool(view) and re.fullmatch(re.escape(stem) + r"(\.\d{4,})?\.[A-Za-z0-9]+", file) is not None and \
        not os.path.islink(beside)


def _check_beside(look: Look, file: str, source: str, seen: tuple[bytes, ...]) -> None:
    beside = os.path.join(os.path.dirname(os.path.abspath(look.path)), file)
    if not os.path.isfile(beside):
        return
    other = Look(beside)
    with File(beside, other, locking=False) as f:
        try:
            find(other, f.id, _absolute(source), seen)
        except KeyError:
            pass


class Attributes(h5py.AttributeManager):
    """Attributes that are read only where they stand in the file as they say."""

    def __init__(self, parent: h5py.HLObject, look: Look):
        super().__init__(parent)
        self._look, self._parent = look, parent

    def __getitem__(self, name: str | bytes) -> Any:
        key = self._e(name)
        if h5py.h5a.exists(self._parent.id, key):
            held = h5py.h5a.open(self._parent.id, key)
            if held.shape is not None:
                self._look.check_some(math.prod(held.shape) * max(1, held.dtype.itemsize), f"{self._parent.name}: {name!r}")
            # what is of variable length stands in a collection elsewhere in the file
            if self._look.metadata and (held.dtype.hasobject or held.get_type().detect_class(h5py.h5t.VLEN)):
                self._look.metadata.check_text(h5py.h5o.get_info(self._parent.id).addr, key, LARGEST_HEAP)
        return super().__getitem__(name)

    def get(self, name: str | bytes, default: object = None) -> Any:
        return self[name] if name in self else default


class _Attributed:
    """An object whose attributes are :class:`Attributes`."""

    _look: Look

    @property
    def attrs(self) -> Attributes:
        return Attributes(self, self._look)


class Values(_Attributed, h5py.Dataset):
    """A dataset of which no more is read than the file's bytes justify."""

    def __init__(self, id_: h5py.h5d.DatasetID, look: Look):
        super().__init__(id_, readonly=True)
        self._look = look

    def __getitem__(self, key: Key, new_dtype: np.dtype | None = None) -> Any:
        if key is Ellipsis or (isinstance(key, tuple) and not key):
            self._look.check_size(self)
        elif self.size and self.nbytes > FREE_BYTES:
            self._look.check_some(_selected(key, self.shape) * self.dtype.itemsize, str(self.name))
        try:
            return super().__getitem__(key, new_dtype)
        except OSError as error:
            missing = missing_filter(self.id.get_create_plist())
            if missing:
                what = f"{self._look.path}: {one_line(self.name)[:LONGEST_NAME]!r} is compressed by {missing}"
                raise MissingExtraError("hdf5plugin", "compress", what) from error
            raise


def _selected(key: Key, shape: tuple[int, ...]) -> int:
    """At most so many elements are chosen by numbers and slices, one an axis; lists and masks are taken for what they are."""
    keys = key if isinstance(key, tuple) else (key,)
    if any(k is Ellipsis for k in keys):
        at = next(n for n, k in enumerate(keys) if k is Ellipsis)
        keys = (*keys[:at], *[slice(None)] * (len(shape) + 1 - len(keys)), *keys[at + 1:])
    n = 1
    for k, extent in zip(keys, shape, strict=False):
        n *= len(range(*k.indices(extent))) if isinstance(k, slice) else int(np.size(k))
    return n * math.prod(shape[len(keys):])


class _Members(_Attributed):
    """A group whose members are found link by link, none of them outside the file."""

    id: h5py.h5d.DatasetID

    def __getitem__(self, name: str | bytes) -> Any:
        if isinstance(name, str | bytes):
            return wrapped(find(self._look, self.id, name.encode() if isinstance(name, str) else name), self._look)
        node = h5py.h5r.dereference(name, self.id)
        if isinstance(node, h5py.h5d.DatasetID):
            check_sources(self._look, node, h5py.h5i.get_name(node) or b"(a reference)")
        return wrapped(node, self._look)

    def __contains__(self, name: str | bytes) -> bool:
        try:
            self[name]
        except KeyError:
            return False
        return True

    def get(self, name: str | bytes, default: object = None, getclass: bool = False, getlink: bool = False) -> Any:
        if getclass or getlink:
            return super().get(name, default, getclass, getlink)        # type: ignore[misc]
        try:
            return self[name]
        except KeyError:
            return default

    def visititems(self, func: Callable[[str, Any], Any]) -> Any:
        """Call func(name, object) for every object below, each once, in the order of names; hard links only."""
        for name, node in walk(self, self._look):
            value = func(name, node)
            if value is not None:
                return value
        return None


class Group(_Members, h5py.Group):
    def __init__(self, id_: h5py.h5g.GroupID, look: Look):
        h5py.Group.__init__(self, id_)
        self._look = look


class File(_Members, h5py.File):
    """A file that is open for reading under these rules."""

    def __init__(self, path: str, look: Look, **options: object):
        with open(path, "rb") as raw:
            metadata = metadata_of(raw.fileno())
            if metadata:
                metadata.check_superblock()
        h5py.File.__init__(self, path, "r", **options)
        self._look = look
        if metadata and not look.external:
            look.metadata = Metadata(self.id.get_vfd_handle(), metadata.base)


def wrapped(node: h5py.HLObject, look: Look) -> Any:
    if isinstance(node, h5py.h5d.DatasetID):
        return Values(node, look)
    if isinstance(node, h5py.h5g.GroupID):
        return Group(node, look)
    return h5py.Datatype(node)


def walk(group: _Members, look: Look, left_out: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """(path, object) of everything below a group by hard links, each object once.

    With `left_out`, what cannot be read is noted there and passed over.
    """
    root = h5py.h5g.open(group.id, b"/") if isinstance(group.id, h5py.h5f.FileID) else group.id
    visited = {h5py.h5o.get_info(root).addr}
    stack = [(b"", root)]
    while stack:
        prefix, here = stack.pop()
        names: list[tuple[bytes, int, Any]] = []

        def note(name: bytes, info: h5py.h5l.LinkInfo, names: list[tuple[bytes, int, Any]] = names) -> None:
            look.step()
            names.append((name, info.type, info.u))

        look.at = prefix.decode("utf-8", "replace")[:LONGEST_NAME] or "/"
        try:
            here.links.iterate(note, info=True)
        except ODD as error:
            if left_out is None or isinstance(error, EnsemblekitError):
                raise
            left_out.append(f"{look.at!r} ({one_line(error)})")
        groups = []
        for name, kind, target in names:
            path = prefix + name
            look.at = path.decode("utf-8", "replace")[:LONGEST_NAME]
            try:
                if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT) and not look.external:
                    raise look.outside(look.at, "by an external link")
                if kind != h5py.h5l.TYPE_HARD:
                    continue        # what a soft link names is met under its own name
                if look.metadata:
                    look.metadata.check_object(target)
                node = h5py.h5o.open(here, name)
                address = h5py.h5o.get_info(node).addr
                if address in visited:
                    continue
                visited.add(address)
                if isinstance(node, h5py.h5d.DatasetID):
                    check_sources(look, node, path)
                elif isinstance(node, h5py.h5g.GroupID):
                    groups.append((path + b"/", node))
                text = path.decode("utf-8")
            except ODD as error:
                if left_out is None:
                    raise
                left_out.append(str(error) if isinstance(error, EnsemblekitError) else f"{look.at!r} ({one_line(error)})")
                continue
            yield text, wrapped(node, look)
        stack += reversed(groups)



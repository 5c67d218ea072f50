"""The loops over cells of a mesh: plain, serial, outside Python's lock.

A cell's volume is cut into tetrahedra (centre of the cell, centre of a face, edge of the face), a polygon's area into
triangles (centre, edge), each centre the mean of its corners; every such part belongs half to each end of its edge.
The sum over a cell is exact for planar faces and, as both splits of a quadrilateral into triangles weigh the same in
it, for the curved (bilinear) faces of a hexahedron too; the halves make the median dual of the points.
"""

from __future__ import annotations

import numpy as np

from ensemblekit.jit import kernel


@kernel
def tetrahedron(points, c, f, a, b):
    """Six times the signed volume of centre c (3,), face centre f (3,) and points a, b (numbers)."""
    ax, ay, az = points[a, 0] - c[0], points[a, 1] - c[1], points[a, 2] - c[2]
    bx, by, bz = points[b, 0] - c[0], points[b, 1] - c[1], points[b, 2] - c[2]
    fx, fy, fz = f[0] - c[0], f[1] - c[1], f[2] - c[2]
    return fx * (ay * bz - az * by) + fy * (az * bx - ax * bz) + fz * (ax * by - ay * bx)


@kernel
def centre_of(points, members, begin, end, out):
    """Mean of points[members[begin:end]] into out (3,)."""
    for k in range(3):
        out[k] = 0.0
    for j in range(begin, end):
        for k in range(3):
            out[k] += points[members[j], k]
    for k in range(3):
        out[k] /= max(end - begin, 1)


@kernel
def solid_cells(points, connectivity, offsets, types, faces_of, faces, chosen, volumes, shares):
    """Volumes of cells with a fixed list of faces (tetrahedra, hexahedra, wedges, ...).

    points (n, 3) float64; faces_of (types, 2): first and last row in faces of a type; faces (rows, 7): number of
    corners, then local corners, ordered so that the normal points out. chosen: numbers of the cells to do. volumes
    (n_cells,) is filled; shares (n_points,) added to, unless it is empty.
    """
    c, f, local = np.empty(3), np.empty(3), np.zeros(32)
    corners = np.empty(8, np.int64)
    for i in chosen:
        begin, end = offsets[i], offsets[i + 1]
        n = end - begin
        centre_of(points, connectivity, begin, end, c)
        total = 0.0
        for k in range(n):
            local[k] = 0.0
        for row in range(faces_of[types[i], 0], faces_of[types[i], 1]):
            size = faces[row, 0]
            for k in range(size):
                corners[k] = connectivity[begin + faces[row, 1 + k]]
            centre_of(points, corners, 0, size, f)
            for k in range(size):
                after = k + 1 if k + 1 < size else 0
                part = tetrahedron(points, c, f, corners[k], corners[after])
                total += part
                local[faces[row, 1 + k]] += part
                local[faces[row, 1 + after]] += part
        sign = 1.0 if total >= 0 else -1.0          # a cell listed inside out
        volumes[i] = sign * total / 6
        if len(shares):
            for k in range(n):
                shares[connectivity[begin + k]] += sign * local[k] / 12


@kernel
def polyhedra(points, face_offsets, face_points, cell_offsets, cell_faces, chosen, volumes, shares):
    """Volumes of polyhedra: cell chosen[j] has the faces cell_faces[cell_offsets[j]:cell_offsets[j + 1]].

    Faces may be listed in either sense: the normal is taken to point away from the mean of the face centres.
    """
    c, f = np.empty(3), np.empty(3)
    for j in range(len(chosen)):
        for k in range(3):
            c[k] = 0.0
        first, last = cell_offsets[j], cell_offsets[j + 1]
        for at in range(first, last):
            face = cell_faces[at]
            centre_of(points, face_points, face_offsets[face], face_offsets[face + 1], f)
            for k in range(3):
                c[k] += f[k] / (last - first)
        total = 0.0
        for at in range(first, last):
            face = cell_faces[at]
            begin, end = face_offsets[face], face_offsets[face + 1]
            centre_of(points, face_points, begin, end, f)
            part = 0.0
            for e in range(begin, end):
                after = e + 1 if e + 1 < end else begin
                part += tetrahedron(points, c, f, face_points[e], face_points[after])
            sign = 1.0 if part >= 0 else -1.0
            total += sign * part
            if len(shares):
                for e in range(begin, end):
                    after = e + 1 if e + 1 < end else begin
                    piece = sign * tetrahedron(points, c, f, face_points[e], face_points[after]) / 12
                    shares[face_points[e]] += piece
                    shares[face_points[after]] += piece
        volumes[chosen[j]] = total / 6


@kernel
def face_flux(points, face_offsets, face_points, owner, neighbour, volumes):
    """Cell volumes by the divergence theorem: each face's share goes to its owner and comes off its neighbour.

    Faces point from owner to neighbour; those behind the last neighbour are of the boundary.
    """
    c, f = np.zeros(3), np.empty(3)
    for k in range(3):                              # a near origin keeps the digits of meshes far from zero
        c[k] = points[0, k] if len(points) else 0.0
    for face in range(len(owner)):
        begin, end = face_offsets[face], face_offsets[face + 1]
        centre_of(points, face_points, begin, end, f)
        part = 0.0
        for e in range(begin, end):
            after = e + 1 if e + 1 < end else begin
            part += tetrahedron(points, c, f, face_points[e], face_points[after])
        volumes[owner[face]] += part / 6
        if face < len(neighbour):
            volumes[neighbour[face]] -= part / 6


@kernel
def flat_cells(points, connectivity, offsets, chosen, areas, shares):
    """Areas of polygons: planar ones exactly, also where they are not convex; others as a fan about their middle."""
    f, normal, t = np.empty(3), np.empty(3), np.empty(3)
    for i in chosen:
        begin, end = offsets[i], offsets[i + 1]
        centre_of(points, connectivity, begin, end, f)
        for turn in range(2):
            if turn == 0:
                normal[:] = 0.0
            total = 0.0
            for e in range(begin, end):
                after = e + 1 if e + 1 < end else begin
                a, b = connectivity[e], connectivity[after]
                ax, ay, az = points[a, 0] - f[0], points[a, 1] - f[1], points[a, 2] - f[2]
                bx, by, bz = points[b, 0] - f[0], points[b, 1] - f[1], points[b, 2] - f[2]
                t[0], t[1], t[2] = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
                if turn == 0:
                    for k in range(3):
                        normal[k] += t[k]
                    continue
                area = np.sqrt(t[0] * t[0] + t[1] * t[1] + t[2] * t[2])
                if t[0] * normal[0] + t[1] * normal[1] + t[2] * normal[2] < 0:
                    area = -area
                total += area
                if len(shares):
                    shares[a] += area / 4
                    shares[b] += area / 4
        areas[i] = total / 2


@kernel
def line_cells(points, connectivity, offsets, chosen, lengths, shares):
    """Lengths of lines and polylines."""
    for i in chosen:
        total = 0.0
        for e in range(offsets[i], offsets[i + 1] - 1):
            a, b = connectivity[e], connectivity[e + 1]
            length = np.sqrt((points[b, 0] - points[a, 0]) ** 2 + (points[b, 1] - points[a, 1]) ** 2
                             + (points[b, 2] - points[a, 2]) ** 2)
            total += length
            if len(shares):
                shares[a] += length / 2
                shares[b] += length / 2
        lengths[i] = total


@kernel
def face_starts(numbers, starts):
    """Where each face begins in a list "4 a b c d 3 e f g ...": starts (n_faces + 1,); returns whether the list fits."""
    at = 0
    for face in range(len(starts) - 1):
        if at >= len(numbers) or numbers[at] < 0:
            return False
        starts[face] = at
        at += numbers[at] + 1
    starts[len(starts) - 1] = at
    return at == len(numbers)


@kernel
def recognise_cells(face_offsets, face_points, owner, cell_offsets, cell_faces, types, corners):
    """VTK's type and corners of cells given by faces that point out of their owners; 42 where it is no simple shape.

    cell_offsets, cell_faces: the faces of each cell. types (n_cells,) and corners (n_cells, 8) are filled.
    """
    bottom = np.empty(4, np.int64)
    for i in range(len(types)):
        first, last = cell_offsets[i], cell_offsets[i + 1]
        triangles = quads = 0
        for at in range(first, last):
            size = face_offsets[cell_faces[at] + 1] - face_offsets[cell_faces[at]]
            triangles += size == 3
            quads += size == 4
        n = last - first
        types[i] = 42
        if n == 6 and quads == 6:
            kind, base = 12, 4
        elif n == 5 and triangles == 2 and quads == 3:
            kind, base = 13, 3
        elif n == 5 and triangles == 4 and quads == 1:
            kind, base = 14, 4
        elif n == 4 and triangles == 4:
            kind, base = 10, 3
        else:
            continue
        ground = -1
        for at in range(first, last):
            face = cell_faces[at]
            if face_offsets[face + 1] - face_offsets[face] == base:
                ground = face
                break
        outward = owner[ground] == i
        for k in range(base):
            bottom[k] = face_points[face_offsets[ground] + k]
        if outward == (kind != 13):                 # VTK's wedge stands on a face that points out, the others do not
            bottom[0], bottom[base - 1] = bottom[base - 1], bottom[0]
            if base == 4:
                bottom[1], bottom[2] = bottom[2], bottom[1]
        good = True
        for k in range(base):
            corners[i, k] = bottom[k]
            top = -1
            for at in range(first, last):
                face = cell_faces[at]
                if face == ground:
                    continue
                begin, end = face_offsets[face], face_offsets[face + 1]
                for e in range(begin, end):
                    if face_points[e] != bottom[k]:
                        continue
                    before = face_points[e - 1 if e > begin else end - 1]
                    after = face_points[e + 1 if e + 1 < end else begin]
                    for other in (before, after):
                        free = True
                        for j in range(base):
                            if bottom[j] == other:
                                free = False
                        if free:
                            if top >= 0 and top != other:
                                good = False
                            top = other
            if top < 0:
                good = False
            elif kind == 12 or kind == 13:
                corners[i, base + k] = top
            elif k == 0:
                corners[i, base] = top
            elif corners[i, base] != top:
                good = False
        if good:
            types[i] = kind

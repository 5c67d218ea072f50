"""Tables that MD programs write beside their trajectories."""

from __future__ import annotations

import numpy as np
import pytest

import ensemblekit as ek
from ensemblekit import md
from ensemblekit.errors import InputError

XVG = r"""# gmx energy
@    title "GROMACS Energies"
@    xaxis  label "Time (ps)"
@    yaxis  label "(kJ/mol), (K)"
@TYPE xy
@ s0 legend "Potential"
@ s1 legend "Temperature"
"""


def rows(n, seed=1):
    x = np.random.default_rng(seed).normal(size=(n, 2))
    return np.column_stack([np.arange(n) * 0.2, -1000 + x[:, 0], 300 + x[:, 1]])


def test_xvg_columns_have_names_units_and_times(tmp_path):
    table = rows(200)
    path = tmp_path / "energy.xvg"
    path.write_text(XVG + "\n".join(" ".join(f"{v:.6f}" for v in row) for row in table) + "\n&\n")
    columns = md.columns(path)
    assert list(columns) == ["Potential", "Temperature"]
    answer = ek.average(columns["Potential"])
    assert answer.mean == pytest.approx(table[:, 1].mean(), abs=1e-6)
    assert (answer.unit, answer.time_unit) == ("kJ/mol", "ps")
    np.testing.assert_allclose(answer.times, table[:, 0], atol=1e-6)
    assert columns["Temperature"].units == {"Temperature": "K"}
    with pytest.raises(KeyError, match="Potential"):
        columns["Nothing"]


def test_times_in_ns_become_ps_and_grace_marks_go(tmp_path):
    path = tmp_path / "d.xvg"
    path.write_text('@ xaxis label "Time (ns)"\n@ yaxis label "MSD (nm\\S2\\N)"\n0.0 1.0\n0.5 2.0 # a remark\n1.0 3.0\n')
    columns = md.columns(path)
    np.testing.assert_array_equal(columns.times, [0, 500, 1000])
    assert list(columns) == ["MSD"]


def test_colvar_with_its_weights_and_a_restart(tmp_path):
    path = tmp_path / "COLVAR"
    head = "#! FIELDS time phi w\n#! SET min_phi -pi\n"
    path.write_text(head + "0 1 0.5\n1 2 0.5\n2 9 0.5\n3 9 0.5\n" + head + "2 3 1.5\n3 4 1.5\n")
    with pytest.warns(UserWarning, match="2 rows that were written again later are left out"):
        columns = md.columns(path, weights="w")
    answer = ek.reduce(columns["phi"], ek.Moments())
    np.testing.assert_array_equal(columns.times, [0, 1, 2, 3])
    assert answer.mean == pytest.approx((0.5 * 1 + 0.5 * 2 + 1.5 * 3 + 1.5 * 4) / 4)


def test_a_row_that_a_restart_wrote_twice_counts_once(tmp_path):
    path = tmp_path / "COLVAR"
    head = "#! FIELDS time phi\n"
    path.write_text(head + "0 1\n1 2\n2 3\n" + head + "2 3\n3 4\n3 5\n")      # the last two share a rounded time alone
    with pytest.warns(UserWarning, match=r"COLVAR: 1 row written twice, as by a restart \(the first at row 3\), counts once"):
        columns = md.columns(path)
    np.testing.assert_array_equal(columns.times, [0, 1, 2, 3, 3])
    np.testing.assert_array_equal(columns.numbers["phi"], [1, 2, 3, 4, 5])


def turning(n=600, seed=1):
    """An angle in radians, a slow walk around pi, between -pi and pi."""
    x = np.zeros(n)
    for k, noise in enumerate(np.random.default_rng(seed).normal(0, 0.2, n - 1)):
        x[k + 1] = 0.8 * x[k] + noise
    return (x + 2 * np.pi) % (2 * np.pi) - np.pi


def colvar(path, head, *columns):
    rows = np.column_stack([np.arange(len(columns[0])) * 0.5, *columns])
    path.write_text(head + "\n".join(" ".join(f"{v:.6f}" for v in row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize(("low", "high", "branch"), [
    ("-pi", "pi", -np.pi), ("-3.141593", "+3.141593", -np.pi), ("0", "2*pi", 0.0), ("-pi", "1.0pi", -np.pi),
    ("-4*pi/2", "0", -2 * np.pi)])
def test_plumeds_periodic_columns_are_averaged_on_the_circle(tmp_path, low, high, branch):
    phi = turning()
    columns = md.columns(colvar(tmp_path / "COLVAR", f"#! FIELDS time phi d\n#! SET min_phi {low}\n#! SET max_phi {high}\n",
                                (phi - branch) % (2 * np.pi) + branch, phi))
    answer = ek.average(columns["phi"])
    assert abs(np.remainder(answer.mean, 2 * np.pi) - np.pi) < answer.high - answer.low < 0.3
    assert answer.converged
    assert branch <= answer.mean <= branch + 2 * np.pi
    assert answer.resultant.mean == pytest.approx(np.abs(np.exp(1j * phi).mean()), abs=1e-6)
    twice = ek.average(ek.ReplicaSet.of([columns["phi"].window(0, 300), columns["phi"].window(300)]))
    assert abs(np.remainder(twice.mean, 2 * np.pi) - np.pi) < 0.2
    assert abs(ek.average(columns["d"]).mean) < 2.5       # nobody said that it comes round: a plain mean, which is doubted
    assert not ek.average(columns["d"]).converged


def test_periods_that_cannot_be_read_are_told(tmp_path):
    head = "#! FIELDS time phi\n"
    with pytest.warns(UserWarning, match="phi comes round between -pi and north"):
        columns = md.columns(colvar(tmp_path / "COLVAR", head + "#! SET min_phi -pi\n#! SET max_phi north\n", turning()))
    assert "comes round" in ek.average(columns["phi"]).verdict
    said = md.columns(colvar(tmp_path / "COLVAR", head, turning()), periods={"phi": 2 * np.pi})
    assert abs(ek.average(said["phi"]).mean) > 3
    with pytest.raises(KeyError, match="psi"):
        md.columns(tmp_path / "COLVAR", periods={"psi": 360})
    with pytest.raises(InputError, match="360 for degrees"):
        md.columns(tmp_path / "COLVAR", periods={"phi": -1})


def test_angles_of_xvg_files_are_averaged_on_the_circle(tmp_path):
    degrees = np.degrees(turning())
    head = '@ xaxis label "Time (ps)"\n@ yaxis label "{}"\n'
    for label, values, turn in (("Angle (degrees)", degrees, 360), ("Dihedral (deg.)", degrees % 360, 360),
                                ("Torsion (rad)", turning(), 2 * np.pi)):
        (name,) = columns = md.columns(colvar(tmp_path / "a.xvg", head.format(label), values))
        answer = ek.average(columns[name])
        assert abs(np.remainder(answer.mean, turn) - turn / 2) < 0.03 * turn, label
        assert answer.converged
    (name,) = columns = md.columns(colvar(tmp_path / "a.xvg", head.format("Angle (degrees)"), np.abs(degrees) / 2))
    assert ek.average(columns[name]).mean == pytest.approx(np.abs(degrees).mean() / 2, abs=1e-5)     # between two lines
    assert not columns.branches
    bare = md.columns(colvar(tmp_path / "a.dat", "# made by a script\n#time phi\n", degrees))
    answer = ek.average(bare["phi"])
    assert not answer.converged
    assert "period=360" in answer.verdict


def test_columns_that_change_within_a_file_are_refused(tmp_path):
    path = tmp_path / "COLVAR"
    path.write_text("#! FIELDS time phi psi\n0 1 2\n1 1 2\n#! FIELDS time psi phi\n2 2 1\n")
    with pytest.raises(InputError, match="line 4: the columns change there"):
        md.columns(path)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz"])
def test_packed_tables(tmp_path, packing):
    import bz2
    import gzip
    import lzma

    from ensemblekit.md.columns import is_columns

    module = {"gz": gzip, "bz2": bz2, "xz": lzma}[packing]
    path = tmp_path / f"a.xvg.{packing}"
    text = '@ xaxis label "Time (ns)"\n@ s0 legend "U"\n0 1\n1 2\n'
    path.write_bytes(module.compress(text.encode()))
    assert is_columns(str(path))
    np.testing.assert_array_equal(md.columns(path).times, [0, 1000])
    path.write_bytes(module.compress(text.encode() * 50)[:-12])
    with pytest.raises(InputError, match="cannot be unpacked"):
        md.columns(path)


def test_grace_marks_become_what_they_show(tmp_path):
    path = tmp_path / "dhdl.xvg"
    path.write_text('@ xaxis label "Time (ps)"\n@ yaxis label "dH/d\\xl\\f{} and \\xD\\f{}H (kJ/mol [\\xl\\f{}]\\S-1\\N)"\n'
                    '@ s0 legend "dH/d\\xl\\f{} fep-lambda = 0.0000"\n'
                    '@ s1 legend "\\xD\\f{}H \\xl\\f{} to 0.5"\n0 1 2\n1 2 3\n')
    assert list(md.columns(path)) == ["dH/dλ fep-lambda = 0.0000", "ΔH λ to 0.5"]


def test_all_columns_at_once_are_no_source(tmp_path):
    (tmp_path / "a.csv").write_text("time,u,v\n0,1,2\n1,3,4\n")
    with pytest.raises(InputError, match=r"several sources, 'u', 'v'; pass one of them, such as x\['u'\]"):
        ek.average(md.columns(tmp_path / "a.csv"))


def test_csv_and_plain_text(tmp_path):
    (tmp_path / "a.csv").write_text('"Time (ps)","Density (g/mL)"\n0.0,0.99\n2.0,1.01\n')
    columns = md.columns(tmp_path / "a.csv")
    assert (list(columns), columns.units["Density"]) == (["Density"], "g/mL")
    np.testing.assert_array_equal(columns.times, [0, 2])
    (tmp_path / "a.txt").write_text("1 2 3\n4 5 6\n")
    assert list(md.columns(tmp_path / "a.txt")) == ["column 0", "column 1", "column 2"]
    assert md.columns(tmp_path / "a.txt").times is None


def test_edr_is_read_where_pyedr_is_installed():
    pytest.importorskip("pyedr")
    data = pytest.importorskip("MDAnalysisTests.datafiles")
    columns = md.columns(data.AUX_EDR)
    assert columns.units["Potential"] == "kJ/mol"
    assert len(columns["Temperature"].arrays["Temperature"]) == len(columns.times) == 4


@pytest.mark.parametrize(("text", "match"), [
    ("1 2\n3\n", "line 2 has 1 numbers, the rows before have 2"), ("", "no rows"), ("1 2\na b\n", "line 2.*words"),
    ("time\n1\n2\n", "no column besides its times")])
def test_tables_that_cannot_be_read(tmp_path, text, match):
    path = tmp_path / "bad.dat"
    path.write_text(text)
    with pytest.raises(InputError, match=match):
        md.columns(path)
    with pytest.raises(InputError, match="there is no such file"):
        md.columns(tmp_path / "nowhere.xvg")

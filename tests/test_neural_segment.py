"""Regions by doubt: what is listed, what it is said to hold, and whether doubt finds what is wrong."""

from __future__ import annotations

import csv

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.errors import InputError  # noqa: E402
from ensemblekit.neural.segmentation import isotonic  # noqa: E402


def two_classes(p):
    return np.stack([1 - p, p], axis=-p.ndim + 2)


def squares(*parts, size=(1, 24, 24)):
    """(n, *map) of p: parts are (image, rows, columns, value)."""
    p = np.full(size, 0.01)
    for i, rows, columns, value in parts:
        p[i, slice(*rows), slice(*columns)] = value
    return p


def members_of(*maps):
    """(M, n, 2, *map)."""
    return np.stack([np.stack([1 - p, p], 1) for p in maps])


def test_a_region_says_what_it_holds():
    both = (0, (4, 8), (4, 8), 0.9)
    one, two = squares(both, (0, (14, 17), (4, 8), 0.8)), squares(both, (0, (4, 5), (4, 6), 0.3))
    label = np.zeros((1, 24, 24), int)
    label[0, 4:8, 4:8] = 1
    label[0, 20:22, 20:22] = 1
    found = neural.segment(members_of(one, two), target=label, margin=1)
    assert found.n == 1
    assert found.n_members == 2
    assert found.unit == "voxels"
    lone, seen = found.regions
    # what one member alone sees: no mask of the pool (0.405 < 0.5), and the chance of a missed lesion is its doubt
    assert not lone.in_pool
    assert lone.sighted == 1
    assert lone.support == 0.5
    assert lone.agreement == 0
    assert lone.doubt == pytest.approx(0.405)
    assert lone.true_dice == 1
    assert lone.box == ((14, 17), (4, 8))
    assert lone.number == 1
    assert seen.number == 2
    # 14 voxels of p 0.9 and 2 of 0.6 in a window of 36; the second member sees 14
    inside, window = 14 * 0.9 + 2 * 0.6, 14 * 0.9 + 2 * 0.6 + 20 * 0.01
    assert seen.volume == pytest.approx(window)
    assert seen.volume_low == pytest.approx(14 * 0.9 + 2 * 0.3 + 0.2)
    assert seen.volume_high == pytest.approx(16 * 0.9 + 0.2)
    assert seen.voxels == seen.size == 16
    assert seen.expected_dice == pytest.approx(2 * inside / (window + 16))
    assert seen.doubt == pytest.approx(1 - seen.expected_dice)
    assert seen.agreement == pytest.approx(2 * 14 / 30)
    assert seen.support == 1
    assert seen.true_dice == 1
    assert not seen.wrong
    pool = np.array([0.9] * 14 + [0.6] * 2)
    assert seen.entropy == pytest.approx(np.mean(-pool * np.log(pool) - (1 - pool) * np.log(1 - pool)), rel=1e-6)
    case = found.cases[0]
    assert case.unseen == 1
    assert case.dice == pytest.approx(2 * 16 / (16 + 20))
    assert case.n_regions == 2
    assert case.pairwise_dice == pytest.approx(2 * 14 / (28 + 14))
    assert "2 regions" in str(found)
    assert found.kept[0].masks(1)[1].sum() == 14


def test_a_hint_that_nobody_sees_is_listed_and_small_ones_are_not():
    p = squares((0, (2, 6), (2, 6), 0.3), (0, (12, 14), (12, 13), 0.3), (0, (18, 19), (18, 19), 0.9))
    found = neural.segment(members_of(p, p))
    assert [(r.size, r.in_pool) for r in found.regions] == [(16, False), (1, True)]
    assert [r.doubt for r in found.regions] == pytest.approx([0.3, 1 - 2 * 0.9 / (0.9 + 1 + 24 * 0.01)])
    assert all(np.isnan(r.true_dice) and r.wrong is None for r in found.regions)
    assert found.scores is None
    assert found.detection is None
    assert [r.size for r in neural.segment(members_of(p, p), candidate=0.4).regions] == [1]
    assert len(neural.segment(members_of(p, p), min_size=1).regions) == 3


def test_the_window_of_a_region_has_nothing_of_its_neighbor():
    p = squares((0, (4, 8), (4, 8), 0.9), (0, (4, 8), (10, 14), 0.9))
    found = neural.segment(members_of(p), margin=4)
    assert len(found.regions) == 2
    for one in found.regions:
        assert one.volume < 16 * 0.9 + 12 * 12 * 0.01 + 0.1
    corner = squares((0, (4, 8), (4, 8), 0.9), (0, (8, 12), (8, 12), 0.9))
    assert len(neural.segment(members_of(corner)).regions) == 1         # corners hold together
    volume = np.full((1, 6, 8, 8), 0.01)
    volume[0, 2:4, 3:6, 3:6] = 0.9
    volume[0, 3, 3:6, 3:6] = 0.6
    found = neural.segment(members_of(volume), spacing=(5, 1, 1))
    assert found.unit == "ml"
    assert found.regions[0].peak_slice == 3
    assert found.regions[0].center == pytest.approx(((2 * 0.9 + 3 * 0.6) / 1.5, 4, 4))
    assert found.cases[0].volume == pytest.approx(volume.sum() * 5 / 1000)


def test_dice_of_images_without_the_class():
    p = squares((0, (4, 8), (4, 8), 0.9), (1, (4, 8), (4, 8), 0.9), size=(4, 24, 24))
    label = np.zeros((4, 24, 24), int)
    label[0, 4:8, 4:8] = label[2, 4:8, 4:8] = 1
    found = neural.segment(members_of(p, p), target=label)
    assert [one.dice for one in found.cases] == pytest.approx([1, 0, 0, np.nan], nan_ok=True)
    assert found.n_scored(1) == 3
    assert [one.unseen for one in found.cases] == [0, 0, 1, 0]
    assert [one.wrong for one in found.of_case(1)] == [True]
    assert "of 3 images" in str(found)
    with pytest.raises(InputError, match="images are 0 to 3; got 4"):
        found.of_case(4)
    three = np.concatenate([members_of(p), np.zeros((1, 4, 1, 24, 24))], axis=2)
    assert "class 2 has no pixels" in " ".join(neural.segment(three, target=label).notes)
    ignored = neural.segment(members_of(p), target=label, classes=[1])
    assert ignored.classes == (1,)


def test_what_is_ignored_counts_for_nothing():
    p = squares((0, (4, 8), (4, 8), 0.9), (1, (4, 8), (4, 8), 0.9), size=(2, 24, 24))
    label = np.zeros((2, 24, 24), int)
    label[:, 4:8, 4:6] = 1
    label[:, 4:8, 6:] = 9
    one = neural.SavedPredictions(members_of(p), np.ones(1), label, {}, "probability", 9)
    found = neural.segment(one)
    assert [r.true_dice for r in found.regions] == [1, 1]
    assert found.confusion.sum() == np.count_nonzero(label != 9)
    with pytest.raises(InputError, match="every label is ignore_index, 9"):
        neural.segment(neural.SavedPredictions(members_of(p), np.ones(1), np.full(label.shape, 9), {}, "probability", 9))


def net(seed):
    torch.manual_seed(seed)
    return torch.nn.Conv2d(1, 2, 3, padding=1)


def ensemble(**options):
    rows = [np.concatenate([p.detach().numpy().ravel() for p in net(k).parameters()]) for k in range(3)]
    return neural.Ensemble(net(0), np.array(rows), task="segmentation", **options)


def test_an_ensemble_at_work_says_what_its_saved_members_say():
    x, y = torch.randn(5, 1, 16, 16), torch.randint(0, 2, (5, 16, 16))
    ens = ensemble(weights=[1, 2, 0])
    found = neural.segment(ens, [(x[:3], y[:3]), (x[3:], y[3:])])
    members, pool = ens.predict_members([(x, y)])
    saved = neural.segment(neural.SavedPredictions(members, np.array([1, 2]) / 3, y.numpy(), {}, "probability", None))
    assert len(found.regions) == len(saved.regions) > 3
    for a, b in zip(found.regions, saved.regions, strict=True):
        assert a.doubt == pytest.approx(b.doubt, abs=1e-6)
        assert a.support == pytest.approx(b.support)
    assert found.scores["nll"].value == pytest.approx(neural.scores(pool)["nll"].value, rel=1e-6)
    assert np.array_equal(found.kept[0].image, x[found.kept[0].case, 0].numpy())
    sizes = neural.segment(ens, [(x, y), (torch.randn(1, 1, 20, 12), torch.randint(0, 2, (1, 20, 12)))])
    assert sizes.n == 6


def test_spacing_is_given_or_comes_with_the_batch():
    x, y = torch.randn(2, 1, 16, 16), torch.randint(0, 2, (2, 16, 16))
    ens = ensemble(forward=lambda model, batch: model(batch["image"]))
    batch = {"image": x, "label": y, "spacing": torch.tensor([[2.0, 3.0], [1.0, 1.0]])}
    found = neural.segment(ens, [batch])
    plain = neural.segment(ens, [{"image": x, "label": y}])
    assert found.unit == "mm²"
    assert found.cases[0].volume == pytest.approx(6 * plain.cases[0].volume)
    assert neural.segment(ens, [batch], spacing=2).cases[1].volume == pytest.approx(4 * plain.cases[1].volume)
    for bad in ((1, 2, 3), (1, 0), -1.0, np.nan):
        with pytest.raises(InputError, match="spacing is the size of a voxel in mm, above 0: a number, or one for each of 2"):
            neural.segment(ens, [batch], spacing=bad)
    with pytest.raises(InputError, match=r"image 2 are in voxels, those before it in mm²"):
        neural.segment(ens, [batch, {"image": x, "label": y}])


def test_what_is_wrong_is_said():
    p, x = members_of(squares((0, (4, 8), (4, 8), 0.9))), torch.randn(2, 1, 8, 8)
    for wrong, words in (({"candidate": 0}, "candidate is a probability"), ({"min_size": 0}, "min_size is a whole number of 1"),
                         ({"margin": -1}, "margin is a whole number"), ({"keep": 1.5}, "keep is a whole number"),
                         ({"classes": [2]}, "classes are different numbers of 0 to 1"), 
                         ({"groups": [1, 2]}, "groups are one name"),
                         ({"quality": neural.segment(p)}, "quality is a Segmentation of labelled images")):
        with pytest.raises(InputError, match=words):
            neural.segment(p, **wrong)
    with pytest.raises(InputError, match="the loader is empty"):
        neural.segment(ensemble(), [])
    with pytest.raises(InputError, match="needs a loader"):
        neural.segment(ensemble())
    with pytest.raises(InputError, match="some images have labels and some have not"):
        neural.segment(ensemble(), [(x, torch.zeros(2, 8, 8, dtype=torch.long)), x])
    with pytest.raises(InputError, match="regions are those of maps"):
        neural.segment(p[..., 0, 0])
    bad = ensemble()
    bad.members[1].weight.fill_(np.nan)
    with pytest.raises(InputError, match="member 1 answers NaN"):
        neural.segment(bad, [x])
    broken = p.copy()
    broken[0, 0, :, 3, 3] = np.nan
    with pytest.raises(InputError, match="member 0 is not finite at item 0"):
        neural.segment(broken)
    with pytest.raises(InputError, match="the loader has 0 images"):
        neural.segment(p, [])


def phantoms(n, seed, shift=0.0):
    """Three members near the true probability of labels, and what one observer drew."""
    made = neural.phantom(n, (48, 48), seed=seed, radii=(3, 5))
    z = np.log((made.probability + 1e-4) / (1 - made.probability + 1e-4))
    rng = np.random.default_rng(seed)
    p = [1 / (1 + np.exp(-(z + shift + 0.3 * rng.standard_normal((n, 1, 1))))) for _ in range(3)]
    return members_of(*p), made


def test_doubt_finds_wrong_regions_and_expects_the_dice_there_is():
    p, made = phantoms(60, 5)
    found = neural.segment(p, [torch.from_numpy(made.images)], target=made.labels.astype(int), keep=3)
    area = found.detection["doubt"].auroc
    assert area.value > 0.85
    assert area.low > 0.75
    assert area.value > found.detection["1 - agreement"].auroc.value
    cases = [one for one in found.cases if np.isfinite(one.dice)]
    assert abs(np.mean([one.expected_dice - one.dice for one in cases])) < 0.05
    assert [one.doubt for one in found.regions] == sorted((one.doubt for one in found.regions), reverse=True)
    assert len(found.kept) == 3
    worst = {max(found.cases, key=lambda one: one.doubt).case}
    assert found.kept[0].case in worst
    assert found.kept[0].image.shape == (48, 48)


def test_quality_of_other_images_calibrates_the_expected_dice():
    sure, made = phantoms(30, 6, shift=2.0)             # masks too large by far: the Dice is less than expected
    known = neural.segment(sure, target=made.labels.astype(int), keep=0)
    other, made = phantoms(30, 7, shift=2.0)
    found = neural.segment(other, target=made.labels.astype(int), keep=0, quality=known)
    rows = [one for one in found.cases if np.isfinite(one.dice)]
    raw = np.mean([one.expected_dice - one.dice for one in rows])
    assert raw > 0.08
    assert abs(np.mean([one.calibrated_dice - one.dice for one in rows])) < 0.5 * raw
    assert np.isnan(known.cases[0].calibrated_dice)
    assert isotonic(np.array([1.0, 3, 2, 2, 5])) == pytest.approx([1, 7 / 3, 7 / 3, 7 / 3, 5])
    assert isotonic(np.array([3.0, 2, 1])) == pytest.approx([2, 2, 2])


def test_files_and_plain_values(tmp_path):
    p, made = phantoms(4, 8)
    found = neural.segment(p, target=made.labels.astype(int), groups=[1, 1, 2, 3], keep=1)
    regions, cases = found.to_csv(tmp_path / "out")
    rows = list(csv.DictReader(open(regions, encoding="utf-8")))
    assert len(rows) == len(found.regions)
    assert float(rows[0]["doubt"]) == found.regions[0].doubt
    assert len(list(csv.DictReader(open(cases, encoding="utf-8")))) == 4
    assert found.to_dict()["regions"][0]["doubt"] == found.regions[0].doubt
    again = neural.Segmentation.load(found.save(tmp_path / "found.npz"))
    assert str(again) == str(found)
    assert np.array_equal(again.kept[0].masks(1), found.kept[0].masks(1))
    assert found.scores["nll"].n == 3

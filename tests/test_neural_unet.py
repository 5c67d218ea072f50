"""A U-Net on phantoms, from training to doubt: what the whole of it is worth where the truth is known (minutes; slow)."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from ensemblekit import neural  # noqa: E402
from ensemblekit.neural.uncertainty import entropy_of  # noqa: E402

SIZE, EPOCHS, CYCLES = (64, 64), 5, 5


def as_input(images):
    return torch.from_numpy((images - 20) / 80)


def batches(made, rng=None, size=8):
    """Batches of (image, label); turned and mirrored, in another order, where a generator is given."""
    x, y = as_input(made.images), torch.from_numpy(made.labels).long()
    order = np.arange(len(x)) if rng is None else rng.permutation(len(x))
    for start in range(0, len(x), size):
        a, b = x[order[start:start + size]], y[order[start:start + size]]
        if rng is not None:
            turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
            a, b = torch.rot90(a, turns, (2, 3)), torch.rot90(b, turns, (1, 2))
            a, b = (a.flip(3), b.flip(2)) if mirrored else (a, b)
        yield a, b


def trained(seed):
    """An ensemble of five snapshots, one a cycle of the learning rate."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = pytest.importorskip("monai.networks.nets")

        def fresh():
            return nets.UNet(2, 1, 2, (8, 16, 32), (2, 2), num_res_units=1, norm="batch")

        torch.manual_seed(seed)
        model, rng = fresh(), np.random.default_rng(seed)
        train = neural.phantom(160, SIZE, seed=1000 + seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        steps = EPOCHS * 20
        snapshots = []
        model.train()
        for _ in range(CYCLES):
            step = 0
            for _ in range(EPOCHS):
                for x, y in batches(train, rng):
                    optimizer.param_groups[0]["lr"] = 4e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    step += 1
            snapshots.append(neural.parameters.to_vectors(model, neural.Manifest.of(model)))
        vectors = {name: np.array([one[name] for one in snapshots]) for name in snapshots[0]}
        return neural.Ensemble(fresh(), vectors, task="segmentation")


@pytest.mark.slow
def test_what_a_unet_on_phantoms_is_worth(capsys):
    ensemble = trained(0)
    choose, test = (neural.phantom(n, SIZE, seed=seed) for n, seed in ((40, 77), (80, 78)))
    chosen = neural.select(ensemble.predict_members(list(batches(choose)))[0], target=choose.labels.astype(int))
    members, pool = ensemble.predict_members(list(batches(test)))
    shares = np.asarray(chosen.weights)
    best = neural.SavedPredictions(members, shares, test.labels.astype(int), {}, "probability", None)
    truth = np.stack([1 - test.probability, test.probability], 1)
    floor = entropy_of(truth).mean()
    last = neural.Prediction(members[-1], pool.target, pool.aleatoric, pool.disagreement)
    nll = {name: neural.scores(one)["nll"].value for name, one in (("all", pool), ("last", last), ("selected", best.pooled()))}
    regions = neural.segment(best, [as_input(test.images)])
    area = regions.detection["doubt"].auroc
    wrong = np.array([bool(one.wrong) for one in regions.regions])
    fifth = wrong[:len(wrong) // 5].sum() / wrong.sum()
    gap = np.nanmean([one.expected_dice - one.dice for one in regions.cases])
    likeness = np.corrcoef(best.pooled().entropy.ravel(), entropy_of(truth).ravel())[0, 1]
    with capsys.disabled():
        print(f"\nNLL {nll}, floor {floor:.4f}; AUROC {area}; agreement "
              f"{regions.detection['1 - agreement'].auroc}; entropy {regions.detection['entropy'].auroc}; {len(wrong)} "
              f"regions, {wrong.sum()} wrong, {fifth:.2f} of them in the fifth with most doubt; expected - true Dice "
              f"{gap:.3f}; correlation with the true entropy {likeness:.3f}")
    assert nll["selected"] <= 1.05 * min(nll["all"], nll["last"])
    assert nll["selected"] <= 1.45 * floor
    assert likeness >= 0.8
    assert area.value >= 0.85
    assert area.low >= 0.75
    assert fifth >= 0.55
    assert abs(gap) <= 0.03

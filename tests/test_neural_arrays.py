"""Arrays whose memory torch cannot share: read backwards, or in the byte order of another machine."""

import numpy as np
import pytest
import torch

from ensemblekit import neural
from ensemblekit.errors import InputError
from ensemblekit.neural.tensors import tensor_of

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 4)).astype("f4"), RNG.integers(0, 3, 40)
VECTORS = RNG.normal(size=(3, 15)).astype("f4")
WAYS = {"backwards": lambda a: a[::-1].copy()[::-1], "other byte order": lambda a: a.astype(a.dtype.newbyteorder(">")),
        "both": lambda a: a[::-1].astype(a.dtype.newbyteorder(">"))[::-1]}


@pytest.mark.parametrize("way", WAYS)
def test_predictions_and_choices_are_those_of_plain_arrays(way):
    turn = WAYS[way]
    plain = neural.Ensemble(torch.nn.Linear(4, 3), VECTORS, weights=[0.2, 0.3, 0.5])
    other = neural.Ensemble(torch.nn.Linear(4, 3), turn(VECTORS), weights=turn(np.array([0.2, 0.3, 0.5])))
    p, want = plain.predict_members((X, Y))
    for loader in ((turn(X), turn(Y)), [(torch.as_tensor(X), turn(Y))]):
        q, prediction = other.predict_members(loader)
        np.testing.assert_array_equal(q, p)
        np.testing.assert_array_equal(prediction.probabilities, want.probabilities)
        np.testing.assert_array_equal(prediction.target, Y)
    np.testing.assert_array_equal(other.predict(turn(X)).probabilities, want.probabilities)
    for method in ("stacking", "greedy"):
        assert str(neural.select(turn(p), target=turn(Y), method=method)) == str(neural.select(p, target=Y, method=method))
    assert str(neural.error_detection(turn(p), target=turn(Y))) == str(neural.error_detection(p, target=Y))


def test_memory_is_shared_where_torch_can_and_other_types_are_named():
    assert np.shares_memory(tensor_of(X).numpy(), X)
    assert tensor_of(np.array(2.5)).shape == ()
    with pytest.raises(InputError, match=r"item 1 of the tuple holds <U1.*cast it first"):
        neural.Ensemble(torch.nn.Linear(4, 3), VECTORS).predict((X, np.array(["a"] * 40)))

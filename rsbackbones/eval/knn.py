"""Weighted k-nearest-neighbor classification.

CROMA (appendix A.4.2) takes the implementation of Scale-MAE (its reference [27]; ``eval/knn.py`` of
github.com/bair-climate-initiative/scale-mae), and that is what is computed here: features scaled to unit
length, the k = 20 training samples of the highest cosine similarity s, and a vote in which each counts exp(s
/ 0.07). It is that of Wu et al. 2018 (arXiv:1805.01978). Several labels per sample, which the paper leaves
out: the mean of the neighbors' labels under the same weights.
"""

import numpy as np
import torch
import torch.nn.functional as F

from rsbackbones.eval.feature_table import FeatureTable, validate_splits
from rsbackbones.eval.predictions import Predictions

NEIGHBORS = 20
# The size of a block of test samples, in numbers (similarities, labels of neighbors).
_AT_ONCE = 2**24


def knn(
    train: FeatureTable,
    test: FeatureTable,
    *,
    classes: int,
    k: int = NEIGHBORS,
    temperature: float = 0.07,
    weighted: bool = True,
) -> Predictions:
    """Classify ``test`` by its nearest neighbors in ``train``; ``weighted=False``: every neighbor counts 1.

    The scores [n, K] are the share of each class in the vote. Of equal similarities at the k-th place it is
    open which counts, and a draw of the vote goes to the class of the lower number. A vector of zeros is
    similar to none (0).

    Raises:
        ValueError: samples or labels are not as they should be, ``k`` is not from 1 to the number of training
            samples, or ``temperature`` is not above 0.
    """
    train, test = validate_splits(train, test, classes)
    if not 1 <= k <= len(train):
        raise ValueError(f"k={k} neighbors of {len(train)} training samples: k goes from 1 to {len(train)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number above 0")
    keys = F.normalize(torch.from_numpy(train.features), dim=1)
    queries = F.normalize(torch.from_numpy(test.features), dim=1)
    labels = torch.from_numpy(train.labels)
    labels = (F.one_hot(labels, classes) if labels.ndim == 1 else labels).float()
    scores = torch.empty(len(queries), classes)
    block = max(1, _AT_ONCE // (len(keys) + k * classes))
    for start in range(0, len(queries), block):
        similarity, nearest = (queries[start : start + block] @ keys.T).topk(k, dim=1)  # [b, k]
        votes = (
            torch.softmax(similarity / temperature, dim=1) if weighted else torch.full_like(similarity, 1 / k)
        )
        scores[start : start + block] = torch.einsum("bk,bkc->bc", votes, labels[nearest])
    # Sums of votes may exceed 1 by rounding, and scores of several labels are probabilities.
    return test.predictions(
        np.clip(scores.numpy(), 0, 1),
        details={"k": k, "temperature": temperature if weighted else None},
    )

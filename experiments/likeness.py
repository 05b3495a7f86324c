"""How like the subject a picture is: 1 is the subject itself, 0 the nearest other instance of its class.

Classifiers know style and place better than who is in the picture. So the features are first projected on linear discriminants (Fisher 1936) of the subject
and other instances, drawn in all styles: in these directions instances differ most and pictures of one instance least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE = 0.1
"""Of the covariance, towards a sphere: there are not many more pictures than features."""
FAINTEST = 1.0
"""Discriminants along which instances differ less than pictures of one instance do are left out."""
TOLD_APART = 2.0
"""An instance that is less than this much further from the subject than the subject's own pictures is hard to tell from it, and is no measure: the scale
would be shorter than the scatter of what it measures. The unit is how much pictures of one instance vary along a discriminant."""


@dataclass(frozen=True, kw_only=True)
class LikenessScale:
    """A scale for pictures of one subject in one style."""

    directions: Tensor
    """Shape (F, D)."""
    subject: Tensor
    """Where the subject's own pictures lie, shape (D,)."""
    own: float
    """Mean distance of the subject's own pictures."""
    other: float
    """Mean distance of the nearest other instance's."""
    nearest: str
    """Which one that is."""

    def likeness(self, features: Tensor) -> Tensor:
        """1 for the subject, 0 for the nearest other instance, in the mean; below for others. Shape (N,), of features (N, F)."""
        return 1 - (_distances(features, self.directions, self.subject) - self.own) / (self.other - self.own)


def discriminants(features: Mapping[str, Tensor], shrinkage: float = SHRINKAGE) -> Tensor:
    """Directions that tell instances apart, shape (F, D); along each, pictures of one instance have a variance of about 1.

    Args:
        features: of each instance's pictures, shape (N, F).
        shrinkage: weight of the sphere in the covariance within instances.
    """
    means = torch.stack([each.double().mean(dim=0) for each in features.values()])
    within = torch.cat([each.double() - mean for each, mean in zip(features.values(), means, strict=True)])
    covariance = within.T @ within / max(1, len(within) - len(means))
    sphere = torch.eye(len(covariance), dtype=torch.float64) * (covariance.diagonal().mean() + 1e-12)
    root = torch.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * sphere)
    between = torch.linalg.solve_triangular(root, (means - means.mean(dim=0)).T, upper=False)
    axes, sizes, _ = torch.linalg.svd(between, full_matrices=False)
    kept = max(1, int((sizes[: len(means) - 1] > FAINTEST).sum()))
    return torch.linalg.solve_triangular(root.T, axes[:, :kept], upper=True)


def likeness_scale(directions: Tensor, subject: Tensor, others: Mapping[str, Tensor]) -> LikenessScale | None:
    """The scale, or None where no other instance can be told from the subject.

    Args:
        directions: the discriminants.
        subject: features of the subject's pictures in the style, shape (N, F): every other one says where the subject lies, the rest how far its pictures are.
        others: features of other instances' pictures in the same style.
    """
    middle = (subject[::2].double() @ directions).mean(dim=0)
    own = _distances(subject[1::2], directions, middle)
    distances = {name: float(_distances(features, directions, middle).mean()) for name, features in others.items()}
    apart = {name: distance for name, distance in distances.items() if distance - float(own.mean()) > TOLD_APART}
    if not apart:
        return None
    nearest = min(apart, key=lambda name: apart[name])
    return LikenessScale(directions=directions, subject=middle, own=float(own.mean()), other=apart[nearest], nearest=nearest)


def _distances(features: Tensor, directions: Tensor, middle: Tensor) -> Tensor:
    return torch.linalg.vector_norm(features.double() @ directions - middle, dim=1)

"""Starts of a fit: k-means, Ward's hierarchy, random points and responsibilities."""

from jaxgmm.init._clusters import hierarchical_labels
from jaxgmm.init._starts import from_responsibilities, kmeans, kmeans_plusplus, random_points, random_resp

__all__ = [
    "from_responsibilities",
    "hierarchical_labels",
    "kmeans",
    "kmeans_plusplus",
    "random_points",
    "random_resp",
]

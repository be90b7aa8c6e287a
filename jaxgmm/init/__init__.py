"""Starts of a fit: k-means, Ward's hierarchy, random points and responsibilities."""

from jaxgmm.init._starts import from_responsibilities, kmeans, kmeans_plusplus, random_points, random_resp
from jaxgmm.init._ward import hierarchical_labels

__all__ = [
    "from_responsibilities",
    "hierarchical_labels",
    "kmeans",
    "kmeans_plusplus",
    "random_points",
    "random_resp",
]

"""Mixtures to and from other libraries: scikit-learn, mclust, NumPyro, TensorFlow Probability and distrax."""

from jaxgmm.interchange.distributions import from_distrax as from_distrax
from jaxgmm.interchange.distributions import from_numpyro as from_numpyro
from jaxgmm.interchange.distributions import from_tfp as from_tfp
from jaxgmm.interchange.distributions import to_distrax as to_distrax
from jaxgmm.interchange.distributions import to_numpyro as to_numpyro
from jaxgmm.interchange.distributions import to_tfp as to_tfp
from jaxgmm.interchange.estimators import from_sklearn as from_sklearn
from jaxgmm.interchange.estimators import to_sklearn as to_sklearn
from jaxgmm.interchange.mclust import from_mclust as from_mclust
from jaxgmm.interchange.mclust import to_mclust as to_mclust

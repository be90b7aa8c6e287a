"""Fits of data that an engine holds: Spark, Dask, arrays in this process, or another by one method.

An `Engine` has one method, `map_reduce(function, *broadcast)`. For Ray there is no adapter, because it is
this (with jaxgmm installed where the actors run, and files that each of them reads once)::

    import functools, operator, numpy as np, ray

    @ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)
    class Part:
        def __init__(self, path):
            self.X = np.load(path, mmap_mode="r")

        def map(self, function, *broadcast):
            return function(self.X, None, *broadcast)

    class RayEngine:
        def __init__(self, paths):
            self.parts = [Part.remote(path) for path in paths]

        def map_reduce(self, function, *broadcast):
            sent = [ray.put(value) for value in broadcast]
            return functools.reduce(operator.add, ray.get([p.map.remote(function, *sent) for p in
            self.parts]))

    result = jaxgmm.parallel.engines.fit_engine(start, RayEngine(paths))
"""

from jaxgmm.parallel.engines._dask import DaskEngine as DaskEngine
from jaxgmm.parallel.engines._fit import Engine as Engine
from jaxgmm.parallel.engines._fit import fit_engine as fit_engine
from jaxgmm.parallel.engines._local import LocalEngine as LocalEngine
from jaxgmm.parallel.engines._spark import SparkEngine as SparkEngine

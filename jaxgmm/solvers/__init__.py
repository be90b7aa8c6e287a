"""Fixed points of any map, their derivatives, and the linear solves these need. Nothing of mixtures."""

"""Pictures of a mixture, of its pairwise marginals, and of the criteria that chose it (extra ``[plot]``).

Every function draws on the axes or figure it is given, or makes its own through pyplot so that a notebook
shows it. Colours are Okabe and Ito's, which stay apart for colour-blind readers; components carry their
number, lines a marker.
"""

try:
    from jaxgmm.plot.boundaries import plot_boundaries as plot_boundaries
    from jaxgmm.plot.classes import plot_classification as plot_classification
    from jaxgmm.plot.classes import plot_ellipses as plot_ellipses
    from jaxgmm.plot.criteria import plot_criteria as plot_criteria
    from jaxgmm.plot.directions import plot_directions as plot_directions
    from jaxgmm.plot.fit_check import plot_fit_check as plot_fit_check
    from jaxgmm.plot.history import plot_history as plot_history
    from jaxgmm.plot.merging import plot_merging as plot_merging
    from jaxgmm.plot.merging import plot_ridgeline as plot_ridgeline
    from jaxgmm.plot.panels import plot_density as plot_density
    from jaxgmm.plot.panels import plot_fit as plot_fit
    from jaxgmm.plot.panels import plot_pairs as plot_pairs
    from jaxgmm.plot.trimming import plot_trim_curve as plot_trim_curve
    from jaxgmm.plot.uncertainty import plot_uncertainty as plot_uncertainty
    from jaxgmm.plot.uncertainty import plot_uncertainty_profile as plot_uncertainty_profile
except ImportError as error:
    if (error.name or "").partition(".")[0] != "matplotlib":
        raise
    raise ImportError("jaxgmm.plot needs Matplotlib: pip install 'jaxgmm[plot]'", name=error.name) from error

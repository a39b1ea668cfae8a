"""The fitted cost model of the forms of a convolution; ``python bench/choices.py --fit`` writes this file.

Seconds of a form are the sum of its terms (`bu2td.optimization.places.Form.terms`) times its rates. An entry has
the rates of the form as it is, those of the new one, and how far the logarithm of the gain is off (root mean
square).
"""

from __future__ import annotations

from collections.abc import Mapping

Rates = tuple[float, ...]
Fitted = tuple[Rates, Rates, float]

_CPU: Mapping[tuple[str, str, str], Fitted] = {
    ("channels_last", "inference", "dense"): (
        (2.46e-05, 1.61e-11, 0, 3.82e-11, 1.54e-09),
        (3.89e-05, 1.56e-11, 0, 2.1e-11, 8.27e-10),
        0.089,
    ),
    ("channels_last", "inference", "depthwise"): (
        (1.33e-05, 9.69e-12, 0, 3.95e-09, 6.98e-10),
        (2.69e-05, 1.87e-11, 0, 1.38e-09, 2.08e-10),
        0.144,
    ),
    ("channels_last", "inference", "grouped"): (
        (3.47e-05, 1.82e-11, 0, 0, 8.03e-10),
        (2.59e-05, 1.61e-11, 0, 0, 7.78e-10),
        0.190,
    ),
    ("channels_last", "inference", "pointwise"): (
        (0, 2.52e-11, 0, 2.19e-10, 2.83e-10),
        (0, 2.04e-11, 0, 0, 7.9e-11),
        0.043,
    ),
    ("channels_last", "training", "dense"): (
        (0.000152, 4.4e-11, 0, 2.15e-09, 5.11e-09),
        (7.31e-05, 4.21e-11, 0, 3.35e-09, 4.51e-09),
        0.221,
    ),
    ("channels_last", "training", "depthwise"): (
        (0.000217, 5.31e-10, 0, 0, 0),
        (0.000196, 2.87e-10, 0, 0, 0),
        0.412,
    ),
    ("channels_last", "training", "grouped"): (
        (0.000296, 0, 0, 1.49e-09, 8.78e-09),
        (0.000238, 8.9e-12, 0, 2.25e-09, 5.39e-09),
        0.279,
    ),
    ("channels_last", "training", "pointwise"): (
        (6.09e-05, 5.73e-11, 0, 2.18e-09, 1.49e-09),
        (6.9e-05, 5.72e-11, 0, 1.17e-09, 1.15e-09),
        0.115,
    ),
    ("channels_last", "training, one image", "dense"): (
        (9.26e-05, 6.42e-11, 0, 1.37e-09, 1.28e-09),
        (6.26e-05, 5.66e-11, 0, 1.33e-09, 1.34e-09),
        0.298,
    ),
    ("channels_last", "training, one image", "depthwise"): (
        (0.000304, 3.1e-10, 0, 1.42e-08, 0),
        (0.000238, 1.97e-10, 0, 2.3e-08, 0),
        0.257,
    ),
    ("channels_last", "training, one image", "grouped"): (
        (0.000282, 0, 0, 1.64e-09, 6.31e-09),
        (0.000228, 1.56e-11, 0, 2.18e-09, 4.55e-09),
        0.300,
    ),
    ("channels_last", "training, one image", "pointwise"): (
        (5.17e-05, 4.68e-11, 0, 1.45e-09, 8.3e-10),
        (3.12e-05, 4.86e-11, 0, 9.68e-10, 2.14e-09),
        0.225,
    ),
    ("merge", "inference", "dense"): (
        (6.64e-05, 1.55e-11, 0, 5.58e-11, 1.65e-09),
        (0.000108, 1.64e-11, 1.09e-09, 4.56e-11, 0),
        0.092,
    ),
    ("merge", "training", "dense"): (
        (0, 4.9e-11, 1.6e-09, 3.5e-09, 0),
        (0.000379, 4.22e-11, 3.69e-09, 2.83e-09, 6.62e-10),
        0.165,
    ),
    ("upsample_conv", "inference", "dense"): (
        (2.02e-06, 1.78e-11, 6.31e-11, 8.31e-11, 3.89e-10),
        (5.14e-05, 2.21e-11, 0, 5.61e-11, 2.68e-10),
        0.291,
    ),
    ("upsample_conv", "inference", "depthwise"): (
        (5.58e-05, 2e-11, 3.31e-10, 0, 0),
        (6.89e-05, 3.12e-11, 0, 0, 3.21e-10),
        0.250,
    ),
    ("upsample_conv", "inference", "grouped"): (
        (6.23e-05, 7.58e-12, 1.09e-09, 2.35e-09, 2.78e-10),
        (9e-05, 2.76e-11, 0, 1.24e-09, 3.27e-10),
        0.637,
    ),
    ("upsample_conv", "training", "dense"): (
        (5.4e-05, 5.83e-11, 0, 2.07e-09, 1.28e-09),
        (7.75e-05, 6.14e-11, 0, 2.26e-09, 9.7e-10),
        0.234,
    ),
    ("upsample_conv", "training", "depthwise"): (
        (0, 3.53e-10, 0, 6e-08, 0),
        (3.65e-05, 3.63e-10, 0, 2.33e-08, 1.93e-09),
        0.310,
    ),
    ("upsample_conv", "training", "grouped"): (
        (0.000261, 4.32e-11, 1.36e-09, 4.03e-10, 2.98e-09),
        (0.000366, 2.83e-11, 0, 2.59e-09, 3.62e-09),
        0.148,
    ),
    ("winograd", "inference", "dense"): (
        (4.82e-05, 1.61e-11, 0, 2.63e-11, 6.07e-10),
        (0.000142, 2.12e-11, 3.89e-10, 3.22e-10, 1.46e-10),
        0.218,
    ),
    ("winograd", "training", "dense"): (
        (0.00011, 5.5e-11, 0, 8.66e-10, 2.66e-09),
        (0.00106, 6.07e-11, 9.6e-10, 9.36e-10, 4.65e-10),
        0.215,
    ),
}

#: By type of device: rule, mode and kind of convolution -> what was fitted.
FITTED: Mapping[str, Mapping[tuple[str, str, str], Fitted]] = {"cpu": _CPU}

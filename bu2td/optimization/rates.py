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
        (4.18e-05, 2.12e-11, 0, 0, 4.65e-10),
        (5.69e-05, 1.9e-11, 0, 0, 1.33e-10),
        0.104,
    ),
    ("channels_last", "inference", "depthwise"): (
        (0, 1.04e-11, 0, 1.51e-08, 7.09e-10),
        (1.24e-05, 2.05e-11, 0, 1.93e-09, 2.13e-10),
        0.166,
    ),
    ("channels_last", "inference", "grouped"): (
        (1.66e-05, 1.92e-11, 0, 0, 1.13e-09),
        (9.51e-06, 1.66e-11, 0, 0, 1.09e-09),
        0.225,
    ),
    ("channels_last", "training", "dense"): (
        (9.21e-05, 6.7e-11, 0, 6e-09, 1.27e-09),
        (6.72e-05, 5.62e-11, 0, 9.12e-09, 1.33e-09),
        0.100,
    ),
    ("channels_last", "training", "depthwise"): (
        (0.000273, 5.85e-10, 0, 0, 0),
        (0.00026, 3.36e-10, 0, 1.42e-08, 0),
        0.349,
    ),
    ("channels_last", "training", "grouped"): (
        (0.000305, 0, 0, 0, 1.14e-08),
        (0.000279, 7.28e-12, 0, 9.23e-09, 6.74e-09),
        0.325,
    ),
    ("merge", "inference", "dense"): (
        (9.52e-05, 1.48e-11, 5.47e-10, 7.54e-10, 0),
        (0.000145, 1.56e-11, 1.06e-09, 4.61e-10, 0),
        0.067,
    ),
    ("merge", "training", "dense"): (
        (0.000371, 4.85e-11, 1.26e-09, 5.66e-09, 1.04e-09),
        (0.000747, 3.72e-11, 1.15e-09, 3.52e-09, 4.73e-09),
        0.083,
    ),
    ("upsample_conv", "inference", "dense"): (
        (0, 1.85e-11, 6.05e-11, 7.34e-11, 3.84e-10),
        (4.14e-05, 2.27e-11, 0, 0, 2.91e-10),
        0.162,
    ),
    ("upsample_conv", "inference", "depthwise"): (
        (4.19e-05, 1.67e-11, 3.83e-10, 3.26e-08, 0),
        (6.43e-05, 2.42e-11, 0, 1.72e-08, 3.54e-10),
        0.270,
    ),
    ("upsample_conv", "inference", "grouped"): (
        (6.22e-05, 2.95e-12, 1.23e-09, 1.18e-08, 4.22e-10),
        (7.35e-05, 2.24e-11, 0, 1.48e-08, 3.5e-10),
        0.758,
    ),
    ("upsample_conv", "training", "dense"): (
        (7.61e-05, 5.19e-11, 1.88e-10, 6.39e-09, 1.68e-09),
        (8.54e-05, 6.09e-11, 0, 4.26e-09, 1.12e-09),
        0.227,
    ),
    ("upsample_conv", "training", "depthwise"): (
        (3.12e-05, 4.24e-10, 0, 8.78e-08, 0),
        (0.000254, 3.3e-10, 0, 3.42e-08, 2.22e-09),
        0.285,
    ),
    ("upsample_conv", "training", "grouped"): (
        (0.000336, 4.58e-11, 2.67e-09, 0, 2.94e-09),
        (0.000354, 8.13e-12, 0, 4.04e-09, 5.49e-09),
        0.200,
    ),
    ("winograd", "inference", "dense"): (
        (5.39e-05, 1.72e-11, 0, 0, 4.91e-10),
        (0.000155, 2.29e-11, 2.77e-10, 3.44e-10, 1.79e-09),
        0.264,
    ),
    ("winograd", "training", "dense"): (
        (0.000162, 5.18e-11, 0, 3.53e-09, 3.23e-09),
        (0.00149, 3.89e-11, 1.15e-09, 1.6e-09, 2.07e-09),
        0.200,
    ),
}

#: By type of device: rule, mode and kind of convolution -> what was fitted.
FITTED: Mapping[str, Mapping[tuple[str, str, str], Fitted]] = {"cpu": _CPU}

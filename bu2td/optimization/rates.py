"""The fitted cost model of the forms of a convolution; ``python bench/choices.py --fit`` writes this file.

Seconds of a form are the sum of its terms (`bu2td.optimization.places.Form.terms`) times its rates. An entry has the
rates of the form as it is, those of the new one, and how far the logarithm of the gain is off (root mean square).
"""

from __future__ import annotations

from collections.abc import Mapping

Rates = tuple[float, ...]
Fitted = tuple[Rates, Rates, float]

_CPU: Mapping[tuple[str, str, str], Fitted] = {}

#: By type of device: rule, mode and kind of convolution -> what was fitted.
FITTED: Mapping[str, Mapping[tuple[str, str, str], Fitted]] = {"cpu": _CPU}

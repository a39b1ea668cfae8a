"""What `bu2td.optimize` did, as it is told."""

from bu2td.ir import Optimization, Rewrite


def test_a_place_that_was_left_alone_costs_what_it_did() -> None:
    """Multiplications after a rewrite are those of the new form only where it was made."""
    places = (
        Rewrite("winograd", "r2.conv", (36e6, 16e6), chosen=True),
        Rewrite("winograd", "r1.conv", (9e6, 4e6), chosen=False),
        Rewrite("in_place", "r1.act", (0, 0), chosen=True),
    )
    done = Optimization("training", "cpu", 1, (32, 32), places)
    assert [(row["site"], row["MMACs"], row["after"], row["made"]) for row in done.rows()] == [
        ("r2.conv", 36.0, 16.0, "yes"),
        ("r1.conv", 9.0, 9.0, "no"),
    ]
    assert done.counts() == {"winograd": (1, 2), "in_place": (1, 1)}

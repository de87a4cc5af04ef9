"""Each numbered equation of the book holds to its tolerance."""

import pytest

from tests.equations import EQUATIONS


@pytest.mark.parametrize("tag", sorted(EQUATIONS))
def test_equation_holds(tag):
    item = EQUATIONS[tag]
    residual = item.check()
    assert residual <= item.tolerance, f"equation ({tag}): residual {residual:.3g} above {item.tolerance:.0e}"

import io
import math
import time

import pytest
import tqdm

from meta import progress


def test_a_bar_tells_what_takes_long_and_for_how_long():
    told = io.StringIO()
    bar = tqdm.tqdm(total=30, file=told, bar_format=progress.BAR_FORMAT)
    with progress.telling(bar, "compiling program 3 of 26"):
        time.sleep(0.2)
    bar.update()
    bar.close()
    assert "0/30 [00:00, compiling program 3 of 26, 0 s so far]" in told.getvalue()
    assert told.getvalue().rpartition("\r")[2].strip().startswith("3%")
    assert "compiling" not in told.getvalue().rpartition("\r")[2]


def test_what_fails_meanwhile_is_not_hidden():
    bar = tqdm.tqdm(total=1, file=io.StringIO())
    with pytest.raises(KeyError), progress.telling(bar, "x"):
        raise KeyError


def test_compilation_does_not_count_as_a_step():
    estimate = progress.Estimate([1.0])
    assert math.isnan(estimate.remaining(29))
    estimate.record(0, 40.0)
    assert math.isnan(estimate.remaining(29))
    for _ in range(9):
        estimate.record(0, 0.5)
    # Mean over the steps, as tqdm has it: 89 s.
    assert estimate.remaining(20) == pytest.approx(10.0)


def test_programs_that_are_still_to_be_compiled_are_counted():
    estimate = progress.Estimate([3.0, 1.0])
    for seconds in (10.0, 1.0, 1.0):
        estimate.record(0, seconds)
    assert (estimate.num_compiled, estimate.is_compiled(1)) == (1, False)
    assert estimate.remaining(1) == pytest.approx(1.0 + 0.25 * 10.0)
    assert estimate.remaining(100) == pytest.approx(110.0)
    for seconds in (20.0, 3.0):
        estimate.record(1, seconds)
    assert estimate.remaining(100) == pytest.approx(75 * 1.0 + 25 * 3.0)


def test_what_is_left_in_words():
    assert progress.remaining_text(math.nan) == ""
    assert progress.remaining_text(200.4) == "about 03:20 left"

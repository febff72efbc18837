"""kNN while training: its standard error and where its axis starts."""

from __future__ import annotations

import numpy as np
import pytest
from bokeh.models import VArea

from byol.serve.report.curves import CURVES, curve_figure, knn_error, last_epoch, lowest_knn, said_knn

KNN = next(curve for curve in CURVES if curve.key == "knn_top1")
TOLD = {"knn_queries": 1000, "knn_bank": 5000, "knn_classes": 5}


def line(top1, step=1, **more):
    return {"step": step, "epoch": step / 10, "knn_top1": top1, **more}


def drawn(runs, last):
    plot = curve_figure(KNN, runs, last)
    assert plot is not None
    return plot


def bands(plot):
    return [glyph.glyph for glyph in plot.renderers if isinstance(glyph.glyph, VArea)]


def test_the_axis_starts_at_chance_and_a_band_is_one_standard_error():
    records = [line(0.3, 1, **TOLD), line(0.6, 2, **TOLD)]
    assert knn_error(records[1]) == pytest.approx(0.0154919, abs=1e-6)  # sqrt(0.6 * 0.4 / 1000)
    assert said_knn(records[1]) == "60.0 \u00b1 1.5 %"
    plot = drawn([("run", records, ("#2b7bba", "solid"))], 1.0)
    assert plot.y_range.start == pytest.approx(20)
    (band,) = bands(plot)
    source = next(glyph.data_source.data for glyph in plot.renderers if glyph.glyph is band)
    np.testing.assert_allclose(source["y1"], [100 * (0.3 - 0.0144914), 100 * (0.6 - 0.0154919)], atol=1e-4)
    np.testing.assert_allclose(source["y2"], [100 * (0.3 + 0.0144914), 100 * (0.6 + 0.0154919)], atol=1e-4)


def test_a_run_that_does_not_say_has_an_axis_from_0_and_no_band():
    records = [line(0.3), line(0.6, 2)]
    plot = drawn([("run", records, ("#2b7bba", "solid"))], 1.0)
    assert (plot.y_range.start, bands(plot), said_knn(records[0])) == (0, [], "30.0 %")
    mixed = [("run", records, ("#2b7bba", "solid")), ("other", [line(0.5, **TOLD)], ("#d55e00", "solid"))]
    plot = drawn(mixed, 1.0)
    assert (plot.y_range.start, len(bands(plot))) == (0, 1)


def test_an_accuracy_below_chance_is_inside_the_axis():
    assert lowest_knn([line(0.15, **TOLD)]) == pytest.approx(0.15 - 0.01129, abs=1e-5)
    assert lowest_knn([line(0.0, **TOLD)]) == 0


@pytest.mark.parametrize("odd", [{"knn_queries": 0}, {"knn_queries": -3}, {"knn_classes": 0}, {"knn_classes": -1}])
def test_odd_numbers_of_a_strangers_run_are_no_trouble(odd):
    assert lowest_knn([line(0.5, **TOLD | odd)]) in (0, 0.2)
    plot = drawn([("run", [line(7.0, **TOLD | odd), line(-1.0, 2)], ("#2b7bba", "solid"))], 1.0)
    assert bands(plot) == []


def test_a_run_that_has_only_measured_its_untrained_encoder_has_an_axis():
    records = [{"step": 0, "epoch": 0.0, "knn_top1": 0.3, **TOLD}]
    assert [last_epoch([]), last_epoch([records]), last_epoch([[line(0.3, 30)]])] == [1, 1, 3]
    plot = drawn([("run", records, ("#2b7bba", "solid"))], last_epoch([records]))
    assert plot.x_range.end > 0

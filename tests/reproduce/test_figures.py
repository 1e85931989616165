"""Figures: what is drawn is what was recorded, and the same records give the same bytes."""

from __future__ import annotations

from itertools import pairwise

import matplotlib
import pytest
import synthetic
from matplotlib.colors import to_rgba

from lpslim.experiment import records
from reproduce import figures, plots
from reproduce.labels import labels

NAME = "vgg16_cifar10/flops60_cos350"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Cap on and off and no ADMM on the embedded digits, three seeds; a published row on two data sources."""
    made = []
    for changes in ({}, {"M": None}, {"regularizer.penalty": "none"}):
        name = {"model.name": "vgg_small", **changes}
        made += synthetic.seeds(f"own/{len(made)}", [93.0, 93.5, 94.3], data=synthetic.DIGITS, **name)
    made += [synthetic.record(NAME, final=94.2), synthetic.record(NAME, data=synthetic.JPEG, final=83.0)]
    return synthetic.write(tmp_path_factory.mktemp("store"), *made)


@pytest.fixture(scope="module")
def made(results):
    with matplotlib.rc_context(figures.STYLE):
        return figures.figures(records.read_all(results), "last")


def drawn(groups):
    return plots.series(groups, [f"group {i}" for i in range(len(groups))])


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_figure_per_kind_data_set_and_model(made):
    pairs = ("cifar10_vgg16", "digits_vgg_small")
    everywhere = {f"{kind}_{pair}" for kind in ("residuals", "channels") for pair in pairs}
    assert set(made) == everywhere | {"accuracy_vs_flops_cifar10_vgg16", "comparison_digits_vgg_small"}


def test_residuals_show_the_recorded_series(made):
    left, right = made["residuals_digits_vgg_small"].axes
    assert left.get_yscale() == "log"
    capped = lines(left)["Lp p=5, M=1"]
    assert list(capped.get_xdata()) == [1, 2, 3, 4, 5]
    assert capped.get_ydata() == pytest.approx([20 / i**2 for i in range(1, 6)])
    assert texts(made["residuals_digits_vgg_small"]) == ["Lp p=5, M=1", "Lp p=5, no cap"]  # none without ADMM
    assert right.get_lines()[0].get_ydata() == pytest.approx([100 * (1 - 0.5 / i) for i in range(1, 6)])
    assert right.get_lines()[1].get_ydata() == pytest.approx([90 / i for i in range(1, 6)])


def test_a_residual_of_zero_is_left_out_and_said_to_be():
    first = {"iteration": 1, "epoch": 1.0, "primal": 1.0, "dual": 0.1, "sparsity": 1.0, "capped": 1.0}
    rows = [first, {**first, "iteration": 2, "dual": 0.0}]
    figure = figures.residuals_figure(drawn(plots_groups(synthetic.record(convergence=rows))), "x")
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_ylabel() == "residual (L2 norm, zeros not drawn)"


def test_residuals_that_are_all_zero_are_drawn_on_a_linear_axis():
    rows = [{"iteration": 1, "epoch": 1.0, "primal": 0.0, "dual": 0.0, "sparsity": 1.0, "capped": 1.0}]
    figure = figures.residuals_figure(drawn(plots_groups(synthetic.record(convergence=rows))), "x")
    assert figure.axes[0].get_yscale() == "linear"


def plots_groups(*made):
    return figures.grouped(made)


def test_channels_show_what_is_kept_of_the_dense_width(made):
    (axes,) = made["channels_digits_vgg_small"].axes
    kept = [n for n, _ in synthetic.WIDTHS.values()]
    dense = [of for _, of in synthetic.WIDTHS.values()]
    assert [bar.get_height() for bar in axes.patches] == dense
    ((label, line),) = lines(axes).items()  # both methods keep the same: drawn once, named twice
    assert "Lp p=5, no cap" in label.replace("\n", " ")
    assert ";" in label
    assert list(line.get_ydata()) == kept
    assert [tick.get_text() for tick in axes.get_xticklabels()] == list(synthetic.WIDTHS)


def test_many_layers_are_named_by_some(made):
    widths = {f"layer{i}.0.conv1": [i + 1, 64] for i in range(54)}
    figure = figures.channels_figure(drawn(plots_groups(synthetic.record(channels=widths))), "x")
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == list(widths)[::3]


def test_published_marks_are_hollow_and_measured_ones_filled(made):
    axes = made["accuracy_vs_flops_cifar10_vgg16"].axes[0]
    marks = lines(axes)
    ours = marks["Ji et al., published"]
    assert to_rgba(ours.get_markerfacecolor())[3] == 0
    assert (60.6, 94.36) in set(zip(ours.get_xdata(), ours.get_ydata(), strict=True))
    assert len(ours.get_xdata()) == 7
    measured = [line for line in axes.get_lines() if list(line.get_ydata()) == [94.2]]
    assert to_rgba(measured[0].get_markerfacecolor())[3] == 1


def test_other_data_have_axes_of_their_own(made):
    published, other = made["accuracy_vs_flops_cifar10_vgg16"].axes
    assert published.get_title() == "data: as published"
    assert other.get_title() == "data: image folder cifar10_jpeg"
    assert not any("published" in str(name) for name in lines(other))


@pytest.fixture(scope="module")
def scatter(results):
    """Accuracy against FLOPs of the embedded digits, which all have one budget."""
    groups = [g for g in figures.grouped(records.read_all(results)) if g.pair[1] == "vgg_small"]
    with matplotlib.rc_context(figures.STYLE):
        return figures.accuracy_figure(plots.series(groups, labels(groups)), "x", [], "last")


def test_methods_at_one_budget_stand_in_the_order_of_their_accuracy(made):
    (axes,) = made["comparison_digits_vgg_small"].axes
    places = {float(c.lines[0].get_ydata()[0]): float(c.lines[0].get_xdata()[0]) for c in axes.containers}
    assert [places[y] for y in sorted(places)] == sorted(places.values())
    assert len(places) == 3
    assert all(container.has_xerr for container in axes.containers)
    names = [tick.get_text() for tick in axes.get_yticklabels()]
    assert sorted(names) == ["Lp p=5, M=1 (n=3)", "Lp p=5, no cap (n=3)", "no ADMM (magnitude) (n=3)"]
    assert texts(made["comparison_digits_vgg_small"]) == ["dense", "ADMM", "control"]


def test_runs_on_different_data_have_no_common_budget():
    one, other = synthetic.record(NAME), synthetic.record(NAME, data=synthetic.JPEG)
    assert figures.one_budget(plots_groups(one, synthetic.record(NAME, M=None))).startswith("61 % of the mul")
    assert figures.one_budget(plots_groups(one, other)) == ""
    assert figures.one_budget(plots_groups(one)) == ""


def test_error_bars_from_three_runs_on(made, scatter):
    (digits,) = scatter.axes
    assert len(digits.containers) == 3
    assert all(container.has_yerr for container in digits.containers)
    single = made["accuracy_vs_flops_cifar10_vgg16"].axes[0]
    assert not any(container.has_yerr for container in single.containers)
    assert [text for text in texts(scatter) if "(n=3)" in text]


def test_marks_that_coincide_are_moved_apart(scatter):
    figure, (axes,) = scatter, scatter.axes
    figure.draw_without_rendering()
    marks = [container.lines[0] for container in axes.containers]
    places = [mark.get_transform().transform((mark.get_xdata()[0], mark.get_ydata()[0]))[0] for mark in marks]
    assert min(b - a for a, b in pairwise(places)) > 0.1 * figure.dpi
    assert {mark.get_xdata()[0] for mark in marks} == {60.6}  # the data are as recorded


def test_axes_name_their_units(made):
    for name, figure in made.items():
        for axes in figure.axes:
            assert axes.get_xlabel(), name
            assert axes.get_ylabel() or name.startswith("comparison_"), name  # whose axis has the names
    assert made["accuracy_vs_flops_cifar10_vgg16"].axes[0].get_ylabel() == "test accuracy (%)"


def test_legend_and_labels_do_not_overlap(made):
    for kind in ("residuals", "channels", "accuracy_vs_flops"):
        figure = made[f"{kind}_cifar10_vgg16"]
        figure.draw_without_rendering()
        legend = figure.legends[0].get_window_extent()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        assert not any(legend.overlaps(box) for box in boxes), kind
        assert not any(box.overlaps(following) for box, following in pairwise(boxes)), kind


def test_rendering_again_gives_the_same_bytes(tmp_path, capsys):
    results = synthetic.write(tmp_path, synthetic.record(NAME))
    assert figures.main(["--results", str(results)]) == 0
    paths = sorted((results / "figures").iterdir())
    assert sorted(capsys.readouterr().out.split()) == [str(path) for path in paths]
    assert len(paths) == 6
    with matplotlib.rc_context(figures.STYLE):
        again = figures.figures(records.read_all(results), "last")
        for name, form in [*((name, "svg") for name in again), ("accuracy_vs_flops_cifar10_vgg16", "png")]:
            content = (results / "figures" / f"{name}.{form}").read_bytes()
            assert content == figures.rendered(again[name], form)
            assert b"<dc:date>" not in content


def test_without_records_nothing_is_drawn(tmp_path, capsys):
    assert figures.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no records below {tmp_path / 'records'}: nothing to draw\n"
    assert not (tmp_path / "figures").exists()


def test_hostile_names_stay_in_the_folder_and_are_no_formula(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FORMATS", {"svg": figures.FORMATS["svg"]})
    data = {**synthetic.DIGITS, "name": "../../$x_{$", "source": "$\\frac{$\n"}
    results = synthetic.write(tmp_path, synthetic.record(data=data, channels={"$\\bad{$": [1, 2]}))
    assert figures.main(["--results", str(results)]) == 0
    written = list(tmp_path.rglob("*.svg"))
    assert len(written) == 3
    assert all(path.parent == tmp_path / "figures" for path in written)


def test_of_too_many_configurations_the_best_are_drawn_and_the_title_says_so(monkeypatch):
    monkeypatch.setattr(plots, "MOST", 2)
    finals = {1.0: 91.0, 2.0: 93.0, 3.0: 92.0}
    found = [
        synthetic.record("sweep/p", p=p, final=final, data=synthetic.DIGITS) for p, final in finals.items()
    ]
    with matplotlib.rc_context(figures.STYLE):
        made = figures.figures(found, "last")
    figure = made["comparison_digits_vgg16"]
    assert figure.get_suptitle() == "vgg16 on digits, best 2 of 3, 61 % of the multiply-adds removed"
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["Lp p=3, M=1 (n=1)", "Lp p=2, M=1 (n=1)"]

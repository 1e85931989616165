"""Figures: what is drawn is what was recorded, and the same records give the same bytes."""

import matplotlib.style
import pytest

from reproduce import figures, plots
from tests.reproduce import synthetic
from tests.reproduce.synthetic import NAME, OWN

BERT = {f"layer.{i}.{kind}": (1 + i, of) for i in (0, 1) for kind, of in (("query", 4), ("dense", 8))}
HEADS = {layer: kept for layer, kept in BERT.items() if "query" in layer}


def draw(*made):
    with matplotlib.style.context(figures.STYLE):
        return figures.figures(made, "last")


@pytest.fixture(scope="module")
def made():
    """Cap on and off and no ADMM on the digits, three seeds; a published row on two data sources."""
    runs = []
    for i, changes in enumerate(({}, synthetic.NO_CAP, synthetic.NO_ADMM)):
        runs += synthetic.seeds(f"own/{i}", [93.0 + i, 93.5, 94.3], **OWN, **changes)
    runs += [synthetic.record(NAME, final=94.2), synthetic.record(NAME, data=synthetic.JPEG, final=83.0)]
    runs += [synthetic.record(NAME, drop=70.0, ratio=0.7, channels=BERT), synthetic.lost(NAME, 1)]
    runs += [synthetic.record(NAME, drop=70.0, ratio=0.9, channels=HEADS)]
    return draw(*runs)


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_residuals_are_the_recorded_series_of_each_admm(made):
    assert len(made) == 2 * 3
    left, right = made["residuals_digits_vgg_small"].axes
    assert list(lines(left)["Lp p=5, M=1"].get_xdata()) == [1, 2, 3, 4, 5]
    assert lines(left)["Lp p=5, M=1"].get_ydata() == pytest.approx([20 / i**2 for i in range(1, 6)])
    assert right.get_lines()[0].get_ydata()[0] == pytest.approx(50)
    shared = [text.get_text() for text in made["residuals_cifar10_vgg16"].legends[0].get_texts()]
    assert len(shared) == 2  # four configurations, two ADMM
    assert "Lp p=5, M=1, data=torchvision batches" in shared


def test_a_pull_on_channels_is_drawn_as_it_was_recorded():
    def row(i):
        return {"iteration": i, "gap": 0.4 / i, "units": 300 - i, "accuracy": 90.0, "accuracy_if_cut": 10 * i}

    rows = [row(i) for i in range(1, 6)]
    drawn = draw(synthetic.record(convergence=rows, method="Lp on channels"))
    left, right = drawn["pull_cifar10_vgg16"].axes
    assert [line.get_ydata().tolist() for line in left.get_lines()] == [[90.0] * 5, [10, 20, 30, 40, 50]]
    assert right.get_lines()[0].get_ydata() == pytest.approx([40 / i for i in range(1, 6)])
    assert "residuals_cifar10_vgg16" not in drawn


def test_channels_are_the_recorded_shares_and_protected_layers_are_whole():
    both = synthetic.record(channels=BERT, method="both")
    heads = synthetic.record(channels=HEADS, method="heads", p=3.0)
    (axes,) = draw(both, heads)["channels_cifar10_vgg16"].axes
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks == ["layer.0.query (4)", "layer.1.query (4)", "layer.0.dense (8)", "layer.1.dense (8)"]
    gap = float("nan")  # no line from one kind of layer to the next
    assert lines(axes)["both"].get_ydata() == pytest.approx([25, 50, gap, 12.5, 25], nan_ok=True)
    assert lines(axes)["heads"].get_ydata() == pytest.approx([25, 50, gap, 100, 100], nan_ok=True)


def test_published_is_hollow_and_beside_it_stands_only_what_is_of_its_data(made):
    (axes,) = made["accuracy_vs_flops_cifar10_vgg16"].axes
    drawn = lines(axes)
    assert {drawn[name].get_mfc() for name in ("Ji et al.", "APIB")} == {"none"}
    assert (82.0, 93.36) in zip(*drawn["Ji et al."].get_data(), strict=True)
    assert drawn["dense, measured"].get_ydata()[0] == 94.0
    marks = sorted((c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in axes.containers)
    assert marks[:2] == [(60.6, 94.2), (70.0, 93.5)]
    assert 70.0 < marks[2][0] < 71.0  # of one budget: side by side
    assert len(marks) == 3


def test_scaled_epochs_are_pale_and_configurations_of_one_method_have_one_legend_entry():
    short = {"epoch_scale": 0.1, "differs": {"epoch_scale": [1.0, 0.1]}}
    runs = [*synthetic.seeds(NAME, [94.2, 94.4, 94.6]), synthetic.record(NAME, drop=70.0, ratio=0.7, **short)]
    figure = draw(*runs, synthetic.record("own/row", p=3.0))["accuracy_vs_flops_cifar10_vgg16"]
    whole, pale = figure.axes[0].containers  # and not what stands in no published table
    assert [len(c.lines[2]) for c in (whole, pale)] == [1, 0]  # an interval from three seeds on
    ends = whole.lines[2][0].get_segments()[0][:, 1]
    assert list(ends) == pytest.approx([94.4 - 4.3027 * 0.2 / 3**0.5, 94.4 + 4.3027 * 0.2 / 3**0.5], abs=1e-3)
    assert [c.lines[0].get_mfc()[3] for c in (whole, pale)] == [1.0, 0.3]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"Lp p=5, M=1", "Lp p=5, M=1, 0.1 of the epochs", "Ji et al."} < set(names)


def test_comparable_methods_are_ranked_beside_what_is_published_at_their_budget():
    runs = [synthetic.record(NAME, p=p, final=92 + p, target_flops=0.606) for p in (2.5, 1.0)]
    figure = draw(*runs, synthetic.record(NAME, target_flops=0.7))["comparison_cifar10_vgg16"]
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    rows = ("Ji et al., step 100", "Ji et al., step 300", "Ji et al., cos 400", "APIB, cos 350",
            "Ji et al., cos 350")  # fmt: skip
    published = [f"{row}, published" for row in rows]
    assert names == ["Lp p=5, M=1, p=1", *published, "Lp p=5, M=1, p=2.5"]
    assert "60.6 % of the multiply-adds removed" in figure.get_suptitle()
    assert figure.axes[0].get_xlabel() == "test accuracy (%), n = 1"
    runs = [synthetic.record(NAME, p=p, target_flops=0.606, data=synthetic.JPEG) for p in (2.5, 1.0)]
    (axes,) = draw(*runs, synthetic.record(NAME, target_flops=0.7))["comparison_cifar10_vgg16"].axes
    assert len(axes.get_yticklabels()) == 2  # other data: nothing published stands beside them


def test_several_seeds_are_dots_on_the_line_of_their_mean():
    runs = synthetic.seeds("a", [93.0, 93.5, 94.3], **OWN) + synthetic.seeds("b", [92.0], p=1.0, **OWN)
    (axes,) = draw(*runs)["comparison_digits_vgg_small"].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["Lp p=5, M=1, p=1 (n=1)", "Lp p=5, M=1, p=5 (n=3)"]
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    assert [list(line.get_xdata()) for line in dots] == [[], [93.0, 93.5, 94.3]]
    assert [c.lines[0].get_xdata()[0] for c in axes.containers] == pytest.approx([92.0, 93.6])


def test_of_too_many_configurations_the_best_are_drawn_and_the_title_says_so(monkeypatch):
    assert len({tuple(plots.marks(i).values()) for i in range(plots.TOLD_APART)}) == plots.TOLD_APART
    monkeypatch.setattr(plots, "TOLD_APART", 2)
    made = draw(*(synthetic.record(p=p, final=90 + p, **OWN) for p in (1.0, 3.0, 2.0)))
    figure = made["comparison_digits_vgg_small"]
    assert figure.get_suptitle().startswith("vgg_small on digits, best 2 of 3")
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["Lp p=5, M=1, p=2", "Lp p=5, M=1, p=3"]


def test_rendering_again_gives_the_same_bytes(tmp_path, capsys):
    results = synthetic.write(tmp_path, synthetic.record(NAME, channels={}, convergence=[]))
    contents = []
    for _ in range(2):
        figures.main(["--results", str(results)])
        contents.append({path.name: path.read_bytes() for path in (results / "figures").iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [f"accuracy_vs_flops_cifar10_vgg16.{form}" for form in ("png", "svg")]
    assert capsys.readouterr().out.count(".png") == 2


def test_what_cannot_be_drawn_is_said(tmp_path, capsys):
    synthetic.write(tmp_path, synthetic.record(NAME, versions={"prune": 9}), synthetic.lost(NAME, 1))
    figures.main(["--results", str(tmp_path)])
    assert "Outdated and left out" in capsys.readouterr().out
    assert not (tmp_path / "figures").exists()


def test_hostile_names_stay_in_the_folder_and_are_no_formula(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FORMATS", {"svg": figures.FORMATS["svg"]})
    data = {**synthetic.DIGITS, "name": "../../$x_{$", "source": "$\\frac{$\n"}
    made = synthetic.record(data=data, channels={"$\\bad{$": [1, 2]}, method="_$^{$", kind="_$^{$")
    figures.main(["--results", str(synthetic.write(tmp_path, made))])
    paths = list(tmp_path.rglob("*.svg"))
    assert len(paths) == 3
    assert all(path.parent == tmp_path / "figures" for path in paths)

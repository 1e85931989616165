"""The page of results: its numbers are those of the records, it loads nothing, and a browser can use it."""

import re
import shlex
from html.parser import HTMLParser

import msgspec
import pytest

from lpslim.experiment.config import IGNORED_KEYS, flat
from lpslim.experiment.records import public
from tests.composing import configured
from tests.reproduce import browser, synthetic
from tests.reproduce.synthetic import NAME, OWN

pytest.importorskip("itables", reason="the extra `report` is not installed: make report")

from reproduce import details, report

HOSTILE = (
    "</script><script>window.broken=1</script><img src=x onerror=window.broken=1> {{ 7 * 7 }} $x_{$ & \"'"
)


def render(results, *more):
    report.main(["--results", str(results), *more])
    return (results / "index.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Text, tags and identities of a page, as a browser would read them."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.ids, self.links = [], [], [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def made():
    """Three methods on the digits, three seeds each; a published row, other settings, a diverged run."""
    runs = []
    for i, changes in enumerate(({}, synthetic.NO_CAP, synthetic.NO_ADMM)):
        runs += synthetic.seeds(f"own/m{i}", [93.0 - i, 93.5 - i, 94.3 - i], **OWN, **changes)
    runs += synthetic.seeds(NAME, [94.1, 94.3, 94.8])
    runs += [msgspec.structs.replace(runs[0], experiment="own/again")]  # of the same key
    runs += [synthetic.record("vgg16_cifar10/flops60_step100", differs={"p": [5, 3]}, p=3.0, final=91.1)]
    return [*runs, synthetic.lost("own/lost", **OWN, p=2.0, method="lost")]


@pytest.fixture(scope="module")
def results(made, tmp_path_factory):
    old = synthetic.record("own/old", **OWN, versions={"prune": 9})
    return synthetic.write(tmp_path_factory.mktemp("results"), *made, old)


def test_page_shows_verdicts_differences_missing_rows_and_diverged_runs(results):
    text = Page(render(results)).text
    assert "15 runs on record, of which 1 diverged" in text
    assert "94.40 ± 0.36" in text  # the published row, as measured
    assert "Missing: 6 of 7 rows" in text
    assert "python run.py -m experiment=vgg16_cifar10/flops66_cos350 seed=0,1,2" in text
    assert "other settings: p=3" in text
    assert re.search(r"no ADMM \+2\.00 \+2\.00 \+2\.00", text)
    assert "Outdated and left out (--outdated shows it): own/old" in text
    assert "Diverged in finetune, epoch 3, step 7: the loss was nan" in text


def test_page_is_one_file_with_no_identity_twice_and_the_same_every_time(results):
    first = render(results)
    page = Page(first)
    assert render(results) == first
    assert len(set(page.ids)) == len(page.ids)
    outside = [link for link in page.links if not link.startswith(("#", "data:", "https://itables.org/"))]
    assert outside == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= {*page.ids}
    assert first.count('role="img"') == first.count("aria-label=") - first.count('role="region"') - 1


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "No records. Nothing has been measured yet"),
        ([synthetic.record(**OWN)], "1 run on record."),
        ([synthetic.lost(**OWN, stage="baseline")], "1 run on record, of which 1 diverged"),
    ],
    ids=["none", "one", "diverged"],
)
def test_page_says_that_there_is_little_to_show(tmp_path, records, words):
    assert words in Page(render(synthetic.write(tmp_path, *records))).text


def hostile(**more):
    data = {**synthetic.DIGITS, "name": HOSTILE, "source": HOSTILE}
    changes = {"label": HOSTILE, "environment": {HOSTILE: HOSTILE}, "channels": {HOSTILE: (1, 2)}}
    return synthetic.record(data=data, method=HOSTILE, kind=HOSTILE, **changes, **more)


def test_markup_in_a_record_stays_text(tmp_path):
    plain = Page(render(synthetic.write(tmp_path / "plain", synthetic.record(**OWN))))
    page = Page(render(synthetic.write(tmp_path / "hostile", hostile(seed=0), hostile(seed=1, p=3.0))))
    assert page.tags.count("script") == plain.tags.count("script")
    assert "img" not in page.tags
    assert page.text.count("onerror=window.broken=1") > 10
    assert "{{ 7 * 7 }}" in page.text


def settings(config):
    return {key: value for key, value in flat(public(config)) if key not in IGNORED_KEYS}


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=vgg16_cifar10/flops60_cos350", "seed=3"],
        ["experiment=compare/slimming", "p=3", 'protected=["layer3.*"]', "M=null"],
        ["experiment=compare/slimming", "method=fpgm"],
        ["model=bert_tiny", "dataset=toy_text", "method=slimming", 'label="a, b"', "target_params=0.3"],
        ["method=taylor", "+regularizer.options={a: [1, true, null], b: 'x y'}", "name=own/x"],
    ],
)
def test_command_composes_what_the_record_was_configured_with(words):
    asked = configured(*words)
    own, differs = settings(asked), {}
    if words[0].startswith("experiment="):
        file = settings(configured(words[0]))
        changed = {key: value for key, value in own.items() if value != file[key] and key != "seed"}
        differs = {key: [file[key], value] for key, value in changed.items()}
    changes = {"config": public(asked), "differs": differs}
    run = msgspec.structs.replace(synthetic.record(asked.name, asked.seed), **changes)
    python, script, *typed = shlex.split(details.command(run))
    assert (python, script) == ("python", "run.py")
    assert settings(configured(*typed)) == own


def test_chart_has_the_recorded_values_and_omits_what_a_logarithm_cannot_show():
    drawn = details.chart("x", {"a": [100, 0, 1], "b": [10.0], "c": []}, {"dense": 2}, log=True)
    assert drawn["edges"] == ["100", "1"]
    assert drawn["paths"] == {"a": "m0 0l300 100", "b": "m0 50"}
    assert drawn["ends"] == {"dense": (2, 150)}
    assert details.chart("x", {"a": [0.0]}, log=True) is None
    long = details.chart("x", {"a": [float(i) for i in range(401)]})
    assert long["paths"]["a"].count("l") < 100


def test_two_hundred_runs_take_less_than_three_megabytes(tmp_path):
    layers = {f"layer{i // 9 + 1}.{i % 9}.conv1": (1 + i, 64) for i in range(27)}
    values, names = [90 + i % 7 / 7 for i in range(40)], ("train_loss", "val_accuracy", "test_accuracy")
    curve = dict.fromkeys(names, values)
    changes = {"channels": layers, "curves": {"baseline": curve, "finetune": curve}}
    changes["environment"] = {f"package {i}": "1.2.3" for i in range(15)}
    runs = [
        synthetic.record(f"compare/{name}", seed, final=90 + seed / 10, **changes, **{"criterion.name": name})
        for name in ("fpgm", "hrank", "taylor", "random")
        for seed in range(50)
    ]
    assert len(render(synthetic.write(tmp_path, *runs)).encode()) < 3_000_000


def test_what_is_missing_is_named_with_its_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        report.main(["--results", str(tmp_path)])
    assert "itables is not installed: python -m pip install '.[report]'" in capsys.readouterr().err
    assert not (tmp_path / "index.html").exists()


@pytest.mark.skipif(not browser.DRIVER, reason="no chromedriver: apt-get install chromium chromium-driver")
def test_in_a_browser_runs_can_be_sorted_filtered_and_opened(made, tmp_path):
    render(synthetic.write(tmp_path, *made, hostile()))
    found = "return [...document.querySelectorAll('{}')]".format
    rows = found("#all-runs tbody tr") + ".map(r => [...r.cells].map(c => c.innerText))"
    shown = found("main, .run") + ".filter(e => e.offsetHeight).map(e => e.id)"
    with browser.browser() as page:
        page.open(tmp_path / "index.html")
        page.until(lambda: len(page.js(rows)) == len(made) + 1)
        heads = page.js(found("#all-runs th") + ".map(h => h.innerText.trim())")
        final, method = heads.index("Final (%)"), [head.split("\n")[0] for head in heads].index("Method")

        def column(place):
            return [row[place] for row in page.js(rows)]

        finals = sorted((value for value in column(final) if value != "-"), key=float)
        for order in (finals, finals[::-1]):
            page.click("#all-runs th", "Final (%)")
            page.until(lambda: [value for value in column(final) if value != "-"] == order)  # noqa: B023
        page.click(f"#all-runs th:nth-child({method + 1}) .dtcc-button")
        page.click(".dtcc-list-buttons .dtcc-button", "no ADMM")
        page.until(lambda: set(column(method)) == {"no ADMM"})
        page.click("#all-runs tbody a")
        (opened,) = page.js(shown)
        assert opened == details.identity(made[8])  # the best of its method
        page.click(f"[id='{opened}'] summary")
        copied = f"document.getElementById('{opened}').querySelector('.copy').innerText"
        assert "name: own/m2" in page.js(f"return {copied}")
        page.click(f"[id='{opened}'] a")
        assert page.js(shown) == ["top"]
        for width in (1280, 390):
            page.open(tmp_path / "index.html", width)
            assert page.js("return document.documentElement.scrollWidth") <= width
        loaded = page.js("return performance.getEntriesByType('resource').map(e => e.name.split(':')[0])")
        assert set(loaded) <= {"blob", "data"}
        assert page.js("return window.broken ?? null") is None
        assert page.complaints() == []

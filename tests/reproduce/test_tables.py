"""Tables: the numbers are those of the records, and no text of a record can leave its cell."""

import re
import statistics

import pandas as pd
import pytest

from lpslim.experiment.statistics import Summary
from reproduce import findings, markup, tables
from tests.reproduce import synthetic
from tests.reproduce.synthetic import NAME, OWN

FINALS = [94.1, 94.3, 94.8]
HOSTILE = "=a|b\nc\x1b[2J <!-- results:end --> {x} *x* \\ $ & % # _ { } ^ ~"


@pytest.fixture
def results(tmp_path):
    """A store with a row as configured, the same on other data, one that differs, and an own comparison."""
    made = synthetic.seeds(NAME, FINALS)
    made += synthetic.seeds("vgg16_cifar10/flops66_cos350", [83.1, 83.2], data=synthetic.JPEG, dense=83.5)
    made += [synthetic.record("vgg16_cifar10/flops60_step100", differs={"p": [5, 3]}, p=3.0, final=91.1)]
    for changes in ({}, synthetic.NO_CAP, synthetic.NO_ADMM):
        made += synthetic.seeds("digits_vgg_small/x", [93.0, 93.5, 94.0 + len(changes)], **OWN, **changes)
    return synthetic.write(tmp_path, *made, synthetic.lost("lost/x", data=synthetic.DIGITS))


def render(results, *more):
    tables.main(["--results", str(results), *more])
    return (results / "README.md").read_text()


def rows_of(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")


def test_numbers_are_those_of_the_records_and_other_settings_have_their_own_line(results, capsys):
    text = f"{statistics.mean(FINALS):.2f} ± {statistics.stdev(FINALS):.2f}"
    assert text in render(results)
    assert text in capsys.readouterr().out
    for form in ("md", "tex"):
        assert text in (results / f"tables/table_vgg16_cifar10.{form}").read_text()
    table = rows_of(results / "tables/table_vgg16_cifar10.csv")
    (row,) = (line for line in table if line["Top-1 (%), published"] == "94.36")
    assert float(row["Top-1 (%), measured"]) == pytest.approx(statistics.mean(FINALS), abs=1e-12)
    assert float(row["Top-1 (%), measured sd"]) == pytest.approx(statistics.stdev(FINALS), abs=1e-12)
    assert (row["n"], row["Status"]) == ("3", "within")
    index = next(i for i, line in enumerate(table) if line["Status"] == "other settings: p=3")
    own, other = table[index - 1], table[index]
    assert (own["Status"], own["Row"]) == ("not run as configured", "flops60_step100")
    assert (own["Top-1 (%), published"], own["Top-1 (%), measured"]) == ("93.50", "")
    assert (other["Top-1 (%), published"], other["Top-1 (%), measured"]) == ("", "91.1")


def test_what_is_equal_is_said_once_and_of_too_many_lines_the_best_are_shown(results, monkeypatch):
    page = render(results)
    section = page[page.index("### vgg_small on digits") :].split("###")[1]
    assert re.search(
        r"\| Method +\| Fine-tuned \(%\) +\| Drop \(points\) +\| Training \(10\^12 multiply-adds\) +"
        r"\| Epochs \(dense / sparsify / fine-tune\) +\|\n",
        section,
    )
    assert "n: 3; Precision: auto; Data: scikit-learn, embedded." in section
    assert "diverged (finetune, epoch 3)" in page
    monkeypatch.setattr(tables, "LINES", 2)
    assert "### vgg_small on digits, best 2 of 3" in render(results)
    networks = [line["Network"] for line in rows_of(results / "tables/measured.csv")]
    assert networks.count("vgg_small on digits") == 3


def test_rendering_again_gives_the_same_bytes_and_links_what_is_there(results):
    (results / "figures").mkdir()
    (results / "figures" / "comparison_digits_vgg_small.png").touch()
    contents = []
    for _ in range(2):
        page = render(results)
        contents.append({path: path.read_bytes() for path in results.rglob("*.*") if path.suffix != ".json"})
    assert contents[0] == contents[1]
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert all((results / link).exists() for link in links)
    assert {"figures/comparison_digits_vgg_small.png", "tables/measured.csv"} < set(links)


def test_without_records_the_tables_name_the_command_once(tmp_path):
    assert "0 of 7" in render(tmp_path)
    text = (tmp_path / "tables/table_vgg16_cifar10.md").read_text()
    assert text.count("python run.py -m experiment=vgg16_cifar10/<row> seed=0,1,2`") == 1
    assert sum(line.rstrip(" |").endswith("not run") for line in text.splitlines()) == 7
    head = next(line for line in text.splitlines() if line.startswith("|"))
    assert "measured" not in head  # no empty columns
    glue = (tmp_path / "tables/table_bert_glue.md").read_text()
    assert "<row> seed=0,1,2` (`seed=0,1,2,3,4` for cola, mrpc, rte, stsb)" in glue


def test_a_lossless_copy_of_the_data_has_its_footnote(tmp_path):
    copy = {"source": "lossless copy, 98 of 60000 images replaced"}
    results = synthetic.write(tmp_path, synthetic.record(NAME, data=copy))
    render(results)
    notes = (results / "tables/table_vgg16_cifar10.md").read_text().splitlines()
    assert sum(line.startswith("- cifar10: lossless copy, 98 of 60000 images") for line in notes) == 1


def test_outdated_records_are_shown_only_when_asked_for(tmp_path):
    results = synthetic.write(tmp_path, synthetic.record(NAME, final=91.11, versions={"prune": 9}))
    assert "91.31" not in render(results, "--protocol", "paper")
    assert "Outdated and left out" in (results / "tables/table_vgg16_cifar10.md").read_text()
    page = render(results, "--protocol", "paper", "--outdated")
    assert "best on the test set" in page
    assert re.search(r"Lp p=5, M=1 † .* 91.31", page)


def page_with_markers(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"before\n{tables.BEGIN}\nstale\n{tables.END}\nafter\n")
    return path


def test_the_readme_gets_the_overview_and_the_first_figure_that_there_is_and_nothing_else_changes(results):
    readme = page_with_markers(results / "page.md")
    short = {"epoch_scale": 0.1, "differs": {"epoch_scale": [1.0, 0.1]}}
    synthetic.write(results, synthetic.record("vgg16_cifar10/flops82_step300", **short))
    for _ in range(2):
        render(results, "--readme", str(readme))
    before, block, after = re.split("<!-- .* -->", readme.read_text())
    assert (before, after) == ("before\n", "\nafter\n")
    lines = [line for line in block.splitlines() if line.startswith("|")]
    vgg = [cell.strip() for cell in lines[2].split("|")]
    assert vgg[2:-1] == ["2 of 7", "1", "4", "-0.13", "2 of 2 within"]  # other settings are not its run
    assert [len(lines), max(map(len, lines)) <= 100] == [2 + 4, True]
    assert "![" not in readme.read_text()
    (results / "figures").mkdir()
    for name in reversed(tables.FRONT):
        (results / "figures" / f"{name}.png").touch()
        render(results, "--readme", str(readme))
        assert re.findall(r"!\[.*", readme.read_text()) == [f"![{name}](results/figures/{name}.png)"]


def test_the_papers_method_stands_beside_every_other_one_in_page_file_and_findings(results):
    pages = page_with_markers(results / "page.md"), page_with_markers(results / "docs" / "findings.md")
    synthetic.write(results, *synthetic.seeds("digits_vgg_small/l1", [92.0], method="L1 norm", p=1.0, **OWN))
    page = render(results, "--readme", str(pages[0]))
    rows = {row["Against"]: row for row in rows_of(results / "tables/paired.csv")}
    row = rows["no ADMM"]  # differences of 0, 0 and -3: a deviation of 3 ** 0.5, so an error of 1
    numbers = [float(row[head]) for head in ("Lp minus other", "95 % from", "to")]
    assert numbers == pytest.approx([-1, -1 - 4.3027, -1 + 4.3027], abs=1e-4)
    verdict = "inside the noise"
    assert (row["n"], row["Verdict"], row["Budget"]) == ("3", verdict, "ratio=0.5")
    assert re.search(rf"\| no ADMM .*\| -1.00 .*\| -5.30 .*\| \+3.30 .*\| {verdict} +\|", page)
    counts = "better in 0, worse in 0, inside the noise in 1 of 1 comparisons"
    assert f"\n\n**Lp-ADMM beside no ADMM, 3 seeds or more: {counts}.**\n\n" in pages[0].read_text()
    assert not findings.verdict([])
    parts = dict(part.split("\n", 1) for part in pages[1].read_text().split("### ")[1:])
    assert "-5.30" in parts["The same selection without the ADMM"]
    assert "Nothing has been measured" in parts["The ADMM with an L1 penalty"]
    assert {"L1 norm", "Lp p=5, no cap"} < set(re.split(r" *\| *", parts["Other methods: vgg_small, digits"]))
    published = parts["The published figures"]
    assert re.search(r"flops60_cos350 +\| 94.36 +\| 94.40 ± 0.36 +\| 3 +\| \+0.04 +\| within", published)
    assert "flops60_step100" not in published  # its settings are others
    assert "50.0 / 75.0 / 83.3 / 87.5 / 90.0" in parts["Z in the course of the ADMM"]


def test_a_folder_of_rows_ends_with_its_count(results, capsys):
    rows = results / "conf" / "vgg16_cifar10"
    rows.mkdir(parents=True)
    for row in ("flops60_cos350", "flops66_cos350", "new"):
        (rows / f"{row}.yaml").touch()
    synthetic.write(results, synthetic.lost(NAME, 7))
    (results / "conf" / "compare").mkdir()
    render(results, "--rows", str(rows), str(results / "conf" / "compare"))
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        f"vgg16_cifar10: 2 of 3 rows have a record; none: new; diverged: {NAME} seed=7. "
        f"Table: {results}/tables/table_vgg16_cifar10.md"
    )
    assert second == f"compare: 0 of 0 rows have a record. Table: {results}/README.md"


@pytest.mark.parametrize("form", ["no", "{0}", "{1}\n{0}", "{0}{1}{0}{1}"])
def test_a_readme_without_its_markers_is_left_alone(tmp_path, capsys, form):
    readme, text = tmp_path / "page.md", form.format(tables.BEGIN, tables.END)
    readme.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        tables.main(["--results", str(tmp_path), "--readme", str(readme)])
    assert str(readme) in capsys.readouterr().err
    assert readme.read_text() == text


def test_a_hostile_record_stays_in_its_cell(tmp_path, capsys):
    data = {**synthetic.DIGITS, "name": HOSTILE, "source": HOSTILE}
    own = {"method": HOSTILE, "kind": HOSTILE, "rule": HOSTILE}
    made = [synthetic.record(data=data, **own), synthetic.record(NAME, differs={HOSTILE: [0, HOSTILE]})]
    results = synthetic.write(tmp_path, *made)
    render(results, "--outdated")
    assert "\x1b" not in capsys.readouterr().out
    for path in (results / "README.md", *(results / "tables").glob("*.md")):
        text = path.read_text()
        assert "<!--" not in text
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    for path in (results / "tables").glob("*.csv"):
        assert not re.search(r'(?m)(^|,)"?=', path.read_text())


def test_every_form_escapes_its_own_marks():
    assert markup.escaped("a|b <b>& lp_no_cap \\") == r"a\|b &lt;b&gt;&amp; lp_no_cap \\"
    assert markup.escaped("_x_ *y* `z` [l](u)") == r"\_x\_ \*y\* \`z\` \[l\](u)"
    lines = [{"a_b": "x,y", "c": Summary(1 / 3, 0.5, 3)}, {"a_b": None, "c": "50 % & $x_1$"}]
    assert markup.csv(lines) == f'a_b,c,c sd\n"x,y",{1 / 3!r},0.5\n,50 % & $x_1$,\n'
    assert r"- & 50 \% \& \$x\_1\$ \\" in markup.latex(lines)
    formulas = ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\t=1", "-1+1"]
    assert [markup.guarded(text) for text in formulas] == [f"'{text.strip()}" for text in formulas]
    assert [markup.guarded(text) for text in ("-0.52", "+1", "9")] == ["-0.52", "+1", "9"]
    assert [markup.words(value) for value in (0.128, -0.1, -0.001, -1e-15, None)] == [
        "+0.13",
        "-0.10",
        "-0.001",
        "+0.00",
        "-",
    ]

"""Tables: the numbers are those of the records, and no text of a record can leave its cell."""

from __future__ import annotations

import csv
import io
import re
import statistics

import pytest
import synthetic

from lpslim.base.errors import UserError
from lpslim.experiment import records
from lpslim.experiment.statistics import Summary
from reproduce import markup, tables
from reproduce.evidence import Evidence
from reproduce.lines import measured_blocks, paper_lines
from reproduce.markup import Missing
from reproduce.published import TITLES

NAME = "vgg16_cifar10/flops60_cos350"
HOSTILE = "a|b\nc\x1b[2J <!-- results:end --> *x* \\ $ & % # _ { } ^ ~"


@pytest.fixture
def results(tmp_path):
    """A store with a row as configured, the same on other data, one that differs, and an own comparison."""
    made = synthetic.seeds(NAME, [94.1, 94.3, 94.8])
    made += synthetic.seeds("vgg16_cifar10/flops66_cos350", [83.1, 83.2], data=synthetic.JPEG, dense=83.5)
    made += [synthetic.record("vgg16_cifar10/flops60_step100", differs={"p": [5, 3]}, p=3.0, final=91.1)]
    made += [synthetic.record("digits_vgg_small/lp", data=synthetic.DIGITS, **{"model.name": "vgg_small"})]
    return synthetic.write(tmp_path, *made)


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_numbers_are_those_of_the_records(results, capsys):
    assert tables.main(["--results", str(results)]) == 0
    finals = [94.1, 94.3, 94.8]
    mean, sd = statistics.mean(finals), statistics.stdev(finals)
    table = rows_of(results / "tables/table_vgg16_cifar10.csv")
    (row,) = (each for each in table if each["Top-1 (%), published"] == "94.36")
    assert float(row["Top-1 (%), measured"]) == pytest.approx(mean, abs=1e-12)
    assert float(row["Top-1 (%), measured sd"]) == pytest.approx(sd, abs=1e-12)
    assert row["Top-1 (%), measured n"] == "3"
    assert float(row["Difference"]) == pytest.approx(mean - float(row["Top-1 (%), published"]), abs=1e-12)
    assert row["Verdict, or what fills it"] == "within"
    assert f"{mean:.2f} ± {sd:.2f} (n=3)" in (results / "tables/table_vgg16_cifar10.md").read_text()
    assert rf"{mean:.2f} $\pm$ {sd:.2f} (n=3)" in (results / "tables/table_vgg16_cifar10.tex").read_text()
    printed = capsys.readouterr().out
    assert f"{mean:.2f} ± {sd:.2f} (n=3)" in printed
    assert str(results / "tables/measured.md") in printed


def test_every_configuration_is_in_the_measured_table(results):
    blocks = measured_blocks(Evidence(records.read_all(results)), "last")
    assert {title: len(lines) for title, lines in blocks.items()} == {
        "cifar10, vgg16": 3,
        "digits, vgg_small": 1,
    }
    (line,) = blocks["digits, vgg_small"]
    assert line == {
        "Method": "Lp p=5, M=1",
        "Dense (%)": Summary(94.0, None, 1),
        "Pruned, before fine-tuning (%)": Summary(60.0, None, 1),
        "Fine-tuned (%)": Summary(93.5, None, 1),
        "Drop from dense (points)": Summary(0.5, None, 1),
        "FLOPs drop (%)": Summary(60.6, None, 1),
        "Params drop (%)": Summary(82.0, None, 1),
        "Epochs: dense / sparsify / fine-tune": "3 / 2 / 4",
        "Measured on": "scikit-learn, embedded",
    }


def test_a_published_table_is_followed_by_what_was_measured_on_its_network(results):
    files, _ = tables.documents(records.read_all(results), "last")
    assert files["table_vgg16_cifar10.md"].count("**Measured, same roof: cifar10, vgg16**") == 1
    assert "same roof" not in files["table_resnet50_imagenet.md"] + files["table_vgg16_cifar10.csv"]
    assert len(files["table_vgg16_cifar10.csv"].splitlines()) == 1 + len(
        paper_lines("vgg16_cifar10", Evidence(records.read_all(results)), "last")
    )


def test_runs_with_other_settings_stand_on_their_own_line(results):
    lines = paper_lines("vgg16_cifar10", Evidence(records.read_all(results)), "last")
    index = next(i for i, line in enumerate(lines) if line["Method"] == "ours, other settings")
    own, other = lines[index - 1], lines[index]
    assert own["Top-1 (%), measured"] == Missing("not run")
    assert own["Verdict, or what fills it"] == (
        "python run.py -m experiment=vgg16_cifar10/flops60_step100 seed=0,1,2"
    )
    assert other["Top-1 (%), published"] is None
    assert other["Top-1 (%), measured"] == Summary(91.1, None, 1)
    assert other["Difference"] is None
    assert other["Verdict, or what fills it"] == "not this row's configuration: p=3"


def test_every_measured_cell_has_a_number_or_a_reason(results):
    for found in ([], records.read_all(results)):
        for table in TITLES:
            for line in paper_lines(table, Evidence(found), "last"):
                measured = [value for head, value in line.items() if head.endswith(", measured")]
                assert measured
                assert all(isinstance(value, Summary) or value.reason for value in measured)


def test_rendering_again_gives_the_same_bytes(results):
    tables.main(["--results", str(results)])
    first = {path.name: path.read_bytes() for path in (results / "tables").iterdir()}
    tables.main(["--results", str(results)])
    assert first == {path.name: path.read_bytes() for path in (results / "tables").iterdir()}
    assert len(first) == 3 * (len(TITLES) + 1)


def test_without_records_the_tables_say_why_they_are_empty(tmp_path, capsys):
    assert tables.main(["--results", str(tmp_path)]) == 0
    assert f"no records below {tmp_path / 'records'}: run something first" in capsys.readouterr().out
    text = (tmp_path / "tables/table_vgg16_cifar10.md").read_text()
    assert text.count("python run.py -m experiment=vgg16_cifar10/") == 7
    assert "94.36" in text
    assert "Nothing is measured yet." in (tmp_path / "tables/measured.md").read_text()
    assert rows_of(tmp_path / "tables/measured.csv") == [{"Block": "nothing is measured yet"}]
    assert not (tmp_path / "records").exists()


def test_the_protocol_is_named(results):
    tables.main(["--results", str(results), "--selection", "paper"])
    text = (results / "tables/measured.md").read_text()
    assert "(selection=paper)" in text
    assert "biased upwards" in text
    assert "94.60 ± 0.36" in text  # 94.40 in the last epoch


def test_a_broken_record_is_named(tmp_path, capsys):
    path = tmp_path / "records/adhoc/1.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    assert tables.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {path}: not a record of schema 1: experiment: missing\n"


# The block in the readme


def readme_of(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    return path


def test_the_readme_block_is_renewed_and_nothing_else(results, tmp_path):
    readme = readme_of(tmp_path, f"before\n{tables.BEGIN}\nstale\n{tables.END}\nafter\n")
    arguments = ["--results", str(results), "--readme", str(readme)]
    assert tables.main(arguments) == 0
    first = readme.read_text()
    assert first.startswith(f"before\n{tables.BEGIN}\n**cifar10, vgg16**")
    assert first.endswith(f"{tables.END}\nafter\n")
    assert "stale" not in first
    changed = readme.stat().st_mtime_ns
    assert tables.main(arguments) == 0
    assert readme.read_text() == first
    assert readme.stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    "text", ["no markers", tables.BEGIN, f"{tables.END}\n{tables.BEGIN}", f"{tables.BEGIN}{tables.END}" * 2]
)
def test_a_readme_without_its_markers_is_left_alone(results, tmp_path, capsys, text):
    readme = readme_of(tmp_path, text)
    assert tables.main(["--results", str(results), "--readme", str(readme)]) == 2
    assert "once each, in this order" in capsys.readouterr().err
    assert readme.read_text() == text


def test_a_missing_readme_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        tables.update_readme(tmp_path / "README.md", "x\n")


# Texts that are not trusted


def test_a_hostile_record_stays_in_its_cell(tmp_path, capsys):
    data = {**synthetic.DIGITS, "name": HOSTILE, "source": HOSTILE}
    results = synthetic.write(
        tmp_path, synthetic.record(data=data), synthetic.record(NAME, differs={HOSTILE: [0, HOSTILE]})
    )
    readme = readme_of(tmp_path, f"{tables.BEGIN}\n{tables.END}\n")
    for _ in range(2):  # the second time its own output is read back
        assert tables.main(["--results", str(results), "--readme", str(readme)]) == 0
    assert readme.read_text().count("<!--") == 2
    assert "\x1b" not in capsys.readouterr().out
    for path in (results / "tables").glob("*.md"):
        for table in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.MULTILINE):
            bars = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(bars) == 1
    for path in (results / "tables").glob("*.csv"):
        assert None not in {key for row in rows_of(path) for key in row}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"),
        ("a\nb\r\n\tc", "a b c"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("lp_no_cap", "lp_no_cap"),
        ("_x_ *y* `z` [l](u)", r"\_x\_ \*y\* \`z\` \[l\](u)"),
        ("back\\slash", r"back\\slash"),
        ("\x1b[2Jred\u202e", r"\[2Jred"),
    ],
)
def test_markdown_is_escaped(text, expected):
    assert markup.escape_markdown(text) == expected


def test_latex_is_escaped():
    assert markup.escape_latex("50% & $x_1$ #{}^~\\") == (
        r"50\% \& \$x\_1\$ \#\{\}\textasciicircum{}\textasciitilde{}\textbackslash{}"
    )
    assert markup.escape_latex("1 ± 2 <a|b>\n") == r"1 $\pm$ 2 \textless{}a\textbar{}b\textgreater{}"


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@SUM(A1)", "\t=1", "\r=1", " =1"])
def test_csv_formulas_are_defused(text):
    assert markup.escape_csv(text) == f"'{text.strip()}"


@pytest.mark.parametrize("text", ["-0.52", "+1", "93.41", "cos 350", ""])
def test_csv_leaves_other_texts_alone(text):
    assert markup.escape_csv(text) == text


def test_csv_splits_a_measured_column_in_three():
    lines = [
        {"a": "x,y", "b": Summary(1 / 3, 0.5, 3), "c": -0.25},
        {"a": None, "b": Missing("why"), "c": None},
    ]
    assert markup.csv_table(lines) == f'a,b,b sd,b n,c\n"x,y",{1 / 3!r},0.5,3,-0.25\n,why,,,\n'


def test_differences_show_their_sign():
    assert [markup.words(value) for value in (0.128, -0.1, -0.001)] == ["+0.13", "-0.10", "+0.00"]


@pytest.mark.parametrize("form", [markup.markdown, markup.latex, markup.csv_table])
def test_a_table_without_lines_is_refused(form):
    with pytest.raises(ValueError, match="lines"):
        form([])


def test_a_terminal_is_shown_the_beginning_of_a_long_table(tmp_path, monkeypatch, capsys):
    made = [synthetic.record("sweep/p", p=1.0 + i / 8) for i in range(30)]
    results = synthetic.write(tmp_path, *made)
    readme = tmp_path / "README.md"
    readme.write_text(f"{tables.BEGIN}\n{tables.END}\n")
    monkeypatch.setattr(tables, "LONGEST", 10)
    tables.render(results, "last", readme)
    printed, whole = capsys.readouterr().out, (results / "tables/measured.md").read_text()
    assert whole.count("| Lp p=") + whole.count("| L1 ") == 30
    assert readme.read_text().count("| Lp p=") + readme.read_text().count("| L1 ") == 30
    assert printed.splitlines()[10] == "... and 24 more lines, in the files below"
    assert "- VGG-16 on CIFAR-10: 0 of 7 rows measured as configured." in printed

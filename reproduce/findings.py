"""Findings: what the records answer, question by question, as tables."""

from collections.abc import Sequence
from statistics import fmean

from lpslim.experiment.records import Record
from reproduce.aggregate import Group
from reproduce.compare import Claim, Pair, is_short
from reproduce.markup import Line, section
from reproduce.names import budget

QUESTIONS = {  # name of a method, before what tells its configurations apart -> heading
    "no ADMM": "The same selection without the ADMM",
    "L1": "The ADMM with an L1 penalty",
    "random, same widths": "Random channels at the same widths",
}
OTHER, PUBLISHED, COURSE = "Every other method", "The published figures", "Z in the course of the ADMM"


def answers(pairs: Sequence[Pair], claims: Sequence[Claim]) -> str:
    """Return the paper's method beside the others and beside what was published, and what its Z does."""
    parts: dict[str, list[Line]] = {
        heading: [] for heading in (*QUESTIONS.values(), OTHER, PUBLISHED, COURSE)
    }
    for pair in pairs:
        heading = next(
            (QUESTIONS[name] for name in QUESTIONS if f"{pair.name},".startswith(f"{name},")), OTHER
        )
        parts[heading].append(pair_line(pair))
    for claim in claims:
        row, group = claim.row, claim.group
        if group and row.experiment and (is_short(group.first) or not group.first.differs):
            line: Line = {"Row": row.experiment, "Published": row.cells[row.column]}
            line |= {"Measured": claim.measured.get(row.column), "n": group.n}
            parts[PUBLISHED].append({**line, "Difference": claim.difference, "Status": claim.status})
    ours = {id(pair.ours): pair.ours for pair in pairs}
    parts[COURSE] = [course_line(group) for group in ours.values() if group.first.convergence]
    return "\n\n".join(f"### {heading}\n\n{section(lines)}" for heading, lines in parts.items()) + "\n"


def pair_line(pair: Pair) -> Line:
    """Return a line on the paper's method and another one."""
    ours, found = pair.ours.first, pair.difference
    return {
        "Network": network(ours),
        "Budget": budget(ours),
        "Fine-tune": f"{ours.epochs['finetune']} epochs",
        "Against": pair.name,
        "Lp minus it (points)": found.mean if found else None,
        "95 % from": found.low if found else None,
        "to": found.high if found else None,
        "n": str(found.n) if found else None,
        "Verdict": pair.verdict,
    }


def course_line(group: Group) -> Line:
    """Return a line on a configuration's Z after each outer iteration, mean over seeds."""
    iterations = list(zip(*(run.convergence for run in group.runs), strict=False))
    shares = [
        " / ".join(f"{100 * fmean(row[key] for row in rows):.1f}" for rows in iterations)
        for key in ("sparsity", "capped")
    ]
    return {
        "Network": network(group.first),
        "Zeros in Z (%)": shares[0],
        "Capped (%)": shares[1],
        "n": group.n,
    }


def network(run: Record) -> str:
    """Return a run's network and data set."""
    return f"{run.config['model']['name']} on {run.data.name}"

"""Findings: what the records answer, question by question, as tables."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from lpslim.experiment.statistics import SPREAD_FROM
from reproduce.aggregate import Group
from reproduce.claims import Claim, is_short
from reproduce.compare import Pair
from reproduce.markup import Line, section
from reproduce.names import target

NO_ADMM = "no ADMM"
QUESTIONS = {
    NO_ADMM: "The same selection without the ADMM",
    "L1": "The ADMM with an L1 penalty",
    "random, same widths": "Random channels at the same widths",
}
OTHER, PUBLISHED, COURSE = "Other methods", "The published figures", "Z in the course of the ADMM"


def answers(pairs: Sequence[Pair], claims: Sequence[Claim]) -> str:
    """Return the paper's method beside the others and beside what was published, and what its Z does.

    The last table has a line per network: its data set with most seeds.
    """
    parts: dict[str, list[Line]] = {heading: [] for heading in QUESTIONS.values()}
    lines = [(QUESTIONS.get(pair.theirs.first.method), pair_line(pair)) for pair in pairs]
    others = Counter(line["Network"] for question, line in lines if not question)
    for question, line in lines:
        alone = others[line["Network"]] == 1  # such networks share a table
        heading = question or (OTHER if alone else f"{OTHER}: {line.pop('Network')}")
        parts.setdefault(heading, []).append(line)
    parts |= {PUBLISHED: [], COURSE: []}
    for claim in claims:
        row, group = claim.row, claim.group
        if group and row.experiment and (is_short(group.first) or not group.first.differs):
            line = {"Row": row.experiment, "Published": row.cells[row.column]}
            line |= {"Measured": claim.measured.get(row.column), "n": group.n}
            parts[PUBLISHED].append({**line, "Difference": claim.difference, "Status": claim.status})
    most: dict[str, Group] = {}
    for ours in sorted((pair.ours for pair in pairs), key=lambda group: -len(group.runs)):
        most.setdefault(ours.first.config["model"]["name"], ours)
    parts[COURSE] = [course_line(group) for _, group in sorted(most.items()) if group.first.convergence]
    return "\n\n".join(f"### {heading}\n\n{section(lines)}" for heading, lines in parts.items()) + "\n"


def verdict(pairs: Sequence[Pair]) -> str:
    """Return in a sentence how Lp compares with no ADMM where there are enough seeds; empty if nowhere."""
    plain = [pair for pair in pairs if pair.theirs.first.method == NO_ADMM]
    found = [p.verdict for p in plain if p.difference and p.difference.n >= SPREAD_FROM]
    if not found:
        return ""
    counts = Counter(found)
    better, worse = (f"{word} in {counts[f'Lp {word}']}" for word in ("better", "worse"))
    within = f"inside the noise in {counts['inside the noise']} of {len(found)} comparisons"
    return f"Lp-ADMM beside no ADMM, {SPREAD_FROM} seeds or more: {better}, {worse}, {within}."


def pair_line(pair: Pair) -> Line:
    """Return a line on the paper's method and another one."""
    ours, found = pair.ours.first, pair.difference
    epochs = (run.epochs for run in (ours, pair.theirs.first))
    lengths = [count.get("sparsify", 0) + count.get("finetune", 0) for count in epochs]
    mean, half, n = (found.mean, found.half, str(found.n)) if found else (None, None, None)
    low, high = (None, None) if mean is None or half is None else (mean - half, mean + half)
    return {
        "Network": _network(pair.ours),
        "Budget": target(ours),
        "Epochs after dense": " / ".join(map(str, dict.fromkeys(lengths))),
        "Against": pair.name,
        "Lp minus other": mean,
        "95 % from": low,
        "to": high,
        "n": n,
        "Verdict": pair.verdict,
    }


def course_line(group: Group) -> Line:
    """Return a line on a configuration's Z after each outer iteration, mean over seeds."""
    line: Line = {"Network": _network(group)}
    for key, head in (("sparsity", "Zeros in Z (%)"), ("capped", "Capped (%)")):
        shares = zip(*([row[key] for row in run.convergence] for run in group.runs), strict=False)
        line[head] = " / ".join(f"{100 * fmean(share):.1f}" for share in shares)
    return {**line, "n": group.n}


def _network(group: Group) -> str:
    return f"{group.first.config['model']['name']}, {group.first.data.name}"

"""Findings: what the records answer, question by question, as tables."""

from collections.abc import Sequence

from reproduce.compare import Claim, Pair, is_short
from reproduce.markup import Line, section
from reproduce.names import budget

QUESTIONS = {  # name of a method, before what tells its configurations apart -> heading
    "no ADMM": "The same selection without the ADMM",
    "L1": "The ADMM with an L1 penalty",
    "random, same widths": "Random channels at the same widths",
}
OTHER, PUBLISHED = "Every other method", "The published figures"


def answers(pairs: Sequence[Pair], claims: Sequence[Claim]) -> str:
    """Return the paper's method beside the others, then beside what was published, with headings."""
    parts: dict[str, list[Line]] = {heading: [] for heading in (*QUESTIONS.values(), OTHER, PUBLISHED)}
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
    return "\n\n".join(f"### {heading}\n\n{section(lines)}" for heading, lines in parts.items()) + "\n"


def pair_line(pair: Pair) -> Line:
    """Return a line on the paper's method and another one."""
    ours, found = pair.ours, pair.difference
    return {
        "Network": f"{ours.config['model']['name']} on {ours.data.name}",
        "Budget": budget(ours),
        "Fine-tune": f"{ours.epochs['finetune']} epochs",
        "Against": pair.name,
        "Lp minus it (points)": found.mean if found else None,
        "95 % from": found.low if found else None,
        "to": found.high if found else None,
        "n": str(found.n) if found else None,
        "Verdict": pair.verdict,
    }

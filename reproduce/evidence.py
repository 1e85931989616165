"""The records that are shown, as the tables look things up in them: each answer is worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from lpslim.experiment.records import Record
from reproduce.groups import Group, dense_networks, grouped
from reproduce.provenance import disputed


class Evidence:
    """Records and what follows from them."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self._found: dict[tuple[str, bool], list[Group]] = {}

    @cached_property
    def doubtful(self) -> frozenset[str]:
        """The fingerprints of data that other data claim to be."""
        return disputed(self.records)

    @cached_property
    def _own(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.records:
            found.setdefault(record.experiment, []).append(record)
        return found

    def groups(self, experiment: str, as_filed: bool) -> list[Group]:
        """Return the runs of an experiment, grouped: those with its own settings, or all others.

        Raises:
            UserError: there are two results of one configuration and seed.
        """
        asked = experiment, as_filed
        if asked not in self._found:
            own = self._own.get(experiment, [])
            self._found[asked] = grouped(each for each in own if as_filed is not bool(each.differs))
        return self._found[asked]

    def dense(self, experiments: set[str]) -> list[Group]:
        """Return the dense networks from which runs of these experiments, with their own settings, began."""
        return dense_networks(r for r in self.records if r.experiment in experiments and not r.differs)

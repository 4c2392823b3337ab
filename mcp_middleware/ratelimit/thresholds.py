"""Which budgets that only warn have been reached: each is told of once, by all limiters of a process that share a
storage."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final
from weakref import WeakKeyDictionary

from mcp_middleware.storage.budgets import BudgetStorage, Spending

from .budgets import Purse, Threshold

__all__ = ["Thresholds", "thresholds_for"]

_MOST: Final = 100_000


class _Sum:
    """What one agent has spent in the present period of one wallet."""

    __slots__ = ("estimated", "said", "told", "until")

    def __init__(self, until: int) -> None:
        self.until = until
        self.said = 0
        """What the store last said."""
        self.estimated = 0
        """What of it was taken for calls of this process that are under way: they may cost less."""
        self.told = 0
        """The greatest amount of a budget that was told of."""


class Thresholds:
    """What agents have reached by what is spent for certain, and of which nobody was told yet."""

    def __init__(self) -> None:
        self._sums: OrderedDict[tuple[bytes, str], _Sum] = OrderedDict()  # longest unused first

    def begin(self, spending: Spending, purse: Purse) -> list[Threshold]:
        """For a call that is under way now."""
        return self._reached(spending, purse, spending.nanos, spending.spent)

    def settle(self, spending: Spending, purse: Purse, spent: Sequence[int | None]) -> list[Threshold]:
        """For one that was settled; ``spent`` is what the store says then."""
        return self._reached(spending, purse, -spending.nanos, spent)

    def stand(self, spending: Spending, purse: Purse) -> list[Threshold]:
        """For one whose cost nobody knows, so that its estimate stands."""
        return self._reached(spending, purse, -spending.nanos, None)

    def _reached(
        self, spending: Spending, purse: Purse, estimated: int, spent: Sequence[int | None] | None
    ) -> list[Threshold]:
        if not purse.warnings:
            return []
        sums = [
            self._sum(spending.key, wallet.name, until)
            for wallet, until in zip(purse.wallets, spending.until, strict=True)
        ]
        certain: list[int | None] = []
        for one, said in zip(sums, [one.said for one in sums] if spent is None else spent, strict=True):
            one.estimated = max(0, one.estimated + estimated)
            one.said = one.said if said is None else said
            certain.append(None if said is None else said - one.estimated)
        reached = purse.reached([one.told for one in sums], certain)
        for threshold in reached:
            one = sums[threshold.wallet]
            one.told = max(one.told, threshold.nanos)
        return reached

    def _sum(self, key: bytes, name: str, until: int) -> _Sum:
        found = self._sums.get((key, name))
        if found is not None and found.until > until:
            return _Sum(until)  # of a period that is over
        if found is None or found.until < until:
            found = self._sums[key, name] = _Sum(until)
            if len(self._sums) > _MOST:
                self._sums.popitem(last=False)
        self._sums.move_to_end((key, name))
        return found


_of_storage: "WeakKeyDictionary[BudgetStorage, Thresholds]" = WeakKeyDictionary()


def thresholds_for(storage: BudgetStorage) -> Thresholds:
    """One for all limiters that keep what is spent in ``storage``, also when another configuration brings new ones."""
    return _of_storage.setdefault(storage, Thresholds())

"""What a check of callbacks found, in words."""

import textwrap
from collections.abc import Iterator
from typing import Literal, TypeAlias, get_args

import attrs

from planton._errors import InvalidArgumentError

Guarantee: TypeAlias = Literal["cap", "once", "limit", "shown", "ended", "cancellation", "crash"]
FindingOutcome: TypeAlias = Literal["kept", "broken", "not applicable"]

REMEDIES: dict[Guarantee, str] = {
    "cap": (
        "count and claim in one transaction that serialises per task (lock the task's row FOR "
        "UPDATE or BEGIN IMMEDIATE, count, claim min(limit, concurrency - count)) and give the "
        "task cap='strict'; or give it a lock=, and let schedule record what it claims; or use a "
        "storage that comes with Planton"
    ),
    "once": (
        "claim in the statement that chooses, so that nobody else can choose the same: UPDATE … "
        "WHERE id IN (SELECT … FOR UPDATE SKIP LOCKED) RETURNING id"
    ),
    "limit": "return a list of at most request.limit instructions: LIMIT by it",
    "shown": (
        "let schedule record its claims where get_active_instructions looks, in the transaction "
        "that claims"
    ),
    "ended": "leave out what has ended where active instructions are counted",
    "cancellation": (
        "commit and return without a checkpoint in between, or shield both: "
        "with trio.CancelScope(shield=True)"
    ),
    "crash": (
        "store until when a claim holds, renew it while the work lives, and let schedule take "
        "claims whose time is over; then give check_callbacks `expire`, which makes it over"
    ),
}


@attrs.frozen(kw_only=True)
class Finding:
    """What was found about one guarantee.

    Attributes:
        guarantee: `"cap"` (never more than the concurrency active, over several dispatchers),
            `"once"` (no instruction twice while it is active), `"limit"` (never more than asked
            for), `"shown"` (what was returned is then shown as active), `"ended"` (what has ended
            holds no slot), `"cancellation"` (a cancelled `schedule` loses nothing), `"crash"`
            (what a process claimed that died is handed out again).
        outcome: `"kept"`, `"broken"` or `"not applicable"`.
        evidence: What was tried, or who did what in which order when it broke.
        remedy: What to do about it; None unless it is broken.
    """

    guarantee: Guarantee
    outcome: FindingOutcome
    evidence: str
    remedy: str | None = None

    def __str__(self) -> str:
        lines = _columns(self.guarantee, self.outcome, self.evidence)
        if self.remedy is not None:
            lines += _columns("", "", f"Remedy: {self.remedy}.")
        return "\n".join(lines)


@attrs.frozen
class CallbackReport:
    """What `check_callbacks` found; `str()` of it is a table.

    Attributes:
        findings: One for each guarantee.
    """

    findings: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, guarantee: Guarantee) -> Finding:
        for finding in self.findings:
            if finding.guarantee == guarantee:
                return finding
        remedy = f"give one of {', '.join(get_args(Guarantee))}"
        raise InvalidArgumentError("guarantee", guarantee, remedy)

    def __str__(self) -> str:
        return "\n".join(map(str, self.findings))

    def raise_for(self, *guarantees: Guarantee) -> None:
        """Fail a test unless guarantees are kept.

        Args:
            guarantees: Those that must be kept; with none, no guarantee may be broken.

        Raises:
            AssertionError: If one is not; with the evidence and the remedy.
            InvalidArgumentError: If there is no such guarantee.
        """
        if guarantees:
            failed = [self[one] for one in guarantees if self[one].outcome != "kept"]
        else:
            failed = [finding for finding in self.findings if finding.outcome == "broken"]
        if failed:
            names = ", ".join(finding.guarantee for finding in failed)
            raise AssertionError("\n".join([f"not kept: {names}", *map(str, failed)]))


def _columns(guarantee: str, outcome: str, text: str) -> list[str]:
    first, *rest = textwrap.wrap(text, 70)
    return [f"{guarantee:<13} {outcome:<15} {first}", *(f"{'':29} {line}" for line in rest)]

"""What verify found: a check for each statement, and the report that holds them."""

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from minibeft.theory.agreement import within
from minibeft.verification.measure import Measurement


@dataclass(frozen=True)
class Check:
    """One statement measured in every layer (or once, on the whole model: layer −1)."""

    theorem: str
    what: str
    measurements: tuple[Measurement, ...]
    must_hold: bool = True
    note: str = ""

    @property
    def worst(self) -> Measurement:
        return max(self.measurements, key=lambda m: m.ratio)

    @property
    def measurable(self) -> bool:
        """Whether all that was measured is finite; an overflow says nothing about the statement."""
        return all(isfinite(m.value) and isfinite(m.allowed) for m in self.measurements)

    @property
    def verdict(self) -> str:
        """ "holds", "VIOLATED", or where the theory says that the statement stops: "fails, as it must"."""
        holds = all(within(m.value, m.allowed) for m in self.measurements)
        if self.must_hold:
            return "holds" if holds else "VIOLATED"
        return "not seen to fail" if holds else "fails, as it must"


@dataclass
class Report:
    """Everything that verify found. `norms` has a row per layer: ‖b_q‖, ‖b_k‖, ‖b_v‖, None where the bias is absent."""

    model: str
    family: str
    settings: dict[str, Any]
    reason: str
    norms: list[dict[str, float | None]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(check.verdict != "VIOLATED" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        checks = [asdict(check) | {"verdict": check.verdict} for check in self.checks]
        return {**asdict(self), "checks": checks, "ok": self.ok}

"""What `stage-rt bench` measured: as JSON, as a table, and beside what it measured another time."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stage_rt.errors import InputError
from stage_rt.names import BackendName, DType
from stage_rt.spec import first_fault
from stage_rt.timing import Timing

Stage = Literal["prepare", "encode", "unet", "adapter", "step", "decode", "paint", "compose", "write"]
"""Parts of a batch, in their order. ``step`` is all of the loop that is no network. Where the loop is the device's,
its parts cannot be told apart, and ``paint`` is all of it; in older results it is encoder and decoder too."""

STAGES: tuple[Stage, ...] = get_args(Stage)

LOOP: tuple[Stage, ...] = ("unet", "adapter", "step", "paint")
"""What grows with the steps."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Result):
    """Median and quartiles of seconds, and of how many."""

    median: Seconds
    low: Seconds
    high: Seconds
    rounds: int = Field(ge=1)

    @classmethod
    def of(cls, seconds: list[float]) -> Self:
        """Of at least one."""
        return cls(**Timing.of(seconds)._asdict())


class Row(_Result):
    """Batches of one size: seconds a batch, all and by stage, and GFLOP/s of the UNet where its work is known."""

    batch: int = Field(ge=1)
    whole: Spread
    stages: dict[Stage, Spread]
    unet_gflops: Seconds | None = None

    def pairs_an_hour(self, steps: int, own: int) -> float:
        """At ``own`` steps, of what was measured at ``steps``; writing is not taken to overlap painting."""
        loop = sum(self.stages[stage].median for stage in LOOP if stage in self.stages)
        return 3600 * self.batch / (self.whole.median + loop * (own / steps - 1))

    @property
    def coarse(self) -> bool:
        """Whether encoder and decoder were not told apart from the loop, and grow with its steps here."""
        return "paint" in self.stages and "decode" not in self.stages

    @property
    def outside(self) -> float | None:
        """Share of the loop that is spent outside the networks; None where that is not known."""
        if "step" not in self.stages:
            return None
        loop = [self.stages[stage].median for stage in LOOP if stage in self.stages]
        return self.stages["step"].median / sum(loop)


class Result(_Result):
    """An engine on a machine. ``steps`` were measured, ``own_steps`` are the model's. ``load_seconds`` are those
    until all networks that a prompt needs have been read or compiled, ``peak_memory`` is the host's, in bytes."""

    format: Literal[1] = 1
    machine: str
    backend: BackendName
    library_version: str
    dtype: DType
    graphs_fingerprint: str
    steps: int = Field(ge=1)
    own_steps: int = Field(ge=1)
    load_seconds: Seconds
    peak_memory: int = Field(ge=0)
    matmul_gflops: Seconds
    copy_gb_s: Seconds
    rows: list[Row] = Field(min_length=1)

    def table(self) -> str:
        """For people."""
        head = [
            f"{self.machine}: {self.matmul_gflops:.0f} GFLOP/s in float32 products, copies {self.copy_gb_s:.1f} GB/s",
            f"{self.backend} {self.library_version}, {self.dtype}; loaded in {self.load_seconds:.2f} s, at most "
            f"{self.peak_memory / 2**20:.0f} MiB; {self.steps} steps measured",
            "",
        ]
        columns = [stage for stage in STAGES if any(stage in row.stages for row in self.rows)]
        titles = ["batch", "s a batch", "quartiles", *columns, "GFLOP/s", "pairs/h", f"at {self.own_steps}"]
        lines = [titles, *(self._cells(row, columns) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = [
            "  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines
        ]
        shares = [
            f"batch {row.batch}: {row.outside:.1%} of the loop is outside the networks"
            for row in self.rows
            if row.outside is not None
        ]
        return "\n".join([*head, *body, *shares])

    def compared(self, other: "Result") -> str:
        """How many times the pairs an hour of ``other``, at each batch that both have and this model's steps."""
        # Of another dtype they are other graphs anyway.
        alike = other.dtype != self.dtype or other.graphs_fingerprint == self.graphs_fingerprint
        of = "" if alike else " of other graphs, as another model's,"
        lines = [f"beside {other.backend} {other.library_version}, {other.dtype},{of} on {other.machine}:"]
        theirs = {row.batch: row for row in other.rows}
        for row in self.rows:
            if row.batch in theirs:
                now = row.pairs_an_hour(self.steps, self.own_steps)
                ratio = now / theirs[row.batch].pairs_an_hour(other.steps, self.own_steps)
                lines.append(f"batch {row.batch}: {ratio:.2f} times the pairs an hour")
        if len(lines) == 1:
            lines.append("no batch was measured in both")
        elif any(row.coarse for row in other.rows):
            lines.append("which took its autoencoder for a part of every step then: measure it again")
        return "\n".join(lines)

    def _cells(self, row: Row, columns: list[Stage]) -> list[str]:
        shares = [
            row.stages[stage].median / row.whole.median if stage in row.stages else 0.0 for stage in columns
        ]
        return [
            str(row.batch),
            f"{row.whole.median:.3f}",
            f"{row.whole.low:.3f}-{row.whole.high:.3f}",
            *(f"{share:.1%}" for share in shares),
            "-" if row.unet_gflops is None else f"{row.unet_gflops:.1f}",
            f"{row.pairs_an_hour(self.steps, self.steps):.0f}",
            f"{row.pairs_an_hour(self.steps, self.own_steps):.1f}",
        ]


def read_result(path: Path) -> Result:
    """What ``stage-rt bench --json`` printed into a file.

    Raises:
        InputError: it cannot be read, or is none.
    """
    remedy = "write one with `stage-rt bench ENGINE --json`"
    try:
        return Result.model_validate_json(path.read_bytes())
    except OSError as fault:
        raise InputError(f"`{path}` cannot be read ({fault.strerror})", remedy) from None
    except ValidationError as fault:
        where, why = first_fault(fault)
        raise InputError(f"`{path}` is no result of a bench, at {where} ({why})", remedy) from None

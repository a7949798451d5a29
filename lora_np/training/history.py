"""The history of a training run: loss, learning rate, gradient norm and seconds of each step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class History:
    """The record of a training run, one row per step.

    The row of an update contains step, loss, lr, grad_norm, seconds and tokens. After an evaluation, the row also
    contains the column `heldout`. If there are several held-out texts, the row contains one column per text instead,
    with the name of the text. `loss` and `heldout` are in nats per token. `seconds` is the training time so far,
    without evaluation. `tokens` is the number of tokens so far, including padding.

    Parameters
    ----------
    rows : list of dict
        The rows. `train` adds one row per step.

    Examples
    --------
    >>> from lora_np.training import History
    >>> history = History([{"step": 1, "loss": 2.5, "seconds": 0.1}, {"step": 2, "loss": 2.25, "seconds": 0.2}])
    >>> history.column("loss")
    [2.5, 2.25]
    >>> print(history)
    2 steps in 0.2 s, loss 2.5000 → 2.2500 nats per token
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def column(self, name: str) -> list[float]:
        """Return the values of one column. Rows without this column are left out.

        Parameters
        ----------
        name : str
            The name of the column.

        Returns
        -------
        list of float
            The values, in the order of the steps.
        """
        return [row[name] for row in self.rows if name in row]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"History({self})"

    def __str__(self) -> str:
        if not self.column("loss"):
            return "no step taken"
        last, loss, heldout = self.rows[-1], self.column("loss"), self.column("heldout")
        text = f"{last['step']} steps in {last['seconds']:.1f} s, loss {loss[0]:.4f} → {loss[-1]:.4f}"
        return text + (f", held-out {heldout[0]:.4f} → {heldout[-1]:.4f}" if heldout else "") + " nats per token"

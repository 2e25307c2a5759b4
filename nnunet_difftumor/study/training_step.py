"""What the two kinds of training in a study have in common: one command, that continues what was interrupted."""

from __future__ import annotations

import shlex
from pathlib import Path

from nnunet_difftumor.support.processes.steps import RunCommand, Step, next_log, run_or_raise


class TrainingStep(Step):
    """A training that is one command.

    Attributes:
        trained_by: What runs, for messages.
        environment: Variables of the command, on top of those of this process.
    """

    trained_by: str
    environment: dict[str, str]

    def command(self) -> list[str]:
        """Words of the command that starts the training, or continues it if it was interrupted."""
        raise NotImplementedError

    def check_result(self) -> None:
        """Raise RunError if the command ended well, but did not do what it was to."""
        raise NotImplementedError

    def as_typed(self) -> str:
        """The command with its variables, for a shell."""
        variables = [f"{key}={shlex.quote(value)}" for key, value in self.environment.items()]
        program, *words = self.command()
        return " ".join([*variables, shlex.join([Path(program).name, *words])])

    def execute(self, run_command: RunCommand) -> None:
        """Train."""
        log, who = next_log(self.work_folder), f"{self.name}: {self.trained_by}"
        run_or_raise(self.command(), self.environment, log, run_command, typed=self.as_typed(), who=who)
        self.check_result()

"""A program that is run after each change of a member's role, to move an address, for instance."""

from __future__ import annotations

import logging
import os
import subprocess  # noqa: TID251  the operator's program

from ..engine.env import Env
from ..engine.env.pool import Pool

logger = logging.getLogger("holdfast.cluster")

PATIENCE_S = 60.0
"""How long the program may take."""


class RoleProgram:
    """Called with the role and the epoch. Returns at once: the program runs in a thread of its own, and a later change
    waits for it, so they come in order. What it prints and how it fails is logged."""

    def __init__(self, program: str, cluster: str, member: str, env: Env) -> None:
        """`program`: a path, or a name on PATH; it is run without a shell, as `program ROLE EPOCH`. Its environment has
        HOLDFAST_CLUSTER and HOLDFAST_MEMBER."""
        self._program = program
        self._environment = {**os.environ, "HOLDFAST_CLUSTER": cluster, "HOLDFAST_MEMBER": member}
        self._pool = Pool("holdfast-role-program", 1, env.scheduler)

    def __call__(self, role: str, epoch: int) -> None:
        self._pool.submit(lambda: self._run(role, epoch))

    def _run(self, role: str, epoch: int) -> None:
        try:
            done = subprocess.run([self._program, role, str(epoch)], env=self._environment, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            logger.error("%s %s %d could not be run: %s", self._program, role, epoch, error)
            return
        level = logging.ERROR if done.returncode else logging.INFO
        logger.log(level, "%s %s %d ended with %d%s", self._program, role, epoch, done.returncode,
                   f": {done.stdout.decode(errors='replace').strip()[:2000]}" if done.stdout else "")

    def close(self) -> None:
        """Wait until the program has been run for all changes."""
        self._pool.submit(lambda: None).result()
        self._pool.close()

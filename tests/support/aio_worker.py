"""A process that commits from many tasks, and prints each number once it is acknowledged, until it is killed:
`python aio_worker.py DIRECTORY KIND`."""

from __future__ import annotations

import asyncio
import sys
from itertools import count
from pathlib import Path

from store_kinds import KINDS

from holdfast.engine import aio


async def main(directory: Path, kind: str) -> None:
    numbers = count()

    async def write(store: aio.AsyncStore) -> None:  # type: ignore[type-arg]
        while True:
            n = next(numbers)
            async with store.transaction() as tx:
                KINDS[kind].write(tx, n)
            print(n, flush=True)

    async with aio.open(directory, KINDS[kind].engine) as store, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(write(store))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

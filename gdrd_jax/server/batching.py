"""Faces of requests that arrive at nearly the same time go through the network together."""

import asyncio
import collections
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

LARGEST = 64  # faces after which no more are added to a batch
WAIT = 0.002  # seconds in which faces are added to a batch


class Batcher:
    """Embeds faces in batches; `async with` starts and stops its work.

    Args:
      forward: uint8 `[N, R, R, C]` -> float32 `[N, D]`, for any N; runs in a thread of its own.
      seen: is called with the number of faces of each batch.
    """

    def __init__(self, forward: Callable[[np.ndarray], np.ndarray], seen: Callable[[int], None] = lambda _: None):
        self._forward, self._seen = forward, seen
        self._waiting: collections.deque[tuple[np.ndarray, asyncio.Future]] = collections.deque()

    async def __aenter__(self) -> "Batcher":
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "network")
        self._worker = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._worker.cancel()
        self._thread.shutdown()

    async def embed(self, faces: np.ndarray) -> np.ndarray:
        """uint8 `[n, R, R, C]`, n at least 1 -> float32 `[n, D]`."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((faces, future))
        self._arrived.set()
        return await future

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            await asyncio.sleep(WAIT)
            while batch := self._batch():
                await self._run(batch)
            self._arrived.clear()

    def _batch(self) -> list[tuple[np.ndarray, asyncio.Future]]:
        batch: list[tuple[np.ndarray, asyncio.Future]] = []
        while self._waiting and sum(len(faces) for faces, _ in batch) < LARGEST:
            faces, future = self._waiting.popleft()
            if not future.done():  # its client has gone
                batch.append((faces, future))
        return batch

    async def _run(self, batch: list[tuple[np.ndarray, asyncio.Future]]) -> None:
        faces = np.concatenate([faces for faces, _ in batch])
        self._seen(len(faces))
        try:
            embeddings = await asyncio.get_running_loop().run_in_executor(self._thread, self._forward, faces)
        except Exception as error:
            answers: list[object] = [error] * len(batch)
        else:
            answers = np.split(embeddings, np.cumsum([len(faces) for faces, _ in batch])[:-1])
        for (_, future), answer in zip(batch, answers):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

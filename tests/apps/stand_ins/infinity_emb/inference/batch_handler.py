"""Items into batches, and three threads that work for each model."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Queue
from typing import Any

from infinity_emb.inference.queue import CustomFIFOQueue, ResultKVStoreFuture

QUEUE_TIMEOUT = 0.5


@dataclass
class Inner:
    content: str
    future: asyncio.Future[Any]

    async def complete(self, result: Any) -> None:
        if not self.future.done():
            self.future.set_result(result)


@dataclass
class PrioritizedQueueItem:
    priority: int
    item: Inner


class BatchHandler:
    def __init__(self, model_replicas: list[Any], max_batch_size: int) -> None:
        self._shutdown = threading.Event()
        self._threadpool = ThreadPoolExecutor()
        self._queue_prio = CustomFIFOQueue()
        self._publish_to_model_queue: Queue[Any] = Queue(8)
        self._result_queue: Queue[Any] = Queue(8)
        self.max_batch_size = max_batch_size
        self._result_store = ResultKVStoreFuture()
        queues = self._publish_to_model_queue, self._result_queue
        self.model_worker = [ModelWorker(self._shutdown, one, self._threadpool, *queues) for one in model_replicas]

    async def embed(self, sentences: list[str]) -> list[Any]:
        return await self._schedule(sentences)

    async def _schedule(self, list_queueitem: list[str]) -> list[Any]:
        made = [
            PrioritizedQueueItem(len(content), Inner(content, self.loop.create_future())) for content in list_queueitem
        ]
        self._queue_prio.extend(made)
        return await asyncio.gather(*[self._result_store.wait_for_response(one.item) for one in made])

    def _publish_towards_model(self) -> None:
        while not self._shutdown.is_set():
            if not self._publish_to_model_queue.empty():
                time.sleep(0.005)
                continue
            for batch in self._queue_prio.pop_optimal_batches(self.max_batch_size):
                _put(self._publish_to_model_queue, batch, self._shutdown)

    async def _subscribe_to_model(self) -> None:
        while not self._shutdown.is_set():
            try:
                results, batch = await asyncio.to_thread(self._result_queue.get, timeout=QUEUE_TIMEOUT)
            except queue.Empty:
                continue
            for result, item in zip(results, batch, strict=True):
                await item.complete(result)

    async def spawn(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._threadpool.submit(self._publish_towards_model)
        self._push_task = asyncio.create_task(self._subscribe_to_model())
        for worker in self.model_worker:
            worker.spawn()

    async def shutdown(self) -> None:
        self._shutdown.set()
        await asyncio.to_thread(self._threadpool.shutdown)
        self._push_task.cancel()


class ModelWorker:
    def __init__(
        self,
        shutdown: threading.Event,
        model: Any,
        threadpool: ThreadPoolExecutor,
        input_q: Queue[Any],
        output_q: Queue[Any],
    ) -> None:
        self._shutdown = shutdown
        self._model = model
        self._threadpool = threadpool
        self._feature_queue: Queue[Any] = Queue(3)
        self._postprocess_queue: Queue[Any] = Queue(5)
        self._input_q = input_q
        self._output_q = output_q

    def spawn(self) -> None:
        for loop in (self._preprocess_batch, self._core_batch, self._postprocess_batch):
            self._threadpool.submit(loop)

    def _preprocess_batch(self) -> None:
        def step(batch: Any) -> Any:
            return self._model.encode_pre([item.content for item in batch]), batch

        self._repeat(self._input_q, step, self._feature_queue)

    def _core_batch(self) -> None:
        self._repeat(
            self._feature_queue, lambda got: (self._model.encode_core(got[0]), got[1]), self._postprocess_queue
        )

    def _postprocess_batch(self) -> None:
        self._repeat(self._postprocess_queue, lambda got: (self._model.encode_post(got[0]), got[1]), self._output_q)

    def _repeat(self, source: Any, step: Callable[[Any], Any], target: Any) -> None:
        while not self._shutdown.is_set():
            try:
                got = source.get(timeout=QUEUE_TIMEOUT)
            except queue.Empty:
                continue
            _put(target, step(got), self._shutdown)


def _put(target: Any, thing: Any, shutdown: threading.Event) -> None:
    while not shutdown.is_set():
        try:
            target.put(thing, timeout=QUEUE_TIMEOUT)
            break
        except queue.Full:
            continue

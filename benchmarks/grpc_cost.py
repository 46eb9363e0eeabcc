"""Measure the CPU that recording adds to each RPC, for a server on threads and an asyncio one.

The real server runs on one core; the client, on another, sends one RPC after the other over one channel. The figure is
the CPU time of the server process with all its threads, exports included, read from its own clock. The model is a
custom estimator that computes next to nothing, since the differences are small. Each round runs every set-up in a fresh
process, all side by side, each for some RPCs in turn, so other work of the machine affects all alike.
*stock* is `opentelemetry-instrument` with opentelemetry-instrumentation-grpc, traces only.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.load import cpu_seconds
from benchmarks.measure import (
    EXPORT_DELAY_MS,
    INSTRUMENT,
    OTHER_CORE,
    READY_WITHIN_S,
    SERVER_CORE,
    SETTLE_S,
    STOP_WITHIN_S,
    UNTRACED,
    Receiver,
    Spread,
    Table,
    Variant,
    clean_environment,
    differences,
    only,
    parser,
    progress,
    ratios,
    rotated,
    run_receiver,
    show,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

METHOD = "/bench.Scorer/Predict"
WARM_UP = 500
BLOCK = 250
FEATURES = (0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8)
KINDS = ("threads", "asyncio")
STOCK = Variant("stock", INSTRUMENT, only("grpc_server", "grpc_aio_server"))
RECORDING = {"STAGETRACE": "1", "STAGETRACE_SLA": "bench.Scorer/Predict within 50ms for 99.9%; * within 1s"}
VARIANTS = (UNTRACED, STOCK, Variant("stagetrace", (), RECORDING))


@dataclass(frozen=True)
class RpcCost:
    """By kind of server and variant, one figure a round: CPU microseconds per RPC, spans received per RPC."""

    rpcs: int
    cpu_us: dict[str, dict[str, list[float]]]
    spans: dict[str, dict[str, list[float]]]


def measure(rounds: int, rpcs: int, kinds: tuple[str, ...] = KINDS) -> RpcCost:
    """Run all variants of both servers `rounds` times."""
    empty: dict[str, dict[str, list[float]]] = {kind: {one.name: [] for one in VARIANTS} for kind in kinds}
    result = RpcCost(rpcs, empty, {kind: {name: [] for name in names} for kind, names in empty.items()})
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {OTHER_CORE})
    try:
        for number in range(rounds):
            for kind in kinds:
                for name, (cpu_us, spans) in _round(kind, number, rpcs).items():
                    result.cpu_us[kind][name].append(cpu_us)
                    result.spans[kind][name].append(spans)
                    progress(f"round {number + 1}/{rounds}  {kind:8} {name:12} {cpu_us:6.1f} us an RPC")
    finally:
        os.sched_setaffinity(0, cores)  # others measure after this
    return result


def _round(kind: str, number: int, rpcs: int) -> dict[str, tuple[float, float]]:
    """Return CPU microseconds and spans received per RPC, by variant."""
    request = message(FEATURES)
    with ExitStack() as stack:
        running = [_Running(stack, kind, variant) for variant in rotated(VARIANTS, number)]
        for one in running:
            one.ask(request, WARM_UP)
        time.sleep(SETTLE_S)
        before = [cpu_seconds(one.pid) for one in running]
        for block in range(rpcs // BLOCK):
            for one in rotated(running, block):
                one.ask(request, BLOCK)
        time.sleep(SETTLE_S)
        after = [cpu_seconds(one.pid) for one in running]
        asked = rpcs // BLOCK * BLOCK
        return {
            one.name: ((end - start) / asked * 1e6, one.receiver.take() / (asked + WARM_UP))
            for one, start, end in zip(running, before, after, strict=True)
        }


class _Running:
    """A server, its receiver, and a channel to it, until the stack is closed."""

    def __init__(self, stack: ExitStack, kind: str, variant: Variant) -> None:
        import grpc

        self.name = variant.name
        self.receiver = stack.enter_context(run_receiver())
        target, self.pid = stack.enter_context(serving(kind, variant, self.receiver))
        channel = stack.enter_context(grpc.insecure_channel(target))
        grpc.channel_ready_future(channel).result(READY_WITHIN_S)
        self._predict = channel.unary_unary(METHOD, None, None)

    def ask(self, request: bytes, times: int) -> None:
        """Send RPCs, one after the other."""
        for _ in range(times):
            self._predict(request)


@contextmanager
def serving(kind: str, variant: Variant, receiver: Receiver) -> Iterator[tuple[str, int]]:
    """Run a server until the block ends; yield its address and its process."""
    environment = {
        **clean_environment(),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_SERVICE_NAME": "bench",
        "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_DELAY_MS),
        **variant.env,
    }
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        target = f"unix:{folder}/socket"
        argv = [*variant.wrapper, sys.executable, str(Path(__file__).resolve()), "--serve", kind, target]
        process = start(argv, SERVER_CORE, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + READY_WITHIN_S
            while not (Path(folder) / "socket").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(
                        f"{kind}, {variant.name}: no server:\n{(Path(folder) / 'log').read_text()[-4000:]}"
                    )
                time.sleep(0.01)
            yield target, process.pid
        finally:
            process.terminate()
            process.wait(STOP_WITHIN_S)


def tables(result: RpcCost) -> list[Table]:
    """Return one table for each kind of server."""
    made = []
    for kind, cpu_us in result.cpu_us.items():
        base = cpu_us[UNTRACED.name]
        added = {name: differences(values, base) for name, values in cpu_us.items()}
        rows = []
        for name, values in cpu_us.items():
            row = [name, Spread.of(values).text(1), "", ""]
            if name != UNTRACED.name:
                row[2:] = Spread.of(added[name]).text(1), Spread.of(ratios(added[name], added[STOCK.name])).text(2)
            rows.append([*row, f"{Spread.of(result.spans[kind][name]).median:.2f}"])
        rounds = f"{len(base)} rounds of {result.rpcs} RPCs; median (least to greatest)"
        columns = ("set-up", "CPU us/RPC", "added, us", "added / stock's added", "spans received/RPC")
        made.append(Table(f"CPU per RPC, server of {kind}: {rounds}", columns, rows))
    return made


def reading(result: RpcCost) -> list[str]:
    """Return what the figures mean, one line for each kind of server."""
    lines = []
    for kind, cpu_us in result.cpu_us.items():
        base = cpu_us[UNTRACED.name]
        ours, stocks = (differences(cpu_us[name], base) for name in ("stagetrace", STOCK.name))
        our_spans, stock_spans = (Spread.of(result.spans[kind][name]).median for name in ("stagetrace", STOCK.name))
        times = Spread.of(ratios(ours, stocks)).text(2)
        lines.append(
            f"{kind}: stagetrace adds {Spread.of(ours).median:.0f} us to an RPC, {times} times what stock tracing adds "
            f"({Spread.of(stocks).median:.0f} us); it sends {our_spans:.1f} spans of it, stock {stock_spans:.1f}."
        )
    return lines


# --- the measured service


def message(values: tuple[float, ...]) -> bytes:
    """Return a request."""
    from google.protobuf.struct_pb2 import ListValue

    made = ListValue()
    made.extend(values)
    return made.SerializeToString()


def serve(kind: str, target: str) -> None:
    """Serve the model, as its author would write it, without tracing."""
    import grpc
    import grpc.aio
    from google.protobuf.struct_pb2 import ListValue

    from benchmarks.busy import Busy

    model = Busy()

    def predict(request: Any, _context: Any) -> Any:
        answer = ListValue()
        answer.append(model.predict([list(request)])[0])
        return answer

    async def predict_in_task(request: Any, context: Any) -> Any:
        return predict(request, context)

    def handlers(behaviour: Any) -> list[Any]:
        handler = grpc.unary_unary_rpc_method_handler(behaviour, ListValue.FromString, ListValue.SerializeToString)
        return [grpc.method_handlers_generic_handler("bench.Scorer", {"Predict": handler})]

    async def serve_in_tasks() -> None:
        server = grpc.aio.server(handlers=handlers(predict_in_task))
        server.add_insecure_port(target)
        await server.start()
        await server.wait_for_termination()

    if kind == "asyncio":
        asyncio.run(serve_in_tasks())
    else:
        server = grpc.server(ThreadPoolExecutor(4), handlers(predict))
        server.add_insecure_port(target)
        server.start()
        server.wait_for_termination()


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/grpc_cost.py --rounds 7 --json cost.json")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--rpcs", type=int, default=3000, help="measured in each round and set-up")
    arguments.add_argument("--kind", choices=KINDS, help="of server; both if it is not given")
    arguments.add_argument("--serve", nargs=2, metavar=("KIND", "TARGET"), help="be the server that is measured")
    args = arguments.parse_args()
    if args.serve:
        serve(*args.serve)
        return
    kinds = (args.kind,) if args.kind else KINDS
    show(measure(args.rounds, args.rpcs, kinds), tables, reading, args.json)


if __name__ == "__main__":
    main()

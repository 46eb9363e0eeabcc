"""Modules of torch: `GET /case/NAME` runs one call, with gradients unless it says otherwise."""

import copy
import inspect
import io
import pickle
import time
from collections.abc import Callable
from typing import Any

import torch
from cases import serve
from torch import nn

import stagetrace

torch.manual_seed(0)
torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(8, 2))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.rest(self.first(rows))


class Dropped(Net):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(super().forward(rows), training=self.training)


class OwnCall(Net):
    def __call__(self, rows: torch.Tensor) -> Any:
        return super().__call__(rows) + 1


class Recursive(Net):
    def forward(self, rows: torch.Tensor, depth: int = 3) -> torch.Tensor:
        return self(rows, depth=depth - 1) + 1 if depth else super().forward(rows)


class Frozen(nn.Module):
    """Trains a head on a model that it does not train."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Net().eval().requires_grad_(requires_grad=False)
        self.head = nn.Linear(2, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.model(rows))


class Slow(Net):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return super().forward(rows)


def loaded(save: Callable[..., Any], load: Callable[..., Any], model: Any) -> Any:
    content = io.BytesIO()
    save(model, content)
    content.seek(0)
    return load(content)


def trained(model: nn.Module) -> Any:
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(rows).sum().backward()
    optimizer.step()
    return [parameter.detach().numpy().sum() for parameter in model.parameters()]


def in_place() -> Any:
    model = copy.deepcopy(net)
    model.compile(fullgraph=True, backend="aot_eager")
    return model


def with_hooks(model: Any) -> Any:
    seen: list[str] = []
    model.register_forward_pre_hook(lambda *_: seen.append("before"))
    model.register_forward_hook(lambda *_: seen.append("after"))
    model.first.register_forward_hook(lambda *_: seen.append("first"))
    return lambda: [seen.clear(), model(rows), list(seen)][2]


def breaks(model: Any) -> list[int]:
    torch._dynamo.reset()
    found = torch._dynamo.explain(model)(rows)
    return [found.graph_count, found.graph_break_count]


rows = torch.arange(12.0).reshape(3, 4) / 10
net = Net().eval()
dropped = Dropped().train()
exported = torch.export.export(net, (rows,)).module()
script = torch.jit.script(net)
scored = torch.compile(lambda data: net(data) * 1, fullgraph=True, backend="aot_eager")
scored = stagetrace.instrument(scored, model="scored", framework="torch")
called = torch.compile(OwnCall().eval(), fullgraph=True, backend="aot_eager")
with torch.no_grad():
    found = [*breaks(Net().eval()), *breaks(OwnCall().eval())]

CASES: dict[str, Callable[[], Any]] = {
    "module": torch.inference_mode()(lambda: net(rows)),
    "gradients": lambda: net(rows).detach(),
    "slow": lambda model=Slow().eval(): model(rows).detach(),
    "dropout": torch.no_grad()(lambda: [torch.manual_seed(1), dropped(rows)][1]),
    "around": lambda model=nn.Sequential(net, nn.Softmax(1)): model(rows).detach(),
    "parallel": lambda model=nn.DataParallel(net): model(rows).detach(),
    "exported": lambda: exported(rows).detach(),
    "script-loaded": lambda model=loaded(torch.jit.save, torch.jit.load, script): model(rows).detach(),
    "script-frozen": lambda model=torch.jit.freeze(script): model(rows).detach(),
    "compiled-in-place": lambda model=in_place(): model(rows).detach(),
    "compiled-own-call": lambda: called(rows).detach(),
    "instrumented-function": lambda: scored(rows).detach(),
    "own-call": lambda model=OwnCall().eval(): model(rows).detach(),
    "recursive": lambda model=Recursive().eval(): model(rows).detach(),
    "hooks": with_hooks(copy.deepcopy(net)),
    "copied": lambda: copy.deepcopy(net)(rows).detach(),
    "pickled": lambda: pickle.loads(pickle.dumps(net))(rows).detach(),  # noqa: S301
    "saved": lambda: loaded(torch.save, lambda one: torch.load(one, weights_only=False), net)(rows).detach(),
    "training": lambda: trained(net),
    "training-on-frozen": lambda: trained(Frozen()),
    "signature": lambda: [str(inspect.signature(one)) for one in (nn.Module.__call__, net)],
    "breaks": lambda: found,
}
app = serve(CASES)

"""PyTorch, eager, as its own example word_language_model writes it.

nn.Embedding, nn.LSTM (or GRU, RNN), nn.Linear, cross-entropy, clip_grad_norm_, SGD; the state is
carried on, detached. On a CPU that is oneDNN's LSTM, on a GPU cuDNN's. Two biases a layer.

Precision: float32; tf32 (products and cuDNN's layers); bfloat16 by autocast.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.speed.contestants.program import Arrays
from experiments.speed.work import Work, draw_batch, draw_layer_batch

KINDS: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN, "irnn": nn.RNN}


class Model(nn.Module):
    """examples/word_language_model's RNNModel without dropout."""

    def __init__(self, work: Work):
        super().__init__()
        size = work.size
        self.encoder = nn.Embedding(size.vocabulary, size.hidden)
        self.rnn = make_rnn(work)
        self.decoder = nn.Linear(size.hidden, size.vocabulary)

    def forward(self, tokens: Any, state: Any) -> tuple[Any, Any]:
        h, state = self.rnn(self.encoder(tokens), state)
        return self.decoder(h).view(-1, self.decoder.out_features), state


def make_rnn(work: Work) -> Any:
    extra = {"irnn": {"nonlinearity": "relu"}, "rnn": {"nonlinearity": "tanh"}}
    size = work.size
    return KINDS[work.cell](size.hidden, size.hidden, size.layers, **extra.get(work.cell, {}))


def choose_device(precision: str) -> Any:
    """The GPU where torch sees one; the precision is set on the way."""
    gpu = torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return torch.device("cuda" if gpu else "cpu")


def precision_context(work: Work, device: Any) -> Any:
    if work.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


class TorchProgram:
    """A function that returns its loss, what it keeps between steps, and how to read that."""

    steps = 1

    def __init__(
        self,
        step: Callable[[], Any],
        kept: Callable[[], list[Any]],
        arrays: Callable[[], Arrays],
        device: Any,
    ):
        self._step, self._kept, self._arrays, self._device = step, kept, arrays, device
        self._loss: Any = None

    def run(self) -> None:
        self._loss = self._step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def loss(self) -> float:
        return float(self._loss)

    def arrays(self) -> Arrays:
        return self._arrays()

    def peak_bytes(self) -> int:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.run()
            return int(torch.cuda.max_memory_allocated())
        before = sum(tensor.nbytes for tensor in self._kept())
        only_cpu = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=only_cpu, profile_memory=True) as profiler:
            self.run()
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
        return int(before + max(np.cumsum(changes), default=0))


def with_gradients(parameters: Any) -> list[Any]:
    """Parameters and the gradients that stay beside them until the next step."""
    parameters = list(parameters)
    return [*parameters, *(p.grad for p in parameters if p.grad is not None)]


def make_step(work: Work, weights: Arrays) -> TorchProgram:
    """A training step."""
    device = choose_device(work.precision)
    model = Model(work)
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    model.to(device)
    inputs, targets = (torch.from_numpy(a).long().to(device) for a in draw_batch(work))
    targets = targets.reshape(-1)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    state: Any = None

    def step() -> Any:
        nonlocal state
        optimizer.zero_grad()
        with precision_context(work, device):
            logits, last = model(inputs, state)
            loss = criterion(logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), work.clip)
        optimizer.step()
        state = tuple(s.detach() for s in last) if isinstance(last, tuple) else last.detach()
        return loss.detach()

    def kept() -> list[Any]:
        states = state if isinstance(state, tuple) else (state,)
        return [*with_gradients(model.parameters()), inputs, targets, *states]

    return TorchProgram(step, kept, lambda: to_numpy(model.state_dict()), device)


def make_layer(work: Work, weights: Arrays) -> TorchProgram:
    """nn.LSTM, nn.GRU or nn.RNN alone, forward and backward."""
    device = choose_device(work.precision)
    rnn = make_rnn(work)
    named = {name.removeprefix("rnn."): torch.from_numpy(a) for name, a in weights.items()}
    rnn.load_state_dict({name: named[name] for name in rnn.state_dict()})
    rnn.to(device)
    x, d_h = (torch.from_numpy(a).to(device) for a in draw_layer_batch(work))
    x.requires_grad_()

    def step() -> Any:
        rnn.zero_grad()
        x.grad = None
        with precision_context(work, device):
            h, _ = rnn(x)
        product = (h * d_h).sum()
        product.backward()
        return product.detach()

    def arrays() -> Arrays:
        gradients = {f"rnn.{name}": p.grad for name, p in rnn.named_parameters()}
        return to_numpy({**gradients, "x": x.grad})

    def kept() -> list[Any]:
        return [*with_gradients(rnn.parameters()), x, x.grad, d_h]

    return TorchProgram(step, kept, arrays, device)


def to_numpy(tensors: Any) -> Arrays:
    """Copies: what is read must not change under the next step."""
    return {name: t.detach().cpu().numpy().copy() for name, t in tensors.items()}


def measure_peak(sizes: dict[bool, int], repeats: int, precision: str) -> float:
    """The best of several products of two square matrices, in FLOP/s.

    Args:
      sizes: their rows, without and with a GPU.
    """
    device = choose_device(precision)
    size = sizes[device.type == "cuda"]
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.rand(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best

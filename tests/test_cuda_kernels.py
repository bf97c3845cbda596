"""The faster CUDA versions equal the plain ones of model.py. They run here on a CPU, with the parts of torch.cuda that
capture and replay a graph replaced by ones that record operations and repeat them."""

import contextlib
import copy
import functools
import types

import pytest
import torch
import torch.nn.functional as F
from test_model import generated, small_gpt
from torch.utils._python_dispatch import TorchDispatchMode

import cuda_kernels
import model as model_module


class Recording(TorchDispatchMode):
    """Like a CUDA graph: replay() repeats the recorded operations on the same memory, without running any Python."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.n_replays = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.calls.append((function, args, kwargs, result))
        return result

    def pool(self):
        return 'pool'

    def replay(self):
        self.n_replays += 1
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            if isinstance(result, torch.Tensor):
                result.copy_(again)
            else:
                for tensor, value in zip(result, again):
                    tensor.copy_(value)


@pytest.fixture
def graphs(monkeypatch):
    """Every GPT generates with DecodeGraphs -> the list of the graphs that are captured."""
    captured = []

    def new_cache(self, n_slots, length):
        cache = model_module.KVCache(self, n_slots, length)
        cache.step = cuda_kernels.DecodeGraphs(cache.decode_step, n_slots, length, 'cpu')
        return cache

    def new_graph():
        captured.append(Recording())
        return captured[-1]
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(model_module, 'cpu_kernels', None)
    monkeypatch.setattr(model_module.GPT, 'new_cache', new_cache)
    monkeypatch.setattr(cuda_kernels, 'graphs_work', True)
    monkeypatch.setattr(cuda_kernels, 'CONTEXT_BLOCK', 16)
    monkeypatch.setattr(torch.cuda, 'device', contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, 'stream', contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, 'Stream', lambda: stream)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: stream)
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', new_graph)
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph, pool, capture_error_mode: graph)
    return captured


PROMPTS = [[4 + i % 7] * (1 + i % 5) for i in range(30)]


@pytest.mark.parametrize('args', [{'n_kv_head': 2, 'qk_norm': True}, {'norm': 'layernorm', 'position': 'learned'}])
@pytest.mark.parametrize('batch_size', [1, 5, 0])
def test_graphs_generate_the_same(args, batch_size, graphs):
    """Also past block_size, with slots that are refilled and batches that shrink."""
    model = small_gpt(vocab_size=20, block_size=40, **args).double()
    settings = {'n': 60, 'seeds': range(30), 'eos': 3, 'batch_size': batch_size, 'repetition_penalty': 1.1}
    with_graphs = generated(model, PROMPTS, **settings)
    n_steps = sum(graph.n_replays for graph in graphs)
    assert 3 <= len(graphs) < n_steps / 3
    model.new_cache = functools.partial(model_module.KVCache, model)
    assert with_graphs == generated(model, PROMPTS, **settings)
    assert n_steps == sum(graph.n_replays for graph in graphs)


def test_generation_goes_on_where_graphs_do_not_work(graphs, monkeypatch, capsys):
    def fails():
        raise RuntimeError('operation not permitted when stream is capturing\nmore')
    model = small_gpt(vocab_size=20, block_size=40).double()
    expected = generated(model, PROMPTS, n=60)
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', fails)
    assert generated(model, PROMPTS, n=60) == expected
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith('operation not permitted when stream is capturing')
    assert not cuda_kernels.graphs_work


def test_muon_by_shape_equals_torch():
    """Also after a step with NaN, which changes nothing, and after its state was saved and loaded."""
    shapes = [(64, 32), (32, 64), (64, 32), (32, 32), (32, 32), (48, 16)]
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in shapes]
    settings = {'lr': 1e-2, 'weight_decay': 0.1, 'momentum': 0.9, 'ns_steps': 3, 'adjust_lr_fn': 'match_rms_adamw'}
    plain_params = [torch.nn.Parameter(weight.clone()) for weight in weights]
    plain = torch.optim.Muon(plain_params, **settings)
    params = [torch.nn.Parameter(weight.clone()) for weight in weights]
    fast = cuda_kernels.Muon(params, **settings)
    for step in range(5):
        is_bad = step == 2
        for p, plain_p in zip(params[:5], plain_params):  # the last one never has a gradient
            plain_p.grad = torch.randn_like(p)
            p.grad = plain_p.grad * (float('nan') if is_bad else 1)
        fast.found_inf = torch.tensor(float(is_bad))
        fast.step()
        if not is_bad:
            plain.step()
        if step == 3:
            state = copy.deepcopy(plain.state_dict())
            assert state['state'].keys() == fast.state_dict()['state'].keys()
            fast = cuda_kernels.Muon(params, **settings)
            fast.load_state_dict(state)
    assert all(map(torch.equal, params, plain_params))
    assert not torch.equal(params[0], weights[0])


def test_repeated_kv_heads_are_grouped_queries():
    q, k, v = torch.randn(2, 6, 9, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 8)
    grouped = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    k, v = cuda_kernels.repeat_kv_heads(q, k, v)
    assert torch.allclose(F.scaled_dot_product_attention(q, k, v, is_causal=True), grouped, atol=1e-6)


on_a_card = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


@on_a_card
@pytest.mark.parametrize('settings', [
    {}, {'repetition_penalty': 1.3, 'no_repeat_ngram': 3, 'bad_words': [[7], [5, 6]]}])
def test_a_card_generates_what_a_cpu_does(settings):
    model = small_gpt(vocab_size=20, block_size=40, n_kv_head=2).double()
    settings = settings | {'n': 60, 'seeds': range(30), 'eos': 3, 'batch_size': 7}
    assert generated(model, PROMPTS, **settings) == generated(model.cuda(), PROMPTS, **settings)


@on_a_card
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
@pytest.mark.parametrize('args', [{'n_kv_head': 2}, {'mlp': 'relu2', 'tie_weights': False}])
def test_a_card_trains_as_a_cpu_does(optimizer, args):
    """100 tokens are no multiple of 64: the padding of the vocabulary changes nothing."""
    ids = torch.randint(100, (4, 33), generator=torch.Generator().manual_seed(0))
    losses = []
    for device in ('cpu', 'cuda'):
        model = small_gpt(**args).to(device).train()
        optimizers = model.configure_optimizers(optimizer, 1e-2, 0, 0.1, (0.9, 0.95), 0.95, 5)
        for _ in range(5):
            loss = model(ids[:, :-1].to(device), ids[:, 1:].to(device))
            model.zero_grad()
            loss.backward()
            for one in optimizers:
                one.step()
            losses.append(loss.item())
    assert losses[5:] == pytest.approx(losses[:5], abs=1e-2)
    assert losses[4] < losses[0] - 0.3

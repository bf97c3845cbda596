"""The faster CPU versions equal the plain ones of model.py."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_model import PROMPTS, generated, small_gpt

import cpu_kernels
import model as model_module


def test_rms_norm_and_its_gradients():
    torch.manual_seed(0)
    x = torch.randn(5, 7, 16, requires_grad=True)
    weight = torch.randn(16, requires_grad=True)
    fast = cpu_kernels.rms_norm(x, weight, 1e-5)
    plain = F.rms_norm(x, (16,), weight, 1e-5)
    assert torch.allclose(fast, plain, atol=1e-6)
    grad = torch.randn_like(x)
    for a, b in zip(torch.autograd.grad(fast, (x, weight), grad), torch.autograd.grad(plain, (x, weight), grad)):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('length', [2, 7, 256])
def test_attention_in_bfloat16(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, length, 16)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    assert cpu_kernels.has_faster_attention(q, k, dropout=0.0)
    assert torch.allclose(cpu_kernels.causal_attention(q, k, v).float(), exact, atol=0.03)


@pytest.mark.parametrize('args', [{}, {'n_kv_head': 2, 'qk_norm': True}, {'norm': 'layernorm', 'position': 'learned'}])
def test_training_and_generation_equal_those_without_this_file(args, monkeypatch):
    model = small_gpt(block_size=80, **args)
    prompts = [[1 + i] * (1 + i % 40) for i in range(12)]  # PagedKV is used from 8 sequences on
    ids = torch.randint(100, (4, 33))

    def results():
        model.float().zero_grad()
        loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        gradient = model.wte.weight.grad.clone()
        return loss, gradient, generated(model.double(), prompts, n=60, eos=3)
    loss, gradient, sequences = results()
    monkeypatch.setattr(model_module, 'cpu_kernels', None)
    plain_loss, plain_gradient, plain_sequences = results()
    assert torch.allclose(loss, plain_loss, atol=1e-6)
    assert torch.allclose(gradient, plain_gradient, atol=1e-6)
    assert sequences == plain_sequences


def test_many_sequences_in_bfloat16_agree_with_float32():
    model = small_gpt(vocab_size=300, block_size=200, n_embd=64, n_kv_head=2, qk_norm=True)
    prompts = [[2 + i] * (60 + i) for i in range(16)]
    exact = generated(model, prompts, n=10)
    rounded = generated(model.bfloat16(), prompts, n=10)
    assert sum(a == b for a, b in zip(exact, rounded)) > 10  # rounding may change a token of the others


def test_even_attention_to_many_large_values_does_not_overflow_float16():
    model = small_gpt(block_size=1024, n_head=2, n_layer=1).bfloat16()
    store = cpu_kernels.PagedKV(model.config, 8, 1024, model.wte.weight)
    store.values.fill_(100.0)  # 1024 of them sum to more than float16 holds
    store.begin_step(torch.full((8,), 1023))
    q = torch.zeros(8, 2, 1, 16)
    y = store.attend(0, q, q, torch.full_like(q, 100.0))
    assert torch.allclose(y.float(), torch.full_like(q, 100.0), rtol=0.01)


@torch.no_grad()
def test_int8_is_close():
    model = small_gpt(bias=True)
    quantized = cpu_kernels.quantize_int8(copy.deepcopy(model))
    for ids in (torch.tensor(PROMPTS[:1]) % 100, torch.randint(100, (4, 32))):  # few rows, many rows
        similarity = F.cosine_similarity(model(ids).flatten(), quantized(ids).float().flatten(), dim=0)
        assert similarity > 0.999


def test_freed_memory_can_be_kept_on_any_system():
    cpu_kernels.keep_freed_memory()

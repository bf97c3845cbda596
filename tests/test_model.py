"""The GPT against Hugging Face's own classes, its loss, and what generate() promises."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers

import hub
import model as model_module
from files import TokenStream
from model import GPT, GPTConfig, LinearCrossEntropy, LossGuard, generate, update_weights

SIZES = {'vocab_size': 300, 'hidden_size': 64, 'intermediate_size': 160, 'num_hidden_layers': 3,
         'num_attention_heads': 4, 'max_position_embeddings': 64}
GPT2_SIZES = {'vocab_size': 300, 'n_embd': 64, 'n_layer': 3, 'n_head': 4, 'n_positions': 64}
NEO_SIZES = {'vocab_size': 300, 'hidden_size': 64, 'num_layers': 3, 'num_heads': 4, 'window_size': 16,
             'max_position_embeddings': 64, 'attention_types': [[['global', 'local', 'global'], 1]]}
HF_MODELS = {
    'llama': (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES)),
    'llama, tied, grouped queries': (transformers.LlamaForCausalLM, transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, tie_word_embeddings=True)),
    'qwen3, tied, grouped queries': (transformers.Qwen3ForCausalLM, transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
    'gpt2': (transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2_SIZES)),
    'gpt2, untied': (transformers.GPT2LMHeadModel, transformers.GPT2Config(**GPT2_SIZES, tie_word_embeddings=False)),
    # these keep Transformers' own classes: GPT lacks their parts
    'gpt_neo': (transformers.GPTNeoForCausalLM, transformers.GPTNeoConfig(**NEO_SIZES)),
    'llama, biases': (transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES, attention_bias=True)),
}
PROMPTS = [[5, 17, 200, 4, 9], [8, 1, 33, 7, 250, 11, 12, 90, 2], [42]]


def small_gpt(seed=0, **args):
    torch.manual_seed(seed)
    sizes = {'vocab_size': 100, 'block_size': 32, 'n_layer': 2, 'n_head': 4, 'n_embd': 32}
    return GPT(GPTConfig(**(sizes | args))).eval()


def generated(model, prompts, n=40, **settings):
    """The new tokens of each prompt."""
    sequences = [[] for _ in prompts]
    for step in generate(model, prompts, n, **settings):
        for index, token in step:
            sequences[index].append(token)
    return sequences


@pytest.fixture(params=HF_MODELS, scope='module')
def pair(request, tmp_path_factory):
    """A model of Hugging Face, with weights that spread its logits, and ours with the same weights."""
    torch.manual_seed(0)
    hf_class, config = HF_MODELS[request.param]
    hf_model = hf_class(config).eval()
    for p in hf_model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    folder = tmp_path_factory.mktemp('hf')
    hf_model.save_pretrained(folder)
    return hf_model, hub.load_hf(str(folder)).eval()


def hf_generated(model, prompts, n=40, **settings):
    sequences = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=n, do_sample=False, eos_token_id=None,
                             pad_token_id=0, **settings)
        sequences.append(ids[0, len(prompt):].tolist())
    return sequences


@torch.no_grad()
def test_logits_loss_and_size_equal_hugging_face(pair):
    hf_model, ours = pair
    ids = torch.randint(300, (3, 64), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(ours(ids), hf_model(ids).logits, atol=1e-5)
    assert ours(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(hf_model(ids, labels=ids).loss.item(), abs=1e-5)
    assert ours.n_params() == hf_model.num_parameters()


@pytest.mark.parametrize('ours_setting, hf_setting', [
    ({}, {}),
    ({'repetition_penalty': 1.5}, {'repetition_penalty': 1.5}),
    ({'no_repeat_ngram': 2}, {'no_repeat_ngram_size': 2}),
])
def test_greedy_sequences_equal_hugging_face(pair, ours_setting, hf_setting):
    hf_model, ours = pair
    assert generated(ours, PROMPTS, temperature=0, **ours_setting) == hf_generated(hf_model, PROMPTS, **hf_setting)


def test_bad_words_equal_hugging_face(pair):
    hf_model, ours = pair
    plain = generated(ours, PROMPTS, temperature=0)
    words = [plain[0][:1], plain[1][2:4]]
    expected = hf_generated(hf_model, PROMPTS, bad_words_ids=words)
    assert generated(ours, PROMPTS, temperature=0, bad_words=words) == expected != plain


def test_a_sequence_does_not_depend_on_its_batch(pair):
    _, ours = pair
    eos = generated(ours, PROMPTS, temperature=0)[0][3]
    settings = {'n': 80, 'eos': eos, 'temperature': 0.7, 'top_k': 50, 'top_p': 0.9, 'min_p': 0.01}  # 80 > block_size
    together = generated(ours, PROMPTS * 3, seeds=range(9), **settings)
    assert together == [generated(ours, [p], seeds=[s], **settings)[0] for s, p in enumerate(PROMPTS * 3)]
    assert together == generated(ours, PROMPTS * 3, seeds=range(9), batch_size=4, **settings)
    assert len({tuple(s) for s in together}) > 4


@pytest.mark.parametrize('kernels', [True, False])
def test_slots_are_refilled_and_gaps_closed(kernels, monkeypatch):
    """In float64, every sequence of a large batch is exactly what it is alone, whenever the others end."""
    if not kernels:
        monkeypatch.setattr(model_module, 'cpu_kernels', None)
    model = small_gpt(vocab_size=20, block_size=80, n_kv_head=2, qk_norm=True).double()
    prompts = [[4 + i % 7] * (1 + i % 5) for i in range(30)]
    alone = [generated(model, [prompt], n=90, seeds=[seed], eos=3)[0] for seed, prompt in enumerate(prompts)]
    assert len({len(sequence) for sequence in alone}) > 12
    for batch_size in (0, 3, 20):
        assert generated(model, prompts, n=90, seeds=range(30), eos=3, batch_size=batch_size) == alone
    ends = [7, 3]
    cut = [sequence[:sequence.index(7) + 1] if 7 in sequence else sequence for sequence in alone]
    assert generated(model, prompts, n=90, seeds=range(30), eos=ends, batch_size=3) == cut != alone
    assert generated(model, [], n=9) == []
    assert generated(model, prompts[:2], n=0) == [[], []]


@torch.no_grad()
def test_the_cache_changes_nothing(pair):
    _, ours = pair
    ids = list(PROMPTS[0])
    for _ in range(30):
        ids.append(ours(torch.tensor([ids]))[0, -1].argmax().item())
    assert generated(ours, PROMPTS[:1], n=30, temperature=0)[0] == ids[5:]


@torch.no_grad()
def test_sampling_follows_the_probabilities():
    model = small_gpt(vocab_size=12, block_size=8, n_layer=1, n_head=2, n_embd=16)
    model.wte.weight *= 20
    probs = model(torch.tensor([[3]]))[0, -1].softmax(-1)
    likeliest = probs.argsort(descending=True).tolist()

    def first_tokens(n, **settings):
        return [tokens[0] for tokens in generated(model, [[3]] * n, n=1, seeds=range(n), **settings)]

    share = torch.bincount(torch.tensor(first_tokens(4000)), minlength=12) / 4000
    assert (share - probs).abs().max() < 0.03
    assert set(first_tokens(500, top_k=3)) == set(likeliest[:3])
    assert set(first_tokens(200, top_p=float(probs.max()) / 2)) == {likeliest[0]}
    assert set(first_tokens(800, min_p=0.5)) <= {i for i in range(12) if probs[i] >= 0.5 * probs.max()}


@pytest.mark.parametrize('n, v', [(7, 300), (1000, 4096)])
def test_chunked_loss_and_gradients_equal_the_plain_ones(n, v):
    torch.manual_seed(0)
    x = torch.randn(n, 32, requires_grad=True)
    weight = torch.randn(v, 32, requires_grad=True)
    targets = torch.randint(v, (n,))
    plain = F.cross_entropy(x @ weight.t(), targets)
    chunked = LinearCrossEntropy.apply(x, weight, targets)
    assert torch.allclose(chunked, plain, atol=1e-5)
    expected = torch.autograd.grad(plain * 3, (x, weight))
    for gradient, reference in zip(torch.autograd.grad(chunked * 3, (x, weight)), expected):
        assert torch.allclose(gradient, reference, atol=1e-6)


@pytest.mark.parametrize('args', [
    {'mlp': 'relu2'}, {'mlp': 'swiglu'}, {'mlp': 'relu2', 'bias': True, 'norm': 'layernorm'}])
def test_float16_holds_large_activations(args):
    """Products of two values above 256 overflow float16; the MLP computes them as float32 does."""
    model = small_gpt(**args).train()
    ids = torch.randint(100, (4, 33))
    mlp = model.blocks[0].mlp
    up_proj = torch.nn.Linear(32, mlp.up.out_features)
    with torch.no_grad():
        for p in mlp.parameters():
            p.add_(torch.randn_like(p) * 0.02)
        for linear in filter(None, (mlp.up, mlp.gate)):
            linear.weight.mul_(300 / up_proj.in_features**0.5 / linear.weight.std())
        mlp.down.weight.mul_(1e-4)
    x = torch.randn(4, 32, 32)
    assert mlp.activation(mlp.up(x)).max() * (mlp.up(x).max() if mlp.gate else 1) > 65504
    results = []
    for dtype in (torch.float32, torch.float16):
        model.zero_grad()
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = model(ids[:, :-1], ids[:, 1:])
        (loss * 1024).backward()  # a loss scale
        results.append((loss.item(), mlp.up.weight.grad / 1024))
    (loss, gradient), (half_loss, half_gradient) = results
    assert half_loss == pytest.approx(loss, rel=1e-2)
    assert F.cosine_similarity(gradient.flatten(), half_gradient.flatten(), dim=0) > 0.99


def test_float16_holds_the_sums_of_the_loss():
    """2,000 rows that all pull the same token up: the sum overflows float16 whatever the loss scale."""
    x = torch.full((2000, 32), 100.0, requires_grad=True)
    weight = torch.zeros(300, 32, requires_grad=True)
    targets = torch.full((2000,), 7)
    exact = torch.autograd.grad(LinearCrossEntropy.apply(x, weight, targets), weight)[0]
    with torch.autocast('cpu', torch.float16):
        loss = LinearCrossEntropy.apply(x, weight, targets)
    gradient = torch.autograd.grad(loss, weight)[0]
    assert exact.abs().max() * len(x) > 65504
    assert torch.allclose(gradient, exact, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('args', [{'qk_norm': True, 'mlp': 'relu2', 'tie_weights': False},
                                  {'norm': 'layernorm', 'position': 'learned'}])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_torch_compile_sees_one_graph(args, dtype):
    model = small_gpt(**args).train()
    ids = torch.randint(100, (4, 33))
    results = []
    for net in (model, torch.compile(model, backend='eager', fullgraph=True)):
        model.zero_grad()
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = net(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append((loss.item(), model.blocks[0].attn.qkv.weight.grad.clone()))
    (eager_loss, eager_grad), (compiled_loss, compiled_grad) = results
    assert eager_loss == pytest.approx(compiled_loss, rel=1e-3)
    assert torch.allclose(eager_grad, compiled_grad, rtol=0.05, atol=1e-4)


def test_nanogpt_shape_starts_near_uniform():
    model = small_gpt(norm='layernorm', position='learned', mlp='gelu')
    assert not any(name.endswith('bias') for name, _ in model.named_parameters())
    assert model.n_params() == 100 * 32 + 32 * 32 + 2 * (12 * 32 * 32 + 2 * 32) + 32
    ids = torch.randint(100, (4, 16))
    assert model(ids, ids.roll(-1, 1)).item() == pytest.approx(math.log(100), abs=0.1)


@pytest.mark.parametrize('wrong', [
    {'n_head': 3}, {'n_kv_head': 3}, {'n_layer': 0}, {'n_layer': 10**6}, {'norm': 'batch'}, {'position': 'alibi'},
    {'mlp': 'tanh'}, {'n_embd': 12}, {'rope_theta': 0.0}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(SystemExit):
        small_gpt(**wrong)


def test_muon_takes_the_matrices_of_the_blocks():
    model = small_gpt(tie_weights=False)
    adamw, muon = model.configure_optimizers('muon', 1e-2, 3e-2, 0.1, (0.9, 0.95), 0.85, 3)
    assert [len(group['params']) for group in adamw.param_groups] == [0, 5, 2]
    assert [group['peak_lr'] for group in adamw.param_groups] == [1e-2, 1e-2, 3e-2]
    assert [group['weight_decay'] for group in adamw.param_groups] == [0.1, 0.0, 0.0]
    assert len(muon.param_groups[0]['params']) == 2 * 5
    assert (muon.param_groups[0]['momentum'], muon.param_groups[0]['ns_steps']) == (0.85, 3)


def test_the_guard_finds_nan_and_spikes():
    guard = LossGuard()
    no_scaler = torch.amp.GradScaler('cpu', enabled=False)
    for i in range(100):
        assert not guard.record(3 + i % 2 / 10, 1.0, no_scaler)
    assert guard.record(math.nan, 1.0, no_scaler)
    assert 'nan' in guard.reason_to_stop(skip_nan=False) and not guard.reason_to_stop(skip_nan=True)
    assert guard.record(3.0, math.inf, no_scaler)
    assert not guard.record(5.2, 1.0, no_scaler)  # a spike is no reason to skip or to stop
    assert not guard.reason_to_stop(skip_nan=False)
    assert (guard.n_skipped, guard.skipped_in_a_row, guard.n_spikes, guard.spikes_in_a_row) == (2, 0, 1, 1)
    assert not guard.record(4.0, 1.0, no_scaler)
    assert (guard.n_spikes, guard.spikes_in_a_row) == (1, 0)


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_a_bad_step_leaves_weights_and_optimizer_as_they_were(name):
    """Also where the device decides: the next good step is the one that would have come without the bad one."""
    models = [small_gpt(), small_gpt()]
    ids = torch.arange(64).view(2, 32)
    for model, bad_steps in zip(models, ([0, 0], [0, 1, 0])):
        optimizers = model.configure_optimizers(name, 1e-2, 0.0, 0.1, (0.9, 0.95), 0.95, 5)
        for bad in bad_steps:
            model.zero_grad()
            loss = model(ids, ids.roll(-1, 1))
            (loss * math.nan if bad else loss).backward()
            for optimizer in optimizers:
                update_weights(optimizer, torch.tensor(float(bad)))
    for a, b in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(a, b)


def test_the_loss_of_a_foreign_model_in_parts_is_that_of_the_whole(tmp_path):
    """For a large vocabulary the context is read in parts, so that the logits fit in the memory."""
    torch.manual_seed(0)
    config = transformers.GPTNeoConfig(**NEO_SIZES)
    transformers.GPTNeoForCausalLM(config).save_pretrained(tmp_path)
    model = hub.load_hf(str(tmp_path)).eval()
    ids = torch.randint(300, (2, 50))
    with torch.no_grad():
        whole = model(ids, ids.roll(-1, 1))
        model.config.vocab_size = 2**24  # 8 columns at once
        assert model(ids, ids.roll(-1, 1)).item() == pytest.approx(whole.item(), abs=1e-5)


def test_the_guard_ends_a_run_that_stays_bad():
    guard = LossGuard()
    no_scaler = torch.amp.GradScaler('cpu', enabled=False)
    for _ in range(101):
        guard.record(math.nan, 1.0, no_scaler)
    assert 'nan' in guard.reason_to_stop(skip_nan=True)
    for _ in range(100):
        guard.record(2.0, 1.0, no_scaler)
    for _ in range(299):
        guard.record(9.0, 1.0, no_scaler)
    assert not guard.reason_to_stop(skip_nan=False)
    guard.record(9.0, 1.0, no_scaler)
    assert 'mean of 2 for 300 steps' in guard.reason_to_stop(skip_nan=True)


@pytest.mark.parametrize('bos, eos', [(0, 1), (0, 0)])
def test_every_epoch_has_every_story_once_in_a_new_order(bos, eos):
    story_end = [eos] if eos != bos else []
    stories = [[bos, *[2 + i] * (1 + i % 4), *story_end] for i in range(50)]
    last = [eos] if eos == bos else []
    tokens = np.concatenate([*stories, last]).astype(np.uint16)
    stream = TokenStream(tokens, bos, eos, seed=7)
    n = len(stream)
    assert n == sum(map(len, stories))
    both = stream.read(0, 2 * n)
    pieces = [stream.read(a, min(a + 13, 2 * n)) for a in range(0, 2 * n, 13)]  # any pieces, across epochs too
    assert np.array_equal(np.concatenate(pieces), both)
    epochs = []
    for epoch in (both[:n], both[n:]):
        starts = np.flatnonzero(epoch == bos)
        epochs.append([part.tolist() for part in np.split(epoch, starts[1:])])
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(stories)
    assert epochs[0] != epochs[1]
    assert not np.array_equal(TokenStream(tokens, bos, eos, seed=8).read(0, n), both[:n])


@pytest.mark.parametrize('name', ['gpt2', 'gpt_neo'])
def test_a_folder_without_some_weights_is_refused(name, tmp_path):
    """Transformers would fill them at random."""
    hf_class, config = HF_MODELS[name]
    weights = hf_class(config).state_dict()
    missing = next(key for key in weights if 'proj.weight' in key)
    del weights[missing]
    config.save_pretrained(tmp_path)
    torch.save(weights, tmp_path / 'pytorch_model.bin')
    with pytest.raises(SystemExit, match=f'weights lack {missing}'):
        hub.load_hf(str(tmp_path))

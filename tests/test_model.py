"""The GPT against Hugging Face's own classes, and what generation promises."""

import copy

import pytest
import torch
import transformers

from checkpoint import load, load_hf
from generation import attend_paged, generate, paged_columns
from model import GPT, LinearCrossEntropy, attend, quantize_int8
from tokenizer import train as train_tokenizer

LLAMA = {'vocab_size': 300, 'hidden_size': 64, 'intermediate_size': 160, 'num_hidden_layers': 3, 'num_attention_heads': 4, 'max_position_embeddings': 64}
THEIRS = {
    'llama': lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    'llama, tied, grouped queries': lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, num_key_value_heads=2, tie_word_embeddings=True)),
    'qwen3': lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, num_key_value_heads=4, head_dim=16)),
    'qwen3, tied, grouped queries': lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**LLAMA, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
    'gpt2': lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=64)),
    'gpt2, untied': lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=64, tie_word_embeddings=False)),
    # these stay in Transformers' own classes: of another kind, or with parts that model.py has not
    'gpt_neo': lambda: transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(
        vocab_size=300, hidden_size=64, num_layers=3, num_heads=4, attention_types=[[['global', 'local', 'global'], 1]], window_size=16,
        max_position_embeddings=64)),
    'gpt2, its attention scaled otherwise': lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True)),
    'llama, biases': lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, num_key_value_heads=2, attention_bias=True)),
}
PROMPTS = [[5, 17, 200, 4, 9], [8, 1, 33, 7, 250, 11, 12, 90, 2], [42]]


@pytest.fixture(params=THEIRS, scope='module')
def pair(request, tmp_path_factory):
    """One of Hugging Face's models, with weights that spread its logits, and ours of the same weights."""
    torch.manual_seed(0)
    theirs = THEIRS[request.param]().eval()
    for p in theirs.parameters():
        p.data += 0.05 * torch.randn_like(p)
    folder = tmp_path_factory.mktemp('hf')
    theirs.save_pretrained(folder)
    return theirs, load_hf(str(folder)).eval()


def stories(model, prompts, n=40, **settings):
    """What generate yields, gathered by prompt."""
    gathered = [[] for _ in prompts]
    for new in generate(model, prompts, n, **settings):
        for row, token in new:
            gathered[row].append(token)
    return gathered


def their_stories(model, prompts, n=40, **settings):
    return [model.generate(torch.tensor([p]), max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0, **settings)[0, len(p):].tolist()
            for p in prompts]


def test_logits_equal(pair):
    theirs, ours = pair
    ids = torch.randint(300, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize('ours_setting, their_setting', [
    ({}, {}),
    ({'repetition_penalty': 1.5}, {'repetition_penalty': 1.5}),
    ({'no_repeat_ngram': 2}, {'no_repeat_ngram_size': 2}),
])
def test_greedy_stories_equal(pair, ours_setting, their_setting):
    theirs, ours = pair
    assert stories(ours, PROMPTS, temperature=0, **ours_setting) == their_stories(theirs, PROMPTS, **their_setting)


def test_bad_words_equal(pair):
    theirs, ours = pair
    plain = stories(ours, PROMPTS, temperature=0)
    words = [[plain[0][0]], [plain[1][2], plain[1][3]]]
    assert stories(ours, PROMPTS, temperature=0, bad_words=words) == their_stories(theirs, PROMPTS, bad_words_ids=words)


def test_a_story_does_not_depend_on_its_batch(pair):
    _, ours = pair
    eos = stories(ours, PROMPTS, temperature=0)[0][3]
    settings = {'temperature': 0.7, 'top_k': 50, 'top_p': 0.9, 'min_p': 0.01}
    together = stories(ours, PROMPTS * 3, n=80, seeds=range(9), eos=eos, **settings)  # far beyond block_size, with early ends
    assert together == [stories(ours, [p], n=80, seeds=[s], eos=eos, **settings)[0] for s, p in enumerate(PROMPTS * 3)]
    assert together == stories(ours, PROMPTS * 3, n=80, seeds=range(9), eos=eos, side_by_side=4, **settings)
    assert len({tuple(s) for s in together}) > 4


def test_rows_that_end_make_room_for_the_last_ones():
    """Sharp in float64: every story of a large batch, in which they end at any time, is what it is alone."""
    torch.manual_seed(0)
    model = GPT(vocab_size=20, block_size=80, n_layer=2, n_head=4, n_embd=32, n_kv_head=2, qk_norm=True).double().eval()  # 80: keys lie in pages of 32
    prompts = [[4 + i % 7] * (1 + i % 5) for i in range(30)]
    together = stories(model, prompts, n=90, seeds=range(30), eos=3)
    assert together == [stories(model, [prompt], n=90, seeds=[seed], eos=3)[0] for seed, prompt in enumerate(prompts)]
    assert len({len(story) for story in together}) > 12
    assert stories(model, [], n=9) == [] and stories(model, prompts[:2], n=0) == [[], []]
    for side_by_side in (3, 20):  # where one ends the next begins, in rows that lie together (3) and in pages (20)
        assert stories(model, prompts, n=90, seeds=range(30), eos=3, side_by_side=side_by_side) == together


def test_many_in_bfloat16_are_told_as_in_float32():
    """Of the same token, while rounding has not led stories apart."""
    torch.manual_seed(0)
    model = GPT(vocab_size=300, block_size=200, n_layer=2, n_head=4, n_embd=64, n_kv_head=2, qk_norm=True).eval()
    prompts = [[2 + i] * (60 + i) for i in range(16)]
    sharp = stories(model, prompts, n=10, seeds=range(16))
    rounded = stories(model.bfloat16(), prompts, n=10, seeds=range(16))
    assert sum(a == b for a, b in zip(sharp, rounded)) > 10


def test_even_attention_over_many_large_values_in_float16():
    """Their sum would be infinite there; their mean is not."""
    at, q, v = torch.full((8,), 1023), torch.zeros(8, 2, 1, 16), torch.full((8, 2, 1, 16), 100.0)
    keys, values = torch.zeros(8, 2, 32, 16, 32).half(), v.half().expand(-1, -1, 1024, -1).contiguous()
    assert torch.allclose(attend_paged(q, q, v, keys, values, at, *paged_columns(at, 2, keys)), v.half(), rtol=0.01)


@pytest.mark.parametrize('length', [1, 7, 256])
def test_attention_of_short_rows_in_bfloat16(length):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, length, 16)
    sharp = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.0).float(), sharp, atol=0.03)


def test_int8_is_close(pair):
    _, ours = pair
    ids = torch.tensor(PROMPTS[1:2])
    with torch.no_grad():
        sharp, rough = ours(ids), quantize_int8(copy.deepcopy(ours))(ids)
    assert torch.nn.functional.cosine_similarity(sharp.flatten(), rough.float().flatten(), dim=0) > 0.999


def test_keys_and_values_change_nothing(pair):
    """Cached generation is what one gets from reading the whole story again for every token."""
    _, ours = pair
    ids = list(PROMPTS[0])
    with torch.no_grad():
        for _ in range(30):
            ids.append(ours(torch.tensor([ids]))[0, -1].argmax().item())
    assert stories(ours, PROMPTS[:1], n=30, temperature=0)[0] == ids[5:]


def test_sampling_follows_the_probabilities():
    torch.manual_seed(0)
    model = GPT(vocab_size=12, block_size=8, n_layer=1, n_head=2, n_embd=16).eval()
    model.wte.weight.data *= 20
    with torch.no_grad():
        probs = model(torch.tensor([[3]]))[0, -1].softmax(-1)
    first = torch.tensor([s[0] for s in stories(model, [[3]] * 4000, n=1, seeds=range(4000))])
    share = torch.bincount(first, minlength=12) / 4000
    assert (share - probs).abs().max() < 0.03
    order = probs.argsort(descending=True)
    top = torch.tensor([s[0] for s in stories(model, [[3]] * 500, n=1, seeds=range(500), top_k=3)])
    assert set(top.tolist()) == set(order[:3].tolist())
    p = float(probs[order[0]]) / 2  # less than the likeliest alone
    assert {s[0] for s in stories(model, [[3]] * 200, n=1, seeds=range(200), top_p=p)} == {int(order[0])}
    kept = {i for i in range(12) if probs[i] >= 0.5 * probs.max()}
    assert {s[0] for s in stories(model, [[3]] * 800, n=1, seeds=range(800), min_p=0.5)} <= kept


@pytest.mark.parametrize('n, v', [(7, 300), (1000, 4096)])
def test_chunked_loss_and_gradients_equal_the_plain_ones(n, v):
    torch.manual_seed(0)
    x, w, t = torch.randn(n, 32, requires_grad=True), torch.randn(v, 32, requires_grad=True), torch.randint(v, (n,))
    plain = torch.nn.functional.cross_entropy(x @ w.t(), t)
    expected = torch.autograd.grad(plain * 3, (x, w))
    ours = LinearCrossEntropy.apply(x, w, t)
    assert torch.allclose(ours, plain, atol=1e-5)
    for a, b in zip(torch.autograd.grad(ours * 3, (x, w)), expected):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('shape', [{'qk_norm': True, 'mlp': 'relu2', 'tie_weights': False}, {'norm': 'layernorm', 'position': 'learned'}])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_torch_compile_sees_one_graph(shape, dtype):
    """Nothing in the model makes it stop half-way; and the loss and its gradient are the same."""
    torch.manual_seed(0)
    model, ids = GPT(vocab_size=100, block_size=32, n_layer=2, n_head=2, n_embd=32, **shape), torch.randint(100, (4, 33))
    found = []
    for net in (model, torch.compile(model, backend='eager', fullgraph=True)):
        model.zero_grad()
        with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
            loss = net(ids[:, :-1], ids[:, 1:])
        loss.backward()
        found.append((loss.item(), model.blocks[0].attn.qkv.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-3) and torch.allclose(found[0][1], found[1][1], rtol=0.05, atol=1e-4)


def test_nanogpt_shape():
    """LayerNorm without biases, learned positions, exact GELU: a nanoGPT model, whose logits at the start are near uniform."""
    model = GPT(vocab_size=100, block_size=16, n_layer=2, n_head=2, n_embd=32, norm='layernorm', position='learned', mlp='gelu')
    assert not any(name.endswith('bias') for name, _ in model.named_parameters())
    assert model.n_params() == 100 * 32 + 16 * 32 + 2 * (12 * 32 * 32 + 2 * 32) + 32
    ids = torch.randint(100, (4, 16))
    assert abs(model(ids, ids.roll(-1, 1)).item() - 4.605) < 0.1


@pytest.mark.parametrize('wrong', [{'n_head': 3}, {'n_kv_head': 3}, {'n_layer': 0}, {'norm': 'batch'}, {'position': 'alibi'}, {'n_embd': 12, 'n_head': 4}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(SystemExit):
        GPT(**{'vocab_size': 100, 'block_size': 16, 'n_layer': 2, 'n_head': 4, 'n_embd': 32} | wrong)


def test_loss_of_any_model(pair):
    theirs, ours = pair
    ids = torch.randint(300, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert ours(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(theirs(ids, labels=ids).loss.item(), abs=1e-5)
    assert ours.n_params() == theirs.num_parameters()


@pytest.mark.parametrize('bias', [True, False])
def test_nanogpt_checkpoints(bias, tmp_path):
    """A nanoGPT .pt, compiled when it was saved: GPT-2's weights the other way round, exact GELU, biases or none."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=64, activation_function='gelu')
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for name, p in theirs.named_parameters():
        p.data = p.data + 0.05 * torch.randn_like(p) if bias or not name.endswith('bias') else torch.zeros_like(p)
    weights = {f'_orig_mod.{name}': p.t().contiguous() if '.h.' in name and p.dim() == 2 else p for name, p in theirs.state_dict().items()
               if bias or not name.endswith('bias')}
    args = {'n_layer': 3, 'n_head': 4, 'n_embd': 64, 'block_size': 64, 'bias': bias, 'vocab_size': 300, 'dropout': 0.1}
    checkpoint = {'model': weights, 'model_args': args, 'iter_num': 5000, 'best_val_loss': torch.tensor(0.5), 'config': {'dataset': 'hindi'}}
    torch.save(checkpoint, tmp_path / 'ckpt_sarvam [l=3].pt')
    with pytest.raises(SystemExit, match='--tokenizer='):
        load(str(tmp_path / 'ckpt_sarvam [l=3].pt'))
    train_tokenizer(['a story'] * 9, 270).save(str(tmp_path))
    for tokenizer in (str(tmp_path / 'tokenizer.json'), ''):  # named, or beside
        ours, spelling, _ = load(str(tmp_path / 'ckpt_sarvam [l=3].pt'), 'cpu', tokenizer)
        ids = torch.randint(300, (3, 64))
        with torch.no_grad():
            assert torch.allclose(ours(ids), theirs(ids).logits, atol=1e-5)
        assert spelling.decode(spelling.encode('a story')) == 'a story'

    torch.save(checkpoint | {'config': transformers.GPT2Config()}, tmp_path / 'code.pt')
    with pytest.raises(SystemExit, match=r'GPT2Config.*could run code'):
        load(str(tmp_path / 'code.pt'))


def test_models_with_code_of_their_own_are_refused(tmp_path):
    (tmp_path / 'config.json').write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}')
    (tmp_path / 'mine.py').write_text('raise RuntimeError("this ran")')
    with pytest.raises(SystemExit, match="'mine' that Transformers cannot open"):
        load_hf(str(tmp_path))

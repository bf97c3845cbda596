"""Exported models in other programs: the same logits and the same greedy stories."""

import itertools
import json
import math
import os
import re
import shutil
import struct
import subprocess

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from conftest import Project
from torch.nn import functional as F
from transformers.convert_slow_tokenizer import bytes_to_unicode

import files
import hub
from model import GPT, GPTConfig, generate, save_checkpoint
from tokenizer import Tokenizer
from tokenizer import load as load_tokenizer

SHAPES = {
    'llama': {'tie_weights': False, 'n_kv_head': 2, 'rope_theta': 500.0},
    'llama with biases': {'bias': True},
    'qwen3': {'qk_norm': True, 'n_kv_head': 1},
    'qwen3 with relu2': {'qk_norm': True, 'mlp': 'relu2', 'tie_weights': False},
    'llama with relu2': {'mlp': 'relu2', 'bias': True},
    'gpt2': {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu_new', 'bias': True},
    'gpt2 of nanogpt': {'norm': 'layernorm', 'position': 'learned', 'mlp': 'gelu', 'tie_weights': False, 'n_inner': 96},
}
OTHER_SHAPES = [shape for shape in SHAPES if shape != 'llama']
PROMPTS = ['', 'एक दिन', '“मैं रवि हूँ,” उसने कहा।']


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """Small models are faster with one thread."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A project with a small Llama in out/llama that knows very short stories, and their ends, by heart."""
    project = Project(tmp_path_factory.mktemp('project'))
    words = itertools.product(('रवि', 'अमन', 'चूज़ा'), ('बाज़ार', 'घर', 'स्कूल'), ('एक हाथी', 'बड़ा पेड़', 'मेला', 'कोई नहीं'))
    stories = [f'{who} {where} गया। वहाँ {what} था। “{what}!” {who} बोला।' for who, where, what in words] * 10
    lines = [json.dumps({'text': story}) for story in stories]
    (project.path / 'stories.jsonl').write_text('\n'.join(lines), encoding='utf-8')
    project.run('prepare.py', '--source=stories.jsonl', '--dataset=tiny', '--vocab_size=320', '--val_fraction=0.2')
    project.run('train.py', '--dataset=tiny', '--out_dir=out/llama', '--n_layer=2', '--n_head=4', '--n_kv_head=2',
                '--n_embd=64', '--block_size=96', '--batch_size=8', '--optimizer=muon', '--learning_rate=1e-2',
                '--max_iters=100', '--warmup_iters=5', '--eval_interval=100', '--eval_iters=2')
    return project


@pytest.fixture(scope='module')
def tokenizer(trained):
    return load_tokenizer(str(trained.path / 'data/tiny/tokenizer.json'))


@pytest.fixture(scope='module')
def sentencepiece_model(tmp_path_factory, trained):
    """A SentencePiece BPE with byte fallback, like Llama 2's, trained on the English plots -> its file."""
    sentencepiece = pytest.importorskip('sentencepiece')
    pytest.importorskip('google.protobuf')
    path = tmp_path_factory.mktemp('spm') / 'tiny'
    sentencepiece.SentencePieceTrainer.train(
        input=str(trained.path / 'data/english/plots.txt'), model_prefix=str(path), vocab_size=700, model_type='bpe',
        byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False, minloglevel=2)
    return f'{path}.model'


@pytest.fixture(scope='module')
def sentencepiece(sentencepiece_model):
    return load_tokenizer(sentencepiece_model)


def random_checkpoint(project, tokenizer, **shape):
    """Save a model of random weights, with logits that differ well, as train.py saves one -> its folder."""
    torch.manual_seed(0)
    sizes = {'vocab_size': tokenizer.vocab_size, 'block_size': 64, 'n_layer': 3, 'n_head': 4, 'n_embd': 64}
    model = GPT(GPTConfig(**sizes | shape))
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    folder = project.path / 'out' / f'random{len(os.listdir(project.path / "out"))}'
    checkpoint = {'model_args': vars(model.config), 'model': model.state_dict(), 'tokenizer': tokenizer.state()}
    save_checkpoint(str(folder / 'best.pt'), checkpoint)
    return folder


def greedy_story(folder, prompt, n=60):
    """The ids of our greedy story of at most n tokens, prompt and eos included."""
    model, tokenizer, _ = hub.load(str(folder))
    ids = [tokenizer.bos, *tokenizer.encode(prompt)]
    for [(_, token)] in generate(model, [ids], n - len(ids), tokenizer.eos, temperature=0):
        ids.append(token)
    return ids


# -----------------------------------------------------------------------------
# Transformers


@pytest.mark.parametrize('shape', ['llama', *(pytest.param(shape, marks=pytest.mark.slow) for shape in OTHER_SHAPES)])
def test_transformers_computes_the_same(trained, tokenizer, shape):
    folder = random_checkpoint(trained, tokenizer, **SHAPES[shape])
    trained.run('export.py', f'--out_dir={folder}', '--examples=0')
    exported = transformers.AutoModelForCausalLM.from_pretrained(folder / 'hf')
    exported_tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'hf')
    assert exported.config.model_type == shape.split()[0]
    ids = torch.randint(tokenizer.vocab_size, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = hub.load(str(folder))[0](ids)
        assert torch.allclose(exported(ids).logits, logits, atol=1e-4)
        assert torch.allclose(hub.load(str(folder / 'hf'))[0](ids), logits, atol=1e-4)  # and back again
    for prompt in PROMPTS:
        inputs = exported_tokenizer(prompt, return_tensors='pt')
        story = exported.generate(**inputs, do_sample=False, max_length=60)
        assert story[0].tolist() == greedy_story(folder, prompt)


@pytest.mark.slow
def test_a_pipeline_generates_a_story_that_ends(trained):
    trained.run('export.py', '--out_dir=out/llama', '--examples=0')
    story = greedy_story(trained.path / 'out/llama', 'अमन घर', 96)
    pipeline = transformers.pipeline('text-generation', str(trained.path / 'out/llama/hf'))
    text = pipeline('अमन घर', do_sample=False, max_new_tokens=80)[0]['generated_text']
    assert text == pipeline.tokenizer.decode(story, skip_special_tokens=True) and text.startswith('अमन घर गया।')
    assert story[-1] == pipeline.model.generation_config.eos_token_id and len(story) < 96
    assert 20 < len(pipeline('', max_new_tokens=80)[0]['generated_text']) < 200
    batch = pipeline.tokenizer(['रवि', 'अमन घर गया।'], return_tensors='pt', padding=True)
    assert set(batch) == {'input_ids', 'attention_mask'} and batch['attention_mask'][0, 0] == 0  # padded on the left


QUIET = """
import sys, torch, transformers
transformers.logging.disable_progress_bar()
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer(['रवि', 'अमन घर गया।'], return_tensors='pt', padding=True)
for options in ({'do_sample': False}, {}, {'do_sample': True, 'temperature': 0.5, 'top_p': 0.9}):
    model.generate(**inputs, max_new_tokens=9, **options)
collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
labels = collator([tokenizer('रवि' + tokenizer.eos_token)])['labels']
print(labels[0, -1].item() == tokenizer.eos_token_id)
"""


@pytest.mark.slow
@pytest.mark.parametrize('temperature', ['0.8', '0.0'])
def test_transformers_has_nothing_to_warn_of_and_learns_the_end(trained, temperature):
    trained.run('export.py', '--out_dir=out/llama', '--examples=0', f'--temperature={temperature}')
    folder = trained.path / 'out/llama/hf'
    assert {path.stat().st_mode for path in folder.iterdir()} == {(trained.path / 'stories.jsonl').stat().st_mode}
    process = trained.start('-c', QUIET, folder)
    out, err = process.communicate(timeout=600)
    assert out == 'True\n' and not err, err


@pytest.mark.slow
def test_padding_is_not_the_end_where_bos_and_eos_are_one_token(trained):
    """A trimmed GPT-2 tokenizer has a token for it."""
    tiny = json.loads((trained.path / 'data/tiny/tokenizer.json').read_text(encoding='utf-8'))
    (trained.path / 'one').mkdir()
    (trained.path / 'one/tokenizer.json').write_text(json.dumps(tiny), encoding='utf-8')
    names = {'bos_token': '</s>', 'eos_token': '</s>'}
    (trained.path / 'one/tokenizer_config.json').write_text(json.dumps(names), encoding='utf-8')
    trained.run('prepare.py', '--source=stories.jsonl', '--dataset=one', '--tokenizer=one')
    folder = random_checkpoint(trained, load_tokenizer(str(trained.path / 'data/one')))
    trained.run('export.py', f'--out_dir={folder}', '--examples=0')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'hf')
    assert tokenizer.bos_token == tokenizer.eos_token == '</s>' and tokenizer.pad_token == '<pad>'
    assert tokenizer.pad_token_id < hub.load(str(folder))[0].config.vocab_size


@pytest.mark.slow
def test_the_card_has_the_figures_of_the_run(trained):
    results = {'models': {'llama': {'grades': {'m': {'grammar': {'mean': 7.25}, 'logic': None}}}},
               'exam': {'llama': {'hindi': {'all': {'mean': 0.61}}}}}
    (trained.path / 'out/llama/results.json').write_text(json.dumps(results), encoding='utf-8')  # of evaluate.py
    trained.run('export.py', '--out_dir=out/llama', '--examples=2', '--start=रवि', '--license=cc-by-4.0',
                '--language=hi', '--hub_dataset=me/stories', '--out=out/card')
    card = huggingface_hub.ModelCard.load(trained.path / 'out/card/README.md')
    meta, log = trained.json('data/tiny/meta.json'), trained.jsonl('out/llama/log.jsonl')[-1]
    front = card.data.to_dict()
    results = front.pop('model-index')
    assert front == {'license': 'cc-by-4.0', 'pipeline_tag': 'text-generation', 'language': 'hi',
                     'tags': ['nanokahani', 'hf'], 'library_name': 'transformers', 'datasets': ['me/stories'],
                     'widget': [{'text': 'रवि'}]}
    assert results[0]['name'] == 'llama'
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    losses = {key: round(log[key], 4) for key in ('val_loss', 'perplexity', 'bits_per_byte')}
    assert results == losses | {'exam, hindi': 0.61, 'grammar, by m': 7.25}
    body = card.text
    n_params = hub.load(str(trained.path / 'out/llama'))[0].n_params()
    for figure in (f'{n_params:,}', f'{meta["stories"]["train"]:,}', f'{meta["tokens"]["val"]:,}', 'cc-by-4.0',
                   f'{log["val_loss"]:.4f}', f'{log["bits_per_byte"]:.4f}', '| learning_rate | 0.01 |',
                   f'| nanokahani | {files.VERSION} |', f'nanokahani {files.VERSION}}}'):
        assert figure in body, figure
    for heading in ('Intended use', 'Training', 'Evaluation', 'Stories', 'Limitations', 'Citation'):
        assert f'\n## {heading}\n' in body
    assert body.count('\n> रवि') == 2 and '"out/card"' in body

    trained.run('export.py', '--out_dir=out/llama', '--examples=0', '--out=out/card')
    assert 'icense' not in (trained.path / 'out/card/README.md').read_text(encoding='utf-8')


@pytest.mark.slow
def test_upload_to_the_hub(trained, server):
    hub_server = server('hub_server.py')
    env = {'HF_ENDPOINT': hub_server.url, 'HF_HUB_OFFLINE': '0', 'HF_TOKEN': 'hf_test', 'HF_HUB_DISABLE_XET': '1'}
    command = ['export.py', '--out_dir=out/llama/best.pt', '--examples=0', '--dtype=bfloat16', '--push=me/kahani',
               '--out=out/push']
    line = trained.refuses(*command, **env | {'HF_TOKEN': 'hf_wrong'})
    assert 'me/kahani' in line and 'again' in line
    folder = trained.path / 'out/push'
    (folder / 'diary.txt').write_text('not to be uploaded', encoding='utf-8')
    assert f'{hub_server.url}/me/kahani' in trained.run(*command, **env)
    assert transformers.AutoModelForCausalLM.from_pretrained(folder, dtype='auto').dtype == torch.bfloat16

    assert 'pipeline("text-generation", "me/kahani")' in (folder / 'README.md').read_text(encoding='utf-8')
    uploaded = hub_server.get('/')
    assert [(repo['organization'], repo['name']) for repo in uploaded['repos']] == [('me', 'kahani')]
    names = sorted(path.name for path in folder.iterdir() if path.name != 'diary.txt')
    assert sorted(uploaded['files']) == names and 'model.safetensors' in names
    assert uploaded['files']['README.md'] == (folder / 'README.md').read_text(encoding='utf-8')
    assert uploaded['files']['model.safetensors'] == (folder / 'model.safetensors').stat().st_size


HOSTILE = '<img src=x onerror=alert(1)>\x1b[31m\n---\n# big | **bold** `code` [a](https://b.example) ![c](d) \u202etxt'


@pytest.mark.slow
def test_the_card_quotes_what_comes_from_files(trained, tokenizer):
    """A checkpoint from elsewhere with markup in its values, in a folder with markup in its name."""
    folder = trained.path / 'out' / '[x](y) **z** <b>'
    random_checkpoint(trained, tokenizer).rename(folder)
    checkpoint = torch.load(folder / 'best.pt', weights_only=True)
    checkpoint['config'] = {'dataset': HOSTILE, 'init_from': '/home/ravi/secret/model', 'optimizer': HOSTILE,
                            'seed': []}
    checkpoint['meta'] = {'tokenizer': HOSTILE, 'stories': {'train': 1, 'val': 1}, 'tokens': {'train': 9, 'val': 9},
                          'bytes': {'train': 9, 'val': 9}, 'config': {'source': 'hf:MaxLSB/LeCarnet:train'}}
    save_checkpoint(str(folder / 'best.pt'), checkpoint | {'best_val_loss': 1.0})
    trained.run('export.py', f'--out_dir={folder}', '--examples=3', '--license=x\n---\n# y', f'--out={folder}/card')
    card = huggingface_hub.ModelCard.load(folder / 'card/README.md')
    assert card.data.license == 'x\n---\n# y' and card.data.datasets == ['MaxLSB/LeCarnet']
    assert card.data.eval_results[0].metric_value == 1.0 and card.data.model_name == folder.name
    card, body = str(card), card.text
    text = body.replace('\n---\n', '\n')  # between stories
    assert not set(text) & {'<', '\x1b', '\u202e'} and 'ravi' not in card and str(trained.path) not in card
    assert not re.search(r'(?<!\\)(\*\*|\]\(|!\[)|://|^# (?!\\)|^---', text, re.MULTILINE)
    assert '| init_from | model |' in body and text.count('img src=x onerror=alert(1)') == 3

    for meta in (5, {'tokenizer': 'x'}, checkpoint['meta'] | {'bytes': {'train': 9, 'val': 0}}):
        save_checkpoint(str(folder / 'best.pt'), checkpoint | {'best_val_loss': 1.0, 'meta': meta})
        assert 'damaged' in trained.refuses('export.py', f'--out_dir={folder}', f'--out={folder}/card')


# -----------------------------------------------------------------------------
# llama2.c


class RunC:
    """What llama2.c's run.c does with model.bin and tokenizer.bin, from its documentation."""

    def __init__(self, folder):
        data = (folder / 'model.bin').read_bytes()
        C, hidden, L, self.n_head, self.n_kv_head, vocab_size, self.seq_len = struct.unpack_from('<7i', data)
        self.head_size = C // self.n_head
        kv, V = self.n_kv_head * self.head_size, abs(vocab_size)
        shapes = {'embedding': (V, C), 'norm1': (L, C), 'q': (L, C, C), 'k': (L, kv, C), 'v': (L, kv, C),
                  'o': (L, C, C), 'norm2': (L, C), 'gate': (L, hidden, C), 'down': (L, C, hidden),
                  'up': (L, hidden, C), 'norm': (C,), 'angles': (self.seq_len, self.head_size)}
        if vocab_size < 0:
            shapes['head'] = (V, C)
        floats = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
        parts = floats.split([math.prod(shape) for shape in shapes.values()])
        self.weights = {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}

        data = (folder / 'tokenizer.bin').read_bytes()
        self.pieces, self.scores = [], []
        at = 4
        for _ in range(V):
            score, length = struct.unpack_from('<fi', data, at)
            assert length > 0  # for run.c, reading nothing is an error
            self.scores.append(score)
            self.pieces.append(data[at + 8:at + 8 + length].split(b'\0')[0])
            at += 8 + length
        assert at == len(data) and struct.unpack_from('<i', data)[0] >= max(map(len, self.pieces))
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text):
        ids = [1, self.ids[b' ']] if text else [1]
        for char in text:
            char = char.encode()
            ids += [self.ids[char]] if char in self.ids else [byte + 3 for byte in char]
        while True:
            best = -1e10
            for i, (a, b) in enumerate(itertools.pairwise(ids)):
                merged = self.ids.get(self.pieces[a] + self.pieces[b])
                if merged is not None and self.scores[merged] > best:
                    best, place, token = self.scores[merged], i, merged
            if best == -1e10:
                return ids
            ids[place:place + 2] = [token]

    def heads(self, x, rotate):
        """(T, heads * d) -> (heads, T, d), neighbours rotated as complex numbers"""
        x = x.view(len(x), -1, self.head_size)
        if rotate:
            angles = 10000.0 ** (-torch.arange(0, self.head_size, 2) / self.head_size)
            angles = torch.outer(torch.arange(len(x)), angles)[:, None]
            pairs = torch.view_as_complex(x.view(*x.shape[:2], -1, 2)) * torch.polar(torch.ones_like(angles), angles)
            x = torch.view_as_real(pairs).flatten(2)
        return x.transpose(0, 1)

    def next_token(self, ids):
        w = self.weights
        x = w['embedding'][ids]  # (T, C)
        for i in range(len(w['norm1'])):
            h = F.rms_norm(x, x.shape[1:], w['norm1'][i], 1e-5)
            q, k = self.heads(h @ w['q'][i].T, True), self.heads(h @ w['k'][i].T, True)
            v = self.heads(h @ w['v'][i].T, False)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + y.transpose(0, 1).flatten(1) @ w['o'][i].T
            h = F.rms_norm(x, x.shape[1:], w['norm2'][i], 1e-5)
            x = x + (F.silu(h @ w['gate'][i].T) * (h @ w['up'][i].T)) @ w['down'][i].T
        x = F.rms_norm(x[-1], x.shape[1:], w['norm'], 1e-5)
        return (w.get('head', w['embedding']) @ x).argmax().item()

    def generate(self, ids):
        """Greedy, up to the next bos."""
        ids = [*ids, self.next_token(ids)]
        while ids[-1] != 1 and len(ids) <= self.seq_len:
            ids.append(self.next_token(ids))
        return ids

    def decode(self, ids):
        text = b''
        for before, token in itertools.pairwise(ids):
            piece = self.pieces[token]
            piece = piece.removeprefix(b' ') if before == 1 else piece
            text += bytes([int(piece[3:5], 16)]) if piece.startswith(b'<0x') else piece
        return text.decode('utf-8', 'replace')


@pytest.mark.slow
def test_run_c_generates_our_story(trained):
    """With a tokenizer trained here, which puts no space before a text."""
    folder = trained.path / 'out/llama'
    assert 'inside a character' in trained.run('export.py', '--out_dir=out/llama', '--format=llama2c', '--examples=0')
    run_c = RunC(folder / 'llama2c')
    _, tokenizer, _ = hub.load(str(folder))
    assert all(run_c.pieces[byte + 3] == bytes([byte]) for byte in range(1, 256))
    ours, story = greedy_story(folder, '', 96), run_c.generate([1])
    assert ours[-1] == tokenizer.eos and story[-2:] == [2, 1]
    assert run_c.decode(story[:-1]) == tokenizer.decode(ours)
    ids = run_c.encode('रवि')
    assert ids[0] == 3  # bos and the space before the prompt
    assert run_c.decode([0, *run_c.generate(ids)[1:-1]]) == tokenizer.decode(greedy_story(folder, 'रवि', 96))


@pytest.mark.slow
@pytest.mark.parametrize('shape', [{}, {'tie_weights': False, 'n_kv_head': 2}])
def test_run_c_with_sentencepiece(trained, sentencepiece, shape):
    """Its tokenizer puts a space before a text, as run.c does."""
    folder = random_checkpoint(trained, sentencepiece, **shape)
    trained.run('export.py', f'--out_dir={folder}', '--format=llama2c', '--examples=0')
    run_c = RunC(folder / 'llama2c')
    for prompt in ('', 'Once upon a time, a café', 'चाँद 😀'):
        story, ours = run_c.generate(run_c.encode(prompt)), greedy_story(folder, prompt, 64)
        n = min(len(story) - 1, len(ours))  # random weights may give bos, which ends run.c's, or eos, which ends ours
        assert n > len(sentencepiece.encode(prompt))
        for theirs, token in zip(story[1:n], ours[1:n]):
            piece = sentencepiece.backend.id_to_token(token).replace('▁', ' ').encode()
            assert run_c.pieces[theirs] == piece or token == sentencepiece.eos


@pytest.fixture(scope='module')
def llama2c(trained, sentencepiece_model):
    """A random model as llama2.c saves it, with a story that ends: ckpt.pt and model.bin, each with its tokenizer."""
    from sentencepiece import SentencePieceProcessor
    processor = SentencePieceProcessor(model_file=sentencepiece_model)
    V, C, hidden, L = processor.vocab_size(), 64, 160, 2
    layer = {'attention_norm': (C,), 'attention.wq': (C, C), 'attention.wk': (C // 2, C), 'attention.wv': (C // 2, C),
             'attention.wo': (C, C), 'ffn_norm': (C,), 'feed_forward.w1': (hidden, C), 'feed_forward.w2': (C, hidden),
             'feed_forward.w3': (hidden, C)}
    torch.manual_seed(0)
    weights = {'tok_embeddings': torch.randn(V, C)}
    for name, shape in layer.items():
        for i in range(L):
            weights[f'layers.{i}.{name}'] = 0.3 * torch.randn(shape)
    weights['norm'] = torch.ones(C)
    weights['angles'] = torch.zeros(96, C // 4)
    weights['output'] = torch.randn(V, C)
    weights['output'][:259] = 0  # no bytes, which could be a part of a character

    (trained.path / 'run_c').mkdir()
    (trained.path / 'train_py').mkdir()
    with open(trained.path / 'run_c/tokenizer.bin', 'wb') as f:
        f.write(struct.pack('<i', 20))
        for i in range(V):
            piece = {1: '\n<s>\n', 2: '\n</s>\n'}.get(i, processor.id_to_piece(i)).replace('▁', ' ').encode()
            f.write(struct.pack('<fi', processor.get_score(i), len(piece)) + piece)

    def save():
        with open(trained.path / 'run_c/model.bin', 'wb') as f:
            f.write(struct.pack('<7i', C, hidden, L, 4, 2, -V, 96))
            for weight in weights.values():
                f.write(weight.numpy().tobytes())
    save()
    run_c = RunC(trained.path / 'run_c')
    story = run_c.generate(run_c.encode('Once upon a time'))
    end = next(i for i in range(20, len(story)) if story[i] not in story[:i])
    weights['output'][[1, story[end]]] = weights['output'][[story[end], 1]]  # bos follows instead
    save()
    args = {'dim': C, 'n_layers': L, 'n_heads': 4, 'n_kv_heads': 2, 'vocab_size': V, 'multiple_of': 32,
            'max_seq_len': 96, 'dropout': 0.0}
    state = {f'_orig_mod.{name}.weight': weight for name, weight in weights.items() if name != 'angles'}
    torch.save({'model': state, 'model_args': args, 'iter_num': 7, 'best_val_loss': torch.tensor(1.5), 'config': {}},
               trained.path / 'train_py/ckpt.pt')
    shutil.copy(sentencepiece_model, trained.path / 'train_py/tok700.model')
    return trained


@pytest.mark.slow
def test_models_of_llama2c_are_read_and_exported(llama2c):
    run_c = RunC(llama2c.path / 'run_c')
    story = run_c.generate(run_c.encode('Once upon a time'))
    assert story[-1] == 1 and 20 <= len(story) < 96
    text = run_c.decode(story[:-1])

    def check(model):
        command = ['sample.py', '--start=Once upon a time', '--temperature=0.0', '--out=s.json']
        llama2c.run(*command, f'--init_from={model}')
        row, = llama2c.json('s.json')
        assert (row['story'], row['ended']) == (text, 'eos')

    check('run_c/model.bin')
    check('train_py/ckpt.pt')
    llama2c.run('export.py', '--out_dir=run_c/model.bin', '--out=again', '--format=llama2c', '--examples=0')
    check('again/model.bin')
    assert RunC(llama2c.path / 'again').generate(run_c.encode('Once upon a time')) == story

    llama2c.run('export.py', '--out_dir=train_py/ckpt.pt', '--out=as_hf', '--examples=0')
    check('as_hf')
    gguf = pytest.importorskip('gguf')
    llama2c.run('export.py', '--out_dir=as_hf', '--out=as_gguf', '--format=gguf', '--examples=0')
    fields = gguf.GGUFReader(llama2c.path / 'as_gguf/model.gguf').fields
    assert {fields[f'tokenizer.ggml.{name}_token_id'].contents() for name in ('eos', 'eot')} == {1, 2}
    for options in ({}, {'gguf_file': 'model.gguf'}):
        folder = llama2c.path / ('as_gguf' if options else 'as_hf')
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        ids = torch.tensor([run_c.encode('Once upon a time')])
        ids = model.generate(ids, max_new_tokens=80, do_sample=False, eos_token_id=[1, 2])
        assert ids[0].tolist() == story


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """llama2.c itself: run(folder, prompt) -> the bytes that it prints."""
    source, compiler = os.path.join(os.environ.get('LLAMA2C', ''), 'run.c'), shutil.which('cc')
    if not os.path.exists(source) or not compiler:
        pytest.skip('needs a C compiler, and the folder of run.c in LLAMA2C')
    program = tmp_path_factory.mktemp('run') / 'run'
    subprocess.run([compiler, '-O3', '-o', program, source, '-lm'], check=True)

    def run(folder, prompt):
        command = [program, 'model.bin', '-z', 'tokenizer.bin', '-t', '0', '-n', '0', '-i', prompt]
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True).stdout
    return run


def printed(tokenizer, ids):
    """What run.c prints for these ids: of pieces of one byte, only ASCII and spaces."""
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    text = b''
    for token in ids:
        piece = tokenizer.backend.id_to_token(token)
        if token in (tokenizer.bos, tokenizer.eos):
            piece = b''
        elif '▁' not in tokenizer.backend.get_vocab():
            piece = bytes(byte_of[char] for char in piece)
        elif piece.startswith('<0x'):
            piece = bytes([int(piece[3:5], 16)])
        else:
            piece = piece.replace('▁', ' ').encode()
        if len(piece) > 1 or piece.isspace() or b' ' <= piece <= b'~':
            text += piece
    return text


@pytest.mark.slow
@pytest.mark.parametrize('shape', [None, {}, {'tie_weights': False, 'n_kv_head': 2}])
def test_the_real_run_c(trained, sentencepiece, run, shape):
    """The model trained here, or random ones with SentencePiece, which end at bos in run.c and at eos here."""
    folder = trained.path / 'out/llama' if shape is None else random_checkpoint(trained, sentencepiece, **shape)
    trained.run('export.py', f'--out_dir={folder}', '--format=llama2c', '--examples=0')
    tokenizer = hub.load(str(folder))[1]
    for prompt in ('', 'रवि', 'अमन घर') if shape is None else ('', 'Once upon a time, a café', 'The moon 😀'):
        theirs = run(folder / 'llama2c', prompt).removesuffix(b'\n')
        ours = printed(tokenizer, greedy_story(folder, prompt, 96 if shape is None else 64)).removeprefix(b' ')
        assert theirs == ours or shape is not None and (theirs.startswith(ours) or ours.startswith(theirs))


# -----------------------------------------------------------------------------
# llama.cpp


@pytest.mark.slow
def test_gguf_contains_the_model(trained, tokenizer):
    gguf = pytest.importorskip('gguf')
    folder = random_checkpoint(trained, tokenizer, qk_norm=True)
    trained.run('export.py', f'--out_dir={folder}', '--format=gguf', '--examples=0', '--dtype=float16')
    reader = gguf.GGUFReader(folder / 'gguf/model.gguf')
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields['general.architecture'] == 'qwen3' and fields['qwen3.block_count'] == 3
    assert fields['tokenizer.ggml.eos_token_id'] == tokenizer.eos
    assert fields['tokenizer.ggml.tokens'] == [tokenizer.backend.id_to_token(i) for i in range(tokenizer.vocab_size)]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    weights = hub.load(str(folder))[0].state_dict()
    assert np.array_equal(tensors['blk.1.ffn_down.weight'], weights['blocks.1.mlp.down.weight'].half().numpy())
    modelfile = (folder / 'gguf/Modelfile').read_text(encoding='utf-8')
    assert 'FROM ./model.gguf' in modelfile and 'num_ctx 64' in modelfile


@pytest.mark.slow
@pytest.mark.parametrize('shape', [*(shape for shape in SHAPES if 'relu2' not in shape), 'sentencepiece'])
def test_llama_cpp_generates_our_story(trained, tokenizer, sentencepiece, shape):
    llama_cpp = pytest.importorskip('llama_cpp', reason='pip install llama-cpp-python, which compiles it')
    tokenizer = sentencepiece if shape == 'sentencepiece' else tokenizer
    folder = random_checkpoint(trained, tokenizer, **SHAPES.get(shape, {}))
    trained.run('export.py', f'--out_dir={folder}', '--format=gguf', '--examples=0')
    llama = llama_cpp.Llama(str(folder / 'gguf/model.gguf'), n_ctx=64, n_threads=1, verbose=False)
    for prompt in PROMPTS[:2]:
        ids = llama.tokenize(prompt.encode())
        assert ids == [tokenizer.bos, *tokenizer.encode(prompt)]
        story = list(ids)
        for token in llama.generate(ids, temp=0, repeat_penalty=1.0):
            story.append(token)
            if len(story) == 60 or token == tokenizer.eos:
                break
        n = 20 if 'gpt2' in shape else 60  # llama.cpp looks GELU up in a table of 16 bits
        assert story[:n] == greedy_story(folder, prompt)[:n]


# -----------------------------------------------------------------------------
# refusals


@pytest.mark.slow
@pytest.mark.parametrize('shape, arguments, key', [
    ({'norm': 'layernorm'}, [], 'norm'),
    ({'bias': True, 'qk_norm': True}, [], 'bias'),
    ({'position': 'learned', 'norm': 'layernorm', 'mlp': 'gelu', 'n_kv_head': 2}, ['--format=gguf'], 'n_kv_head'),
    ({'rope_theta': 500.0}, ['--format=llama2c'], 'rope_theta'),
    ({'mlp': 'relu2'}, ['--format=gguf'], 'mlp')])
def test_a_shape_that_the_format_lacks(trained, tokenizer, shape, arguments, key):
    folder = random_checkpoint(trained, tokenizer, **shape)
    assert trained.refuses('export.py', f'--out_dir={folder}', *arguments).startswith(f'export.py: {key} is ')
    assert os.listdir(folder) == ['best.pt']


@pytest.mark.slow
@pytest.mark.parametrize('arguments, message', [
    (['--out_dir=out/nothing'], 'train first'), (['--format=onnx'], 'gguf'), (['--push=kahani'], 'user/'),
    (['--format=llama2c', '--dtype=float16'], 'float32'), (['--out=data/tiny'], 'other files'),
    (['--out=README.md/x'], 'README.md'), (['--out=story.gguf'], 'folder'),
    (['--start=' + 'एक दिन की बात है। ' * 200, '--out=out/long'], 'tokens long')])
def test_refusals(trained, arguments, message):
    (trained.path / 'README.md').write_text('not a folder', encoding='utf-8')
    assert message in trained.refuses('export.py', '--out_dir=out/llama', *arguments)
    assert (trained.path / 'README.md').read_text(encoding='utf-8') == 'not a folder'


@pytest.mark.slow
def test_a_unigram_tokenizer_needs_the_format_hf(trained):
    from tokenizers import Tokenizer as Pipeline
    from tokenizers import models, pre_tokenizers
    pipeline = Pipeline(models.Unigram([('<unk>', 0.0), ('▁', -1.0), ('a', -2.0)], unk_id=0))
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace()
    folder = random_checkpoint(trained, Tokenizer(pipeline.to_str(), '<s>', '</s>'))
    assert 'Unigram' in trained.refuses('export.py', f'--out_dir={folder}', '--format=gguf')
    trained.run('export.py', f'--out_dir={folder}', '--examples=1')
    assert json.loads((folder / 'hf/config.json').read_text())['vocab_size'] == 5

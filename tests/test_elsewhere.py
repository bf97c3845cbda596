"""Models and configs of other projects: nanoGPT's checkpoints, other Transformers classes, the published configs."""

import io
import itertools
import json
import math
import pickle
import shutil
import struct
import zipfile
from dataclasses import fields

import pytest
import torch
import transformers
from conftest import PROJECT

import hub
import tokenizer
from model import GPT, GPTConfig

pytestmark = pytest.mark.slow
SAMPLE = ['sample.py', '--start=एक दिन', '--max_new_tokens=25', '--temperature=0.0']
TRAIN = ['train.py', '--dataset=tiny', '--block_size=64', '--batch_size=4', '--max_iters=2', '--eval_iters=1',
         '--device=cpu']


@pytest.fixture(scope='session')
def tok(prepared):
    return tokenizer.load(str(prepared.path / 'data/tiny'))


@pytest.fixture(scope='session')
def home(prepared, tok):
    """The prepared project with a GPT-2: as a Hugging Face folder in gpt2/, as nanoGPT saves it in nano/ckpt.pt."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=tok.vocab_size, bos_token_id=tok.bos, eos_token_id=tok.eos,
        n_embd=32, n_layer=2, n_head=2, n_positions=64, activation_function='gelu')
    gpt2 = transformers.GPT2LMHeadModel(config)
    for p in gpt2.parameters():
        p.data += 0.1 * torch.randn_like(p)
    gpt2.save_pretrained(prepared.path / 'gpt2')
    tok.save(str(prepared.path / 'gpt2'))

    weights = {}
    for name, p in gpt2.state_dict().items():
        is_linear = '.h.' in name and p.dim() == 2  # GPT2LMHeadModel stores these transposed
        weights[f'_orig_mod.{name}'] = p.t().contiguous() if is_linear else p
    model_args = {'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'block_size': 64, 'bias': True, 'dropout': 0.0,
                  'vocab_size': tok.vocab_size}
    checkpoint = {'model': weights, 'model_args': model_args, 'iter_num': 9, 'config': {'dataset': 'x'}}
    (prepared.path / 'nano').mkdir()
    torch.save(checkpoint, prepared.path / 'nano/ckpt.pt')
    return prepared


def test_a_nanogpt_checkpoint_generates_what_transformers_generates_and_can_be_trained(home, tok):
    assert '--tokenizer=' in home.refuses(*SAMPLE, '--init_from=nano/ckpt.pt')
    expected = home.run(*SAMPLE, '--init_from=gpt2')
    assert home.run(*SAMPLE, '--init_from=nano/ckpt.pt', '--tokenizer=data/tiny/tokenizer.json') == expected
    tok.save(str(home.path / 'nano'))
    assert home.run(*SAMPLE, '--init_from=nano') == expected
    home.run(*TRAIN, '--init_from=nano/ckpt.pt', '--out_dir=out/nano')


@pytest.mark.parametrize('file', ['generation_config.json', 'config.json'])
def test_a_story_ends_where_the_files_of_its_model_say(home, tok, file, tmp_path):
    """Several ids, of which the model generates some. Without eos in the tokenizer's own files."""
    command = [*SAMPLE, f'--init_from={tmp_path}', '--out=s.json']
    shutil.copytree(home.path / 'gpt2', tmp_path, dirs_exist_ok=True)
    home.run(*command)
    long_story = home.json('s.json')[0]
    ends = [tok.vocab_size - 1, *dict.fromkeys(tok.encode(long_story['story'])[8:20])]
    settings = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(settings | {'eos_token_id': ends}))
    if file == 'config.json':
        (tmp_path / 'generation_config.json').unlink()
    home.run(*command)
    story = home.json('s.json')[0]
    assert story['ended'] == 'eos' and long_story['story'].startswith(story['story'])
    assert len(story['story']) < len(long_story['story'])
    home.run('export.py', f'--out_dir={tmp_path}', '--out=kept', '--examples=0')
    assert home.json('kept/generation_config.json')['eos_token_id'] == ends


def test_a_model_of_any_other_class_generates_and_is_evaluated(home, tok):
    config = transformers.GPTNeoConfig(
        vocab_size=tok.vocab_size, bos_token_id=tok.bos, eos_token_id=tok.eos,
        hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=64,
        attention_types=[[['global', 'local'], 1]], window_size=8)
    transformers.GPTNeoForCausalLM(config).save_pretrained(home.path / 'neo')
    tok.save(str(home.path / 'neo'))
    home.run(*SAMPLE, '--init_from=neo', '--num_samples=3', '--out=neo.jsonl')
    assert all(row['story'].startswith('एक दिन') for row in home.jsonl('neo.jsonl'))
    home.run('evaluate.py', '--samples=neo.jsonl', '--checkpoints=neo', '--dataset=tiny', '--loss_tokens=2000',
             '--out_dir=out/neo')
    loss = home.json('out/neo/results.json')['models']['neo']['loss']
    assert loss['val_loss'] == pytest.approx(math.log(1024), abs=0.3)  # its weights are random


@torch.no_grad()
def test_the_weights_are_those_that_transformers_reads(home, tmp_path):
    """Other files beside them do not count. A head that is stored is used, whatever the settings say."""
    from safetensors.torch import load_file, save_file
    shutil.copytree(home.path / 'gpt2', tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / 'model.safetensors')
    save_file({name: weight * 0 for name, weight in weights.items()}, tmp_path / 'optimizer.safetensors')
    save_file(weights | {'lm_head.weight': torch.randn(1024, 32)}, tmp_path / 'model.safetensors', {'format': 'pt'})
    ids = torch.randint(1024, (2, 30))
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    assert torch.allclose(hub.load(str(tmp_path))[0](ids), expected, atol=1e-4)


@pytest.mark.parametrize('config', [
    transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.2),
    transformers.MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4)])
def test_a_class_that_cannot_continue_texts_is_refused(tok, tmp_path, config):
    """BERT sees what follows, and Mamba reads padding."""
    config.vocab_size = tok.vocab_size
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tok.save(str(tmp_path))
    with pytest.raises(SystemExit, match='cannot generate stories'):
        hub.load(str(tmp_path))


def nanogpt(n_tokens):
    """A checkpoint as nanoGPT saves it, with random weights."""
    config = transformers.GPT2Config(vocab_size=n_tokens, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    weights = {}
    for name, p in transformers.GPT2LMHeadModel(config).state_dict().items():
        weights[name] = p.t().contiguous() if '.h.' in name and p.dim() == 2 else p
    args = {'n_layer': 1, 'n_head': 2, 'n_embd': 16, 'block_size': 32, 'bias': True, 'vocab_size': n_tokens}
    return {'model': weights, 'model_args': args, 'iter_num': 9}


def with_optimizer(checkpoint, n_steps):
    """A checkpoint of nanoGPT with the state of its AdamW: exp_avg is twice, exp_avg_sq the square of each weight."""
    weights = {name: weight for name, weight in checkpoint['model'].items() if name != 'lm_head.weight'}
    names = sorted(weights, key=lambda name: weights[name].dim() < 2)  # first the matrices, as nanoGPT numbers them
    state = {}
    for i, name in enumerate(names):
        state[i] = {'step': torch.tensor(9.0), 'exp_avg': 2 * weights[name], 'exp_avg_sq': weights[name] ** 2}
    return checkpoint | {'iter_num': n_steps, 'optimizer': {'state': state, 'param_groups': []}}


def larger(tok, n_tokens):
    """The text of a tokenizer.json: a BPE with so many tokens, of which the first ones are those of tok."""
    spec = json.loads(tok.to_str())
    vocab, merges = spec['model']['vocab'], spec['model']['merges']
    tokens = [token for token in vocab if token not in ('<s>', '</s>')]
    for left, right in itertools.product(reversed(tokens), tokens):
        if len(vocab) == n_tokens:
            return json.dumps(spec)
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            merges.append([left, right])


@pytest.mark.parametrize('n_tokens', [68_096, 256_064])
def test_a_checkpoint_of_regional_tinystories_from_the_hub(home, tok, server, tmp_path, n_tokens):
    """As many tokens as sarvam-1 and SUTRA have. A .pt alone, whose tokenizer has another name."""
    checkpoint = with_optimizer(nanogpt(n_tokens), 3)
    (tmp_path / 'Regional/hindi').mkdir(parents=True)
    path = tmp_path / 'Regional/hindi/hindi_5M.pt'
    torch.save(checkpoint, path)
    (home.path / 'large.json').write_text(larger(tok, n_tokens), encoding='utf-8')
    tokenizer_option = '--tokenizer=large.json'
    assert home.run(*SAMPLE, f'--init_from={path}', tokenizer_option).startswith('एक दिन')
    home.run('export.py', f'--out_dir={path}', tokenizer_option, '--out=large', '--examples=0')
    ids = torch.randint(n_tokens, (2, 32))
    with torch.no_grad():
        logits = hub.load(str(path), tokenizer=str(home.path / 'large.json'))[0](ids)
        assert torch.allclose(hub.load(str(home.path / 'large'))[0](ids), logits, atol=1e-4)

    # the training goes on, with the tokens that the data need, and with the state of the optimizer
    home.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=regional', tokenizer_option)
    env = {'HF_ENDPOINT': server('hub_server.py', folder=str(tmp_path)).url, 'HF_HUB_OFFLINE': '0',
           'HF_HOME': str(tmp_path / 'cache')}
    command = [*TRAIN, '--dataset=regional', '--init_from=Regional/hindi/hindi_5M.pt', '--block_size=32',
               '--max_iters=5', '--log_interval=1', '--learning_rate=0.0', '--beta1=0.0', '--beta2=0.0']
    out = home.run(*command, f'--out_dir=out/{n_tokens}', **env)
    assert 'begins at step 3' in out
    assert [row['step'] for row in home.jsonl(f'out/{n_tokens}/log.jsonl')] == [4, 5]
    if n_tokens < 100_000:
        assert 'raise max_iters' in home.refuses(*command, '--out_dir=out/fresh', '--max_iters=3', **env)
        out = home.run(*command, '--out_dir=out/fresh', '--max_iters=1', '--fresh_optimizer=True', **env)
        assert 'begins at step 0' in out

    trimmed = tokenizer.load(str(home.path / 'data/regional'))
    assert trimmed.vocab_size < 2000
    rows = [json.loads(larger(tok, n_tokens))['model']['vocab'][trimmed.backend.id_to_token(i)] for i in (0, 500, 999)]
    weights = torch.load(home.path / f'out/{n_tokens}/ckpt.pt', weights_only=True)['model']
    expected = checkpoint['model']['transformer.wte.weight'][rows]
    assert torch.equal(weights['wte.weight'][[0, 500, 999]], expected)


def test_the_state_of_an_optimizer_is_that_of_its_weights(home, tok, tmp_path):
    """Of nanoGPT and, with its queries and keys in another order, of llama2.c."""
    config = {'block_size': 32, 'dropout': 0.0, 'lora_rank': 0, 'max_iters': 10, 'fresh_optimizer': False,
              'eval_only': False, 'plan': False}
    args = {'dim': 16, 'n_layers': 2, 'n_heads': 2, 'n_kv_heads': 1, 'vocab_size': 1024, 'max_seq_len': 32}
    shapes = {'tok_embeddings': (1024, 16)}
    for i in range(2):
        shapes |= {f'layers.{i}.attention.wq': (16, 16), f'layers.{i}.attention.wk': (8, 16),
                   f'layers.{i}.attention.wv': (8, 16), f'layers.{i}.attention.wo': (16, 16),
                   f'layers.{i}.feed_forward.w1': (32, 16), f'layers.{i}.feed_forward.w2': (16, 32),
                   f'layers.{i}.feed_forward.w3': (32, 16), f'layers.{i}.attention_norm': (16,),
                   f'layers.{i}.ffn_norm': (16,)}
    weights = {f'{name}.weight': torch.randn(shape) for name, shape in (shapes | {'norm': (16,)}).items()}
    tok.save(str(tmp_path))
    for checkpoint in (nanogpt(1024), {'model': weights, 'model_args': args}):
        torch.save(with_optimizer(checkpoint, 7), tmp_path / 'ckpt.pt')
        model, _, saved = hub.load_for_training(str(tmp_path), tok.backend, 'train', config)
        [adamw] = model.configure_optimizers('adamw', 0.0, 0.0, 0.0, (0.9, 0.95), 0.0, 0)
        adamw.load_state_dict(saved['optimizer'][0])
        assert saved['step'] == 7 and len(adamw.state) == len(list(model.parameters()))
        for parameter, state in adamw.state.items():
            assert torch.equal(state['exp_avg'], 2 * parameter) and torch.equal(state['exp_avg_sq'], parameter ** 2)
    torch.save(checkpoint | {'optimizer': {'state': {}}, 'iter_num': 7}, tmp_path / 'ckpt.pt')
    with pytest.raises(SystemExit, match='does not fit its weights'):
        hub.load_for_training(str(tmp_path), tok.backend, 'train', config)


def test_a_checkpoint_of_train_goes_on_elsewhere(home, stopped):
    """As from the hub: in another out_dir, it repeats what a resumed run does."""
    small = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--max_iters=4', '--log_interval=1', '--lr_decay_iters=4']
    shutil.copytree(stopped, home.path / 'out/here')
    home.run(*TRAIN, *small, '--init_from=resume', '--out_dir=out/here')
    home.run(*TRAIN, *small, f'--init_from={stopped}/ckpt.pt', '--out_dir=out/elsewhere')
    rows = home.jsonl('out/elsewhere/log.jsonl')
    assert [row['step'] for row in rows] == [3, 4]
    assert [row['loss'] for row in rows] == [row['loss'] for row in home.jsonl('out/here/log.jsonl')[-2:]]
    line = home.refuses(*TRAIN, *small, f'--init_from={stopped}/ckpt.pt', '--out_dir=out/m', '--optimizer=muon')
    assert '--fresh_optimizer=True' in line


def header(*numbers, rest=b''):
    return struct.pack('<7i', *numbers) + rest


@pytest.mark.parametrize('name, content, message', [
    ('ckpt.pt', nanogpt(1088), 'contains no tokenizer'),
    ('ckpt.pt', nanogpt(96), 'meta.pkl'),
    ('ckpt.pt', [1, 2], 'contains a list'),
    ('ckpt.pt', torch.zeros(3), 'contains a Tensor'),
    ('ckpt.pt', {'tok_embeddings.weight': torch.zeros(300, 8)}, 'llama2.c'),
    ('ckpt.pt', {'model': {'tok_embeddings.weight': torch.zeros(300, 8)}, 'model_args': {}}, 'not the settings'),
    ('model.bin', b'', 'damaged'),
    ('model.bin', header(64, 160, 2, 4, 2, 300, 64, rest=bytes(999)), 'damaged'),
    ('model.bin', header(2**30, 2**30, 2**30, 1, 1, 2**30, 2**30), 'damaged'),
    ('model.bin', header(64, 160, 2, 0, 2, 300, 64), 'damaged'),
    ('model.bin', header(0x616b3432, 2, 64, 160, 2, 4, 2, rest=bytes(999)), '--version 0'),
    ('pytorch_model.bin', b'PK' + bytes(9999), 'damaged'),
    ('model.gguf', b'GGUF' + bytes(99), 'neither')])
def test_a_foreign_file_is_refused_for_what_it_is(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SystemExit, match=message):
        hub.load(str(path))


def test_the_tokenizer_of_another_model_is_refused(home, tmp_path):
    torch.save(nanogpt(1088), tmp_path / 'ckpt.pt')
    for command in ([*SAMPLE, f'--init_from={tmp_path}'], [*TRAIN, f'--init_from={tmp_path}', '--out_dir=out/foreign'],
                    ['export.py', f'--out_dir={tmp_path}']):
        assert 'contains no tokenizer' in home.refuses(*command)
    shutil.copy(home.path / 'data/tiny/tokenizer.json', tmp_path)  # of 1,024 tokens
    assert '1,088 tokens' in home.refuses(*SAMPLE, f'--init_from={tmp_path}')
    (tmp_path / 'tokenizer.bin').write_bytes(struct.pack('<ifi', 9, 0.0, 2**30) + b'ab')
    assert 'damaged' in home.refuses(*SAMPLE, f'--init_from={tmp_path}', f'--tokenizer={tmp_path}/tokenizer.bin')


# -----------------------------------------------------------------------------
# configs of published systems


def test_a_config_of_tinynews_trains_as_it_says(home):
    model = {'vocab_size': 1024, 'context_length': 64, 'd_embedding': 32, 'd_intermediate': 64, 'n_heads': 2,
             'n_layers': 1, 'qkv_bias': False}
    training = {'peak_lr': 0.01, 'warmup_ratio': 0.1, 'n_epochs': 2, 'batch_size': 64, 'weight_decay': 0.1}
    (home.path / 'tinynews.json').write_text(json.dumps({'model': model, 'train': training}))
    home.run('train.py', 'tinynews.json', '--dataset=tiny', '--out_dir=out/news', '--eval_iters=1', '--log_interval=1',
             '--device=cpu')
    log = home.jsonl('out/news/log.jsonl')
    steps = len(log)
    tokens = home.json('data/tiny/meta.json')['tokens']['train']
    assert (steps - 1) * 64 * 64 < 2 * tokens <= steps * 64 * 64
    highest = max(log, key=lambda row: row['lr'])
    assert highest['step'] == 1 + round(0.1 * steps) and log[-1]['lr'] < 0.0015
    checkpoint = torch.load(home.path / 'out/news/best.pt', weights_only=True)
    args, weights = checkpoint['model_args'], checkpoint['model']
    assert (args['n_embd'], args['n_inner'], args['position'], args['mlp']) == (32, 64, 'learned', 'gelu')
    assert 'blocks.0.attn.qkv.bias' not in weights and 'blocks.0.attn.proj.bias' in weights
    home.run('export.py', '--out_dir=out/news', '--examples=0')
    hf = transformers.AutoModelForCausalLM.from_pretrained(home.path / 'out/news/hf').eval()
    ids = torch.randint(1024, (1, 64))
    with torch.no_grad():
        assert torch.allclose(hf(ids).logits, hub.load(str(home.path / 'out/news'))[0](ids), atol=1e-4)
    for key, value, message in (('vocab_size', 8192, 'vocab_size is 8,192'), ('drop_rate', 0.1, 'drop_rate')):
        (home.path / 'tinynews.json').write_text(json.dumps({'model': model | {key: value}, 'train': training}))
        assert message in home.refuses('train.py', 'tinynews.json', '--dataset=tiny', '--out_dir=out/other')


def tinynews_logits(weights, ids, n_heads):
    """What TinyNews' model computes, by its names. ids: (T,) -> (T, vocab_size)"""
    def norm(x, name):
        variance = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
        normed = (x - x.mean(-1, keepdim=True)) / (variance + 1e-5).sqrt()
        return normed * weights[f'{name}.scale'] + weights[f'{name}.shift']

    def linear(x, name):
        return x @ weights[f'{name}.weight'].T + weights.get(f'{name}.bias', 0)

    T = len(ids)
    x = weights['tok_emb.weight'][ids] + weights['pos_emb.weight'][:T]
    future = torch.ones(T, T).triu(1).bool()
    i = 0
    while f'trf_blocks.{i}.norm1.scale' in weights:
        block = f'trf_blocks.{i}'
        qkv = linear(norm(x, f'{block}.norm1'), f'{block}.att.qkv')
        q, k, v = (part.view(T, n_heads, -1).transpose(0, 1) for part in qkv.chunk(3, -1))  # (heads, T, d)
        scores = (q @ k.transpose(1, 2) / q.size(-1) ** 0.5).masked_fill(future, -torch.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(T, -1), f'{block}.att.proj')
        inner = linear(norm(x, f'{block}.norm2'), f'{block}.ff.layers.0')
        inner = inner * (1 + torch.erf(inner / 2 ** 0.5)) / 2  # GELU
        x = x + linear(inner, f'{block}.ff.layers.2')
        i += 1
    return linear(norm(x, 'final_norm'), 'out_head')


@pytest.mark.parametrize('qkv_bias', [False, True])
def test_a_published_checkpoint_of_tinynews(home, tmp_path, qkv_bias):
    """With the names and shapes of its repository, and random weights; its SentencePiece model lies beside it."""
    import sentencepiece
    from safetensors.torch import save_file
    V, T, C, inner = 400, 64, 32, 48
    shapes = {'tok_emb.weight': (V, C), 'pos_emb.weight': (T, C), 'final_norm.scale': (C,), 'final_norm.shift': (C,),
              'out_head.weight': (V, C)}
    for i in range(2):
        for name, shape in {
                'att.qkv.weight': (3 * C, C), 'att.qkv.bias': (3 * C,), 'att.proj.weight': (C, C),
                'att.proj.bias': (C,), 'ff.layers.0.weight': (inner, C), 'ff.layers.0.bias': (inner,),
                'ff.layers.2.weight': (C, inner), 'ff.layers.2.bias': (C,), 'norm1.scale': (C,), 'norm1.shift': (C,),
                'norm2.scale': (C,), 'norm2.shift': (C,)}.items():
            if qkv_bias or name != 'att.qkv.bias':
                shapes[f'trf_blocks.{i}.{name}'] = shape
    torch.manual_seed(0)
    weights = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    folder = tmp_path / 'small'
    folder.mkdir()
    save_file(weights, folder / 'model.safetensors')
    settings = {'vocab_size': V, 'context_length': T, 'd_embedding': C, 'd_intermediate': inner, 'n_heads': 4,
                'n_layers': 2, 'qkv_bias': qkv_bias}
    (folder / 'config.json').write_text(json.dumps({'model': settings, 'train': {}}))
    assert 'contains no tokenizer' in home.refuses(*SAMPLE, f'--init_from={folder}')
    texts = [row['text'] for row in home.jsonl('data/tiny/stories.jsonl')]
    with open(folder / 'tinynewstokenizer400.model', 'wb') as f:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=f, vocab_size=V, model_type='bpe', byte_fallback=True,
            user_defined_symbols=['</h>'], minloglevel=2)

    model, tok, _ = hub.load(str(folder))
    ids = torch.randint(V, (T,))
    with torch.no_grad():
        assert torch.allclose(model(ids[None])[0], tinynews_logits(weights, ids, 4), atol=1e-4)
    assert (tok.bos, tok.eos) == (1, 2)
    start = [*SAMPLE, '--max_new_tokens=9', f'--init_from={folder}']
    story = home.run(*start)
    if qkv_bias:
        return
    assert home.run(*start, f'--tokenizer={folder}/tinynewstokenizer400.model') == story
    home.run('export.py', f'--out_dir={folder}', '--out=news_hf', '--examples=0')
    hf = transformers.AutoModelForCausalLM.from_pretrained(home.path / 'news_hf').eval()
    with torch.no_grad():
        assert torch.allclose(hf(ids[None]).logits[0], tinynews_logits(weights, ids, 4), atol=1e-4)
    home.run('evaluate.py', '--exam=True', '--language=hindi', f'--checkpoints={folder}', '--out_dir=out/exam')
    [score] = home.json('out/exam/results.json')['exam'].values()
    assert 0.3 < score['hindi']['all']['mean'] < 0.7


@pytest.mark.parametrize('name, vocab_size, millions', [
    ('lecarnet_3m', 50262, 3.7), ('lecarnet_8m', 50262, 8.5), ('lecarnet_21m', 50262, 21.3),
    ('tinynews_3m', 8192, 2.9), ('tinynews_11m', 8192, 10.5), ('tinynews_28m', 8192, 27.6),
    ('tinynews_59m', 8192, 58.9),
    ('tinystories_15m', 32000, 15.2), ('regional', 68096, 54.3)])
def test_a_published_config_gives_a_model_of_the_published_size(project, name, vocab_size, millions):
    block, here, _ = (PROJECT / 'train.py').read_text(encoding='utf-8').partition('\nhere = ')
    rest = "'.'\nexec(open('configurator.py', encoding='utf-8').read())\nprint(json.dumps(config))"
    (project.path / 'show.py').write_text(block + here + rest, encoding='utf-8')
    config = json.loads(project.run('show.py', f'config/train_{name}.py'))
    model_args = {field.name: config[field.name] for field in fields(GPTConfig) if field.name in config}
    model_args['vocab_size'] = vocab_size
    with torch.device('meta'):
        model = GPT(GPTConfig(**model_args))
    assert model.n_params() / 1e6 == pytest.approx(millions, abs=0.06)


# -----------------------------------------------------------------------------
# broken and hostile files


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


@pytest.fixture
def load(tmp_path, tok):
    """load({'best.pt': content, …}) -> the line with which hub.load fails for a folder of these files."""
    def load(files):
        folder = tmp_path / 'model'
        folder.mkdir()
        tok.save(str(folder))
        for name, content in files.items():
            if isinstance(content, bytes):
                (folder / name).write_bytes(content)
            elif name.endswith('.pt'):
                torch.save(content, folder / name)
            else:
                (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(SystemExit) as stopped:
            hub.load(str(folder))
        assert '\n' not in str(stopped.value)
        assert not (tmp_path / 'done').exists()  # no code was run
        return str(stopped.value)
    return load


@pytest.fixture
def checkpoint(tok):
    """A whole checkpoint of train.py."""
    model = GPT(GPTConfig(vocab_size=tok.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=32))
    return {'model_args': vars(model.config), 'model': model.state_dict(), 'tokenizer': tok.state()}


@pytest.mark.parametrize('change', [
    {'model_args': {'n_foo': 3}}, {'model_args': [1]}, {'model': {'a': 'b'}}, {'model': {}}, {'lora': {'base': 'gpt2'}},
    {'tokenizer': {'spec': '{}', 'bos': '<s>', 'eos': '</s>'}}])
def test_a_checkpoint_with_a_wrong_part(load, checkpoint, change):
    load({'best.pt': checkpoint | change})


@pytest.mark.parametrize('content', [b'', b'PK\3\4 half a file', {'weights': torch.zeros(3)}])
def test_a_file_that_is_no_checkpoint(load, content):
    load({'best.pt': content})


def test_a_checkpoint_with_code(load, checkpoint, tmp_path):
    assert 'code' in load({'best.pt': checkpoint | {'more': Bomb(tmp_path / 'done')}})


def test_a_plain_pickle(load, tmp_path):
    load({'best.pt': pickle.dumps(Bomb(tmp_path / 'done'))})


def test_lora_on_a_model_that_it_does_not_fit(load, checkpoint, home):
    lora = {'base': str(home.path / 'gpt2'), 'rank': 2, 'alpha': 1.0, 'dropout': 0.0}
    assert 'fit' in load({'best.pt': checkpoint | {'lora': lora, 'model': {}}})


def test_lora_on_itself(load, checkpoint, tmp_path):
    lora = {'base': str(tmp_path / 'model'), 'rank': 2, 'alpha': 1.0, 'dropout': 0.0}
    load({'best.pt': checkpoint | {'lora': lora}})


def test_a_vocabulary_that_is_too_small(load, checkpoint):
    model = GPT(GPTConfig(**checkpoint['model_args'] | {'vocab_size': 300}))
    smaller = {'model_args': vars(model.config), 'model': model.state_dict()}
    assert '300 tokens' in load({'best.pt': checkpoint | smaller})


def test_lora_in_a_circle(tmp_path, checkpoint):
    for name, base in (('a', 'b'), ('b', 'c'), ('c', 'a')):
        (tmp_path / name).mkdir()
        lora = {'base': str(tmp_path / base), 'rank': 2, 'alpha': 1.0, 'dropout': 0.0}
        torch.save(checkpoint | {'lora': lora}, tmp_path / name / 'best.pt')
    with pytest.raises(SystemExit, match='itself'):
        hub.load(str(tmp_path / 'a'))


@pytest.mark.parametrize('lora', [
    5, {'base': ['x'], 'rank': 2, 'alpha': 1.0, 'dropout': 0.0},
    {'base': 'x', 'rank': 10**9, 'alpha': 1.0, 'dropout': 0.0},
    {'base': 'x', 'rank': 2, 'alpha': 'x', 'dropout': 0.0}, {'base': 'x', 'rank': 2, 'alpha': 1.0, 'dropout': 7.0}])
def test_impossible_lora(load, checkpoint, lora):
    assert 'LoRA' in load({'best.pt': checkpoint | {'lora': lora}})


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize('change, message', [
    ({'config': nested(40)}, 'nested'), ({'config': {'a': {'b': nested(19)}}}, 'nested'),
    ({'model_args': {'n_layer': 10**6}}, 'it must be at most'), ({'model_args': {'n_layer': 900}}, 'weights'),
    ({'model_args': {'n_embd': 2**16, 'n_head': 2}}, 'weights'), ({'model_args': {'vocab_size': 2**24}}, 'weights'),
    ({'model_args': {'block_size': 2**40}}, 'it must be at most'), ({'model_args': {'n_layer': 1.5}}, 'n_layer is 1.5'),
    ({'model_args': {'norm_eps': 'x'}}, 'norm_eps'), ({'model_args': {'dropout': math.nan}}, 'dropout is nan'),
    ({'model_args': {'mlp': ['gelu']}}, 'mlp'), ({'model_args': {5: 5}}, 'not the settings'),
    ({'model': {5: torch.zeros(10**6)}}, 'weights'), ({'tokenizer': 5}, 'tokenizer'),
    ({'tokenizer': {'spec': 5, 'bos': '<s>', 'eos': '</s>'}}, 'tokenizer'),
    ({'tokenizer': {'spec': '[' * 10**6, 'bos': '<s>', 'eos': '</s>'}}, 'tokenizer'),
    ({'more': torch.zeros(1).expand(10**12)}, 'than are stored'), ({'more': {1: {2, 3}}}, 'could run code'),
    ({'model_args': {'settings': {'model_type': 'gpt_neo', 'num_layers': 10**6}}}, 'fits in no memory'),
    ({'model_args': {'settings': {'model_type': 'gpt_neo', 'attn_implementation': 'evil/kernel'}}}, 'a kernel on'),
    ({'model_args': {'settings': {'model_type': 'gpt_neo', 'x': torch.zeros(3)}}}, 'cannot open it'),
    ({'model_args': {'settings': {'model_type': 'gpt_neo'}, 'block_size': 'x'}}, 'cannot open it'),
    ({'model_args': {'settings': {'model_type': 'gpt_neo', 'hidden_size': 2**20}}}, 'cannot open it'),
    ({'more': bytearray(9)}, 'could run code'), ({'more': torch.zeros(9).to_sparse()}, 'could run code')])
def test_a_hostile_checkpoint(load, checkpoint, change, message, capfd):
    if change.get('model_args'):
        change = {'model_args': checkpoint['model_args'] | change['model_args']}
    assert message in load({'best.pt': checkpoint | change}) + capfd.readouterr().err  # check() prints its line


def repacked(content, **changes):
    """The bytes of torch.save, with some files of the archive replaced, by a function, and compressed."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            change = changes.get(name.rpartition('/')[2].replace('.', '_'))
            target.writestr(name, change(data) if change else data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def test_a_compressed_checkpoint(load, checkpoint):
    assert 'larger than the file' in load({'best.pt': repacked(checkpoint | {'more': torch.zeros(10**7)})})


@pytest.mark.parametrize('pickled', [
    b'\x80\x02cbuiltins\nbytearray\n(\x8a\x05\x00\xe4\x0bT\x02tR.',  # 10**10 bytes
    b'\x80\x02ctorch\nFloatTensor\n(\x8a\x05\x00\xe4\x0bT\x02tR.', b'\x80\x02' + b']' * 10**5,
    b'\x80\x02' + b'(' * 10**6])
def test_a_pickle_that_fills_the_memory(load, checkpoint, pickled, tmp_path):
    """In the archive of torch.save, and as the older plain pickle."""
    assert 'cannot be loaded' in load({'best.pt': repacked(checkpoint, data_pkl=lambda data: pickled)})
    shutil.rmtree(tmp_path / 'model')
    assert 'cannot be loaded' in load({'best.pt': pickled})


def state_of(name, value):
    """A change of one tensor in the state of the first optimizer."""
    def change(checkpoint):
        state = checkpoint['optimizer'][0]['state']
        state[0] = state[0] | {name: value}
    return change


def with_value(*keys, value):
    """A change of checkpoint[key][key]…"""
    def change(checkpoint):
        inner = checkpoint
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
    return change


RESUME = {
    'step of text': with_value('step', value='x'), 'negative step': with_value('step', value=-10**9),
    'huge step': with_value('step', value=10**30), 'step after the end': with_value('step', value=10**6),
    'loss of text': with_value('best_val_loss', value='x'), 'negative loss': with_value('best_val_loss', value=-1.0),
    'NaN as loss': with_value('best_val_loss', value=math.nan), 'no config': with_value('config', value={}),
    'batch_size of text': with_value('config', 'batch_size', value='x'), 'no meta': with_value('meta', value={}),
    'tokens of text': with_value('meta', 'tokens', value='x'), 'tokenizer': with_value('tokenizer', value={'spec': 5}),
    'weights': with_value('model', value=5), 'weight of text': with_value('model', 'norm.weight', value='x'),
    'another shape': with_value('model', 'norm.weight', value=torch.zeros(3)),
    'model_args': with_value('model_args', 'n_layer', value='x'), 'guard': with_value('guard', value=5),
    'guard of text': with_value('guard', value=(['x'], 0, 0, 0, 0)), 'optimizer': with_value('optimizer', value=[5]),
    'no optimizers': with_value('optimizer', value=[]), 'empty optimizer': with_value('optimizer', value=[{}]),
    'groups': with_value('optimizer', value=[{'state': {}, 'param_groups': [5]}]),
    'moment of text': state_of('exp_avg', 'x'), 'moment of another shape': state_of('exp_avg_sq', torch.zeros(3)),
    'unknown moment': state_of('more', torch.zeros(3)), 'lora': with_value('lora', value=5)}


@pytest.fixture(scope='session')
def stopped(home):
    """The content of a ckpt.pt after two steps."""
    home.run(*TRAIN, '--out_dir=out/stopped', '--n_layer=1', '--n_head=2', '--n_embd=32')
    return home.path / 'out/stopped'


@pytest.mark.parametrize('name', RESUME)
def test_a_hostile_checkpoint_on_resume(home, stopped, name, tmp_path):
    checkpoint = torch.load(stopped / 'ckpt.pt', weights_only=True)
    RESUME[name](checkpoint)
    shutil.copytree(stopped, tmp_path / 'run')
    torch.save(checkpoint, tmp_path / 'run/ckpt.pt')
    before = (tmp_path / 'run/log.jsonl').read_bytes()
    command = [*TRAIN, '--n_layer=1', '--n_head=2', '--n_embd=32', '--init_from=resume', '--max_iters=4']
    line = home.refuses(*command, f'--out_dir={tmp_path}/run')
    assert 'ckpt.pt' in line and (tmp_path / 'run/log.jsonl').read_bytes() == before


LLAMA = {'model_type': 'llama', 'vocab_size': 1024, 'max_position_embeddings': 32, 'num_hidden_layers': 1,
         'num_attention_heads': 2, 'hidden_size': 32, 'intermediate_size': 64, 'rms_norm_eps': 1e-5}


@pytest.mark.parametrize('config', [
    '{"model_type": ', [1], {'model_type': 'llama'},
    LLAMA, LLAMA | {'hidden_size': '32'}, LLAMA | {'num_attention_heads': 0}])
def test_a_broken_hugging_face_folder(load, config):
    load({'config.json': config})


def test_a_hugging_face_folder_with_a_pickle_bomb(load, tmp_path):
    load({'config.json': LLAMA, 'pytorch_model.bin': pickle.dumps(Bomb(tmp_path / 'done'))})


def test_a_hugging_face_folder_with_code(load, tmp_path):
    code = f'open({str(tmp_path / "done")!r}, "w")\nclass M:\n    pass\n'
    config = {'model_type': 'own', 'auto_map': {'AutoConfig': 'own.M', 'AutoModelForCausalLM': 'own.M'}}
    assert 'code' in load({'config.json': config, 'own.py': code})

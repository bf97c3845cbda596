"""Models and configs of other projects: nanoGPT's checkpoints, Transformers' other classes, the recipes by their names."""

import json
import math
import pickle
import runpy

import pytest
import torch
import transformers
from conftest import PROJECT

from checkpoint import load
from model import GPT
from tokenizer import load as load_tokenizer

TELL = ['sample.py', '--start=एक दिन', '--max_new_tokens=25', '--temperature=0.0']
TRAIN = ['train.py', '--dataset=tiny', '--block_size=64', '--batch_size=4', '--max_iters=2', '--eval_iters=1', '--eval_interval=2', '--device=cpu']


@pytest.fixture(scope='module')
def home(prepared):
    """The prepared project with one GPT-2 as Hugging Face has it in gpt2/ and as nanoGPT has it in nano/ckpt.pt, and a GPT-Neo in neo/."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(prepared.path / 'data/tiny'))
    vocab = {'vocab_size': tokenizer.vocab_size, 'bos_token_id': tokenizer.bos, 'eos_token_id': tokenizer.eos}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**vocab, n_embd=32, n_layer=2, n_head=2, n_positions=64, activation_function='gelu'))
    for p in theirs.parameters():
        p.data += 0.1 * torch.randn_like(p)
    theirs.save_pretrained(prepared.path / 'gpt2')
    weights = {f'_orig_mod.{name}': p.t().contiguous() if '.h.' in name and p.dim() == 2 else p for name, p in theirs.state_dict().items()}
    args = {'n_layer': 2, 'n_head': 2, 'n_embd': 32, 'block_size': 64, 'bias': True, 'vocab_size': tokenizer.vocab_size, 'dropout': 0.0}
    (prepared.path / 'nano').mkdir()
    torch.save({'model': weights, 'model_args': args, 'iter_num': 9, 'config': {'dataset': 'x'}}, prepared.path / 'nano/ckpt.pt')
    transformers.GPTNeoForCausalLM(transformers.GPTNeoConfig(
        **vocab, hidden_size=32, num_layers=2, num_heads=2, attention_types=[[['global', 'local'], 1]], window_size=8, max_position_embeddings=64),
    ).save_pretrained(prepared.path / 'neo')
    for folder in ('gpt2', 'neo'):
        tokenizer.save(str(prepared.path / folder))
    return prepared


def test_a_nanogpt_checkpoint(home):
    """It tells what Hugging Face's folder of the same weights tells, by a tokenizer that is named or lies beside it; and it learns."""
    assert '--tokenizer=' in home.refuses(*TELL, '--init_from=nano/ckpt.pt')
    told = home.run(*TELL, '--init_from=gpt2')
    assert home.run(*TELL, '--init_from=nano/ckpt.pt', '--tokenizer=data/tiny/tokenizer.json') == told
    load_tokenizer(str(home.path / 'data/tiny')).save(str(home.path / 'nano'))
    assert home.run(*TELL, '--init_from=nano') == told
    home.run(*TRAIN, '--init_from=nano/ckpt.pt', '--out_dir=out/nano')


def test_any_other_model(home):
    """A GPT-Neo tells stories and is measured, but is not trained."""
    home.run(*TELL, '--init_from=neo', '--num_samples=3', '--out=neo.jsonl')
    assert all(row['story'].startswith('एक दिन') for row in home.jsonl('neo.jsonl'))
    home.run('evaluate.py', '--samples=neo.jsonl', '--checkpoints=neo', '--dataset=tiny', '--loss_tokens=2000', '--out_dir=out/neo')
    loss = home.json('out/neo/results.json')['models']['neo']['loss']
    assert loss['val_loss'] == pytest.approx(math.log(1024), abs=0.3)  # it knows nothing
    assert 'Llama' in home.refuses(*TRAIN, '--init_from=neo', '--out_dir=out/other')


def test_a_config_of_tinynews(home):
    theirs = {'model': {'vocab_size': 1024, 'context_length': 64, 'd_embedding': 32, 'd_intermediate': 64, 'n_heads': 2, 'n_layers': 1, 'qkv_bias': False},
              'train': {'peak_lr': 0.01, 'warmup_ratio': 0.1, 'n_epochs': 2, 'batch_size': 64, 'weight_decay': 0.1}}
    (home.path / 'theirs.json').write_text(json.dumps(theirs), encoding='utf-8')
    home.run('train.py', 'theirs.json', '--dataset=tiny', '--out_dir=out/news', '--eval_iters=1', '--log_interval=1', '--device=cpu')
    log, tokens = home.jsonl('out/news/log.jsonl'), home.json('data/tiny/meta.json')['tokens']['train']
    steps = len(log)
    assert (steps - 1) * 64 * 64 < 2 * tokens <= steps * 64 * 64
    assert max(log, key=lambda row: row['lr'])['step'] == 1 + round(0.1 * steps) and log[-1]['lr'] < 0.0015
    checkpoint = torch.load(home.path / 'out/news/best.pt', weights_only=True)
    args = checkpoint['model_args']
    assert (checkpoint['config']['max_iters'], checkpoint['config']['warmup_iters']) == (steps, round(0.1 * steps))
    assert (args['n_embd'], args['n_inner'], args['position'], args['mlp'], args['tie_weights']) == (32, 64, 'learned', 'gelu', False)
    for text in ('{"n_layer": 2}', '{"model": '):
        (home.path / 'wrong.json').write_text(text, encoding='utf-8')
        assert 'wrong.json, line 1: ' in home.refuses('train.py', 'wrong.json')


@pytest.mark.parametrize('name, vocab_size, size', [
    ('lecarnet_3m', 50262, 3.7), ('lecarnet_8m', 50262, 8.5), ('lecarnet_21m', 50262, 21.3), ('tinystories_15m', 32000, 15.2),
    ('tinynews_3m', 8192, 2.9), ('tinynews_11m', 8192, 10.5), ('tinynews_28m', 8192, 27.6), ('tinynews_59m', 8192, 58.9), ('regional', 68096, 54.3)])
def test_published_sizes(name, vocab_size, size, monkeypatch):
    """The configs by name give models of the sizes that their systems publish."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr('sys.argv', ['train.py', f'config/train_{name}.py', '--dataset=none'])
    with pytest.raises(SystemExit, match='data/none') as stopped:  # behind the config
        runpy.run_path('train.py')
    frame = stopped.value.__traceback__
    while 'config' not in frame.tb_frame.f_globals:
        frame = frame.tb_next
    config = frame.tb_frame.f_globals['config']
    with torch.device('meta'):
        model = GPT(vocab_size=vocab_size, **{key: config[key] for key in (
            'block_size', 'n_layer', 'n_head', 'n_embd', 'n_kv_head', 'n_inner', 'norm', 'position', 'mlp', 'bias', 'tie_weights')})
    assert model.n_params() / 1e6 == pytest.approx(size, abs=0.06)


def test_broken_and_hostile_files_end_in_a_line(home, tmp_path):
    """Whatever is wrong with a model's files is said in one line, and no code from them is run."""
    tokenizer, done = load_tokenizer(str(home.path / 'data/tiny')), tmp_path / 'done'
    model = GPT(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=32)
    whole = {'model_args': model.args, 'model': model.state_dict(), 'tokenizer': tokenizer.state()}
    lora = {'base': str(home.path / 'gpt2'), 'rank': 2, 'alpha': 1.0, 'dropout': 0.0}
    llama = {'model_type': 'llama', 'vocab_size': tokenizer.vocab_size, 'max_position_embeddings': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2,
             'hidden_size': 32, 'intermediate_size': 64, 'rms_norm_eps': 1e-5}

    class Bomb:
        def __reduce__(self):
            return done.touch, ()

    def said_of(content, file='best.pt', **others):
        folder = tmp_path / f'model{len(list(tmp_path.iterdir()))}'
        folder.mkdir()
        tokenizer.save(str(folder))
        for name, data in ({file: content} | others).items():
            if isinstance(data, bytes):
                (folder / name).write_bytes(data)
            elif name.endswith('.pt'):
                torch.save(data, folder / name)
            else:
                (folder / name).write_text(data if isinstance(data, str) else json.dumps(data), encoding='utf-8')
        with pytest.raises(SystemExit) as stopped:
            load(str(folder))
        assert '\n' not in str(stopped.value) and not done.exists()
        return str(stopped.value)

    for content in (b'', b'PK\3\4 half a file', model.state_dict(), whole | {'model_args': {'n_foo': 3}}, whole | {'model_args': [1]},
                    whole | {'model': {'a': 'b'}}, whole | {'tokenizer': {'spec': '{}', 'bos': '<s>', 'eos': '</s>'}}, whole | {'lora': {'base': 'gpt2'}}):
        said_of(content)
    assert 'could run code' in said_of(whole | {'more': Bomb()})
    assert 'other than tensors' in said_of(pickle.dumps(Bomb()))
    assert 'do not fit' in said_of(whole | {'lora': lora, 'model': {}, 'model_args': model.args | {'dropout': 0.0}})
    itself = str(tmp_path / f'model{len(list(tmp_path.iterdir()))}')
    assert 'recursion' in said_of(whole | {'lora': lora | {'base': itself}})
    for config in ('{"model_type": ', [1], {'model_type': 'llama'}, llama, llama | {'hidden_size': '32'}, llama | {'num_attention_heads': 0}):
        said_of(config, 'config.json')
    assert 'other than tensors' in said_of(llama, 'config.json', **{'pytorch_model.bin': pickle.dumps(Bomb())})
    own = f'open({str(done)!r}, "w")\nclass M:\n    pass\n'
    mapped = {'model_type': 'own', 'auto_map': {'AutoConfig': 'own.M', 'AutoModelForCausalLM': 'own.M'}}
    assert 'custom code' in said_of(mapped, 'config.json', **{'own.py': own})
    less = GPT(**model.args | {'vocab_size': 300})
    assert '300 tokens' in said_of(whole | {'model_args': less.args, 'model': less.state_dict()})

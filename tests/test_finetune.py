"""Fine-tuning with LoRA through the command lines: what learns, what is saved, what it tells."""

import csv
import os
import shutil

import numpy as np
import pytest
import torch
import transformers

from checkpoint import load
from model import GPT
from tokenizer import load as load_tokenizer

pytest.importorskip('peft')
TUNE = ['train.py', 'config/finetune_gpt2.py', '--dataset=tiny', '--init_from=base', '--block_size=32', '--batch_size=4', '--gradient_accumulation_steps=2',
        '--max_iters=12', '--warmup_iters=1', '--eval_interval=6', '--eval_iters=8', '--log_interval=1', '--learning_rate=2e-2', '--lora_alpha=64.0',
        '--dtype=float32', '--device=cpu']
RESUME = [*TUNE, '--init_from=resume']


@pytest.fixture(scope='module')
def home(prepared):
    """The prepared project with a GPT-2 of random weights in base/ and what LoRA makes of it in out/gpt2 and, merged, in out/merged."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(prepared.path / 'data/tiny'))
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=64, n_layer=2, n_head=2, n_positions=64, initializer_range=0.1)
    theirs = transformers.GPT2LMHeadModel(config)
    theirs.save_pretrained(prepared.path / 'base')
    tokenizer.save(str(prepared.path / 'base'))
    out = prepared.run(*TUNE)
    assert 'of which 16,384 learn' in out  # rank 8 × (64 + 192, 64 + 64, 64 + 256, 256 + 64) × 2 layers
    prepared.run(*TUNE, '--out_dir=out/merged', '--merge_lora=True', '--lora_dropout=0.0')
    return prepared


@pytest.fixture
def here(home, monkeypatch):
    """The base is named relative to the project."""
    monkeypatch.chdir(home.path)
    return home


def test_the_adapters_alone_learn_and_are_saved(here):
    log = here.jsonl('out/gpt2/log.jsonl')
    assert log[-1]['loss'] < log[0]['loss'] - 0.3
    state = torch.load('out/gpt2/ckpt.pt', weights_only=True)
    assert all('.lora_' in name for name in state['model']) and len(state['model']) == 2 * 4 * 2
    assert len(state['optimizer'][0]['state']) == 16
    assert os.path.getsize('out/gpt2/best.pt') < os.path.getsize('out/merged/best.pt') / 2  # of so small a model even the tokenizer counts
    base, tuned = load('base')[0], load('out/gpt2')[0]
    assert isinstance(tuned, GPT) and tuned.state_dict().keys() == base.state_dict().keys() and tuned.args['block_size'] == 32
    for name, weight in tuned.state_dict().items():
        adapted = name.endswith(('qkv.weight', 'proj.weight', 'up.weight', 'down.weight'))
        assert torch.equal(weight, base.state_dict()[name][:len(weight)]) != adapted, name


def test_merged_equals_unmerged(here):
    from checkpoint import restore
    checkpoint = torch.load('out/gpt2/best.pt', weights_only=True)
    ids = torch.randint(300, (3, 32))
    with torch.no_grad():
        apart = restore(checkpoint, 'out/gpt2/best.pt').eval()(ids)
        assert torch.allclose(apart, load('out/gpt2')[0](ids), atol=1e-5)
        assert not torch.allclose(apart, load('base')[0](ids), atol=1e-2)
    assert 'lora' not in torch.load('out/merged/best.pt', weights_only=True)
    tell = ['sample.py', '--start=एक दिन', '--max_new_tokens=20', '--temperature=0.0']
    shutil.move('base', 'elsewhere')  # the merged one stands by itself
    assert here.run(*tell, '--out_dir=out/merged').startswith('एक दिन')
    with pytest.raises(SystemExit, match='base'):
        load('out/gpt2')
    shutil.move('elsewhere', 'base')
    assert here.run(*tell, '--out_dir=out/gpt2').startswith('एक दिन')


def test_two_processes_equal_one_and_one_goes_on(here):
    more = [*TUNE, '--lora_dropout=0.0', '--lr_decay_iters=12', '--out_dir=out/two']
    here.run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *more, '--max_iters=6')
    here.run(*more, '--init_from=resume', '--merge_lora=True')
    one, two = ([row['loss'] for row in here.jsonl(f'out/{name}/log.jsonl')] for name in ('merged', 'two'))
    assert one == pytest.approx(two, abs=1e-4)
    one, two = (load(f'out/{name}')[0].state_dict() for name in ('merged', 'two'))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    assert 'lora_rank 8, here 4' in here.refuses(*more, '--init_from=resume', '--lora_rank=4')
    assert '--init_from=gpt2' in here.refuses(*TUNE, '--init_from=scratch', '--out_dir=out/other')


def test_csv_with_markers(project):
    """Tiny Story Generator's stories: a CSV whose texts bring their own beginnings and ends, which the tokenizer then sets."""
    texts = [f'Once there was a cat of {i} years.\nIt said <|endoftext|> and slept.' for i in range(40)]
    with open(project.path / 's.csv', 'w', encoding='utf-8', newline='') as f:
        csv.writer(f).writerows([['', 'text'], *([i, f'<|startoftext|> {text} <|endoftext|>'] for i, text in enumerate(texts))])
    project.run('prepare.py', '--source=s.csv', '--dataset=t', '--vocab_size=300', '--val_source=s.csv')
    tokenizer, ids = load_tokenizer(str(project.path / 'data/t')), np.fromfile(project.path / 'data/t/train.bin', '<u2')
    assert [tokenizer.decode(part[1:]) for part in np.split(ids, np.flatnonzero(ids == tokenizer.eos) + 1)[:-1]] == texts

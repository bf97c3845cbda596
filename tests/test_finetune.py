"""Fine-tuning with LoRA through the command line: what is trained, what is saved, what it generates."""

import csv
import os
import shutil

import numpy as np
import pytest
import torch
import transformers

import hub
from model import GPT
from tokenizer import load as load_tokenizer

pytest.importorskip('peft')
pytestmark = pytest.mark.slow
FINETUNE = ['train.py', 'config/finetune_gpt2.py', '--dataset=tiny', '--init_from=base', '--block_size=32',
            '--batch_size=4', '--gradient_accumulation_steps=2', '--max_iters=12', '--warmup_iters=1',
            '--eval_interval=6', '--eval_iters=8', '--log_interval=1', '--learning_rate=2e-2', '--lora_alpha=64.0',
            '--dtype=float32', '--device=cpu']


@pytest.fixture(scope='module')
def home(prepared):
    """The prepared project with a random GPT-2 in base, LoRA adapters for it in out/gpt2, merged ones in out/merged."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(prepared.path / 'data/tiny'))
    config = transformers.GPT2Config(vocab_size=tokenizer.vocab_size, n_embd=64, n_layer=2, n_head=2, n_positions=64,
                                     initializer_range=0.1)
    transformers.GPT2LMHeadModel(config).save_pretrained(prepared.path / 'base')
    tokenizer.save(str(prepared.path / 'base'))
    out = prepared.run(*FINETUNE)
    assert '16,384' in out  # rank 8 × (64 + 192, 64 + 64, 64 + 256, 256 + 64) × 2 layers
    prepared.run(*FINETUNE, '--out_dir=out/merged', '--merge_lora=True', '--lora_dropout=0.0')
    return prepared


@pytest.fixture
def here(home, monkeypatch):
    """The base model is named relative to the project."""
    monkeypatch.chdir(home.path)
    return home


def test_only_the_adapters_are_trained_and_saved(here):
    log = here.jsonl('out/gpt2/log.jsonl')
    assert log[-1]['loss'] < log[0]['loss'] - 0.3
    checkpoint = torch.load('out/gpt2/ckpt.pt', weights_only=True)
    assert len(checkpoint['model']) == 2 * 4 * 2 and all('.lora_' in name for name in checkpoint['model'])
    assert len(checkpoint['optimizer'][0]['state']) == 16
    assert os.path.getsize('out/gpt2/best.pt') < os.path.getsize('out/merged/best.pt') / 2

    base, tuned = hub.load('base')[0], hub.load('out/gpt2')[0]
    assert isinstance(tuned, GPT) and tuned.config.block_size == 32
    assert tuned.state_dict().keys() == base.state_dict().keys()
    for name, weight in tuned.state_dict().items():
        adapted = name.endswith(('qkv.weight', 'proj.weight', 'up.weight', 'down.weight'))
        assert torch.equal(weight, base.state_dict()[name][:len(weight)]) != adapted, name


def test_merged_weights_equal_adapters(here):
    path = 'out/gpt2/best.pt'
    checkpoint = torch.load(path, weights_only=True)
    ids = torch.randint(300, (3, 32))
    with torch.no_grad():
        logits = hub.restore(checkpoint, path).eval()(ids)
        assert torch.allclose(logits, hub.load('out/gpt2')[0](ids), atol=1e-5)
        assert not torch.allclose(logits, hub.load('base')[0](ids), atol=1e-2)
    assert 'lora' not in torch.load('out/merged/best.pt', weights_only=True)


def test_a_merged_checkpoint_needs_no_base_model(here):
    command = ['sample.py', '--start=एक दिन', '--max_new_tokens=20', '--temperature=0.0']
    shutil.move('base', 'elsewhere')
    assert here.run(*command, '--out_dir=out/merged').startswith('एक दिन')
    for script, key in (('sample.py', 'out_dir'), ('export.py', 'out_dir'), ('sample.py', 'init_from')):
        line = here.refuses(script, f'--{key}=out/gpt2')
        assert 'adapters for base,' in line and 'move' in line
    shutil.move('elsewhere', 'base')
    assert here.run(*command, '--out_dir=out/gpt2').startswith('एक दिन')


def test_two_processes_equal_one_and_one_continues(here):
    command = [*FINETUNE, '--lora_dropout=0.0', '--lr_decay_iters=12', '--out_dir=out/two']
    here.run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *command, '--max_iters=6')
    here.run(*command, '--init_from=resume', '--merge_lora=True')
    one, two = ([row['loss'] for row in here.jsonl(f'out/{name}/log.jsonl')] for name in ('merged', 'two'))
    assert one == pytest.approx(two, abs=1e-4)
    one, two = (hub.load(f'out/{name}')[0].state_dict() for name in ('merged', 'two'))
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)
    assert 'lora_rank' in here.refuses(*command, '--init_from=resume', '--lora_rank=4')
    assert 'lora_rank' in here.refuses(*FINETUNE, '--init_from=scratch', '--out_dir=out/other')


def test_stories_between_markers_in_a_csv(project):
    """Tiny Story Generator's CSV: each text has markers at its ends, which prepare.py replaces by bos and eos."""
    texts = [f'Once there was a cat of {i} years.\nIt said <|endoftext|> and slept.' for i in range(40)]
    with open(project.path / 's.csv', 'w', encoding='utf-8', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['', 'text'])
        for i, text in enumerate(texts):
            writer.writerow([i, f'<|startoftext|> {text} <|endoftext|>'])
    project.run('prepare.py', '--source=s.csv', '--dataset=t', '--vocab_size=300', '--val_source=s.csv')
    tokenizer = load_tokenizer(str(project.path / 'data/t'))
    ids = np.fromfile(project.path / 'data/t/train.bin', '<u2')
    stories = np.split(ids, np.flatnonzero(ids == tokenizer.eos) + 1)[:-1]
    assert [tokenizer.decode(story[1:]) for story in stories] == texts

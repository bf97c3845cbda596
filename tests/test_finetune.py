"""Fine-tuning through the command line, whole and with LoRA: what is trained, what is saved, what it generates."""

import csv
import math
import os
import shutil

import numpy as np
import pytest
import torch
import transformers

import hub
from model import GPT
from tokenizer import load as load_tokenizer
from tokenizer import train as train_tokenizer

pytest.importorskip('peft')
pytestmark = pytest.mark.slow
FINETUNE = ['train.py', 'config/finetune_gpt2.py', '--dataset=tiny', '--init_from=base', '--block_size=32',
            '--batch_size=4', '--gradient_accumulation_steps=2', '--max_iters=12', '--warmup_iters=1',
            '--eval_interval=6', '--eval_iters=8', '--log_interval=1', '--learning_rate=2e-2', '--lora_alpha=64.0',
            '--dtype=float32', '--device=cpu']


@pytest.fixture(scope='session')
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


# -----------------------------------------------------------------------------
# models in a class of Transformers

SIZES = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 64,
         'max_position_embeddings': 64, 'initializer_range': 0.1}
CLASSES = {
    'neo': transformers.GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=64, intermediate_size=64,
        attention_types=[[['global', 'local'], 1]], window_size=8, initializer_range=0.1, resid_dropout=0.5),
    'pythia': transformers.GPTNeoXConfig(**SIZES, hidden_dropout=0.5),
    'biases': transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, attention_dropout=0.5),
    'gemma': transformers.GemmaConfig(**SIZES, num_key_value_heads=1, head_dim=16),
    'llama': transformers.LlamaConfig(**SIZES, num_key_value_heads=1)}  # a GPT here: its q, k and v are one matrix
LORA = ['--lora_rank=4', '--lora_dropout=0.1', '--max_iters=8', '--lr_decay_iters=8', '--eval_interval=4']
WHOLE = ['--lora_rank=0', '--dropout=0.1', '--learning_rate=1e-2', '--max_iters=8', '--lr_decay_iters=8',
         '--eval_interval=4']


def make_model(folder, name, tokenizer):
    """A model of CLASSES with random weights, as a Hugging Face folder."""
    torch.manual_seed(0)
    config = CLASSES[name]
    config.vocab_size, config.bos_token_id, config.eos_token_id = tokenizer.vocab_size, tokenizer.bos, tokenizer.eos
    config.pad_token_id = tokenizer.eos
    model = transformers.AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)  # no bias is 0
    model.save_pretrained(folder)
    tokenizer.save(str(folder))


def logits_of(model, ids):
    output = model.eval()(ids)
    return getattr(output, 'logits', output)


@pytest.mark.parametrize('name', CLASSES)
@torch.no_grad()
def test_any_causal_model_is_fine_tuned_by_lora_and_read_by_peft(here, name):
    import peft
    make_model(here.path / name, name, load_tokenizer('data/tiny'))
    here.run(*FINETUNE, f'--init_from={name}', f'--out_dir=out/{name}', *LORA)
    log = here.jsonl(f'out/{name}/log.jsonl')
    assert log[-1]['val_loss'] < log[0]['loss'] - 0.02
    checkpoint = torch.load(f'out/{name}/best.pt', weights_only=True)
    assert all('.lora_' in weight for weight in checkpoint['model'])

    # the same logits here and in peft, and from its folder
    ids = torch.randint(300, (3, 32))
    tuned = logits_of(hub.load(f'out/{name}')[0], ids)
    assert not torch.allclose(tuned, logits_of(hub.load(name)[0], ids), atol=1e-2)
    os.makedirs(f'{name}_peft')
    hub.write_adapters(checkpoint, name, f'{name}_peft')
    model = transformers.AutoModelForCausalLM.from_pretrained(name)
    assert torch.allclose(logits_of(peft.PeftModel.from_pretrained(model, f'{name}_peft'), ids), tuned, atol=1e-4)
    model, tokenizer, _ = hub.load(f'{name}_peft')
    assert torch.allclose(logits_of(model, ids), tuned, atol=1e-4) and tokenizer.vocab_size == 1024
    assert isinstance(model, GPT) == (name == 'llama')


def test_a_whole_model_in_its_own_class_resumes_and_is_exported(here):
    make_model(here.path / 'own', 'pythia', load_tokenizer('data/tiny'))
    command = [*FINETUNE, '--init_from=own', *WHOLE, '--save_per_epoch=True', '--batch_size=64']
    here.run(*command, '--out_dir=out/whole_straight')
    here.run(*command, '--out_dir=out/whole_stopped', '--max_iters=4')
    here.run(*command, '--out_dir=out/whole_stopped', '--init_from=resume')
    straight, stopped = (torch.load(f'out/whole_{name}/ckpt.pt', weights_only=True) for name in ('straight', 'stopped'))
    assert all(torch.equal(weight, stopped['model'][name]) for name, weight in straight['model'].items())
    rows = here.jsonl('out/whole_straight/log.jsonl')
    assert [row['loss'] for row in rows] == [row['loss'] for row in here.jsonl('out/whole_stopped/log.jsonl')]
    assert rows[-1]['val_loss'] < rows[0]['loss'] - 0.3
    assert 'use adamw' in here.refuses(*command, '--out_dir=out/whole_other', '--optimizer=muon')

    here.run('export.py', '--out_dir=out/whole_straight', '--examples=1')
    assert 'GPTNeoXForCausalLM' in (here.path / 'out/whole_straight/hf/README.md').read_text(encoding='utf-8')
    ids = torch.randint(300, (3, 32))
    with torch.no_grad():
        exported = transformers.AutoModelForCausalLM.from_pretrained('out/whole_straight/hf')
        assert torch.allclose(logits_of(exported, ids), logits_of(hub.load('out/whole_straight')[0], ids), atol=1e-4)
    assert 'no LoRA adapters' in here.refuses('export.py', '--out_dir=out/whole_straight', '--format=peft')


def test_each_epoch_is_kept(here):
    tokens = here.json('data/tiny/meta.json')['tokens']['train']
    here.run('train.py', '--dataset=tiny', '--out_dir=out/epochs', '--save_per_epoch=True', '--max_epochs=2',
             '--batch_size=64', '--block_size=64', '--n_layer=1', '--n_head=2', '--n_embd=16', '--eval_iters=1',
             '--device=cpu')
    steps = [torch.load(f'out/epochs/epoch_{i}.pt', weights_only=True)['step'] for i in (1, 2)]
    assert [math.ceil(i * tokens / (64 * 64)) for i in (1, 2)] == pytest.approx(steps, abs=1)
    assert not os.path.exists('out/epochs/epoch_3.pt')
    assert here.run('sample.py', '--init_from=out/epochs/epoch_1.pt', '--max_new_tokens=5')


@torch.no_grad()
def test_a_trimmed_tokenizer_keeps_the_rows_of_its_tokens(here):
    """The model has more tokens than the data; with LoRA, the base model stays whole."""
    big = train_tokenizer([row['text'] for row in here.jsonl('data/tiny/stories.jsonl')] + ['zebra ' * 9] * 99, 1500)
    for name in ('gemma', 'llama'):
        make_model(here.path / f'big_{name}', name, big)
    here.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=trimmed', '--tokenizer=big_gemma')
    tokenizer = load_tokenizer('data/trimmed')
    assert tokenizer.vocab_size < big.vocab_size
    text = here.jsonl('data/tiny/stories.jsonl')[0]['text'][:60]
    rows = [big.backend.token_to_id(tokenizer.backend.id_to_token(i)) for i in range(tokenizer.vocab_size)]
    for name, options in (('llama', LORA), ('gemma', WHOLE)):
        out = f'out/trimmed_{name}'
        here.run(*FINETUNE, *options, '--dataset=trimmed', f'--init_from=big_{name}', f'--out_dir={out}',
                 '--max_iters=1', '--learning_rate=0.0', '--min_lr=0.0')
        model, own, _ = hub.load(out)
        expected = logits_of(hub.load(f'big_{name}')[0], torch.tensor([big.encode(text)]))
        assert torch.allclose(logits_of(model, torch.tensor([own.encode(text)])), expected[..., rows], atol=1e-4)


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

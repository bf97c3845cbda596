"""Telling stories through the command line."""

import itertools
import json

import pytest

from checkpoint import load
from generation import generate


@pytest.fixture(scope='module')
def trained(prepared):
    """The prepared project with a model that has seen a few stories, in out/teller."""
    prepared.run('train.py', '--dataset=tiny', '--out_dir=out/teller', '--n_layer=2', '--n_head=2', '--n_embd=64', '--block_size=128',
                 '--batch_size=8', '--optimizer=muon', '--learning_rate=1e-2', '--max_iters=60', '--lr_decay_iters=60',
                 '--warmup_iters=5', '--eval_interval=60', '--eval_iters=2')
    return prepared


def test_one_prompt_is_told_to_the_terminal(trained):
    out = trained.run('sample.py', '--out_dir=out/teller', '--start=एक दिन ', '--max_new_tokens=60')
    assert out.startswith('एक दिन') and len(out) > 20 and '<s>' not in out and '\ufffd' not in out.rstrip()
    assert out == trained.run('sample.py', '--out_dir=out/teller', '--start=एक दिन', '--max_new_tokens=60')
    assert out != trained.run('sample.py', '--out_dir=out/teller', '--start=एक दिन', '--max_new_tokens=60', '--seed=2')
    many = trained.run('sample.py', '--out_dir=out/teller', '--num_samples=3', '--max_new_tokens=5')
    assert many.count('\n---\n') == 2


def test_many_prompts_to_files(trained):
    (trained.path / 'prompts.txt').write_text('एक दिन\n\nमीना और रवि बगीचे में खेल रहे थे।\nरात\n', encoding='utf-8')
    common = ['sample.py', '--out_dir=out/teller', '--start=FILE:prompts.txt', '--num_samples=4', '--max_new_tokens=150', '--top_p=0.9']
    out = trained.run(*common, '--out=stories.jsonl')
    assert '12 stories in stories.jsonl' in out
    rows = trained.jsonl('stories.jsonl')
    assert [row['id'] for row in rows] == list(range(12)) and [row['prompt'] for row in rows[::4]] == ['एक दिन', 'मीना और रवि बगीचे में खेल रहे थे।', 'रात']
    assert all(row['story'].startswith(row['prompt']) and row['ended'] in ('eos', 'length') and row['seed'] == 1337 + row['id'] for row in rows)
    assert len({row['story'] for row in rows}) == 12

    trained.run('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--', *common, '--out=again.jsonl', '--batch_size=5')
    assert trained.jsonl('again.jsonl') == rows  # whatever the batches, and by however many processes
    trained.run(*common, '--out=stories.json')
    assert trained.json('stories.json') == rows
    trained.run(*common, '--out=stories.txt')
    assert (trained.path / 'stories.txt').read_text(encoding='utf-8').count('<|endoftext|>') == 11


def test_bad_words_and_repeats(trained):
    common = ['sample.py', '--out_dir=out/teller', '--start=एक दिन', '--num_samples=8', '--max_new_tokens=100']
    trained.run(*common, '--out=plain.jsonl')
    word = next(w for w in ('ने', 'और', 'से', 'एक', 'था') if any(f' {w} ' in row['story'][6:] for row in trained.jsonl('plain.jsonl')))
    trained.run(*common, f'--bad_words=["{word}"]', '--out=clean.jsonl')
    assert not any(f' {word} ' in row['story'][6:] for row in trained.jsonl('clean.jsonl'))
    trained.run(*common, '--no_repeat_ngram=2', '--out=fresh.jsonl')
    model, tokenizer, _ = load(str(trained.path / 'out/teller'))
    rows, ids = trained.jsonl('fresh.jsonl'), [[tokenizer.bos, *tokenizer.encode('एक दिन')] for _ in range(8)]
    for new in generate(model, ids, 100, tokenizer.eos, [row['seed'] for row in rows], temperature=0.8, no_repeat_ngram=2):
        for i, token in new:
            ids[i].append(token)
    assert [tokenizer.decode(some) for some in ids] == [row['story'] for row in rows]  # in whose text, encoded anew, tokens may be cut elsewhere
    assert all(len(pairs) == len(set(pairs)) for pairs in (list(itertools.pairwise(some)) for some in ids))


def test_a_hugging_face_folder(trained, tmp_path):
    """The same weights as a Transformers Llama tell the same story."""
    import transformers

    from checkpoint import hf_names
    model, tokenizer, _ = load(str(trained.path / 'out/teller'))
    a = model.args
    config = transformers.LlamaConfig(vocab_size=a['vocab_size'], hidden_size=a['n_embd'], intermediate_size=a['n_inner'], num_hidden_layers=a['n_layer'],
                                      num_attention_heads=a['n_head'], max_position_embeddings=a['block_size'], tie_word_embeddings=True, rms_norm_eps=1e-5)
    theirs = transformers.LlamaForCausalLM(config)
    state = theirs.model.state_dict()
    for ours, names in hf_names(a).items():
        for name, part in zip(names, model.state_dict()[ours].chunk(len(names))):
            state[name].copy_(part)
    theirs.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path))
    settings = ['--start=एक दिन', '--max_new_tokens=50', '--temperature=0.0']
    assert trained.run('sample.py', f'--init_from={tmp_path}', *settings) == trained.run('sample.py', '--out_dir=out/teller', *settings)
    (tmp_path / 'tokenizer.json').unlink()
    assert 'tokenizer' in trained.refuses('sample.py', f'--init_from={tmp_path}', *settings)


@pytest.mark.parametrize('arguments, said', [
    (['--out_dir=out/nothing'], 'train first'),
    (['--out=stories.doc'], '.jsonl'),
    (['--start=FILE:nowhere.txt'], 'nowhere.txt'),
    (['--top_p=0.0'], 'top_p'),
    (['--temperature=-1'], 'temperature'),
    (['--num_samples=0'], 'from 1'),
    (['--temprature=1.0'], "'temperature'"),
    (['--bad_words=word'], 'list'),
    (['--quantize=int4'], "'int8'"),
    (['--tokenizer=nowhere.json'], 'nowhere.json'),
])
def test_refusals(trained, arguments, said):
    assert said in trained.refuses('sample.py', '--out_dir=out/teller', *arguments)


def test_int8(trained):
    """Weights of 8 bits tell a story, and nearly the same one."""
    settings = ['sample.py', '--out_dir=out/teller', '--start=एक दिन', '--max_new_tokens=12', '--temperature=0.0', '--device=cpu']
    small, whole = trained.run(*settings, '--quantize=int8'), trained.run(*settings)
    assert small.startswith('एक दिन') and small.split()[:4] == whole.split()[:4]


def test_long_and_strange_prompts(trained):
    """A prompt beyond the context, or in letters that were never seen, is gone on with."""
    trained.run('sample.py', '--out_dir=out/teller', '--start=' + 'एक दिन की बात है। ' * 100, '--max_new_tokens=20', '--out=long.json')
    row = json.loads((trained.path / 'long.json').read_text(encoding='utf-8'))[0]
    assert len(row['story']) > len(row['prompt'])
    trained.run('sample.py', '--out_dir=out/teller', '--start=Ωμέγα 😀', '--max_new_tokens=20')

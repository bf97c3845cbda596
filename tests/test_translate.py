"""translate.py: a small model of random weights through the real classes, and a chat API on loopback. What is checked is all but the sense."""

import ast
import gzip
import json
import random
import re
import time

import pytest
from conftest import PROJECT, Project

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
FRENCH = ('--source_language=english', '--target_language=french')
ALONE = {'OMP_NUM_THREADS': '1'}  # two threads for so small a model would only wait for each other
LAYOUTS = ['{0} “{1}” {2}', '{0}\n\n— {1}\n— {2}\n', '« {0} » {1}\r\n\r\n\r\n({2}) 7.', '{0} {1} {2}', '* * *\n{0}', '“{0} {1}”\n\n"{2}"']


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def say(rng, words):
    return ' '.join(''.join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(words)).capitalize() + rng.choice('.!?')


def tiny_model(folder, rng):
    """Write a translation model of NLLB's kind and random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    torch.set_num_threads(1)
    bpe = Tokenizer(models.BPE(unk_token='<unk>'))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    words = [say(rng, 20)[:-1] for _ in range(200)]
    bpe.train_from_iterator(words, trainers.BpeTrainer(vocab_size=300, special_tokens=['<s>', '<pad>', '</s>', '<unk>'], show_progress=False))
    state = json.loads(bpe.to_str())['model']
    tokenizer = NllbTokenizer(vocab=state['vocab'], merges=[tuple(merge) for merge in state['merges']])
    torch.manual_seed(1)
    model = M2M100ForConditionalGeneration(M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=66, decoder_start_token_id=2, init_std=1.0))
    with torch.no_grad():
        weight = model.model.shared.weight
        weight[-208:] *= 0.1  # the name of a language is not said
        model.model.decoder.layer_norm.bias += 13 * weight[2] / weight[2].norm()**2  # some sentences end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A folder with such a model and six sorts of stories -> (folder, parts of every story, rows)."""
    folder = tmp_path_factory.mktemp('tiny')
    rng = random.Random(1)
    tiny_model(folder, rng)
    stories = [[say(rng, rng.randint(1, 5)) for _ in range(3)] for _ in range(24)]
    for parts in stories[::7]:
        parts[0] = 'Once upon a time.'
    rows = [{'id': i * 3 if i % 2 else f's{i}', 'noun': 'नाव', 'text': LAYOUTS[i % 6].format(*parts), 'model': 'grammar', 'reason': None}
            for i, parts in enumerate(stories)]
    long = 'Aaa' + ' bbb' * 40 + ', ccc' + ' ddd' * 40 + '.'
    rows += [{'id': -1, 'text': f'“{long}”\n\nEnd'}, {'id': 'no letters', 'text': '7, 8!'}, {'id': '', 'text': 'e\u0301\ud800', 'more': '\ud800'}]
    write(folder / 'stories.jsonl', rows)
    return folder, stories, rows


@pytest.fixture(scope='module')
def command(tiny):
    return ['translate.py', *FRENCH, f'--source={tiny[0]}/stories.jsonl', f'--model={tiny[0]}']


@pytest.fixture(scope='module')
def whole(command, tmp_path_factory):
    """What one run makes of the stories -> bytes."""
    project = Project(tmp_path_factory.mktemp('whole'))
    said = project.run(*command, '--out=whole.jsonl', **ALONE)
    assert '27 stories in whole.jsonl' in said
    return (project.path / 'whole.jsonl').read_bytes()


def test_a_story_is_its_sentences_translated_one_by_one(tiny, whole):
    """… as the model alone does it, with everything between them in its place."""
    from transformers import AutoTokenizer, M2M100ForConditionalGeneration
    folder, stories, rows = tiny
    tokenizer = AutoTokenizer.from_pretrained(folder, src_lang='eng_Latn')
    model = M2M100ForConditionalGeneration.from_pretrained(folder).eval()
    said = {}
    new_rows = [json.loads(line) for line in whole.decode().splitlines()]
    assert [row['id'] for row in new_rows] == [row['id'] for row in rows]
    for row, new, parts, layout in zip(rows, new_rows, stories, LAYOUTS * 4):
        for part in parts:
            if part not in said:
                ids = model.generate(**tokenizer(part, return_tensors='pt'), max_new_tokens=64, do_sample=False,
                                     forced_bos_token_id=tokenizer.convert_tokens_to_ids('fra_Latn'))
                said[part] = ' '.join(tokenizer.decode(ids[0], skip_special_tokens=True).split())
        assert new['text'] == layout.format(*(said[part] for part in parts))
        assert new['noun'] == row['noun'] and new['language'] == 'french' and new['model'] == str(folder) and new['completion_tokens'] > 0
    assert len({*said.values()}) > len(said) / 2  # or else the comparison above says little
    long, no_letters, surrogate = new_rows[-3:]
    assert re.fullmatch('“[a-z ]+”\n\n[a-z ]+', long['text'], flags=re.I) and long['prompt_tokens'] > 160  # nothing was left out
    assert no_letters['text'] == '7, 8!' and surrogate['more'] == '\ud800'


def test_killed_and_started_again(project, command, whole):
    process = project.start(*command, '--out=out/killed.jsonl', '--batch_size=2', **ALONE)
    path = project.path / 'out/killed.jsonl'
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 0 < path.stat().st_size < len(whole)
    with open(path, 'ab') as f:
        f.write('{"id": 21, "text": "दि'.encode()[:-1])
    project.run(*command, '--out=out/killed.jsonl', '--batch_size=5', **ALONE)
    assert path.read_bytes() == whole
    assert 'all 27 stories are done' in project.run(*command, '--out=out/killed.jsonl', **ALONE)


def test_shards_are_disjoint_and_complete(project, command, tiny, whole):
    packed = project.path / 'stories.jsonl.gz'
    packed.write_bytes(gzip.compress((tiny[0] / 'stories.jsonl').read_bytes()))
    runs = [project.start(*command, f'--source={packed}', f'--shard={part}/2', f'--out={part}.jsonl', **ALONE) for part in (1, 2)]
    assert not any([run.communicate(timeout=100) and run.returncode for run in runs])
    lines = whole.splitlines()
    assert [(project.path / f'{part}.jsonl').read_bytes().splitlines() for part in (1, 2)] == [lines[::2], lines[1::2]]
    assert 'stories that are not in' in project.refuses(*command, '--shard=1/2', '--out=2.jsonl', **ALONE)


def test_a_language_that_the_model_lacks(project, command):
    line = project.refuses(*command, '--target_language=fra_Lat', '--out=o.jsonl', **ALONE)
    assert line.startswith('translate.py: ') and "no language 'fra_Lat'" in line and 'fra_Latn' in line
    assert not (project.path / 'o.jsonl').read_bytes()


ROWS = [{'id': i, 'noun': f'n{i}', 'reason': 'why not', 'text': f'एक दिन {i}।\r\n\r\n\r\nफिर {i}।'} for i in range(40)]


@pytest.mark.parametrize('source, options, says', [
    (ROWS, ['--source=none.jsonl'], 'none.jsonl is missing'), (ROWS, ['--out=s.jsonl'], 'the same file'), (ROWS, ['--out=o.txt'], 'ends in .jsonl'),
    (ROWS, ['--shard=3/2'], "'3/2'"), (ROWS, ['--target_language=english'], 'both'),
    (ROWS, ['--provider=mistral', '--template={text} {txt}'], 'slots'),
    ([], [], 'no story'), ([ROWS[0], ROWS[0]], [], 'twice'), ([ROWS[0], {'id': 1}], [], 'row 2'), ([{'text': 'a'}], [], 'row 1'), ([7], [], 'row 1')])
def test_refusals(project, source, options, says):
    write(project.path / 's.jsonl', source)
    line = project.refuses('translate.py', *FRENCH, '--source=s.jsonl', '--out=o.jsonl', *options)
    assert line.startswith('translate.py: ') and says in line
    assert not (project.path / 'o.jsonl').exists() or not (project.path / 'o.jsonl').read_bytes()


@pytest.mark.parametrize('there, says', [
    ({'id': 1, 'noun': 'n1', 'text': 'a'}, 'something else than'), ({'id': 1, 'noun': 'n1', 'text': 'a', 'language': 'hindi'}, 'something else than'),
    ({'id': 99, 'text': 'a', 'language': 'french'}, 'not in'), ({'id': 1, 'noun': 'n1', 'text': 'a', 'language': 'french'}, 'another')])
def test_an_out_that_holds_other_stories(project, there, says):
    write(project.path / 's.jsonl', ROWS)
    write(project.path / 'o.jsonl', [there])
    assert says in project.refuses('translate.py', *FRENCH, '--source=s.jsonl', '--out=o.jsonl')
    assert project.jsonl('o.jsonl') == [there]


# -----------------------------------------------------------------------------
# by a chat API

CHAT = ['translate.py', '--source=s.jsonl', '--source_language=hindi', '--target_language=marathi', '--out=o.jsonl']


def test_a_chat_api_translates_each_story_once(project, chat_server):
    server = chat_server(reply='Here: ```{"translation": "X {prompt} Y"}```', latency=0.05)
    options = [f'--base_url={server.url}', '--template={source_language} {target_language} {text}', '--num_workers=4']
    write(project.path / 's.jsonl', ROWS)
    process = project.start(*CHAT, *options)
    path = project.path / 'o.jsonl'
    while process.poll() is None and not (path.exists() and path.stat().st_size > 1000):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 0 < len(path.read_bytes().splitlines()) < 40
    project.run(*CHAT, *options)
    rows = sorted(project.jsonl('o.jsonl'), key=lambda row: row['id'])
    expected = [row | {'text': f'X Hindi Marathi {row["text"]} Y', 'language': 'marathi', 'model': 'tiny', 'prompt_tokens': 100,
                       'completion_tokens': 300, 'cost': 0.0} for row in ROWS]
    assert rows == expected
    assert server.counts()['requests'] <= 40 + 4


@pytest.mark.parametrize('reply, reason', [
    ('{"translation": "{prompt}"}', 'not translated'), ('{"translation": "एक ओळ"}', 'another number of lines'), ('{prompt}', 'no JSON with a translation'),
    ('{"translation": "{prompt}\\n\\n{prompt}"}', 'another number of lines'), ('{"translation": "a\\nb"}', 'too short or too long'),
    ('{"translation": ["{prompt}"]}', 'no JSON with a translation'), ('{"translation": "एक\ufffd दिवस झाडाखाली\\n\\nझोपला"}', 'broken characters')])
def test_replies_that_do_not_pass(project, chat_server, reply, reason):
    options = [f'--base_url={chat_server(reply=reply).url}', '--template={text}', '--max_tries=2']
    write(project.path / 's.jsonl', [row | {'text': row['text'].replace(' ', ' बहुत अच्छे ')} for row in ROWS[:3]])
    said = project.run(*CHAT, *options)
    assert f'6 {reason}' in said and project.jsonl('o.jsonl') == []
    assert sorted((row['id'], row['reason']) for row in project.jsonl('failed.jsonl')) == [(i, reason) for i in range(3)]
    assert 'all 3 stories are done in o.jsonl, but 3 of them failed: see failed.jsonl' in project.run(*CHAT, *options)


# -----------------------------------------------------------------------------
# where a sentence ends

def test_sentences():
    source = (PROJECT / 'translate.py').read_text(encoding='utf-8')
    names = ('ENDS', 'OPENING', 'QUOTE', 'ABBREVIATION', 'sentences', 'take_apart')
    nodes = [node for node in ast.parse(source).body if getattr(node, 'name', '') in names or any(f'{name}' in ast.unparse(target) for name in names
             for target in getattr(node, 'targets', []))]
    scope = {'re': re, 'pieces': lambda text: [text]}
    exec('\n'.join(map(ast.unparse, nodes)), scope)
    for text in [
        'Mr. Fox and Dr. A. K. Sharma paid 3.14 coins.| |So did I.| |Then ...| |He left.', '“|Run!|” |Mia ran.| “|Go on.| |Faster!|”',
        '"Come!" said Mia.| |He came.',
        'Wait… what?| |“Yes,” he said.', '“|मुझे छोड़ना मत!|” |रवि ने कहा।| |वह... चला गया॥', 'একদিন ডা. রায় এলেন।| "|কে?|"', '« |Tu viens ?| » |Elle partit.',
        '« Oui ! » dit-elle.|\n\n— |Non !|\n— |M. Dupont rit.', "'Stop!' he cried.| |The dogs' bowl.", 'He saw dogs (big ones).| (|It was late.|)\n* * *\n1.',
        '  |a|\t\n \u2028', '...\n!'
    ]:
        *pieces, last = scope['take_apart'](text.replace('|', ''))
        assert ''.join(pieces) + last == text.replace('|', '')
        kept = text.split('|')
        assert [part for part in [*pieces, last] if part] == kept
    assert scope['take_apart']('वह गया।वह आया।')[1:4] == ['वह गया।', ' ', 'वह आया।']
    rng = random.Random(1)
    for _ in range(3000):
        text = ''.join(rng.choices(['a', 'B', 'क', '।', '. ', '.', '…', '"', '“', '”', '« ', ' »', ' ', '\n', '\r\n', "'", '(', '—', 'Mr', '3', '!', '\u00a0'],
                                   k=rng.randrange(40)))
        parts = scope['take_apart'](text)
        assert ''.join(parts).replace('। ', '।') == text.replace('। ', '।') and not any('\n' in part for part in parts[1::2])

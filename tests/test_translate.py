"""translate.py: with a stand-in for Transformers, with a small NLLB of random weights, and with a chat API on loopback."""

import gzip
import json
import random
import re
import time

import pytest

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
FRENCH = ('--source_language=english', '--target_language=french')
ROWS = [{'id': i, 'noun': f'n{i}', 'reason': 'why not', 'text': f'एक दिन {i}।\r\n\r\n\r\nफिर {i}।'} for i in range(40)]


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def kill_after_rows(project, command, out, size):
    """Kill translate.py when its output has at least `size` bytes."""
    process = project.start(*command, f'--out={out}')
    path = project.path / out
    while process.poll() is None and not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert path.stat().st_size >= size


# -----------------------------------------------------------------------------
# sentences

# Stands in for Transformers: a character is a token, and the translation of a sentence is ⟦the sentence⟧.
TRANSFORMERS = '''
import torch
class logging:
    set_verbosity_error = disable_progress_bar = print
class Tokens(dict):
    __getattr__ = dict.__getitem__
    to = lambda self, device: self
class AutoTokenizer:
    all_special_tokens, eos_token_id, pad_token_id, model_max_length = [], 1, 0, 10**9
    from_pretrained = classmethod(lambda cls, folder, **options: cls())
    def __call__(self, text):
        return Tokens(input_ids=[ord(char) for char in text])
    def pad(self, batch, return_tensors):
        rows = [torch.tensor(ids) for ids in batch['input_ids']]
        return Tokens(input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), attention_mask=None)
    def batch_decode(self, rows, **options):
        return ['⟦' + ''.join(chr(i) for i in ids if i > 1) + '⟧' for ids in rows.tolist()]
class AutoModelForSeq2SeqLM:
    from_pretrained = classmethod(lambda cls, folder, **options: cls())
    config = None
    to = lambda self, device: self
    eval = lambda self: self
    def generate(self, input_ids, **options):
        return torch.nn.functional.pad(torch.nn.functional.pad(input_ids, (1, 0)), (0, 1), value=1)
'''

MARKED = [
    '⟦Mr. Fox and Dr. A. K. Sharma paid 3.14 coins.⟧ ⟦So did I.⟧ ⟦Then ...⟧ ⟦He left.⟧',
    '“⟦Run!⟧” ⟦Mia ran.⟧ “⟦Go on.⟧ ⟦Faster!⟧”',
    '⟦"Come!" said Mia.⟧ ⟦He came.⟧',
    '⟦Wait… what?⟧ ⟦“Yes,” he said.⟧',
    '“⟦मुझे छोड़ना मत!⟧” ⟦रवि ने कहा।⟧ ⟦वह... चला गया॥⟧',
    '⟦একদিন ডা. রায় এলেন।⟧ "⟦কে?⟧"',
    '« ⟦Tu viens ?⟧ » ⟦Elle partit.⟧',
    '⟦« Oui ! » dit-elle.⟧\n\n— ⟦Non !⟧\n— ⟦M. Dupont rit.⟧',
    "⟦'Stop!' he cried.⟧ ⟦The dogs' bowl.⟧",
    '⟦He saw dogs (big ones).⟧ (⟦It was late.⟧)\n* * *\n1.',
    '  ⟦a⟧\t\n \u2028',
    '⟦वह गया।⟧ ⟦वह आया।⟧',
    # longer than the model may read: cut at the comma nearest to the middle, else at a space, else anywhere
    f'⟦{"Aaa " * 9}aaa,⟧ ⟦{"bbb " * 9}bbb.⟧', f'⟦{"ccc " * 7}ccc⟧ ⟦{"ccc " * 7}ccc⟧', f'⟦{"d" * 40}⟧⟦{"d" * 40}⟧']


@pytest.fixture
def marking(project):
    """A project in which every sentence is marked instead of translated."""
    (project.path / 'transformers.py').write_text(TRANSFORMERS, encoding='utf-8')
    (project.path / 'marker').mkdir()
    return project


def test_sentences_are_found_and_everything_between_them_is_kept(marking):
    parts = ['a', 'B', 'क', '।', '. ', '.', '…', '"', '“', '”', '« ', ' »', ' ', '\n', '\r\n', "'", '(', '—', 'Mr', '3', '!', '\u00a0']
    rng = random.Random(1)
    texts = [marked.replace('⟦', '').replace('⟧', '') for marked in MARKED]
    texts += ['x' + ''.join(rng.choices(parts, k=rng.randrange(40))) for _ in range(500)]
    write(marking.path / 's.jsonl', [{'id': i, 'text': text} for i, text in enumerate(texts)])
    marking.run('translate.py', '--source=s.jsonl', '--model=marker', '--out=o.jsonl', '--max_new_tokens=90', '--device=cpu')
    found = [row['text'] for row in marking.jsonl('o.jsonl')]
    assert found[:len(MARKED)] == MARKED
    for text, new in zip(texts, found):
        assert re.sub('[⟦⟧]', '', new).split() == text.replace('।', '। ').split() or ''.join(
            re.sub('[⟦⟧]', '', new).split()) == ''.join(text.split())
        assert not re.search('⟦[^⟧]*\n', new)


def test_a_killed_run_resumes_and_shards_are_disjoint(marking):
    rows = [{'id': f's{i}', 'noun': 'नाव', 'reason': None, 'text': f'Story {i}. It ends.'} for i in range(600)]
    write(marking.path / 's.jsonl', rows)
    (marking.path / 's.jsonl.gz').write_bytes(gzip.compress((marking.path / 's.jsonl').read_bytes()))
    command = ('translate.py', *FRENCH, '--model=marker', '--device=cpu')
    killed = marking.path / 'out/killed.jsonl'
    kill_after_rows(marking, [*command, '--source=s.jsonl', '--batch_size=1'], 'out/killed.jsonl', 1)
    with open(killed, 'ab') as f:
        f.write('{"id": 21, "text": "दि'.encode()[:-1])
    assert '600 stories in out/killed.jsonl' in marking.run(*command, '--source=s.jsonl', '--out=out/killed.jsonl')
    whole = killed.read_bytes()
    assert [(row['id'], row['noun'], row['text']) for row in marking.jsonl(killed)] == [
        (row['id'], 'नाव', f'⟦Story {i}.⟧ ⟦It ends.⟧') for i, row in enumerate(rows)]
    assert 'all 600 stories are done' in marking.run(*command, '--source=s.jsonl', '--out=out/killed.jsonl')
    assert killed.read_bytes() == whole
    for part in (1, 2):
        marking.run(*command, '--source=s.jsonl.gz', f'--shard={part}/2', f'--out={part}.jsonl')
        assert (marking.path / f'{part}.jsonl').read_bytes().splitlines() == whole.splitlines()[part - 1::2]
    assert 'not in' in marking.refuses(*command, '--source=s.jsonl', '--shard=1/2', '--out=2.jsonl')


def test_a_dry_run_writes_nothing(marking):
    write(marking.path / 's.jsonl', ROWS)
    before = sorted(marking.path.glob('*'))
    text = marking.run('translate.py', *FRENCH, '--source=s.jsonl', '--model=marker', '--out=o.jsonl', '--dry_run=2')
    assert '--- 1\n' in text and '⟦फिर 1।⟧' in text and '--- 2' not in text
    assert sorted(path for path in marking.path.glob('*') if path.name != '__pycache__') == before


# -----------------------------------------------------------------------------
# a real model

LAYOUTS = ['{0} “{1}” {2}', '{0}\n\n— {1}\n— {2}\n', '« {0} » {1}\r\n\r\n\r\n({2}) 7.', '{0} {1} {2}', '* * *\n{0}', '“{0} {1}”\n\n"{2}"']


def random_sentence(rng, n_words):
    words = [''.join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(n_words)]
    return ' '.join(words).capitalize() + rng.choice('.!?')


def write_nllb(folder):
    """Write a translation model of NLLB's classes with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    rng = random.Random(1)
    bpe = Tokenizer(models.BPE(unk_token='<unk>'))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=['<s>', '<pad>', '</s>', '<unk>'], show_progress=False)
    bpe.train_from_iterator([random_sentence(rng, 20)[:-1] for _ in range(200)], trainer)
    state = json.loads(bpe.to_str())['model']
    tokenizer = NllbTokenizer(vocab=state['vocab'], merges=[tuple(merge) for merge in state['merges']])
    torch.manual_seed(1)
    model = M2M100ForConditionalGeneration(M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=66,
        decoder_start_token_id=2, init_std=1.0))
    with torch.no_grad():
        weight = model.model.shared.weight
        weight[-208:] *= 0.1  # generate few tokens that are names of languages
        model.model.decoder.layer_norm.bias += 13 * weight[2] / weight[2].norm()**2  # let some sentences end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope='module')
def nllb(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nllb')
    write_nllb(folder)
    return folder


@pytest.mark.slow
def test_sentences_are_translated_as_the_model_does_alone(project, nllb):
    from transformers import AutoTokenizer, M2M100ForConditionalGeneration
    rng = random.Random(2)
    stories = [[random_sentence(rng, rng.randint(1, 5)) for _ in range(3)] for _ in range(24)]
    rows = [{'id': i, 'text': LAYOUTS[i % 6].format(*parts)} for i, parts in enumerate(stories)]
    rows += [{'id': 'no letters', 'text': '7, 8!'}, {'id': '', 'text': 'e\u0301\ud800', 'more': '\ud800'}]
    write(project.path / 's.jsonl', rows)
    assert '26 stories in o.jsonl' in project.run('translate.py', *FRENCH, '--source=s.jsonl', f'--model={nllb}', '--out=o.jsonl')
    new_rows = project.jsonl('o.jsonl')
    assert [row['id'] for row in new_rows] == [row['id'] for row in rows]
    assert new_rows[-2]['text'] == '7, 8!' and new_rows[-1]['more'] == '\ud800'

    tokenizer = AutoTokenizer.from_pretrained(nllb, src_lang='eng_Latn')
    model = M2M100ForConditionalGeneration.from_pretrained(nllb).eval()
    french = tokenizer.convert_tokens_to_ids('fra_Latn')
    translations = set()
    for i, (new, parts) in enumerate(zip(new_rows, stories)):
        translated = []
        for part in parts:
            inputs = tokenizer(part, return_tensors='pt')
            ids = model.generate(**inputs, max_new_tokens=64, do_sample=False, forced_bos_token_id=french)
            translated.append(' '.join(tokenizer.decode(ids[0], skip_special_tokens=True).split()))
        assert new['text'] == LAYOUTS[i % 6].format(*translated)
        assert new['language'] == 'french' and new['model'] == str(nllb) and new['completion_tokens'] > 0
        translations |= set(translated)
    assert len(translations) > 36  # not the same words for everything


@pytest.mark.slow
def test_a_language_that_the_model_lacks(project, nllb):
    write(project.path / 's.jsonl', ROWS)
    command = ('translate.py', '--target_language=fra_Lat', '--source=s.jsonl', f'--model={nllb}', '--out=o.jsonl')
    line = project.refuses(*command)
    assert line.startswith('translate.py: ') and "no language 'fra_Lat'" in line and 'fra_Latn' in line


# -----------------------------------------------------------------------------
# wrong settings, other files


@pytest.mark.slow
@pytest.mark.parametrize('source, options, message', [
    (ROWS, ['--source=none.jsonl'], 'none.jsonl is missing'), (ROWS, ['--out=s.jsonl'], 'the same file'),
    (ROWS, ['--out=o.txt'], 'end in .jsonl'), (ROWS, ['--shard=3/2'], "'3/2'"), (ROWS, ['--target_language=english'], 'both'),
    (ROWS, ['--provider=mistral', '--template=Translate!'], 'template'), ([], [], 'no story'),
    ([ROWS[0], ROWS[0]], [], 'twice'), ([ROWS[0], {'id': 1}], [], 'row 2'), ([7], [], 'row 1')])
def test_a_wrong_setting_or_source_is_one_line(project, source, options, message):
    write(project.path / 's.jsonl', source)
    line = project.refuses('translate.py', *FRENCH, '--source=s.jsonl', '--out=o.jsonl', *options)
    assert line.startswith('translate.py: ') and message in line


@pytest.mark.slow
@pytest.mark.parametrize('row, message', [
    ({'id': 1, 'noun': 'n1', 'text': 'a'}, 'something else than'),
    ({'id': 1, 'noun': 'n1', 'text': 'a', 'language': 'hindi'}, 'something else than'),
    ({'id': 99, 'text': 'a', 'language': 'french'}, 'not in'),
    ({'id': 1, 'noun': 'n2', 'reason': 'why not', 'text': 'a', 'language': 'french'}, 'another story')])
def test_an_output_with_other_stories_is_refused(project, row, message):
    write(project.path / 's.jsonl', ROWS)
    write(project.path / 'o.jsonl', [row])
    assert message in project.refuses('translate.py', *FRENCH, '--source=s.jsonl', '--out=o.jsonl')
    assert project.jsonl('o.jsonl') == [row]


# -----------------------------------------------------------------------------
# a chat API

CHAT = ['translate.py', '--source=s.jsonl', '--source_language=hindi', '--target_language=marathi']


def test_a_chat_api_translates_each_story_once(project, chat_server):
    server = chat_server(reply='Here: ```{"translation": "X {prompt} Y"}```', latency=0.05)
    template = '{source_language} {target_language} {text}'
    command = [*CHAT, f'--base_url={server.url}', f'--template={template}', '--num_workers=4']
    write(project.path / 's.jsonl', ROWS)
    kill_after_rows(project, command, 'o.jsonl', 1000)
    assert len(project.jsonl('o.jsonl')) < 40
    project.run(*command, '--out=o.jsonl')
    changes = {'language': 'marathi', 'model': 'tiny', 'prompt_tokens': 100, 'completion_tokens': 300, 'cost': 0.0}
    assert sorted(project.jsonl('o.jsonl'), key=lambda row: row['id']) == [
        row | {'text': f'X Hindi Marathi {row["text"]} Y'} | changes for row in ROWS]
    assert server.counts()['requests'] <= 40 + 4


@pytest.mark.slow
@pytest.mark.parametrize('reply, reason', [
    ('{"translation": "{prompt}"}', 'not translated'), ('{"translation": "एक ओळ"}', 'another number of lines'),
    ('{prompt}', 'no JSON with a translation'), ('{"translation": ["{prompt}"]}', 'no JSON with a translation'),
    ('{"translation": "a\\nb"}', 'too short or too long'),
    ('{"translation": "एक\ufffd दिवस झाडाखाली\\n\\nझोपला"}', 'broken characters')])
def test_a_reply_that_does_not_pass_is_tried_again_and_given_up(project, chat_server, reply, reason):
    command = [*CHAT, f'--base_url={chat_server(reply=reply).url}', '--template={text}', '--max_tries=2', '--out=o.jsonl']
    write(project.path / 's.jsonl', [row | {'text': row['text'].replace(' ', ' बहुत अच्छे ')} for row in ROWS[:3]])
    assert f'6 {reason}' in project.run(*command)
    assert project.jsonl('o.jsonl') == []
    assert sorted((row['id'], row['reason']) for row in project.jsonl('failed.jsonl')) == [(i, reason) for i in range(3)]
    assert 'all 3 stories are done in o.jsonl, but 3 of them failed: see failed.jsonl' in project.run(*command)

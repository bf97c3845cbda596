"""translate.py: a stand-in for Transformers, a small NLLB with random weights, a chat API on loopback."""

import csv
import gzip
import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

FRENCH = ('translate.py', '--source=s.jsonl', '--source_language=english', '--target_language=french', '--device=cpu')
CHAT = ('translate.py', '--source=s.jsonl', '--source_language=hindi', '--target_language=marathi', '--out=o.jsonl')
ROWS = [{'id': i, 'noun': f'n{i}', 'reason': 'why not', 'text': f'एक दिन {i}।\r\n\r\n\r\nफिर सब लोग सो गए {i}।'}
        for i in range(40)]

LAYOUT = '{} “{}”\n\n— {}\n'


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')


def kill_after_rows(project, *command, out):
    """Kill the command when its output contains a row."""
    process = project.start(*command, f'--out={out}')
    path = project.path / out
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert path.stat().st_size


# Stands in for Transformers: a character is a token, and the translation of a sentence is ⟦the sentence⟧.
TRANSFORMERS = '''
import torch
from torch.nn.functional import pad
from types import SimpleNamespace
class logging:
    set_verbosity_error = disable_progress_bar = print
class Tokens(dict):
    __getattr__ = dict.__getitem__
    to = lambda self, device: self
class AutoTokenizer:
    all_special_tokens, eos_token_id, pad_token_id = [], 1, 0
    from_pretrained = classmethod(lambda cls, folder, **options: cls())
    def __call__(self, text):
        return Tokens(input_ids=[ord(char) for char in text])
    def pad(self, batch, return_tensors):
        rows = [torch.tensor(ids) for ids in batch['input_ids']]
        return Tokens(input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), attention_mask=None)
    def batch_decode(self, rows, **options):
        return ['⟦' + ''.join(chr(i) for i in ids if i > 1) + '⟧' for ids in rows.tolist()]
class AutoModelForSeq2SeqLM:
    config, device = SimpleNamespace(max_position_embeddings=98), 'cpu'
    from_pretrained = classmethod(lambda cls, folder, **options: (cls(), {'missing_keys': []}))
    to = lambda self, device: self
    eval = lambda self: self
    def generate(self, input_ids, **options):
        return pad(pad(input_ids, (1, 0)), (0, 1), value=1)
'''
MARKED = [
    '⟦Mr. Fox and Dr. A. K. Sharma paid 3.14 coins.⟧ ⟦So did I.⟧ ⟦Then ...⟧ ⟦He left.⟧',
    '⟦Gen. Roy paid Rs. 20 at No. 12, Mt. Abu.⟧  ⟦Who?!⟧ ⟦No.⟧\t⟦Vol. 3 of J.R.R. Rao.⟧ ⟦It was cold.⟧ ⟦90 came.⟧',
    '⟦कु. मीना ने सं. 9 पर रु. 20.50 दिए।⟧ ⟦स्व. ए. पी. जे. इंजी. थे।⟧ ⟦वह आई।⟧⟦माँ हँसी।⟧', '⟦वह घर पर है.⟧ ⟦माँ थी.⟧',
    '⟦सौ. लता व पु. ल. देशपांडे क्र. ९ ला आले.⟧ ⟦ते हसले.⟧ ⟦काय?!⟧', '⟦মি. দাস ও ড. সেন নং. ৯ বাসে।⟧ ⟦কে?⟧',
    '⟦M. Roy, Mme. Petit et Ste. Anne ont env. 10 ans.⟧ ⟦Quoi ?!⟧ ⟦Non...⟧ ⟦Elle rit, etc. puis dort.⟧',
    '⟦திரு. ராமன் வந்தார்.⟧ ⟦டாக்டர். குமார் சிரித்தார்.⟧',
    '⟦శ్రీమతి. రావు వచ్చారు.⟧ ⟦ఆమె నవ్వింది.⟧', '⟦ഡോ. നായർ വന്നു.⟧ ⟦അവൻ പോയി.⟧',
    '⟦श्रीमती. जोशी आल्या.⟧ ⟦त्या हसल्या.⟧',
    '⟦Sra. Lopez vino.⟧ ⟦Ella rio.⟧', '⟦Acme Inc. paid approx. 3 coins.⟧ ⟦Go.⟧',
    '“⟦Run!⟧” ⟦Mia ran.⟧ “⟦Go on.⟧ ⟦Faster!⟧”',
    '⟦"Come!" said Mia.⟧ ⟦He came.⟧ ⟦Wait… what?⟧ ⟦“Yes,” he said.⟧',
    '“⟦मुझे छोड़ना मत!⟧” ⟦रवि ने कहा।⟧ ⟦वह... चला गया॥⟧',
    '⟦একদিন ডা. রায় এলেন।⟧ "⟦কে?⟧"',
    '« ⟦Tu viens ?⟧ » ⟦Elle partit.⟧',
    '⟦« Oui ! » dit-elle.⟧\r\n\n— ⟦Non !⟧\n— ⟦M. Dupont rit.⟧',
    "⟦'Stop!' he cried.⟧ ⟦The dogs' bowl.⟧ ⟦He saw dogs (big ones).⟧ (⟦It was late.⟧)\n* * *\n1.",
    # too long for the model: cut at the comma nearest to the middle, else at a space, else anywhere
    f'⟦{"Aaa " * 9}aaa,⟧ ⟦{"bbb " * 9}bbb.⟧', f'⟦{"ccc " * 7}ccc⟧ ⟦{"ccc " * 7}ccc⟧', f'⟦{"d" * 40}⟧⟦{"d" * 40}⟧']


@pytest.fixture
def marking(project):
    """A project in which every sentence is marked instead of translated."""
    (project.path / 'transformers.py').write_text(TRANSFORMERS, encoding='utf-8')
    (project.path / 'marker').mkdir()
    return project


def test_each_sentence_is_translated_and_everything_between_is_kept(marking):
    parts = 'a B क । . … " “ ” « » \n \r\n ( — Mr 3 ! \' \u00a0'.split(' ')
    rng = random.Random(1)
    texts = [re.sub('[⟦⟧]', '', marked) for marked in MARKED]
    texts += ['x' + ''.join(rng.choices([*parts, ' ', '. '], k=rng.randrange(40))) for _ in range(500)]
    write(marking.path / 's.jsonl', [{'id': i, 'text': text} for i, text in enumerate(texts)])
    marking.run(*FRENCH, '--model=marker', '--out=o.jsonl')
    translations = [row['text'] for row in marking.jsonl('o.jsonl')]
    assert translations[:len(MARKED)] == [marked.replace('।⟧⟦', '।⟧ ⟦').replace('\r', '') for marked in MARKED]
    for text, translation in zip(texts, translations):
        assert re.sub(r'[⟦⟧\s]', '', translation) == re.sub(r'\s', '', text)
        assert translation.count('\n') == text.strip().count('\n')


@pytest.fixture(scope='module')
def script(tmp_path_factory):
    """The functions of translate.py, with a model that changes nothing, and fits 20 characters."""
    folder = tmp_path_factory.mktemp('done')
    write(folder / 's.jsonl', ROWS[:1])
    write(folder / 'o.jsonl', [ROWS[0] | {'language': 'french'}])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', [*FRENCH, '--out=o.jsonl'])
        functions = runpy.run_path(str(PROJECT / 'translate.py'))
    variables = functions['translate'].__globals__
    variables['translate'] = lambda sentences: {sentence: (sentence, {}) for sentence in sentences}
    variables['tokenizer'] = lambda text: SimpleNamespace(input_ids=text)
    variables['options'] = {'max_new_tokens': 40}
    return functions


PIECES = st.sampled_from([*'aB3.।॥!?…,“”"«»()—|\' \n\t\u00a0\u2003\x1c', 'रवि', 'Dr', '  ', '\n\n \n'])


@given(st.lists(PIECES, max_size=30).map(''.join) | st.text())
@settings(max_examples=300, deadline=None, database=None, derandomize=True)
def test_a_text_whose_sentences_do_not_change_stays_the_same(script, text):
    assert script['translate_rows']([{'text': text}])[0]['text'] == text
    *_, last = script['split_sentences'](text)
    assert ''.join(script['split_sentences'](text)) == text and '\n' not in last.strip()


@pytest.mark.slow
def test_the_source_can_be_a_table_or_texts(marking):
    texts = ['Rs. 5 only.\r\n\r\nHe left.', 'It, was; late.', 'The end.']
    expected = ['⟦Rs. 5 only.⟧\n\n⟦He left.⟧', '⟦It, was; late.⟧', '⟦The end.⟧']
    with open(marking.path / 'a.csv', 'w', encoding='utf-16', newline='') as f:
        table = csv.writer(f, delimiter='\t')
        table.writerows([['id', 'title', 'story'], *([f'n{i}', 'Tale', text] for i, text in enumerate(texts))])
    (marking.path / 'a.json').write_text(json.dumps([{'story': text} for text in (None, *texts)]), encoding='utf-8')
    (marking.path / 'a').mkdir()
    for i, text in enumerate(texts):
        (marking.path / f'a/{i}.txt').write_bytes(text.encode())
    command = (*FRENCH, '--model=marker')
    ids = {'a.csv': ['n0', 'n1', 'n2'], 'a.json': [2, 3, 4], 'a': [1, 2, 3]}
    for source, source_ids in ids.items():
        marking.run(*command, f'--source={source}', f'--out={source}.jsonl')
        rows = marking.jsonl(f'{source}.jsonl')
        assert [row['text'] for row in rows] == expected and [row['id'] for row in rows] == source_ids
        assert 'story' not in rows[0]  # prepare.py would read it in place of the translation
        assert 'all 3 stories are done' in marking.run(*command, f'--source={source}', f'--out={source}.jsonl')
    (marking.path / 'a.txt').write_text('One.\n==\nTwo.\n', encoding='utf-8')
    marking.run(*command, '--source=a.txt', r'--separator=\n==\n', '--out=txt.jsonl')
    assert [row['text'] for row in marking.jsonl('txt.jsonl')] == ['⟦One.⟧', '⟦Two.⟧']
    write(marking.path / 'two.jsonl', [{'text': 'A title', 'body': 'A tale.'}])
    marking.run(*command, '--source=two.jsonl', '--text_column=body', '--out=body.jsonl')
    assert [row['text'] for row in marking.jsonl('body.jsonl')] == ['⟦A tale.⟧']


@pytest.mark.slow
def test_make_translates_the_splits_of_a_data_set(project, chat_server):
    url = chat_server(reply='{"translation": "X {prompt} Y"}').url
    (project.path / 'tales/data').mkdir(parents=True)
    shutil.copy(PROJECT / 'Makefile', project.path)
    env = {name: value for name, value in os.environ.items() if name not in ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL')}
    splits = {'train': ['A cat ran.', 'A cat hid.'], 'validation': ['A dog sat.']}
    for split, texts in splits.items():
        pyarrow.parquet.write_table(pyarrow.table({'text': texts}), project.path / f'tales/data/{split}-0.parquet')
    for split, texts in splits.items():
        command = ['make', '-s', '-o', '.venv/installed', f'PY={sys.executable}', 'translate', 'SOURCE=hf:tales',
                   f'SPLIT={split}', 'MODEL=tiny', f'ARGS=--base_url={url} --template={{text}}']
        subprocess.run(command, cwd=project.path, env=env, check=True)
        rows = project.jsonl(f'data/french/translated/{split}.jsonl')
        expected = [(i, f'X {text} Y') for i, text in enumerate(texts, 1)]
        assert sorted((row['id'], row['text']) for row in rows) == expected


@pytest.mark.slow
def test_a_killed_run_resumes_and_shards_are_disjoint(marking):
    rows = [{'id': f's{i}', 'noun': 'नाव', 'reason': None, 'text': f'Story {i}. It ends.'} for i in range(600)]
    write(marking.path / 's.jsonl', rows)
    (marking.path / 's.jsonl.gz').write_bytes(gzip.compress((marking.path / 's.jsonl').read_bytes()))
    command = (*FRENCH, '--model=marker')
    path = marking.path / 'out/killed.jsonl'
    kill_after_rows(marking, *command, '--batch_size=1', out='out/killed.jsonl')
    with open(path, 'ab') as f:
        f.write('{"id": 21, "text": "दि'.encode()[:-1])
    assert '600 stories in out/killed.jsonl' in marking.run(*command, '--out=out/killed.jsonl')
    for row, new in zip(rows, marking.jsonl(path), strict=True):
        assert new == new | row | {'text': f'⟦Story {row["id"][1:]}.⟧ ⟦It ends.⟧', 'language': 'french'}
    lines = path.read_bytes().splitlines()
    assert 'all 600 stories are done' in marking.run(*command, '--out=out/killed.jsonl')
    for part in (1, 2):
        marking.run(*command, '--source=s.jsonl.gz', f'--shard={part}/2', f'--out={part}.jsonl')
        assert (marking.path / f'{part}.jsonl').read_bytes().splitlines() == lines[part - 1::2]
    assert 'not in' in marking.refuses(*command, '--shard=1/2', '--out=2.jsonl')


def random_sentence(rng, n_words):
    words = [''.join(rng.choices('abcdefghijklmnopqrstuvwxyz', k=rng.randint(2, 5))) for _ in range(n_words)]
    return ' '.join(words).capitalize() + 'alo' + rng.choice('.!?')  # a word without vowels is an abbreviation


def make_nllb(folder, rng):
    """Write a translation model of NLLB's classes with random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    bpe = Tokenizer(models.BPE(unk_token='<unk>'))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ['<s>', '<pad>', '</s>', '<unk>']
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
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
        weight[-208:] *= 0.1  # generate few names of languages
        model.model.decoder.layer_norm.bias += 13 * weight[2] / weight[2].norm()**2  # let some sentences end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer, model.eval()


@pytest.mark.slow
def test_a_model_translates_as_it_does_alone(project):
    from safetensors.torch import load_file, save_file
    rng = random.Random(1)
    tokenizer, model = make_nllb(project.path / 'nllb', rng)
    tokenizer.src_lang = 'eng_Latn'
    french = tokenizer.convert_tokens_to_ids('fra_Latn')
    stories = [[random_sentence(rng, rng.randint(1, 5)) for _ in range(3)] for _ in range(20)]
    rows = [{'id': i, 'text': LAYOUT.format(*parts)} for i, parts in enumerate(stories)]
    rows += [{'id': 'x', 'text': '7, 8!'}, {'id': '', 'text': 'e\u0301\ud800', 'more': '\ud800'}]
    write(project.path / 's.jsonl', rows)
    command = (*FRENCH, '--model=nllb', '--out=o.jsonl')
    line = project.refuses(*command, '--target_language=fra_Lat')
    assert "no language 'fra_Lat'" in line and 'fra_Latn' in line

    assert '22 stories in o.jsonl' in project.run(*command)
    *new_rows, no_letters, surrogate = project.jsonl('o.jsonl')
    assert no_letters['text'] == '7, 8!' and surrogate['more'] == '\ud800'
    translations = set()
    for new, parts in zip(new_rows, stories, strict=True):
        expected = []
        for part in parts:
            inputs = tokenizer(part, return_tensors='pt')
            ids = model.generate(**inputs, max_new_tokens=64, do_sample=False, forced_bos_token_id=french)
            expected.append(' '.join(tokenizer.decode(ids[0], skip_special_tokens=True).split()))
        assert new['text'] == LAYOUT.format(*expected).strip()
        assert new['language'] == 'french' and new['model'] == 'nllb' and new['completion_tokens'] > 0
        translations |= set(expected)
    assert len(translations) > 30  # or else the comparison means little

    weights = load_file(project.path / 'nllb/model.safetensors')
    del weights['model.decoder.layers.0.fc1.weight']
    save_file(weights, project.path / 'nllb/model.safetensors', {'format': 'pt'})
    assert 'the weights lack model.decoder.layers.0.fc1.weight' in project.refuses(*command, '--out=other.jsonl')


@pytest.mark.slow
@pytest.mark.parametrize('source, out, options, message', [
    (ROWS, [], ['--source=none.jsonl'], 'none.jsonl'), (ROWS, [], ['--out=s.jsonl'], 'something other than'),
    (ROWS, [], ['--out=o.txt'], 'end in .jsonl'), (ROWS, [], ['--shard=3/2'], "'3/2'"),
    (ROWS, [], ['--target_language=english'], 'both'),
    (ROWS, [], ['--provider=mistral', '--template=Do!'], 'template'),
    ([], [], [], 'no story'), ([ROWS[0], ROWS[0]], [], [], 'twice'),
    ([ROWS[0], {'id': [1], 'text': 'a'}], [], [], 'row 2'),
    ([7], [], [], 'row 1'), (ROWS, [{'id': 1, 'text': 'a'}], [], 'something other than'),
    (ROWS, [7], [], 'something other than'), (ROWS, [ROWS[1] | {'language': 'hindi'}], [], 'something other than'),
    (ROWS, [{'id': 99, 'text': 'a', 'language': 'french'}], [], 'not in'),
    (ROWS, [ROWS[1] | {'noun': 'n2', 'language': 'french'}], [], 'another story')])
def test_a_wrong_setting_or_file_is_one_line(project, source, out, options, message):
    write(project.path / 's.jsonl', source)
    write(project.path / 'o.jsonl', out)
    line = project.refuses(*FRENCH, '--out=o.jsonl', *options)
    assert line.startswith('translate.py: ') and message in line
    assert project.jsonl('o.jsonl') == out


def test_a_chat_api_translates_each_story_once(project, chat_server):
    server = chat_server(reply='Here: ```{"translation": "X {prompt} Y"}```', latency=0.05)
    template = '{source_language} {target_language} {text}'
    command = (*CHAT, f'--base_url={server.url}', f'--template={template}', '--num_workers=4')
    write(project.path / 's.jsonl', ROWS)
    assert 'X Hindi Marathi एक दिन 0।' in project.run(*command, '--dry_run=1')
    assert not (project.path / 'o.jsonl').exists()
    kill_after_rows(project, *command, out='o.jsonl')
    project.run(*command)
    changes = {'language': 'marathi', 'model': 'tiny', 'prompt_tokens': 100, 'completion_tokens': 300, 'cost': 0.0}
    expected = [row | {'text': f'X Hindi Marathi {row["text"]} Y'.replace('\r', '')} | changes for row in ROWS]
    assert sorted(project.jsonl('o.jsonl'), key=lambda row: row['id']) == expected
    assert server.counts()['requests'] <= 1 + 40 + 4


@pytest.mark.slow
@pytest.mark.parametrize('reply, reason', [
    ('{"translation": "{prompt}"}', 'not translated'), ('{"translation": "एक ओळ"}', 'another number of lines'),
    ('{"translation": "Ek divas khup sundar hota\\n\\nmag to shant zhopla"}', 'not in devanagari script'),
    ('{"translation": ["{prompt}"]}', 'no JSON with a translation'),
    ('{"translation": "a\\nb"}', 'too short or too long'),
    ('{"translation": "एक\ufffd दिवस झाडाखाली\\n\\nझोपला"}', 'broken characters')])
def test_a_bad_translation_is_tried_again_and_given_up(project, chat_server, reply, reason):
    command = (*CHAT, f'--base_url={chat_server(reply=reply).url}', '--template={text}', '--max_tries=2')
    rows = [row | {'text': row['text'].replace(' ', ' बहुत अच्छे ')} for row in ROWS[:3]]
    write(project.path / 's.jsonl', rows)
    assert '3 of 3 stories were given up' in project.refuses(*command, status=1)
    failed = sorted((row['id'], row['reason']) for row in project.jsonl('failed.jsonl'))
    assert failed == [(i, reason) for i in range(3)] and project.jsonl('o.jsonl') == []
    assert '3 of 3 stories were given up' in project.refuses(*command, status=1)
    assert '3 of them failed: see failed.jsonl' in project.run(*command, '--max_failed=1')

"""Bad inputs: every script, by its command line, answers each of them with one clear line and a non-zero exit, or with sensible work."""

import json
import shutil

import pytest
from conftest import Project

HINDI = 'एक दिन रवि बाग में गया। वहाँ उसने एक बिल्ली देखी।'
SMALL = ('--dataset=tiny', '--device=cpu', '--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32', '--batch_size=4', '--max_iters=2', '--eval_iters=1')
TELL = ('--out_dir=out/tiny', '--device=cpu', '--max_new_tokens=8')
RUBRIC = 'config/evaluate_stories.py'
FOLDER = None  # in place of a file's bytes


def rows(*rows):
    """Objects as the bytes of a .jsonl."""
    return b''.join(json.dumps(row, ensure_ascii=False).encode('utf-8', 'backslashreplace') + b'\n' for row in rows)


def story(**changes):
    return {'id': 0, 'prompt': 'एक दिन', 'story': HINDI, 'text': HINDI, 'ended': 'eos'} | changes


def toy(**files):
    """The files of data/toy, a language of few words; with one of them replaced."""
    files = {'nouns': 'cat\ndog', 'verbs': 'run', 'adjectives': 'red', 'features': 'fun', 'characters': 'word\ttags\nMia\tf', 'plots':
             'genders: m f\ncast: hero=f\n\n== plot one\nThe {adjective} {hero} saw a {noun} and began to {verb}.\n'} | files
    return {f'data/toy/{name}.txt': content.encode() if isinstance(content, str) else content for name, content in files.items()}


def pipeline(**model):
    """The bytes of a tokenizer.json with this model in it."""
    return json.dumps(dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder')) | {
        'version': '1.0', 'added_tokens': [], 'model': model}).encode()


ASK = ('config/generate_hindi.py', '--base_url=http://127.0.0.1:9', '--model=m', '--out=o.jsonl')
GENERATE, PREPARE = ('--language=toy', '--total=2', '--out=o.jsonl'), ('--source=s.jsonl', '--dataset=new', '--vocab_size=300')
TRANSLATE = ('--source=s.jsonl', '--source_language=hindi', '--target_language=french', '--out=o.jsonl', '--base_url=http://127.0.0.1:9', '--model=m')
JUDGE = (RUBRIC, '--samples=s.jsonl', '--base_url=http://127.0.0.1:9', '--model=m')
SAMPLES = {'s.jsonl': rows(story())}

REFUSED = [  # script, options, files, what the one line says
    # config files and values, which every script reads by the same lines
    ('generate_data.py', ['c.py'], {'c.py': b'\x00\x01\x02\xff' * 50}, 'c.py, line'),
    ('generate_data.py', ['c.py'], {'c.py': 'total = 3\n'.encode('utf-16')}, 'c.py'),
    ('generate_data.py', ['c.py'], {'c.py': 'language = "é"\n'.encode('latin-1')}, 'c.py'),
    ('generate_data.py', ['c.py'], {'c.py': b'total == = 3'}, 'SyntaxError'),
    ('generate_data.py', ['c.py'], {'c.py': b'def f():\n    f()\nf()'}, 'RecursionError'),
    ('generate_data.py', ['c.py'], {'c.py': b'toatl = 3'}, "did you mean 'total'?"),
    ('generate_data.py', ['c.py'], {'c.py': b'import sys\nsys.exit()'}, 'c.py'),
    ('generate_data.py', ['config'], {}, 'config: Is a directory'),
    ('generate_data.py', ['c.json'], {'c.json': b'[' * 100_000}, 'c.json'),
    ('generate_data.py', ['c.py'], {'c.py': b'out = "a\\0b.jsonl"'}, 'c.py: out'),
    ('generate_data.py', ['--total=True'], {}, 'total wants int'),
    ('generate_data.py', ['--total=' + '9' * 5000], {}, 'total wants int'),
    ('sample.py', ['--temperature=nan'], {}, 'temperature wants float'),
    # generate_data.py
    ('generate_data.py', GENERATE, toy(nouns=''), 'nouns.txt holds no word'),
    ('generate_data.py', GENERATE, toy(nouns='# cat\n\n \t \n'), 'nouns.txt holds no word'),
    ('generate_data.py', GENERATE, toy(nouns='chat\nété\n'.encode('latin-1')), 'nouns.txt'),
    ('generate_data.py', GENERATE, toy(nouns='cat\ndog\n'.encode('utf-16')), 'nouns.txt'),
    ('generate_data.py', GENERATE, toy(nouns='cat\ndog\n'.encode('utf-16-le')), 'nouns.txt'),
    ('generate_data.py', GENERATE, toy(nouns=FOLDER), 'nouns.txt'),
    ('generate_data.py', GENERATE, toy(characters=b'\xed\xa0\x80 half a pair'), 'characters.txt'),
    ('generate_data.py', GENERATE, toy(plots='kein Plot'), 'holds no plot'),
    ('generate_data.py', [*GENERATE, '--words=[]', '--total=1'], toy(), 'words'),
    ('generate_data.py', [*GENERATE, '--words=[1]'], toy(), 'words'),
    ('generate_data.py', [*GENERATE, '--out=o.jsonl/'], toy() | {'o.jsonl': FOLDER}, 'o.jsonl'),
    ('generate_data.py', GENERATE, toy() | {'o.jsonl': FOLDER}, 'o.jsonl could not be opened'),
    ('generate_data.py', [*GENERATE, '--out=f/o.jsonl'], toy() | {'f': b''}, 'f/o.jsonl could not be opened'),
    ('generate_data.py', GENERATE, toy() | {'o.jsonl': rows([1], 2)}, 'o.jsonl holds another story'),
    ('generate_data.py', GENERATE, toy() | {'o.jsonl': rows({'id': 1.0, 'noun': 'cat'})}, 'o.jsonl holds another story'),
    ('generate_data.py', GENERATE, toy() | {'o.jsonl': 'x\n{}\n'.encode('utf-16')}, 'o.jsonl, line 1'),
    ('generate_data.py', [*ASK, '--min_words=50', '--max_words=40'], {}, 'min_words'),
    ('generate_data.py', [*ASK, '--min_script=1.5'], {}, 'min_script'),
    ('generate_data.py', [*ASK, '--themes=[1]'], {}, 'themes'),
    ('generate_data.py', [*ASK, '--levels={1: 2}', '--complexity=1'], {}, 'levels'),
    ('generate_data.py', [*ASK, '--temperature=1e999'], {}, 'temperature'),
    ('generate_data.py', [*ASK, '--temperature=-1'], {}, 'temperature'),
    ('generate_data.py', [*ASK, '--max_tokens=0'], {}, 'max_tokens'),
    ('generate_data.py', [*ASK, '--timeout=1e999'], {}, 'timeout'),
    ('generate_data.py', [*ASK, '--max_cost=-1', '--price_in=1', '--price_out=1'], {}, 'max_cost'),
    ('generate_data.py', [*ASK, '--price_in=1e999', '--price_out=1'], {}, 'price_in'),
    ('generate_data.py', [*ASK, '--num_workers=1000000000'], {}, 'num_workers'),
    ('generate_data.py', [*ASK, "--extra={'a': {1}}"], {}, 'extra'),
    ('generate_data.py', [*ASK[:1], '--base_url=https://example.org/v1?key=secret', '--model=m'], {}, 'base_url'),
    # prepare.py
    ('prepare.py', PREPARE, {'s.jsonl': rows(story()).decode().encode('utf-16')}, 's.jsonl, line 1'),
    ('prepare.py', ['--source=s.txt', *PREPARE[1:]], {'s.txt': HINDI.encode('utf-16-le')}, 's.txt'),
    ('prepare.py', ['--source=s.csv', *PREPARE[1:]], {'s.csv': 'text\nThe cat sat.\n'.encode('utf-16-le')}, 's.csv'),
    ('prepare.py', ['--source=s.json', *PREPARE[1:]], {'s.json': b'[' * 100_000}, 's.json'),
    ('prepare.py', PREPARE, {'s.jsonl': b'{"text": ' + b'[' * 100_000 + b'\n'}, 's.jsonl, line 1'),
    ('prepare.py', PREPARE, {'s.jsonl': rows({'text': None}, {'text': None})}, 'no story in it'),
    ('prepare.py', PREPARE, {'s.jsonl': rows({'text': True})}, 'not text but True'),
    ('prepare.py', PREPARE, {'s.jsonl': rows(story(), 7)}, 'row 2: neither an object nor a text'),
    ('prepare.py', PREPARE, {'s.jsonl': b'{"text": "\xed\xa0\xbd half a pair"}\n'}, 's.jsonl, line 1'),
    ('prepare.py', [*PREPARE, '--dataset=file'], SAMPLES | {'data/file': b''}, 'data/file'),
    ('prepare.py', [*PREPARE, '--num_proc=-1'], SAMPLES, 'num_proc'),
    ('prepare.py', [*PREPARE, '--num_proc=1000000000'], SAMPLES, 'num_proc'),
    ('prepare.py', [*PREPARE, '--decode=-5'], SAMPLES, 'decode'),
    ('prepare.py', [*PREPARE, '--vocab_size=-5'], SAMPLES, 'vocab_size'),
    ('prepare.py', [*PREPARE, '--val_fraction=1e999'], SAMPLES, 'val_fraction'),
    ('prepare.py', [*PREPARE, '--val_fraction=0.99999'], SAMPLES, 'but those set aside'),
    ('prepare.py', [*PREPARE, "--special_tokens=['</s>']"], SAMPLES, '</s>'),
    ('prepare.py', [*PREPARE, '--tokenizer='], SAMPLES, 'tokenizer'),
    ('prepare.py', [*PREPARE, '--tokenizer=t.json'], SAMPLES | {'t.json': FOLDER}, 't.json'),
    ('prepare.py', [*PREPARE, '--tokenizer=t.json'], SAMPLES | {'t.json': '{"é": 1}'.encode('latin-1')}, 't.json'),
    ('prepare.py', [*PREPARE, '--tokenizer=t.json'], SAMPLES | {'t.json': pipeline(type='WordLevel', vocab={'a': 2**32 - 2, 'b': 0}, unk_token='b')}, 't.json'),
    ('prepare.py', [*PREPARE, '--tokenizer=t.json'], SAMPLES | {'t.json': pipeline(type='BPE', vocab={'a': 0, 'b': 1}, merges=[])},
     'no story in it that t.json has tokens for'),
    # train.py
    ('train.py', [*SMALL, '--n_kv_head=-1'], {}, 'n_kv_head'),
    ('train.py', [*SMALL, '--n_inner=-8'], {}, 'n_inner'),
    ('train.py', [*SMALL, '--rope_theta=0'], {}, 'rope_theta'),
    ('train.py', [*SMALL, '--n_layer=1000000000'], {}, 'n_layer'),
    ('train.py', [*SMALL, '--n_embd=0'], {}, 'n_embd'),
    ('train.py', [*SMALL, '--max_iters=0'], {}, 'max_iters'),
    ('train.py', [*SMALL, '--warmup_iters=-1'], {}, 'warmup_iters'),
    ('train.py', [*SMALL, '--learning_rate=1e999'], {}, 'learning_rate is inf'),
    ('train.py', [*SMALL, '--dropout=1.0'], {}, 'dropout is 1.0'),
    ('train.py', [*SMALL, '--n_head=3'], {}, 'multiple of n_head'),
    ('train.py', [*SMALL, '--init_from=out/tiny', '--block_size=64', '--out_dir=out/x'], {}, 'reads 32 tokens at most'),
    ('train.py', [*SMALL, '--out_dir=f'], {'f': b''}, 'f/ckpt.pt could not be written'),
    ('train.py', [*SMALL, '--dataset=f'], {'data/f': b''}, 'meta.json'),
    # sample.py
    ('sample.py', [*TELL, '--temperature=1e999'], {}, 'temperature'),
    ('sample.py', [*TELL, '--top_p=0.0'], {}, 'top_p'),
    ('sample.py', [*TELL, '--repetition_penalty=1e999'], {}, 'repetition_penalty'),
    ('sample.py', [*TELL, '--max_new_tokens=1000000000000'], {}, 'max_new_tokens'),
    ('sample.py', [*TELL, '--num_samples=1000000000000'], {}, 'num_samples'),
    ('sample.py', [*TELL, '--start=FILE:p.txt'], {'p.txt': HINDI.encode('utf-16')}, 'p.txt'),
    ('sample.py', [*TELL, '--start=FILE:p.txt'], {'p.txt': 'The cat\n'.encode('utf-16-le')}, 'p.txt'),
    ('sample.py', [*TELL, '--start=FILE:p.txt'], {'p.txt': FOLDER}, 'p.txt'),
    ('sample.py', [*TELL, '--start=FILE:p.txt'], {'p.txt': b' \n\n'}, 'p.txt has no line'),
    ('sample.py', [*TELL, '--out=o.jsonl'], {'o.jsonl': FOLDER}, 'o.jsonl'),
    ('sample.py', ['--init_from=s.jsonl'], SAMPLES, 's.jsonl'),
    # evaluate.py
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows(story()).decode().encode('utf-16')}, 's.jsonl, line 1'),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': FOLDER}, 's.jsonl is no file'),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': b''}, 'holds no story'),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows({'story': ''}) * 1_000_000}, 'more than 200,000 stories'),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows(story(story=None, text=None))}, 'no story or text'),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows(story(), story())}, 'two stories with one id'),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows(story(id=None))}, 'an id is'),
    ('evaluate.py', ['--samples=s.jsonl', '--script=klingon'], SAMPLES, 'klingon'),
    ('evaluate.py', ['--samples=s.jsonl', '--repeat=1e999'], SAMPLES, 'repeat'),
    ('evaluate.py', [*JUDGE, '--scale=[1, 1e999]'], SAMPLES, 'scale'),
    ('evaluate.py', [*JUDGE, '--scale=[False, True]'], SAMPLES, 'scale'),
    ('evaluate.py', [*JUDGE, "--criteria={1: 'good'}"], SAMPLES, 'criteria'),
    ('evaluate.py', [*JUDGE, "--choices={'grammar': {1: 2, 2: 3}}"], SAMPLES, 'choices'),
    ('evaluate.py', ['--samples=s.jsonl', '--ngrams=[True]'], SAMPLES, 'ngrams'),
    ('evaluate.py', ['--samples=s.jsonl'], SAMPLES | {'grades.jsonl': rows([1], 5)}, 'grades.jsonl'),
    ('evaluate.py', [RUBRIC, '--samples=s.jsonl'], SAMPLES | {'grades.jsonl': rows({'id': 'a', 'repeat': 'x', 'judge': 'm', 'scores': {}})}, 'grades.jsonl'),
    ('evaluate.py', ['--samples=s.jsonl', '--out_dir=o'], SAMPLES | {'grades.jsonl': rows({'id': ['a']})}, 'grades.jsonl'),
    ('evaluate.py', ['--samples=s.jsonl', '--out_dir=f'], SAMPLES | {'f': b''}, 'out_dir f'),
    # translate.py
    ('translate.py', TRANSLATE, {'s.jsonl': rows(story()).decode().encode('utf-16')}, 's.jsonl, line 1'),
    ('translate.py', TRANSLATE, {'s.jsonl': rows(story(text=''))}, 'row 1'),
    ('translate.py', TRANSLATE, {'s.jsonl': rows(story(text=5))}, 'row 1'),
    ('translate.py', TRANSLATE, {'s.jsonl': rows(story(id=None))}, 'row 1'),
    ('translate.py', TRANSLATE, {'s.jsonl': rows(story(), story())}, 'twice'),
    ('translate.py', TRANSLATE, {'s.jsonl': FOLDER}, 's.jsonl'),
    ('translate.py', [*TRANSLATE, '--min_ratio=3.0'], SAMPLES, 'min_ratio'),
    ('translate.py', [*TRANSLATE, '--max_new_tokens=0'], SAMPLES, 'max_new_tokens'),
    ('translate.py', TRANSLATE, SAMPLES | {'o.jsonl': rows(5)}, 'o.jsonl holds something else'),
    # export.py
    ('export.py', ['--out_dir=out/tiny', '--temperature=1e999'], {}, 'temperature'),
    ('export.py', ['--out_dir=out/tiny', '--examples=1000000000000'], {}, 'examples'),
    ('export.py', ['--out_dir=s.jsonl'], SAMPLES, 's.jsonl'),
    # sweep.py
    ('sweep.py', ["--settings=[{'n_layer': 1}]", '--out_dir=f'], {'f': b''}, 'f'),
    ('sweep.py', ["--settings=[{'n_layer': 1}]", '--out_dir=o'], {'o/n_layer=1/done.json': b'{"tr'}, 'done.json'),
    ('sweep.py', ["--settings=[{'n_layer': 1}]", '--nproc_per_node=0'], {}, 'nproc_per_node'),
]



WORKS = [  # script, options, files, what holds afterwards of the project and of what was printed
    ('generate_data.py', GENERATE, toy(nouns='\ufeffcat\r\ndog\r\n'.encode()), lambda p, out: {row['noun'] for row in p.jsonl('o.jsonl')} == {'cat', 'dog'}),
    ('prepare.py', PREPARE, {'s.jsonl': '\ufeff'.encode() + rows(story(text='café'))}, lambda p, out: p.json('data/new/meta.json')['bytes']['train'] == 5),
    ('prepare.py', PREPARE, {'s.jsonl': rows(story(text=HINDI + '\0' + HINDI), story(text='c'))},
     lambda p, out: p.json('data/new/meta.json')['bytes']['train'] == 1 + 2 * len(HINDI.encode())),
    ('prepare.py', PREPARE, {'s.jsonl': rows({'text': '\ud83d half'})}, lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 1),
    ('prepare.py', PREPARE, {'s.jsonl': rows(story(notes='रवि बाग में गया। ' * 1_100_000))},
     lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 1),
    ('prepare.py', PREPARE, {'s.jsonl': rows({'text': ''}) * 1_000_000 + rows(story())},
     lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 1),
    ('prepare.py', [*PREPARE, '--tokenizer=t.json'],
     {'s.jsonl': rows(story(text='abba'), story()), 't.json': pipeline(type='BPE', vocab={'a': 0, 'b': 1}, merges=[])},
     lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 1),
    ('prepare.py', [*PREPARE, '--decode=1000000000000'], SAMPLES, lambda p, out: HINDI in out),
    ('prepare.py', PREPARE, {'s.jsonl': rows(story(), story())}, lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 2),
    ('train.py', [*SMALL, '--out_dir=out/x', '--block_size=1'], {}, lambda p, out: 'done at step 2' in out),
    ('sample.py', [*TELL, '--start=एक दिन', '--temperature=0', '--num_samples=2', '--out=o.jsonl'], {},
     lambda p, out: len({row['story'] for row in p.jsonl('o.jsonl')}) == 1),
    ('sample.py', [*TELL, '--start=FILE:p.txt', '--out=o.jsonl'], {'p.txt': '\n'.join(['𓀀𓁐 ጤና Ωμέγα 🐘', 'एक ' * 500, '\ufeffरवि', 'a\x1b[31mb']).encode()},
     lambda p, out: all(row['story'].startswith(row['prompt']) for row in p.jsonl('o.jsonl'))),
    ('sample.py', [*TELL, '--start=', '--out=o.jsonl'], {}, lambda p, out: p.jsonl('o.jsonl')[0]['prompt'] == ''),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows(*(story(id=i, story='', prompt='') for i in range(5)))},
     lambda p, out: p.json('results.json')['models']['s']['stories'] == 5),
    ('evaluate.py', ['--samples=s.jsonl'], {'s.jsonl': rows(story(story='\ud83d' + HINDI), story(id=1, story='\0\x1b[2J'))},
     lambda p, out: p.json('results.json')['models']['s']['stories'] == 2),
    ('evaluate.py', ['--samples=s.jsonl', '--train_stories=t.jsonl'], SAMPLES | {'t.jsonl': rows({'text': 'रवि बाग में गया। ' * 1_100_000})},
     lambda p, out: p.json('results.json')['models']['s']['text']['longest_copied']['mean'] < 9),
]


@pytest.fixture(scope='module')
def home(prepared, tmp_path_factory):
    """data/tiny of `prepared`, and a model of it in out/tiny."""
    project = Project(tmp_path_factory.mktemp('home'))
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    project.run('train.py', *SMALL, '--out_dir=out/tiny')
    return project


@pytest.fixture
def lay(project, home):
    """lay(files) puts them into a fresh project with that data and model -> the project"""
    for name in ('data/tiny', 'out/tiny'):
        shutil.copytree(home.path / name, project.path / name)

    def lay(files):
        for name, content in files.items():
            path = project.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if content is FOLDER else path.write_bytes(content)
        return project
    return lay


def names(table):
    return [f'{number}-{script}' for number, (script, *_) in enumerate(table)]


@pytest.mark.parametrize('script, options, files, says', REFUSED, ids=names(REFUSED))
def test_refused_in_a_line(lay, script, options, files, says):
    assert says in lay(files).refuses(script, *options)


@pytest.mark.parametrize('script, options, files, holds', WORKS, ids=names(WORKS))
def test_done_sensibly(lay, script, options, files, holds):
    project = lay(files)
    assert holds(project, project.run(script, *options))

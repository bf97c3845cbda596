"""Bad inputs: each script ends in one clear line and an exit status that is not 0, or does sensible work."""

import json
import shutil

import pytest
from conftest import Project

pytestmark = pytest.mark.slow
HINDI = 'एक दिन रवि बाग में गया। वहाँ उसने एक बिल्ली देखी।'
FOLDER = None  # in place of a file's bytes


def rows(*rows):
    """Objects as the bytes of a .jsonl file."""
    return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def story(**changes):
    return {'id': 0, 'prompt': 'एक दिन', 'story': HINDI, 'text': HINDI, 'ended': 'eos'} | changes


TOY = {  # data/toy, a language of few words
    'data/toy/plot_nouns.txt': b'cat\ndog', 'data/toy/plot_verbs.txt': b'run', 'data/toy/plot_adjectives.txt': b'red',
    'data/toy/characters.txt': b'word\ttags\nMia\tf', 'data/toy/plots.txt':
    b'genders: m f\ncast: hero=f\n\n== plot one\nnoun: cat, dog\nverb: run\nadjective: red\n'
    b'The {adjective} {hero} saw a {noun} and began to {verb}.\n'}


def toy(**files):
    """The files of data/toy, with some of them replaced."""
    return TOY | {f'data/toy/{name}.txt': content for name, content in files.items()}


def pipeline(**model):
    """The bytes of a tokenizer.json with this model."""
    empty = dict.fromkeys(('normalizer', 'pre_tokenizer', 'post_processor', 'decoder'))
    return json.dumps(empty | {'version': '1.0', 'added_tokens': [], 'model': model}).encode()


SMALL = ['train.py', '--dataset=tiny', '--device=cpu', '--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32',
         '--batch_size=4', '--max_iters=2', '--eval_iters=1']
SAMPLE = ['sample.py', '--out_dir=out/tiny', '--device=cpu', '--max_new_tokens=8']
GENERATE = ['generate_data.py', '--language=toy', '--total=2', '--out=o.jsonl']
API = ['--base_url=http://127.0.0.1:9', '--model=m']  # nothing listens there
CHAT = ['generate_data.py', 'config/generate_hindi.py', *API, '--out=o.jsonl']
PREPARE = ['prepare.py', '--source=s.jsonl', '--dataset=new', '--vocab_size=300']
TRANSLATE = ['translate.py', '--source=s.jsonl', '--source_language=hindi', '--target_language=french', *API,
             '--out=o.jsonl']
EVALUATE = ['evaluate.py', '--samples=s.jsonl']
SWEEP = ['sweep.py', "--settings=[{'n_layer': 1}]", '--out_dir=o']
STORY = {'s.jsonl': rows(story())}
UTF16 = {'s.jsonl': rows(story()).decode().encode('utf-16')}

REFUSED = [  # command, files, part of the line on stderr
    (GENERATE, toy(plot_nouns=b'# cat\n\n \t \n'), 'nouns.txt'),
    (GENERATE, toy(plot_nouns='été\n'.encode('latin-1')), 'nouns.txt'),
    (GENERATE, toy(plot_nouns=FOLDER), 'nouns.txt'),
    (GENERATE, toy(plots=b'no plot'), 'plot'),
    (GENERATE, toy() | {'o.jsonl': FOLDER}, 'o.jsonl could not be opened'),
    ([*GENERATE, '--out=f/o.jsonl'], toy() | {'f': b''}, 'f/o.jsonl could not be opened'),
    (GENERATE, toy() | {'o.jsonl': rows([1], 2)}, 'o.jsonl'),
    (GENERATE, toy() | {'o.jsonl': rows({'id': 1.0, 'noun': 'cat'})}, 'o.jsonl'),
    ([*CHAT, '--min_words=50', '--max_words=40'], {}, 'min_words'),
    ([*CHAT, '--temperature=1e999'], {}, 'temperature'),
    ([*CHAT, '--max_tokens=0'], {}, 'max_tokens'),
    ([*CHAT, '--max_cost=-1', '--price_in=1', '--price_out=1'], {}, 'max_cost'),
    ([*CHAT, '--num_workers=1000000000'], {}, 'num_workers'),
    ([*CHAT, "--extra={'a': {1}}"], {}, 'extra'),
    ([*CHAT, '--base_url=https://example.org/v1?key=secret'], {}, 'base_url'),

    ([*PREPARE, '--source=s.txt'], {'s.txt': HINDI.encode('utf-16-le')}, 's.txt'),
    (PREPARE, {'s.jsonl': rows({'text': None})}, 'contains no stories'),
    ([*PREPARE, '--dataset=file'], STORY | {'data/file': b''}, 'data/file'),
    ([*PREPARE, '--num_proc=-1'], STORY, 'num_proc'),
    ([*PREPARE, '--vocab_size=-5'], STORY, 'vocab_size'),
    ([*PREPARE, '--val_fraction=1e999'], STORY, 'val_fraction'),
    ([*PREPARE, '--val_fraction=0.99999'], STORY, 'val_fraction'),
    ([*PREPARE, "--special_tokens=['</s>']"], STORY, '</s>'),
    ([*PREPARE, '--tokenizer=t.json'], STORY | {'t.json': FOLDER}, 't.json'),
    ([*PREPARE, '--tokenizer=t.json'], STORY | {'t.json': '{"é": 1}'.encode('latin-1')}, 't.json'),
    ([*PREPARE, '--tokenizer=t.json'],
     STORY | {'t.json': pipeline(type='WordLevel', vocab={'a': 2**32 - 2, 'b': 0}, unk_token='b')}, 't.json'),

    ([*SMALL, '--n_kv_head=-1'], {}, 'n_kv_head'),
    ([*SMALL, '--n_layer=1000000000'], {}, 'n_layer is 1,000,000,000; it must be at most 1,000'),
    ([*SMALL, '--n_embd=0'], {}, 'n_embd'),
    ([*SMALL, '--learning_rate=1e999'], {}, 'learning_rate'),
    ([*SMALL, '--dropout=1.0'], {}, 'dropout'),
    ([*SMALL, '--n_head=3'], {}, 'multiple of n_head'),
    ([*SMALL, '--init_from=out/tiny', '--block_size=64', '--out_dir=out/x'], {}, '32'),
    ([*SMALL, '--out_dir=f'], {'f': b''}, 'f/ckpt.pt'),
    ([*SMALL, '--dataset=f'], {'data/f': b''}, 'meta.json'),

    ([*SAMPLE, '--temperature=1e999'], {}, 'temperature'),
    ([*SAMPLE, '--top_p=0.0'], {}, 'top_p'),
    ([*SAMPLE, '--num_samples=1000000000000'], {}, 'num_samples'),
    ([*SAMPLE, '--start=FILE:p.txt'], {'p.txt': 'The cat\n'.encode('utf-16-le')}, 'p.txt'),
    ([*SAMPLE, '--start=FILE:p.txt'], {'p.txt': b' \n\n'}, 'p.txt'),
    ([*SAMPLE, '--out=o.jsonl'], {'o.jsonl': FOLDER}, 'o.jsonl'),
    (['sample.py', '--init_from=s.jsonl'], STORY, 's.jsonl'),

    (EVALUATE, {'s.jsonl': FOLDER}, 's.jsonl'),
    (EVALUATE, {'s.jsonl': b''}, 's.jsonl'),
    (EVALUATE, {'s.jsonl': rows({'id': 1, 'title': HINDI})}, 'row 1: no column with stories'),
    ([*EVALUATE, '--out_dir=f'], STORY | {'f': b''}, 'f/'),
    ([*EVALUATE, 'config/evaluate_stories.py'], STORY | {'grades.jsonl': rows([1], 5)}, 'grades.jsonl'),

    (TRANSLATE, {'s.jsonl': rows({'id': 1, 'text': ''})}, 'no story'),
    (TRANSLATE, {'s.jsonl': rows(story(id=None))}, 'row 1'),
    (TRANSLATE, {'s.jsonl': rows(story(), story())}, 'twice'),
    ([*TRANSLATE, '--max_new_tokens=0'], STORY, 'max_new_tokens'),
    (TRANSLATE, STORY | {'o.jsonl': rows(5)}, 'o.jsonl'),

    (['export.py', '--out_dir=out/tiny', '--examples=1000000000000'], {}, 'examples'),
    (['export.py', '--out_dir=s.jsonl'], STORY, 's.jsonl'),
    (SWEEP, {'o': b''}, 'o/'),
    ([*SWEEP, '--settings=[]'], {}, 'settings'),
]

WORKS = [  # command, files, what must be true of the project and of stdout
    (GENERATE, toy(plot_nouns='\ufeffcat\r\ndog\r\n'.encode()),
     lambda p, out: {row['noun'] for row in p.jsonl('o.jsonl')} == {'cat', 'dog'}),
    (PREPARE, {'s.jsonl': '\ufeff'.encode() + rows({'text': 'cafe\u0301'})},
     lambda p, out: p.json('data/new/meta.json')['bytes']['train'] == 5),
    (PREPARE, UTF16, lambda p, out: HINDI in out),
    (PREPARE, {'s.jsonl': rows({'text': '\ud83d half'})},
     lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 1),
    (PREPARE, {'s.jsonl': rows({'text': ''}) * 1_000_000 + rows(story())},
     lambda p, out: p.json('data/new/meta.json')['stories']['train'] == 1),
    ([*PREPARE, '--decode=1000000000000'], STORY, lambda p, out: HINDI in out),
    ([*SMALL, '--out_dir=out/x', '--block_size=1'], {}, lambda p, out: 'done at step 2' in out),
    ([*SAMPLE, '--start=FILE:p.txt', '--out=o.jsonl'],
     {'p.txt': '\n'.join(['𓀀𓁐 ጤና Ωμέγα 🐘', 'एक ' * 500, '\ufeffरवि', 'a\x1b[31mb']).encode()},
     lambda p, out: all(row['story'].startswith(row['prompt']) for row in p.jsonl('o.jsonl'))),
    (EVALUATE, {'s.jsonl': rows(*[story(id=i, story='', prompt='') for i in range(5)])},
     lambda p, out: p.json('results.json')['models']['s']['stories'] == 5),
    (EVALUATE, {'s.jsonl': rows(story(story='\ud83d' + HINDI), story(id=1, story='\0\x1b[2J'))},
     lambda p, out: p.json('results.json')['models']['s']['stories'] == 2),
]


@pytest.fixture(scope='module')
def home(prepared, tmp_path_factory):
    """data/tiny and a model of it in out/tiny."""
    project = Project(tmp_path_factory.mktemp('home'))
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    project.run(*SMALL, '--out_dir=out/tiny')
    return project


@pytest.fixture
def write(project, home):
    """write(files) -> a project with the data and the model of `home`, and with these files."""
    for name in ('data/tiny', 'out/tiny'):
        shutil.copytree(home.path / name, project.path / name)

    def write(files):
        for name, content in files.items():
            path = project.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is FOLDER:
                path.mkdir()
            else:
                path.write_bytes(content)
        return project
    return write


def names(table):
    return [f'{number}-{command[0]}' for number, (command, *_) in enumerate(table)]


@pytest.mark.parametrize('command, files, message', REFUSED, ids=names(REFUSED))
def test_refused_in_one_line(write, command, files, message):
    assert message in write(files).refuses(*command)


@pytest.mark.parametrize('command, files, is_right', WORKS, ids=names(WORKS))
def test_sensible_work(write, command, files, is_right):
    project = write(files)
    assert is_right(project, project.run(*command))

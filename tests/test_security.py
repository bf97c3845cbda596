"""Hostile files, names and stories: no code in them runs, nothing outside is read or written, and no key is kept.

More of this kind: test_elsewhere.py has broken and hostile models, test_chat.py has test_the_key_is_nowhere, and
test_evaluate.py has test_a_story_cannot_talk_to_the_judge.
"""

import io
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from conftest import PROJECT

import hub
from model import GPT, GPTConfig
from tokenizer import load as load_tokenizer

HINDI = 'एक दिन रवि बाग में गया। वहाँ उसने एक बिल्ली देखी।'
SAMPLE = ['sample.py', '--device=cpu', '--max_new_tokens=5', '--temperature=0.0', '--start=एक दिन']
TRAIN = ['train.py', '--dataset=tiny', '--device=cpu', '--n_layer=1', '--n_head=2', '--n_embd=16', '--block_size=32',
         '--batch_size=4', '--max_iters=2', '--eval_iters=1', '--log_interval=1']
PREPARE = ['prepare.py', '--source=evil/samples.jsonl', '--dataset=x']
TRANSLATE = ['translate.py', '--source=evil/samples.jsonl', '--source_language=hindi', '--target_language=french',
             '--out=o.jsonl']
EVALUATE = ['evaluate.py', '--samples=evil/samples.jsonl']
LLAMA = {'model_type': 'llama', 'max_position_embeddings': 32, 'num_hidden_layers': 1, 'num_attention_heads': 2,
         'hidden_size': 16, 'intermediate_size': 32, 'rms_norm_eps': 1e-5, 'vocab_size': 1024}
NEO = {'model_type': 'gpt_neo', 'hidden_size': 16, 'num_layers': 1, 'num_heads': 2, 'max_position_embeddings': 32,
       'attention_types': [[['global'], 1]], 'vocab_size': 1024}
M2M = {'model_type': 'm2m_100', 'd_model': 16, 'encoder_layers': 1, 'decoder_layers': 1, 'encoder_attention_heads': 2,
       'decoder_attention_heads': 2, 'encoder_ffn_dim': 16, 'decoder_ffn_dim': 16, 'vocab_size': 1024,
       'max_position_embeddings': 64}
slow = pytest.mark.slow


class Bomb:
    """Creates the file `marker` when it is unpickled."""

    def __init__(self, marker):
        self.code = f'open({str(marker)!r}, "w")'

    def __reduce__(self):
        return exec, (self.code,)


@pytest.fixture
def home(project, prepared):
    """A project with data/tiny, a story in evil/samples.jsonl, and the marker that code in a file would create."""
    shutil.copytree(prepared.path / 'data/tiny', project.path / 'data/tiny')
    (project.path / 'evil').mkdir()
    row = {'id': 0, 'text': HINDI, 'story': HINDI}
    (project.path / 'evil/samples.jsonl').write_text(json.dumps(row) + '\n', encoding='utf-8')
    project.marker = project.path / 'code_has_run'
    pickle.loads(pickle.dumps(Bomb(project.marker)))
    assert project.marker.exists()  # the bomb works
    project.marker.unlink()
    return project


def model_folder(home, config, files=None, name='evil'):
    """A Hugging Face folder with the tokenizer of data/tiny. files: their content, bytes or an object for JSON."""
    folder = home.path / name
    folder.mkdir(exist_ok=True)
    load_tokenizer(str(home.path / 'data/tiny')).save(str(folder))
    for file, content in {'config.json': config, **(files or {})}.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def checkpoint(home, **changes):
    """The bytes of a best.pt with random weights."""
    tokenizer = load_tokenizer(str(home.path / 'data/tiny'))
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=1, n_head=2, n_embd=16))
    buffer = io.BytesIO()
    content = {'model_args': vars(model.config), 'model': model.state_dict(), 'tokenizer': tokenizer.state(), 'step': 1}
    torch.save(content | changes, buffer)
    return buffer.getvalue()


def contents(*folders):
    """The bytes of all files in these folders."""
    data = b''
    for folder in folders:
        data += b''.join(path.read_bytes() for path in Path(folder).rglob('*') if path.is_file())
    return data


# -----------------------------------------------------------------------------
# code in files


@pytest.mark.parametrize('command, file, plain', [
    ([*SAMPLE, '--out_dir=evil'], 'best.pt', False),
    pytest.param([*SAMPLE, '--init_from=evil/nano.pt', '--tokenizer=data/tiny'], 'nano.pt', True, marks=slow),
    pytest.param([*TRAIN, '--init_from=resume', '--out_dir=evil'], 'ckpt.pt', False, marks=slow),
    pytest.param([*TRAIN, '--init_from=evil/ckpt.pt', '--out_dir=out/x'], 'ckpt.pt', True, marks=slow),
    pytest.param([*PREPARE, '--tokenizer=evil/best.pt'], 'best.pt', True, marks=slow),
    pytest.param(EVALUATE, 'best.pt', False, marks=slow),
    pytest.param(['export.py', '--out_dir=evil'], 'best.pt', True, marks=slow)])
def test_a_pickle_bomb_does_not_go_off(home, command, file, plain):
    """In the zip that torch.save writes, and as a plain pickle."""
    bomb = Bomb(home.marker)
    content = pickle.dumps({'model_args': {}, 'model': bomb}) if plain else checkpoint(home, config=bomb)
    (home.path / 'evil' / file).write_bytes(content)
    line = home.refuses(*command)
    assert re.search('could run code|other than tensors', line) and 'weights_only' not in line
    assert not home.marker.exists()


@slow
@pytest.mark.parametrize('command, config', [
    ([*SAMPLE, '--init_from=evil'], LLAMA), ([*SAMPLE, '--init_from=evil'], NEO), ([*TRANSLATE, '--model=evil'], M2M)])
def test_nor_does_one_in_a_hugging_face_folder(home, command, config):
    model_folder(home, config, {'pytorch_model.bin': pickle.dumps({'model': Bomb(home.marker)})})
    line = home.refuses(*command)
    assert 'other than tensors' in line and 'weights_only' not in line  # torch's advice to read it unsafely
    assert not home.marker.exists()


@slow
@pytest.mark.parametrize('command', [
    [*SAMPLE, '--init_from=evil'], [*TRAIN, '--init_from=evil', '--out_dir=out/x'], [*TRANSLATE, '--model=evil']])
def test_a_folder_with_code_of_its_own_is_refused(home, command):
    """Code that config.json or tokenizer_config.json names, and code that just lies there."""
    code = f'open({str(home.marker)!r}, "w")\nclass M:\n    pass\n'.encode()
    classes = {'AutoConfig': 'own.M', 'AutoModelForCausalLM': 'own.M', 'AutoModelForSeq2SeqLM': 'own.M',
               'AutoTokenizer': ['own.M', 'own.M']}
    files = {'own.py': code, 'custom_generate/generate.py': code, '__init__.py': code,
             'tokenizer_config.json': {'auto_map': classes, 'tokenizer_class': 'M'}}
    model_folder(home, {'model_type': 'own', 'auto_map': classes}, files)
    assert 'evil' in home.refuses(*command) and not home.marker.exists()


def test_no_script_trusts_code_from_elsewhere():
    unsafe = (r'trust_remote_code\s*=\s*(?!False)|weights_only\s*=\s*(?!True)|pickle\.(load|Unpickler)'
              r'|from pickle import|yaml\.load|torch\.load\((?!.*weights_only=True)')
    sources = [*PROJECT.glob('*.py'), *PROJECT.glob('*.ipynb'), *PROJECT.glob('config/*')]
    assert len(sources) > 20
    for path in sources:
        code = re.sub(r'\s# .*', '', path.read_text(encoding='utf-8'))  # without comments
        assert not re.search(unsafe, code), path


# -----------------------------------------------------------------------------
# files that lead elsewhere


def index(path):
    return {'metadata': {}, 'weight_map': {'transformer.wte.weight': path}}


@slow
@pytest.mark.parametrize('config, files, message', [
    (NEO, {'model.safetensors.index.json': index('../secret.safetensors')}, 'outside of the folder'),
    (NEO, {'pytorch_model.bin.index.json': index('/etc/passwd')}, 'outside of the folder'),
    (NEO, {'adapter_config.json': {'base_model_name_or_path': '../secret'}}, 'another model'),
    (NEO | {'attn_implementation': 'evil/kernel'}, {}, 'a kernel on the hub'),
    (NEO | {'more': [{'_attn_implementation': {'x': 'eager', '': 'evil/kernel'}}]}, {}, 'a kernel on the hub'),
    (LLAMA | {'num_hidden_layers': 10**9}, {}, 'memory'), (LLAMA | {'vocab_size': 10**15}, {}, 'at most'),
    (LLAMA | {'max_position_embeddings': -1}, {}, 'at least 1')])
def test_a_folder_that_leads_out_of_itself(home, config, files, message):
    torch.save({}, home.path / 'secret.safetensors')
    model_folder(home, config, files)
    assert message in home.refuses(*SAMPLE, '--init_from=evil')


@slow
@pytest.mark.parametrize('file', ['config.json', 'tokenizer.json', 'model.safetensors'])
def test_links_to_other_files(home, file):
    """The content of the other file is not shown."""
    (home.path / 'secret.txt').write_text('hunter2 is the password', encoding='utf-8')
    folder = model_folder(home, LLAMA)
    (folder / file).unlink(missing_ok=True)
    (folder / file).symlink_to('../secret.txt')
    with pytest.raises(SystemExit) as stopped:
        hub.load(str(folder))
    assert 'hunter2' not in str(stopped.value) and '\n' not in str(stopped.value)


@slow
@pytest.mark.parametrize('link', ['hf', 'grades.jsonl', 'failed.jsonl', 'results.json', 'samples.jsonl', 'report.html'])
def test_links_to_places_to_write_to(home, chat_server, link):
    """In a run folder from elsewhere. What they lead to is not overwritten, and not created."""
    (home.path / 'evil/best.pt').write_bytes(checkpoint(home))
    (home.path / 'other').mkdir()
    (home.path / 'other/model.safetensors').write_text('the only copy')
    (home.path / 'evil' / link).unlink(missing_ok=True)
    (home.path / 'evil' / link).symlink_to('../other' if link == 'hf' else '../other/new')
    url = chat_server(reply='no grade').url if link == 'failed.jsonl' else chat_server().url
    (home.path / 's.jsonl').write_text(json.dumps({'id': 0, 'story': HINDI}) + '\n', encoding='utf-8')
    command = ['evaluate.py', 'config/evaluate_stories.py', '--samples=s.jsonl', '--out_dir=evil', '--max_cost=0',
               f'--base_url={url}', '--max_tries=1']
    if link == 'hf':
        command = ['export.py', '--out_dir=evil', '--examples=0']
    if link == 'samples.jsonl':
        command = [*SAMPLE, '--out_dir=evil', '--out=evil/samples.jsonl']
    home.start(*command).communicate()
    assert [path.name for path in (home.path / 'other').iterdir()] == ['model.safetensors']
    assert (home.path / 'other/model.safetensors').read_text() == 'the only copy'
    assert 'leads through a link to' in home.refuses(*command)


@slow
def test_export_removes_only_its_own_files(home):
    (home.path / 'evil/best.pt').write_bytes(checkpoint(home))
    for name in ('hf.tmp', 'hf.tmp_backup'):
        (home.path / 'evil' / name).mkdir()
        (home.path / 'evil' / name / 'kept').touch()
    home.run('export.py', '--out_dir=evil', '--examples=0')
    names = {path.name for path in (home.path / 'evil').iterdir()}
    assert names == {'best.pt', 'samples.jsonl', 'hf', 'hf.tmp', 'hf.tmp_backup'}
    for name in ('hf.tmp', 'hf.tmp_backup'):
        assert (home.path / 'evil' / name / 'kept').exists()


@slow
def test_names_that_lead_to_other_files(home):
    (home.path / 'secret.txt').write_text('hunter2 is the password', encoding='utf-8')
    names = {'tokenizer_file': '../secret.txt', 'vocab_file': '../secret.txt', 'bos_token': {'content': '../../x'},
             'name_or_path': '/etc'}
    model_folder(home, LLAMA, {'tokenizer_config.json': names})
    home.run(*PREPARE, '--tokenizer=evil')  # they name tokens only
    assert b'hunter2' not in contents(home.path / 'data/x')
    for name in ('../../../etc', 'user/name/../../../secret.txt', 'user/@x'):
        assert 'hunter2' not in home.refuses(*SAMPLE, f'--init_from={name}')


@slow
def test_a_checkpoint_names_no_place_to_write_to(home):
    """Its settings are only shown."""
    (home.path / 'evil/best.pt').write_bytes(checkpoint(home, config={'dataset': '../../../x', 'out_dir': '/tmp/x'}))
    before = set(home.path.rglob('*'))
    home.run('export.py', '--out_dir=evil', '--examples=0')
    assert 'no loss' in home.run(*EVALUATE)
    new = {path.relative_to(home.path).parts for path in set(home.path.rglob('*')) - before}
    assert {parts[0] for parts in new if '__pycache__' not in parts} == {'evil'}
    assert not os.path.exists('/tmp/x') and not (home.path.parents[1] / 'x').exists()


# -----------------------------------------------------------------------------
# downloads


def write_stand_in(home, package, code):
    (home.path / f'{package}.py').write_text(code, encoding='utf-8')


@slow
def test_a_revision_is_what_is_downloaded(home):
    """The hub is a stand-in here: its revisions of me/tiny are the folders main and v1."""
    stories = {}
    for seed, revision in enumerate(('main', 'v1')):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
        model_folder(home, LLAMA, {'kept.pt': checkpoint(home)}, revision)
        model.save_pretrained(home.path / revision)
        stories[revision] = home.run(*SAMPLE, f'--init_from={revision}')
    assert stories['main'] != stories['v1']
    write_stand_in(home, 'huggingface_hub', '''
class errors:
    HTTPError = OSError
def snapshot_download(name, revision, allow_patterns):
    if revision == 'v2':
        raise OSError
    return revision or 'main'
def hf_hub_download(name, file, revision):
    return f'{revision}/{file}'
''')
    assert home.run(*SAMPLE, '--init_from=me/tiny') == stories['main']
    assert home.run(*SAMPLE, '--init_from=me/tiny@v1') == stories['v1']
    assert home.run(*SAMPLE, '--init_from=me/tiny/kept.pt@v1').startswith('एक दिन')
    home.run(*PREPARE, '--tokenizer=me/tiny@v1')
    for command in ([*SAMPLE, '--init_from=me/tiny@v2'], [*PREPARE, '--tokenizer=me/tiny@v2']):
        assert 'me/tiny@v2' in home.refuses(*command)


@slow
def test_revisions_of_data_sets_and_translation_models(home):
    write_stand_in(home, 'datasets', '''
def load_dataset(name, split, revision):
    return [{"text": f"{name} {split} {revision}"}] * 9
''')
    for source, text in (('me/stories@v1:test', 'me/stories test v1'), ('me/stories', 'me/stories train None')):
        home.run('prepare.py', f'--source=hf:{source}', '--dataset=x', '--vocab_size=300', '--val_fraction=0')
        assert home.json('data/x/meta.json')['bytes']['train'] == 9 * len(text)
    write_stand_in(home, 'huggingface_hub', '''
class errors:
    HTTPError = OSError
def snapshot_download(name, revision, allow_patterns):
    raise type(f"{name} at {revision}", (OSError,), {})
''')
    write_stand_in(home, 'transformers', 'class logging:\n    set_verbosity_error = disable_progress_bar = print\n')
    assert 'me/mt at v1' in home.refuses(*TRANSLATE, '--model=me/mt@v1')


@slow
@pytest.mark.parametrize('command', [
    [*SAMPLE, '--init_from=me/tiny'], [*PREPARE, '--tokenizer=me/tiny'],
    ['prepare.py', '--source=hf:me/x', '--dataset=x']])
def test_downloads_are_encrypted(home, command):
    assert 'https://' in home.refuses(*command, HF_ENDPOINT='http://example.org', HF_HUB_OFFLINE='0')


def test_no_script_has_an_unencrypted_address():
    for path in PROJECT.glob('*.py'):
        assert not re.search(r'http://(?!localhost|127\.|\[|\()\w', path.read_text(encoding='utf-8')), path


# -----------------------------------------------------------------------------
# keys

NAMES = ('OPENAI_API_KEY', 'MISTRAL_API_KEY', 'CHAT_API_KEY', 'HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN')
KEYS = {name: f'sk-{name.lower().replace("_", "")}-4a7d9e2b1c' for name in NAMES} | {'WANDB_API_KEY': '5e2c' * 10}


def keys_in(data):
    return [name for name, key in KEYS.items() if key.encode() in data]


@slow
def test_no_key_in_what_training_leaves(home, tmp_path_factory):
    """In checkpoints, the log, what wandb would send, and the home folder."""
    pytest.importorskip('wandb')
    user = tmp_path_factory.mktemp('user')
    env = KEYS | {'HOME': str(user), 'XDG_CONFIG_HOME': str(user / 'config'), 'XDG_CACHE_HOME': str(user / 'cache'),
                  'WANDB_MODE': 'offline'}
    process = home.start(*TRAIN, '--out_dir=out/x', '--wandb_log=True', **env)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    out += home.run(*SAMPLE, '--out_dir=out/x', **env)
    out += home.run('export.py', '--out_dir=out/x', '--examples=1', '--max_new_tokens=5', **env)
    data = contents(home.path, user)
    assert b'gradient_accumulation_steps' in data and list(home.path.glob('wandb/offline-run-*/*.wandb'))
    assert not keys_in(data + (out + err).encode())


@slow
@pytest.mark.parametrize('command', [
    [*EVALUATE, 'config/evaluate_stories.py', '--out_dir=o'], [*TRANSLATE, '--out=o/o.jsonl']])
def test_no_key_in_what_a_chat_api_leaves(home, chat_server, command):
    """An API that sends the key back, one with faults, and one that refuses the key."""
    key = KEYS['CHAT_API_KEY']
    shown = b''
    for options in ({'reply': f'Your key is {key}.'}, {'key': key, 'faults': 1.0, 'kinds': ['500', 'html', 'cut']},
                    {'status': 401, 'error': f'Incorrect API key provided: {key}'}):
        url = chat_server(**options).url
        process = home.start(*command, f'--base_url={url}', '--max_tries=1', '--max_cost=0', **KEYS)
        shown += ''.join(process.communicate(timeout=200)).encode() + contents(home.path / 'o')
        shutil.rmtree(home.path / 'o', ignore_errors=True)
    assert b'Incorrect API key provided: ***' in shown
    assert not keys_in(shown + contents(home.path))


@slow
def test_no_key_in_a_traceback(home, chat_server):
    with open(home.path / 'replies.py', 'a', encoding='utf-8') as f:
        f.write('\n\ndef clean(*_, **__):\n    raise ZeroDivisionError("a bug")\n')
    url = chat_server(key=KEYS['CHAT_API_KEY']).url
    process = home.start('generate_data.py', 'config/generate_hindi.py', f'--base_url={url}', '--total=5', **KEYS)
    shown = ''.join(process.communicate(timeout=200))
    assert 'Traceback' in shown and 'a bug' in shown
    assert not keys_in(shown.encode() + contents(home.path))


# -----------------------------------------------------------------------------
# stories

EVIL = '</script><script>document.title = "hacked"</script><img src=x onerror="alert(1)"> {{data}} <!-- <b>bold</b>'


@slow
def test_the_report_shows_markup_as_text(home):
    """In a story, its opening, its id, the name of its file and the nearest training story."""
    row = {'id': EVIL, 'prompt': EVIL, 'story': f'{EVIL} एक दिन रवि {EVIL}', 'text': f'एक दिन रवि {EVIL}'}
    name = 'samples of <script>alert(1)<'
    (home.path / f'{name}.jsonl').write_text(json.dumps(row) + '\n', encoding='utf-8')
    home.run('evaluate.py', f'--samples={name}.jsonl', f'--train_stories={name}.jsonl', '--out_dir=o')
    page = (home.path / 'o/report.html').read_text(encoding='utf-8')
    template = (PROJECT / 'report_template.html').read_text(encoding='utf-8')
    before, after = template.split('{{data}}')
    assert page.startswith(before) and page.endswith(after)
    data = page[len(before):len(page) - len(after)]
    assert not re.search('<script|</script|<img|<!--|<b>', data)
    stories = json.loads(data)['stories']
    assert stories[0]['opening'] == EVIL.strip() and stories[0]['continuation'].endswith(EVIL.strip())
    assert not re.search(r'innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(', template)
    assert not re.search(r'(?<!\\)<', (home.path / 'o/results.md').read_text(encoding='utf-8'))

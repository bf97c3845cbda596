"""
Kills every script, fills its disk, runs it twice at once, and compares the results with those of an undisturbed run.

    python tests/chaos.py                            20 kills per script, some 30 minutes
    python tests/chaos.py --kills=100 --only=train,sample --seed=2

A killed run is started again by the same command (train.py with --init_from=resume once there is a checkpoint).
docs/RELIABILITY.md has the printed figures:

    tried   how often the fault happened
    lost    rows or files of the undisturbed run that are missing
    wrong   rows or files that are there twice, or that differ from the undisturbed run
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import Project, Server

SMALL = [
    '--dataset=tiny', '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=64', '--batch_size=4',
    '--gradient_accumulation_steps=2', '--learning_rate=1e-2', '--warmup_iters=2', '--max_iters=40',
    '--eval_interval=5', '--eval_iters=8', '--log_interval=1', '--dropout=0.1', '--dtype=float32', '--device=cpu']
TIMES = ('seconds', 'tokens_per_s', 'utilization', 'memory')  # fields of log.jsonl that differ between equal runs


class Stage:
    """A script's command, and the folder with everything that it writes."""

    def __init__(self, project, folder, *command, launcher=(), random_replies=False):
        self.project = project
        self.folder = project.path / folder
        self.script = command[0]
        self.arguments = [*launcher, *command]
        self.random_replies = random_replies  # equal runs have the same rows, but other text in them
        self.undisturbed = {}  # contents of the folder after an undisturbed run

    def command(self):
        resume = self.script == 'train.py' and (self.folder / 'ckpt.pt').exists()
        return [*self.arguments, '--init_from=resume'] if resume else self.arguments

    def start(self):
        return self.project.start(*self.command())

    def finish(self):
        self.project.run(*self.command())

    def clear(self):
        if self.folder.exists():
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def run_undisturbed(self):
        if not self.undisturbed:
            self.clear()
            self.finish()
            self.undisturbed = read_folder(self.folder)
            self.undisturbed_size = self.size()

    def size(self):
        """Bytes of all files in the folder, and of the largest."""
        sizes = [path.stat().st_size for path in self.folder.rglob('*') if path.is_file()]
        return sum(sizes), max(sizes, default=0)

    def written(self):
        """{file: (size, time of change)} of what the run has written so far, without its empty lock files."""
        found = {}
        for path in self.folder.rglob('*'):
            with contextlib.suppress(FileNotFoundError):  # a temporary file can disappear at any time
                status = path.stat()
                if status.st_size or '.tmp' in path.name:
                    found[path.name] = status.st_size, status.st_mtime_ns
        return found


def tensors_in(value, name):
    """Yield (name, bytes) for every tensor in nested dicts and lists."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from tensors_in(part, f'{name} {key}')
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from tensors_in(part, f'{name} {i}')
    elif hasattr(value, 'numpy'):
        yield name, value.numpy().tobytes()


def read_folder(folder):
    """{name: content}: the rows of .jsonl files, the tensors of checkpoints, the bytes of other files."""
    import torch
    found = {}
    for path in sorted(folder.rglob('*')):
        if '.tmp' in str(path) or path.name == 'filler':  # a SIGKILL leaves temporary files and folders
            continue
        if path.suffix == '.jsonl':
            for line in path.read_text(encoding='utf-8').splitlines():
                row = json.loads(line)
                name = f'{path.name} {row["step"] if "step" in row else row["id"]}'
                name += ' again' if name in found else ''
                found[name] = {key: value for key, value in row.items() if key not in TIMES}
        elif path.suffix == '.pt':
            checkpoint = torch.load(path, weights_only=True)
            found[f'{path.name} step'] = checkpoint['step']
            for part in ('model', 'optimizer'):
                found |= tensors_in(checkpoint.get(part), f'{path.name} {part}')
        elif path.suffix in ('.png', '.html'):
            found[path.name] = path.stat().st_size > 0
        elif path.is_file():
            found[path.name] = path.read_bytes()
    return found


def make_stages(path, size, servers):
    """A project in an empty folder with data and a model -> {name: Stage}. `size`: the amount of work, from 1."""
    from test_translate import make_nllb
    project = Project(path)
    project.run('generate_data.py', '--language=hindi', '--total=600', '--out=data/tiny/stories.jsonl')
    project.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=tiny', '--vocab_size=1024')
    project.run('train.py', *SMALL, '--out_dir=out/model', '--max_iters=5')
    (path / 'prompts.txt').write_text('एक दिन\nरात को\nजंगल में\n', encoding='utf-8')
    sample = ['sample.py', '--out_dir=out/model', '--start=FILE:prompts.txt', f'--num_samples={10 * size}',
              '--max_new_tokens=60', '--batch_size=4']
    project.run(*sample, '--out=samples.jsonl')
    make_nllb(path / 'translator', random.Random(1))
    with open(path / 'english.jsonl', 'w', encoding='utf-8') as f:
        for i in range(40 * size):
            f.write(json.dumps({'id': i, 'text': f'Once there was a hen {i}. It sang {i * i} songs!'}) + '\n')
    servers['story'] = Server('chat_server.py', latency=0.02)
    servers['translation'] = Server('chat_server.py', latency=0.02, reply='```{"translation": "X {prompt}"}```')
    servers['judge'] = Server('judge_server.py', latency=0.02)
    base_url = {name: f'--base_url={server.url}' for name, server in servers.items()}

    prepare = ['prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=other', '--vocab_size=1024']
    train = ['train.py', *SMALL, f'--max_iters={20 * size}', f'--lr_decay_iters={20 * size}']
    grammar = ['generate_data.py', '--language=hindi', f'--total={3000 * size}', '--out=out/grammar/s.jsonl']
    chat = ['generate_data.py', 'config/generate_hindi.py', base_url['story'], f'--total={100 * size}',
            '--num_workers=4', '--out=out/chat/s.jsonl']
    translate = ['translate.py', '--source_language=english', '--target_language=french', '--source=english.jsonl']
    by_chat = [base_url['translation'], '--num_workers=2', '--template={text}', '--out=out/translated/s.jsonl']
    by_model = ['--model=translator', '--batch_size=2', '--out=out/local/s.jsonl']
    evaluate = ['evaluate.py', 'config/evaluate_stories.py', '--samples=samples.jsonl', base_url['judge'],
                '--out_dir=out/graded', '--num_workers=4', '--repeat=0.0']
    export = ['export.py', '--out_dir=out/model', '--out=out/exported/hf', '--examples=1']
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', '--max-restarts=1']
    return {
        'generate, grammar': Stage(project, 'out/grammar', *grammar),
        'generate, chat API': Stage(project, 'out/chat', *chat, random_replies=True),
        'translate, chat API': Stage(project, 'out/translated', *translate, *by_chat),
        'translate, model': Stage(project, 'out/local', *translate, *by_model),
        'prepare': Stage(project, 'data/other', *prepare),
        'train': Stage(project, 'out/tiny', *train, '--out_dir=out/tiny'),
        'train, torchrun': Stage(project, 'out/two', *train, '--out_dir=out/two', launcher=torchrun[:-1]),
        'train, torchrun with restarts': Stage(project, 'out/three', *train, '--out_dir=out/three', launcher=torchrun),
        'sample': Stage(project, 'out/sampled', *sample, '--out=out/sampled/s.jsonl'),
        'export': Stage(project, 'out/exported', *export),
        'evaluate': Stage(project, 'out/graded', *evaluate, random_replies=True),
    }


def compare(stage):
    """-> (number of missing parts, number of wrong parts) beside an undisturbed run"""
    found = read_folder(stage.folder)
    lost = stage.undisturbed.keys() - found.keys()
    wrong = found.keys() - stage.undisturbed.keys()
    if not stage.random_replies:
        wrong |= {name for name in found if found[name] != stage.undisturbed.get(name)}
    return len(lost), len(wrong)


def wait_for_change(stage, process):
    before = stage.written()
    while process.poll() is None and stage.written() == before:
        time.sleep(0.0005)


def wait_for_step(stage, process, step):
    log = stage.folder / 'log.jsonl'
    while not (log.exists() and log.read_bytes().count(b'\n') >= step):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.01)


# -----------------------------------------------------------------------------
# faults: each begins with an empty folder, and ends with a complete run


def start_and_kill(stage, rng):
    """-> whether the run was killed before its end"""
    process = stage.start()
    for _ in range(rng.randrange(8)):
        wait_for_change(stage, process)
    time.sleep(rng.choice([0, 0.001, 0.01, 0.1, 1]))  # between two writes; any moment will do
    process.kill()
    _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err[-2000:]
    return process.returncode != 0


def kill(stage, rng):
    """SIGKILL, up to four times."""
    killed = 0
    for _ in range(rng.randrange(1, 5)):
        killed += start_and_kill(stage, rng)
    stage.finish()
    return killed


def terminate(stage, rng):
    """SIGTERM once the run has written something."""
    process = stage.start()
    if stage.script == 'train.py':
        wait_for_step(stage, process, rng.randrange(1, 12))  # there is nothing to save before
    else:
        wait_for_change(stage, process)
    process.terminate()
    _, err = process.communicate()
    assert process.returncode in (0, 1) and 'Traceback' not in err, err[-2000:]
    temporary = [name for name in stage.written() if '.tmp' in name]
    assert not temporary, temporary
    stage.finish()
    return 1


def kill_worker(stage, rng):
    """One of the two processes of torchrun dies."""
    process = stage.start()
    wait_for_step(stage, process, rng.randrange(1, 12))
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    workers = [int(child) for child in children if b'train.py' in Path(f'/proc/{child}/cmdline').read_bytes()]
    os.kill(rng.choice(workers), signal.SIGKILL)
    _, err = process.communicate()
    if '--max-restarts=1' in stage.arguments:
        assert process.returncode == 0, err[-3000:]
    else:
        assert process.returncode == 1 and 'exitcode  : -9' in err, err[-3000:]
        stage.finish()
    return 1


def refuse(stage, message):
    """Run a command that must fail with this message, beside its progress bar."""
    process = stage.start()
    _, err = process.communicate()
    assert process.returncode == 1 and message in err and 'Traceback' not in err, err[-3000:]


class Unmountable(Exception):
    """Only root may mount, and not in every container."""


def mount(*arguments):
    result = subprocess.run(['mount', *map(str, arguments)], capture_output=True, text=True)
    if result.returncode:
        raise Unmountable(f'no file system can be mounted here: {result.stderr.strip()}')


@contextlib.contextmanager
def small_disk(folder):
    """Mount a disk of 16 MB on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount('-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', folder)
    try:
        yield
    finally:
        subprocess.run(['umount', folder], check=True)


def fill_disk(stage, rng):
    """The disk fills up, in an empty folder or over earlier work. With space again the same command completes."""
    total, largest = stage.undisturbed_size
    starts_over = stage.script in ('prepare.py', 'sample.py', 'export.py')  # the other scripts continue
    over_earlier_work = rng.random() < 0.5
    if over_earlier_work and starts_over:
        stage.finish()
    elif over_earlier_work:
        start_and_kill(stage, rng)
    needed = largest if starts_over or stage.script == 'train.py' else total - stage.size()[0]
    if needed < 8192:  # that run was almost done
        return 0
    status = os.statvfs(stage.folder)
    filler = stage.folder / 'filler'
    filler.write_bytes(bytes(int(status.f_bavail * status.f_frsize - rng.uniform(0, 0.9) * needed)))
    refuse(stage, 'No space left on device')
    filler.unlink()
    if over_earlier_work and starts_over:
        assert compare(stage) == (0, 0), 'the earlier work is lost'
    stage.finish()
    return 1


def make_read_only(stage, rng):
    mount('-o', 'remount,ro', stage.folder)
    refuse(stage, 'Read-only file system')
    mount('-o', 'remount,rw', stage.folder)
    stage.finish()
    return 1


def run_twice(stage, rng):
    """A second run by the same command, while the first one is stopped in the middle of its work."""
    first = stage.start()
    wait_for_change(stage, first)
    first.send_signal(signal.SIGSTOP)
    if first.poll() is not None:  # it has ended
        return 0
    refuse(stage, 'is being written by another')
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate()
    assert first.returncode == 0, err[-2000:]
    return 1


def repeat(fault, stage, n, rng):
    """Repeat a fault until it has happened n times -> (tried, lost, wrong)"""
    tried = lost = wrong = 0
    stage.run_undisturbed()
    disk = small_disk if fault in (fill_disk, make_read_only) else contextlib.nullcontext
    while tried < n:
        stage.clear()
        with disk(stage.folder):
            happened = fault(stage, rng)
            if happened:
                more_lost, more_wrong = compare(stage)
                tried += happened
                lost += more_lost
                wrong += more_wrong
    return tried, lost, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--only', default='', help='parts of the names of faults and stages, separated by commas')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--size', type=int, default=2, help='amount of work of a run')
    options = parser.parse_args()
    some = max(2, options.kills // 5)
    faults = [
        ('SIGKILL', kill, options.kills), ('SIGTERM', terminate, some), ('a process dies', kill_worker, some),
        ('full disk', fill_disk, some), ('read-only folder', make_read_only, 1), ('two runs at once', run_twice, 1)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))
    servers = {}
    bad = 0
    with tempfile.TemporaryDirectory(prefix='chaos') as folder:
        try:
            stages = make_stages(Path(folder), options.size, servers)
            print(f'seed {options.seed}\n\n| fault | tried | lost | wrong |\n| --- | --- | --- | --- |', flush=True)
            for fault, function, n in faults:
                for name, stage in stages.items():
                    row = f'{fault}: {name}'
                    selected = any(part in row for part in options.only.split(','))
                    if selected and ('torchrun' in name) == (function is kill_worker):
                        bad += print_row(row, function, stage, n, random.Random(f'{options.seed} {row}'))
        finally:
            for server in servers.values():
                server.process.kill()
    sys.exit(bad > 0)


def print_row(row, fault, stage, n, rng):
    """Repeat a fault and print a row of the table -> how much was lost or wrong"""
    try:
        tried, lost, wrong = repeat(fault, stage, n, rng)
    except Unmountable as e:
        print(f'| {row}: {e} | 0 | | |', flush=True)
        return 0
    except AssertionError as e:
        print(f'| {row} | {n} | | FAILED, see below |\n{e}', flush=True)
        return 1
    print(f'| {row} | {tried} | {lost} | {wrong} |', flush=True)
    return lost + wrong


if __name__ == '__main__':
    main()

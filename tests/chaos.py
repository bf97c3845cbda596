"""
Kills every script at moments of chance, fills its disk, goes on, and compares what comes out with what an undisturbed run makes.

    python tests/chaos.py                            20 kills a script; some 30 minutes
    python tests/chaos.py --kills=100 --only=train,sample --seed=2

One kill in two comes at any moment of a run, the other a moment after the run has written something, where there is more to
break. Killed runs are started again by the same command (train.py with --init_from=resume once there is a checkpoint) and
killed again, until one comes to its end; that is compared. The table tells what RELIABILITY.md repeats:

    tried   kills, SIGTERMs, dead processes, full disks …
    lost    stories, grades, steps or files that the end lacks
    wrong   those that are there twice, or not as an undisturbed run has them
"""

import argparse
import collections
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import Project, Server

SMALL = ['--dataset=tiny', '--n_layer=2', '--n_head=2', '--n_embd=32', '--block_size=64', '--batch_size=4', '--gradient_accumulation_steps=2',
         '--learning_rate=1e-2', '--max_iters=40', '--warmup_iters=2', '--eval_interval=5', '--eval_iters=8', '--log_interval=1', '--dropout=0.1',
         '--dtype=float32', '--device=cpu']


class Stage:
    """A script at work in one folder of a project: its command, and what is left when it has ended."""

    def __init__(self, project, folder, command, result, same=True):
        self.project, self.folder, self.arguments = project, project.path / folder, command
        self.result, self.same = result, same  # same: whether two runs agree to the last byte, or in the keys of their results only
        self.undisturbed = None
        self.whole = command[0] in ('prepare.py', 'sample.py', 'export.py')  # makes all of it again, rather than go on

    def command(self):
        resume = self.arguments[0] == 'train.py' and (self.folder / 'ckpt.pt').exists()
        return [*self.arguments, '--init_from=resume'] if resume else self.arguments

    def start(self):
        return self.project.start(*self.command())

    def finish(self):
        """Run to a good end -> {what: how it is}, such as an id and its story."""
        self.project.run(*self.command())
        return self.result(self.folder)

    def clear(self):
        if self.folder.exists():
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def state(self):
        """What anybody can see of the run's progress from outside."""
        try:
            return {entry.name: (entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(self.folder)}
        except FileNotFoundError:  # the folder is not there yet, or a temporary file is gone already
            return {}


def rows_of(name, *left_out):
    """The rows of a .jsonl file by id; `left_out` are fields that are never the same twice. A row that comes twice counts as another."""
    def result(folder):
        found = collections.Counter()
        rows = {}
        for line in (folder / name).read_text(encoding='utf-8').splitlines():
            row = json.loads(line)
            key = row['step'] if 'step' in row else row['id']
            found[key] += 1
            rows[key if found[key] == 1 else f'{key} again'] = {k: v for k, v in row.items() if k not in left_out}
        assert 'reason' not in str(list(rows.values())[:1])
        return rows
    return result


def bytes_of(*names):
    def result(folder):
        return {name: (folder / name).read_bytes() for name in names}
    return result


def trained(folder):
    """The log and every number in the checkpoints."""
    import torch
    found = rows_of('log.jsonl', 'seconds', 'tokens_per_s', 'mfu', 'memory')(folder)
    for file in ('ckpt.pt', 'best.pt'):
        checkpoint = torch.load(folder / file, weights_only=True)
        found |= {f'{file} {name}': weight.numpy().tobytes() for name, weight in checkpoint['model'].items()}
        found[f'{file} step'] = checkpoint['step']
        for i, optimizer in enumerate(checkpoint.get('optimizer', [])):
            found |= {f'optimizer {i} {place} {key}': value.numpy().tobytes() for place, state in optimizer['state'].items() for key, value in state.items()}
    return found


def every_file(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != 'filler'}


def graded(folder):
    """The grades, and that the tables about them stand there."""
    return rows_of('grades.jsonl')(folder) | {name: (folder / name).stat().st_size > 0 for name in ('results.json', 'results.md', 'results.png', 'report.html')}


def make_stages(path, size, servers):
    """A project in an empty folder with data and a model -> {name: Stage}. `size` is how much there is to do, from 1."""
    from test_evaluate import some_samples
    from test_translate import FRENCH, tiny_model, write
    project = Project(path)
    project.run('generate_data.py', '--language=hindi', '--total=600', '--out=data/tiny/stories.jsonl')
    project.run('prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=tiny', '--vocab_size=1024')
    project.run('train.py', *SMALL, '--out_dir=out/model', '--max_iters=5')
    rng = random.Random(1)
    tiny_model(path / 'translator', rng)
    write(path / 'english.jsonl', [{'id': i, 'text': f'Once there was a hen {i}. It sang! {rng.random()}'} for i in range(40 * size)])
    (path / 'graded').mkdir()
    write(path / 'graded/samples.jsonl', some_samples(prompts=10 * size))
    (path / 'prompts.txt').write_text('एक दिन\nरात को\nजंगल में\n', encoding='utf-8')
    for kind, options in (('story', {'latency': 0.02}), ('translation', {'latency': 0.02, 'reply': '```{"translation": "X {prompt}"}```'})):
        servers[kind] = Server('chat_server.py', **options)
    servers['judge'] = Server('judge_server.py', latency=0.02)
    return {name: Stage(project, *stage) for name, stage in {
        'generate, grammar': ('out/grammar', ['generate_data.py', '--language=hindi', f'--total={3000 * size}', '--out=out/grammar/s.jsonl'],
                              bytes_of('s.jsonl')),
        'generate, chat API': ('out/chat', ['generate_data.py', 'config/generate_hindi.py', f'--base_url={servers["story"].url}', f'--total={100 * size}',
                                            '--num_workers=4', '--out=out/chat/s.jsonl'], rows_of('s.jsonl'), False),
        'translate, chat API': ('out/translated', ['translate.py', *FRENCH, '--source=english.jsonl', f'--base_url={servers["translation"].url}',
                                                   '--num_workers=2', '--template={text}', '--out=out/translated/s.jsonl'], rows_of('s.jsonl')),
        'translate, model': ('out/local', ['translate.py', *FRENCH, '--source=english.jsonl', '--model=translator', '--batch_size=2',
                                           '--out=out/local/s.jsonl'], rows_of('s.jsonl')),
        'prepare': ('data/other', ['prepare.py', '--source=data/tiny/stories.jsonl', '--dataset=other', '--vocab_size=1024'],
                    bytes_of('train.bin', 'val.bin', 'meta.json', 'tokenizer.json', 'tokenizer_config.json')),
        'train': ('out/tiny', ['train.py', *SMALL, '--out_dir=out/tiny', f'--max_iters={20 * size}', f'--lr_decay_iters={20 * size}'], trained),
        'sample': ('out/told', ['sample.py', '--out_dir=out/model', '--start=FILE:prompts.txt', f'--num_samples={10 * size}', '--max_new_tokens=60',
                                '--out=out/told/s.jsonl', '--batch_size=4'], bytes_of('s.jsonl')),
        'export': ('out/exported', ['export.py', '--out_dir=out/model', '--out=out/exported/hf', '--examples=1'], every_file),
        'evaluate': ('out/graded', ['evaluate.py', 'config/evaluate_stories.py', '--samples=graded/samples.jsonl', f'--base_url={servers["judge"].url}',
                                    '--out_dir=out/graded', '--num_workers=4', '--repeat=0.0'], graded, False),
    }.items()}


def compared(stage, expected, found):
    """-> how much is lost, how much is wrong"""
    lost, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    differ = [key for key in expected.keys() & found.keys() if expected[key] != found[key]] if stage.same else []
    return len(lost), len(more) + len(differ)


def undisturbed(stage):
    """-> the result of a run that nobody disturbs, how long it takes, how many bytes its files have and the largest of them"""
    if not stage.undisturbed:
        stage.clear()
        start = time.monotonic()
        expected = stage.finish()
        stage.undisturbed = expected, time.monotonic() - start, *used(stage.folder)
    return stage.undisturbed


def wait_for_progress(stage, process):
    """Until the run has written something."""
    before = stage.state()
    while process.poll() is None and stage.state() == before:
        time.sleep(0.0005)


def kill(stage, rng, seconds, aimed):
    """Start a run and kill it -> whether it was killed before its end"""
    process = stage.start()
    if aimed:
        for _ in range(rng.randrange(1, 8)):
            wait_for_progress(stage, process)
        time.sleep(rng.choice([0, 0, 0.001, 0.01]))
    else:
        deadline = time.monotonic() + rng.uniform(0, seconds)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
    process.kill()
    _, err = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), err[-2000:]
    return process.returncode != 0


def kills(stage, n, rng):
    """Kill, go on, compare -> tried, lost, wrong, how it ended"""
    expected, seconds, *_ = undisturbed(stage)
    tried = lost = wrong = ends = 0
    while tried < n:
        stage.clear()
        runs = rng.randrange(1, 5)
        for _ in range(runs):
            if not kill(stage, rng, seconds, aimed=bool(tried % 2)):
                break
            tried += 1
            if tried == n:
                break
        ends += 1
        differences = compared(stage, expected, stage.finish())
        lost, wrong = lost + differences[0], wrong + differences[1]
    return tried, lost, wrong, f'{ends} ends, all as undisturbed' if not lost + wrong else f'{ends} ends'


def sigterms(stage, n, rng):
    """SIGTERM once the run has begun its work, go on, compare -> tried, lost, wrong, how it ended"""
    expected, seconds, *_ = undisturbed(stage)
    lost = wrong = 0
    ends, longest = collections.Counter(), 0.0
    for _ in range(n):
        stage.clear()
        process = stage.start()
        if stage.arguments[0] == 'train.py':
            wait_for_step(stage, process, rng.randrange(1, 12))  # before, there is nothing to save
        else:
            wait_for_progress(stage, process)
            time.sleep(rng.uniform(0, seconds / 8))
        start = time.monotonic()
        process.terminate()
        _, err = process.communicate()
        longest = max(longest, time.monotonic() - start)
        assert 'Traceback' not in err, err[-2000:]
        ends[process.returncode] += 1
        left = [path.name for path in stage.folder.iterdir() if '.tmp' in path.name or path.name.endswith('.lock')] if stage.folder.exists() else []
        assert not left, left
        differences = compared(stage, expected, stage.finish())
        lost, wrong = lost + differences[0], wrong + differences[1]
    return n, lost, wrong, f'{longest:.1f} s at the longest; status ' + ', '.join(f'{status} {count} times' for status, count in ends.items())


# -----------------------------------------------------------------------------
# torchrun

def torchrun(*arguments):
    return ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', *arguments]


def workers_of(process):
    """The processes that torchrun has started, those that train."""
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(child) for child in children if b'train.py' in Path(f'/proc/{child}/cmdline').read_bytes()]


def wait_for_step(stage, process, step):
    log = stage.folder / 'log.jsonl'
    while not (log.exists() and log.read_bytes().count(b'\n') >= step):
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.01)


def dead_processes(stage, n, rng):
    """One of two processes dies, with and without --max-restarts -> tried, lost, wrong, how it ended"""
    stage.clear()
    arguments = stage.arguments
    stage.project.run(*torchrun(*arguments))
    expected = stage.result(stage.folder)
    lost = wrong = 0
    longest = 0.0
    for i in range(n):
        stage.clear()
        process = stage.project.start(*torchrun(f'--max-restarts={i % 2}', *arguments))
        wait_for_step(stage, process, rng.randrange(1, 12))
        os.kill(workers_of(process)[rng.randrange(2)], signal.SIGKILL)
        start = time.monotonic()
        _, err = process.communicate(timeout=200)
        if i % 2:
            assert process.returncode == 0, err
        else:
            longest = max(longest, time.monotonic() - start)
            assert process.returncode == 1 and 'exitcode  : -9' in err, err[-3000:]
            assert 'has lost the others' in err and not re.search(r'rank\d\]: Traceback', err), err[-3000:]
            resume = ['--init_from=resume'] if (stage.folder / 'ckpt.pt').exists() else []
            stage.project.run(*torchrun(*arguments, *resume))
        differences = compared(stage, expected, stage.result(stage.folder))
        lost, wrong = lost + differences[0], wrong + differences[1]
    return n, lost, wrong, f'without restarts the job ends within {longest:.1f} s'


# -----------------------------------------------------------------------------
# disks

class Unmountable(Exception):
    """Only root may mount, and not in every container."""


def mount(*arguments):
    done = subprocess.run(['mount', *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise Unmountable(f'no file system can be mounted here: {done.stderr.strip()}')


@contextlib.contextmanager
def small_disk(folder):
    """A disk of 16 MB in place of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount('-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', folder)
    try:
        yield
    finally:
        subprocess.run(['umount', folder], check=True)


def used(folder):
    """How many bytes the files of a folder take -> those of all, those of the largest"""
    sizes = [512 * path.stat().st_blocks for path in folder.rglob('*') if path.is_file()]
    return sum(sizes), max(sizes, default=0)


@contextlib.contextmanager
def filled(folder, free):
    """Leave so many bytes free on a disk."""
    filler = folder / 'filler'
    status = os.statvfs(folder)
    filler.write_bytes(b'x' * int(status.f_bavail * status.f_frsize - free))
    yield
    filler.unlink()


def refusal(stage, command):
    """Run to a bad end -> the one line that it said, beside the progress."""
    process = stage.project.start(*command)
    _, err = process.communicate()
    lines = [line for line in re.split(r'[\r\n]+', err) if line.strip() and not re.search(r'\|.*\||\d\d<|\d\d:\d\d, |B/s\]', line)]
    assert process.returncode == 1 and len(lines) == 1, f'{command} ended with {process.returncode}: {err[-3000:]}'
    return lines[0]


def full_disks(stage, n, rng):
    """The disk fills up, in every second case over earlier work; with space again the same command goes on -> tried, lost, wrong, how it ended"""
    expected, seconds, size, largest = undisturbed(stage)
    lost = wrong = tried = 0
    while tried < n:
        stage.clear()
        with small_disk(stage.folder):
            before = {}
            if tried % 2 and stage.whole:
                before = stage.finish()
            elif tried % 2:
                kill(stage, rng, seconds, aimed=True)
            wanted = largest if stage.whole or stage.arguments[0] == 'train.py' else size - used(stage.folder)[0]
            if wanted < 8192:
                continue  # that run was as good as done
            with filled(stage.folder, 0.9 * rng.random() * wanted):
                line = refusal(stage, stage.command())
                assert 'No space left on device' in line, line
                if before:
                    assert stage.result(stage.folder) == before == expected, line
            tried += 1
            differences = compared(stage, expected, stage.finish())
        lost, wrong = lost + differences[0], wrong + differences[1]
    return n, lost, wrong, 'one line, status 1; the same command went on'


def read_only(stage, n, rng):
    """-> tried, lost, wrong, how it ended"""
    expected, *_ = undisturbed(stage)
    stage.clear()
    with small_disk(stage.folder):
        mount('-o', 'remount,ro', stage.folder)
        line = refusal(stage, stage.command())
        assert 'Read-only file system' in line, line
        mount('-o', 'remount,rw', stage.folder)
        lost, wrong = compared(stage, expected, stage.finish())
    return 1, lost, wrong, 'one line, status 1'


def two_at_once(stage, n, rng):
    """A second run by the same command -> tried, lost, wrong, how it ended"""
    expected, *_ = undisturbed(stage)
    stage.clear()
    first = stage.start()
    while first.poll() is None and not (stage.folder.exists() and any(stage.folder.iterdir())):
        time.sleep(0.002)
    time.sleep(0.02)
    first.send_signal(signal.SIGSTOP)  # or it might end while the second begins
    line = refusal(stage, stage.arguments)
    first.send_signal(signal.SIGCONT)
    assert 'is being written by another run' in line, line
    _, err = first.communicate()
    assert first.returncode == 0, err[-2000:]
    return 1, *compared(stage, expected, stage.result(stage.folder)), 'the second is refused in one line, the first ends well'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--only', default='', help='stages or parts of their names, separated by commas')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--size', type=int, default=2, help='how much a run has to do')
    options = parser.parse_args()
    servers = {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))
    with tempfile.TemporaryDirectory(prefix='chaos') as folder, contextlib.ExitStack() as stack:
        stack.callback(lambda: [server.process.kill() for server in servers.values()])
        stages = make_stages(Path(folder), options.size, servers)
        print(f'seed {options.seed}\n\n| fault | tried | lost | wrong | how it ended |\n| --- | --- | --- | --- | --- |', flush=True)
        bad = 0
        tests = [('SIGKILL', kills, name, options.kills) for name in stages] + [('SIGTERM', sigterms, name, max(1, options.kills // 4)) for name in stages]
        tests += [('a process of torchrun dies', dead_processes, 'train', max(2, options.kills // 5))]
        tests += [('full disk', full_disks, name, max(2, options.kills // 5)) for name in stages]
        tests += [('read-only folder', read_only, name, 1) for name in stages] + [('two runs at once', two_at_once, name, 1) for name in stages]
        for fault, test, name, n in tests:
            if options.only and not any(part in f'{fault}: {name}' for part in options.only.split(',')):
                continue
            try:
                tried, lost, wrong, ended = test(stages[name], n, random.Random(f'{options.seed} {fault} {name}'))
            except Unmountable as e:
                tried, lost, wrong, ended = 0, 0, 0, str(e)
            except AssertionError as e:
                tried, lost, wrong, ended = n, 0, 1, 'FAILED, see below'
                print(e, file=sys.stderr)
            print(f'| {fault}: {name} | {tried} | {lost} | {wrong} | {ended} |', flush=True)
            bad += lost + wrong
    sys.exit(bad > 0)


if __name__ == '__main__':
    main()

"""bench.py at small sizes: a row of the table for every stage. Its figures are for people; how peers are run is not tested, since there are none here."""

from conftest import PROJECT


def test_every_stage_has_its_row(project):
    (project.path / 'tests').mkdir()
    (project.path / 'tests/chat_server.py').write_bytes((PROJECT / 'tests/chat_server.py').read_bytes())
    sizes = ['--n_layer=1', '--n_head=2', '--n_embd=32', '--block_size=32', '--batch_size=4', '--vocab_size=600', '--new_tokens=10', '--batches=[1, 4]',
             '--steps=4', '--num_workers=4', '--repetitions=1', '--n_prompts=3', '--device=cpu',
             "--stages=['compose', 'chat', 'prepare', 'train', 'evaluate', 'generate', 'many']"]
    text = project.run('bench.py', *sizes)
    table = (project.path / 'out/bench/bench.md').read_text(encoding='utf-8')
    assert table in text and [line.split(' | ')[0][2:] for line in table.splitlines()[2:]] == [
        'write stories, by the grammar', 'write stories, 4 requests of 1 s in flight', 'prepare tokens', 'train', 'evaluate',
        'tell stories, 1 at a time', 'tell stories, 4 at a time', 'tell 9 stories']
    assert len(project.jsonl('out/bench/many.jsonl')) == 9
    text = project.run('bench.py', *sizes[:-1], '--vocab_size=500', "--stages=['evaluate']")  # what lies there has other tokens
    assert text.index('| prepare tokens') < text.index('| train') < text.index('| evaluate') and project.json('data/bench/meta.json')['vocab_size'] == 500


def test_growth(project):
    project.run('bench.py', "--stages=['grow']", '--repetitions=1', '--n_layer=1', '--n_head=1', '--n_embd=32', '--block_size=32', '--batch_size=2',
                '--vocab_size=600', '--new_tokens=10', '--batches=[1]', '--steps=2', '--sizes={"n_layer": [1, 2], "block_size": [16, 32]}',
                '--device=cpu', '--out_dir=out/growth')
    assert not (project.path / 'out/growth/run').exists()  # no model is trained that no stage asks for
    lines = (project.path / 'out/growth/growth.md').read_text(encoding='utf-8').splitlines()
    assert [line.split(' | ')[0][2:] for line in lines[2:6]] == ['n_layer = 1', 'n_layer = 2', 'block_size = 16', 'block_size = 32']
    assert (project.path / 'out/growth/growth.png').read_bytes().startswith(b'\x89PNG')


def test_refusals(project):
    assert 'nowhere holds neither nanoGPT nor llama2.c' in project.refuses('bench.py', '--peers=nowhere')
    assert 'there is: compose' in project.refuses('bench.py', "--stages=['trian']")

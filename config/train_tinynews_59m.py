# TinyNews' 59M model; its other settings are those of config/train_tinynews_3m.py.

exec(open(find('config/train_tinynews_3m.py'), encoding='utf-8').read())

out_dir = 'out/tinynews_59m'

n_layer = 16
n_head = 16
n_embd = 512
n_inner = 2048

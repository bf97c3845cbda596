# TinyNews' 11M model; its other settings are those of config/train_tinynews_3m.py.

exec(open(find('config/train_tinynews_3m.py'), encoding='utf-8').read())

out_dir = 'out/tinynews_11m'

n_layer = 8
n_head = 8
n_embd = 256
n_inner = 1024

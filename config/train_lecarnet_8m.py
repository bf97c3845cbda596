# LeCarnet's 8M model; its other settings are those of config/train_lecarnet_3m.py.

exec(open(find('config/train_lecarnet_3m.py'), encoding='utf-8').read())

out_dir = 'out/lecarnet_8m'

n_embd = 128
n_inner = 512

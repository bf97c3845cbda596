# A story by the model of the demo.

out_dir = 'out/demo'
start = 'रवि'
temperature = 0.5

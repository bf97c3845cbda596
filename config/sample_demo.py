# A story from the demo's model.

out_dir = 'out/demo'
start = 'रवि'
temperature = 0.5

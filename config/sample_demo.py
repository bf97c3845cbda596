# A story by the model of the demo.

out_dir = 'out/demo'
start = 'एक दिन'
temperature = 0.8
